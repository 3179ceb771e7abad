"""How long `plan` and `check` take in a project of 20 tasks, each a process of its own. Prints JSON.

    python benchmarks/plan_check.py

The project is written to a temporary folder: 20 tasks of four kinds, each with its own file of 2,000 rows, on the
packaged encoder. The first `plan`, which hashes data and encoder, is given beside the median of those that follow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASKS = 20
ROWS = 2000
RUNS = 5
ASKED = {"plan": 1.0, "check": 5.0}
WORDS = ["alarm", "book", "city", "cold", "day", "find", "good", "music", "night", "order", "play", "rain", "song"]


def main() -> None:
    """Write the project, time the commands, print what was found."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_project(root)
        first = seconds(root, "plan")
        found = {command: [seconds(root, command) for _ in range(RUNS)] for command in ASKED}
    result = {
        "command": "python benchmarks/plan_check.py",
        "tasks": TASKS,
        "rows_per_task": ROWS,
        "runs": RUNS,
        "cores": os.cpu_count(),
        "first_plan_s": round(first, 3),
        "median_s": {command: round(statistics.median(times), 3) for command, times in found.items()},
        "slowest_s": {command: round(max(times), 3) for command, times in found.items()},
        "asked_s": ASKED,
    }
    print(json.dumps(result, indent=2))


def write_project(root: Path) -> None:
    """20 tasks: classification, regression, tagging and pairs in turn."""
    (root / "tasks").mkdir()
    (root / "data").mkdir()
    (root / "project.toml").write_text('name = "twenty"\n', encoding="utf-8")
    for task in range(TASKS):
        kind = ("classification", "regression", "tagging", "relevance")[task % 4]
        lines = (json.dumps(row(kind, task, number)) for number in range(ROWS))
        (root / "data" / f"t{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = f'kind = "{kind}"\ndata.train = "data/t{task}.jsonl"\n'
        (root / "tasks" / f"t{task:02}.toml").write_text(content, encoding="utf-8")


def row(kind: str, task: int, number: int) -> dict[str, Any]:
    """One row; no two of a task have the same text."""
    words = [WORDS[(number * step + task) % len(WORDS)] for step in range(1, 13)] + [str(number)]
    if kind == "tagging":
        return {"tokens": words, "tags": ["B-city" if word == "city" else "O" for word in words]}
    text = " ".join(words)
    if kind == "relevance":
        return {"text": text, "text_pair": " ".join(reversed(words)), "label": number % 2, "group": number // 10}
    return {"text": text, "score": number / 7} if kind == "regression" else {"text": text, "label": f"c{number % 9}"}


def seconds(root: Path, command: str) -> float:
    """Wall-clock time of one call, from the start of its process to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trunkline", "-C", str(root), command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
