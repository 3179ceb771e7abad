"""Single values of a report's data, as typed ones: what is missing or cannot be becomes None, or empty.

This module knows nothing about what the values mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def mapping(value: Any) -> Mapping[str, Any]:
    """A table, empty where there is none."""
    return value if isinstance(value, Mapping) else {}


def text(value: Any) -> str:
    """A string without control characters (a note may quote a user's data); empty for None."""
    return "" if value is None else "".join(c for c in str(value) if c.isprintable() or c == " ")


def texts(value: Any) -> dict[str, str]:
    """A table of strings, those that are missing left out."""
    return {text(key): text(item) for key, item in mapping(value).items() if item is not None}


def number(value: Any) -> float | None:
    """A finite float, or None."""
    if value is None or isinstance(value, str):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def numbers(value: Any) -> dict[str, float | None]:
    """A table of numbers."""
    return {text(key): number(item) for key, item in mapping(value).items()}


def whole(value: Any) -> int | None:
    """A whole number, or None."""
    found = number(value)
    return None if found is None else int(found)
