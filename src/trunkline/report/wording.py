"""Numbers and sentences of the report, shared by the page and the terminal, so that both say the same.

This module knows nothing about HTML or the terminal; a missing number is always "–".
"""

from __future__ import annotations

from datetime import datetime

from trunkline.report.content import Calibration, Candidate, Choice, Chosen, Content, Exits, Merged, Scope, Speed
from trunkline.report.teaching import Change, Students, Teaching

MISSING = "–"
READINGS = {"single": "single text", "joint": "pair, joint", "separate": "pair, separate"}
STAGES = {"tune": "tuned", "distill": "distilled"}
LEAVES = {"entropy": "leaves at the first that is sure of it", "patience": "leaves once enough of them agree on it"}


def number(value: float | None, digits: int = 3) -> str:
    """A metric's value."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def whole(value: int | None) -> str:
    """A count."""
    return MISSING if value is None else f"{value:,}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; exactly zero after rounding has none."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, with a no-break space before the sign."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u00a0%".replace("-", "−")


def milliseconds(value: float | None, *, unit: bool = True) -> str:
    """A time in ms to three significant digits."""
    if value is None:
        return MISSING
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}" + ("\u00a0ms" if unit else "")


def count(n: int, noun: str) -> str:
    """ "1 task", "2,000 rows"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def reading(name: str) -> str:
    """How a branch reads its input, in words."""
    return READINGS.get(name, name)


def stage(name: str | None) -> str:
    """How a branch was trained, in words."""
    return STAGES.get(name or "", name or MISSING)


def full(reading: str, learning_rate: float) -> str:
    """How a full model was trained."""
    return ", ".join([f"fine-tuned at {learning_rate:g}", *_read(reading)])


def calibration(found: Calibration, split: str) -> str:
    """How far confidence is from accuracy, in a sentence."""
    return (
        f"Its scores are calibrated on valid (temperature {found.temperature:.2f}): on {split} they miss its accuracy "
        f"by {number(found.after)} on average (ECE), {number(found.before)} before."
    )


def scope(found: Scope, split: str) -> str:
    """How often a text in scope is flagged, in a sentence."""
    return (
        f"Texts out of scope are flagged, and {percent(found.asked)} of those in scope may be: "
        f"{percent(found.valid)} of valid and {percent(found.reported)} of {split} are."
    )


def exits(found: Exits) -> str:
    """Where rows may leave, in a sentence."""
    if not found.kept:
        return "No exit saves enough time, so there is none."
    places = ", ".join(f"{depth} ({form})" for depth, form in found.kept)
    return f"Exits after layer {places}: a row {LEAVES.get(found.rule, 'leaves early')}."


def kept(row: Speed) -> str:
    """How much of the quality on valid a speed keeps."""
    return "all" if row.keep is None else percent(row.keep)


def left(found: Exits, row: Speed) -> str:
    """Where rows were answered at a speed: the shares by layer, and of the head."""
    places = [*(str(depth) for depth, _ in found.kept), "head"]
    shares = zip(places, row.left, strict=False)
    return ", ".join(f"{place}: {percent(part, 0)}" for place, part in shares if part)


def taught_by(found: Teaching, one: Students) -> str:
    """Who taught a student, in as few words as tell it from the others."""
    missing = [name for name in found.everyone if name not in one.teachers]
    if not one.teachers:
        return "labels alone"
    if set(one.teachers) == set(found.everyone):
        return "all" if len(one.teachers) > 1 else one.teachers[0]
    if len(one.teachers) == 1:
        return f"{one.teachers[0]} alone"
    fewer = set(one.teachers) < set(found.everyone)  # students of another L may have others
    return f"all but {missing[0]}" if fewer and len(missing) == 1 else " + ".join(one.teachers)


def change(found: Change | None) -> str:
    """A difference with its spread over seeds, where there are several."""
    if found is None:
        return ""
    return signed(found.mean) + (f" ± {number(found.spread)}" if found.spread is not None else "")


def helped(found: Teaching) -> str:
    """What each teacher was good for, in a sentence; empty where none was left out."""
    parts = [f"{name} {change(lost)}" for name, lost in sorted(found.left_out.items(), key=lambda one: one[1].mean)]
    if not parts:
        return ""
    spread = any(lost.spread is not None for lost in found.left_out.values())
    over = " (mean and standard deviation over seeds)" if spread else ""
    return f"What it changes on valid to leave a teacher out{over}: {', '.join(parts)}."


def place(fork: int, layers: int, latents: int = 0) -> str:
    """Where a branch leaves the trunk and what it adds."""
    of = f" of {count(latents, 'latent')}" if latents else ""
    return f"fork {fork} + {count(layers, 'layer')}{of}" if layers else f"fork {fork}, a head alone"


def branch(one: Candidate | Chosen, trained: str | None) -> str:
    """A candidate in one phrase."""
    parts = [trained and stage(trained), place(one.fork, one.layers, one.latents)]
    parts += _read(one.reading)
    if one.seed is not None:
        parts.append(f"seed {one.seed}")
    return ", ".join(part for part in parts if part)


def moment(created: str) -> str:
    """An ISO time as a reader writes it; anything else as it stands."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = when.tzname() or ""
    return f"{when.day} {when:%B %Y, %H:%M} {zone}".strip()


def headline(content: Content) -> str:
    """The report in one sentence."""
    n, merged = len(content.tasks), content.merged
    if merged is None:
        return f"{count(n, 'task')} trained; nothing is merged yet."
    shares = []
    if merged.relative_quality is not None:
        shares.append(f"{percent(merged.relative_quality)} of the quality")
    if merged.relative_time is not None:
        shares.append(f"{percent(merged.relative_time)} of the measured time")
    parts = [f"{count(n, 'task')} in one pass"]
    if shares:
        models = f"{n} separate full models" if n != 1 else "its full model"
        parts.append(f": {' and '.join(shares)} of {models}")
    if merged.layers_in_graph is not None and merged.layers_separate is not None:
        parts.append(f", with {merged.layers_in_graph} layers instead of {merged.layers_separate}")
    return "".join(parts) + "."


def budget(content: Content) -> tuple[str, str]:
    """What was asked and what came of it: (verdict, sentence). The verdict is "met", "missed" or "none"."""
    merged = content.merged
    if merged is None or (merged.min_relative_quality is None and merged.max_cost is None):
        return "none", "No budget was given."
    verdict = "none" if merged.met is None else "met" if merged.met else "missed"
    word = {"met": "Budget met", "missed": "Budget missed", "none": "Budget"}[verdict]
    return verdict, f"{word}: {_asked(merged)}{_found(content.selected, merged)}."


def _asked(merged: Merged) -> str:
    if merged.min_relative_quality is not None:
        # Two digits: 99.58 % must not read as the 99.6 % that was asked for.
        return f"at least {percent(merged.min_relative_quality, 2)} of full quality was asked"
    return f"at most {percent(merged.max_cost, 2)} of the separate models' time was asked"


def _found(selected: Choice | None, merged: Merged) -> str:
    if merged.min_relative_quality is not None:
        if selected is None or selected.quality is None:
            return ""
        return f"; the selection reached {percent(selected.quality, 2)} on valid, where it is made"
    return "" if merged.relative_time is None else f"; the merged model takes {percent(merged.relative_time, 2)}"


def request(content: Content) -> str:
    """The request on which every time was measured."""
    cost = content.cost
    shape = [f"batch {cost['batch']}"] if "batch" in cost else []
    shape += [f"{cost['tokens']} tokens"] if "tokens" in cost else []
    parts = [" × ".join(shape)]
    parts += [cost[key] for key in ("engine", "dtype") if key in cost]
    return ", ".join(part for part in parts if part)


def machine(content: Content) -> str:
    """The machine in one phrase."""
    known = content.machine
    parts = [known.get("cpu", ""), f"{known['cores']} cores" if "cores" in known else ""]
    parts += [f"{key} {value}" for key, value in known.items() if key not in ("cpu", "cores")]
    return ", ".join(part for part in parts if part)


def _read(reading: str) -> list[str]:
    if reading == "single":
        return []
    return [f"pair read {reading}ly" if reading in READINGS else reading]
