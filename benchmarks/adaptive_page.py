"""The page of adaptive.py. Knows its result, and nothing of how it came about."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from command_line import words_of

NAMES = {"student": "distilled, no exits", "truncated": "cut short, no exits"}
HEAD = "| task | asked | quality | at speed 0 | layers | time | layers saved that time shows |"


def page(found: dict[str, Any]) -> str:
    """Markdown of all tables."""
    rows = found["rows"]
    lines = [
        "# Exits: quality against time",
        "",
        f"Written by `{found['command']}`; every row is in `benchmarks/results/adaptive.json`.",
        f"Machine: {words_of(found['machine'])}.",
        "",
        "Layers and time are fractions of what speed 0 takes. Time is that of the same requests in turn at the dial",
        f"and at speed 0, the median of {found['rounds']} rounds, tokenising included. Quality is on the reported",
        "split; exits, temperatures and the table from keep to speed come from `valid`. The last column is the time",
        "saved as a fraction of the layers saved. *Distilled* and *cut short* are the bottom layers alone, learned",
        "from the whole branch or from the labels.",
    ]
    titles = {
        "single": ("One task, all layers its own", "FastBERT's setting: an exit after every layer but the last."),
        "merged": ("A merged model", "Two layers a task over a trunk of four; exits where they pay."),
    }
    for setting, (title, about) in titles.items():
        mine = [row for row in rows if row["setting"] == setting]
        for backend, batch in dict.fromkeys((row["backend"], row["batch"]) for row in mine):
            lines += ["", f"## {title}: {backend}, batch {batch}", "", about, "", HEAD, "|---" * 7 + "|"]
            lines += [_line(row) for row in mine if (row["backend"], row["batch"]) == (backend, batch)]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    layers = row["mean_layers_ratio"]
    if row["model"] != "exits":
        asked = NAMES[row["model"]]
    else:
        asked = f"speed {row['speed']:g}" if row["keep"] is None else f"keep {row['keep']:g}"
    shown = (
        "-"
        if layers is None or layers > 0.95 or row["model"] != "exits"
        else f"{(1 - row['time_ratio']) / (1 - layers):.2f}"
    )
    figures = [
        row["task"],
        asked,
        _spread(row["quality"]),
        _spread(row["quality_full"]),
        "-" if layers is None else f"{layers:.2f}",
        f"{row['time_ratio']:.2f}",
        shown,
    ]
    return f"| {' | '.join(figures)} |"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"
