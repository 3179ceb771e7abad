"""What waits for the worker: requests, their rows, and which rows make the next batch.

Rows of all requests stand together whatever their tasks; the engine regroups them. A batch holds rows for one model
only. Knows lengths and ages, nothing of processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trunkline.engine.base import Input, ItemError, Work
from trunkline.project.speed import Dials
from trunkline.project.tasks import Answer
from trunkline.serving.limits import Limits
from trunkline.serving.messages import Done
from trunkline.serving.pace import Pace
from trunkline.serving.replies import Left, ModelInfo, Reply, Timings

_LEAST = 1e-3
"""Seconds that any request counts as having: shares of less say nothing of the load."""


@dataclass(eq=False)
class Served:
    """A model in the worker, under its number there; `users` counts its open requests and batches."""

    number: int
    folder: Path
    without: frozenset[str]
    model: ModelInfo
    users: int = 0


@dataclass(eq=False)
class Request:
    """One request on its way; `answers` per input, None while there is none. Times from `time.monotonic()`.

    `dials` is what it asks of its tasks, empty where it asks for no speed; `speeds` are those above 0 that it runs at,
    None until its first row is sent; `spare` says that they could have been higher. `again` says that its batch was
    lost with a worker once; `began` is when the engine took up its first row.
    """

    served: Served
    tasks: tuple[str, ...]
    dials: Dials
    items: Sequence[Input | ItemError] = field(repr=False)
    arrived: float
    deadline: float
    done: asyncio.Future[None]
    answers: list[dict[str, Answer | ItemError] | None]
    missing: int
    speeds: tuple[tuple[str, float], ...] | None = None
    spare: bool = False
    work: Work = field(default_factory=Work)
    began: float | None = None
    again: bool = False

    def settle(self, least: Mapping[str, float], *, spare: bool) -> None:
        """Find the speed of each task, now that a batch with rows of it is sent: what was asked of the model that will
        answer, and no less than `least`, which could be more where there is speed to `spare`. All of its rows run at
        the same.
        """
        if self.speeds is not None:
            return
        self.spare = spare
        asked = {name: dial.of(self.served.model.tasks[name].speeds) for name, dial in self.dials.items()}
        used = ((name, max(asked.get(name, 0.0), least.get(name, 0.0))) for name in self.tasks)
        self.speeds = tuple((name, speed) for name, speed in used if speed > 0)

    def take(self, position: int, answers: dict[str, Answer | ItemError]) -> None:
        """Keep the answers of one input."""
        if self.answers[position] is None:
            self.missing -= 1
        self.answers[position] = answers

    def ran(self, done: Done) -> None:
        """Count a batch that held rows of it."""
        first = self.began is None
        self.work = done.work if first else self.work + done.work
        self.began = done.started if first else self.began

    def forget(self) -> None:
        """Drop the answers so far: another model will give all of them."""
        for position, item in enumerate(self.items):
            if isinstance(item, Input) and self.answers[position] is not None:
                self.answers[position] = None
                self.missing += 1
        self.work, self.began, self.speeds = Work(), None, None

    def spent(self, at: float) -> float:
        """The share of its time that is over at an instant; above 1 where it is too late."""
        return (at - self.arrived) / max(self.deadline - self.arrived, _LEAST)

    @property
    def queued(self) -> float:
        """Milliseconds from arrival until the engine took up its first row, or until now."""
        return 1000 * ((self.began or time.monotonic()) - self.arrived)

    @property
    def layers(self) -> int:
        """The deepest trunk layer that an answer needed."""
        deepest = 0
        tasks = [self.served.model.tasks[name] for name in self.tasks]
        for task in sorted(tasks, key=lambda task: task.fork, reverse=True):
            if task.fork <= deepest:
                break
            left = (answer.exit_layer for answer in self._of(task.name))
            depths = (task.fork if depth is None else min(depth, task.fork) for depth in left)
            deepest = max(deepest, max(depths, default=0))
        return deepest

    @property
    def exits(self) -> dict[str, Left]:
        """Where its inputs left the tasks that were asked at a speed."""
        found = {}
        for name, speed in self.speeds or ():
            layers = Counter(answer.exit_layer for answer in self._of(name) if answer.exit_layer is not None)
            if layers:
                found[name] = Left(speed, layers)
        return found

    def reply(self) -> Reply:
        """The reply, once nothing is missing."""
        timings = Timings(
            queue=self.queued,
            tokenise=1000 * self.work.tokenise,
            trunk=1000 * self.work.trunk,
            branches=1000 * self.work.branches,
            total=1000 * (time.monotonic() - self.arrived),
        )
        used = dict(self.speeds or ())
        return Reply(
            answers=[row for row in self.answers if row is not None],
            model=self.served.model,
            timings=timings,
            layers=self.layers,
            speeds={name: used.get(name, 0.0) for name in self.tasks} if self.dials else used,
        )

    def _of(self, task: str) -> Iterator[Answer]:
        """The answers of one task so far."""
        for row in self.answers:
            if row is not None and isinstance(found := row[task], Answer):
                yield found


@dataclass(eq=False, frozen=True)
class Row:
    """One input of a request that waits; `tokens` is an estimate."""

    request: Request
    position: int
    tokens: int


class Queue:
    """Rows that wait, by request in order of arrival. `rows` and `tokens` are their sums."""

    def __init__(self, limits: Limits) -> None:
        self.rows = 0
        self.tokens = 0
        self._limits = limits
        self._waiting: dict[Request, list[Row]] = {}

    def add(self, rows: Iterable[Row], *, first: bool = False) -> None:
        """Put rows of requests at the end, or before all others."""
        added: dict[Request, list[Row]] = {}
        for row in rows:
            added.setdefault(row.request, []).append(row)
            self.rows += 1
            self.tokens += row.tokens
        for request in added:
            added[request] += self._waiting.pop(request, [])
        if first:
            self._waiting = added | self._waiting
        else:
            self._waiting.update(added)

    def remove(self, request: Request) -> None:
        """Take a request out, if it is there."""
        for row in self._waiting.pop(request, ()):
            self._count_out(row)

    @property
    def ample(self) -> bool:
        """Whether half of a batch waits."""
        return self._limits.ample(self.rows, self.tokens)

    @property
    def wary(self) -> bool:
        """Whether the next batch is of a request that lost a worker."""
        oldest = next(iter(self._waiting), None)
        return oldest is not None and oldest.again

    def spent(self, now: float, ahead: int, pace: Pace) -> float:
        """The most that any request will have `spent` of its time when the rows of it that wait are done, if they go in
        order of arrival behind so many tokens; 0 where nothing waits.
        """
        most = 0.0
        for request, rows in self._waiting.items():
            ahead += sum(row.tokens for row in rows)
            most = max(most, request.spent(now + pace.seconds(ahead)))
        return most

    def take(self) -> list[Row]:
        """The next batch, out of the queue; empty where nothing waits.

        The oldest request's model is served. A request that lost a worker runs alone: it may be what ended it. Where
        not all fits, rows that waited long enough go first, then those nearest in length to the oldest.
        """
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return []
        if oldest.again:
            rows = list(self._waiting[oldest])
        else:
            fellows = [one for one in self._waiting if one.served is oldest.served and not one.again]
            rows = [row for request in fellows for row in self._waiting[request]]
        batch = self._cut(rows)
        taken = set(batch)
        for request in {row.request: None for row in batch}:
            left = [row for row in self._waiting[request] if row not in taken]
            if left:
                self._waiting[request] = left
            else:
                del self._waiting[request]
        for row in batch:
            self._count_out(row)
        return batch

    def _cut(self, rows: list[Row]) -> list[Row]:
        limits = self._limits
        if len(rows) > limits.batch_rows or sum(row.tokens for row in rows) > limits.batch_tokens:
            since = time.monotonic() - limits.batch_age_ms / 1000
            old = [row for row in rows if row.request.arrived <= since]
            young = [row for row in rows if row.request.arrived > since]
            length = rows[0].tokens
            rows = old + sorted(young, key=lambda row: abs(row.tokens - length))
        tokens = 0
        for count, row in enumerate(rows[: limits.batch_rows]):
            tokens += row.tokens
            if tokens > limits.batch_tokens and count:
                return rows[:count]
        return rows[: limits.batch_rows]

    def _count_out(self, row: Row) -> None:
        self.rows -= 1
        self.tokens -= row.tokens


def rows_of(request: Request) -> list[Row]:
    """The inputs of a request that have no answers yet."""
    tasks = [request.served.model.tasks[name] for name in request.tasks]
    alone = max((task.max_tokens for task in tasks if not task.pair), default=0)
    pair = max((task.max_tokens for task in tasks if task.pair), default=0)
    return [
        Row(request, position, _estimate(item, alone, pair))
        for position, item in enumerate(request.items)
        if isinstance(item, Input) and request.answers[position] is None
    ]


def _estimate(item: Input, alone: int, pair: int) -> int:
    """About how many tokens the trunk reads of an input, for tasks that read up to so many of a text or of a pair."""
    first = _tokens(item.text)
    if not pair or item.text_pair is None:
        return min(first, max(alone, pair))
    return max(min(first, alone), min(first + _tokens(item.text_pair), 2 * pair))


def _tokens(text: str) -> int:
    return 3 + (len(text) // 4 if text.isascii() else len(text.encode(errors="replace")) // 3)
