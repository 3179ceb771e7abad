"""A server on a real socket that answers as it is told, one step for each request, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["Handler"], None]

REPLY = {
    "results": [
        {
            "intent": {"label": "alarm", "score": 0.9, "scores": {"alarm": 0.9, "music": 0.1}, "branch": "b" * 16},
            "slots": {
                "spans": [{"label": "time", "start": 11, "end": 16, "text": "siebn", "score": 0.8}],
                "words": ["weck", "mich", "um", "siebn"],
                "tags": ["O", "O", "O", "B-time"],
                "branch": "c" * 16,
            },
            "urgency": {"score": 0.25, "branch": "d" * 16},
            "same": {"error": "text_pair is missing: this task reads pairs"},
        }
    ],
    "model": "assistant",
    "bundle": "a" * 16,
    "layers": 6,
    "speeds": {},
    "timings": {"queue": 0.1, "tokenise": 0.2, "trunk": 3.0, "branches": 1.0, "total": 4.4},
}


@dataclass(frozen=True)
class Asked:
    """One request as it came; `port` tells connections apart, `at` is by time.monotonic."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    port: int
    at: float


class Server(ThreadingHTTPServer):
    """Steps in turn; the last one again for every further request."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps = list(steps)
        self.asked: list[Asked] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes; the second must not wait for an acknowledgement

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        server = self.server
        server.asked.append(Asked(self.command, self.path, headers, body, self.client_address[1], time.monotonic()))
        step = server.steps.pop(0) if len(server.steps) > 1 else server.steps[0]
        step(self)

    do_GET = do_POST = answer  # noqa: N815


@contextlib.contextmanager
def serving(*steps: Step) -> Iterator[Server]:
    """A running server."""
    with Server(steps) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def say(content: Any, status: int = 200, **headers: str) -> Step:
    """Answer with this: an object as JSON, bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def step(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return step


def refuse(status: int, code: str, message: str = "no", **headers: str) -> Step:
    """An error in the native shape."""
    return say({"error": {"code": code, "message": message, "request_id": "r-1"}}, status, **headers)


def drop(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(handler: Handler) -> None:
    """Say nothing until the test is over."""
    handler.close_connection = True
    handler.server.over.wait(10)


def trickle(handler: Handler) -> None:
    """Send a byte of the body now and then, and never all of it."""
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b" ")
