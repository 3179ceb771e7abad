"""The little of HTTP/1.1 that a load needs, over plain asyncio streams, so that sending it costs the machine little.

Knows connections and bytes; nothing of what is asked, nor of when.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*([0-9.]+)[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)

Check = Callable[[Any], str | None]
"""What a parsed reply lacks, None where it is complete."""


@dataclass(frozen=True)
class Call:
    """One HTTP request, ready to be written, and what its reply must have."""

    raw: bytes
    check: Check


class Refused(Exception):
    """A reply that is no answer: its status as text, or "answer" for a 200 that is incomplete."""

    def __init__(self, outcome: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


class Connection:
    """One kept connection to the server; opened when it is first needed, and again after it was closed."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0
        self.resent = 0

    async def ask(self, raw: bytes) -> tuple[int, bytes, float]:
        """Send a request; its status, body and Retry-After. Raises OSError or EOFError where the connection fails."""
        kept = self.streams is not None and not self.streams[0].at_eof()
        try:
            return await self._ask(raw)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # A server may close an idle connection as we write: any client then asks once more on a new one.
            if kept and not getattr(error, "partial", b""):
                self.resent += 1
                return await self._ask(raw)
            raise

    async def _ask(self, raw: bytes) -> tuple[int, bytes, float]:
        if self.streams is None or self.streams[0].at_eof():
            self.close()
            self.streams = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
            self.opened += 1
        reader, writer = self.streams
        try:
            writer.write(raw)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None:
                raise ConnectionError("the reply has no Content-Length")
            body = await reader.readexactly(int(length[1]))
        except BaseException:  # cancelled too: what is left on this connection belongs to nobody
            self.close()
            raise
        if _CLOSE.search(head):
            self.close()
        retry_after = _RETRY_AFTER.search(head)
        return int(head[9:12]), body, float(retry_after[1]) if retry_after else 0.0

    def close(self) -> None:
        """Forget the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


@dataclass
class Pool:
    """At most `limit` connections; the one used last is used next. Waiting for one counts into a request's latency."""

    host: str
    port: int
    limit: int

    def __post_init__(self) -> None:
        self.all: list[Connection] = []
        self.free: list[Connection] = []
        self.places = asyncio.Semaphore(self.limit)

    async def ask(self, call: Call) -> None:
        """Send one HTTP request and check its reply. Raises Refused, OSError or EOFError."""
        async with self.places:
            connection = self._take()
            try:
                status, body, retry_after = await connection.ask(call.raw)
            finally:
                self.free.append(connection)
        if status != 200:
            raise Refused(str(status), body[:300].decode(errors="replace"), retry_after)
        try:
            lacking = call.check(json.loads(body))
        except (ValueError, LookupError, TypeError) as error:
            raise Refused("answer", f"not the reply expected: {error!r}") from None
        if lacking is not None:
            raise Refused("answer", lacking)

    def _take(self) -> Connection:
        if not self.free:
            self.all.append(Connection(self.host, self.port))
            self.free.append(self.all[-1])
        return self.free.pop()


def http(url: str, path: str, content: Any, key: str | None = None) -> bytes:
    """A POST of JSON as it goes over the wire."""
    place = urlsplit(url)
    body = json.dumps(content).encode()
    head = [
        f"POST {place.path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {place.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
