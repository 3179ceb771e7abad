"""What commands have in common: which project is meant, JSON, and tables without lines. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from trunkline.pipeline.project import Project

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def root_of(context: typer.Context) -> Path:
    """The project's folder, as `--project` says."""
    found: Path = context.find_root().params.get("project", Path())
    return found


def project_of(context: typer.Context) -> Project:
    """The project. Raises ProjectError with every problem of every file."""
    from trunkline.pipeline.project import Project

    return Project.load(root_of(context))


def released_of(context: typer.Context) -> Project:
    """The project for commands that need only its releases: a task file with an error does not stop them."""
    from trunkline.pipeline.project import Project

    folder = root_of(context)
    return Project(folder) if (folder / "project.toml").is_file() else Project.load(folder)  # says what is missing


def print_json(value: Any) -> None:
    """The answer of a command, for scripts."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


class _Table(Table):
    """Where it does not fit, columns that may be cut give way, each row on one line. Numbers are never cut: one without
    its last digits is another number.
    """

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:
        super().add_row(*cells, **style)
        for column, cell in zip(self.columns, cells, strict=False):
            if column.justify == "right":
                column.min_width = max(column.min_width or cell_len(str(column.header)), cell_len(str(cell)))
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


def cells(*values: object) -> tuple[Text, ...]:
    """Cells as they stand: a name such as "[b]" is no markup."""
    return tuple(Text(str(value)) for value in values)


def count(number: int, noun: str) -> str:
    """ "1 task", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def when(created: str) -> str:
    """2026-05-01T09:30:00+00:00 as 2026-05-01 09:30, which is UTC."""
    return created[:16].replace("T", " ")
