"""The part of a task's section on its teachers: who they are, who taught which students, and which of them helped.

This module knows nothing about training: it shows what the report's data says.
"""

from __future__ import annotations

from trunkline.report import wording
from trunkline.report.charts import Axis, Line, Point, plain, scatter
from trunkline.report.content import Content, Task
from trunkline.report.markup import Column, Row, escape, table
from trunkline.report.teaching import Teaching

_LONGEST = 11
"""Characters of a name for which there is room at the end of a line of the chart."""


def teachers(content: Content, task: Task, index: int) -> str:
    """The part, or an empty string where a task's students have one teacher and nothing was compared."""
    found = task.teaching
    if found is None:
        return ""
    said = wording.helped(found)
    sentence = f'<p class="choice">{escape(said)}</p>\n' if said else ""
    return f"<h4>Teachers</h4>\n{sentence}{_table(content, task, found)}\n{_chart(task, found, index)}"


def _table(content: Content, task: Task, found: Teaching) -> str:
    labels = ("On valid", f"On {task.reported}", "Time alone", "Rows per second", "Against all, on valid")
    columns = [Column("Who"), Column("Fork + own", figures=True), *(Column(label, figures=True) for label in labels)]
    rows = [
        Row(
            [
                f'<i class="swatch depth"></i>{escape(one.name)}',
                "",
                wording.number(one.valid),
                wording.number(one.reported),
                wording.milliseconds(one.ms),
                _per_second(content, one.ms),
                "",
            ]
        )
        for one in found.teachers
    ]
    if len(found.teachers) > 1:
        ms = found.ensemble_ms
        quality = [wording.number(found.ensemble), wording.number(found.ensemble_reported)]
        figures = [*quality, wording.milliseconds(ms), _per_second(content, ms)]
        rows.append(Row(["all teachers together", "", *figures, ""], css="main"))
    rows += [
        Row(
            [
                f'<i class="swatch diamond distill"></i>student of {escape(wording.taught_by(found, one))}',
                f"{one.fork} + {one.layers}" + (f" of {one.latents} latents" if one.latents else ""),
                wording.number(one.valid),
                wording.number(one.reported),
                wording.milliseconds(one.ms),
                _per_second(content, one.ms),
                escape(wording.change(one.change)),
            ]
        )
        for one in found.students
    ]
    caption = (
        f"{escape(task.metric)} of each teacher, and of the best students of each group of them, means over seeds; "
        "time from the embeddings to the head. Against all: students that start and end alike, of these and of all."
    )
    return table(caption, columns, rows, css="teachers")


def _per_second(content: Content, ms: float | None) -> str:
    batch = content.cost.get("batch", "")
    return wording.whole(round(1000 * int(batch) / ms)) if ms and batch.isdigit() else wording.MISSING


def _chart(task: Task, found: Teaching, index: int) -> str:
    """Quality against time: students and those teachers whose time is known as points, the others as lines."""
    points, lines = [], []
    for one in found.teachers:
        if one.valid is None:
            continue
        if one.ms is None:
            lines.append(Line(one.valid, (_cut(one.name), wording.number(one.valid)), "full"))
            continue
        title = f"{one.name}: {wording.number(one.valid)} in {wording.milliseconds(one.ms)}"
        points.append(Point(one.ms, one.valid, title, "depth", shape="square", label=one.name))
    if found.ensemble is not None and len(found.teachers) > 1:
        if (ms := found.ensemble_ms) is None:
            lines.append(Line(found.ensemble, ("together", wording.number(found.ensemble)), "full"))
        else:
            title = f"all teachers together: {wording.number(found.ensemble)} in {wording.milliseconds(ms)}"
            points.append(Point(ms, found.ensemble, title, "depth", shape="square", label="together"))
    for student in reversed(found.students):  # those of all last, where nothing covers them
        if student.valid is None or student.ms is None:
            continue
        by, fewer = wording.taught_by(found, student), student.teachers != found.everyone
        title = f"student of {by}: {wording.number(student.valid)} in {wording.milliseconds(student.ms)}"
        label = "" if fewer and student.teachers else by  # there is no room for all
        points.append(Point(student.ms, student.valid, title, "distill", "diamond", hollow=fewer, label=label))
    chart = scatter(
        f"teachers-{index + 1}",
        f"{task.name}: quality against cost, by teacher",
        "; ".join(point.title for point in points) + ".",
        points,
        lines,
        x=Axis("time from the embeddings to the head, ms", plain, from_zero=True),
        y=Axis(f"{task.metric} on valid", plain),
    )
    keys = (
        '<span class="key"><i class="swatch depth"></i>teacher</span>'
        '<span class="key"><i class="swatch diamond distill"></i>student of all</span>'
    )
    if any(point.hollow for point in points):
        keys += '<span class="key"><i class="swatch diamond distill hollow"></i>student of fewer</span>'
    return f'<figure class="under">{chart}<figcaption class="keys">{keys}</figcaption></figure>' if chart else ""


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
