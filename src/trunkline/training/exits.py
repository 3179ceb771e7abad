"""Exits of a finished branch, taught by the branch itself, whose own weights stay as they are.

All exits that there may be learn side by side what the head says of the train rows, labels unused (self-distillation:
Liu et al. 2020, FastBERT, section 3.2.2). Which of them are kept, and what speeds come to, is found on `valid`. Knows a
branch and its material; nothing of stages, nor of how prices are measured.

Notation: B rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.model.branch import Branch, BranchSpec, Reading, in_unit, may_exit, scope_depths
from trunkline.model.exits import ExitSpec, Form, new_exit
from trunkline.model.scope import Scope
from trunkline.model.tokens import TokenBatch
from trunkline.model.trunk import Trunk
from trunkline.project.speed import Rule, SpeedPoint, compared, fastest
from trunkline.project.tasks import Kind
from trunkline.training.calibration import calibration_error, fit_temperature, flatten
from trunkline.training.candidates import Report
from trunkline.training.leaving import (
    KEEPS,
    LEAST_GAIN,
    Outcomes,
    Place,
    Prices,
    Said,
    at_depths,
    least_time,
    worthwhile,
)
from trunkline.training.loop import BatchRows, Epochs, Outcome, Schedule, by_length, fit
from trunkline.training.losses import exit_loss
from trunkline.training.material import FIT, UNLABELLED, Logits, TaskMaterial
from trunkline.training.scope import fit_scopes, out_of_scope, with_scopes
from trunkline.training.states import TOKENS_PER_PASS, at_forks


@dataclass(frozen=True)
class WithExits:
    """A branch with the exits that it keeps, how their training went, what speeds come to by scored split, and for each
    of `KEEPS` the shares of its rows that leave at each exit and at the head, and the expected calibration error of the
    answers, where they have confidence; no outcome where there was nothing to train, and no speeds where none is kept.
    """

    branch: Branch
    outcome: Outcome | None
    speeds: dict[str, tuple[SpeedPoint, ...]]
    left: dict[str, list[list[float]]]
    ece: dict[str, list[float | None]]


class Lengthened(Trunk):
    """A trunk with the own layers of a finished branch above its fork, all but the last."""

    def __init__(self, trunk: Trunk, branch: Branch) -> None:
        super().__init__(trunk.encoder, _digest(trunk.fingerprint, branch))
        self._branch = [branch]  # in a list: its weights are the branch's, and stay what they are

    def states(self, batch: TokenBatch, forks: Iterable[int]) -> dict[int, Tensor]:
        """The states (B, T, H) at these depths, each layer run at most once."""
        [branch], wanted = self._branch, set(forks)
        fork = branch.spec.fork
        above = {depth for depth in wanted if depth > fork}
        found = super().states(batch, wanted - above | ({fork} if above else set()))
        if above:
            with torch.no_grad():
                own = islice(branch.own_states(self.encoder, found[fork], batch.mask), max(above) - fork)
                found |= dict(enumerate(own, fork + 1))
        return {depth: found[depth] for depth in wanted}


def _digest(fingerprint: str, branch: Branch) -> str:
    """Identifies a trunk with the own layers of this branch."""
    sha = hashlib.sha256(f"{fingerprint} {branch.spec.fork}".encode())
    for name, weight in branch.layers.state_dict().items():
        sha.update(name.encode() + weight.cpu().numpy().tobytes())
    return sha.hexdigest()


class OnTheWay:
    """A finished branch over the states of one pool. Called with row numbers it gives ({depth: states (B, T, H)}, mask
    (B, T), the head's logits): states at `depths` at least. States between own layers are cached as the trunk's are.
    """

    def __init__(self, material: TaskMaterial, branch: Branch, depths: Collection[int], pool: str) -> None:
        spec = branch.spec
        self._encoder = material.trunk.encoder
        self._end = branch.end() if any(depth > spec.fork for depth in depths) else branch
        wanted = {self._end.spec.fork, *depths}
        above = {depth for depth in wanted if depth > spec.fork}
        [self._states] = material.states_at(pool, spec.reading, wanted - above)
        if above:
            [found] = material.states_at(pool, spec.reading, above, Lengthened(material.trunk, branch))
            self._states = {**self._states, **found}

    @torch.no_grad()
    def __call__(self, rows: BatchRows) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        device = next(self._end.parameters()).device
        read, mask = at_forks(self._states, rows)
        states, mask = {depth: values.to(device) for depth, values in read.items()}, mask.to(device)
        return states, mask, self._end(self._encoder, [states[self._end.spec.fork]], [mask])


class Exits(nn.Module):
    """Exits at all of these places, side by side."""

    def __init__(self, spec: BranchSpec, places: Sequence[Place]) -> None:
        super().__init__()
        self._spec, self.places = spec, tuple(places)
        tokens = spec.kind is Kind.TAGGING
        self.made = nn.ModuleDict(
            {_name(place): new_exit(place[1], spec.width, spec.outputs, tokens=tokens) for place in places}
        )

    def forward(self, states: dict[int, Tensor], mask: Tensor, places: Sequence[Place] | None = None) -> list[Tensor]:
        """Logits as a head gives them, of the exits at these places or at all, from states by depth."""
        asked = self.places if places is None else places
        return [in_unit(self._spec, self.made[_name(place)](states[place[0]], mask)) for place in asked]


def _name(place: Place) -> str:
    depth, form = place
    return f"{form}-{depth}"


def add_exits(
    material: TaskMaterial,
    branch: Branch,
    prices: Callable[[], Sequence[Prices]],
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    *,
    forms: Sequence[Form],
    depths: Sequence[int],
    rule: Rule,
) -> WithExits:
    """Train exits of these forms for `branch`, choose among them on `valid`, and give the branch with those.

    `depths` are where exits shall stand; those at which this branch can have none are left out, and said. None given:
    those that save time by `prices` of requests of several sizes, which is called where there are exits to choose
    among. A branch that has a scope gets one at every exit in the trunk too, and rows that are beyond it do not leave
    there.
    """
    spec = branch.spec
    allowed = may_exit(spec)
    misfits = [depth for depth in depths if depth not in allowed]
    if misfits or not allowed:
        material.say(f"{spec.task}: {_left_out(spec, misfits)}")
    places = [(depth, form) for depth in (depths or allowed) if depth in allowed for form in forms]
    alone = len({depth for depth, _ in places}) == 1 and compared(spec.kind, rule)
    if alone:
        material.say(f"{spec.task}: no exits: rows leave where two exits agree, and there is room for one")
    if alone or not places:
        return WithExits(branch, None, {}, {}, {})
    exits, outcome = _train(material, branch.eval(), places, schedule, checkpoint, report)
    head, found = _logits(material, branch, exits, "valid", places)
    temperatures = {place: _temperature(material, spec, logits) for place, logits in found.items()}
    scopes = _scopes(material, branch, {depth for depth, _ in places})
    ms = prices()
    outcomes = Outcomes(spec, rule, ms, _said(material, spec, scopes, "valid", head, found, temperatures))
    kept = (
        at_depths(outcomes, sorted({depth for depth, _ in places}), forms) if depths else worthwhile(outcomes, places)
    )
    speeds = {"valid": outcomes.points(kept)} if kept else {}
    if speeds and not depths:
        asked = {depth for point in speeds["valid"] for depth in point.exits or ()}
        kept = [place for place in kept if place[0] in asked]
    if not kept or not (depths or least_time(speeds["valid"]) <= 1 - LEAST_GAIN):
        keeps = ", ".join(f"{100 * keep:g}" for keep in KEEPS)
        material.say(
            f"{spec.task}: no exit saves {100 * LEAST_GAIN:g} % of the time, on average where {keeps} % of the quality "
            "are kept, so its branch has none"
        )
        return WithExits(branch, outcome, {}, {}, {})
    by_split = {"valid": outcomes}
    for split in material.splits():
        if split not in speeds:
            head, found = _logits(material, branch, exits, split, kept)
            said = _said(material, spec, scopes, split, head, found, temperatures)
            by_split[split] = Outcomes(spec, rule, ms, said)
            speeds[split] = by_split[split].as_chosen(kept, speeds["valid"])
    chosen = [fastest(speeds["valid"], keep) for keep in KEEPS]
    at = [next(point for point in speeds["valid"] if point.speed == speed) for speed in chosen]
    left = {split: [one.left(kept, point) for point in at] for split, one in by_split.items()}
    ece = {split: [one.calibration(kept, point) for point in at] for split, one in by_split.items()}
    made = tuple(ExitSpec(depth=depth, form=form, temperature=temperatures[depth, form]) for depth, form in kept)
    update = {"exits": made, "rule": rule, "speeds": speeds["valid"]}
    joined = _joined(branch, spec.model_copy(update=update), exits)
    if spec.scope is not None:
        kept_scopes = {depth: scopes[depth] for depth in scope_depths(joined.spec)}
        joined = with_scopes(joined, joined.spec, kept_scopes, spec.scope.false_alarms)
    return WithExits(joined, outcome, speeds, left, ece)


def _scopes(material: TaskMaterial, branch: Branch, depths: Collection[int]) -> dict[int, Scope]:
    """The branch's scope at its fork, and one at each of these depths before it; none if it has none."""
    spec = branch.spec
    if spec.scope is None:
        return {}
    before = [depth for depth in depths if depth < spec.fork]
    found = fit_scopes(material, spec, before, spec.scope.false_alarms) if before else {}
    own = branch.scopes[str(spec.fork)].cpu()  # where mean states are
    assert isinstance(own, Scope)
    return {**found, spec.fork: own}


def _left_out(spec: BranchSpec, misfits: Sequence[int]) -> str:
    what = f"no exit after layer {', '.join(map(str, misfits))}" if misfits else "no exits"
    if spec.reading is Reading.SEPARATE:
        return f"{what}: the chosen branch reads two texts apart, and nothing before its head knows both"
    allowed = may_exit(spec)
    where = "has no layer to have them after"
    if allowed:
        most = f" to {allowed[-1]}" if len(allowed) > 1 else ""
        where = f"can have them after layer {allowed[0]}{most}"
    return f"{what}: the chosen branch (fork {spec.fork}, {spec.layers} of its own) {where}"


def _train(
    material: TaskMaterial,
    branch: Branch,
    places: Sequence[Place],
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
) -> tuple[Exits, Outcome]:
    torch.manual_seed(schedule.seed)
    spec = branch.spec
    exits = Exits(spec, places).to(schedule.device)
    pools = {FIT: material.data.train}
    if material.unlabelled is not None:
        pools[UNLABELLED] = np.arange(len(material.unlabelled))
    ways = {pool: OnTheWay(material, branch, {depth for depth, _ in places}, pool) for pool in pools}
    of = {pool: material.examples(pool, spec.reading) for pool in pools}
    valid = material.data.valid

    def losses(pool: str, batch: BatchRows) -> tuple[Tensor, Tensor]:
        """Mean loss of each exit, and how many predictions that is the mean of."""
        states, mask, head = ways[pool](batch)
        keep = of[pool].counted(batch, mask.shape[1]).to(head.device)
        found = [exit_loss(spec.kind, logits, head, keep=keep, std=spec.std) for logits in exits(states, mask)]
        return torch.stack(found), keep.sum()

    def mean(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        found, counts = (torch.stack(each) for each in zip(*batches, strict=True))  # (batches, exits), (batches,)
        shares = counts / counts.sum().clamp(min=1)
        mean: Tensor = (found * shares[:, None]).sum(0)
        return mean

    @torch.no_grad()
    def held_out() -> float:
        batches = by_length(of[FIT].lengths[valid], TOKENS_PER_PASS)
        return -float(mean(losses(FIT, valid[picks]) for picks in batches).mean())

    # Rows of all pools count through: those of the first, then those of the next.
    starts = np.cumsum([0, *map(len, pools.values())])
    lengths = np.concatenate([of[pool].lengths[rows] for pool, rows in pools.items()])

    def loss(batch: np.ndarray) -> Tensor:
        pool_of = np.searchsorted(starts, batch, side="right") - 1
        mine = [(pool, rows[batch[pool_of == i] - starts[i]]) for i, (pool, rows) in enumerate(pools.items())]
        return mean(losses(pool, rows) for pool, rows in mine if len(rows)).sum()

    outcome = fit(
        exits,
        steps=schedule.steps(len(lengths)),
        batch=Epochs(np.arange(len(lengths)), lengths, schedule.batch_size, schedule.seed),
        loss=loss,
        evaluate=held_out,
        schedule=schedule,
        checkpoint=checkpoint,
        report=report,
    )
    return exits, outcome


def _logits(
    material: TaskMaterial, branch: Branch, exits: Exits, split: str, places: Sequence[Place]
) -> tuple[Logits, dict[Place, Logits]]:
    """Of the head, and of the exits at these places, for the rows of a split."""
    pool, rows = material.splits()[split]
    way = OnTheWay(material, branch, {depth for depth, _ in places}, pool)

    def forward(batch: BatchRows) -> list[Tensor]:
        states, mask, head = way(batch)
        return [head, *exits(states, mask, places)]

    head, *found = material.examples(pool, branch.spec.reading).predict_all(forward, rows)
    return head, dict(zip(places, found, strict=True))


def _temperature(material: TaskMaterial, spec: BranchSpec, logits: Logits) -> float:
    """Of an exit, from its logits of `valid`; 1 for regression, which has no confidence."""
    if spec.kind is Kind.REGRESSION:
        return 1.0
    judged = material.examples(FIT, spec.reading).judged(logits, material.data.valid)
    return fit_temperature(spec.kind, *flatten(spec.kind, *judged))


def _said(
    material: TaskMaterial,
    spec: BranchSpec,
    scopes: Mapping[int, Scope],
    split: str,
    head: Logits,
    exits: dict[Place, Logits],
    temperatures: dict[Place, float],
) -> Said:
    pool, picks = material.splits()[split]
    rows, examples = material.rows(pool).take(picks), material.examples(pool, spec.reading)
    judged = {min(depth, spec.fork) for depth, _ in exits}
    strange = out_of_scope(material, spec, {depth: scopes[depth] for depth in judged}, split) if scopes else {}
    read = examples.read_words(picks) if spec.kind is Kind.TAGGING else []
    words = _padded(read) if read else None

    def calibration(logits: NDArray[Any]) -> float:
        by_row = [values[: len(row)] for values, row in zip(logits, read, strict=True)] if read else logits
        return calibration_error(spec.kind, *flatten(spec.kind, *examples.judged(by_row, picks)))

    return Said(
        head=_padded(head) / spec.temperature,
        exits={place: _padded(logits) / temperatures[place] for place, logits in exits.items()},
        words=words,
        metric=lambda logits, some: material.metrics(rows.take(some), logits[some])[material.metric],
        clusters=np.arange(len(rows)) if rows.groups is None else np.unique(rows.groups, return_inverse=True)[1],
        calibration=None if spec.kind is Kind.REGRESSION else calibration,
        out_of_scope={depth: strange[min(depth, spec.fork)] for depth, _ in exits} if scopes else {},
    )


def _padded(rows: Logits) -> NDArray[Any]:
    """Rows of different numbers of words as one array, zero where a row has no more; others as they are."""
    if isinstance(rows, np.ndarray):
        return rows
    made = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        made[place, : len(row)] = row
    return made


def _joined(branch: Branch, spec: BranchSpec, exits: Exits) -> Branch:
    """The branch with those of the exits that `spec` names; it shares its weights with the one given."""
    joined = Branch(spec, branch.layers, branch.norm, branch.head)
    joined.latents = branch.latents
    joined.exits = nn.ModuleDict({str(one.depth): exits.made[_name((one.depth, one.form))] for one in spec.exits})
    return joined.eval()
