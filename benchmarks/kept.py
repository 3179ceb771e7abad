"""Result files that grow part by part, so that what was measured is kept when a run is killed, or goes on elsewhere.

Knows nothing of what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trunkline.atomic import write_json


def read_result(path: Path) -> dict[str, Any]:
    """What was measured so far."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def record(path: Path, change: Mapping[str, Any]) -> dict[str, Any]:
    """Put the keys of `change` into the result, and return all of it. `shapes` keeps the shapes that are not in it."""
    found = read_result(path)
    shapes = {**found.get("shapes", {}), **change.get("shapes", {})}
    found |= change
    if shapes:
        found["shapes"] = shapes
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def with_rows(path: Path, rows: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The rows of a result, with these in the place of those that have the same values of `names` as one of them."""

    def name(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in names)

    new = set(map(name, rows))
    return [row for row in read_result(path).get("rows", ()) if name(row) not in new] + list(rows)
