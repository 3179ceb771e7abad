"""The front's end of one worker process: starting it, talking to it, and knowing when it is gone or stuck.

Everything happens in the event loop: messages are buffered by the transport, so that a worker that does not read cannot
block the front. Knows messages only as far as it must to say how busy the worker is.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import time
import weakref
from collections.abc import Callable
from typing import Any, cast

from trunkline.serving.errors import Invalid, Unavailable
from trunkline.serving.loading import Loading
from trunkline.serving.messages import Beat, Beaten, Done, Drop, Free, Load, Loaded, Note, Refused, Run, Unpacker, pack
from trunkline.serving.replies import ModelInfo
from trunkline.serving.worker import main

NAME = "trunkline-worker"

_END = 10.0  # seconds to wait for a process that was killed: the kernel may be writing its memory to disk

log = logging.getLogger("trunkline.serving")


class Link(asyncio.Protocol):
    """A worker process. `receive` gets `Done` and `Beaten` messages, and `free` is called when the engine is.

    `gone` is done when the process is; `busy` counts batches that the engine has not finished.
    """

    def __init__(self, receive: Callable[[Done | Beaten], None], free: Callable[[], None]) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.busy = 0
        self._receive = receive
        self._free = free
        self._unpacker = Unpacker()
        self._loads: dict[int, asyncio.Future[ModelInfo]] = {}
        self._asked: dict[int, float] = {}  # tickets of batches and beats without an answer -> when they were sent
        self._heard = 0.0  # when the last answer came
        self._transport: asyncio.Transport | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._kill: Callable[[], object] = lambda: None

    @classmethod
    async def open(cls, loading: Loading, receive: Callable[[Done | Beaten], None], free: Callable[[], None]) -> Link:
        """Start a process; it has nothing loaded yet."""
        link = cls(receive, free)
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(
            target=main, args=(theirs, loading), name=NAME, daemon=True
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        link._process = process
        # At exit, too, before multiprocessing waits for a process that ignores signals.
        link._kill = weakref.finalize(link, process.kill)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        return link

    async def load(self, load: Load, timeout: float) -> ModelInfo:
        """Have the worker load a bundle. Raises Invalid with the reason where it refuses, Unavailable where it is gone
        or takes too long.
        """
        answer: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._loads[load.number] = answer
        try:
            self._send(load)
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise Unavailable(f"loading {load.folder} took longer than the limit of {timeout:g} seconds") from None
        finally:
            self._loads.pop(load.number, None)

    def drop(self, number: int) -> None:
        """Have the worker free a bundle."""
        self._send(Drop(number))

    def run(self, run: Run) -> None:
        """Send a batch."""
        self.busy += 1
        self._asked[run.ticket] = time.monotonic()
        self._send(run)

    def beat(self, beat: Beat) -> None:
        """Ask for a sign of life."""
        self._asked[beat.ticket] = time.monotonic()
        self._send(beat)

    @property
    def silent(self) -> float:
        """Seconds without an answer while one is due."""
        if not self._asked:
            return 0.0
        return time.monotonic() - max(self._heard, next(iter(self._asked.values())))

    async def ended(self) -> str:
        """How the process ended, once its end of the socket is closed."""
        assert self._process is not None
        await asyncio.to_thread(self._process.join, _END)
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    async def close(self) -> None:
        """End the process, whatever it is doing, and wait until it is gone."""
        assert self._process is not None
        self._kill()
        if self._transport is not None:
            self._transport.abort()
            await self.gone
        await asyncio.to_thread(self._process.join, _END)
        if self._process.exitcode is not None:
            self._process.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        for answer in self._loads.values():
            if not answer.done():
                answer.set_exception(Unavailable("the worker stopped while it loaded the bundle"))
        if not self.gone.done():
            self.gone.set_result(None)

    def _take(self, message: Any) -> None:
        match message:
            case Note(level, text):
                log.log(level, text)
            case Loaded(number, model):
                answer = self._loads.get(number)
                if answer is None or answer.done():  # nobody waits any more
                    self.drop(number)
                else:
                    answer.set_result(model)
            case Refused(number, reason):
                answer = self._loads.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(Invalid(reason))
            case Free():
                self.busy -= 1
                self._heard = time.monotonic()
                self._free()
            case Done(ticket) | Beaten(ticket):
                self._asked.pop(ticket)
                self._heard = time.monotonic()
                self._receive(message)

    def _send(self, message: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))
