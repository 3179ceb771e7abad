"""The command line. Reads arguments, calls the library, prints; decides nothing itself.

stdout carries the answer of a command (tables, or JSON with --json), stderr how it is going. Exit codes: 0 done, 1 it
failed, 2 the input is wrong (see errors.py), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trunkline.bench.command import bench
from trunkline.console import count, err, out, print_json, project_of, released_of, root_of, when
from trunkline.errors import TrunklineError
from trunkline.options import AsJson, Tasks
from trunkline.pipeline.predict_command import predict
from trunkline.pipeline.quantize_command import as_data, measured, quantize
from trunkline.pipeline.release_command import app as release_app
from trunkline.pipeline.task_command import app as task_app
from trunkline.pipeline.teach_command import teach
from trunkline.pipeline.trunk_command import app as trunk_app
from trunkline.serving.command import serve
from trunkline.serving.release_command import hint
from trunkline.tables import cells, table

app = typer.Typer(
    help="Train each text task on its own; serve all of them in one pass of a shared, frozen BERT trunk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(task_app, name="task")
app.add_typer(release_app, name="release")
app.add_typer(trunk_app, name="trunk")
app.command()(serve)
app.command()(bench)
app.command()(quantize)
app.command()(teach)
app.command()(predict)


def main() -> None:
    """Entry point: every error that Trunkline raises on purpose becomes one message and an exit code."""
    try:
        app(standalone_mode=False)
    except TrunklineError as error:
        err.print(f"trunkline: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted; the same command goes on from here")
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has enough; what Python still holds back for stdout must not fail on its way out.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        err.print(f"trunkline: {error}", markup=False, soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        # click's own usage errors carry their exit code and know how to show themselves
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


def _say_version(asked: bool) -> None:
    if asked:
        from trunkline import __version__

        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=False)
def options(
    project: Annotated[
        Path, typer.Option("--project", "-C", help="The project's folder; stands before the command.")
    ] = Path(),
    _: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say it and end.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def init(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Folder of the new project.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A table (csv, tsv, jsonl, parquet) to make tasks from.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Its column with the text.")] = None,
    text_pair: Annotated[
        str | None, typer.Option("--text-pair", help="Its column with the second text of a pair.")
    ] = None,
) -> None:
    """Start a project; with --from, one task per label column of a table."""
    from trunkline.project.scaffold import new_project

    folder = root_of(context, new=True) / name
    made = table("file", "what")
    made.show_header = False
    for path, what in new_project(folder, source, text, text_pair):
        made.add_row(*cells(path, what))
    out.print(made)
    out.print(f"\nnext: trunkline -C {folder} check", markup=False)


@app.command()
def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Read every file and every row of data, and report all problems at once."""
    from trunkline.pipeline.checking import check as checked

    found = checked(root_of(context))  # not Project.load(…).check(): all problems at once, of files and of data
    if as_json:
        return print_json(found)
    made = table("task", "kind…", "> train", "> valid", "> reported", "labels…")
    notes = table("task", "note")
    for name, task in found.items():
        rows = task["rows"]
        reported = ", ".join(f"{count:,} {split}" for split, count in rows.items() if split not in ("train", "valid"))
        labels = f"{len(task['labels'])}: {', '.join(task['labels'])}" if task["labels"] else "-"
        made.add_row(*cells(name, task["kind"], f"{rows['train']:,}", f"{rows['valid']:,}", reported, labels))
        for number, note in enumerate(task["notes"]):
            notes.add_row(*cells("" if number else name, note))
    out.print(made)
    if notes.row_count:
        out.print()
        out.print(notes)


@app.command()
def plan(context: typer.Context, tasks: Tasks = None, as_json: AsJson = False) -> None:
    """Say what `run` would do, and why."""
    found = project_of(context).plan(tasks)
    if as_json:
        steps = [{"stage": s.stage.id, "kind": s.stage.kind, "why": s.why, "resumes": s.resumes} for s in found.steps]
        return print_json(
            {
                "steps": steps,
                "done": found.done,
                "exits": found.exits,
                "scope": found.scope,
                "merges": found.merges,
                "removed": found.removed,
            }
        )
    made = table("stage", "why")
    for step in found.steps:
        made.add_row(*cells(step.stage.id, step.why + ("; resumes" if step.resumes else "")))
    if found.steps:
        out.print(made)
        out.print()
    for task in found.removed:
        out.print(f"{task}: its file is gone; the next release is made without it", markup=False)
    if not found.merges:
        return out.print("nothing to do: the live release is what the files say")
    todo = f"{count(len(found.steps), 'stage')} to run, {found.done} done" if found.steps else "every stage is done"
    scope = f"scope of the chosen branch ({', '.join(found.scope)}), " if found.scope else ""
    exits = f"exits of the chosen branch ({', '.join(found.exits)}), " if found.exits else ""
    out.print(f"{todo}; then select, {scope}{exits}merge, prove and release", markup=False)


@app.command()
def run(
    context: typer.Context,
    tasks: Tasks = None,
    reselect: Annotated[
        bool, typer.Option(help="Choose anew for all tasks; by default released tasks keep their branch.")
    ] = False,
    remeasure: Annotated[
        bool,
        typer.Option(
            help="Measure costs again, where they were measured while the machine was busy; another processor, number "
            "of threads or version of torch is noticed without. Released tasks move only with --reselect."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train what is not trained yet, select, merge, prove, release, report."""
    from trunkline.pipeline.progress import Terminal
    from trunkline.pipeline.project import PAGE
    from trunkline.report import print_report

    project = project_of(context)
    live = project.releases.live()
    if live and not (tasks or reselect or remeasure or project.plan().merges) and project.report_file.exists():
        if as_json:
            return print_json({"release": live.id, "ran": 0})
        return out.print(f"nothing to do: release {live.id} is what the files say", markup=False)
    with Terminal(err) as show:
        result = project.run(tasks, reselect=reselect, remeasure=remeasure, show=show)
    if as_json:
        return print_json({"release": result.release and result.release.id, "ran": result.ran, "report": result.report})
    if result.release and result.report:
        print_report(result.report, out)
        out.print(f"\nrelease {result.release.id} is live; report: {project.root / PAGE}", markup=False, soft_wrap=True)
        if (told := hint(project.releases, root_of(context))) is not None:
            out.print(told, markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    context: typer.Context,
    tasks: Tasks = None,
    release: Annotated[str | None, typer.Option(help="A release; the live one by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the merged model on the splits that no choice has seen."""
    found = project_of(context).evaluate(tasks, release=release)
    if as_json:
        return print_json(found)
    made = table("task", "split", "metrics")
    for task, splits in found.items():
        for split, metrics in splits.items():
            made.add_row(*cells(task, split, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())))
    out.print(made)


@app.command()
def report(context: typer.Context, as_json: AsJson = False) -> None:
    """Print the last run's report; the page is report.html in the project's folder."""
    from trunkline.report import print_report

    project = released_of(context)
    data = project.report()
    if as_json:
        return print_json(data)
    print_report(data, out)
    out.print(f"\n{project.write_page(data)}", markup=False, soft_wrap=True)


@app.command()
def gc(
    context: typer.Context,
    keep: Annotated[int, typer.Option(min=1, help="Releases to keep besides the live one.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free what neither the task files nor a kept release need."""
    freed = project_of(context).gc(keep=keep, dry=dry_run)
    total = sum(item.size for item in freed)
    if as_json:
        return print_json(
            {"freed": [{"path": str(i.path), "what": i.what, "bytes": i.size} for i in freed], "bytes": total}
        )
    made = table("what", "> count", "> MB")
    for what in sorted({item.what for item in freed}):
        items = [item for item in freed if item.what == what]
        made.add_row(*cells(what, len(items), f"{sum(item.size for item in items) / 1e6:,.1f}"))
    if freed:
        out.print(made)
    out.print(f"{'would free' if dry_run else 'freed'} {total / 1e6:,.1f} MB")


def _int8(int8: Any) -> str:
    """A line per task; "quantize" measures those that are missing."""
    return "\n".join(f"{task}: {found.quality}" for task, found in sorted(int8.tasks.items()))


@app.command()
def info(context: typer.Context, as_json: AsJson = False) -> None:
    """The machine, the encoder, the tasks and the live release."""
    from trunkline import __version__
    from trunkline.machine import machine

    project = project_of(context)
    live = project.releases.live()
    int8 = measured(project.releases.folder(live)) if live else None
    source = project.source
    value: dict[str, Any] = {
        "trunkline": __version__,
        "machine": machine(),
        "project": str(project.root),
        "encoder": {
            "name": source.name,
            "family": source.family,
            "depth": source.depth,
            "width": source.width,
            "fingerprint": source.fingerprint,
        },
        "tasks": {name: settings.kind.value for name, settings in project.files.tasks.items()},
        "live": live.id if live else None,
        "int8": as_data(int8),
        "store_bytes": project.store.size(),
    }
    if as_json:
        return print_json(value)
    size = value["machine"]
    kinds = [f"{name} ({kind})" for name, kind in value["tasks"].items()]
    made = table("", "")
    made.show_header = False
    for key, shown in {
        "trunkline": f"{__version__}, torch {size['torch']}",
        "machine": f"{size['cpu']}, {count(size['cores'], 'core')}",
        "project": project.root.resolve(),
        "encoder": f"{source.name}: {source.family}, {source.depth} layers, width {source.width}",
        "": f"fingerprint {source.fingerprint[:16]}",
        "tasks": ", ".join(kinds),
        "live": f"{live.id} of {when(live.created)} UTC" if live else "no release yet",
        "int8": "not measured: trunkline quantize" if int8 is None else _int8(int8),
        "store": f"{value['store_bytes'] / 1e6:,.1f} MB",
    }.items():
        made.add_row(*cells(key, shown))
    out.print(made)


if __name__ == "__main__":
    main()
