"""What every request passes on its way in and out, whatever wire it speaks.

A request id, the keys, the body within its limits, an end to the work when the client goes, an answer to every error in
the shape of its wire, one line of log. The app behind it gets a request whose whole body has arrived, unpacked, and may
raise any `Refusal`. Knows paths only to choose keys and shapes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.serving.body import Gone, read_body
from trunkline.serving.door import EXTRA
from trunkline.serving.errors import Refusal, Unavailable
from trunkline.serving.http import REQUEST_ID, refuse
from trunkline.serving.keys import PROBES, Keys
from trunkline.serving.limits import Limits
from trunkline.serving.logs import failure, log
from trunkline.serving.replies import CANCELLED, Event, Finished

_WATCHED = PROBES | {"/metrics"}
"""Paths that are asked every few seconds, for ever, and that a full server answers."""
_SANE = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass
class Exchange:
    """One request and what became of it. `route` is the pattern that its path matched, None where none did; `finished`
    is what the service says of the work it asked for.
    """

    id: str
    method: str
    path: str
    headers: Mapping[bytes, bytes] = field(repr=False)
    started: float = field(default_factory=time.perf_counter)
    route: str | None = None
    status: int = CANCELLED
    finished: Finished | None = None

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return time.perf_counter() - self.started


CURRENT: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""The request that the running code works for."""


def note(event: Event) -> None:
    """Keep with the running request what the service says of it; an observer for `Service.subscribe`."""
    exchange = CURRENT.get()
    if exchange is not None and isinstance(event, Finished):
        exchange.finished = event


class Gate:
    """ASGI middleware; every observer is called once with each exchange that has ended.

    Without `keys` everything is open: who can connect has shown who they are.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys | None,
        limits: Limits,
        observers: Sequence[Callable[[Exchange], None]],
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = _joined(scope["headers"])
        exchange = Exchange(_request_id(headers), scope["method"], scope["path"], headers)
        CURRENT.set(exchange)
        reply = _Reply(exchange, send)
        try:
            await self._answer(scope, receive, reply)
        except Gone:
            exchange.status = CANCELLED
        except Exception as error:
            failure("request failed", error, request_id=exchange.id)
            message = f"the server failed; its log says more under request id {exchange.id}"
            await reply.send_whole(refuse(exchange.path, 500, message, request_id=exchange.id))
        finally:
            for observer in (_log, *self._observers):
                observer(exchange)

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        exchange, limits, body = reply.exchange, self._limits, None
        try:
            if EXTRA in scope.get("state", {}) and exchange.path not in _WATCHED:
                open_now = f"{limits.connections:,} connections are open already, which is the limit (connections)"
                raise Unavailable(open_now, 1.0)
            if self._keys is not None:
                self._keys.check(exchange.path, exchange.headers)
            body = await read_body(receive, exchange.headers, limit=limits.body_bytes, seconds=limits.body_seconds)
            scope = {**scope, "headers": _plain(scope["headers"], body)}
            await _until_gone(self._app, scope, body, receive, reply)
        except Refusal as refusal:
            response = refuse(
                exchange.path, refusal.status, refusal.message, retry_after=refusal.retry_after, request_id=exchange.id
            )
            if body is None:
                response.headers["Connection"] = "close"  # what is left of the body would be read as the next request
            await reply.send_whole(response)
        finally:
            exchange.route = getattr(scope.get("route"), "path", None)


class _Reply:
    """Sends what the app sends, with the request id, and keeps the status."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self.exchange = exchange
        self._send = send
        self.begun = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.exchange.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID.lower().encode(), self.exchange.id.encode())]
        await self._send(message)
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def send_whole(self, response: Response) -> None:
        """Send this response, unless another has begun."""
        if self.begun:
            raise RuntimeError("a response failed after it had begun")
        await response({"type": "http", "method": self.exchange.method}, _nothing, self)


async def _until_gone(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, reply: _Reply) -> None:
    """Run the app on a body that has arrived. Raises Gone, and ends the work, where the client closes meanwhile."""
    read = False
    gone = asyncio.Event()

    async def replay() -> Message:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    work = asyncio.ensure_future(app(scope, replay, reply))
    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
        gone.set()
        if not work.done() and not reply.ended:
            raise Gone
        await work
    finally:
        for task in (work, watcher):
            task.cancel()
        await asyncio.wait((work, watcher))
        if not work.cancelled():
            work.exception()  # seen, also where nobody waits for it any more


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(REQUEST_ID.lower().encode(), b"")
    return given.decode() if _SANE.fullmatch(given) else os.urandom(8).hex()


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by lower-case name; what is given several times is joined by commas, as HTTP has it."""
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        name = name.lower()
        joined[name] = joined[name] + b", " + value if name in joined else value
    return joined


def _plain(headers: list[tuple[bytes, bytes]], body: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of the body as it is now."""
    about = (b"content-encoding", b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in headers if name.lower() not in about]
    return [*kept, (b"content-length", str(len(body)).encode())]


def _log(exchange: Exchange) -> None:
    done = exchange.finished
    log(
        logging.ERROR if exchange.status == 500 else logging.DEBUG if exchange.path in _WATCHED else logging.INFO,
        "request",
        request_id=exchange.id,
        method=exchange.method,
        route=exchange.route,
        status=exchange.status,
        ms=round(1000 * exchange.seconds, 2),
        rows=done.rows if done else 0,
        tasks=done.tasks if done else (),
    )
