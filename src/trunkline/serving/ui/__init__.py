"""The playground: one page at `/` with its style, script and icon, all from package data.

Serves files and nothing else. What the page shows it asks of the native wire, as any other client does, so this module
knows no model and no task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    # Nothing is fetched from elsewhere and no inline script runs, whatever a text or a label holds.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # keep it, and ask each time whether it is still this one: it goes with the server
}


def router() -> APIRouter:
    """The page at `/` and what it loads at `/ui/…`; none of it is part of the API's schema."""
    made = APIRouter()
    for entry in resources.files(__name__).iterdir():
        media = _TYPES.get(entry.name.rpartition(".")[2])
        if media is not None:
            path = "/" if entry.name == "index.html" else f"/ui/{entry.name}"
            made.add_route(path, _serve(entry.read_bytes(), media), include_in_schema=False)
    return made


def _serve(content: bytes, media: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "Content-Type": media, "ETag": tag}

    async def serve(request: Request) -> Response:
        known = request.headers.get("If-None-Match", "")
        if tag in known or known == "*":
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return serve
