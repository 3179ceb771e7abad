"""What commands have in common: which project is meant, JSON, counts and times in words. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.pipeline.project import Project

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def root_of(context: typer.Context, *, new: bool = False) -> Path:
    """The project's folder, as `--project` says. Raises UsageError where there is none, unless it may be `new`."""
    found: Path = context.find_root().params.get("project", Path())
    if not new and not found.is_dir():
        raise UsageError(f"no such folder: {found} (named with -C; `trunkline init` makes one)")
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


def count(number: int, noun: str) -> str:
    """ "1 task", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def when(created: str) -> str:
    """2026-05-01T09:30:00+00:00 as 2026-05-01 09:30, which is UTC."""
    return created[:16].replace("T", " ")
