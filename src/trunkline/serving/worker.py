"""The worker: a process that holds the engine, and nothing else that could keep it from its work.

    front ──► reader ──► engine ──► answers ──► front        batches, in turn
                 └─────► chores ─────────────► front        loading and freeing bundles, beside them

Each box is a thread. Logits become answers beside the next pass of the engine, and a bundle is loaded beside the ones
that serve. No exception ends the process: a batch that raises is run again row by row, so that only the culprit fails.
When the front goes, the worker goes. Texts are never logged, nor messages of exceptions, which may quote them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from trunkline.bundle.loaded import Bundle
from trunkline.engine.base import Engine, ItemError, Job, Output, Work, answers
from trunkline.errors import TrunklineError
from trunkline.project.tasks import Answer
from trunkline.serving.loading import Loading, describe, prove, quality, smallest
from trunkline.serving.messages import (
    Beat,
    Beaten,
    Done,
    Drop,
    Free,
    Load,
    Loaded,
    Note,
    Refused,
    Run,
    Unpacker,
    pack,
)

_FAILED = ItemError("the engine failed on this input")


def main(end: socket.socket, loading: Loading) -> None:
    """Serve the front at the other end until it closes its own; the entry of the process."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # a signal to the whole group: the front decides when to stop
        signal.signal(kind, signal.SIG_IGN)
    faulthandler.enable()
    # Threads hand over in steps of half a millisecond: the engine's thread must not wait for the one making answers.
    sys.setswitchinterval(0.0005)
    Worker(end, loading).serve()
    os._exit(0)  # whatever the other threads are doing, nobody waits for it


@dataclass(frozen=True)
class _Held:
    """A bundle with the batch that shows that it runs."""

    bundle: Bundle
    beat: Job | None


@dataclass(frozen=True)
class _Found:
    """What the engine made of a batch."""

    run: Run
    engine: Engine
    results: list[dict[str, Output | ItemError]]
    work: Work
    started: float
    seconds: float
    healthy: bool


class Worker:
    """The threads of one worker and the bundles that it holds, by number."""

    def __init__(self, end: socket.socket, loading: Loading) -> None:
        self._end = end
        self._loading = loading
        self._sending = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._runs: SimpleQueue[tuple[_Held, Run | Beat]] = SimpleQueue()
        self._found: SimpleQueue[_Found] = SimpleQueue()
        self._chores: SimpleQueue[Load | Drop] = SimpleQueue()

    def serve(self) -> None:
        """Read messages until the front closes its end."""
        for work in (self._compute, self._answer, self._tidy):
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__, daemon=True).start()
        for message in _received(self._end):
            if isinstance(message, Load | Drop):
                self._chores.put(message)
            else:
                self._runs.put((self._held[message.number], message))

    def _guarded(self, work: Callable[[], None]) -> None:
        """A thread that ends would leave the front waiting; the whole worker is soon started anew."""
        try:
            work()
        except BaseException as error:
            self._note(logging.CRITICAL, f"the worker ends: {_trace(error)}")
        finally:
            os._exit(1)

    def _compute(self) -> None:
        while True:
            held, message = self._runs.get()
            if isinstance(message, Beat):
                self._send(Beaten(message.ticket, self._beat(held)))
                continue
            started = time.monotonic()
            results, work, healthy = self._run(held.bundle.engine, message.jobs)
            self._send(Free(message.ticket))
            seconds = time.monotonic() - started
            self._found.put(_Found(message, held.bundle.engine, results, work, started, seconds, healthy))
            del held, results  # a dropped bundle must not be kept by an idle thread

    def _run(self, engine: Engine, jobs: Sequence[Job]) -> tuple[list[dict[str, Output | ItemError]], Work, bool]:
        try:
            found, work = engine.run(jobs)
            return found, work, any(not isinstance(output, ItemError) for row in found for output in row.values())
        except Exception as error:
            self._note(logging.ERROR, f"a batch of {len(jobs)} rows failed and is run row by row: {_trace(error)}")
        results: list[dict[str, Output | ItemError]] = []
        work, healthy = Work(), False
        for job in jobs:
            try:
                found, spent = engine.run([job])
                results += found
                work += spent
                healthy = True
            except Exception as error:
                self._note(logging.ERROR, f"a row failed by itself: {_trace(error)}")
                results.append(dict.fromkeys(job.tasks, _FAILED))
        return results, work, healthy

    def _beat(self, held: _Held) -> bool:
        if held.beat is None:
            return True
        try:
            [results], _ = held.bundle.engine.run([held.beat])
        except Exception as error:
            self._note(logging.ERROR, f"the engine failed on a stored probe: {_trace(error)}")
            return False
        return not any(isinstance(found, ItemError) for found in results.values())

    def _answer(self) -> None:
        while True:
            found = self._found.get()
            made = self._answers(found.engine, found.run.jobs, found.results)
            self._send(Done(found.run.ticket, made, found.work, found.started, found.seconds, found.healthy))
            del found, made

    def _answers(
        self, engine: Engine, jobs: Sequence[Job], results: Sequence[dict[str, Output | ItemError]]
    ) -> list[dict[str, Answer | ItemError]]:
        made: list[dict[str, Answer | ItemError]] = []
        for job, found in zip(jobs, results, strict=True):
            try:
                made += answers(engine, [job], [found])
            except Exception as error:
                self._note(logging.ERROR, f"no answers could be made of a row's logits: {_trace(error)}")
                made.append(dict.fromkeys(job.tasks, _FAILED))
        return made

    def _tidy(self) -> None:
        # What importing made stays for good; collecting garbage after each bundle need not look at it again.
        import_module("trunkline.engine.torch")
        gc.collect()
        gc.freeze()
        while True:
            message = self._chores.get()
            if isinstance(message, Load):
                answer = self._load(message)
                self._send(answer)
                if isinstance(answer, Loaded):
                    continue
            else:
                del self._held[message.number]
            _give_back()

    def _load(self, load: Load) -> Loaded | Refused:
        previous = None if load.previous is None else self._held[load.previous].bundle
        loading = self._loading if load.dtype is None else replace(self._loading, dtype=load.dtype)
        try:
            bundle = loading.load(load.folder, load.without, previous)
            same = previous is not None and previous.id == bundle.id
            prove(bundle, [task for task in bundle.tasks if not (same and previous and task in previous.tasks)])
            self._held[load.number] = _Held(bundle, smallest(bundle))
            if not same:
                self._note(logging.INFO, f"bundle {bundle.id} is loaded: {bundle.loader.choice}")
                for line in quality(bundle):
                    self._note(logging.INFO, line)
            return Loaded(load.number, describe(bundle))
        except TrunklineError as error:
            reason = str(error)
        except Exception as error:
            self._note(logging.ERROR, f"{load.folder} cannot be loaded: {_trace(error)}")
            reason = f"{type(error).__name__}: {error}"
        self._held.pop(load.number, None)
        return Refused(load.number, reason)

    def _note(self, level: int, text: str) -> None:
        self._send(Note(level, text))

    def _send(self, message: Any) -> None:
        data = pack(message)
        with self._sending:
            self._end.sendall(data)


def _received(end: socket.socket) -> Iterator[Any]:
    unpacker = Unpacker()
    while True:
        try:
            data = end.recv(1 << 18)
        except ConnectionError:
            return
        if not data:
            return
        yield from unpacker.feed(data)


def _trace(error: BaseException) -> str:
    """Where an exception came from, without its message, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = (f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames)
    return f"{type(error).__name__} in {' > '.join(places)}"


def _give_back() -> None:
    """Return freed memory to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
