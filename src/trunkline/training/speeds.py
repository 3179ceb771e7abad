"""Which of its trained exits a finished branch keeps, and what its speeds come to on the rows of each split.

Chosen on `valid`. Knows a branch, its exits and its material; nothing of stages, nor of how prices are measured.

Notation: B rows, T tokens, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.model.branch import Branch, BranchSpec, scope_depths
from trunkline.model.exits import ExitSpec
from trunkline.model.scope import Scope
from trunkline.project.speed import Rule, SpeedPoint, compared, fastest
from trunkline.project.tasks import Kind
from trunkline.training.calibration import calibration_error, fit_temperature, flatten
from trunkline.training.exits import Exits, OnTheWay
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
from trunkline.training.loop import BatchRows
from trunkline.training.material import FIT, Logits, TaskMaterial
from trunkline.training.scope import fit_scopes, out_of_scope, with_scopes


@dataclass(frozen=True)
class WithExits:
    """A branch with the exits that it keeps, what speeds come to by scored split, and for each of `KEEPS` the shares of
    its rows that leave at each exit and at the head, and the expected calibration error of the answers, where they have
    confidence; nothing but the branch where no exit is kept.
    """

    branch: Branch
    speeds: dict[str, tuple[SpeedPoint, ...]] = field(default_factory=dict)
    left: dict[str, list[list[float]]] = field(default_factory=dict)
    ece: dict[str, list[float | None]] = field(default_factory=dict)


def choose_exits(
    material: TaskMaterial,
    branch: Branch,
    exits: Exits,
    prices: Callable[[], Sequence[Prices]],
    *,
    rule: Rule,
    every: bool = False,
) -> WithExits:
    """The branch with those of its exits that save time on `valid`; with one at each of their depths, if `every`.

    Time is told by `prices` of requests of several sizes, which is called where there are exits to choose among.
    A branch that has a scope gets one at every exit in the trunk too, and rows that are beyond it do not leave there.
    """
    spec, places = branch.spec, exits.places
    depths = sorted({depth for depth, _ in places})
    if len(depths) == 1 and compared(spec.kind, rule):
        material.say(f"{spec.task}: no exits: rows leave where two exits agree, and there is room for one")
        return WithExits(branch)
    head, found = _logits(material, branch, exits, "valid", places)
    temperatures = {place: _temperature(material, spec, logits) for place, logits in found.items()}
    scopes = _scopes(material, branch, depths)
    ms = prices()
    outcomes = Outcomes(spec, rule, ms, _said(material, spec, scopes, "valid", head, found, temperatures))
    forms = list(dict.fromkeys(form for _, form in places))
    kept = at_depths(outcomes, depths, forms) if every else worthwhile(outcomes, places)
    speeds = {"valid": outcomes.points(kept)} if kept else {}
    if speeds and not every:
        asked = {depth for point in speeds["valid"] for depth in point.exits or ()}
        kept = [place for place in kept if place[0] in asked]
    if not kept or not (every or least_time(speeds["valid"]) <= 1 - LEAST_GAIN):
        keeps = ", ".join(f"{100 * keep:g}" for keep in KEEPS)
        material.say(
            f"{spec.task}: no exit saves {100 * LEAST_GAIN:g} % of the time, on average where {keeps} % of the quality "
            "are kept, so its branch has none"
        )
        return WithExits(branch)
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
    return WithExits(joined, speeds, left, ece)


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
    joined.exits = nn.ModuleDict({str(one.depth): exits.at((one.depth, one.form)) for one in spec.exits})
    return joined.eval()
