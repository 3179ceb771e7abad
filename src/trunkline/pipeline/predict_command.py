"""`trunkline predict`: texts, a file, or the lines of stdin answered by a merged model, or files of any size in shards.
Reads arguments and prints, decides nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from trunkline.console import count, err, out, print_json, released_of
from trunkline.errors import UsageError
from trunkline.options import (
    AsJson,
    Dtype,
    Keep,
    OnlyTasks,
    Processes,
    Ray,
    ShardRows,
    Speed,
    Threads,
    UsualEngine,
    dial_of,
)
from trunkline.pipeline.shards import SHARD_ROWS
from trunkline.pipeline.teach_command import make, tell
from trunkline.tables import cells, table

if TYPE_CHECKING:
    from trunkline.bundle.loaded import Bundle
    from trunkline.project.speed import DialValue


def predict(
    context: typer.Context,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; else --file, else one per line on stdin.", show_default=False)
    ] = None,
    pair: Annotated[str | None, typer.Option(help="The second text of a pair, for a single text.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            help="jsonl, csv, tsv or parquet with text (and text_pair); with --out repeatable, a folder or a pattern.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str, typer.Option("--text", help="Column with the text in --file, or key on stdin.")] = "text",
    text_pair: Annotated[
        str, typer.Option("--text-pair", help="Column or key with the second text of a pair.")
    ] = "text_pair",
    task: OnlyTasks = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's folder; the live release of the project by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Inputs computed at once.")] = 32,
    engine: UsualEngine = None,
    dtype: Dtype = "auto",
    speed: Speed = None,
    keep: Keep = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write shards of answers (parquet) of files of any size to this folder; goes on after a kill.",
            show_default=False,
        ),
    ] = None,
    shard_rows: ShardRows = SHARD_ROWS,
    processes: Processes = None,
    threads: Threads = 1,
    cache_mb: Annotated[
        int, typer.Option(min=0, help="With --out: memory of each process for states of known texts of pairs.")
    ] = 256,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Answer every task for a text, a file, or the lines of stdin (jsonl out); with --out, for files of any size."""
    from trunkline.bundle import Bundle
    from trunkline.engine.inputs import Columns, read_inputs
    from trunkline.pipeline.crew import usual_processes
    from trunkline.pipeline.scoring import PredictWork
    from trunkline.pipeline.shards import begun_work, cut
    from trunkline.predicting import answers_of, stream

    if texts and file:
        raise UsageError("give texts or --file, not both")
    if pair is not None and (not texts or len(texts) != 1):
        raise UsageError("--pair goes with a single text; for more pairs use --file, or JSON objects on stdin")
    dial = dial_of(speed, keep)
    if out_folder is not None:
        if not file:
            raise UsageError("--out takes its rows from --file")
        folder = (bundle if bundle is not None else _live(context)).resolve()
        if dtype == "auto":  # what a measurement chose when the job was begun; another may choose otherwise
            dtype = begun_work(out_folder).get("dtype", dtype)
        model = Bundle.load(folder, engine=engine, dtype=dtype, tasks=task)
        _tell_speeds(model, task, dial)
        made, choice, cache = (folder, model.id, model.tasks), model.loader.choice, cache_mb << 20
        dialled = dial.get("speed"), dial.get("keep")
        work = PredictWork(*made, choice.engine, choice.dtype, *dialled, batch_size, cache, threads, choice.device)
        pairs = all(spec.reading != "single" for spec in model.specs.values())
        del model  # each process loads its own
        job = cut(out_folder, file, work.fields, shard_rows=shard_rows, columns=Columns(text, text_pair), pairs=pairs)
        wanted = processes or usual_processes(threads, choice.device)
        summary = make("predict", job, work, processes=wanted, ray=ray)
        return print_json(summary) if as_json else tell(summary)
    if file and len(file) > 1:
        raise UsageError("several files take --out")
    lines = None if texts else read_inputs(Path(file[0]) if file else None, sys.stdin, text, text_pair)
    model = Bundle.load(bundle if bundle is not None else _live(context), engine=engine, dtype=dtype)
    _tell_speeds(model, task, dial)
    if lines is None:
        inputs = [{"text": given, "text_pair": pair} for given in texts or ()]
        answers = model.predict(inputs, task, speed=dial.get("speed"), keep=dial.get("keep"))
        if as_json:
            return print_json([{**item, "answers": answers_of(a)} for item, a in zip(inputs, answers, strict=True)])
        for number, (item, answer) in enumerate(zip(inputs, answers, strict=True)):
            if number:
                out.print()
            _show_answers(item, answers_of(answer))
        return None
    if not file and sys.stdin.isatty():
        err.print("one text per line; Ctrl-D ends")
    number, seconds = stream(model, lines, task, batch_size, sys.stdout, **dial)
    rate = f"{number / max(seconds, 1e-9):,.0f} per second, " if number else ""
    err.print(f"{count(number, 'input')}, {rate}{count(len(set(task or model.tasks)), 'task')} each")
    return None


def _tell_speeds(model: Bundle, tasks: list[str] | None, dial: dict[str, DialValue]) -> None:
    """What a keep stands for differs by task, and a task without exits has no speed: said once, before the answers."""
    if dial:
        told = ", ".join(f"{task} {speed:g}" for task, speed in model.speeds(tasks, **dial).items())
        err.print(f"speed: {told}", markup=False, soft_wrap=True)


def _show_answers(item: dict[str, Any], answers: dict[str, dict[str, Any]]) -> None:
    out.print(Text(item["text"] + (f"  |  {item['text_pair']}" if item["text_pair"] else ""), style="bold"))
    beside = [name for name in ("exit_layer", "out_of_scope") if any(name in one for one in answers.values())]
    made = table("task", "answer", "> score", *beside)
    made.show_header = False
    for task, answer in answers.items():
        made.add_row(*cells(f"  {task}", *_shown(answer), *(_beside(name, answer) for name in beside)))
    out.print(made)


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


def _beside(name: str, answer: dict[str, Any]) -> str:
    if name == "exit_layer":
        return f"layer {answer[name]}" if name in answer else ""
    return "out of scope" if answer.get(name) else ""


def _live(context: typer.Context) -> Path:
    """The bundle of the live release."""
    project = released_of(context)
    folder: Path = project.releases.folder(project.released())
    return folder
