"""The page's parts on tasks: all of them in one table, then each with its candidates and its figures.

This module knows nothing about training: it shows what the report's data says.
"""

from __future__ import annotations

from trunkline.report import wording
from trunkline.report.charts import Axis, Line, Point, plain, scatter, share
from trunkline.report.content import LOWER_IS_BETTER, Candidate, Content, Exits, Speed, Task
from trunkline.report.markup import Column, Row, escape, table
from trunkline.report.teachers import teachers


def overview(content: Content) -> str:
    """Every task in one row, against its own full model."""
    if not content.tasks:
        return ""
    labels = ("Full", "Merged", "Relative")
    columns = [Column("Task"), Column("Kind"), Column("Metric"), *(Column(label, figures=True) for label in labels)]
    columns += [Column(""), Column("Fork + own", figures=True), Column("Reading")]
    columns += [Column("Branch time", figures=True), Column("Full time", figures=True)]
    widest = max([0.02, *(abs(task.relative - 1) for task in content.tasks if task.relative is not None)])
    splits = sorted({task.reported for task in content.tasks})
    rows = [_overview_row(task, i, widest, several=len(splits) > 1) for i, task in enumerate(content.tasks)]
    lead = (
        "Each branch in the merged model against the task's own full model. Fork + own: the trunk layer that the "
        "branch leaves, and its own layers. Branch time leaves out the trunk, which all tasks share."
    )
    caption = f"On {escape(splits[0]) if len(splits) == 1 else 'the reported splits'}, which no choice has seen."
    made = table(caption, columns, rows, css="overview")
    return f'<section>\n<h2>All tasks</h2>\n<p class="lead">{lead}</p>\n<div class="card">{made}</div>\n</section>'


def task_section(content: Content, task: Task, index: int) -> str:
    """One task: what was chosen, quality against cost, the reported metrics, exits, teachers, candidates, notes."""
    rows = ", ".join(f"{count:,} {split}" for split, count in task.rows.items())
    chosen = "Nothing was chosen."
    if task.chosen:
        chosen = f"Chosen: {wording.branch(task.chosen, task.stage)}."
        if task.chosen.ms is not None:
            chosen += f" It adds {wording.milliseconds(task.chosen.ms)} to the shared trunk"
            whole = task.baseline.ms if task.baseline else None
            chosen += "." if whole is None else f"; its full model takes {wording.milliseconds(whole)}."
        if task.chosen.calibration is not None:
            chosen += f" {wording.calibration(task.chosen.calibration, task.reported)}"
        if task.scope is not None:
            chosen += f" {wording.scope(task.scope, task.reported)}"
    notes = "".join(f"<li>{escape(note)}</li>" for note in task.notes)
    notes = f'<ul class="notes" aria-label="Notes">{notes}</ul>' if notes else ""
    facts = " · ".join(part for part in (task.kind, task.metric, f"rows: {rows}" if rows else "") if part)
    return (
        f'<article class="card" id="task-{index + 1}">\n<h3>{escape(task.name)}</h3>\n'
        f'<p class="facts">{escape(facts)}</p>\n'
        f'<div class="beside">\n{_chart(content, task, index)}\n<div>\n<p class="choice">{escape(chosen)}</p>\n'
        f"{_metrics(task)}\n{notes}\n</div>\n</div>\n{_exits(task, index)}\n{teachers(content, task, index)}\n"
        f"{_candidates(content, task)}\n</article>"
    )


def _overview_row(task: Task, index: int, widest: float, *, several: bool) -> Row:
    chosen = task.chosen
    return Row(
        [
            f'<a href="#task-{index + 1}" title="{escape(task.name)}">{escape(task.name)}</a>'
            f'<small class="narrow-only">{escape(task.metric)}</small>',
            escape(task.kind),
            escape(task.metric) + (f" <small>{escape(task.reported)}</small>" if several else ""),
            wording.number(task.full),
            wording.number(task.merged),
            wording.percent(task.relative),
            _lean(task.relative, widest),
            f"{chosen.fork} + {chosen.layers}" if chosen else "not merged",
            escape(chosen.reading) if chosen else "",
            wording.milliseconds(chosen.ms if chosen else None),
            wording.milliseconds(task.baseline.ms if task.baseline else None),
        ]
    )


def _lean(relative: float | None, widest: float) -> str:
    """How far a task lies from its full model, as a bar to the left (worse) or the right (better) of a middle line."""
    if relative is None:
        return ""
    size = 30 * min(1.0, abs(relative - 1) / widest)
    x, css = (32 - size, "worse") if relative < 1 else (32, "better")
    return (
        '<svg class="lean" aria-hidden="true" viewBox="0 0 64 14" width="64" height="14">'
        f'<rect class="{css}" x="{x:.1f}" y="3" width="{size:.1f}" height="8"/><path class="axis" d="M32 0v14"/></svg>'
    )


def _chart(content: Content, task: Task, index: int) -> str:
    readings = {candidate.reading for candidate in task.candidates}
    points = [
        Point(
            candidate.ms,
            candidate.valid,
            f"{wording.branch(candidate, candidate.stage)}: {wording.number(candidate.valid)} at "
            f"{wording.milliseconds(candidate.ms)}" + (" (chosen)" if candidate.chosen else ""),
            candidate.stage,
            shape="diamond" if candidate.stage == "distill" else "circle",
            hollow=len(readings) > 1 and candidate.reading == "separate",
            ring=candidate.chosen,
            label="chosen" if candidate.chosen else "",
        )
        for candidate in task.candidates
        if candidate.ms is not None and candidate.valid is not None
    ]
    if not points:
        return ""
    lines = []
    if task.baseline and task.baseline.valid is not None:
        lines.append(Line(task.baseline.valid, ("full model", wording.number(task.baseline.valid)), "full"))
    chosen = next((point.title for point in points if point.ring), "nothing chosen")
    full = f"; the full model reaches {lines[0].label[1]}" if lines else ""
    shape = " × ".join(content.cost[key] for key in ("batch", "tokens") if key in content.cost)
    chart = scatter(
        f"scatter-{index + 1}",
        f"{task.name}: quality against cost",
        f"{wording.count(len(points), 'candidate')}{full}. {chosen}.",
        points,
        lines,
        x=Axis(f"the branch's own time, ms{f' for {shape} tokens' if shape else ''}", plain, from_zero=True),
        y=Axis(f"{task.metric} on valid", plain),
    )
    return f'<figure>{chart}<figcaption class="keys">{_keys(points)}</figcaption></figure>'


def _keys(points: list[Point]) -> str:
    keys = []
    hollow = any(point.hollow for point in points)
    for css, shape in (("tune", "round"), ("distill", "diamond")):
        if any(point.css == css for point in points):
            keys.append(f'<span class="key"><i class="swatch {shape} {css}"></i>{wording.stage(css)}</span>')
    if hollow:
        keys.append('<span class="key"><i class="swatch round any"></i>filled: joint</span>')
        keys.append('<span class="key"><i class="swatch round any hollow"></i>open: separate</span>')
    return "".join(keys)


def _metrics(task: Task) -> str:
    full = task.baseline.metrics if task.baseline else {}
    ours = task.chosen.metrics if task.chosen else {}
    names = sorted({*full, *ours}, key=lambda name: (name != task.metric, name))
    if not names:
        return ""
    rows = []
    for name in names:
        a, b = full.get(name), ours.get(name)
        label = f"{escape(name)} <small>lower is better</small>" if name in LOWER_IS_BETTER else escape(name)
        difference = b - a if a is not None and b is not None else None
        cells = [label, wording.number(a), wording.number(b), wording.signed(difference)]
        rows.append(Row(cells, css="main" if name == task.metric else ""))
    columns = [Column("Metric"), *(Column(name, figures=True) for name in ("Full", "Merged", "Change"))]
    caption = f"On {escape(task.reported)}, which no choice has seen."
    if task.baseline and task.baseline.learning_rate is not None:
        caption += f" Full: {escape(wording.full(task.baseline.reading, task.baseline.learning_rate))}."
    return table(caption, columns, rows, css="metrics")


def _exits(task: Task, index: int) -> str:
    if task.exits is None:
        return ""
    said = f'<p class="choice">{escape(wording.exits(task.exits))}</p>'
    if not task.exits.speeds:
        return said
    labels = ("Speed", "On valid", f"On {task.reported}", "Calibration error", "Layers", "Time")
    columns = [Column("Kept on valid"), *(Column(label, figures=True) for label in labels), Column("Answered after")]
    rows = [
        Row(
            [
                wording.kept(row),
                wording.number(row.speed, 4),
                wording.number(row.valid),
                wording.number(row.reported),
                wording.number(row.calibration),
                wording.percent(row.layers),
                wording.percent(row.time),
                _shares(row) + escape(wording.left(task.exits, row)),
            ]
        )
        for row in task.exits.speeds
    ]
    caption = (
        f"{escape(task.metric)} by speed, found on valid; calibration error, layers and time on "
        f"{escape(task.reported)}, the last two relative to speed 0, time by the measured price of each part; "
        "then the share answered after so many layers."
    )
    return f"{said}\n{table(caption, columns, rows, css='speeds')}\n{_speed_chart(task, task.exits, index)}"


def _shares(row: Speed) -> str:
    """The shares that were answered after so many layers, as one bar that darkens with depth."""
    if not row.left:
        return ""
    parts, x = [], 0.0
    for i, part in enumerate(row.left, 1):
        shade, width = 0.15 + 0.85 * i / len(row.left), 120 * part
        parts.append(f'<rect class="part" x="{x:.1f}" y="1" width="{width:.1f}" height="10" opacity="{shade:.2f}"/>')
        x += width
    return f'<svg class="shares" aria-hidden="true" viewBox="0 0 120 12" width="120" height="12">{"".join(parts)}</svg>'


def _speed_chart(task: Task, exits: Exits, index: int) -> str:
    """Quality against time, a point for each speed, those that keep so much marked; and of each candidate that would
    take less time than the chosen one, without exits.
    """
    kept = {row.speed: wording.kept(row) for row in reversed(exits.speeds) if row.keep is not None}
    points = []
    for row in exits.curve:
        for split, value in (("valid", row.valid), (task.reported, row.reported)):
            if row.time is not None and value is not None:
                named = split == task.reported and row.speed in kept
                points.append(
                    Point(
                        row.time,
                        value,
                        f"speed {wording.number(row.speed, 4)}: {wording.number(value)} on {split} in "
                        f"{wording.percent(row.time)} of the time",
                        "depth",
                        hollow=split == "valid",
                        label=kept[row.speed] if named else "",
                    )
                )
    fewer = _fewer(task)
    chart = scatter(
        f"speeds-{index + 1}",
        f"{task.name}: quality against time, by speed",
        f"{wording.count(len(exits.curve), 'speed')}, each as quality and time; those of a keep are named. Beside them "
        f"{wording.count(len(fewer), 'candidate')} without exits.",
        [*fewer, *points],
        [],
        x=Axis("time, of speed 0", share),
        y=Axis(task.metric, plain),
    )
    keys = "".join(
        f'<span class="key"><i class="swatch round depth{css}"></i>speeds on {escape(split)}</span>'
        for css, split in (("", task.reported), (" hollow", "valid"))
    )
    for css, shape in (("tune", "round"), ("distill", "diamond")):
        if any(point.css == css for point in fewer):
            words = f"{wording.stage(css)}, fewer layers, no exits, on {task.reported}"
            keys += f'<span class="key"><i class="swatch {shape} {css}"></i>{escape(words)}</span>'
    return f'<figure class="under">{chart}<figcaption class="keys">{keys}</figcaption></figure>' if chart else ""


def _fewer(task: Task) -> list[Point]:
    """Candidates that take less time than the chosen one, on the reported split: what speeds are compared with."""
    chosen = next((one.ms_alone for one in task.candidates if one.chosen), None)
    if not chosen:
        return []
    return [
        Point(
            one.ms_alone / chosen,
            one.reported,
            f"{wording.branch(one, one.stage)}, no exits: {wording.number(one.reported)} on {task.reported} in "
            f"{wording.percent(one.ms_alone / chosen)} of the time",
            one.stage,
            shape="diamond" if one.stage == "distill" else "circle",
        )
        for one in task.candidates
        if one.ms_alone is not None and one.reported is not None and one.ms_alone < chosen
    ]


def _candidates(content: Content, task: Task) -> str:
    if not task.candidates:
        return ""
    depth = content.encoder_depth
    distilled = any(candidate.stage == "distill" for candidate in task.candidates)
    columns = [Column("Stage"), Column("Fork", figures=True), Column("Own layers", figures=True)]
    columns.append(Column("Layers, alone", figures=True))
    columns.append(Column("Reading"))
    if distilled:
        columns += [Column("Starts from"), Column("Teacher")]
    columns += [Column("Seed", figures=True), Column("On valid", figures=True)]
    columns += [Column("Of full", figures=True), Column("Branch time", figures=True), Column("")]
    full = task.baseline.valid if task.baseline else None
    rows = [_candidate(one, depth, full, distilled) for one in sorted(task.candidates, key=_order)]
    caption = f"By fork, own layers and {escape(task.metric)} on valid."
    made = table(caption, columns, rows, css="candidates")
    return f"<details><summary>{wording.count(len(rows), 'candidate')}</summary>\n{made}\n</details>"


def _order(one: Candidate) -> tuple[int, int, float]:
    return one.fork, one.layers, -(one.valid if one.valid is not None else float("-inf"))


def _candidate(one: Candidate, depth: int, full: float | None, distilled: bool) -> Row:
    swatch = "diamond distill" if one.stage == "distill" else "round tune"
    relative = one.valid / full if one.valid is not None and full is not None and full > 0 else None
    cells = [
        f'<i class="swatch {swatch}"></i>{escape(wording.stage(one.stage))}',
        str(one.fork),
        str(one.layers),
        f"{one.fork + one.layers} of {depth}" if depth else str(one.fork + one.layers),
        escape(wording.reading(one.reading)),
    ]
    if distilled:
        cells += [escape(one.init or ""), escape(one.teacher or "")]
    cells += ["" if one.seed is None else str(one.seed), wording.number(one.valid), wording.percent(relative)]
    cells += [wording.milliseconds(one.ms), '<strong class="flag">chosen</strong>' if one.chosen else ""]
    return Row(cells, css="chosen" if one.chosen else "")
