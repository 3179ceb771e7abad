"""Serving until told to stop: the socket, the HTTP server, signals and the service's start and end.

A server of a project also listens where commands on its machine find it; see `local.py`.

The port is open before the bundle is loaded, so that probes see a server that lives and is not ready yet. SIGTERM and
SIGINT end it in order: not ready any more, nothing new taken on, all that waits is answered, exit code 0. A second
signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from trunkline.bundle.release import Releases
from trunkline.errors import TrunklineError, UsageError
from trunkline.project.speed import Dial
from trunkline.serving import local, logs, tracing
from trunkline.serving.app import Settings, create_app, create_local_app
from trunkline.serving.door import SPARE, Door
from trunkline.serving.errors import Refusal
from trunkline.serving.limits import Limits
from trunkline.serving.loading import Loading
from trunkline.serving.protocol import Protocol
from trunkline.serving.replies import ModelInfo
from trunkline.serving.service import Service

_CLOSING_SECONDS = 5  # for clients to take their last answers
_OTHER_FILES = 256  # that the process opens besides connections


@dataclass(frozen=True)
class Options:
    """How to serve. Port 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8000
    settings: Settings = field(default_factory=Settings)
    releases: Releases | None = None
    """Of the project whose live release can be taken over, also by a command on this machine."""
    loading: Loading = field(default_factory=Loading)
    limits: Limits = field(default_factory=Limits)
    log_level: str = "info"


def serve(bundle: Path | None, options: Options, environment: Mapping[str, str]) -> None:
    """Serve a bundle, or where it is None the live release, until a signal.

    Raises UsageError where the address cannot be used, TrunklineError where there is nothing that can be served.
    """
    logs.configure(options.log_level)
    _allow_files(options.limits.connections + SPARE + _OTHER_FILES)
    with (
        tracing.exporting(environment),
        _bound(options.host, options.port) as listening,
        _local(options.releases, listening) as near,
        asyncio.Runner(loop_factory=event_loop) as runner,
    ):
        runner.run(_serve(listening, near, bundle, options))


async def _serve(listening: socket.socket, near: socket.socket | None, bundle: Path | None, options: Options) -> None:
    limits = options.limits
    service = Service(bundle, releases=options.releases, limits=limits, loading=options.loading)
    servers = {listening: http_server(create_app(service, options.settings), limits)}
    if near is not None:
        servers[near] = http_server(create_local_app(service, options.settings.bundles), limits)
    stop = _on_signal()
    http = asyncio.gather(*(server.serve(sockets=[one]) for one, server in servers.items()))
    try:
        starting = asyncio.create_task(service.start())
        await asyncio.wait((starting, http, stop), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            print(_greeting(service.model, limits.floor, listening), flush=True)
            await asyncio.wait((http, stop), return_when=asyncio.FIRST_COMPLETED)
        else:
            starting.cancel()
        logs.log(logging.INFO, "draining")
        await service.drain()
    except Refusal as refusal:
        raise TrunklineError(refusal.message) from None
    finally:
        for server in servers.values():
            server.should_exit = True
        await http


def http_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """The server for an app; it logs nothing that the gate logs already, and trusts no header about the client."""
    protocol: Any = partial(Protocol, limits=limits, door=Door(limits.connections))
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
            timeout_graceful_shutdown=_CLOSING_SECONDS + 1,
        )
    )


class _Server(uvicorn.Server):
    """Leaves signals to us, and lets go of clients that do not take their last answer."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all connections, in their own time as far as they have any."""
        late = asyncio.get_running_loop().call_later(_CLOSING_SECONDS, self._end_connections)
        await super().shutdown(sockets)
        late.cancel()

    def _end_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

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


def _local(releases: Releases | None, listening: socket.socket) -> contextlib.AbstractContextManager[Any]:
    """Where commands on this machine reach a server of a project, under the name of its address."""
    if releases is None:
        return contextlib.nullcontext()
    return local.listening(releases.home, _address(listening))


def _allow_files(needed: int) -> None:
    """Let this process open so many files. Raises UsageError where it may not."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= allowed or allowed == resource.RLIM_INFINITY:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    except (OSError, ValueError):
        raise UsageError(
            f"the limit connections is too high: with it the server may need {needed:,} open files, and the system "
            f"allows {most:,} (ulimit -Hn)"
        ) from None


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # not on every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _greeting(model: ModelInfo, floor: float | None, listening: socket.socket) -> str:
    lines = [
        f"serving {model.name}, bundle {model.bundle}, at http://{_address(listening)}",
        f"  tasks   {', '.join(model.tasks)}",
        f"  engine  {model.engine}, {model.dtype}, {model.device}",
    ]
    if floor is not None:
        faster = [name for name, task in model.tasks.items() if Dial(keep=floor).of(task.speeds)]
        which = ", ".join(faster) or "no task: none has exits that keep it"
        lines.append(f"  floor   {floor:g} under load, for {which}")
    return "\n".join(lines)


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
