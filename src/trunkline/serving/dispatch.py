"""Requests to the worker and back: the queue, the batches, and what the worker has loaded.

A batch goes out whenever the engine is free, and one of at least half the limits also behind the batch that the engine
works on, so that under load it never waits; a smaller one grows meanwhile. A request belongs to the model that served
when it came, and a model that serves no more is freed with its last request. When a worker is lost, its requests belong
to the next one; those that it worked on are tried once more. Speeds are settled when a request's first rows go out, so
that what waited is worked off the faster. A request that would wait for most of its time is refused at once: in a queue
where all wait until it is too late, nobody is answered. Knows nothing of how requests are checked or reported.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.atomic import InUse
from trunkline.engine.base import Job
from trunkline.serving.adaptive import Adaptive
from trunkline.serving.errors import DeadlineExceeded, Overloaded, Refusal, Unavailable
from trunkline.serving.limits import Limits
from trunkline.serving.loading import Loading
from trunkline.serving.messages import Done, Load, Run
from trunkline.serving.pace import Pace
from trunkline.serving.queue import Queue, Request, Row, Served, rows_of
from trunkline.serving.replies import Batch, Event, ModelInfo, Swapped, WorkerStopped
from trunkline.serving.supervisor import Supervisor

_LONGEST = 0.8
"""The share of its time that a request may have to wait by the pace of late; the rest is for what that pace hides."""


@dataclass(frozen=True)
class _Sent:
    """A batch in the worker."""

    rows: list[Row]
    served: Served
    tokens: int
    at: float

    @property
    def spare(self) -> bool:
        """Whether more speed could have been given to some of its rows."""
        return any(row.request.spare for row in self.rows)


class Dispatcher:
    """The work of one service; `live` is what new requests are answered by, None before the first is loaded."""

    def __init__(self, limits: Limits, loading: Loading, emit: Callable[[Event], None]) -> None:
        self.live: Served | None = None
        self.queue = Queue(limits)
        self.adaptive = Adaptive(limits)
        self.requests: set[Request] = set()  # without an answer
        self._limits = limits
        self._emit = emit
        self._tickets = itertools.count(1)
        self.supervisor = Supervisor(self, loading, limits, self._tickets.__next__)
        self._wanted: tuple[Path, frozenset[str]] | None = None  # what a worker should load, but for these tasks
        self._mark: InUse | None = None  # on that folder, which the next worker will need again
        self._held: dict[int, Served] = {}  # what this worker has loaded
        self._sent: dict[int, _Sent] = {}
        self._pumping = False
        self._pace = Pace(limits)
        # Of the live model's batches at which no more speed could be given: all of them without a floor.
        self._fastest = Pace(limits)
        self._counted = 0.0  # until when the pace was measured

    async def start(self, folder: Path) -> None:
        """Start the first worker with a bundle. Raises Refusal where it cannot be loaded."""
        self._want(folder, frozenset())
        await self.supervisor.start()

    async def stop(self) -> None:
        """End the worker and start no other."""
        await self.supervisor.stop()
        if self._mark is not None:
            self._mark.close()

    # Requests

    async def answer(self, request: Request) -> None:
        """Queue a request and wait until all its answers are there. Raises Overloaded, Unavailable, DeadlineExceeded.

        Cancelling frees its place.
        """
        self._enqueue(request)
        loop = asyncio.get_running_loop()
        late = loop.call_at(loop.time() + request.deadline - time.monotonic(), self._expire, request)
        try:
            await request.done
        finally:
            late.cancel()
            self.queue.remove(request)
            self.requests.discard(request)
            self._leave(request.served)

    def fail(self, request: Request, refusal: Refusal) -> None:
        """Give a request up."""
        self.queue.remove(request)
        if not request.done.done():
            request.done.set_exception(refusal)

    def _enqueue(self, request: Request) -> None:
        rows = rows_of(request)
        queue, limits = self.queue, self._limits
        tokens = queue.tokens + sum(row.tokens for row in rows)
        if queue.rows + len(rows) > limits.queue_rows or tokens > limits.queue_tokens:
            message = f"the queue is full: {queue.rows:,} rows and {queue.tokens:,} tokens wait"
            raise Overloaded(message, self._least_wait or 1.0)
        allowed = request.deadline - request.arrived
        if rows and queue.ample and not self.adaptive.spare and self._least_wait > _LONGEST * allowed:
            message = f"{self._least_wait:.3g} s of work waits, and an answer is of use within {1000 * allowed:g} ms"
            raise Overloaded(message, self._least_wait - _LONGEST * allowed)
        self.requests.add(request)
        request.served.users += 1
        if not request.missing:
            request.done.set_result(None)
            return
        queue.add(rows)
        if not self._pumping:  # when all that is ready in this round of the loop has run: what comes together goes so
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    @property
    def _running(self) -> int:
        """Tokens in the worker."""
        return sum(sent.tokens for sent in self._sent.values())

    @property
    def _least_wait(self) -> float:
        """Seconds until all that is here now should be done if it is done as fast as may be; 0 as long as nothing is
        known of that.
        """
        return self._fastest.seconds(self._running + self.queue.tokens)

    def _spent(self, rows: list[Row]) -> float:
        """The most that a request will have spent of its time when the engine begins on it, if it is one of those that
        these rows are of, or when it is done, if it still waits when they are sent.
        """
        now = time.monotonic()
        begun = now + self._pace.seconds(self._running)
        sent = max((request.spent(begun) for request in {row.request for row in rows}), default=0.0)
        return max(sent, self.queue.spent(now, self._running + sum(row.tokens for row in rows), self._pace))

    def _expire(self, request: Request) -> None:
        allowed = 1000 * (request.deadline - request.arrived)
        self.fail(request, DeadlineExceeded(f"not answered within {allowed:g} ms"))

    # Batches

    def free(self) -> None:
        """The engine can take another batch."""
        self._pump()

    def _pump(self) -> None:
        self._pumping = False
        while (link := self.supervisor.link) is not None and self._room(link.busy):
            rows = self.queue.take()  # also where it is empty: that ends a load
            if self._limits.floor is not None:  # it costs a look at all that waits
                self.adaptive.observe(self.queue.rows, self.queue.tokens, self._spent(rows))
            if not rows:
                return
            served, ticket = rows[0].request.served, next(self._tickets)
            served.users += 1
            tokens = sum(row.tokens for row in rows)
            self._sent[ticket] = _Sent(rows, served, tokens, time.monotonic())
            least = self.adaptive.least(served.model.tasks)
            for request in {row.request: None for row in rows}:
                request.settle(least, spare=self.adaptive.spare)
            jobs = [Job(row.request.items[row.position], row.request.tasks, row.request.speeds or ()) for row in rows]
            link.run(Run(ticket, served.number, jobs))

    def _room(self, busy: int) -> bool:
        """Whether the worker should get a batch now."""
        # What may end the worker takes no other batch with it, not even one whose answers are on their way.
        if self.queue.wary or any(sent.rows[0].request.again for sent in self._sent.values()):
            return not self._sent
        return busy == 0 or (busy == 1 and self.queue.ample)

    def done(self, done: Done) -> None:
        """A batch is answered."""
        sent = self._sent.pop(done.ticket)
        now = time.monotonic()
        paces = [self._pace]
        if sent.served is self.live and not sent.spare:
            paces.append(self._fastest)
        for pace in paces:
            pace.took(len(sent.rows), sent.tokens, now - max(sent.at, self._counted))
        self._counted = now
        requests = dict.fromkeys(row.request for row in sent.rows)
        for request in requests:
            request.ran(done)
        for row, answers in zip(sent.rows, done.answers, strict=True):
            row.request.take(row.position, answers)
            if not row.request.missing and not row.request.done.done():
                row.request.done.set_result(None)
        self._leave(sent.served)
        self._emit(Batch(sent.served.model.bundle, len(sent.rows), len(requests), done.seconds, done.work))
        self._pump()

    # Models

    async def change(self, folder: Path, without: frozenset[str]) -> ModelInfo:
        """Load a model beside the live one, flip, and let the old one go; one change at a time.

        Raises Invalid where it cannot be served, Unavailable where the worker is lost meanwhile; then nothing changed.
        """
        old, link = self.live, self.supervisor.link
        if old is None or link is None:
            raise Unavailable("there is no worker to load it", self.supervisor.back_in)
        load = Load(next(self._tickets), folder, without, old.number)
        mark = InUse(folder)  # while it loads
        try:
            model = await link.load(load, self._limits.start_timeout)
        finally:
            asyncio.get_running_loop().call_soon(mark.close)  # when it serves, it has a mark of its own
        if link is not self.supervisor.link:
            raise Unavailable("the worker stopped while it loaded the bundle", self.supervisor.back_in)
        self._serve(load, model)
        self._free_unused(old)
        self._emit(Swapped(old.model, model))
        return model

    def _serve(self, load: Load, model: ModelInfo) -> Served:
        served = Served(load.number, load.folder, load.without, model)
        if self.live is not None and self.live.model.bundle != model.bundle:
            self._fastest = Pace(self._limits)
        self._want(load.folder, load.without)
        self.live = self._held[load.number] = served
        self.supervisor.serve(load.number)
        return served

    def _want(self, folder: Path, without: frozenset[str]) -> None:
        if self._wanted is None or self._wanted[0] != folder:
            before, self._mark = self._mark, InUse(folder)
            if before is not None:
                before.close()
        self._wanted = folder, without

    def _leave(self, served: Served) -> None:
        served.users -= 1
        self._free_unused(served)

    def _free_unused(self, served: Served) -> None:
        link = self.supervisor.link
        if link is not None and served is not self.live and not served.users and served.number in self._held:
            del self._held[served.number]
            link.drop(served.number)

    # A worker's beginning and end

    def restore(self) -> Load:
        """What a new worker should load."""
        assert self._wanted is not None
        # Chosen once: it depends on a measurement, which may turn out otherwise in another worker.
        dtype = None if self.live is None else self.live.model.dtype
        return Load(next(self._tickets), *self._wanted, previous=None, dtype=dtype)

    def up(self, load: Load, model: ModelInfo) -> None:
        """A new worker serves; the requests that wait are its own."""
        served = self._serve(load, model)
        for request in [one for one in self.requests if not one.done.done()]:
            gone = [task for task in request.tasks if task not in model.tasks or not model.tasks[task].loaded]
            if gone:
                self.fail(request, Unavailable(f"task '{gone[0]}' is not served any more"))
                continue
            other = request.served.model.bundle != model.bundle
            request.served = served
            served.users += 1
            if other:  # none of its answers may be from a bundle that is gone
                request.forget()
                self.queue.remove(request)
                self.queue.add(rows_of(request), first=True)
        self._pump()

    def down(self, reason: str) -> None:
        """The worker is gone: what it worked on waits for the next, unless it lost one before or has no time."""
        wait = self.supervisor.back_in
        lost = dict.fromkeys(row.request for sent in self._sent.values() for row in sent.rows)
        self._sent.clear()
        self._held.clear()
        for request in list(self.requests):
            if request in lost and request.again:
                self.fail(request, Unavailable("the worker stopped twice while it worked on this request", wait))
            elif request.deadline - time.monotonic() < wait:
                self.fail(request, Unavailable("the worker stopped, and the deadline comes before the next", wait))
        for request in reversed([one for one in lost if not one.done.done()]):
            request.again = True
            self.queue.remove(request)
            self.queue.add(rows_of(request), first=True)
        self._emit(WorkerStopped(reason))
