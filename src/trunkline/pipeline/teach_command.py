"""`trunkline teach`: a teacher asked about shards of texts. Reads arguments and prints, decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.console import count, err, out, print_json, root_of
from trunkline.options import AsJson, Processes, Ray, ShardRows, Threads
from trunkline.pipeline.shards import SHARD_ROWS, Job

if TYPE_CHECKING:
    from trunkline.pipeline.scoring import Work


def teach(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="The task whose labels the teacher is asked for.")],
    sources: Annotated[
        list[str],
        typer.Argument(help="jsonl, csv, tsv or parquet with text (and text_pair): files, folders, patterns."),
    ],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder of the shards; made anew, or that of the same command before.")
    ],
    teacher: Annotated[
        str,
        typer.Option(help='A model as distill.teachers names it, or "release": the live release of the task itself.'),
    ] = "release",
    shard_rows: ShardRows = SHARD_ROWS,
    processes: Processes = None,
    threads: Threads = 1,
    ray: Ray = None,
    text: Annotated[str, typer.Option("--text", help="Column with the text.")] = "text",
    text_pair: Annotated[str, typer.Option("--text-pair", help="Column with the second text of a pair.")] = "text_pair",
    id: Annotated[str, typer.Option("--id", help="Column with an id of the row.")] = "id",
    as_json: AsJson = False,
) -> None:
    """Ask a teacher about any number of texts; its answers are soft labels, in shards. Goes on after a kill."""
    from trunkline.engine.inputs import Columns
    from trunkline.pipeline.crew import usual_processes
    from trunkline.pipeline.progress import Terminal
    from trunkline.pipeline.project import Project
    from trunkline.pipeline.shards import cut
    from trunkline.pipeline.teach import teacher_work

    project = Project.load(root_of(context).resolve())  # other machines have another current folder
    with Terminal(err) as show:
        work = teacher_work(project, task, teacher, threads=threads, show=show)
    columns = Columns(text, text_pair, id)
    job = cut(out_folder, sources, work.fields, shard_rows=shard_rows, columns=columns, pairs=work.pairs)
    wanted = processes or usual_processes(threads, work.question.device)
    summary = make(f"teach {task}", job, work, processes=wanted, ray=ray)
    if as_json:
        return print_json(summary)
    return tell(summary)


def make(name: str, job: Job, work: Work, *, processes: int, ray: str | None) -> dict[str, Any]:
    """Make what is missing of a job, showing how far it is, and say what there is."""
    from trunkline.pipeline.crew import make_all
    from trunkline.pipeline.progress import ShardTerminal
    from trunkline.pipeline.scoring import ASKED, FAULTS, READ

    with job.begun(lambda line: err.print(line, markup=False, soft_wrap=True)):
        missing = [shard.rows for shard in job.missing()]
        with ShardTerminal(err, name, len(job.shards), job.rows, missing) as show:
            if ray is None:
                make_all(job, work, processes, show)
            else:
                from trunkline.cluster.ray_data import make_on_ray

                make_on_ray(job, work, ray, show)
        counts = job.counts()
    return {
        "out": str(job.folder),
        "shards": len(job.shards),
        "made": show.shards_made,
        "rows": counts["rows"],
        "faults": counts.get(FAULTS, 0),
        "rows_per_second": None if show.rate is None else round(show.rate, 1),
        "known_texts": 1 - counts[READ] / counts[ASKED] if counts.get(ASKED) else None,
    }


def tell(summary: dict[str, Any]) -> None:
    """What `make` said, for people."""
    rate = "" if summary["rows_per_second"] is None else f", {summary['rows_per_second']:,.0f} rows per second"
    known = "" if summary["known_texts"] is None else f", {summary['known_texts']:.1%} of the texts known before"
    made = f"{count(summary['made'], 'shard')} made, {summary['shards'] - summary['made']} by others or before"
    out.print(f"{count(summary['rows'], 'row')} in {summary['out']}: {made}{rate}{known}", markup=False, soft_wrap=True)
    if summary["faults"]:
        out.print(f"{count(summary['faults'], 'row')} could not be answered; their `error` says why", markup=False)
