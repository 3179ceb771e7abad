"""docs/levers.md from the figures of `levers.py`: `python benchmarks/levers_page.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, RESULTS, page_writer, run_time

RESULT = RESULTS / "levers.json"
BASE = "as it is"
Rows = Sequence[dict[str, Any]]


def made(found: dict[str, Any], _: Path) -> str:
    """The page, which has no plot."""
    lines = [
        "# Levers: what each does for a cheap branch",
        "",
        f"Written by `{found['command']}`; every run is in `benchmarks/results/levers.json`.",
        f"Machine: {words_of(found['machine'])}. At most",
        f"{found['train_rows']:,} train rows and 5 epochs: figures compare within this page only.",
        *run_time([row.get("seconds") for rows in found["trunks"].values() for row in rows]),
        "",
        "The branch as it is: one layer over [CLS] at fork 4, trained on the labels. Each row changes one thing about",
        "it. Figures are the change on `valid` against the branch as it is, the mean over seeds with the lowest and",
        "the highest; the last column is the mean change on the reported split over all tasks, which no choice saw.",
        "",
    ]
    for trunk, rows in found["trunks"].items():
        lines += [f"## Over the trunk as {trunk}", "", *_table(rows), ""]
    return "\n".join(lines[:-1]) + "\n"


def _table(rows: Rows) -> list[str]:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    base = {(row["task"], row["seed"]): row for row in rows if row["lever"] == BASE}
    columns = ["lever", *tasks, "mean on valid", "mean on the reported split"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    start = [statistics.mean(row["valid"] for row in base.values() if row["task"] == task) for task in tasks]
    dev = statistics.mean(row["dev"] for row in base.values())
    lines.append(f"| {BASE} | {' | '.join(f'{v:.3f}' for v in start)} | {statistics.mean(start):.3f} | {dev:.3f} |")
    for lever in dict.fromkeys(row["lever"] for row in rows if row["lever"] != BASE):
        mine = [row for row in rows if row["lever"] == lever]
        changes = {
            task: [row["valid"] - base[task, row["seed"]]["valid"] for row in mine if row["task"] == task]
            for task in tasks
        }
        cells = [_spread(changes[task]) if changes[task] else "-" for task in tasks]
        reported = statistics.mean(row["dev"] - base[row["task"], row["seed"]]["dev"] for row in mine)
        mean = statistics.mean(statistics.mean(change) for change in changes.values() if change)
        lines.append(f"| {lever} | {' | '.join(cells)} | {mean:+.3f} | {reported:+.3f} |")
    return lines


def _spread(changes: Sequence[float]) -> str:
    return f"{statistics.mean(changes):+.3f} ({min(changes):+.3f} to {max(changes):+.3f})"


write_page = page_writer(RESULT, DOCS / "levers.md", made)

if __name__ == "__main__":
    write_page(RESULT)
