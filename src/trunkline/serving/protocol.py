"""HTTP on a connection, with an end to patience: a head must be small and arrive in time, a reply be read in time.

Without it a client that sends a head byte by byte, or never reads what it asked for, holds a connection for good.
Bodies have limits of their own; see `body.py`. Offers to speak another protocol are passed over, as HTTP allows: the
parser would drop the bodies of requests that come with one, and Java's client makes one with its first request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from trunkline.serving.door import EXTRA, Door
from trunkline.serving.limits import Limits
from trunkline.serving.logs import log

HEAD_BYTES = 64 * 1024

_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """One connection. A head that is too slow or too large is answered with 408 or 431 and the connection closed; where
    the client does not read what is written to it, the connection just ends.
    """

    def __init__(self, *args: Any, limits: Limits, door: Door, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._door = door
        self._served = True
        self._asked: deque[RequestResponseCycle] = deque()  # requests without a whole reply, in their order
        self._in_head = True
        self._head = 0  # bytes of a head that has not ended
        self._patience: asyncio.TimerHandle | None = None
        self._written = 0.0  # when the last reply was
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._served = self._door.enter(self)
        if not self._served:
            self.app_state = {**self.app_state, EXTRA: True}
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._end_head()
        if self._unread is not None:
            self._unread.cancel()
        self._door.leave(self)
        for cycle in self._asked:  # uvicorn tells the last one only, and the others would write to nobody
            cycle.disconnected = True
            cycle.message_event.set()
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
        self._asked.append(self.cycle)
        if not self._served:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The end of a reply, as far as it is ours to write it."""
        self._asked.popleft()
        super().on_response_complete()
        self._wrote()

    def pause_writing(self) -> None:
        """More is written than the client has read."""
        super().pause_writing()
        self._wrote()

    def _begin_head(self) -> None:
        self._head = 0
        self._patience = self.loop.call_later(self._limits.head_seconds, self._refuse, b"408 Request Timeout")

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

    def _wrote(self) -> None:
        """From now on the client has its time to read. One timer for many replies: it looks at the last of them."""
        self._written = self.loop.time()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.reply_seconds, self._end_unread)

    def _end_unread(self) -> None:
        self._unread = None
        if not self.transport.get_write_buffer_size():
            return
        left = self._written + self._limits.reply_seconds - self.loop.time()
        if left > 0:
            self._unread = self.loop.call_later(left, self._end_unread)
        else:
            log(logging.INFO, "a reply was not read in time")
            # With a reset, or the system would go on offering the client what it holds of the reply.
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
