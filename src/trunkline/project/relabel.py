"""How the outputs of a foreign teacher become logits of a task: labels by name, so that no order can be mistaken.

Knows label names and numbers; nothing of models or files.

Notation: C labels of the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import Problem
from trunkline.project.explain import quoted, show
from trunkline.project.tasks import Kind


@dataclass(frozen=True)
class Where:
    """What a problem of a teacher's labels is about: the task's file, and the teacher as the file names it."""

    file: str
    teacher: str

    @property
    def map(self) -> str:
        """The key that says which of the teacher's labels is which of the task's."""
        return f'distill.label_maps."{self.teacher}"'

    def problem(self, message: str, found: str, allowed: str) -> Problem:
        """A problem of the teacher itself."""
        return Problem(self.file, "distill.teachers", f"{self.teacher} {message}", found, allowed)


@dataclass(frozen=True)
class Relabel:
    """Which outputs of a teacher each label of the task is made of, in the task's order.

    Without `sources`, the one output is a number of regression, or the logit of the label at place `positive`.
    """

    sources: tuple[tuple[int, ...], ...]
    positive: int | None = None

    def __call__(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Logits (..., C) of the task from a teacher's outputs (...); where several become one label, shares add up."""
        if self.sources:
            picked = [np.logaddexp.reduce(outputs[..., list(source)], axis=-1) for source in self.sources]
            return np.stack(picked, axis=-1)
        if self.positive is None:
            return outputs
        other = np.zeros_like(outputs)
        return np.concatenate([outputs, other] if self.positive == 0 else [other, outputs], axis=-1)


def relabel(
    kind: Kind,
    labels: Sequence[str],
    positive: str | None,
    outputs: Sequence[str],
    renamed: Mapping[str, str],
    where: Where,
) -> tuple[Relabel, list[Problem]]:
    """How a teacher's `outputs`, by name, become a task's `labels`, and all that stands against it.

    Names that are equal are the same label. `renamed` says what the task calls others, "" for what it does not have.
    """
    if kind is not Kind.REGRESSION and not (kind is Kind.RELEVANCE and len(outputs) == 1):
        sources = tuple(tuple(_sources(label, outputs, renamed)) for label in labels)
        return Relabel(sources), list(_mismatches(kind, labels, outputs, renamed, where))
    problems = []
    if len(outputs) != 1:
        problems.append(where.problem("gives no single number", f"{len(outputs)} outputs", "one output"))
    if renamed:
        problems.append(Problem(where.file, where.map, "a number has no label", quoted(list(renamed)), "leave it out"))
    if kind is Kind.REGRESSION:
        return Relabel(()), problems
    return Relabel((), 1 if positive is None else labels.index(positive)), problems


def _sources(label: str, outputs: Sequence[str], renamed: Mapping[str, str]) -> Iterator[int]:
    return (place for place, name in enumerate(outputs) if renamed.get(name, name) == label)


def _mismatches(
    kind: Kind, labels: Sequence[str], outputs: Sequence[str], renamed: Mapping[str, str], where: Where
) -> Iterator[Problem]:
    if len(set(outputs)) < len(outputs):
        twice = sorted({name for name in outputs if list(outputs).count(name) > 1})
        yield where.problem("has several labels of one name", quoted(twice), "distinct names")
        return
    if unknown := [name for name in renamed if name not in outputs]:
        yield Problem(where.file, where.map, "not a label of this teacher", quoted(unknown), quoted(outputs))
    if strange := [name for name in renamed.values() if name and name not in labels]:
        allowed = f'{quoted(labels)}, or "" for what the task does not have'
        yield Problem(where.file, where.map, "not a label of this task", quoted(strange), allowed)
    if extra := [name for name in outputs if name not in renamed and name not in labels]:
        allowed = f"{quoted(labels)}, or what {where.map} says they are"
        yield where.problem("has labels that the task does not have", quoted(extra), allowed)
    counts = {label: len(list(_sources(label, outputs, renamed))) for label in labels}
    if missing := [label for label in labels if not counts[label]]:
        allowed = f"every label of the task; {where.map} says which of {quoted(outputs)} each is"
        yield where.problem("lacks labels of the task", quoted(missing), allowed)
    several = [label for label in labels if counts[label] > 1]
    if several and kind is Kind.MULTILABEL:
        allowed = "one for each, since labels that do not exclude each other do not add up"
        yield Problem(where.file, where.map, "several labels of the teacher become one", show(several), allowed)
