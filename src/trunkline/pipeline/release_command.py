"""`trunkline release list|show|diff|rollback`: the releases of a project. Reads arguments and prints, decides nothing.

`release deploy` speaks with servers and is theirs (serving/release_command.py).
"""

from __future__ import annotations

from typing import Annotated

import typer

from trunkline.console import out, print_json, released_of, root_of, when
from trunkline.options import AsJson, Release
from trunkline.pipeline.quantize_command import as_data, as_table, measured
from trunkline.serving.release_command import deploy, hint
from trunkline.tables import cells, table

app = typer.Typer(help="List, show, compare, deploy and roll back releases.", no_args_is_help=True)
app.command()(deploy)


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """All releases, the live one marked."""
    releases = released_of(context).releases
    live = releases.live()
    if as_json:
        return print_json([{**release.model_dump(), "live": release == live} for release in releases.list()])
    if live is None:
        return out.print("no release yet: trunkline run")
    made = table("", "id", "created (UTC)", "> tasks", "new in it")
    for release in releases.list():
        mark = "*" if release == live else ""
        made.add_row(*cells(mark, release.id, when(release.created), len(release.tasks), release.note))
    out.print(made)


@app.command("show")
def show(context: typer.Context, id: Release = None, as_json: AsJson = False) -> None:
    """One release: its bundle, and each task's branch."""
    project = released_of(context)
    release = project.released(id)
    int8 = measured(project.releases.folder(release))
    if as_json:
        return print_json({**release.model_dump(), "int8": as_data(int8)})
    out.print(
        f"{release.id}  {when(release.created)} UTC  {project.releases.folder(release)}", markup=False, soft_wrap=True
    )
    out.print(f"new in it: {release.note}\n", markup=False)
    made = table("task", "branch")
    for task, sha in release.tasks.items():
        made.add_row(*cells(task, sha[:16]))
    out.print(made)
    if int8 is not None:
        out.print()
        out.print(as_table(int8))


@app.command("rollback")
def rollback(
    context: typer.Context,
    id: Annotated[str | None, typer.Argument(help="By default the one before the live one.")] = None,
) -> None:
    """Make an earlier release live again."""
    project = released_of(context)
    release = project.rollback(id)
    out.print(f"release {release.id} is live", markup=False)
    if (told := hint(project.releases, root_of(context))) is not None:
        out.print(told, markup=False, soft_wrap=True)


@app.command("diff")
def diff(
    context: typer.Context,
    old: Annotated[str, typer.Argument(help="A release.")],
    new: Annotated[str, typer.Argument(help="A later one.")],
    as_json: AsJson = False,
) -> None:
    """Which tasks changed between two releases."""
    difference = released_of(context).releases.diff(old, new)
    if as_json:
        return print_json(difference.model_dump())
    for name, tasks in difference.model_dump().items():
        out.print(f"{name:<8} {', '.join(tasks) or '-'}", markup=False)
