"""Timing what is compared: all runs take turns, round after round, so that a busy moment falls on each of them.

Every round has another order: no run always comes after the same one, whose threads may still be spinning and whose
weights fill the caches. Knows callables and seconds, nothing of what they compute.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

LEAST = 3
"""Rounds that are timed at least, however long they take."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one run: the median, the middle half from `low` to `high`, and how many rounds there were."""

    ms: float
    low: float
    high: float
    rounds: int

    def __mul__(self, factor: float) -> Times:
        return Times(self.ms * factor, self.low * factor, self.high * factor, self.rounds)

    def __add__(self, other: Times) -> Times:
        return Times(self.ms + other.ms, self.low + other.low, self.high + other.high, min(self.rounds, other.rounds))


@dataclass(frozen=True)
class Took:
    """What a run returns that was timed elsewhere, as in a process of its own: its milliseconds."""

    ms: float


def in_turn(
    runs: Mapping[Name, Callable[[], object]], seconds: float, *, warm: int = 2, least: int = LEAST
) -> dict[Name, Times]:
    """Times of each run from rounds that together take about `seconds`; `least` rounds, whatever they take.

    Before that each runs `warm` times untimed: a shape that is new builds its kernels, and caches fill.
    """
    for run in runs.values():
        for _ in range(warm):
            run()
    taken: dict[Name, list[float]] = {name: [] for name in runs}
    order = list(runs)
    shuffle = random.Random(0).shuffle
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < least or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            started = time.perf_counter()
            said = runs[name]()
            took = 1000 * (time.perf_counter() - started)
            taken[name].append(said.ms if isinstance(said, Took) else took)
        rounds += 1
    return {name: times_of(found) for name, found in taken.items()}


def times_of(milliseconds: list[float]) -> Times:
    """The median and the middle half of what single runs took."""
    low, _, high = (
        statistics.quantiles(milliseconds, n=4, method="inclusive") if len(milliseconds) > 1 else milliseconds * 3
    )
    return Times(statistics.median(milliseconds), low, high, len(milliseconds))
