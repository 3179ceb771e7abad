"""The body of a request: read whole, within a size and a time, and unpacked.

The size counts bytes as they arrive and, of a packed body, as they unpack, so that a small body which unpacks to a huge
one is refused before it does. Knows nothing of what a body means.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.types import Receive

from trunkline.serving.errors import Invalid, TooLarge
from trunkline.serving.http import TooSlow, UnsupportedMedia, shown

_FORMATS = {"gzip": 31, "deflate": 15}  # as zlib counts them
_LINGER = 4  # times the limit that a body too large is read and dropped, so that its sender comes to read the answer


class Gone(Exception):
    """The client closed the connection."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int, seconds: float) -> bytes:
    """The body of at most `limit` bytes, before unpacking and after, if it is complete within `seconds`.

    Raises TooLarge, TooSlow, UnsupportedMedia for an encoding that is not read, Invalid for a damaged body, and Gone.
    """
    unpack = _unpacker(headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower(), limit)
    said = headers.get(b"content-length", b"0")
    if not said.isdigit() or len(said) > 20:
        raise Invalid(f"Content-Length must be a number of bytes; found {shown(said.decode('latin-1'))}")
    declared = int(said)
    if declared > (limit if b"expect" in headers else _LINGER * limit):
        raise _too_large(limit)
    parts: list[bytes] = []
    arrived = 0
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                chunk, more = message.get("body", b""), message.get("more_body", False)
                arrived += len(chunk)
                if arrived > _LINGER * limit:
                    break
                if max(arrived, declared) > limit:
                    parts.clear()
                else:
                    parts.append(chunk if unpack is None else unpack.feed(chunk))
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {seconds:g} seconds") from None
    if max(arrived, declared) > limit:
        raise _too_large(limit)
    if unpack is not None and arrived:
        unpack.check_end()
    return b"".join(parts)


class _Unpacker:
    """One gzip or zlib stream, unpacked to at most `limit` bytes."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._encoding = encoding
        self._limit = limit
        self._left = limit
        self._stream = zlib.decompressobj(_FORMATS[encoding])

    def feed(self, chunk: bytes) -> bytes:
        """What this chunk unpacks to."""
        try:
            data = self._stream.decompress(chunk, self._left + 1)
        except zlib.error:
            raise Invalid(f"the body is not what Content-Encoding says: no {self._encoding}") from None
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._limit)
        # A second stream behind the first is never read: of many empty ones, each would cost a copy of all the rest.
        if self._stream.unused_data:
            raise Invalid(f"bytes follow the end of the {self._encoding} body")
        return data

    def check_end(self) -> None:
        """Raise Invalid unless the stream has come to its end."""
        if not self._stream.eof:
            raise Invalid(f"the {self._encoding} body is cut short")


def _unpacker(encoding: str, limit: int) -> _Unpacker | None:
    if encoding in ("identity", ""):
        return None
    if encoding not in _FORMATS:
        raise UnsupportedMedia(f"Content-Encoding is {shown(encoding)}; send the body as it is, or as gzip or deflate")
    return _Unpacker(encoding, limit)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit:,} bytes")
