"""One merged model against separate full models on real data: `python benchmarks/merged.py DATA_FOLDER --work FOLDER`.

Writes the project of examples/glue into FOLDER and runs it: the whole grid on the first seed, where the selection is
made; then what was selected, and full fine-tuning, once more for every other seed. Choices are made on `valid`; figures
are those of the reported split (`dev` of GLUE, `test` of SNIPS). A killed run goes on where it was. `--more` adds
seeds to a result file, on another day if need be; a seed that it has is measured again. Result:
benchmarks/results/merged.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trunkline.atomic import write_json
from trunkline.machine import machine
from trunkline.pipeline.progress import Terminal
from trunkline.pipeline.project import Project

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "merged.json"
PAGE = HERE.parent / "docs" / "merged.md"
TASKS = "cola,mrpc,rte,stsb,sst2"
MAX_COST = 0.54
"""Half of the time is the goal. By its parts, a merged model costs more than it takes as a whole: 0.48 came to 0.43."""


def main() -> None:
    """Run all seeds and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/ and utterance/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--more", action="store_true", help="add the seeds to the result file that is there")
    parser.add_argument("--rows", type=int, default=10_000, help="most training rows of a task")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--grid", nargs=argparse.REMAINDER, default=[], help="passed on to examples/glue/prepare.py")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.more else {}
    for seed in options.seeds:
        prepare(options, seed)
        if found:
            narrow(options.work, found["tasks"])
        with Terminal(Console(stderr=True)) as show:
            again = seed in found.get("seeds", ())  # all but the times is in the store
            report = Project.load(options.work).run(show=show, reselect=True, remeasure=again).report
        found = extended(found or first(report, options), report, seed)
        write_json(options.out, found)
        options.page.write_text(page(found), encoding="utf-8")
    print(options.out, options.page)


def prepare(options: argparse.Namespace, seed: int) -> None:
    """Write the project's files for a seed; its store stays."""
    script = HERE.parent / "examples" / "glue" / "prepare.py"
    arguments = [str(options.data.resolve()), "--out", str(options.work), "--tasks", TASKS, "--snips", "--replace"]
    arguments += ["--max-cost", str(MAX_COST), "--engine", "torch"]
    subprocess.run(
        [sys.executable, str(script), *arguments, "--rows", str(options.rows), "--seed", str(seed), *options.grid],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def narrow(work: Path, tasks: dict[str, Any]) -> None:
    """Leave of every task's grid only what was selected: a student is cheaper than its teacher, and so is taken."""
    project = work / "project.toml"
    project.write_text(re.sub(r"max_cost = .*", "min_relative_quality = 0.01", project.read_text()))
    for name, task in tasks.items():
        path = work / "tasks" / f"{name}.toml"
        text = path.read_text()
        text = re.sub(r"(\[tune\]\nlayers = ).*", rf"\g<1>[{task['tuned']}]", text)
        own = task["layers"] if task["stage"] == "distill" else ""
        text = re.sub(r"(\[distill\]\nlayers = ).*", rf"\g<1>[{own}]", text)
        text = re.sub(r"^pair = .*", f'pair = ["{task["pair"]}"]', text, flags=re.MULTILINE)
        path.write_text(text)


def first(report: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The result file's object after the grid of the first seed, its figures still empty."""
    tasks = {}
    for name, task in report["tasks"].items():
        _, stage, reading, size, *_ = task["chosen"]["id"].split("/")
        tasks[name] = {
            "metric": task["metric"],
            "split": task["reported"],
            "rows": task["rows"],
            "full": [],
            "merged": [],
            "fork": task["chosen"]["fork"],
            "layers": task["chosen"]["layers"],
            "pair": None if reading == "single" else reading,
            "stage": stage,
            "tuned": int(size.partition("-")[0].removeprefix("L")),
            # First seed only: every candidate, with the reported split as well, which no choice has seen.
            "candidates": [
                {key: c[key] for key in ("id", "fork", "layers", "reading", "valid", "reported", "ms")}
                for c in task["candidates"]
            ],
        }
    grid = ["--grid", *options.grid] if options.grid else []
    return {
        "command": " ".join(["python benchmarks/merged.py DATA_FOLDER --work FOLDER", *grid]),
        "machine": machine(),
        "seeds": [],
        "cost": report["cost"],
        "tasks": tasks,
        "paper_rule": report["paper_rule"],
        "summary": {
            "full": [],
            "merged": [],
            "relative_times": [],
            "relative_layers": report["merged"]["relative_layers"],
        },
    }


def extended(found: dict[str, Any], report: dict[str, Any], seed: int) -> dict[str, Any]:
    """The object with the figures of one more seed, or with new ones of a seed that it has."""
    seeds, summary = found["seeds"], found["summary"]
    place = seeds.index(seed) if seed in seeds else len(seeds)

    def put(figures: list[Any], figure: Any) -> None:
        figures[place : place + 1] = [figure]

    put(seeds, seed)
    for side, part in (("full", "baseline"), ("merged", "chosen")):
        for name, task in found["tasks"].items():
            put(task[side], report["tasks"][name][part]["metrics"][task["metric"]])
        put(summary[side], statistics.mean(task[side][place] for task in found["tasks"].values()))
    put(summary["relative_times"], report["merged"]["relative_time"])
    summary["relative_quality"] = statistics.mean(summary["merged"]) / statistics.mean(summary["full"])
    summary["relative_time"] = statistics.median(summary["relative_times"])
    return found


def page(found: dict[str, Any]) -> str:
    """The docs page of a result."""
    summary, seeds = found["summary"], found["seeds"]
    machine, cost = found["machine"], found["cost"]
    lines = [
        "# One merged model against separate full models",
        "",
        f"Written by `{found['command']}` from real public data; the figures are in `benchmarks/results/merged.json`.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}.",
        f"Time: median, batch {cost['batch']} x {cost['tokens']} tokens a text, {cost['engine']}, {cost['dtype']};",
        f"both sides in one run, in turn. Seeds: {', '.join(map(str, seeds))}.",
        "",
        f"The merged model has **{summary['relative_quality']:.1%}** of the full models' average quality at",
        f"**{summary['relative_time']:.1%}** of their time, with {summary['relative_layers']:.1%} of their layers.",
        "",
        "## Merged",
        "",
        "Mean over seeds, lowest to highest behind it; chosen on `valid` at the first seed, scored on the named split.",
        "",
        "| task | metric (split) | full fine-tuning | merged | relative | branch | reading |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in found["tasks"].items():
        relative = statistics.mean(task["merged"]) / statistics.mean(task["full"])
        lines.append(
            f"| {name} | {task['metric']} ({task['split']}) | {_spread(task['full'])} | {_spread(task['merged'])} | "
            f"{relative:.1%} | fork {task['fork']} + {task['layers']}, {task['stage']} | {task['pair'] or 'single'} |"
        )
    lines += [
        "",
        "## Every candidate",
        "",
        f"Seed {seeds[0]}. `valid` is what the choice among candidates saw; the reported split took no part in it.",
        "",
        "| task | candidate | fork | own layers | reading | branch ms | valid | reported |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in found["tasks"].items():
        lines.append(f"| {name} | full fine-tuning | | | | | | {task['full'][0]:.3f} |")
        for c in task["candidates"]:
            recipe = c["id"].split("/", 1)[1].rsplit("/", 1)[0]
            lines.append(
                f"| {name} | {recipe} | {c['fork']} | {c['layers']} | {c['reading']} | {c['ms']:.0f} | "
                f"{c['valid']:.3f} | {c['reported']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
