"""The client and its async twin: connections, and running the steps of a call. What the steps are is in `calls.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from trunkline.client import calls
from trunkline.client.calls import Call, Got, Lost, Send, Settings, Speed, Wait
from trunkline.client.replies import ModelInfo, Reply, TaskInfo
from trunkline.errors import MissingExtra, UsageError

try:
    import httpx
except ModuleNotFoundError:
    raise MissingExtra("client", "trunkline.Client") from None

URL = "http://127.0.0.1:8000"
TIMEOUT = 30.0  # seconds

# Kept connections are closed sooner than servers close them (after 5 s, often), so that no request meets a closed one.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=4.0)

T = TypeVar("T")


class Client:
    """Asks a Trunkline server. Keeps connections, may be shared by threads, and is closed by `close` or `with`.

    `timeout` is for a whole call in seconds, tries and waits between them included. With `retry`, a failed connection
    is tried again up to 5 times, and a server that answers 429 or 503 is asked again when its Retry-After is over, for
    as long as there is time. `key` is sent as a bearer key.

    All calls raise ServerError, Unreachable or BadReply, each a ClientError.
    """

    def __init__(self, url: str = URL, *, key: str | None = None, timeout: float = TIMEOUT, retry: bool = True) -> None:
        self._settings, options = _prepare(url, key, timeout, retry)
        self._http = httpx.Client(**options)

    def predict(
        self,
        inputs: Iterable[object],
        tasks: Iterable[str] | None = None,
        *,
        deadline_ms: float | None = None,
        speed: Speed = None,
        keep: Speed = None,
    ) -> Reply:
        """Answers of the tasks (all by default) for each input, in one request.

        An input is a text, a pair (text, text_pair), or {"text": …, "text_pair": …}. Nothing is split: a request that
        is too large for the server is a ServerError that names the limit. The server drops what it has not begun
        `deadline_ms` milliseconds from now, and the client then tries no more.

        `speed`, from 0 (the default, off) to 1, lets texts leave at a task's exits; `keep` asks for the fastest speed
        that keeps this fraction of the task's quality. Either is one number, or numbers by task. Raises UsageError for
        what is no list of inputs.
        """
        return self._run(calls.predict(self._settings, inputs, tasks, deadline_ms, speed, keep))

    def tasks(self) -> Mapping[str, TaskInfo]:
        """The tasks that are being served, by name."""
        return self._run(calls.tasks(self._settings))

    def model(self) -> ModelInfo:
        """The bundle that is being served, and by what."""
        return self._run(calls.model(self._settings))

    def ready(self) -> bool:
        """Whether the server would answer now. False where it cannot be reached; never tried twice."""
        return self._run(calls.ready(self._settings))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client('{self._settings.url}')"

    def _run(self, call: Call[T]) -> T:
        came: Got | Lost | None = None
        try:
            while True:
                step = call.send(came)
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    came = None
                else:
                    came = self._send(step)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _send(self, step: Send) -> Got | Lost:
        chunks: list[bytes] = []
        try:
            with self._http.stream(step.method, step.path, content=step.body, timeout=step.left()) as response:
                for chunk in response.iter_bytes():
                    step.join(chunks, chunk)
        except _FAILURES as error:
            return _lost(error)
        return Got(response.status_code, response.headers, b"".join(chunks))


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited, and `aclose` or `async with`. Not for several event loops."""

    def __init__(self, url: str = URL, *, key: str | None = None, timeout: float = TIMEOUT, retry: bool = True) -> None:
        self._settings, options = _prepare(url, key, timeout, retry)
        self._http = httpx.AsyncClient(**options)

    async def predict(
        self,
        inputs: Iterable[object],
        tasks: Iterable[str] | None = None,
        *,
        deadline_ms: float | None = None,
        speed: Speed = None,
        keep: Speed = None,
    ) -> Reply:
        """See `Client.predict`. Cancelling it closes its connection, and the server drops the request."""
        return await self._run(calls.predict(self._settings, inputs, tasks, deadline_ms, speed, keep))

    async def tasks(self) -> Mapping[str, TaskInfo]:
        """See `Client.tasks`."""
        return await self._run(calls.tasks(self._settings))

    async def model(self) -> ModelInfo:
        """See `Client.model`."""
        return await self._run(calls.model(self._settings))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._run(calls.ready(self._settings))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient('{self._settings.url}')"

    async def _run(self, call: Call[T]) -> T:
        came: Got | Lost | None = None
        try:
            while True:
                step = call.send(came)
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    came = None
                else:
                    came = await self._send(step)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _send(self, step: Send) -> Got | Lost:
        chunks: list[bytes] = []
        try:
            async with self._http.stream(step.method, step.path, content=step.body, timeout=step.left()) as response:
                async for chunk in response.aiter_bytes():
                    step.join(chunks, chunk)
        except _FAILURES as error:
            return _lost(error)
        return Got(response.status_code, response.headers, b"".join(chunks))


_FAILURES = (httpx.RequestError, TimeoutError)


def _lost(error: Exception) -> Lost:
    return Lost(TimeoutError(str(error)) if isinstance(error, httpx.TimeoutException) else error)


def _prepare(url: str, key: str | None, timeout: float, retry: bool) -> tuple[Settings, dict[str, Any]]:
    """What both clients are made of. Raises UsageError for what can never work."""
    try:
        place = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"'{url}' is not a URL: {error}") from None
    if place.scheme not in ("http", "https") or not place.host:
        raise UsageError(f"'{url}' is not the URL of a server; write http://host:port")
    if not timeout > 0:
        raise UsageError(f"timeout must be more than 0 seconds; found {timeout}")
    headers = {b"Accept": b"application/json", b"Content-Type": b"application/json"}
    if key is not None:
        key = key.strip()
        if not key or not key.isprintable():
            raise UsageError("the key must be one line of text that is not empty")
        headers[b"Authorization"] = f"Bearer {key}".encode()
    shown = str(place.copy_with(username=None, password=None)).rstrip("/")
    return Settings(shown, timeout, retry), {"base_url": place, "headers": headers, "limits": _LIMITS}
