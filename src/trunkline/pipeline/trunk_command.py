"""`trunkline trunk adapt|list|use`: the trunks of a project. Reads arguments and prints, decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from trunkline.console import err, out, print_json, project_of
from trunkline.errors import EncoderError, UsageError
from trunkline.options import AsJson
from trunkline.tables import cells, table

if TYPE_CHECKING:
    from trunkline.pipeline.project import Change

app = typer.Typer(help="Adapt the trunk to the tasks, list trunks, and move the project to one.", no_args_is_help=True)


@app.command()
def adapt(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new trunk: it is written to trunks/NAME.")],
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this task out (repeatable), as to see what tasks added later gain.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the encoder on the tasks together, as [adapt] in project.toml says, and freeze it as a new trunk."""
    from trunkline.pipeline.progress import Terminal

    project = project_of(context)
    with Terminal(err) as show:
        trunk = project.trunks.adapt(name, without=without or (), show=show)
    if as_json:
        return print_json(trunk.model_dump(mode="json"))
    made = table("task", "> valid")
    for task, value in sorted(trunk.valid.items()):
        made.add_row(task, f"{value:.4f}")
    out.print(made)
    out.print(f"\ntrunk {name}, fingerprint {trunk.fingerprint[:16]}; next: trunkline trunk use {name}", markup=False)


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """The trunks that were adapted here; the one that project.toml names is marked, and what is live if it is not."""
    from trunkline.pipeline.adapted import depth_of

    project = project_of(context)
    trunks = project.trunks.all()
    encoder = project.files.settings.encoder
    fingerprint, missing = None, ""
    try:
        fingerprint = project.source.fingerprint
    except EncoderError as error:
        missing = str(error)  # the more reason to see what there is
    live = project.trunks.live()
    if as_json:
        found = [
            {
                **trunk.model_dump(),
                "depth": depth_of(project.root, trunk),
                "in_use": trunk.fingerprint == fingerprint,
                "live": trunk.fingerprint == live,
            }
            for trunk in trunks
        ]
        return print_json({"encoder": encoder, "fingerprint": fingerprint, "live_fingerprint": live, "trunks": found})
    made = table("", "trunk", "> layers", "fingerprint", "adapted from", "tasks", "> mean valid")
    if all(trunk.fingerprint != fingerprint for trunk in trunks):
        depth = project.source.depth if fingerprint is not None else ""
        made.add_row(*cells("*", encoder, depth, (fingerprint or "missing")[:16], "", "", ""))
    if missing:
        err.print(missing, markup=False, soft_wrap=True)
    for trunk in trunks:
        mark = "*" if trunk.fingerprint == fingerprint else ""
        mean = sum(trunk.valid.values()) / len(trunk.valid)
        depth, tasks = depth_of(project.root, trunk) or "", ", ".join(trunk.tasks)
        made.add_row(*cells(mark, trunk.name, depth, trunk.fingerprint[:16], trunk.base, tasks, f"{mean:.4f}"))
    out.print(made)
    if live not in (None, fingerprint):
        name = next((trunk.name for trunk in trunks if trunk.fingerprint == live), "another one")
        moves = f"the next run moves it to {encoder}, which project.toml names"
        out.print(f"\nThe live release stands on {name}; {moves}.", markup=False, soft_wrap=True)
    return None


@app.command()
def use(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A trunk of `trunk list`, or any encoder that project.toml could name.")],
    revision: Annotated[
        str | None, typer.Option(help="Of an encoder from the hub; by default the one that was adapted.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Release without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every task over another trunk, show what changes, and release all of them or none."""
    from trunkline.pipeline.progress import Terminal

    project = project_of(context)
    if not yes and not sys.stdin.isatty():
        raise UsageError("`trunk use` asks before it releases; where nobody can answer, say --yes")
    seen: list[Change] = []
    with Terminal(err) as show:

        def agree(changes: Sequence[Change]) -> bool:
            seen.extend(changes)
            show.pause()
            err.print(_changes(changes))
            return yes or typer.confirm("release all tasks on this trunk?", err=True)

        result = project.trunks.use(name, agree, revision=revision, show=show)
    released = None if result is None or result.release is None else result.release.id
    if as_json:
        return print_json({"release": released, "changes": [asdict(change) for change in seen]})
    said = "nothing was released; all that was trained is kept" if released is None else f"release {released} is live"
    return out.print(f"\n{said}", markup=False)


def _changes(changes: Sequence[Change]) -> Table:
    """A row per task: its metric on valid, as it is live and as it would be."""
    made = table("task", "metric on valid", "> live", "> then", "> change")
    for change in changes:
        before, after = ("-" if value is None else f"{value:.4f}" for value in (change.before, change.after))
        moved = "-"
        if change.after is None:
            moved = "leaves the release: the project has it no more"
        elif change.before is not None:
            moved = f"{change.after - change.before:+.4f}"
        made.add_row(*cells(change.task, change.metric, before, after, moved))
    return made
