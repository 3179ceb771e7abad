"""Keeps one worker alive: starts it, asks it for signs of life, ends it when it is stuck, and starts the next.

The first restart follows at once; each further one without an answer in between waits twice as long. Knows the worker
as a `Link` and what it should have loaded; nothing of requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

from trunkline.serving.errors import Refusal, Unavailable
from trunkline.serving.limits import Limits
from trunkline.serving.link import Link
from trunkline.serving.loading import Loading
from trunkline.serving.messages import Beat, Beaten, Done, Load
from trunkline.serving.replies import ModelInfo

_WAITS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before each restart in a row."""

log = logging.getLogger("trunkline.serving")


class Ward(Protocol):
    """Who lives on the worker."""

    def restore(self) -> Load:
        """What a new worker should load."""
        ...

    def up(self, load: Load, model: ModelInfo) -> None:
        """A worker has it loaded and waits for batches."""
        ...

    def down(self, reason: str) -> None:
        """The worker is gone, with all that was sent to it."""
        ...

    def done(self, done: Done) -> None:
        """A batch is answered."""
        ...

    def free(self) -> None:
        """The engine can take another batch."""
        ...


class Supervisor:
    """The worker of a service; `ticket` numbers what is asked of it."""

    def __init__(self, ward: Ward, loading: Loading, limits: Limits, ticket: Callable[[], int]) -> None:
        self._link: Link | None = None
        self._ward = ward
        self._loading = loading
        self._limits = limits
        self._ticket = ticket
        self._task: asyncio.Task[None] | None = None
        self._number = 0  # the bundle that shows that the worker lives
        self._alive = 0.0  # when a forward pass last succeeded
        self._answered = False  # whether this worker has shown more than that it can load
        self._beating = False
        self._sick = False
        self._due = 0.0  # when the next worker should be up
        self._took = 5.0  # seconds that starting one takes

    @property
    def link(self) -> Link | None:
        """The worker that serves, None while there is none."""
        return None if self._link is None or self._link.gone.done() else self._link

    @property
    def live(self) -> bool:
        """Started, and neither stopped nor broken."""
        return self._task is not None and not self._task.done()

    @property
    def ready(self) -> bool:
        """A worker is there and a forward pass succeeded recently."""
        return self.link is not None and time.monotonic() - self._alive <= self._limits.ready_seconds

    @property
    def back_in(self) -> float:
        """Seconds until the next worker should be up."""
        return max(0.5, self._due - time.monotonic())

    async def start(self) -> None:
        """Start the first worker. Raises Refusal where it cannot load what it should."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(first), name="supervisor")
        self._task.add_done_callback(_broken)
        await first

    async def stop(self) -> None:
        """End the worker and start no other."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def serve(self, number: int) -> None:
        """Bundle `number` is the one to show signs of life from now on."""
        self._number = number

    async def _run(self, first: asyncio.Future[None]) -> None:
        failed = 0
        while True:
            self._answered = False
            try:
                await self._one(first)
            except Refusal as refusal:
                if not first.done():
                    first.set_exception(refusal)
                    return
                failed = 1 if self._answered else min(failed + 1, len(_WAITS))
                wait = _WAITS[failed - 1]
                self._due = time.monotonic() + wait + self._took
                log.error("the worker stopped, another starts in %g seconds: %s", wait, refusal.message)
                self._ward.down(refusal.message)
                await asyncio.sleep(wait)

    async def _one(self, first: asyncio.Future[None]) -> NoReturn:
        """One worker from its start to its end, the reason of which is raised."""
        try:
            link = await Link.open(self._loading, self._receive, self._ward.free)
        except OSError as error:
            raise Unavailable(f"no process can be started: {error}") from None
        try:
            await self._load(link)
            if not first.done():
                first.set_result(None)
            raise Unavailable(await self._watch(link))
        finally:
            self._link = None
            await link.close()

    async def _load(self, link: Link) -> None:
        started = time.monotonic()
        load = self._ward.restore()
        model = await link.load(load, self._limits.start_timeout)
        self._alive = time.monotonic()
        self._took = self._alive - started
        self._beating = self._sick = False
        self._link = link
        self.serve(load.number)
        self._ward.up(load, model)

    async def _watch(self, link: Link) -> str:
        """Until the worker is gone, stuck or sick; returns which."""
        limits = self._limits
        step = min(1.0, limits.ready_seconds / 4, limits.worker_timeout / 4)
        while True:
            done, _ = await asyncio.wait([link.gone], timeout=step)
            if done:
                return f"it ended by itself, {await link.ended()}"
            if link.silent > limits.worker_timeout:
                return f"it gave no answer for {limits.worker_timeout:g} seconds"
            if self._sick:
                return "a forward pass on a stored probe failed"
            if not self._beating and time.monotonic() - self._alive > limits.ready_seconds / 3:
                self._beating = True
                link.beat(Beat(self._ticket(), self._number))

    def _receive(self, message: Done | Beaten) -> None:
        if message.healthy:
            self._alive = time.monotonic()
            self._answered = True
        if isinstance(message, Beaten):
            self._beating, self._sick = False, not message.healthy
        else:
            self._ward.done(message)


def _broken(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("nothing looks after the worker any more", exc_info=error)
