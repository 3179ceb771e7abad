"""`trunkline task add|remove|show`: the tasks of a project. Reads arguments and prints, decides nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from trunkline.console import out, print_json, project_of, root_of
from trunkline.options import AsJson
from trunkline.tables import cells, table

app = typer.Typer(help="Add, remove or show a task.", no_args_is_help=True)


@app.command("add")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new task.")],
    kind: Annotated[str, typer.Option(help="classification, multilabel, regression, tagging or relevance.")],
    train: Annotated[str, typer.Option(help="Its training data, as seen from the project's folder.")],
    text: Annotated[str | None, typer.Option(help="Column with the text (tagging: with its words).")] = None,
    text_pair: Annotated[str | None, typer.Option("--text-pair", help="Column with the second text of a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with what is to be learned.")] = None,
) -> None:
    """Write tasks/NAME.toml."""
    from trunkline.project.scaffold import add_task

    path = add_task(root_of(context), name, kind, train, text, label, text_pair)
    out.print(f"wrote {path}", markup=False, soft_wrap=True)


@app.command("remove")
def remove(context: typer.Context, name: Annotated[str, typer.Argument(help="Name of the task.")]) -> None:
    """Delete tasks/NAME.toml; the next run releases without it. Data and past releases stay."""
    from trunkline.project.scaffold import remove_task

    path = remove_task(root_of(context), name)
    out.print(f"removed {path}; `trunkline run` releases without it", markup=False, soft_wrap=True)


@app.command("show")
def show(
    context: typer.Context, name: Annotated[str, typer.Argument(help="Name of the task.")], as_json: AsJson = False
) -> None:
    """Show a task's settings, defaults included, and what is live of it."""
    project = project_of(context)
    settings = project.task(name)
    live = project.releases.live()
    released = live.tasks.get(name) if live else None
    value: dict[str, Any] = {"task": name, "settings": settings.model_dump(mode="json"), "live": released}
    if as_json:
        return print_json(value)
    made = table("key", "value", "")
    chosen = dict(_flat(settings.model_dump(mode="json", exclude_unset=True)))
    for key, entry in _flat(settings.model_dump(mode="json")):
        if entry is not None:
            shown = json.dumps(entry, ensure_ascii=False)
            made.add_row(*cells(key, shown, "" if key in chosen else "default"))
    out.print(made)
    branch = f"release {live.id}, branch {value['live'][:16]}" if live and value["live"] else "not released yet"
    out.print(f"\n{branch}", markup=False)


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as ("tune.layers", [2, 3])."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
