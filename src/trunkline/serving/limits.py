"""What a server takes on, and how long it waits: every setting of serving with its default.

Rows are inputs, counted once however many tasks are asked of them. Tokens are estimated before a text is tokenised, one
to four bytes of ASCII or three of other text, and at most as many as the tasks asked for read.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Time = Annotated[float, Field(gt=0)]


class Limits(BaseModel):
    """Limits of one server; times are in seconds unless the name says milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    connections: Count = 1000
    """Connections that are served at a time; one more is told so."""
    head_seconds: Time = 10.0
    """How long the head of a request may take to arrive, or a connection to be silent before its first."""
    body_seconds: Time = 30.0
    """How long a request's body may take to arrive."""
    reply_seconds: Time = 30.0
    """How long a client may take to read a reply, or what waits for it of several."""
    body_bytes: Count = 8 * 1024 * 1024
    """Bytes of a request's body, unpacked."""
    items: Count = 1024
    """Inputs in one request."""
    characters: Count = 100_000
    """Characters in one text."""
    queue_rows: Count = 4096
    """Rows that may wait."""
    queue_tokens: Count = 262_144
    """Tokens that may wait."""
    deadline_ms: Time = 30_000.0
    """Milliseconds that a request has unless it says so."""
    max_deadline_ms: Time = 300_000.0
    """Milliseconds that a request can ask for; more counts as this."""
    batch_rows: Count = 64
    """Rows that the worker gets at once."""
    batch_tokens: Count = 2048
    """Tokens that the worker gets at once."""
    batch_age_ms: Time = 200.0
    """Milliseconds after which a row is no longer passed over for rows of a better length."""
    ready_seconds: Time = 15.0
    """How recent the last forward pass must be for the server to be ready."""
    worker_timeout: Time = 60.0
    """How long the worker may be silent with work before it, until it is killed."""
    start_timeout: Time = 300.0
    """How long loading a bundle may take."""
    drain_seconds: Time = 20.0
    """How long queued work may take after draining begins."""
    floor: Annotated[float, Field(ge=0, le=1)] | None = None
    """The fraction of a task's quality that is kept while load raises speeds; None: speeds are those asked for."""

    def ample(self, rows: int, tokens: int) -> bool:
        """Whether this makes half of a batch: enough for the engine to work well."""
        return 2 * rows >= self.batch_rows or 2 * tokens >= self.batch_tokens
