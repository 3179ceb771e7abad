"""The label space of a task: inferred from train alone or listed in its file, and checked against every split.

Knows parsed rows and the task's settings. Does not read files and cuts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trunkline.errors import Problem
from trunkline.project.config import TaskSettings
from trunkline.project.explain import quoted, show
from trunkline.project.parsing import Parsed
from trunkline.project.readers import Faults
from trunkline.project.rows import Rows
from trunkline.project.tasks import METRICS, NEEDS_POSITIVE, Kind, order_labels, recognise_positive


@dataclass
class LabelSpace:
    """Labels of a task, and which is the positive one; empty and None where that cannot be said."""

    labels: tuple[str, ...] = ()
    positive: str | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def label_lists(kind: Kind, rows: Rows) -> Sequence[Sequence[str]]:
    """The labels of each row as a list, whatever the kind; none for regression."""
    if kind is Kind.REGRESSION:
        return [()] * len(rows)
    if kind in {Kind.CLASSIFICATION, Kind.RELEVANCE}:
        return [(label,) for label in rows.targets]
    return rows.targets


def find_labels(task_file: str, settings: TaskSettings, train: Parsed) -> LabelSpace:
    """The label space that train (or the task file's `labels`) spans, with what is wrong with it."""
    kind, given, file = settings.kind, settings.labels, train.file
    space = LabelSpace()
    if kind is Kind.REGRESSION:
        if len(set(train.rows.targets)) == 1:
            found = f"{train.rows.targets[0]:g} in every row"
            space.problems.append(Problem(file, "", "every score is the same", found, "scores that differ"))
        return space
    count = Counter(label for labels in label_lists(kind, train.rows) for label in labels)
    space.labels = tuple(given) if given is not None else order_labels(kind, count)
    if given is not None and (idle := [label for label in given if label not in count]):
        space.notes.append(f"{file}: no row has {quoted(idle)}")
    short = _too_few(kind, sorted(count))
    if short is not None:
        message, found, allowed = short
        space.problems.append(Problem(file, "", message, found, allowed))
    elif kind is Kind.RELEVANCE and len(space.labels) != 2:
        found = f"{len(space.labels)} labels: {quoted(space.labels)}"
        space.problems.append(Problem(file, "", "relevance has two labels", found, "two labels"))
    else:
        _find_positive(task_file, settings, space)
    return space


def _too_few(kind: Kind, seen: Sequence[str]) -> tuple[str, str, str] | None:
    if kind is Kind.TAGGING:
        return ("no entity in any row", 'only "O" tags', "some B- tags") if set(seen) <= {"O"} else None
    if kind is Kind.MULTILABEL:
        return None if seen else ("no label in any row", "only empty lists", "some labels")
    return None if len(seen) > 1 else ("only one label", quoted(seen), "at least two labels")


def _find_positive(task_file: str, settings: TaskSettings, space: LabelSpace) -> None:
    kind, asked, metric = settings.kind, settings.positive, settings.metric

    def wrong(where: str, message: str, found: str, allowed: str) -> None:
        space.problems.append(Problem(task_file, where, message, found, allowed))

    if asked is not None and asked not in space.labels:
        wrong("positive", "not one of the labels", show(asked), quoted(space.labels))
        return
    if kind not in {Kind.CLASSIFICATION, Kind.RELEVANCE}:
        return
    if len(space.labels) > 2:
        if metric in NEEDS_POSITIVE:
            others = ", ".join(name for name in METRICS[kind] if name not in NEEDS_POSITIVE)
            wrong("metric", "needs a task of two labels", f"{show(metric)} with {len(space.labels)} labels", others)
        return
    space.positive = asked if asked is not None else recognise_positive(space.labels)
    if space.positive is None and (kind is Kind.RELEVANCE or metric in NEEDS_POSITIVE):
        reason = kind.value if kind is Kind.RELEVANCE else f"metric {show(metric)}"
        choices = " or ".join(f"positive = {show(label)}" for label in space.labels)
        wrong("positive", f"{reason} must know which label is the positive one", "nothing", choices)
    elif space.positive is not None and kind is Kind.RELEVANCE:
        space.labels = (next(label for label in space.labels if label != space.positive), space.positive)


def check_labels(
    settings: TaskSettings, space: LabelSpace, split: str, parsed: Parsed, train_file: str
) -> list[Problem]:
    """What is wrong with the labels of a split: those outside the label space, with their rows."""
    kind = settings.kind
    if kind is Kind.REGRESSION or (split == "train" and settings.labels is None):
        return []
    known = set(space.labels)
    noun = "tag" if kind is Kind.TAGGING else "label"
    listed = settings.labels is not None
    source = "`labels` of the task" if listed else f"the {noun}s of {train_file}"
    allowed = quoted(space.labels) + ("" if listed else f"; or list every {noun} in `labels` of the task")
    faults = Faults(parsed.file, parsed.unit)
    for line, labels in zip(parsed.lines, label_lists(kind, parsed.rows), strict=True):
        for label in dict.fromkeys(labels):
            if label not in known:
                faults.add(f"{noun} is not one of {source}", line, show(label), allowed)
    problems = faults.problems()
    if not problems and split != "train" and kind is Kind.RELEVANCE and len(set(parsed.rows.targets)) == 1:
        found = f"{show(parsed.rows.targets[0])} in every row"
        problems.append(Problem(parsed.file, "", "only one label", found, "rows of both labels"))
    return problems
