"""HTTP on a connection, with an end to patience: the head of a request must be small and arrive in time.

Without it a client that sends a head byte by byte, or none, holds a connection for good. Bodies have limits of their
own; see `body.py`. Offers to speak another protocol are passed over, as HTTP allows: the parser would drop the bodies
of requests that come with one, and Java's client makes one with its first request.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024

_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """One connection. A head that is too slow or too large is answered with 408 or 431, and the connection closed."""

    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head = 0  # bytes of a head that has not ended
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client: any part of any request."""
        if self._in_head and b"pgrade" in data:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"x-upgrade", head) + end + rest
        super().data_received(data)
        if self._patience is not None and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._end_head()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._in_head = False
        self._end_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._in_head = True
        super().on_message_complete()

    def _begin_head(self) -> None:
        self._head = 0
        self._patience = self.loop.call_later(self.head_seconds, self._refuse, b"408 Request Timeout")

    def _end_head(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self, status: bytes) -> None:
        self._end_head()
        # A response that is under way must not be cut into: the connection just ends.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
