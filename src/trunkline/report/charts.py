"""A scatter chart as inline SVG: points of several shapes, lines across, round ticks.

Positions are SVG units, which are CSS pixels at the chart's natural width. Colours come from the page's style by class.
This module knows nothing about tasks or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline.report.markup import escape, svg

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 64, 80, 30, 44
LINE_HEIGHT = 15
Box = tuple[float, float, float, float]  # left, top, right, bottom
Scale = Callable[[float], float]  # a value -> its place in SVG units


@dataclass(frozen=True)
class Point:
    """One mark. `css` gives the colour; `hollow` draws only its outline; a `ring` and a label set it apart."""

    x: float
    y: float
    title: str
    css: str
    shape: str = "circle"
    hollow: bool = False
    ring: bool = False
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A line across the chart at `at`, labelled at its end; `label` may hold several lines of text."""

    at: float
    label: tuple[str, ...]
    css: str = ""
    vertical: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis' name and how its ticks are written (value, step -> text)."""

    label: str
    write: Callable[[float, float], str]
    from_zero: bool = False


def plain(value: float, step: float) -> str:
    """A tick with as many decimals as its step needs."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if not math.isclose(step * 10**digits, round(step * 10**digits)):
        digits += 1
    return f"{value:.{digits}f}".replace("-", "−")


def share(value: float, step: float) -> str:
    """A tick of a fraction, in per cent."""
    return plain(100 * value, 100 * step) + "\u00a0%"


def scatter(
    name: str, title: str, description: str, points: Sequence[Point], lines: Sequence[Line], *, x: Axis, y: Axis
) -> str:
    """The chart, or an empty string where there is no point to draw. `name` is unique on the page."""
    if not points:
        return ""
    xs = _ticks([p.x for p in points] + [line.at for line in lines if line.vertical], from_zero=x.from_zero)
    ys = _ticks([p.y for p in points] + [line.at for line in lines if not line.vertical], from_zero=y.from_zero)

    def across(value: float) -> float:
        return LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)

    parts = _frame(xs, ys, across, up, x, y)
    parts += _lines(lines, across, up)
    # The ringed points last: nothing may cover what was chosen.
    parts += [_mark(p, across(p.x), up(p.y)) for p in sorted(points, key=lambda p: p.ring)]
    parts += _labels([(p, across(p.x), up(p.y)) for p in points])
    return svg(name, title, description, WIDTH, HEIGHT, "\n".join(parts), css="scatter")


def mark(shape: str, x: float, y: float, *, size: float = 4.5) -> str:
    """The bare element of a shape around (x, y), still to be closed by the caller: '<circle …' without '/>'."""
    if shape == "diamond":
        s = size * 1.25
        return f'<path d="M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}z"'
    if shape == "square":
        s = size * 0.9
        return f'<rect x="{x - s:.1f}" y="{y - s:.1f}" width="{2 * s:.1f}" height="{2 * s:.1f}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}"'


def _ticks(values: Sequence[float], *, from_zero: bool) -> list[float]:
    """Round ticks around all values, at least two, with some air unless the axis starts at zero."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) * 0.1 or 1.0
    low, high = (min(0.0, low), high + 0.04 * spread) if from_zero else (low - 0.06 * spread, high + 0.06 * spread)
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _frame(xs: Sequence[float], ys: Sequence[float], across: Scale, up: Scale, x: Axis, y: Axis) -> list[str]:
    parts = [f'<text class="name" x="0" y="12">{escape(y.label)}</text>']
    for value in ys:
        at = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = escape(y.write(value, ys[1] - ys[0]))
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value in xs:
        text = escape(x.write(value, xs[1] - xs[0]))
        parts.append(
            f'<text class="tick" x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>'
        )
    floor = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle, name = (LEFT + WIDTH - RIGHT) / 2, escape(x.label)
    parts.append(f'<text class="name" x="{middle:g}" y="{HEIGHT - 8}" text-anchor="middle">{name}</text>')
    return parts


def _lines(lines: Sequence[Line], across: Scale, up: Scale) -> list[str]:
    parts = []
    free = -math.inf  # the first height at which the next label cannot touch the one above it
    for line in sorted((line for line in lines if not line.vertical), key=lambda line: -line.at):
        at = up(line.at)
        parts.append(f'<line class="{line.css}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        first = max(at + 4 - LINE_HEIGHT * (len(line.label) - 1) / 2, free)
        free = first + LINE_HEIGHT * len(line.label)
        for i, text in enumerate(line.label):
            parts.append(
                f'<text class="note" x="{WIDTH - RIGHT + 6}" y="{first + LINE_HEIGHT * i:.1f}">{escape(text)}</text>'
            )
    for line in (line for line in lines if line.vertical):
        at = across(line.at)
        parts.append(f'<line class="{line.css}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        left = at < (LEFT + WIDTH - RIGHT) / 2  # a label goes where there is room for it
        x, anchor = (at + 5, "start") if left else (at - 5, "end")
        text = escape(" ".join(line.label))
        parts.append(f'<text class="note halo" x="{x:.1f}" y="{TOP + 10}" text-anchor="{anchor}">{text}</text>')
    return parts


def _mark(p: Point, x: float, y: float) -> str:
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>' if p.ring else ""
    css = f"point {escape(p.css)}" + (" hollow" if p.hollow else "") + (" chosen" if p.ring else "")
    shape = mark(p.shape, x, y)
    tag = shape[1 : shape.index(" ")]
    return f'{ring}{shape} class="{css}"><title>{escape(p.title)}</title></{tag}>'


def _labels(placed: Sequence[tuple[Point, float, float]]) -> list[str]:
    """Each label above, below, right or left of its point: the first place with the fewest other marks and labels."""
    taken = [_around(x, y, 10 if p.ring else 6, 10 if p.ring else 6) for p, x, y in placed]
    parts = []
    for p, x, y in sorted((one for one in placed if one[0].label), key=lambda one: not one[0].ring):
        half, gap = 3.6 * len(p.label), 9 if p.ring else 5
        places = [(x, y - gap - 8), (x, y + gap + 8), (x + gap + 5 + half, y), (x - gap - 5 - half, y)]
        boxes = [_around(at_x, at_y, half, 6) for at_x, at_y in places]
        costs = [sum(_touch(box, other) for other in taken) + 9 * _outside(box) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        css = "label halo" + (" strong" if p.ring else "")
        at_x, at_y = places[best]
        parts.append(
            f'<text class="{css}" x="{at_x:.1f}" y="{at_y + 4:.1f}" text-anchor="middle">{escape(p.label)}</text>'
        )
    return parts


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _outside(box: Box) -> bool:
    return box[0] < LEFT or box[1] < TOP - 8 or box[2] > WIDTH - RIGHT or box[3] > HEIGHT - BOTTOM
