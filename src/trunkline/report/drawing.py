"""The merged model as a drawing: a trunk from left to right, each branch leaving it at its fork.

A column is a depth: a branch's first own layer stands under the trunk layer that it replaces. The deepest fork comes
first, so no branch ever crosses another's line. There is a wide form, and a narrow one for a phone with the names over
the blocks.
This module knows nothing about quality or cost beyond the text it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trunkline.report.markup import escape, svg

LETTER = 8.2  # a bold letter at 13 px in a wide font; names are cut to fit, with the whole name in a title


@dataclass(frozen=True)
class Limb:
    """A branch to draw: `css` is its colour, `value` the text at the far right."""

    name: str
    fork: int
    layers: int
    reading: str
    reading_words: str
    css: str
    value: str


@dataclass(frozen=True)
class _Form:
    """Measures of one form of the drawing, all in px: a column's `step` and the `block` in it, a `row`'s height."""

    step: float
    block: float
    row: float
    right: float  # where the names begin (wide) or end (narrow)
    width: float
    narrow: bool

    @property
    def gap(self) -> float:
        return self.step - self.block

    def left_of(self, column: int) -> float:
        return 8 + column * self.step

    def fork(self, column: int) -> float:
        """The x of the line that leaves the trunk behind layer `column`."""
        return self.left_of(column) + self.block + self.gap / 2


TRUNK_TOP, TRUNK_HEIGHT = 26, 30
MIDDLE = TRUNK_TOP + TRUNK_HEIGHT / 2


def draw(name: str, depth: int, trunk: int, limbs: Sequence[Limb], *, narrow: bool) -> str:
    """The drawing. depth: the encoder's layers; trunk: those in the merged model; `name` is unique on the page."""
    ordered = sorted(limbs, key=lambda limb: (-limb.fork, limb.layers, limb.name))
    columns = max([depth, trunk, *(limb.fork + limb.layers for limb in limbs)])
    form = _form(columns, len(limbs), narrow)
    top = TRUNK_TOP + TRUNK_HEIGHT + (14 if narrow else 12)
    rows = {id(limb): top + form.row * (i + 0.5) + (8 if narrow else 0) for i, limb in enumerate(ordered)}
    parts = _trunk(form, depth, trunk)
    for fork in sorted({limb.fork for limb in ordered}):
        last = max(rows[id(limb)] for limb in ordered if limb.fork == fork)
        x, radius = form.fork(fork), min(3.5, form.gap / 2)
        parts.append(f'<path class="wire" d="M{x:.1f} {MIDDLE:g}V{last - _corner(form):.1f}"/>')
        parts.append(f'<circle class="joint" cx="{x:.1f}" cy="{MIDDLE:g}" r="{radius:g}"/>')
    for limb in ordered:
        parts.append(_limb(form, limb, rows[id(limb)]))
    height = top + form.row * len(ordered) + 6
    title = f"The merged model: a trunk of {trunk} layers with {len(limbs)} branches"
    css = "model narrow" if narrow else "model wide"
    return svg(name, title, describe(depth, trunk, ordered), form.width, height, "\n".join(parts), css=css)


def describe(depth: int, trunk: int, limbs: Sequence[Limb]) -> str:
    """The drawing in words, for those who do not see it."""
    words = [f"The trunk holds {trunk} of the encoder's {depth} layers."]
    for fork in sorted({limb.fork for limb in limbs}, reverse=True):
        here = [limb for limb in limbs if limb.fork == fork]
        names = ", ".join(f"{limb.name} (own layers: {limb.layers}, {limb.reading_words})" for limb in here)
        words.append(f"At fork {fork}: {names}.")
    return " ".join(words)


def glyph(reading: str, x: float, y: float) -> str:
    """How a text or a pair goes in: one bar, one bar in two parts, or two bars."""
    bars: list[tuple[float, float, float, float]]
    if reading == "joint":
        bars = [(x, y - 2.5, 7.5, 5), (x + 9, y - 2.5, 7.5, 5)]
        line = f'<path class="wire" d="M{x + 7:g} {y:.1f}h3"/>'
    elif reading == "separate":
        bars, line = [(x, y - 5.5, 16.5, 4.5), (x, y + 1, 16.5, 4.5)], ""
    else:
        bars, line = [(x, y - 2.5, 16.5, 5)], ""
    drawn = (f'<rect x="{a:.1f}" y="{b:.1f}" width="{w:g}" height="{h:g}" rx="1.5"/>' for a, b, w, h in bars)
    return f'<g class="glyph">{line}{"".join(drawn)}</g>'


def _form(columns: int, rows: int, narrow: bool) -> _Form:
    if narrow:
        step = min(34.0, 200 / (columns + 1))
        return _Form(step, step * 0.72, 44, 352, 360, narrow=True)
    step = min(80.0, 560 / (columns + 1))
    right = 8 + (columns + 1) * step + 34
    return _Form(step, step * 0.72, 28 if rows <= 24 else 22, right, right + 390, narrow=False)


def _corner(form: _Form) -> float:
    return min(7.0, form.gap / 2)


def _trunk(form: _Form, depth: int, trunk: int) -> list[str]:
    end = form.left_of(trunk) + form.block
    label = f"trunk: {trunk} frozen layer" + ("s" if trunk != 1 else "")
    parts = [f'<text class="name" x="{form.left_of(0):g}" y="14">{label}</text>']
    parts.append(f'<path class="spine" d="M{form.left_of(0):g} {MIDDLE:g}H{end:.1f}"/>')
    parts.append(f'<path class="wire" d="M{end:.1f} {MIDDLE:g}H{form.fork(trunk):.1f}"/>')
    for column in range(max(depth, trunk) + 1):
        x, ghost = form.left_of(column), column > trunk
        css = "ghost" if ghost else "embed" if column == 0 else "trunk"
        what = "embeddings" if column == 0 else f"trunk layer {column}"
        title = f"layer {column} of the encoder, not in the merged model" if ghost else what
        parts.append(
            f'<rect class="{css}" x="{x:.1f}" y="{TRUNK_TOP}" width="{form.block:.1f}" height="{TRUNK_HEIGHT}" '
            f'rx="{min(4, form.block / 4):g}"><title>{title}</title></rect>'
        )
        # Where blocks are small every fourth one is numbered; where they are tiny, none.
        if form.block >= 17 or (form.block >= 13 and column % 4 == 0):
            text = "emb" if column == 0 and form.block >= 28 else "e" if column == 0 else str(column)
            at = x + form.block / 2
            parts.append(f'<text class="in {css}" x="{at:.1f}" y="{MIDDLE + 4:g}" text-anchor="middle">{text}</text>')
    if depth > trunk:
        after = form.left_of(depth) + form.block + 8
        parts.append(f'<text class="name" x="{after:.1f}" y="{MIDDLE + 4:g}">not needed</text>')
    return parts


def _limb(form: _Form, limb: Limb, y: float) -> str:
    x, corner, css = form.fork(limb.fork), _corner(form), escape(limb.css)
    first = form.left_of(limb.fork + 1)
    head = form.left_of(limb.fork + 1 + limb.layers) + (0 if limb.layers else form.gap / 2) + 6
    parts = [f'<path class="wire" d="M{x:.1f} {y - corner:.1f}Q{x:.1f} {y:.1f} {x + corner:.1f} {y:.1f}H{head:.1f}"/>']
    for i in range(limb.layers):
        at = first + i * form.step
        parts.append(
            f'<rect class="own {css}" x="{at:.1f}" y="{y - 8:.1f}" width="{form.block:.1f}" height="16" '
            f'rx="{min(3, form.block / 4):g}"/>'
        )
    parts.append(f'<circle class="head {css}" cx="{head:.1f}" cy="{y:.1f}" r="5"/>')
    parts += _narrow_text(form, limb, y) if form.narrow else _wide_text(form, limb, head, y)
    title = escape(f"{limb.name}: fork {limb.fork}, own layers: {limb.layers}, {limb.reading_words}, {limb.value}")
    return f'<g class="limb"><title>{title}</title>{"".join(parts)}</g>'


def _wide_text(form: _Form, limb: Limb, head: float, y: float) -> list[str]:
    return [
        f'<path class="leader" d="M{head + 9:.1f} {y:.1f}H{form.right - 8:.1f}"/>',
        f'<text class="task" x="{form.right:.1f}" y="{y + 4.5:.1f}">{escape(cut(limb.name, 188))}</text>',
        glyph(limb.reading, form.right + 192, y),
        f'<text class="words" x="{form.right + 216:.1f}" y="{y + 4:.1f}">{escape(limb.reading_words)}</text>',
        f'<text class="value" x="{form.width - 4:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(limb.value)}</text>',
    ]


def _narrow_text(form: _Form, limb: Limb, y: float) -> list[str]:
    above, name = y - 15, cut(limb.name, 240)
    # Over its own blocks, or as far to the left of them as the name needs.
    x = max(8.0, min(form.fork(limb.fork) + 8, form.right - 90 - LETTER * len(name)))
    return [
        f'<text class="value halo" x="{form.right:g}" y="{above:.1f}" text-anchor="end">{escape(limb.value)}</text>',
        glyph(limb.reading, form.right - 80, above - 4),
        f'<text class="task halo" x="{x:.1f}" y="{above:.1f}">{escape(name)}</text>',
    ]


def cut(name: str, room: float) -> str:
    """The name, shortened with an ellipsis to `room` px."""
    letters = int(room / LETTER)
    return name if len(name) <= letters else name[: letters - 1] + "…"
