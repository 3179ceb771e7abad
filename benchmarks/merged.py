"""One merged model against separate full models on real data: `python benchmarks/merged.py DATA_FOLDER --work FOLDER`.

Writes the project of examples/glue into FOLDER and runs it: the whole grid on the first seed, where the selection is
made; then what was selected, and full fine-tuning, once more for every other seed. Choices are made on `valid`; figures
are those of the reported split (`dev` of GLUE, `test` of SNIPS). A killed run goes on where it was. Result:
benchmarks/results/merged.json.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trunkline.atomic import write_json
from trunkline.pipeline.costs import machine
from trunkline.pipeline.progress import Terminal
from trunkline.pipeline.project import Project

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "merged.json"
PAGE = HERE.parent / "docs" / "merged.md"
TASKS = "cola,mrpc,rte,stsb,sst2"


def main() -> None:
    """Run all seeds and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/ and utterance/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--rows", type=int, default=10_000, help="most training rows of a task")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--grid", nargs=argparse.REMAINDER, default=[], help="passed on to examples/glue/prepare.py")
    options = parser.parse_args()
    reports = []
    for position, seed in enumerate(options.seeds):
        prepare(options, seed)
        if position:
            narrow(options.work, reports[0])
        with Terminal(Console(stderr=True)) as show:
            reports.append(Project.load(options.work).run(show=show, reselect=True).report)
        found = result(reports, options)
        write_json(options.out, found)
        options.page.write_text(page(found), encoding="utf-8")
    print(options.out, options.page)


def prepare(options: argparse.Namespace, seed: int) -> None:
    """Write the project's files for a seed; its store stays."""
    script = HERE.parent / "examples" / "glue" / "prepare.py"
    arguments = [str(options.data.resolve()), "--out", str(options.work), "--tasks", TASKS, "--snips", "--replace"]
    subprocess.run(
        [sys.executable, str(script), *arguments, "--rows", str(options.rows), "--seed", str(seed), *options.grid],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def narrow(work: Path, report: dict[str, Any]) -> None:
    """Leave of every task's grid only what was selected."""
    for name, task in report["tasks"].items():
        picked = task["chosen"]
        _, kind, reading, size, *_ = picked["id"].split("/")
        tuned, _, own = size.partition("-l")
        path = work / "tasks" / f"{name}.toml"
        text = path.read_text()
        text = re.sub(r"(\[tune\]\nlayers = ).*", rf"\g<1>[{tuned.removeprefix('L')}]", text)
        text = re.sub(r"(\[distill\]\nlayers = ).*", rf"\g<1>[{own if kind == 'distill' else ''}]", text)
        text = re.sub(r"^pair = .*", f'pair = ["{reading}"]', text, flags=re.MULTILINE)
        path.write_text(text)


def result(reports: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The result file's object: figures per seed, and their summary."""
    tasks = {}
    for name, first in reports[0]["tasks"].items():
        metric = first["metric"]
        mine = [report["tasks"][name] for report in reports]
        tasks[name] = {
            "metric": metric,
            "split": first["reported"],
            "rows": first["rows"],
            "full": [task["baseline"]["metrics"][metric] for task in mine],
            "merged": [task["chosen"]["metrics"][metric] for task in mine],
            "fork": first["chosen"]["fork"],
            "layers": first["chosen"]["layers"],
            "pair": None if first["chosen"]["reading"] == "single" else first["chosen"]["reading"],
            "stage": first["chosen"]["id"].split("/")[1],
            # First seed only: every candidate, with the reported split as well, which no choice has seen.
            "candidates": [
                {key: c[key] for key in ("id", "fork", "layers", "reading", "valid", "reported", "ms")}
                for c in first["candidates"]
            ],
        }
    grid = ["--grid", *options.grid] if options.grid else []
    full = [statistics.mean(task["full"][i] for task in tasks.values()) for i in range(len(reports))]
    merged = [statistics.mean(task["merged"][i] for task in tasks.values()) for i in range(len(reports))]
    return {
        "command": " ".join(
            ["python benchmarks/merged.py DATA_FOLDER --work FOLDER --seeds", *map(str, options.seeds), *grid]
        ),
        "machine": machine(),
        "seeds": options.seeds[: len(reports)],
        "cost": reports[0]["cost"],
        "tasks": tasks,
        "paper_rule": reports[0]["paper_rule"],
        "summary": {
            "full": full,
            "merged": merged,
            "relative_quality": statistics.mean(merged) / statistics.mean(full),
            "relative_time": statistics.median(report["merged"]["relative_time"] for report in reports),
            "relative_layers": statistics.median(report["merged"]["relative_layers"] for report in reports),
        },
    }


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
