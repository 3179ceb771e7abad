"""The page's part on the selection: what each trunk depth would give, and the paper's own rule beside it.

This module knows nothing about how the selection is computed.
"""

from __future__ import annotations

from trunkline.report import wording
from trunkline.report.charts import Axis, Line, Point, scatter, share
from trunkline.report.content import Choice, Content
from trunkline.report.markup import Column, Row, escape, table

PAPER = "paper's rule"


def selection(content: Content) -> str:
    """The section, or an empty string where no selection was made."""
    rows = [*content.depths, *([content.paper] if content.paper else [])]
    if not rows:
        return ""
    lead = (
        "For each trunk depth, the best set of candidates under the budget. Quality is measured on valid and time on "
        "the engine, with the trunk paid once; both are relative to separate full models."
    )
    if content.paper:
        lead += " The paper’s rule adds layers to a task while each gains at least a set margin; it knows no budget."
    return (
        f'<section>\n<h2>Selection by trunk depth</h2>\n<p class="lead">{lead}</p>\n<div class="card">\n'
        f'<div class="beside">\n{_chart(content)}\n{_table(content, rows)}\n</div>\n{_choices(content, rows)}\n'
        "</div>\n</section>"
    )


def _title(row: Choice) -> str:
    name = PAPER if row.depth is None else f"depth {row.depth}"
    return f"{name}: {wording.percent(row.quality)} of the quality in {wording.percent(row.time)} of the time"


def _table(content: Content, rows: list[Choice]) -> str:
    columns = [
        Column("Depth"),
        Column("Quality", figures=True),
        Column("Time", figures=True),
        Column("Layers", figures=True),
        Column("Budget"),
    ]
    drawn = []
    for row in rows:
        chosen, paper = row is content.selected, row is content.paper
        label = "Paper’s rule" if paper else str(row.depth)
        fits = "" if paper else "fits" if row.feasible else "misses"
        state = '<strong class="flag">chosen</strong>' if chosen else escape(fits)
        cells = [escape(label), *(wording.percent(value) for value in (row.quality, row.time, row.layers)), state]
        drawn.append(Row(cells, css="chosen" if chosen else "paper" if paper else "" if row.feasible else "faded"))
    return table("Relative to separate full models; quality on valid.", columns, drawn, css="depths")


def _chart(content: Content) -> str:
    points = []
    for row in content.depths:
        if row.time is None or row.quality is None:
            continue
        chosen = row is content.selected
        title, label = _title(row), str(row.depth)
        points.append(Point(row.time, row.quality, title, "depth", hollow=not row.feasible, ring=chosen, label=label))
    paper = content.paper
    if paper and paper.time is not None and paper.quality is not None:
        points.append(Point(paper.time, paper.quality, _title(paper), "paper", shape="square"))
    if not points:
        return ""
    lines = []
    merged = content.merged
    if merged and merged.min_relative_quality is not None:
        asked = merged.min_relative_quality
        lines.append(Line(asked, ("budget", wording.percent(asked)), "limit"))
    if merged and merged.max_cost is not None:
        lines.append(Line(merged.max_cost, ("budget", wording.percent(merged.max_cost)), "limit", vertical=True))
    best = max(point.y for point in points)
    if best > 0.97:
        lines.append(Line(1.0, ("full", "models"), "full"))
    chart = scatter(
        "depths",
        "Quality against time by trunk depth",
        "; ".join(point.title for point in points) + ".",
        points,
        lines,
        x=Axis("time relative to separate full models", share),
        y=Axis("quality relative to full, on valid", share),
    )
    keys = ['<span class="key"><i class="swatch round depth"></i>trunk depth, fits the budget</span>']
    if any(point.hollow for point in points):
        keys.append('<span class="key"><i class="swatch round depth hollow"></i>misses it</span>')
    if any(point.ring for point in points):
        keys.append('<span class="key"><i class="swatch ring"></i>chosen</span>')
    if any(point.css == "paper" for point in points):
        keys.append('<span class="key"><i class="swatch paper"></i>paper’s rule</span>')
    return f'<figure>{chart}<figcaption class="keys">{"".join(keys)}</figcaption></figure>'


def _choices(content: Content, rows: list[Choice]) -> str:
    """Which candidate each depth takes for each task: fork + own layers."""
    named = [row for row in rows if row.choice]
    if not named:
        return ""
    labels = ["Paper’s rule" if row.depth is None else f"Depth {row.depth}" for row in named]
    columns = [Column("Task"), *(Column(label, figures=True) for label in labels)]
    body = []
    for task in content.tasks:
        cells = [escape(task.name)]
        for row in named:
            candidate = content.candidates.get((task.name, row.choice.get(task.name, "")))
            if candidate is None:
                cells.append(escape(row.choice.get(task.name, wording.MISSING)))
                continue
            text = f"{candidate.fork} + {candidate.layers}"
            pair = "" if candidate.reading == "single" else f" <small>{escape(candidate.reading)}</small>"
            cells.append(f'<span title="{escape(wording.branch(candidate, candidate.stage))}">{text}{pair}</span>')
        body.append(Row(cells))
    made = table("Fork + own layers, by trunk depth.", columns, body, css="choices")
    return f"<details><summary>The candidates behind each row</summary>\n{made}\n</details>"
