"""Admin calls: which release is served, and taking over another. There are none without an admin key; see `keys.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from trunkline.serving.errors import NotFound
from trunkline.serving.http import read, reply, shown
from trunkline.serving.native import ServedModel, described
from trunkline.serving.openapi import ErrorResponse, responses, takes

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service


class ReleaseRequest(BaseModel):
    """Which bundle to serve."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{}]})

    bundle: Annotated[
        str | None,
        Field(
            min_length=1,
            description="A bundle's folder, seen from the folder of bundles; the project's live release by default.",
        ),
    ] = None


def router(service: Service, bundles: Path | None) -> APIRouter:
    """The routes for what this service serves; `bundles` is the folder whose bundles may be named, None for none."""
    routes = APIRouter(prefix="/admin", tags=["Admin"])

    @routes.get("/release", responses=responses(ServedModel, ErrorResponse, 401, 404, 500, 503))
    async def release() -> Response:
        """What is served now."""
        return reply(described(service.model))

    @routes.post(
        "/release",
        responses=responses(ServedModel, ErrorResponse, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=takes(ReleaseRequest, required=False),
    )
    async def swap(request: Request) -> Response:
        """Serve another bundle: it is loaded beside the old one, checked against its stored probes, and takes over. A
        bundle that fails leaves the old one serving.
        """
        asked = await read(request, ReleaseRequest) if await request.body() else ReleaseRequest()
        return reply(described(await service.swap(None if asked.bundle is None else _inside(bundles, asked.bundle))))

    return routes


def _inside(bundles: Path | None, name: str) -> Path:
    """The folder of this name. Raises NotFound where there is none inside `bundles`, whatever there may be outside."""
    if bundles is None:
        raise NotFound("this server takes over live releases only; leave bundle out")
    root = bundles.resolve()
    try:
        folder = (root / name).resolve()
        if root in folder.parents and folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError):  # too long, a null character, a loop of links
        pass
    raise NotFound(f"there is no bundle {shown(name)} in {root}")
