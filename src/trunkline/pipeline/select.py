"""Exact selection: one candidate per task, the shared trunk paid once.

Knows qualities and costs as numbers, and which slots of the trunk a reading needs; nothing of files or models. The
choice is a small integer program (one binary per candidate, one variable per slot and trunk layer), solved to
optimality with HiGHS.

Cost of a set = sum over slots ("text", "pair", "joint") of the trunk up to the deepest fork that a chosen candidate
reads there, plus every chosen branch. Quality of a set = mean of the candidates' metrics on `valid`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

SLOTS = ("text", "pair", "joint")
READS = {"single": ("text",), "joint": ("joint",), "separate": ("text", "pair")}


@dataclass(frozen=True)
class Candidate:
    """One way to do a task. `quality` is the metric on `valid`, `ms` the branch alone on the reference request."""

    id: str
    task: str
    fork: int
    layers: int
    reading: str
    quality: float
    ms: float


@dataclass(frozen=True)
class TrunkCost:
    """Milliseconds of the trunk on the reference request: `ms[slot][k]` for embeddings and k layers."""

    ms: Mapping[str, Sequence[float]]

    def of(self, chosen: Sequence[Candidate]) -> float:
        """The trunk for these branches: every slot once, to its deepest fork."""
        depths: dict[str, int] = {}
        for candidate in chosen:
            for slot in READS[candidate.reading]:
                depths[slot] = max(depths.get(slot, 0), candidate.fork)
        return float(sum(self.ms[slot][depth] for slot, depth in depths.items()))


@dataclass(frozen=True)
class Choice:
    """A selected set. `met` says whether it keeps the budget; if none does, it is the best that there is."""

    candidates: dict[str, Candidate]  # by task
    quality: float
    ms: float
    met: bool


@dataclass(frozen=True)
class Budget:
    """Either the least mean quality or the largest cost in ms; `pinned` tasks keep the candidate of that id."""

    min_quality: float | None = None
    max_ms: float | None = None
    pinned: Mapping[str, str] = field(default_factory=dict)


def choose(
    candidates: Sequence[Candidate], trunk: TrunkCost, budget: Budget, *, depth: int | None = None
) -> Choice | None:
    """The cheapest set of at least `min_quality`, or the best set of at most `max_ms`; None where a task has no
    candidate.

    `depth` limits all forks. Where no set keeps the budget: the set of best quality (or, under `max_ms`, of least
    cost), with `met` False. Ties in quality go to the cheaper set, ties in cost to the better
    one; both are told apart to 1e-6.
    """
    usable = [c for c in candidates if (depth is None or c.fork <= depth) and budget.pinned.get(c.task, c.id) == c.id]
    tasks = sorted({c.task for c in candidates})
    if {c.task for c in usable} != set(tasks):
        return None
    program = _Program(usable, tasks, trunk)
    if budget.min_quality is not None:
        found = program.cheapest(budget.min_quality * len(tasks))
        return found if found is not None else program.best(None, met=False)
    found = program.best(budget.max_ms, met=True)
    return found if found is not None else program.cheapest(None, met=False)


class _Program:
    """Variables: x_c in {0, 1} per candidate, then y_{s,d} in [0, 1]: slot s is read at least to depth d."""

    def __init__(self, candidates: Sequence[Candidate], tasks: Sequence[str], trunk: TrunkCost) -> None:
        self.candidates, self.tasks, self.trunk = candidates, tasks, trunk
        depths = [(slot, d) for slot in SLOTS if slot in trunk.ms for d in range(len(trunk.ms[slot]))]
        position = {pair: len(candidates) + i for i, pair in enumerate(depths)}
        size = len(candidates) + len(depths)
        self.cost = np.zeros(size)
        self.quality = np.zeros(size)
        rows: list[np.ndarray] = []
        lows: list[float] = []
        for i, c in enumerate(candidates):
            self.cost[i], self.quality[i] = c.ms, c.quality
            for slot in READS[c.reading]:
                for d in range(c.fork + 1):  # y_{s,d} >= x_c
                    row = np.zeros(size)
                    row[position[slot, d]], row[i] = 1, -1
                    rows.append(row)
                    lows.append(0)
        for slot, d in depths:
            before = trunk.ms[slot][d - 1] if d else 0.0
            self.cost[position[slot, d]] = max(0.0, trunk.ms[slot][d] - before)
        self._rows, self._lows, self._highs = rows, lows, [np.inf] * len(rows)
        for task in tasks:
            row = np.zeros(size)
            row[[i for i, c in enumerate(candidates) if c.task == task]] = 1
            self._rows.append(row)
            self._lows.append(1)
            self._highs.append(1)

    def cheapest(self, min_sum: float | None, *, met: bool = True) -> Choice | None:
        limits = [] if min_sum is None else [(self.quality, min_sum - 1e-9, np.inf)]
        low = self._solve(self.cost, limits, met=met)
        if low is None:
            return None
        # Branches of one shape cost the same, so ties are common.
        return self._solve(-self.quality, [*limits, (self.cost, -np.inf, low.ms + 1e-9)], met=met) or low

    def best(self, max_ms: float | None, *, met: bool) -> Choice | None:
        limits = [] if max_ms is None else [(self.cost, -np.inf, max_ms)]
        top = self._solve(-self.quality, limits, met=met)
        if top is None:
            return None
        return (
            self._solve(self.cost, [*limits, (self.quality, top.quality * len(self.tasks) - 1e-9, np.inf)], met=met)
            or top
        )

    def _solve(
        self, objective: np.ndarray, limits: Sequence[tuple[np.ndarray, float, float]], *, met: bool
    ) -> Choice | None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        matrix = csr_matrix(np.vstack([*self._rows, *(row for row, _, _ in limits)]))
        lows = np.asarray([*self._lows, *(low for _, low, _ in limits)])
        highs = np.asarray([*self._highs, *(high for _, _, high in limits)])
        integral = np.zeros(len(objective))
        integral[: len(self.candidates)] = 1
        found = milp(
            objective,
            constraints=LinearConstraint(matrix, lows, highs),
            bounds=Bounds(0, 1),
            integrality=integral,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            return None
        chosen = {c.task: c for c, x in zip(self.candidates, found.x, strict=False) if x > 0.5}
        picked = list(chosen.values())
        ms = self.trunk.of(picked) + sum(c.ms for c in picked)
        return Choice(chosen, float(np.mean([c.quality for c in picked])), ms, met)


def paper_rule(candidates: Sequence[Candidate], gain: float) -> dict[str, Candidate]:
    """Wei et al.'s own rule, per task and apart from all others: add a layer while its marginal gain is at least
    `gain`.

    First over tuned layers L (forks, from the shallowest branch up), then over own layers l at that fork. Within one
    reading: the first that the task searches.
    """
    chosen = {}
    for task in sorted({c.task for c in candidates}):
        mine = [c for c in candidates if c.task == task]
        mine = [c for c in mine if c.reading == mine[0].reading]
        # L: the best quality at each fork, from the latest fork (fewest tuned layers) to the earliest.
        forks = sorted({c.fork for c in mine}, reverse=True)
        fork = _climb(forks, {f: max(c.quality for c in mine if c.fork == f) for f in forks}, gain)
        here = [c for c in mine if c.fork == fork]
        sizes = sorted({c.layers for c in here})
        layers = _climb(sizes, {n: max(c.quality for c in here if c.layers == n) for n in sizes}, gain)
        chosen[task] = max((c for c in here if c.layers == layers), key=lambda c: c.quality)
    return chosen


def _climb(steps: Sequence[int], quality: Mapping[int, float], gain: float) -> int:
    at = steps[0]
    for step in steps[1:]:
        if quality[step] - quality[at] < gain:
            break
        at = step
    return at
