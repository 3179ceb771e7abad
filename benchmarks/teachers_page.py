"""docs/teachers-benchmark.md and its plot from what `teachers.py` found: `python benchmarks/teachers_page.py`.

Knows how figures read, and nothing of how they came about. The plot needs matplotlib.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, RESULTS, page_writer, table

from trunkline.bench import plot

RESULT = RESULTS / "teachers.json"
NAMES = {
    "ensemble": "all teachers together",
    "student_plain": "student, no teacher",
    "student_one": "student of {}",
    "student_mean": "student of all, mean",
    "student_heads": "student of all, heads",
    "student_heads_two_stage": "student of all, heads, two stages",
}
HEAD = ("task", "metric", "model", "quality", "of the ensemble", "queries a second", "layers", "MB")


def made(found: dict[str, Any], drawn: Path) -> str:
    """The page of a result, whose plot is drawn at this path."""
    plot.trades(points(found["rows"]), drawn, "queries a second", "quality, of the ensemble", joined=False)
    return text(found, drawn.name)


def points(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each task, (queries a second, quality as a share of the ensemble's) of teachers, ensemble and students."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        kind = {"teacher": "teachers", "ensemble": "ensemble"}.get(row["model"], "students")
        point = row["queries_per_s"], _relative(row, rows)
        found.setdefault(row["task"], {}).setdefault(kind, []).append(point)
    return found


def text(found: dict[str, Any], drawn: str) -> str:
    """The page as Markdown; `drawn` is the file of the plot beside it."""
    rows, about = found["rows"], found["summary"]
    machines = " and ".join(dict.fromkeys(words_of(row["machine"]) for row in rows))
    engines = " and ".join(dict.fromkeys(row["engine"] for row in rows))
    seeds = " or ".join(dict.fromkeys(", ".join(map(str, row["seeds"])) for row in rows))
    beaten = f"{about['better_than_plain']} of {about['tasks']}"
    lines = [
        "# Many teachers, one small student",
        "",
        f"`{found['command']}` on {machines}; {engines}.",
        "",
        f"At most {found['train_rows']:,} train rows of each task, seeds {seeds}.",
        "Quality is the task's metric on the reported split, the mean over seeds with the least and the most; a",
        "teacher of one seed alone has one figure. All teachers together are the mean of their calibrated",
        "probabilities, asked one after the other; where some have one seed, the spread is that of the others. Speed",
        "is that of the same requests of",
        f"{found['batch']} pairs in turn, the median of {found['rounds']} rounds, tokenising included;",
        "students differ in their weights alone and are timed once. MB are weights in 32-bit floats.",
        "",
        "Of the students of all teachers, the best on `valid` of each task counts. Averages are over tasks.",
        "",
        *table(
            ("", "aim", "found"),
            [
                ("quality, of the ensemble's average", "at least 97 %", f"{about['relative_to_ensemble']:.1%}"),
                ("throughput, of the ensemble's", "at least 6", f"{about['throughput_over_ensemble']:.2f}"),
                ("tasks on which it beats the plain student", "at least 5 of 6", beaten),
                ("average, over the one-teacher student's", "above 0", f"{about['over_one_teacher']:+.4f}"),
                ("two stages over one, heads", "", f"{about['two_stages_over_one']:+.4f}"),
            ],
        ),
        "",
        f"![Quality against speed]({drawn})",
        "",
        f"The first of two stages is on {found['pairs']:,} pairs without labels.",
        "",
        *table(HEAD, (_figures(row, rows, about["student"][row["task"]]) for row in rows)),
    ]
    return "\n".join(lines) + "\n"


def _figures(row: dict[str, Any], rows: Sequence[dict[str, Any]], chosen: str) -> list[str]:
    name = row["teacher"] if row["model"] == "teacher" else NAMES[row["model"]].format(*row.get("teachers", ()))
    return [
        row["task"],
        row["metric"],
        f"{name} (chosen)" if row["model"] == chosen else name,
        _spread(row["quality"]),
        f"{_relative(row, rows):.1%}",
        f"{row['queries_per_s']:,.0f}",
        str(row["layers"]),
        f"{row['megabytes']:.0f}",
    ]


def _relative(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """A row's quality as a share of that of its task's ensemble."""
    [whole] = [one for one in rows if (one["task"], one["model"]) == (row["task"], "ensemble")]
    return statistics.mean(row["quality"]) / statistics.mean(whole["quality"])


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


write_page = page_writer(RESULT, DOCS / "teachers-benchmark.md", made)

if __name__ == "__main__":
    write_page(RESULT)
