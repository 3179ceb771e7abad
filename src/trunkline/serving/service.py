"""The front's core: requests in, replies out, around one worker process.

    predict ──► admission ──► dispatch (queue, batches) ◄──► worker ──► reply
                    └ refused at once, with the limit or the wait

A request is answered by one model alone, the one that serves when it is admitted. `swap`, `load` and `unload` load
beside the model that serves, flip, and let the old one go when its last request is answered; they wait for each other.
Knows no HTTP, and never imports torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path

from trunkline.bundle.manifest import bundle_id
from trunkline.bundle.release import Releases
from trunkline.errors import TrunklineError, unknown
from trunkline.serving.admission import admit
from trunkline.serving.dispatch import Dispatcher
from trunkline.serving.errors import Invalid, NotFound, Refusal, Unavailable
from trunkline.serving.limits import Limits
from trunkline.serving.loading import Loading
from trunkline.serving.queue import Request, Served
from trunkline.serving.replies import (
    CANCELLED,
    Batch,
    Event,
    Finished,
    ModelInfo,
    Reply,
    Swapped,
    TaskInfo,
    Timings,
    WorkerStopped,
)

__all__ = [
    "Batch",
    "Event",
    "Finished",
    "ModelInfo",
    "Reply",
    "Service",
    "Swapped",
    "TaskInfo",
    "Timings",
    "WorkerStopped",
]

log = logging.getLogger("trunkline.serving")


class Service:
    """Serves a bundle, or where that is None the live release of a project.

    `releases` are the project's, for `swap` without a bundle. Belongs to the event loop in which it is started.
    """

    def __init__(
        self,
        bundle: Path | None = None,
        *,
        releases: Releases | None = None,
        limits: Limits | None = None,
        loading: Loading | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self._bundle = bundle
        self._releases = releases
        self._dispatcher = Dispatcher(self.limits, Loading() if loading is None else loading, self._emit)
        self._draining = False
        self._turn = asyncio.Lock()
        self._changes: set[asyncio.Task[ModelInfo]] = set()
        self._observers: list[Callable[[Event], None]] = []

    @property
    def model(self) -> ModelInfo:
        """What serves now. Raises Unavailable before the first bundle is loaded."""
        if self._dispatcher.live is None:
            raise Unavailable("no bundle is loaded yet", self._dispatcher.supervisor.back_in)
        return self._dispatcher.live.model

    @property
    def ready(self) -> bool:
        """A worker is alive, a forward pass succeeded within `limits.ready_seconds`, and requests are taken."""
        return self._dispatcher.supervisor.ready and not self._draining

    @property
    def live(self) -> bool:
        """Started and not drained."""
        return self._dispatcher.supervisor.live

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._dispatcher.queue.rows

    @property
    def level(self) -> float:
        """How far load raises speeds; see `Adaptive`."""
        return self._dispatcher.adaptive.level

    def subscribe(self, observer: Callable[[Event], None]) -> None:
        """Call `observer` with every event, in the event loop: it must be quick."""
        self._observers.append(observer)

    async def start(self) -> None:
        """Load the bundle in a first worker. Raises Invalid where it cannot be served, and says why."""
        await self._dispatcher.start(await self._released() if self._bundle is None else self._bundle)

    async def drain(self) -> None:
        """Take no more requests, finish those that are here within `limits.drain_seconds`, and end the worker."""
        self._draining = True
        waiting = [request.done for request in self._dispatcher.requests]
        if waiting:
            await asyncio.wait(waiting, timeout=self.limits.drain_seconds)
        for request in list(self._dispatcher.requests):
            self._dispatcher.fail(request, Unavailable("the server shut down before the answer was there", 1.0))
        await self._dispatcher.stop()
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def predict(
        self,
        inputs: Sequence[object],
        tasks: Sequence[str] | None = None,
        *,
        deadline_ms: float | None = None,
        speed: float | Mapping[str, float] | None = None,
        keep: float | Mapping[str, float] | None = None,
    ) -> Reply:
        """Answers of the tasks, by default of all that are loaded, for each input (see `engine.base.as_input`).

        `speed` and `keep` are those of `project.speed.dials`; under load a server with a floor may go faster. An input
        that a task cannot read has an `ItemError` in its place. Cancelling frees the request's place.
        Raises Invalid, NotFound, TooLarge, Overloaded, Unavailable or DeadlineExceeded.
        """
        arrived = time.monotonic()
        status, request = 500, None
        try:
            request = admit(self._serving(), self.limits, inputs, tasks, deadline_ms, speed, keep, arrived)
            await self._dispatcher.answer(request)
            status = 200
            return request.reply()
        except Refusal as refusal:
            status = refusal.status
            raise
        except asyncio.CancelledError:
            status = CANCELLED
            raise
        finally:
            self._emit(_finished(status, request, len(inputs), arrived))

    async def swap(self, bundle: Path | None = None) -> ModelInfo:
        """Serve the bundle in a folder, by default the project's live release, from now on.

        Tasks that are unloaded stay so. Raises Invalid with the reason where the bundle cannot be served, Unavailable
        where no worker can load it now; the old one serves on. Cancelling the call does not stop the swap.
        """
        return await self._change(lambda: self._swap(bundle))

    async def load(self, task: str) -> None:
        """Read an unloaded task from the bundle again. Raises NotFound, or as `swap` does."""
        await self._change(lambda: self._switch(task, loaded=True))

    async def unload(self, task: str) -> None:
        """Refuse requests for a task, and free its memory once those that are here are answered. Raises NotFound."""
        await self._change(lambda: self._switch(task, loaded=False))

    def _serving(self) -> Served:
        supervisor = self._dispatcher.supervisor
        if self._draining:
            raise Unavailable("the server is shutting down", 1.0)
        if self._dispatcher.live is None:
            raise Unavailable("no bundle is loaded yet", supervisor.back_in)
        if supervisor.link is None:
            raise Unavailable("the worker is being started again", supervisor.back_in)
        return self._dispatcher.live

    async def _change(self, change: Callable[[], Coroutine[None, None, ModelInfo]]) -> ModelInfo:
        """Run a change when those before it have ended, and to its end whoever waits for it."""

        async def in_turn() -> ModelInfo:
            async with self._turn:
                return await change()

        task = asyncio.create_task(in_turn())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[ModelInfo]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("the model stays as it is: %s", error)

    async def _swap(self, bundle: Path | None) -> ModelInfo:
        folder = await self._released() if bundle is None else bundle
        live = self._serving()
        try:
            same = await asyncio.to_thread(bundle_id, folder) == live.model.bundle
        except TrunklineError as error:
            raise Invalid(str(error)) from None
        if same and folder == live.folder:
            return live.model
        return await self._dispatcher.change(folder, live.without)

    async def _switch(self, task: str, *, loaded: bool) -> ModelInfo:
        live = self._serving()
        if task not in live.model.tasks:
            raise NotFound(unknown("task", task, live.model.tasks))
        if live.model.tasks[task].loaded is loaded:
            return live.model
        without = live.without - {task} if loaded else live.without | {task}
        return await self._dispatcher.change(live.folder, without)

    async def _released(self) -> Path:
        if self._releases is None:
            raise Invalid("this server was not started from a project: name the bundle to serve")
        try:
            release = await asyncio.to_thread(self._releases.live)
        except TrunklineError as error:
            raise Invalid(str(error)) from None
        if release is None:
            raise Invalid("the project has no release yet: trunkline run")
        return self._releases.folder(release)

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("an observer failed")


def _finished(status: int, request: Request | None, rows: int, arrived: float) -> Finished:
    total = 1000 * (time.monotonic() - arrived)
    if request is None:
        return Finished(status, (), rows, total, total, 0)
    exits = request.exits if status == 200 else {}
    return Finished(status, request.tasks, rows, request.queued, total, request.layers, exits)
