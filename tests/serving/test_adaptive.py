"""Speeds under load, without a server: what level an amount of waiting work makes, and which speeds a level."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving.fakes import MODEL, TASKS

from trunkline.engine.base import Input
from trunkline.project.speed import SpeedPoint, fastest
from trunkline.serving.adaptive import Adaptive
from trunkline.serving.limits import Limits
from trunkline.serving.pace import Pace
from trunkline.serving.queue import Queue, Request, Served, rows_of

SERVED = Served(1, Path(), frozenset(), MODEL)
LIMITS = Limits(queue_rows=1000, queue_tokens=10_000, deadline_ms=20_000, floor=0.9)
POINTS = tuple(
    SpeedPoint(speed=speed, quality=quality, layers=6 * time, time=time)
    for speed, quality, time in ((0.0, 0.8, 1.0), (0.2, 0.79, 0.8), (0.4, 0.76, 0.6), (0.6, 0.7, 0.4))
)
loads = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 10_000), st.floats(0, 1e9)), max_size=50)


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
    assert (made.level, made.least(TASKS), made.spare) == (0.0, {}, False)


def test_the_level_rises_with_what_waits() -> None:
    assert [level(rows) for rows in (0, 64, 125)] == [0.0, 0.0, 0.0]
    risen = [level(rows) for rows in (126, 200, 300, 400, 499)]
    assert risen == sorted(set(risen))
    assert 0 < risen[0] < risen[-1] < 1
    assert [level(rows) for rows in (500, 1000)] == [1.0, 1.0]


@pytest.mark.parametrize("amount", [(500, 0, 0.0), (0, 5000, 0.0), (0, 0, 0.5)])
def test_rows_tokens_and_time_count_each_against_its_limit(amount: tuple[int, int, float]) -> None:
    made = Adaptive(LIMITS)
    made.observe(*amount)
    assert (made.level, made.spare) == (1.0, False)
    made.observe(*(0.9 * one for one in amount))  # type: ignore[arg-type]
    assert made.level == 1.0
    made.observe(*(0.7 * one for one in amount))  # type: ignore[arg-type]
    assert made.spare


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


def test_small_batches_do_not_pass_for_the_pace_of_large_ones() -> None:
    pace = Pace(Limits(batch_rows=64, batch_tokens=2048))
    for _ in range(100):
        pace.took(1, 20, 0.010)
    assert pace.seconds(10_000) == 0.0  # nothing is known yet
    pace.took(64, 1280, 3.0)  # builds kernels
    for _ in range(3):
        pace.took(64, 1280, 0.128)
    for _ in range(100):
        pace.took(1, 20, 0.010)
    assert pace.seconds(10_000) == pytest.approx(1.0)


@pytest.fixture
def done() -> Iterator[Callable[[], asyncio.Future[None]]]:
    loop = asyncio.new_event_loop()
    yield loop.create_future
    loop.close()


def asked(done: asyncio.Future[None], arrived: float, allowed: float, rows: int = 1) -> Request:
    """A request of so many short texts that has `allowed` seconds."""
    items = [Input("wake me at seven")] * rows
    answers = [None] * rows
    return Request(SERVED, ("intent",), {}, items, arrived, arrived + allowed, done, answers, rows)  # type: ignore[arg-type]


def test_time_counts_against_the_deadline_of_each_request(done: Callable[[], asyncio.Future[None]]) -> None:
    pace, waiting = Pace(Limits(batch_tokens=100)), Queue(Limits())
    assert waiting.spent(5.0, 0, pace) == 0.0
    for _ in range(2):
        pace.took(1, 100, 1.0)
    patient, hasty, none = asked(done(), 0.0, 30.0), asked(done(), 4.0, 2.0, rows=10), asked(done(), 0.0, 1e-320)
    waiting.add(rows_of(patient))
    each = waiting.tokens
    assert waiting.spent(6.0, 100, pace) == pytest.approx((6.0 + 1.0 + each / 100) / 30)
    waiting.add(rows_of(hasty))
    assert waiting.spent(4.0, 100, pace) == pytest.approx((1.0 + 11 * each / 100) / 2)
    waiting.add(rows_of(none))
    assert 1 < waiting.spent(4.0, 100, pace) < float("inf")


@dataclass
class Simulated:
    """A server on a clock of its own. A batch takes so long as its rows, at the time that `POINTS` say for a speed, and
    something more; single texts arrive at random instants and have `allowed` seconds.
    """

    floor: float | None
    allowed: float
    done: Callable[[], asyncio.Future[None]]
    late: int = 0
    speeds: list[float] = field(default_factory=list)
    now: float = 0.0

    ROW, BATCH, LARGEST = 0.01, 0.05, 64

    def __post_init__(self) -> None:
        limits = Limits(floor=self.floor, batch_rows=self.LARGEST)  # 30 seconds: requests have less
        self.queue, self.pace, self.adaptive = Queue(limits), Pace(limits), Adaptive(limits)
        self.tasks = {"intent": replace(TASKS["intent"], speeds=POINTS)}
        self.time = {point.speed: point.time for point in POINTS}
        self.chance = random.Random(7)
        self.next = 0.0

    def run(self, load: float, seconds: float) -> Simulated:
        """Go on under so much load, as a share of what can be done at speed 0."""
        end, rate = self.now + seconds, load * self.LARGEST / (self.BATCH + self.LARGEST * self.ROW)
        self.speeds, self.late = [], 0
        self.next = max(self.next, self.now)
        while self.now < end:
            while self.next <= self.now:
                self.queue.add(rows_of(asked(self.done(), self.next, self.allowed)))
                self.next += self.chance.expovariate(rate)
            rows = self.queue.take()
            spent = max((row.request.spent(self.now) for row in rows), default=0.0)
            ahead = sum(row.tokens for row in rows)
            spent = max(spent, self.queue.spent(self.now, ahead, self.pace))
            self.adaptive.observe(self.queue.rows, self.queue.tokens, spent)
            if not rows:
                self.now = self.next
                continue
            self.speeds.append(self.adaptive.least(self.tasks).get("intent", 0.0))
            took = self.BATCH + len(rows) * self.ROW * self.time[self.speeds[-1]] * self.chance.uniform(0.9, 1.1)
            self.now += took
            self.pace.took(len(rows), ahead, took)
            self.late += sum(row.request.deadline < self.now for row in rows)
        return self


@pytest.mark.parametrize("allowed", [2.5, 10.0])
def test_a_load_above_what_can_be_done_as_asked_is_answered_in_time_and_full_depth_comes_back(
    allowed: float, done: Callable[[], asyncio.Future[None]]
) -> None:
    server = Simulated(0.9, allowed, done)
    assert set(server.run(0.5, 20).speeds) == {0.0}
    over = server.run(1.5, 60)
    assert over.late == 0
    assert max(over.speeds) == 0.4
    settled = over.speeds[len(over.speeds) // 2 :]
    assert sum(one != other for one, other in pairwise(settled)) < len(settled) / 4
    server.run(0.5, 20)
    assert set(server.run(0.5, 20).speeds) == {0.0}
    assert Simulated(None, allowed, done).run(1.5, 60).late > 1000
