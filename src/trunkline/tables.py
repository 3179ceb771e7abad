"""Tables in a terminal, with or without a title, that stay true where it is narrow. Knows nothing of what they show."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


class _Table(Table):
    """Where it does not fit, columns with the overflow "ellipsis" give way, each row on one line, and numbers are the
    last: one without its last digits is another number.
    """

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:
        super().add_row(*cells, **style)
        for column, cell in zip(self.columns, cells, strict=False):
            if column.justify == "right":
                head = max(map(cell_len, str(column.header).splitlines()), default=0)
                column.min_width = max(column.min_width or head, cell_len(str(cell)))
            elif column.overflow == "ellipsis" and isinstance(cell, Text):
                cell.no_wrap = True  # the cell, not its column: a table narrows columns that wrap before all others


def table(*columns: str) -> Table:
    """A table without lines. ">name" is a column of numbers, "name…" one that is cut where it does not fit."""
    made = _Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        number, cut = column.startswith(">"), column.endswith("…")
        made.add_column(
            column.strip(">… "),
            justify="right" if number else "left",
            no_wrap=number or column == "task",
            overflow="ellipsis" if cut else "fold",
        )
    return made


def titled(title: str) -> Table:
    """A table with a title and a line below its head, still without columns."""
    return _Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def cells(*values: object) -> tuple[Text, ...]:
    """Cells as they stand: a name such as "[b]" is no markup."""
    return tuple(Text(str(value)) for value in values)
