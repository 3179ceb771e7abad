"""Measurements as pictures, SVG or PNG by the file's name. Needs the extra `report`: matplotlib, imported to draw.

Each line has a colour (those of Okabe and Ito, which colour-blind people tell apart), a marker and a dash of its own.
Knows rows; nothing of how they were measured.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.atomic import write_bytes
from trunkline.bench.server import loop_of
from trunkline.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    """How a line looks."""

    label: str
    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]

    def kwargs(self) -> dict[str, Any]:
        """As matplotlib's `plot` takes it."""
        return {"label": self.label, "color": self.colour, "marker": self.marker, "linestyle": self.dash}


SYSTEMS = {
    "trunkline": Style("Trunkline, all tasks in one pass", "#0072B2", "o", "-"),
    "exits": Style("the same, where texts leave at exits", "#56B4E9", "v", (0, (6, 2))),
    "separate": Style("separate models, same engine", "#D55E00", "s", "--"),
    "adapters": Style("adapters, Parallel, float32", "#CC79A7", "D", ":"),
    "transformers": Style("separate models, transformers float32", "#009E73", "^", "-."),
}
COURSES = (
    Style("", "#D55E00", "", "--"),
    Style("", "#0072B2", "", "-"),
    Style("", "#009E73", "", "-."),
    Style("", "#CC79A7", "", ":"),
)
TRADES = (
    Style("", "#0072B2", "o", "-"),
    Style("", "#D55E00", "s", "--"),
    Style("", "#009E73", "^", ":"),
)
LATENCIES = {
    "p50": Style("half of the requests within", "#0072B2", "o", "-"),
    "p99": Style("99 % of the requests within", "#D55E00", "s", "--"),
}


def check(file: Path) -> None:
    """What would keep a picture from being written: raises UsageError for another format, MissingExtra."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"{file}: a plot is written as {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise MissingExtra("report", "a plot")


def costs(rows: Sequence[Row], file: Path, titles: Mapping[str, str] | None = None) -> None:
    """Time over that of one model's pass against the number of tasks: a panel for each batch and `shape`.

    A line is the median over lengths of texts, the band about it reaches from the least to the most of them. A hollow
    marker was scaled from fewer tasks (`measured_tasks`). `titles` are words for shapes.
    """
    shapes = list(dict.fromkeys(row.get("shape", "") for row in rows))
    batches = sorted({row["batch"] for row in rows})
    lengths = sorted({row["tokens"] for row in rows})

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(shapes), len(batches), squeeze=False, sharex=True, sharey=True)
        for line, shape in enumerate(shapes):
            for column, batch in enumerate(batches):
                found = [row for row in rows if row.get("shape", "") == shape and row["batch"] == batch]
                _cost_panel(grid[line][column], found)
                if not line:
                    grid[line][column].set_title(f"{batch} text{'s' if batch > 1 else ''} at a time", fontsize=9)
            named = f"{(titles or {}).get(shape, shape)}\n" if shape else ""
            grid[line][0].set_ylabel(f"{named}time, passes of one model")
        for axes in grid[-1]:
            axes.set_xlabel("tasks")
        lines = {name: line for axes in grid.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        columns = 2 if len(batches) > 2 else 1  # as wide as the panels are
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=columns, frameon=False)
        if len(lengths) > 1:
            note = f"lines: median over {', '.join(f'{length:g}' for length in lengths)} tokens; bands: least to most"
            figure.supxlabel(note, fontsize=8)

    _write(file, (max(2.6 * len(batches), 4.5), 2.5 * len(shapes) + 1.0), draw)


def _cost_panel(axes: Axes, rows: Iterable[Row]) -> None:
    for system, style in SYSTEMS.items():
        found = [row for row in rows if row["system"] == system]
        if not found:
            continue
        counts = sorted({row["tasks"] for row in found})
        ratios = [[row["ratio_to_one_pass"] for row in found if row["tasks"] == count] for count in counts]
        scaled = {row["tasks"] for row in found if row.get("measured_tasks", row["tasks"]) < row["tasks"]}
        middle = [statistics.median(values) for values in ratios]
        axes.fill_between(counts, [min(v) for v in ratios], [max(v) for v in ratios], color=style.colour, alpha=0.15)
        axes.plot(counts, middle, **style.kwargs(), linewidth=1.4, markersize=4)
        hollow = [place for place, count in enumerate(counts) if count in scaled]
        x, y = [counts[place] for place in hollow], [middle[place] for place in hollow]
        axes.plot(x, y, style.marker, color=style.colour, markerfacecolor="white", markersize=4)
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.9", linewidth=0.6)


def loads(results: Sequence[Row], file: Path) -> None:
    """Latency percentiles against texts a second, a point for each load; hollow markers for open loops."""
    answered = sorted((row for row in results if row["latency_ms"]), key=lambda row: row["texts_per_second"])
    by_loop = [[row for row in answered if ("rate" in row["loop"]) is is_open] for is_open in (False, True)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for found, hollow in zip(by_loop, ({}, {"markerfacecolor": "white"}), strict=True):
            rates = [row["texts_per_second"] for row in found]
            for name, style in LATENCIES.items():
                look = {**style.kwargs(), **hollow, "markersize": 5}
                axes.plot(rates, [row["latency_ms"][name] for row in found], **look)
            for row in found:
                above = (row["texts_per_second"], row["latency_ms"]["p99"])
                axes.annotate(loop_of(row), above, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7)
        axes.set_xlabel("texts a second")
        axes.set_ylabel("milliseconds of a request")
        axes.margins(x=0.15, y=0.15)
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9", linewidth=0.6)
        lines, words = axes.get_legend_handles_labels()
        shown = len(LATENCIES)
        figure.legend(lines[:shown], words[:shown], loc="outside upper center", ncols=2, frameon=False)

    _write(file, (5.5, 3.4), draw)


def bars(groups: Mapping[str, Sequence[tuple[str, float, float, float]]], file: Path, unit: str) -> None:
    """Bars with whiskers, a panel for each group: (words, median, least, most) from top to bottom."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(groups), 1, squeeze=False)
        for axes, (title, found) in zip(panels.flat, groups.items(), strict=True):
            medians = [median for _, median, _, _ in found]
            whiskers = [[m - low for _, m, low, _ in found], [high - m for _, m, _, high in found]]
            axes.barh(range(len(found)), medians, xerr=whiskers, height=0.6, color="#0072B2", ecolor="0.2", capsize=2)
            axes.bar_label(axes.containers[-1], [f" {median:,.4g}" for median in medians], label_type="edge", padding=3)
            axes.set_yticks(range(len(found)), [words for words, *_ in found])
            axes.invert_yaxis()
            axes.margins(x=0.18)
            axes.set_title(title, fontsize=9, loc="left")
            axes.grid(axis="x", color="0.9", linewidth=0.6)
        panels[-1][0].set_xlabel(unit)

    _write(file, (7.0, sum(0.32 * len(found) + 0.5 for found in groups.values()) + 0.4), draw)


def courses(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]], file: Path, turns: Sequence[float] = ()
) -> None:
    """Values second by second, a gap where there is none: a panel for each title, in it a line for each name.

    Vertical lines stand at the `turns`, in seconds. There are colours for `len(COURSES)` names.
    """

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=True):
            for style, (name, values) in zip(COURSES, lines.items(), strict=False):
                found = [math.nan if value is None else value for value in values]
                middles = [second + 0.5 for second in range(len(found))]
                axes.plot(middles, found, **replace(style, label=name).kwargs(), linewidth=1.4)
            for turn in turns:
                axes.axvline(turn, color="0.6", linewidth=0.8)
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.0))
            axes.grid(color="0.9", linewidth=0.6)
        grid[-1][0].set_xlabel("seconds")
        lines, words = grid[0][0].get_legend_handles_labels()
        figure.legend(lines, words, loc="outside upper center", ncols=len(COURSES), frameon=False)

    _write(file, (7.0, 1.5 * len(panels) + 0.7), draw)


def trades(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    file: Path,
    x: str,
    y: str,
    *,
    joined: bool = True,
) -> None:
    """What is paid against what is had: a panel for each title, three in a row, and in it points (x, y) for each name,
    `joined` by rising x. There are colours for `len(TRADES)` names.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    styles = [style if joined else replace(style, dash="") for style in TRADES]
    looks = {name: replace(style, label=name).kwargs() for name, style in zip(names, styles, strict=False)}
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(down, across, squeeze=False, sharex=True)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            for name, points in lines.items():
                axes.plot(*zip(*sorted(points), strict=True), **looks[name], linewidth=1.4, markersize=4)
            axes.set_title(title, fontsize=9, loc="left")
            axes.grid(color="0.9", linewidth=0.6)
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
        drawn = {name: line for axes in grid.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(drawn.values()), list(drawn), loc="outside upper center", ncols=len(TRADES), frameon=False)

    _write(file, (2.5 * across + 0.6, 2.1 * down + 0.8), draw)


def _write(file: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    check(file)
    import matplotlib
    from matplotlib.figure import Figure

    written = io.BytesIO()
    # Text stays text, which is small; and the same rows always give the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "trunkline", "font.size": 9.0, "axes.axisbelow": True}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]  # it names every setting there is
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        kind = file.suffix.lower().removeprefix(".")
        figure.savefig(written, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    picture = written.getvalue()
    if kind == "svg":  # a third of it is digits of places that nobody sees, unlike those of texts, and indents
        short = re.sub(rb">[^<>]+<|(\.\d\d)\d+", lambda found: found[1] or found[0], picture)
        picture = re.sub(rb"\n\s+", rb"\n", short)
    write_bytes(file, picture)
