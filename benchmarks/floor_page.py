"""docs/floor.md and its plot from what `floor.py` found: `python benchmarks/floor_page.py`.

Knows how figures read, and nothing of how they are measured. The plot needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, RESULTS, page_writer, table

from trunkline.bench import plot

RESULT = RESULTS / "floor.json"
MODES = {"plain": "plain server", "floor": "with a floor"}
DRAWN = {
    "requests in time, share": lambda one: one["in_time"] / one["requests"] if one["requests"] else None,
    "rows that wait": lambda one: one["waiting_rows"],
    "speed": lambda one: one["speed"],
    "correct answers lost, share of full depth": lambda one: _lost(one["correct_of_full"]),
}
HEAD = (
    "load",
    "",
    "requests",
    "in time",
    "refused",
    "too late",
    "failed",
    "rows that wait",
    "speed",
    "layers",
    "correct of full depth",
)


def made(found: dict[str, Any], drawn: Path) -> str:
    """Draw the plot, and make the page."""
    first = {MODES[run["mode"]]: run["seconds"] for run in found["runs"] if not run["round"]}
    panels = {
        title: {mode: [value(one) for one in seconds] for mode, seconds in first.items()}
        for title, value in DRAWN.items()
    }
    lengths = [seconds for _, seconds in found["parts"]]
    plot.courses(panels, drawn, [sum(lengths[:count]) for count in range(1, len(lengths))])
    return text(found, drawn.name)


def text(found: dict[str, Any], drawn: str) -> str:
    """The page."""
    capacity, rows = found["capacity"], found["rows"]
    rounds = max(run["round"] for run in found["runs"]) + 1
    tasks, factors = (
        ", ".join(found["tasks"]),
        ", ".join(f"{one:g} times that for {s:g} s" for one, s in found["parts"]),
    )
    rates = [f"{capacity[f'{name}_per_second']:.4g} {name} a second" for name in ("requests", "texts")]
    lines = [
        "# Twice the load that full depth can take",
        "",
        f"Written by `{found['command']}`; every second is in `benchmarks/results/floor.json`.",
        f"Machine: {words_of(found['machine'])}; {found['cores']}.",
        "",
        f"A merged model of {len(found['tasks'])} tasks with exits: {tasks}. A request has {rows} rows of the",
        f"reported split of one task, and {found['deadline_ms']:g} ms. In a closed loop at full depth the plain server",
        f"answers {' or '.join(rates)}.",
        f"Requests then come at random instants: {factors}. Both servers have the same",
        f"limits; one of them has `--floor {found['floor']:g}`. Rounds, both servers in turn: {rounds}.",
        "",
        f"![Load, queue, speed and quality over time]({drawn})",
        "",
        "The plot is the first round, second by second; the table is over all rounds: shares of the requests, and",
        "medians of the rounds' means. *Too late* is an answer after the deadline, or none by then. *Layers* are a",
        "fraction of full depth. The last column is how many answers are correct, as a fraction of what full depth",
        "gets right on the same rows: the floor says what should be left of it. It is of those "
        f"{sum(one is not None for one in capacity['correct']):,} of {len(capacity['correct']):,}",
        "different requests that were answered while the capacity was measured; seconds without any leave a gap.",
        "",
        *table(HEAD, _lines(found)),
        *_by_task(found),
        "",
        "CPU time, in cores, the median over rounds:",
        "",
        *table(("", "front", "worker", "load generator"), _cpu(found["runs"])),
    ]
    return "\n".join(lines) + "\n"


def _lines(found: dict[str, Any]) -> Iterable[Sequence[str]]:
    for number, (factor, _) in enumerate(found["parts"]):
        for mode, words in MODES.items():
            if number < len(found["summary"][mode]):
                one = found["summary"][mode][number]
                yield (
                    f"{factor:g}",
                    words,
                    f"{one['requests']:,}",
                    *(f"{share:.1%}" for share in (one["in_time"], one["refused"], one["late"] + one["expired"])),
                    f"{one['failed']:.1%}",
                    _shown(one["waiting_rows"], "{:.0f}"),
                    _shown(one["speed"], "{:.2f}"),
                    _shown(one["depth"], "{:.2f}"),
                    _shown(one["correct_of_full"], "{:.1%}"),
                )


def _by_task(found: dict[str, Any]) -> list[str]:
    """What a floor leaves of each task's correct answers, where that was counted."""
    parts = [(f"{factor:g}", one) for (factor, _), one in zip(found["parts"], found["summary"]["floor"], strict=False)]
    tasks = sorted({task for _, one in parts for task in one.get("correct_of_full_by_task", {})})
    if not tasks:
        return []
    shares = (
        [load, *(_shown(one["correct_of_full_by_task"].get(task), "{:.1%}") for task in tasks)] for load, one in parts
    )
    return [
        "",
        "The last column by task, with a floor, over all rounds together:",
        "",
        *table(("load", *tasks), shares),
    ]


def _cpu(runs: Sequence[dict[str, Any]]) -> Iterable[Sequence[str]]:
    for mode, words in MODES.items():
        found = [run["cpu"] for run in runs if run["mode"] == mode]
        if found:
            middle = sorted(found, key=lambda one: one["worker"])[len(found) // 2]
            yield words, *(f"{middle[name]:.2f}" for name in ("front", "worker", "load"))


def _lost(kept: float | None) -> float | None:
    return None if kept is None else 1 - kept


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


write_page = page_writer(RESULT, DOCS / "floor.md", made)

if __name__ == "__main__":
    write_page(RESULT)
