"""The HTTP app: every wire over one service, behind the gate.

Puts the parts together and knows nothing that they know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from trunkline.serving import admin, native, oip, tei, ui
from trunkline.serving.gate import CURRENT, Gate, note
from trunkline.serving.http import NOTHING_HERE, refuse
from trunkline.serving.keys import Keys
from trunkline.serving.openapi import tidied
from trunkline.serving.telemetry import Telemetry
from trunkline.serving.tracing import Traces

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service

_DESCRIPTION = """\
Many text tasks in one pass of a shared trunk. Three wires speak to the same tasks: the native one (`/v1`), the Open
Inference Protocol (`/v2`) and one in the shape of Text Embeddings Inference (`/tasks/{task}`).
"""


@dataclass(frozen=True)
class Settings:
    """What the HTTP side needs besides the service's limits."""

    keys: Keys = field(default_factory=Keys)
    bundles: Path | None = None
    """The folder whose bundles admin calls may name."""


def create_app(service: Service, settings: Settings | None = None) -> FastAPI:
    """The app over a service, which someone else starts and drains."""
    chosen = settings or Settings()
    app = _app()
    telemetry, traces = Telemetry(service), Traces(service)
    service.subscribe(note)
    app.include_router(native.router(service))
    app.include_router(tei.router(service))
    app.include_router(oip.router(service))
    app.include_router(admin.router(service, chosen.bundles))
    app.include_router(telemetry.router())
    app.include_router(ui.router())
    app.add_middleware(Gate, keys=chosen.keys, limits=service.limits, observers=(telemetry.exchange, traces.exchange))
    return app


def create_local_app(service: Service, bundles: Path | None) -> FastAPI:
    """The app for commands of the server's user on its machine: the admin calls, without a key."""
    app = _app()
    app.include_router(admin.router(service, bundles))
    app.add_middleware(Gate, keys=None, limits=service.limits, observers=())
    return app


def _app() -> FastAPI:
    app = FastAPI(
        title="Trunkline",
        version=version("trunkline"),
        description=_DESCRIPTION,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # Spans are ours (tracing.py); FastAPI's own would record messages of exceptions, which may quote a text.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_exception_handler(HTTPException, _no_such_route)
    app.openapi = _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        return tidied(plain()) if app.openapi_schema is None else app.openapi_schema

    return openapi


async def _no_such_route(request: Request, error: Exception) -> Response:
    """What routing itself refuses: an unknown path, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    exchange, path = CURRENT.get(), request.scope["path"]
    message, allow = error.detail, (error.headers or {}).get("Allow")
    if error.status_code == 404:
        message = NOTHING_HERE
    elif error.status_code == 405:
        # Routing knows the methods of one route; a path may have several.
        route = getattr(request.scope.get("route"), "path", None)
        methods = request.app.openapi()["paths"].get(route, ())
        allow = ", ".join(sorted(map(str.upper, methods))) or allow
        message = f"{request.method} is not allowed here; allowed: {allow}"
    return refuse(path, error.status_code, message, allow=allow, request_id=exchange.id if exchange else "")
