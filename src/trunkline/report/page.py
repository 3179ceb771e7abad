"""The report as one HTML page: no script, no network, light and dark by the reader's own setting.

This module puts the parts in order and draws the merged model; it knows nothing about how the figures came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from trunkline.report import wording
from trunkline.report.content import Chosen, Content, Merged, Task, read
from trunkline.report.drawing import Limb, draw, glyph
from trunkline.report.markup import escape
from trunkline.report.selection import selection
from trunkline.report.tasks import overview, task_section


def render(report: Mapping[str, Any]) -> str:
    """The page for the pipeline's report data."""
    content = read(report)
    parts = [
        _header(content),
        _model(content),
        overview(content),
        selection(content),
        _tasks(content),
        _origin(content),
    ]
    title = f"{content.project or 'Trunkline'}: {wording.count(len(content.tasks), 'task')} in one pass"
    style = resources.files("trunkline.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched, whatever a task's name or note holds.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(content: Content) -> str:
    verdict, sentence = wording.budget(content)
    sign = {"met": "✓", "missed": "✗"}.get(verdict, "")
    sign = f'<span class="sign" aria-hidden="true">{sign}</span> ' if sign else ""
    about = [wording.moment(content.created)]
    if content.release.get("id"):
        about.append(f"release {content.release['id']}")
    tiles = _tiles(content.merged, len(content.tasks)) if content.merged else ""
    return (
        f'<header>\n<p class="project"><b>{escape(content.project)}</b> '
        f"{escape(' · '.join(part for part in about if part))}</p>\n"
        f"<h1>{escape(wording.headline(content))}</h1>\n"
        f'<p class="budget {verdict}">{sign}{escape(sentence)}</p>\n{tiles}</header>'
    )


def _tiles(merged: Merged, n: int) -> str:
    separate, whose = (f"{n} full models", f"{n} full models") if n != 1 else ("full model", "its full model")
    quality = _tile(
        "Quality",
        wording.percent(merged.relative_quality),
        f"of full fine-tuning, {'mean over tasks' if n != 1 else 'on the reported split'}",
        [
            (separate, merged.quality_full, wording.number(merged.quality_full)),
            ("merged", merged.quality, wording.number(merged.quality)),
        ],
    )
    time = _tile(
        "Measured time",
        wording.percent(merged.relative_time),
        f"of {whose}, same engine",
        [
            (separate, merged.ms_separate, wording.milliseconds(merged.ms_separate)),
            ("merged", merged.ms_merged, wording.milliseconds(merged.ms_merged)),
        ],
    )
    layers = _tile(
        "Layers",
        wording.percent(merged.relative_layers),
        f"of the layers of {whose}",
        [
            (separate, merged.layers_separate, wording.whole(merged.layers_separate)),
            ("merged", merged.layers_in_graph, wording.whole(merged.layers_in_graph)),
        ],
    )
    return f'<div class="tiles">\n{quality}\n{time}\n{layers}\n</div>\n'


def _tile(label: str, value: str, under: str, bars: list[tuple[str, float | None, str]]) -> str:
    most = max([abs(size) for _, size, _ in bars if size is not None], default=0.0) or 1.0
    drawn = "".join(
        f'<div class="bar"><dt>{escape(name)}</dt><dd><span class="track" aria-hidden="true">'
        f'<span class="{"ours" if name == "merged" else "theirs"}" style="width:{100 * max(size or 0, 0) / most:.1f}%">'
        f"</span></span><span>{escape(text)}</span></dd></div>"
        for name, size, text in bars
    )
    return (
        f'<div class="tile"><p class="label">{escape(label)}</p><p class="big">{escape(value)}</p>'
        f'<p class="under">{escape(under)}</p><dl>{drawn}</dl></div>'
    )


def _model(content: Content) -> str:
    limbs = [_limb(task, task.chosen) for task in content.tasks if task.chosen]
    if not limbs or content.merged is None:
        return ""
    depth, trunk = content.encoder_depth, content.merged.trunk_depth
    own = sum(limb.layers for limb in limbs)
    drawings = "\n".join(
        draw(f"model-{form}", depth, trunk, limbs, narrow=form == "narrow") for form in ("wide", "narrow")
    )
    readings = sorted({limb.reading for limb in limbs})
    trained = sorted({limb.css for limb in limbs}, reverse=True)  # tuned first, as in every chart
    keys = [
        f'<span class="key"><i class="swatch {escape(css)}"></i>own layer, {escape(wording.stage(css))}</span>'
        for css in trained
    ]
    keys.append('<span class="key"><i class="swatch round"></i>head</span>')
    keys += [
        '<span class="key"><svg aria-hidden="true" viewBox="0 0 18 14" width="18" height="14">'
        f"{glyph(one, 0.5, 7)}</svg>{escape(wording.reading(one))}</span>"
        for one in readings
    ]
    whose = "the tasks' own" if len(limbs) != 1 else "the task's own"
    lead = (
        f"{wording.count(trunk, 'trunk layer')}, run once for all, and {wording.count(own, 'layer')} of {whose}. "
        "A branch leaves the trunk at its fork; the figure at its end is its quality relative to its own full model."
    )
    return (
        f'<section>\n<h2>The merged model</h2>\n<p class="lead">{escape(lead)}</p>\n<figure class="card">\n{drawings}\n'
        f'<figcaption class="keys">{"".join(keys)}</figcaption>\n</figure>\n</section>'
    )


def _limb(task: Task, one: Chosen) -> Limb:
    value = wording.percent(task.relative) if task.relative is not None else wording.number(task.merged)
    words = wording.reading(one.reading)
    return Limb(task.name, one.fork, one.layers, one.reading, words, task.stage or "tune", value)


def _tasks(content: Content) -> str:
    if not content.tasks:
        return ""
    sections = "\n".join(task_section(content, task, i) for i, task in enumerate(content.tasks))
    return f"<section>\n<h2>Task by task</h2>\n{sections}\n</section>"


def _origin(content: Content) -> str:
    """Where the figures come from: all that someone needs to measure them again."""
    encoder = content.encoder
    if content.encoder_depth:
        size = [wording.count(content.encoder_depth, "layer")]
        if content.encoder_width:
            size.append(f"{content.encoder_width} wide")
        encoder = f"{encoder} ({', '.join(size)})"
    facts = [
        ("Encoder", encoder),
        ("Fingerprint", content.fingerprint),
        ("Machine", wording.machine(content)),
        ("Timed request", wording.request(content)),
        ("Seeds", ", ".join(str(seed) for seed in content.seeds)),
        ("Selection", "made on valid, which is never the reported split"),
        ("Reported splits", ", ".join(sorted({task.reported for task in content.tasks}))),
        ("Release", content.release.get("id", "")),
        ("Bundle", content.release.get("bundle", "")),
    ]
    rows = "\n".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v)
    return f'<section>\n<h2>Where these figures come from</h2>\n<dl class="facts">\n{rows}\n</dl>\n</section>'
