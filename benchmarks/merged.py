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
from trunkline.pipeline.assemble import machine
from trunkline.pipeline.progress import Terminal
from trunkline.pipeline.project import Project

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "merged.json"
TASKS = "cola,mrpc,rte,stsb,sst2"


def main() -> None:
    """Run all seeds and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/ and utterance/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--rows", type=int, default=10_000, help="most training rows of a task")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    reports = []
    for position, seed in enumerate(options.seeds):
        prepare(options, seed)
        if position:
            narrow(options.work, reports[0])
        with Terminal(Console(stderr=True)) as show:
            reports.append(Project.load(options.work).run(show=show, reselect=True).report)
        write_json(options.out, result(reports, options))
    print(options.out)


def prepare(options: argparse.Namespace, seed: int) -> None:
    """Write the project's files for a seed; its store stays."""
    script = HERE.parent / "examples" / "glue" / "prepare.py"
    arguments = [str(options.data.resolve()), "--out", str(options.work), "--tasks", TASKS, "--snips", "--replace"]
    subprocess.run(
        [sys.executable, str(script), *arguments, "--rows", str(options.rows), "--seed", str(seed)],
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
    full = [statistics.mean(task["full"][i] for task in tasks.values()) for i in range(len(reports))]
    merged = [statistics.mean(task["merged"][i] for task in tasks.values()) for i in range(len(reports))]
    return {
        "command": "python benchmarks/merged.py DATA_FOLDER --work FOLDER --seeds " + " ".join(map(str, options.seeds)),
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


if __name__ == "__main__":
    main()
