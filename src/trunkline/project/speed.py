"""The speed dial: how unsure an exit is of a row, when the row may leave there, and what a speed gives and costs.

A row leaves at the first exit whose uncertainty is below the speed asked for (FastBERT, Liu et al. 2020, section 3.3).
Uncertainty is between 0 and 1 for every kind of task. Knows numpy only: nothing of models, nor of who runs them.

Notation: n rows, T positions, C outputs.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trunkline.errors import UsageError, unknown
from trunkline.project.tasks import MULTILABEL_THRESHOLD, Kind, probabilities

TOP = 5
"""Entropy is that of the likeliest so many classes: over 150, a threshold would do nothing."""
AGREED = 0.1
"""Two exits of a regression agree where their scores are at most so far apart, in standard deviations of the scores."""

Floats = NDArray[np.float64]

DialValue = float | Mapping[str, float]
"""A speed or a keep, for all tasks or by task."""


class Rule(StrEnum):
    """What makes a row leave."""

    ENTROPY = "entropy"
    """An exit that is sure: little entropy, of the most uncertain label or word where there are several. Regression has
    no entropy: how far the last two exits are apart, in standard deviations of the scores."""
    PATIENCE = "patience"
    """Exits that agree (PABEE, Zhou et al. 2020): after r in a row that confirmed the one before, 1 / (1 + r)."""


class SpeedPoint(BaseModel):
    """What a speed came to on `valid`: the task's metric, mean layers run for a row, and mean time, as a fraction of
    what speed 0 takes by the measured times of the parts, in the mean of batches and single texts. `error` is the
    standard error of what the metric differs by from that at speed 0: the rows of `valid` are a sample. `exits` are the
    depths at which a row may leave at this speed, None for all that there are: an exit that lets few rows go costs more
    than it saves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    speed: Annotated[float, Field(ge=0, le=1)]
    quality: float
    error: Annotated[float, Field(ge=0)] = 0.0
    layers: Annotated[float, Field(ge=0)]
    time: Annotated[float, Field(ge=0)]
    exits: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Dial:
    """What a request asks for: a `speed` in [0, 1], or the fastest speed that keeps the fraction `keep` of quality."""

    speed: float = 0.0
    keep: float | None = None

    def of(self, points: Sequence[SpeedPoint]) -> float:
        """The speed for a task with this table; 0 without one: it has no exits."""
        if not points:
            return 0.0
        return self.speed if self.keep is None else fastest(points, self.keep)


Dials = Mapping[str, Dial]


def dials(tasks: Sequence[str], speed: Any = None, keep: Any = None) -> Dials:
    """The dial of each task, from one value for all of them or from values by task; those not named stand at speed 0.

    Raises UsageError for a number outside [0, 1], an unknown task, or a task with both.
    """
    speeds, keeps = _by_task("speed", speed, tasks), _by_task("keep", keep, tasks)
    both = sorted(speeds.keys() & keeps.keys())
    if both:
        raise UsageError(f"ask for a speed or for a keep, not for both (task '{both[0]}')")
    return {task: Dial(speeds.get(task, 0.0), keeps.get(task)) for task in tasks}


def _by_task(name: str, given: Any, tasks: Sequence[str]) -> dict[str, float]:
    if given is None:
        return {}
    values = given if isinstance(given, Mapping) else dict.fromkeys(tasks, given)
    for task, value in values.items():
        if task not in tasks:
            raise UsageError(f"{name}, of the tasks that are asked: {unknown('task', str(task), tasks)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UsageError(f"{name} is a number from 0 to 1; found {reprlib.repr(value)}")
    return {task: float(value) for task, value in values.items()}


def fastest(points: Sequence[SpeedPoint], keep: float) -> float:
    """The speed of least time among those at which, and below which, the fraction `keep` of the metric at speed 0 is
    kept on `valid`, with one standard error to spare: small sets flatter whatever was chosen on them.
    """
    rising = sorted(points, key=lambda point: point.speed)
    least = least_quality(rising[0].quality, keep)
    kept = [rising[0]]
    for point in rising[1:]:
        if point.quality - point.error < least:
            break
        kept.append(point)
    return min(kept, key=lambda point: (point.time, point.speed)).speed


def least_quality(full: float, keep: float) -> float:
    """What keeps the fraction `keep` of a metric: below it where it is below 0, as a bad correlation may be."""
    return full - (1 - keep) * abs(full)


def compared(kind: Kind, rule: Rule) -> bool:
    """Whether rows of this kind leave by this rule where exits agree, so that no row leaves at the first."""
    return rule is Rule.PATIENCE or kind is Kind.REGRESSION


class Trail:
    """Follows rows of one task from exit to exit, and says how unsure each exit is of them."""

    def __init__(self, kind: Kind, rule: Rule, *, rows: int, std: float = 1.0) -> None:
        self._kind, self._rule, self._std = kind, rule, std
        self._said: Floats | None = None  # (rows, …): what the last exit said of each
        self._agreed = np.zeros(rows)
        self._seen = np.zeros(rows, dtype=bool)

    def uncertainty(
        self, logits: NDArray[Any], rows: NDArray[np.int64], words: NDArray[np.bool_] | None = None
    ) -> Floats:
        """(n,) in [0, 1], of the rows of these numbers from their logits (n, C) at the next exit, calibrated; a row
        that was at any other exit in between must have been here too.

        Tagging has logits (n, T, C), and `words` (n, T) are the positions that count.
        """
        values = np.array(logits, dtype=np.float64)
        if words is not None:
            values[~words] = 0.0
        sound = np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        values[~sound] = 0.0
        return np.where(sound, self._of(values, rows, words, sound), 1.0)

    def _of(
        self, values: Floats, rows: NDArray[np.int64], words: NDArray[np.bool_] | None, sound: NDArray[np.bool_]
    ) -> Floats:
        if not compared(self._kind, self._rule):
            entropies = _entropies(self._kind, values)
            if entropies.ndim == 1:
                return entropies
            most: Floats = np.max(entropies, axis=1, initial=0.0, where=True if words is None else words)
            return most
        said = self._answers(values)
        if words is not None:
            said = np.where(words, said, -1)
        if self._said is None:
            self._said = np.zeros((len(self._seen), *said.shape[1:]), dtype=said.dtype)
        seen, gaps = self._seen[rows], self._gaps(said, self._said[rows])
        # Classes are 0 apart, or 1 and more.
        self._agreed[rows] = np.where(sound & seen & (gaps <= AGREED), self._agreed[rows] + 1, 0)
        self._said[rows], self._seen[rows] = said, sound
        if self._rule is Rule.PATIENCE:
            return 1 / (1 + self._agreed[rows])
        return np.where(seen, np.minimum(gaps, 1.0), 1.0)

    def _answers(self, values: Floats) -> Floats:
        """What an exit says of each row, so that two can be compared."""
        match self._kind:
            case Kind.REGRESSION:
                return values[:, :1]
            case Kind.MULTILABEL:
                return np.asarray(probabilities(self._kind, values) >= MULTILABEL_THRESHOLD, dtype=np.float64)
            case _:
                likeliest: Floats = values.argmax(-1).astype(np.float64)  # (n,), or (n, T) of words
                return likeliest if likeliest.ndim == 2 else likeliest[:, None]

    def _gaps(self, said: Floats, before: Floats) -> Floats:
        gaps: Floats = np.abs(said - before).max(axis=1, initial=0.0)
        return gaps / self._std if self._kind is Kind.REGRESSION else gaps


def _entropies(kind: Kind, values: Floats) -> Floats:
    """Entropy in units of its largest value: (n,), (n, C) of single labels, or (n, T)."""
    if kind is Kind.MULTILABEL:
        shares = probabilities(kind, values)
        shares = np.stack([shares, 1 - shares], axis=-1)
    else:
        count = values.shape[-1]
        top = values if count <= TOP else np.partition(values, count - TOP, axis=-1)[..., count - TOP :]
        shares = probabilities(Kind.CLASSIFICATION, top)
    if shares.shape[-1] == 1:
        return np.zeros(shares.shape[:-1])
    logs = np.log(np.where(shares > 0, shares, 1.0))
    found: Floats = -(shares * logs).sum(-1) / np.log(shares.shape[-1])
    return np.clip(found, 0.0, 1.0)
