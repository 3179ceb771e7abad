"""Structured logs: one JSON object a line on stderr.

What a request said never gets here: no texts, no keys, no bodies, and of an unexpected exception its type and the lines
of code that it passed, not its message, which may quote a text.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

LOG = logging.getLogger("trunkline.serving")


def log(level: int, name: str, **fields: Any) -> None:
    """Log one thing that happened; `fields` are JSON values."""
    LOG.log(level, name, extra={"fields": fields})


def failure(name: str, error: BaseException, **fields: Any) -> None:
    """Log an exception that nobody expected."""
    log(logging.ERROR, name, **fields, **_described(error))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Write all logs of this process as JSON lines, from this level on ("debug", "info", "warning", "error")."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event, and its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        if record.name != LOG.name:
            line["logger"] = record.name
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= _described(record.exc_info[1])
        return json.dumps(line)


def _described(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "trace": [f"{f.filename}:{f.lineno} {f.name}" for f in frames]}
