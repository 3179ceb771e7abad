"""docs/adaptive.md and its plot from what `adaptive.py` found: `python benchmarks/adaptive_page.py`.

Knows how figures read, and nothing of how they came about. The plot needs matplotlib.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, RESULTS, page_writer, table

from trunkline.bench import plot

RESULT = RESULTS / "adaptive.json"
NAMES = {
    "exits": "exits",
    "student": "distilled into fewer layers, no exits",
    "truncated": "fewer layers, no exits",
}
HEAD = ("task", "asked", "quality", "at speed 0", "layers", "time", "layers saved that time shows")
KEEP = 0.99
"""Where rows left is shown at this."""
RANDOM = ("zh_book_review",)
"""Tasks that are read by an encoder that has learned nothing."""


def made(found: dict[str, Any], drawn: Path) -> str:
    """The page of a result, whose plot is drawn at this path."""
    panels = curves([row for row in found["rows"] if row["setting"] == "single"])
    if panels:
        plot.trades(panels, drawn, "time, of speed 0", "quality on the reported split")
    return text(found, drawn.name if panels else None)


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each task in FastBERT's setting, (time, quality) by model: of the first backend, in the larger batches."""
    mine = [row for row in rows if row["backend"] == rows[0]["backend"] and row["batch"] == rows[0]["batch"]]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in mine:
        whole = (1.0, statistics.mean(row["quality_full"]))
        points = found.setdefault(_task(row), {}).setdefault(NAMES[row["model"]], [whole])
        points.append((row["time_ratio"], statistics.mean(row["quality"])))
    return found


def text(found: dict[str, Any], drawn: str | None) -> str:
    """The page."""
    rows = found["rows"]
    lines = [
        "# Exits: quality against time",
        "",
        f"Written by `{found['command']}`; every row is in `benchmarks/results/adaptive.json`.",
        "Where more than one machine is named below, compare rows of a task, and ratios.",
        "",
        "Layers and time are fractions of what speed 0 takes. Time is that of the same requests in turn at the dial",
        f"and at speed 0, {_requests(found)}, in {found['rounds']} rounds that begin with either in turn; given is the",
        "geometric mean of the medians of both sorts of rounds, tokenising included. Quality and layers are those of",
        "the whole reported split; exits, temperatures and the table from keep to speed come from `valid`, so that a",
        "keep may fall short here. The last column is the time saved as a fraction of the layers saved, below 0 where",
        "it took longer.",
    ]
    if any("time_by_round" in row for row in rows):
        lines += ["Brackets after a time are its least and most in a round."]
    if any(row["task"] in RANDOM for row in rows):
        lines += ["A *random encoder* has learned nothing: of its task only the mechanics show, and no quality."]
    if any(row["model"] != "exits" for row in rows):
        lines += ["*Distilled into fewer layers* and *fewer layers* are the bottom layers alone, which learned from"]
        lines += ["the whole branch or from the labels."]
    if drawn:
        lines += ["", f"![Quality against time]({drawn})"]
    titles = {
        "single": ("One task, all layers its own", "FastBERT's setting: an exit after every layer but the last."),
        "merged": ("A merged model", "Two layers a task over a trunk of four; exits where they pay."),
    }
    for setting, (title, about) in titles.items():
        mine = [row for row in rows if row["setting"] == setting]
        for backend, batch in dict.fromkeys((row["backend"], row["batch"]) for row in mine):
            here = [row for row in mine if (row["backend"], row["batch"]) == (backend, batch)]
            lines += ["", f"## {title}: {backend}, batch {batch}", "", about, "", *table(HEAD, map(_figures, here))]
        lines += _left(mine[0]["backend"], mine, title) if mine else []
    lines += ["", "## What was trained, and where it was measured", ""]
    lines += table(("setting", "task", "train rows", "seeds", "by", "machine"), _made(rows))
    return "\n".join(lines) + "\n"


def _requests(found: dict[str, Any]) -> str:
    """What was timed, in words."""
    return " and ".join(f"{count} requests of {batch}" for batch, count in found["requests"].items())


def _made(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first.setdefault((row["setting"], row["task"]), row)
    for (setting, task), row in first.items():
        if task != "all":
            made = f"`{row['command']}`"
            yield [setting, task, f"{row['train_rows']:,}", str(len(row["seeds"])), made, words_of(row["machine"])]


def _left(backend: str, rows: Sequence[dict[str, Any]], title: str) -> list[str]:
    """Where rows left, as shares of all rows."""
    shown = [row for row in rows if row["keep"] == KEEP and row["left"] and row["backend"] == backend]
    shown = list({row["task"]: row for row in shown}.values())
    if not shown:
        return []
    depths = range(1, max(len(row["left"]) for row in shown))
    head = ("task", *(f"after {depth}" for depth in depths))
    cells = ([_task(row), *(f"{share:.0%}" if share else "" for share in row["left"][1:])] for row in shown)
    return ["", f"### {title}: where rows left at keep {KEEP:g}", "", *table(head, cells)]


def _task(row: dict[str, Any]) -> str:
    return f"{row['task']} (random encoder)" if row["task"] in RANDOM else str(row["task"])


def _figures(row: dict[str, Any]) -> list[str]:
    layers, exits = row["mean_layers_ratio"], row["model"] == "exits"
    asked = NAMES[row["model"]]
    if exits:
        asked = f"speed {row['speed']:g}" if row["keep"] is None else f"keep {row['keep']:g}"
    shown = f"{(1 - row['time_ratio']) / (1 - layers):.2f}" if exits and layers is not None and layers <= 0.95 else "-"
    rounds = row.get("time_by_round", ())
    return [
        _task(row),
        asked,
        _spread(row["quality"]),
        _spread(row["quality_full"]),
        "-" if layers is None else f"{layers:.2f}",
        f"{row['time_ratio']:.2f}" + (f" ({min(rounds):.2f} to {max(rounds):.2f})" if rounds else ""),
        shown,
    ]


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


write_page = page_writer(RESULT, DOCS / "adaptive.md", made)

if __name__ == "__main__":
    write_page(RESULT)
