"""What OpenAPI says: how routes tell it what they take and give, as bodies of JSON are read and built by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MEANINGS = {
    200: "The answer.",
    401: "A key is needed, or another one.",
    404: "There is no such thing; the message names those that there are.",
    408: "The body did not arrive in time.",
    413: "Above a limit, which the message names.",
    415: "The body is not JSON, or packed in a way that is not read.",
    422: "The message says what is wrong, and what is allowed.",
    429: "Too much waits; `Retry-After` says in how many seconds to try again.",
    500: "The server failed; its log says more.",
    503: "Nobody can answer now; `Retry-After` says in how many seconds to try again.",
    504: "The deadline passed.",
}


class ErrorDetail(BaseModel):
    """What went wrong; `code` is for programs, `message` for people."""

    model_config = ConfigDict(extra="forbid")

    code: str
    message: str
    request_id: str


class ErrorResponse(BaseModel):
    """Every error of the native wire."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail


class TaskErrorResponse(BaseModel):
    """Every error of the TEI-shaped wire."""

    model_config = ConfigDict(extra="forbid")

    error: str
    error_type: str = Field(examples=["Validation"])


def responses(given: Any, error: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses`: what comes with 200, and the errors."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": given, "description": MEANINGS[200]}}
    for status in statuses:
        found[status] = {"model": error, "description": MEANINGS[status]}
    return found


def takes(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """FastAPI's `openapi_extra` for a body of JSON. The model must not refer to others."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's schema of the app, less the errors that it invents, with the key that calls may need."""
    for path in schema["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    known = schema["components"]
    known["schemas"] = {name: of for name, of in known["schemas"].items() if not name.endswith("ValidationError")}
    known["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{}, {"key": []}]
    return schema
