"""Where rows leave at a speed, what that comes to, and which exits are worth having.

Knows what exits and head said of the rows of one split, and prices of parts. Knows nothing of models, nor of how exits
are trained.

Notation: n rows, W words of the longest, C outputs, E exits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ProjectError
from trunkline.model.branch import BranchSpec
from trunkline.model.exits import Form
from trunkline.project.speed import Floats, Rule, SpeedPoint, Trail, compared, fastest, least_quality

SPEEDS = tuple(round((step / 40) ** 2, 4) for step in range(41))
"""Fine near 0: an exit that is right for nearly all rows is sure of them."""
_SEARCHED = SPEEDS[::2]
KEEPS = (0.995, 0.99, 0.98)
"""The fractions of quality that exits are chosen for, and reported at."""
GROUPS = 20
"""Rows are left out in so many groups to find how sure a metric is."""
LEAST_GAIN = 0.01
"""An exit must save so much more, of the time that speed 0 takes."""

Place = tuple[int, Form]
"""An exit that there may be, by depth and form."""


@dataclass(frozen=True)
class Prices:
    """Measured milliseconds of requests of one size: `trunk[k]` of embeddings and k layers, of an exit in the trunk by
    form, of the branch from its fork, and of its `end`, its last layer and its head, and `own_exits` by form, where it
    has several layers.
    """

    trunk: Sequence[float]
    exits: Mapping[Form, float]
    branch: float
    end: float
    own_exits: Mapping[Form, float] = field(default_factory=dict)

    def costs(self, fork: int, depth: int, places: Sequence[Place]) -> Floats:
        """(E + 1,) of a row that leaves at each of these exits, or at the head after `depth` layers, having passed
        those before; as fractions of what the head takes without exits. An own layer is taken to cost what the trunk's
        there does: a branch that asks exits between its layers runs layer by layer, which takes longer.
        """
        whole = self.trunk[fork] + self.branch
        asked = [(self.own_exits if place > fork else self.exits)[form] for place, form in places]
        passed = np.cumsum([0.0, *asked])
        ms = [self.trunk[place] + exits for (place, _), exits in zip(places, passed[1:], strict=True)]
        apart = any(place > fork for place, _ in places)
        head = max(whole, self.trunk[depth - 1] + self.end) if apart else whole
        return np.asarray([*ms, head + passed[-1]]) / whole


@dataclass(frozen=True)
class Said:
    """What a branch says of the rows of one split on its way: calibrated logits (n, C), or for tagging (n, W, C) with
    `words` (n, W), those that count. `out_of_scope` (n,) of exits by depth, nothing without a scope, are rows that do
    not leave there. `metric` scores logits of some of the rows, by their numbers, and `calibration` gives the expected
    calibration error of those of all, where there is confidence to judge; `clusters` (n,) are equal for rows that are
    judged together, as are those of one query.
    """

    head: NDArray[Any]
    exits: Mapping[Place, NDArray[Any]]
    words: NDArray[np.bool_] | None
    metric: Callable[[NDArray[Any], NDArray[np.int64]], float]
    clusters: NDArray[np.int64]
    calibration: Callable[[NDArray[Any]], float] | None = None
    out_of_scope: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)


class Outcomes:
    """What speeds come to on the rows of one split, for any choice among the exits that spoke of them. Time is the mean
    over `prices`, those of requests of several sizes: an exit that saves some in a batch may cost more with one text.
    """

    def __init__(self, spec: BranchSpec, rule: Rule, prices: Sequence[Prices], said: Said) -> None:
        self._spec, self._rule, self._prices, self._said = spec, rule, prices, said
        self._rows = np.arange(len(said.head))
        self._names = {place: number for number, place in enumerate(said.exits, 1)}  # the head is 0
        self._scores: dict[bytes, float] = {}
        self._head_scores: list[float] = []
        self._unsure: dict[tuple[Place, ...], Floats] = {}
        shuffled = np.random.default_rng(0).permutation(np.unique(said.clusters))
        folds = np.array_split(shuffled, min(GROUPS, len(shuffled)))
        self._left = [np.flatnonzero(~np.isin(said.clusters, fold)) for fold in folds]

    def points(self, places: Sequence[Place]) -> tuple[SpeedPoint, ...]:
        """A point for each of `SPEEDS`, with those of the exits at these places that pay at it, and those that a lower
        speed asks: at a higher one no row leaves later.
        """
        errors: dict[bytes, float] = {}
        points: list[SpeedPoint] = []
        asked: list[Place] = []
        for speed in SPEEDS:
            asked = self._paying(places, speed, asked)
            point, names = self._point(asked, speed)
            if names.tobytes() not in errors:
                errors[names.tobytes()] = self._error(names)
            points.append(point.model_copy(update={"error": errors[names.tobytes()]}))
        return tuple(points)

    def as_chosen(self, places: Sequence[Place], points: Sequence[SpeedPoint]) -> tuple[SpeedPoint, ...]:
        """What the speeds of these points come to here, by the exits that each of them asks; errors are left at 0."""
        return tuple(self._point(_asked(places, point), point.speed)[0] for point in points)

    def left(self, places: Sequence[Place], point: SpeedPoint) -> list[float]:
        """The shares of the rows that are answered by each of these exits, and by the head, at this point's speed."""
        _, names = self._point(_asked(places, point), point.speed)
        return [float((names == name).mean()) for name in (*(self._names[place] for place in sorted(places)), 0)]

    def calibration(self, places: Sequence[Place], point: SpeedPoint) -> float | None:
        """The expected calibration error of the answers at this point's speed; None where they have no confidence."""
        if self._said.calibration is None:
            return None
        return self._said.calibration(self._mixture(self._point(_asked(places, point), point.speed)[1]))

    def time(self, places: Sequence[Place]) -> float:
        """What `least_time` says of exits at these places, by every second speed and without errors."""
        points: list[SpeedPoint] = []
        for speed in _SEARCHED:
            point, _ = self._point(places if speed else (), speed)
            points.append(point)
            if point.quality < least_quality(points[0].quality, min(KEEPS)):  # `fastest` looks no further
                break
        return least_time(points)

    @property
    def compared(self) -> bool:
        """Whether rows leave where exits agree, so that no row leaves at the first."""
        return compared(self._spec.kind, self._rule)

    def _paying(self, places: Sequence[Place], speed: float, asked: Collection[Place]) -> list[Place]:
        """Those of the exits that pay at this speed, and those that are `asked` anyway: without the one that saves
        least, again and again while it saves less than `LEAST_GAIN`; none more where all save less together.
        """
        kept = sorted(places) if speed else []
        least = self._time(kept, speed)
        while spare := [place for place in kept if place not in asked]:
            fewer = [[place for place in kept if place != one] for one in spare]
            times = [self._time(some, speed) for some in fewer]
            best = int(np.argmin(times))
            if times[best] - least >= LEAST_GAIN:
                break
            kept, least = fewer[best], times[best]
        return kept if least <= 1 - LEAST_GAIN else sorted(asked)

    def _time(self, places: Sequence[Place], speed: float) -> float:
        """Mean time of a row at this speed with exits at these places, as a fraction of what the head takes."""
        return float(self._costs(places)[self._leaving(places, speed)].mean())

    def _costs(self, places: Sequence[Place]) -> Floats:
        """(E + 1,): what `Prices.costs` says of these places, by rising depth, in the mean."""
        costs: Floats = np.mean([one.costs(self._spec.fork, self._spec.depth, places) for one in self._prices], axis=0)
        return costs

    def _leaving(self, places: Sequence[Place], speed: float) -> NDArray[np.int64]:
        """(n,): which of these places, by rising depth, answers each row at this speed; their number: the head."""
        if not places:
            return np.zeros(len(self._rows), dtype=np.int64)
        leaves = (self._uncertainties(places) < speed) & ~self._stay(places)
        return np.where(leaves.any(1), leaves.argmax(1), len(places))

    def _point(self, places: Sequence[Place], speed: float) -> tuple[SpeedPoint, NDArray[np.int16]]:
        """What a speed comes to with exits at these places, and the name of the exit or head that answers each row."""
        ordered = sorted(places)
        left = self._leaving(ordered, speed)
        names = np.asarray([*(self._names[place] for place in ordered), 0], dtype=np.int16)[left]
        depths = np.asarray([*(depth for depth, _ in ordered), self._spec.depth])
        point = SpeedPoint(
            speed=speed,
            quality=self._quality(names),
            layers=float(depths[left].mean()),
            time=float(self._costs(ordered)[left].mean()),
            exits=tuple(depth for depth, _ in ordered),
        )
        return point, names

    def _uncertainties(self, places: Sequence[Place]) -> Floats:
        """(n, E); what an exit says of a row depends on those before it at most, and on these where they are compared:
        rows are followed through all of these.
        """
        together = [tuple(places)] if self.compared else [(place,) for place in places]
        for some in together:
            if some not in self._unsure:
                trail = Trail(self._spec.kind, self._rule, rows=len(self._rows), std=self._spec.std)
                found = [trail.uncertainty(self._said.exits[one], self._rows, self._said.words) for one in some]
                self._unsure[some] = np.stack(found, axis=1)
        return np.concatenate([self._unsure[some] for some in together], axis=1)

    def _stay(self, places: Sequence[Place]) -> NDArray[np.bool_]:
        """(n, E): which rows do not leave at each exit, however sure it is."""
        none = np.zeros(len(self._rows), dtype=bool)
        return np.stack([self._said.out_of_scope.get(depth, none) for depth, _ in places], axis=1)

    def _quality(self, names: NDArray[np.int16]) -> float:
        """The metric of rows each answered where `names` says; equal mixtures, of which there are many, once."""
        key = names.tobytes()
        if key not in self._scores:
            self._scores[key] = self._said.metric(self._mixture(names), self._rows)
        return self._scores[key]

    def _error(self, names: NDArray[np.int16]) -> float:
        """The standard error of what the metric differs by from the head's: a jackknife that leaves out a group of rows
        at a time (Efron and Tibshirani 1993, chapter 11).
        """
        if not names.any():
            return 0.0
        if len(self._left) < 2:  # one query, or one row
            return 1.0
        mixture, metric = self._mixture(names), self._said.metric
        try:
            self._head_scores = self._head_scores or [metric(self._said.head, rows) for rows in self._left]
            gaps = np.asarray([metric(mixture, rows) for rows in self._left]) - self._head_scores
        except ProjectError:  # so few rows that some groups leave none with a metric
            return 1.0
        return float(np.sqrt((len(gaps) - 1) * gaps.var()))

    def _mixture(self, names: NDArray[np.int16]) -> NDArray[Any]:
        mixture = self._said.head.copy()
        for place, name in self._names.items():
            mixture[names == name] = self._said.exits[place][names == name]
        return mixture


def _asked(places: Sequence[Place], point: SpeedPoint) -> list[Place]:
    return [place for place in sorted(places) if point.exits is None or place[0] in point.exits]


def least_time(points: Sequence[SpeedPoint]) -> float:
    """Mean over `KEEPS` of the time at the speed that keeps so much."""
    times = {point.speed: point.time for point in points}
    return float(np.mean([times[fastest(points, keep)] for keep in KEEPS]))


def worthwhile(outcomes: Outcomes, places: Sequence[Place]) -> list[Place]:
    """Exits by greedy search, one to a depth: the place that saves most time, again and again while one saves
    `LEAST_GAIN`. Where exits are compared, the first two come together.

    A place that once saved less than another does now is not tried again (Minoux 1978): beside more it saves less.
    """
    kept = _best_pair(outcomes, places) if outcomes.compared else []
    least = outcomes.time(kept) if kept else 1.0
    saved = dict.fromkeys(places, np.inf)
    while True:
        best, most = None, LEAST_GAIN
        taken = {depth for depth, _ in kept}
        for place in sorted(places, key=lambda place: -saved[place]):
            if place[0] not in taken and saved[place] > most:
                saved[place] = least - outcomes.time([*kept, place])
                if saved[place] > most:
                    best, most = place, saved[place]
        if best is None:
            return sorted(kept)
        kept, least = [*kept, best], least - most


def _best_pair(outcomes: Outcomes, places: Sequence[Place]) -> list[Place]:
    times = {(one, other): outcomes.time([one, other]) for one, other in combinations(places, 2) if one[0] != other[0]}
    best = min(times, key=times.__getitem__, default=())
    return list(best) if best and times[best] < 1 - LEAST_GAIN else []


def at_depths(outcomes: Outcomes, depths: Sequence[int], forms: Sequence[Form]) -> list[Place]:
    """An exit at each of these depths, of the form that takes less time beside the others."""
    kept = dict.fromkeys(sorted(depths), forms[0])
    for depth in kept:
        kept[depth] = min(forms, key=lambda form: outcomes.time(list({**kept, depth: form}.items())))
    return list(kept.items())
