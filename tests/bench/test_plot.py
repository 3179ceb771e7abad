"""Pictures of measurements: what they need is said first, and every line can be told from the others without colour."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from trunkline.bench import plot
from trunkline.errors import MissingExtra, UsageError

ROWS = [
    {
        "shape": shape,
        "tasks": tasks,
        "batch": batch,
        "tokens": tokens,
        "system": system,
        "measured_tasks": min(tasks, 2),
        "ratio_to_one_pass": ratio * tasks,
    }
    for shape in ("one", "other")
    for batch in (1, 8)
    for tokens in (16, 32)
    for tasks in (1, 2, 4)
    for system, ratio in (
        ("trunkline", 0.5),
        ("exits", 0.3),
        ("separate", 1.0),
        ("transformers", 3.0),
        ("adapters", 2.0),
    )
]
LOADS: list[dict[str, Any]] = [
    {"loop": {"clients": 4}, "texts_per_second": 90.0, "latency_ms": {"p50": 9.0, "p99": 12.0}},
    {"loop": {"rate": 10.0}, "texts_per_second": 10.0, "latency_ms": {"p50": 5.0, "p99": 30.0}},
    {"loop": {"rate": 500.0}, "texts_per_second": 0.0, "latency_ms": {}},  # nothing was answered
]


def test_lines_differ_in_more_than_colour() -> None:
    for styles in (plot.SYSTEMS, plot.LATENCIES):
        for name in ("colour", "marker", "dash", "label"):
            assert len({getattr(style, name) for style in styles.values()}) == len(styles)


def test_what_a_plot_needs_is_said_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"plot.pdf: a plot is written as .svg or .png"):
        plot.check(tmp_path / "plot.pdf")
    monkeypatch.setattr(plot, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[report\]'"):
        plot.check(tmp_path / "plot.svg")


def test_costs_have_a_panel_for_each_batch_and_shape_and_are_the_same_bytes_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra report")
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, second):
        plot.costs(ROWS, path, {"one": "The first shape"})
    drawn = first.read_text()
    assert first.read_bytes() == second.read_bytes()
    assert len(drawn) < 150_000
    for words in ("The first shape", "other", "1 text at a time", "8 texts at a time", "16, 32 tokens"):
        assert words in drawn
    for style in plot.SYSTEMS.values():
        assert f">{style.label}<" in drawn
    assert drawn.count('<g id="axes_') == 4


def test_loads_and_bars_are_drawn_into_svg_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra report")
    plot.loads(LOADS, tmp_path / "loads.svg")
    drawn = (tmp_path / "loads.svg").read_text()
    assert "4 clients" in drawn
    assert "10 a second" in drawn
    assert "500 a second" not in drawn
    plot.bars({"shape": [("engine", 10.0, 9.0, 12.0), ("server", 8.0, 8.0, 8.0)]}, tmp_path / "bars.png", "texts")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_courses_have_a_panel_for_each_title_and_gaps_where_there_is_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra report")
    panels = {
        "rows": {"plain": [1.0, None, 3.0], "floor": [1.0, 1.0, 1.0]},
        "speed": {"plain": [], "floor": [None] * 3},
    }
    plot.courses(panels, tmp_path / "courses.svg", [1.0])
    drawn = (tmp_path / "courses.svg").read_text()
    assert drawn.count('<g id="axes_') == 2
    assert drawn.count(">floor<") == 1
    assert "nan" not in drawn


def test_figures_at_the_axes_keep_the_digits_that_tell_them_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    plot.trades({"task": {"exits": [(0.25, 0.8101), (1.0, 0.8148)]}}, tmp_path / "trades.svg", "time", "quality")
    ticks = re.findall(r">(0\.8\d*)</text>", (tmp_path / "trades.svg").read_text())
    assert len(ticks) == len(set(ticks)) > 2
