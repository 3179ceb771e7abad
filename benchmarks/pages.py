"""What all pages of results have in common: where they stand, how they are written, and tables.

Knows where files go, and nothing of figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from trunkline.atomic import write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"


class WritePage(Protocol):
    """Writes the page of a result and its plot, and returns the page: beside the result, unless it is the committed
    one, or to `page`.
    """

    def __call__(self, result: Path, page: Path | None = None) -> Path: ...


def page_writer(committed: Path, place: Path, made: Callable[[dict[str, Any], Path], str]) -> WritePage:
    """What writes pages of results like the committed one, whose page is at `place`.

    `made` makes the page of what was found, and draws the plot, where it has one, at the path that it is given.
    """

    def write_page(result: Path, page: Path | None = None) -> Path:
        page = page or (place if result == committed else result.with_suffix(".md"))
        write_text(page, made(json.loads(result.read_text()), page.with_suffix(".svg")))
        return page

    return write_page


def run_time(seconds: Sequence[float | None]) -> list[str]:
    """How long training took, part after part, as a line of a page; none where that of any part is not known."""
    known = [one for one in seconds if one is not None]
    return [f"Training took {sum(known) / 3600:.1f} hours."] if known and len(known) == len(seconds) else []


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
