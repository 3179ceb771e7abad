"""Serving until told to stop: the socket, the HTTP server, signals and the service's start and end.

The port is open before the bundle is loaded, so that probes see a server that lives and is not ready yet. SIGTERM and
SIGINT end it in order: not ready any more, nothing new taken on, all that waits is answered, exit code 0. A second
signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from trunkline.bundle.release import Releases
from trunkline.errors import TrunklineError, UsageError
from trunkline.serving import logs, tracing
from trunkline.serving.app import Settings, create_app
from trunkline.serving.errors import Refusal
from trunkline.serving.limits import Limits
from trunkline.serving.loading import Loading
from trunkline.serving.protocol import Protocol
from trunkline.serving.replies import ModelInfo
from trunkline.serving.service import Service

_CLOSING_SECONDS = 5  # for clients to take their last answers


@dataclass(frozen=True)
class Options:
    """How to serve. Port 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8000
    settings: Settings = field(default_factory=Settings)
    releases: Releases | None = None
    """Of the project whose live release can be taken over."""
    loading: Loading = field(default_factory=Loading)
    limits: Limits = field(default_factory=Limits)
    log_level: str = "info"


def serve(bundle: Path | None, options: Options, environment: Mapping[str, str]) -> None:
    """Serve a bundle, or where it is None the live release, until a signal.

    Raises UsageError where the address cannot be used, TrunklineError where there is nothing that can be served.
    """
    logs.configure(options.log_level)
    tracing.configure(environment)
    with _bound(options.host, options.port) as listening, asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(listening, bundle, options))


async def _serve(listening: socket.socket, bundle: Path | None, options: Options) -> None:
    service = Service(bundle, releases=options.releases, limits=options.limits, loading=options.loading)
    server = http_server(create_app(service, options.settings))
    stop = _on_signal()
    http = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        starting = asyncio.create_task(service.start())
        await asyncio.wait((starting, http, stop), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            print(_greeting(service.model, listening), flush=True)
            await asyncio.wait((http, stop), return_when=asyncio.FIRST_COMPLETED)
        else:
            starting.cancel()
        logs.log(logging.INFO, "draining")
        await service.drain()
    except Refusal as refusal:
        raise TrunklineError(refusal.message) from None
    finally:
        server.should_exit = True
        await http


def http_server(app: FastAPI, protocol: type[Protocol] = Protocol) -> uvicorn.Server:
    """The server for an app; it logs nothing that the gate logs already, and trusts no header about the client."""
    return _Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
    )


class _Server(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _on_signal() -> asyncio.Future[None]:
    """Done with the first SIGTERM or SIGINT; a second one does what it does to any process."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def first() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first)
    return stop


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error}") from None
    with listening:
        yield listening


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # not on every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _greeting(model: ModelInfo, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return (
        f"serving {model.name}, bundle {model.bundle}, at http://{shown}:{port}\n"
        f"  tasks   {', '.join(model.tasks)}\n"
        f"  engine  {model.engine}, {model.dtype}, {model.device}"
    )
