"""What can go wrong between a client and a server.

    ClientError         exit code 1   (a TrunklineError)
    ├── ServerError     the server answered, and refused: status, code, message, request id
    ├── Unreachable     nothing came back in time: no connection, a dropped one, or silence
    └── BadReply        something came back that is not an answer of Trunkline's native wire

This module knows no HTTP library.
"""

from __future__ import annotations

from trunkline.errors import TrunklineError


class ClientError(TrunklineError):
    """Base of what a client raises once a request is under way."""


class ServerError(ClientError):
    """The server refused: HTTP `status`, the server's `code` ("invalid", "overloaded", …; "" from a proxy), `message`.

    `request_id` finds the request in the server's logs, None where the reply has none; `retry_after` is in seconds,
    None where the server names no time.
    """

    def __init__(
        self, status: int, code: str, message: str, request_id: str | None, retry_after: float | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after = retry_after
        named = f" (request {request_id})" if request_id else ""
        super().__init__(f"{status} {code}: {message}{named}" if code else f"{status}: {message}{named}")


class Unreachable(ClientError):
    """The server could not be reached, dropped the connection, or was silent for too long."""


class BadReply(ClientError):
    """The reply cannot be read: not JSON, or not of the shape that the native wire has."""
