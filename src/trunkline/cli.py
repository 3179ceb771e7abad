"""The command line. Reads arguments, calls the library, prints; decides nothing itself.

stdout carries the answer of a command (tables, or JSON with --json), stderr how it is going. Exit codes: 0 done, 1 it
failed, 2 the input is wrong (see errors.py), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trunkline.bench.command import bench
from trunkline.engine.choose import DTYPES
from trunkline.errors import TrunklineError, UsageError
from trunkline.pipeline.quantize_command import as_data, as_table, measured, quantize
from trunkline.pipeline.trunk_command import app as trunk_app
from trunkline.serving.command import serve
from trunkline.serving.release_command import deploy, hint

app = typer.Typer(
    help="Train each text task on its own; serve all of them in one pass of a shared, frozen BERT trunk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
task_app = typer.Typer(help="Add, remove or show a task.", no_args_is_help=True)
release_app = typer.Typer(help="List, show, compare, deploy and roll back releases.", no_args_is_help=True)
app.add_typer(task_app, name="task")
app.add_typer(release_app, name="release")
app.add_typer(trunk_app, name="trunk")
app.command()(serve)
app.command()(bench)
app.command()(quantize)
release_app.command()(deploy)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ROOT = {"folder": Path()}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Tasks = Annotated[list[str] | None, typer.Argument(help="Only these tasks; all by default.", show_default=False)]


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


@app.callback(invoke_without_command=False)
def options(
    project: Annotated[Path, typer.Option("--project", "-C", help="The project's folder.")] = Path(),
) -> None:
    """Options of every command."""
    ROOT["folder"] = project


def _project() -> Any:
    from trunkline.pipeline.project import Project

    return Project.load(ROOT["folder"])


def _released() -> Any:
    """The project for commands that need only its releases: a task file with an error does not stop them."""
    from trunkline.pipeline.project import Project

    folder = ROOT["folder"]
    return Project(folder) if (folder / "project.toml").is_file() else Project.load(folder)  # says what is missing


def _live() -> Path:
    """The bundle of the live release."""
    project = _released()
    folder: Path = project.releases.folder(project.released())
    return folder


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _table(*columns: str) -> Table:
    """A table without lines. ">name" is a column of numbers, "name…" one that is cut where it does not fit."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        number, cut = column.startswith(">"), column.endswith("…")
        table.add_column(
            column.strip(">…"),
            justify="right" if number else "left",
            no_wrap=number or cut or column == "task",
            overflow="ellipsis" if cut else "fold",
        )
    return table


def _cells(*values: object) -> tuple[Text, ...]:
    """Cells as they stand: a name such as "[b]" is no markup."""
    return tuple(Text(str(value)) for value in values)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _when(created: str) -> str:
    """2026-05-01T09:30:00+00:00 as 2026-05-01 09:30, which is UTC."""
    return created[:16].replace("T", " ")


@app.command()
def init(
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

    folder = ROOT["folder"] / name
    table = _table("file", "what")
    table.show_header = False
    for path, what in new_project(folder, source, text, text_pair):
        table.add_row(*_cells(path, what))
    out.print(table)
    out.print(f"\nnext: trunkline -C {folder} check", markup=False)


@app.command()
def check(as_json: AsJson = False) -> None:
    """Read every file and every row of data, and report all problems at once."""
    from trunkline.pipeline.project import check as checked

    found = checked(ROOT["folder"])  # not Project.load(…).check(): all problems at once, of files and of data
    if as_json:
        return _json(found)
    table = _table("task", "kind…", "> train", "> valid", "> reported", "labels…")
    notes = _table("task", "note")
    for name, task in found.items():
        rows = task["rows"]
        reported = ", ".join(f"{count:,} {split}" for split, count in rows.items() if split not in ("train", "valid"))
        labels = f"{len(task['labels'])}: {', '.join(task['labels'])}" if task["labels"] else "-"
        table.add_row(*_cells(name, task["kind"], f"{rows['train']:,}", f"{rows['valid']:,}", reported, labels))
        for number, note in enumerate(task["notes"]):
            notes.add_row(*_cells("" if number else name, note))
    out.print(table)
    if notes.row_count:
        out.print()
        out.print(notes)


@app.command()
def plan(tasks: Tasks = None, as_json: AsJson = False) -> None:
    """Say what `run` would do, and why."""
    found = _project().plan(tasks)
    if as_json:
        steps = [{"stage": s.stage.id, "kind": s.stage.kind, "why": s.why, "resumes": s.resumes} for s in found.steps]
        return _json({"steps": steps, "done": found.done, "merges": found.merges, "removed": found.removed})
    table = _table("stage", "why")
    for step in found.steps:
        table.add_row(*_cells(step.stage.id, step.why + ("; resumes" if step.resumes else "")))
    if found.steps:
        out.print(table)
        out.print()
    for task in found.removed:
        out.print(f"{task}: its file is gone; the next release is made without it", markup=False)
    if not found.merges:
        return out.print("nothing to do: the live release is what the files say")
    todo = f"{_count(len(found.steps), 'stage')} to run, {found.done} done" if found.steps else "every stage is done"
    out.print(f"{todo}; then select, merge, prove and release")


@app.command()
def run(
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

    project = _project()
    if not (tasks or reselect or remeasure or project.plan().merges) and project.report_file.exists():
        live = project.releases.live()
        if as_json:
            return _json({"release": live.id, "ran": 0})
        return out.print(f"nothing to do: release {live.id} is what the files say", markup=False)
    with Terminal(err) as show:
        result = project.run(tasks, reselect=reselect, remeasure=remeasure, show=show)
    if as_json:
        return _json({"release": result.release and result.release.id, "ran": result.ran, "report": result.report})
    if result.report:
        print_report(result.report, out)
        out.print(f"\nrelease {result.release.id} is live; report: {project.root / PAGE}", markup=False, soft_wrap=True)
        if (told := hint(project.releases, ROOT["folder"])) is not None:
            out.print(told, markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    tasks: Tasks = None,
    release: Annotated[str | None, typer.Option(help="A release; the live one by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the merged model on the splits that no choice has seen."""
    found = _project().evaluate(tasks, release=release)
    if as_json:
        return _json(found)
    table = _table("task", "split", "metrics")
    for task, splits in found.items():
        for split, metrics in splits.items():
            table.add_row(*_cells(task, split, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())))
    out.print(table)


@app.command()
def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; else --file, else one per line on stdin.", show_default=False)
    ] = None,
    pair: Annotated[str | None, typer.Option(help="The second text of a pair, for a single text.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="jsonl, csv, tsv or parquet with text (and text_pair).")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="Column with the text in --file, or key on stdin.")] = "text",
    text_pair: Annotated[
        str, typer.Option("--text-pair", help="Column or key with the second text of a pair.")
    ] = "text_pair",
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="Only this task (repeatable).")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's folder; the project's live release by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Inputs computed at once.")] = 32,
    engine: Annotated[
        str | None,
        typer.Option(
            help="torch (the reference, and the default), openvino (faster, once it has started) or auto.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"One of {', '.join(DTYPES)}; int8 where the bundle was quantized.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Answer every task for a text, a file, or the lines of stdin (jsonl out)."""
    from trunkline.bundle import Bundle
    from trunkline.predicting import answers_of, read_inputs, stream

    if texts and file is not None:
        raise UsageError("give texts or --file, not both")
    if pair is not None and (not texts or len(texts) != 1):
        raise UsageError("--pair goes with a single text; for more pairs use --file, or JSON objects on stdin")
    lines = None if texts else read_inputs(file, sys.stdin, text, text_pair)
    model = Bundle.load(bundle if bundle is not None else _live(), engine=engine, dtype=dtype)
    if lines is None:
        inputs = [{"text": given, "text_pair": pair} for given in texts or ()]
        answers = model.predict(inputs, task)
        if as_json:
            return _json([{**item, "answers": answers_of(a)} for item, a in zip(inputs, answers, strict=True)])
        for number, (item, answer) in enumerate(zip(inputs, answers, strict=True)):
            if number:
                out.print()
            _show_answers(item, answers_of(answer))
        return None
    if file is None and sys.stdin.isatty():
        err.print("one text per line; Ctrl-D ends")
    count, seconds = stream(model, lines, task, batch_size, sys.stdout)
    speed = f"{count / max(seconds, 1e-9):,.0f} per second, " if count else ""
    err.print(f"{_count(count, 'input')}, {speed}{_count(len(set(task or model.tasks)), 'task')} each")
    return None


def _show_answers(item: dict[str, Any], answers: dict[str, dict[str, Any]]) -> None:
    out.print(Text(item["text"] + (f"  |  {item['text_pair']}" if item["text_pair"] else ""), style="bold"))
    table = _table("task", "answer", "> score")
    table.show_header = False
    for task, answer in answers.items():
        table.add_row(*_cells(f"  {task}", *_shown(answer)))
    out.print(table)


def _shown(answer: dict[str, Any]) -> tuple[str, str]:
    if "error" in answer:
        return f"({answer['error']})", ""
    if "spans" in answer:
        return ", ".join(f"{span['label']}: {span['text']}" for span in answer["spans"]) or "no spans", ""
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "no label", ""
    if "label" in answer:
        return str(answer["label"]), f"{answer['score']:.3f}"
    return f"{answer['score']:.3f}", ""


@task_app.command("add")
def task_add(
    name: Annotated[str, typer.Argument(help="Name of the new task.")],
    kind: Annotated[str, typer.Option(help="classification, multilabel, regression, tagging or relevance.")],
    train: Annotated[str, typer.Option(help="Its training data, as seen from the project's folder.")],
    text: Annotated[str | None, typer.Option(help="Column with the text (tagging: with its words).")] = None,
    text_pair: Annotated[str | None, typer.Option("--text-pair", help="Column with the second text of a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with what is to be learned.")] = None,
) -> None:
    """Write tasks/NAME.toml."""
    from trunkline.project.scaffold import add_task

    path = add_task(ROOT["folder"], name, kind, train, text, label, text_pair)
    out.print(f"wrote {path}", markup=False, soft_wrap=True)


@task_app.command("remove")
def task_remove(name: Annotated[str, typer.Argument(help="Name of the task.")]) -> None:
    """Delete tasks/NAME.toml; the next run releases without it. Data and past releases stay."""
    from trunkline.project.scaffold import remove_task

    path = remove_task(ROOT["folder"], name)
    out.print(f"removed {path}; `trunkline run` releases without it", markup=False, soft_wrap=True)


@task_app.command("show")
def task_show(name: Annotated[str, typer.Argument(help="Name of the task.")], as_json: AsJson = False) -> None:
    """Show a task's settings, defaults included, and what is live of it."""
    project = _project()
    settings = project.task(name)
    live = project.releases.live()
    value = {"task": name, "settings": settings.model_dump(mode="json"), "live": live.tasks.get(name) if live else None}
    if as_json:
        return _json(value)
    table = _table("key", "value", "")
    chosen = dict(_flat(settings.model_dump(mode="json", exclude_unset=True)))
    for key, entry in _flat(settings.model_dump(mode="json")):
        if entry is not None:
            shown = json.dumps(entry, ensure_ascii=False)
            table.add_row(*_cells(key, shown, "" if key in chosen else "default"))
    out.print(table)
    branch = f"release {live.id}, branch {value['live'][:16]}" if live and value["live"] else "not released yet"
    out.print(f"\n{branch}", markup=False)


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as ("tune.layers", [2, 3])."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


@release_app.command("list")
def release_list(as_json: AsJson = False) -> None:
    """All releases, the live one marked."""
    releases = _released().releases
    live = releases.live()
    if as_json:
        return _json([{**release.model_dump(), "live": release == live} for release in releases.list()])
    if live is None:
        return out.print("no release yet: trunkline run")
    table = _table("", "id", "created (UTC)", "> tasks", "new in it")
    for release in releases.list():
        mark = "*" if release == live else ""
        table.add_row(*_cells(mark, release.id, _when(release.created), len(release.tasks), release.note))
    out.print(table)


@release_app.command("show")
def release_show(
    id: Annotated[str | None, typer.Argument(help="The live one by default.")] = None, as_json: AsJson = False
) -> None:
    """One release: its bundle, and each task's branch."""
    project = _released()
    release = project.released(id)
    int8 = measured(project.releases.folder(release))
    if as_json:
        return _json({**release.model_dump(), "int8": as_data(int8)})
    out.print(
        f"{release.id}  {_when(release.created)} UTC  {project.releases.folder(release)}", markup=False, soft_wrap=True
    )
    out.print(f"new in it: {release.note}\n", markup=False)
    table = _table("task", "branch")
    for task, sha in release.tasks.items():
        table.add_row(*_cells(task, sha[:16]))
    out.print(table)
    if int8 is not None:
        out.print()
        out.print(as_table(int8))


@release_app.command("rollback")
def release_rollback(
    id: Annotated[str | None, typer.Argument(help="By default the one before the live one.")] = None,
) -> None:
    """Make an earlier release live again."""
    project = _released()
    release = project.rollback(id)
    out.print(f"release {release.id} is live", markup=False)
    if (told := hint(project.releases, ROOT["folder"])) is not None:
        out.print(told, markup=False, soft_wrap=True)


@release_app.command("diff")
def release_diff(
    old: Annotated[str, typer.Argument(help="A release.")],
    new: Annotated[str, typer.Argument(help="A later one.")],
    as_json: AsJson = False,
) -> None:
    """Which tasks changed between two releases."""
    difference = _released().releases.diff(old, new)
    if as_json:
        return _json(difference.model_dump())
    for name, tasks in difference.model_dump().items():
        out.print(f"{name:<8} {', '.join(tasks) or '-'}", markup=False)


@app.command()
def report(as_json: AsJson = False) -> None:
    """Print the last run's report; the page is report.html in the project's folder."""
    from trunkline.report import print_report

    project = _released()
    data = project.report()
    if as_json:
        return _json(data)
    print_report(data, out)
    out.print(f"\n{project.write_page(data)}", markup=False, soft_wrap=True)


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="Releases to keep besides the live one.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free what neither the task files nor a kept release need."""
    freed = _project().gc(keep=keep, dry=dry_run)
    total = sum(item.size for item in freed)
    if as_json:
        return _json({"freed": [{"path": str(i.path), "what": i.what, "bytes": i.size} for i in freed], "bytes": total})
    table = _table("what", "> count", "> MB")
    for what in sorted({item.what for item in freed}):
        items = [item for item in freed if item.what == what]
        table.add_row(*_cells(what, len(items), f"{sum(item.size for item in items) / 1e6:,.1f}"))
    if freed:
        out.print(table)
    out.print(f"{'would free' if dry_run else 'freed'} {total / 1e6:,.1f} MB")


def _int8(int8: Any) -> str:
    """A line per task; "quantize" measures those that are missing."""
    return "\n".join(f"{task}: {found.quality}" for task, found in sorted(int8.tasks.items()))


@app.command()
def info(as_json: AsJson = False) -> None:
    """The machine, the encoder, the tasks and the live release."""
    from trunkline import __version__
    from trunkline.machine import machine

    project = _project()
    live = project.releases.live()
    int8 = measured(project.releases.folder(live)) if live else None
    source = project.source
    value = {
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
        return _json(value)
    size = value["machine"]
    kinds = [f"{name} ({kind})" for name, kind in value["tasks"].items()]
    table = _table("", "")
    table.show_header = False
    for key, shown in {
        "trunkline": f"{__version__}, torch {size['torch']}",
        "machine": f"{size['cpu']}, {_count(size['cores'], 'core')}",
        "project": project.root.resolve(),
        "encoder": f"{source.name}: {source.family}, {source.depth} layers, width {source.width}",
        "": f"fingerprint {source.fingerprint[:16]}",
        "tasks": ", ".join(kinds),
        "live": f"{live.id} of {_when(live.created)} UTC" if live else "no release yet",
        "int8": "not measured: trunkline quantize" if int8 is None else _int8(int8),
        "store": f"{value['store_bytes'] / 1e6:,.1f} MB",
    }.items():
        table.add_row(*_cells(key, shown))
    out.print(table)


if __name__ == "__main__":
    main()
