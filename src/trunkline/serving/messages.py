"""What the front and the worker say to each other, and how it travels.

Each message is a pickled dataclass led by its length in 8 bytes, over a pair of sockets that only these two processes
hold: nothing that a client sends is ever unpickled.

A bundle in the worker goes by a number that the front gives it: the same bundle with other tasks loaded has another.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.engine.base import ItemError, Job, Work
from trunkline.project.tasks import Answer
from trunkline.serving.replies import ModelInfo

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class Load:
    """To the worker: load the bundle in `folder` beside the others, but for the tasks `without`.

    What bundle number `previous` has loaded already is taken over. `dtype` is the one to load it in, None where that is
    for the worker to choose.
    """

    number: int
    folder: Path
    without: frozenset[str]
    previous: int | None
    dtype: str | None = None


@dataclass(frozen=True)
class Loaded:
    """From the worker: it is loaded, proved and warm."""

    number: int
    model: ModelInfo


@dataclass(frozen=True)
class Refused:
    """From the worker: it cannot be served, and nothing of it remains."""

    number: int
    reason: str


@dataclass(frozen=True)
class Drop:
    """To the worker: free bundle `number`."""

    number: int


@dataclass(frozen=True)
class Run:
    """To the worker: a batch for bundle `number`."""

    ticket: int
    number: int
    jobs: list[Job]


@dataclass(frozen=True)
class Free:
    """From the worker: the engine is done with a batch and can begin another; the answers follow."""

    ticket: int


@dataclass(frozen=True)
class Done:
    """From the worker: the answers of a batch, job by job. `started` is `time.monotonic()`, `seconds` the engine's.

    `healthy` is False where not one forward pass succeeded.
    """

    ticket: int
    answers: list[dict[str, Answer | ItemError]]
    work: Work
    started: float
    seconds: float
    healthy: bool


@dataclass(frozen=True)
class Beat:
    """To the worker: run the smallest batch that there is on bundle `number`, to show that it can."""

    ticket: int
    number: int


@dataclass(frozen=True)
class Beaten:
    """From the worker: what came of a beat."""

    ticket: int
    healthy: bool


@dataclass(frozen=True)
class Note:
    """From the worker: a line for the log, at a level of `logging`."""

    level: int
    text: str


def pack(message: Any) -> bytes:
    """The bytes of a message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Unpacker:
    """Messages out of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete with these bytes."""
        self._waiting += data
        start = 0
        while len(self._waiting) >= start + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._waiting, start)
            end = start + _LENGTH.size + length
            if len(self._waiting) < end:
                break
            with memoryview(self._waiting) as view:
                message = pickle.loads(view[start + _LENGTH.size : end])
            yield message
            start = end
        del self._waiting[:start]
