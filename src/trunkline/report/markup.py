"""HTML pieces: escaping, tables and figures. The only place where a user's string becomes markup.

This module knows nothing about tasks or models.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def escape(text: object) -> str:
    """Any value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(text), quote=True)


@dataclass(frozen=True)
class Column:
    """A column's heading; figures are set flush right."""

    label: str
    figures: bool = False


@dataclass(frozen=True)
class Row:
    """One row. `cells` are markup (escaped by the caller); the first one is the row's heading."""

    cells: Sequence[str]
    css: str = ""


def table(caption: str, columns: Sequence[Column], rows: Iterable[Row], *, css: str = "") -> str:
    """A table with its caption (escaped text), inside a box that scrolls sideways on a narrow screen."""
    heads = "".join(f'<th scope="col"{_figures(column)}>{escape(column.label)}</th>' for column in columns)
    body = []
    for row in rows:
        first, *rest = row.cells
        cells = "".join(f"<td{_figures(column)}>{cell}</td>" for column, cell in zip(columns[1:], rest, strict=True))
        body.append(f'<tr class="{escape(row.css)}"><th scope="row"{_figures(columns[0])}>{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{caption}"><table class="{escape(css)}">'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def svg(name: str, title: str, description: str, width: float, height: float, body: str, *, css: str = "") -> str:
    """An inline drawing of width x height units with its title and description; `name` is unique on the page."""
    return (
        f'<svg class="{escape(css)}" role="img" aria-labelledby="{escape(name)}-title {escape(name)}-desc" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
        f'<title id="{escape(name)}-title">{escape(title)}</title>'
        f'<desc id="{escape(name)}-desc">{escape(description)}</desc>\n{body}\n</svg>'
    )


def _figures(column: Column) -> str:
    return ' class="figures"' if column.figures else ""
