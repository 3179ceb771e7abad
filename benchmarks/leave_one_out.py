"""What adapting the trunk does to a task that it never saw: `python benchmarks/leave_one_out.py DATA --work FOLDER`.

Adapts the trunk to all eight GLUE tasks, and to all but one, eight times; then trains the cheapest branch of each task
(one layer over [CLS]) over the trunk as published, over the one that never saw it, and over the one that saw it. Rows
and epochs are capped, so that figures compare with each other only.

Result: benchmarks/results/leave_one_out.json, docs/leave-one-out.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from cells import Bench, Cell, adapted, figures, over, run_all, shortened
from command_line import words_of
from data_projects import with_values, write_project
from pages import DOCS, RESULTS, page_writer, run_time
from rich.console import Console

from trunkline.atomic import write_json
from trunkline.machine import machine
from trunkline.pipeline.progress import Terminal
from trunkline.pipeline.project import Project
from trunkline.project.stage_settings import AdaptSettings

RESULT = RESULTS / "leave_one_out.json"
TASKS = ("cola", "sst2", "mrpc", "rte", "stsb", "qnli", "qqp", "mnli")
PAIRS = TASKS[2:]
SEEDS = (13, 14, 15)
FORKS = (5,)
ROWS = 2_000
ADAPT = AdaptSettings(epochs=2.0, patience=9)
ALL = "all"
"""Name of the trunk that saw every task."""
SIDES = ("published", "without it", "with it")


@dataclass(frozen=True)
class Trial:
    """A branch of a task over one of the trunks of `SIDES`."""

    side: str
    task: str
    fork: int
    seed: int


def main() -> None:
    """Adapt and train what is not there yet, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="some of the tasks")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--page", type=Path, help="page, instead of docs/leave-one-out.md or beside the result")
    options = parser.parse_args()
    grid = ["--rows", str(ROWS), "--pair", "joint", "--distill", "--tune", "1", "2"]
    write_project(options.data, options.work, options.tasks, *grid)
    project = shortened(Project.load(options.work), {})
    settings = with_values(project.files.settings, adapt=ADAPT)
    project = project.over(replace(project.files, settings=settings))
    adapt_all(project)
    held: dict[str, Bench] = {}

    def bench_of(trial: Trial) -> Bench:
        trunk = {"published": None, "with it": ALL, "without it": f"without-{trial.task}"}[trial.side]
        if list(held) != [trunk or ""]:
            held.clear()
            held[trunk or ""] = Bench(over(project, trunk), options.work)
        return held[trunk or ""]

    def run(trial: Trial) -> dict[str, Any]:
        bench = bench_of(trial)
        reading = "joint" if trial.task in PAIRS else None
        trained = bench.train(Cell(trial.task, trial.fork, 1, reading, "trunk", "cls", trial.seed))
        return figures(bench.material(trial.task), trained)

    def about(trial: Trial) -> dict[str, Any]:
        return bench_of(trial).about(trial.task)

    trials = [Trial(*each) for each in product(SIDES, options.tasks, FORKS, SEEDS)]
    rows = run_all(trials, options.work / "trials.jsonl", run, lambda line: print(line, flush=True), about)
    found = {
        "command": "python benchmarks/leave_one_out.py DATA_FOLDER --work FOLDER",
        "machine": machine(),
        "train_rows": ROWS,
        "adapt": ADAPT.model_dump(mode="json"),
        "adapt_seconds": {trunk.name: trunk.seconds for trunk in project.trunks.all()},
        "trials": rows,
    }
    write_json(options.out, found)
    page_writer(RESULT, DOCS / "leave-one-out.md", lambda found, _: text(found))(options.out, options.page)


def adapt_all(project: Project) -> None:
    """The trunk that saw all tasks, and for each task one that did not see it."""
    with Terminal(Console(stderr=True)) as show:
        for name, without in [(ALL, []), *((f"without-{task}", [task]) for task in project.tasks)]:
            adapted(project, name, without, show)


def text(found: dict[str, Any]) -> str:
    """The page."""
    rows = found["trials"]
    lines = [
        "# Adapting the trunk, one task left out",
        "",
        f"Written by `{found['command']}`; every run is in `benchmarks/results/leave_one_out.json`.",
        f"Machine: {words_of(found['machine'])}. At most",
        f"{found['train_rows']:,} train rows a task and {found['adapt']['epochs']:g} epochs of adaptation: figures",
        "compare within this page only.",
        *run_time([*found["adapt_seconds"].values(), *(row.get("seconds") for row in rows)]),
        "",
        "One layer over [CLS], trained on the labels. The trunk as published; adapted to the other tasks, so that",
        "it never saw this one nor a text that it is judged on; adapted to all eight. Three seeds of the branch, mean",
        "(lowest to highest), on `valid`; the reported split, which no choice has seen, is in the second table.",
    ]
    for key, title in (("valid", "On valid"), ("dev", "On the reported split")):
        lines += ["", f"## {title}", "", "| task | fork | published | never saw it | saw it |", "|---|---|---|---|---|"]
        gains: dict[str, list[float]] = {side: [] for side in SIDES}
        for task, fork in dict.fromkeys((row["task"], row["fork"]) for row in rows):
            mine = [row for row in rows if (row["task"], row["fork"]) == (task, fork)]
            by = {side: [row[key] for row in mine if row["side"] == side] for side in SIDES}
            for side in SIDES:
                gains[side].append(statistics.mean(by[side]))
            lines.append(f"| {task} | {fork} | {' | '.join(_spread(by[side]) for side in SIDES)} |")
        lines.append(f"| **mean** | | {' | '.join(f'{statistics.mean(gains[side]):.3f}' for side in SIDES)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
