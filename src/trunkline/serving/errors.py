"""Why a request is refused, each kind with its HTTP status.

    Refusal              an answer other than 200; `retry_after` says in how many seconds to try again
    ├── Unauthorised      401   no key, or a wrong one
    ├── NotFound          404   no such task or model; names those that there are
    ├── TooLarge          413   above a limit, which is named
    ├── Invalid           422   what is wrong, and what is allowed
    ├── Overloaded        429   too much waits
    ├── Unavailable       503   no worker, draining, or the task is unloaded
    └── DeadlineExceeded  504   not answered in time

Knows no HTTP beyond the numbers: a wire turns a refusal into its own shape. Messages never hold a text that was sent.
"""

from __future__ import annotations


class Refusal(Exception):
    """Base of every refusal; `message` is for the client, `retry_after` is in seconds, None where waiting is no use."""

    status = 500

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class Unauthorised(Refusal):
    """The key is missing or wrong."""

    status = 401


class NotFound(Refusal):
    """A task or model that does not exist."""

    status = 404


class TooLarge(Refusal):
    """A request that is above a limit and would never fit."""

    status = 413


class Invalid(Refusal):
    """A request that makes no sense, or a bundle that cannot be served."""

    status = 422


class Overloaded(Refusal):
    """More work than the queue holds, or than is done before it is too late."""

    status = 429


class Unavailable(Refusal):
    """Nobody is there to answer, for now."""

    status = 503


class DeadlineExceeded(Refusal):
    """The deadline passed before the answer was there."""

    status = 504
