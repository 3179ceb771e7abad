"""What every wire shares of HTTP: strict JSON in, JSON out, and errors in the shape of the wire that was asked.

JSON comes as UTF-8 without NaN, infinities or a key given twice. A lone surrogate passes in (the engine refuses the one
item that holds it) and leaves as an escape. Does not know how bodies arrive; see `body.py` and `gate.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from trunkline.errors import unknown
from trunkline.serving.errors import Invalid, Refusal

REQUEST_ID = "X-Request-Id"
NOTHING_HERE = "there is nothing at this path; /openapi.json lists what there is"

_SHOWN = 80
_CODES = {
    400: "bad_request",
    401: "unauthorised",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "overloaded",
    499: "cancelled",
    500: "internal",
    503: "unavailable",
    504: "deadline_exceeded",
}
# What the TEI wire calls them; its clients know no other.
_TEI_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}

Typed = TypeVar("Typed", bound=BaseModel)


class UnsupportedMedia(Refusal):
    """The body is of a type or an encoding that is not read."""

    status = 415


class TooSlow(Refusal):
    """The body did not arrive in time."""

    status = 408


def code_of(status: int) -> str:
    """The name of an error in the native shape."""
    return _CODES.get(status, "other")


def parse(body: bytes) -> Any:
    """The value of a JSON text. Raises Invalid for what is none, and says where."""
    try:
        return json.loads(
            body.decode(), parse_constant=_refuse_constant, parse_float=_number, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise Invalid(f"the body is not UTF-8: byte 0x{body[error.start]:02x} at {error.start}") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Invalid("the body nests too deep") from None
    except ValueError:  # a number of thousands of digits
        raise Invalid("the body holds a number that is too long") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise Invalid(f"the body is not JSON: {constant} is no JSON value")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Invalid("the body holds a number that is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Invalid(f"the key {shown(twice)} is given twice in one object")
    return found


async def read(request: Request, model: type[Typed]) -> Typed:
    """The body of a request as a typed object.

    Raises UnsupportedMedia where it is not declared as JSON, Invalid for an unknown key (with the nearest known one) or
    a value of the wrong type.
    """
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(f"send the body as JSON, with Content-Type: application/json; found {shown(media)}")
    value = parse(await request.body())
    if not isinstance(value, dict):
        raise Invalid(f"the body must be an object with {', '.join(model.model_fields)}; found {shown(value)}")
    for key in value:
        if key not in model.model_fields:
            raise Invalid(unknown("key", key, model.model_fields))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # A model over the whole speaks for itself; all else names the key.
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).lstrip(".")
        found = "" if first["type"] in ("missing", "value_error") else f"; found {shown(first['input'])}"
        message = first["msg"].removeprefix("Value error, ")
        raise Invalid(f"{where}: {message}{found}" if where else message) from None


def shown(value: object) -> str:
    """A value from a request, short enough for a message; an array or object only by its kind."""
    match value:
        case str():
            text = json.dumps(value[:_SHOWN], ensure_ascii=False)
            return text if len(value) <= _SHOWN else f'{text[:-1]}…"'
        case list() | dict():
            return f"{'an array' if isinstance(value, list) else 'an object'} of {len(value)}"
        case bool() | None:
            return json.dumps(value)
        case int() if abs(value) >= 10**20:
            return "a very large number"
    return str(value)


def dump(value: Any) -> bytes:
    """Compact JSON in UTF-8; a lone surrogate becomes the escape that JSON has for it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(dump(value), status, headers, media_type="application/json")


def refuse(
    path: str, status: int, message: str, *, retry_after: float | None = None, allow: str | None = None, request_id: str
) -> Response:
    """An error as the wire of this path has it: native, `/tasks/` (TEI) or `/v2/` (Open Inference Protocol)."""
    headers = {}
    body: dict[str, Any]
    oip = path == "/v2" or path.startswith("/v2/")
    if oip and status == 422:
        status = 400  # as that protocol has it
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if allow is not None:
        headers["Allow"] = allow
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if oip:
        body = {"error": message}
    elif path.startswith("/tasks/"):
        body = {"error": message, "error_type": _TEI_TYPES.get(status, "Backend")}
    else:
        body = {"error": {"code": code_of(status), "message": message, "request_id": request_id}}
    return reply(body, status, headers)
