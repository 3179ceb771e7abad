"""What a call does, step by step: which requests go out, which failures are tried again, and when to give up.

A call is a generator: it yields `Send` and `Wait`, gets back what came of them, and returns the typed reply. Whoever
runs it does the input and output and decides nothing, so that the client and its async twin cannot differ. This module
knows no HTTP library.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from trunkline.client import replies
from trunkline.client.errors import ClientError, ServerError, Unreachable
from trunkline.client.replies import ModelInfo, Reply, TaskInfo
from trunkline.engine.base import Input
from trunkline.errors import UsageError

PREDICT = "/v1/predict"
TASKS = "/v1/tasks"
MODEL = "/v1/model"
READY = "/health/ready"

LATER = frozenset({429, 503})
"""What a server answers that may answer otherwise a moment later. Trunkline then says when; where it does not, waiting
is of no use (a task is unloaded, say). A proxy need not say."""

DROPS = 5
"""How many times in one call a failed connection is tried again."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds


@dataclass(frozen=True)
class Settings:
    """How long a call may take in all, in seconds, and whether it tries again."""

    url: str
    timeout: float
    retry: bool


@dataclass(frozen=True)
class Send:
    """Send this request and hand back `Got` or `Lost`; give up at `until`, by `time.monotonic`."""

    method: str
    path: str
    body: bytes | None
    until: float

    def left(self) -> float:
        """Seconds until `until`, a little more than none."""
        return max(self.until - time.monotonic(), 0.001)

    def join(self, chunks: list[bytes], chunk: bytes) -> None:
        """Keep one more part of the reply's body. Raises TimeoutError where it comes too late."""
        if time.monotonic() > self.until:
            raise TimeoutError("the reply did not end in time")
        chunks.append(chunk)


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Got:
    """A reply, whatever its status; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Lost:
    """No reply, and why."""

    error: Exception


T = TypeVar("T")
Call = Generator[Send | Wait, Got | Lost | None, T]


Speed = float | Mapping[str, float] | None
"""A number from 0 to 1 for all tasks, or numbers by task."""


def predict(
    settings: Settings,
    inputs: Iterable[object],
    tasks: Iterable[str] | None,
    deadline_ms: float | None,
    speed: Speed,
    keep: Speed,
) -> Call[Reply]:
    """All inputs in one request. Raises UsageError before anything is sent for what cannot be put into JSON."""
    if isinstance(inputs, str | bytes | Mapping):
        raise UsageError("inputs is a list of texts; write [text] for a single one")
    if isinstance(tasks, str):
        raise UsageError(f"tasks is a list of names; write ['{tasks}']")
    if deadline_ms is not None and not deadline_ms > 0:
        raise UsageError(f"deadline_ms must be more than 0; found {deadline_ms}")
    content: dict[str, Any] = {"inputs": [_plain(item) for item in inputs]}
    if tasks is not None:
        content["tasks"] = list(tasks)
    for name, value in (("speed", speed), ("keep", keep)):
        if value is not None:
            content[name] = dict(value) if isinstance(value, Mapping) else value
    got = yield from _exchange(settings, "POST", PREDICT, content, deadline_ms)
    return replies.read(PREDICT, got.body, lambda found: replies.reply(found, asked=len(content["inputs"])))


def tasks(settings: Settings) -> Call[Mapping[str, TaskInfo]]:
    """The tasks that are being served, by name."""
    got = yield from _exchange(settings, "GET", TASKS)
    return replies.read(TASKS, got.body, replies.tasks)


def model(settings: Settings) -> Call[ModelInfo]:
    """What is being served."""
    got = yield from _exchange(settings, "GET", MODEL)
    return replies.read(MODEL, got.body, replies.model)


def ready(settings: Settings) -> Call[bool]:
    """Whether the server would answer now: asked once, never again. A server that is not there is not ready."""
    try:
        yield from _exchange(Settings(settings.url, settings.timeout, retry=False), "GET", READY)
    except Unreachable:
        return False
    except ServerError as error:
        if error.status in LATER:
            return False
        raise
    return True


def _exchange(
    settings: Settings,
    method: str,
    path: str,
    content: dict[str, Any] | None = None,
    deadline_ms: float | None = None,
) -> Call[Got]:
    """One request until it is answered with success, as often as it takes and the time allows."""
    start = time.monotonic()
    until = start + settings.timeout
    deadline = None if deadline_ms is None else start + deadline_ms / 1000
    last = until if deadline is None else min(until, deadline)
    drops = refusals = 0
    refused: ServerError | None = None
    while True:
        got = yield Send(method, path, _body(content, deadline), until)
        if isinstance(got, Got):
            if got.status == 200:
                return got
            error: ClientError = (refused := _refusal(got))
            again = refused.status in LATER and (refused.retry_after is not None or not refused.code)
            pause = (refused.retry_after or 0.0) + _backoff(refusals)
            refusals += 1
        else:
            assert isinstance(got, Lost)
            error = Unreachable(_why(settings, got.error))
            if isinstance(got.error, TimeoutError) and refused is not None:
                error = refused  # that the time was over in the midst of a try says less than why there were several
            again = drops < DROPS
            pause = _backoff(drops)
            drops += 1
        if not (settings.retry and again and time.monotonic() + pause < last):
            raise error from (got.error if isinstance(got, Lost) else None)
        yield Wait(pause)


def _plain(item: object) -> object:
    """An input as the wire has it. What is none goes out as it is: the server refuses that one alone."""
    match item:
        case Input():
            return {name: value for name, value in asdict(item).items() if value is not None}
        case Mapping():
            return dict(item)
        case (text, text_pair):
            return {"text": text, "text_pair": text_pair}
    return item


def _body(content: dict[str, Any] | None, deadline: float | None) -> bytes | None:
    """The request's body; of the deadline it holds what is left, since an earlier attempt may have used some."""
    if content is None:
        return None
    if deadline is not None:
        content = {**content, "deadline_ms": max(1000 * (deadline - time.monotonic()), 1.0)}
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"the request cannot be sent as JSON: {error}") from None


def _backoff(attempt: int) -> float:
    """Doubling from attempt to attempt, half of it by chance, so that clients refused together come back apart."""
    return min(FIRST_PAUSE * 2.0 ** min(attempt, 10), LONGEST_PAUSE) * random.uniform(0.5, 1.0)


def _refusal(got: Got) -> ServerError:
    try:
        said = json.loads(got.body)["error"]
        code, message, request_id = str(said["code"]), str(said["message"]), said.get("request_id")
    except (ValueError, LookupError, TypeError, AttributeError):  # a proxy's page, say
        start = got.body[:200].decode(errors="replace").strip()
        code, message, request_id = "", start or "no body", None
    return ServerError(
        got.status,
        code,
        message,
        request_id or got.headers.get("x-request-id"),
        _seconds(got.headers.get("retry-after")),
    )


def _seconds(retry_after: str | None) -> float | None:
    """Seconds from now of a Retry-After: a number, or (from a proxy) a date."""
    if retry_after is None:
        return None
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _why(settings: Settings, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer from {settings.url} within {settings.timeout:g} s"
    return f"no answer from {settings.url}: {str(error) or type(error).__name__}"
