"""How many connections a server holds, and what becomes of one too many.

One above the limit may still ask for health and figures, so that a full server is not taken for a dead one; all else is
refused. Of these there are few: the next one takes the place of the oldest, as a probe asks at once and what only holds
a place does not. Knows nothing of what is said on a connection.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

SPARE = 32
"""Connections above the limit that are held at a time."""
EXTRA = "extra"
"""The key in an ASGI scope's state that marks a request on a connection above the limit."""


class Connection(Protocol):
    """What is counted."""

    transport: asyncio.Transport


class Door:
    """The connections of one server that serves `room` of them."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._inside: set[Connection] = set()
        self._extra: dict[Connection, None] = {}  # oldest first

    def enter(self, one: Connection) -> bool:
        """Count a connection; whether it is served."""
        if len(self._inside) < self._room:
            self._inside.add(one)
            return True
        if len(self._extra) >= SPARE:
            oldest = next(iter(self._extra))
            del self._extra[oldest]
            oldest.transport.abort()
        self._extra[one] = None
        return False

    def leave(self, one: Connection) -> None:
        """Count one that has ended no more."""
        self._inside.discard(one)
        self._extra.pop(one, None)
