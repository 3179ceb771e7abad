"""Speeds under load, without a server: what level an amount of waiting work makes, and which speeds a level."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving.fakes import TASKS

from trunkline.project.speed import SpeedPoint, fastest
from trunkline.serving.adaptive import Adaptive
from trunkline.serving.limits import Limits

LIMITS = Limits(queue_rows=1000, queue_tokens=10_000, deadline_ms=20_000, floor=0.9)
POINTS = tuple(
    SpeedPoint(speed=speed, quality=quality, layers=6 * time, time=time)
    for speed, quality, time in ((0.0, 0.8, 1.0), (0.2, 0.79, 0.8), (0.4, 0.76, 0.6), (0.6, 0.7, 0.4))
)
loads = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 10_000), st.floats(0, 100)), max_size=50)


def level(*rows: int, limits: Limits = LIMITS) -> float:
    """The level after so many rows waited in turn."""
    made = Adaptive(limits)
    for each in rows:
        made.observe(each, 0, 0.0)
    return made.level


@given(loads)
def test_without_a_floor_nothing_is_raised(amounts: list[tuple[int, int, float]]) -> None:
    made = Adaptive(Limits(queue_rows=1000, queue_tokens=10_000))
    for amount in amounts:
        made.observe(*amount)
    assert (made.level, made.least(TASKS)) == (0.0, {})


def test_the_level_rises_with_what_waits() -> None:
    assert [level(rows) for rows in (0, 64, 125)] == [0.0, 0.0, 0.0]
    risen = [level(rows) for rows in (126, 200, 300, 400, 499)]
    assert risen == sorted(set(risen))
    assert 0 < risen[0] < risen[-1] < 1
    assert [level(rows) for rows in (500, 1000)] == [1.0, 1.0]


@pytest.mark.parametrize("amount", [(500, 0, 0.0), (0, 5000, 0.0), (0, 0, 10.0)])
def test_rows_tokens_and_seconds_count_each_against_its_limit(amount: tuple[int, int, float]) -> None:
    made = Adaptive(LIMITS)
    made.observe(*amount)
    assert made.level == 1.0


@given(loads)
def test_an_empty_queue_ends_it_whatever_was(amounts: list[tuple[int, int, float]]) -> None:
    made = Adaptive(LIMITS)
    for amount in amounts:
        made.observe(*amount)
        assert 0 <= made.level <= 1
    made.observe(0, 0, 0.0)
    assert (made.level, made.least(TASKS)) == (0.0, {})


def test_a_queue_that_moves_a_little_does_not_move_it() -> None:
    assert len({level(400, *[320, 390] * turns) for turns in range(5)}) == 1
    assert level(400, 250) < level(400)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_no_task_goes_faster_than_the_floor_allows(rows: int, floor: float) -> None:
    made = Adaptive(Limits(queue_rows=1000, floor=floor))
    made.observe(rows, 0, 0.0)
    least = made.least(TASKS)
    assert set(least) <= {"intent"}  # the one with exits
    assert least.get("intent", 0.0) <= fastest(TASKS["intent"].speeds, floor)
    if made.level == 1:
        assert least == {"intent": fastest(TASKS["intent"].speeds, floor)}


def test_more_than_can_be_done_as_asked_is_done_faster_and_not_refused() -> None:
    found = queue(arrivals=1.4, floor=0.9)  # of what can be done at speed 0; at 0.4 that is 1.67
    assert max(rows for rows, _ in found) < 1000
    settled = [speed for _, speed in found[200:]]
    assert max(settled) <= 0.4 < max(point.speed for point in POINTS)
    assert sum(one != other for one, other in pairwise(settled)) < len(settled) / 10
    assert max(rows for rows, _ in queue(arrivals=1.4, floor=None)) > 1000
    assert {speed for _, speed in queue(arrivals=0.8, floor=0.9)} == {0.0}


def queue(*, arrivals: float, floor: float | None) -> list[tuple[float, float]]:
    """Rows that wait and the speed of the next batch, for each of many batches of 50 rows."""
    made = Adaptive(Limits(queue_rows=1000, floor=floor))
    time = {point.speed: point.time for point in POINTS}
    rows, found = 0.0, []
    for _ in range(600):
        made.observe(int(rows), 0, 0.0)
        speed = made.least({"intent": replace(TASKS["intent"], speeds=POINTS)}).get("intent", 0.0)
        found.append((rows, speed))
        rows = max(0.0, rows + 50 * (arrivals * time[speed] - 1))
    return found
