"""Ask a model what it says of texts, in a task's own labels: a foreign classifier, a task of a release, a full model.

Knows models and texts; not where they come from or what becomes of the answers. torch is imported when a model is
loaded.

Notation: C labels of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trunkline.engine.base import Input, ItemError, Logits
from trunkline.model.foreign import ForeignClassifier
from trunkline.project.relabel import Relabel
from trunkline.project.tasks import Kind

if TYPE_CHECKING:
    from trunkline.engine.base import Engine

_TOKENS_PER_PASS = 8192
_ROWS_PER_CALL = 1024

Moved = Callable[[int, int], None]
"""Hears how many of how many passes are done."""


@dataclass(frozen=True)
class Released:
    """A task of a release: the folder of its bundle, the branch's file there, and the task's name."""

    bundle: Path
    branch: Path
    task: str


@dataclass(frozen=True)
class Trained:
    """The full model of a task: its encoder's folder, its branch's file, the trunk that these came from, and the task's
    name.
    """

    encoder: Path
    branch: Path
    fingerprint: str
    task: str


Model = ForeignClassifier | Released | Trained


@dataclass(frozen=True)
class Question:
    """What is to be told of a text: logits of these labels, from at most so many tokens of it, on this device."""

    kind: Kind
    labels: tuple[str, ...]
    max_tokens: int
    device: str


class Voice(Protocol):
    """A model that is loaded and asked."""

    def logits(self, items: Sequence[Input], moved: Moved) -> list[Logits | ItemError]:
        """What it says of each, float32: (C,), or (words, C) for tagging. Equal calls give equal bits."""
        ...


def voice(model: Model, how: Relabel, question: Question) -> Voice:
    """Load a model, whose outputs become logits as `how` says. Raises TrunklineError where it cannot be loaded."""
    if isinstance(model, ForeignClassifier):
        return _Classifier(model, how, question)
    return _Engine(model, how, question.device)


class _Classifier:
    """A foreign classifier, asked in passes of texts of like length."""

    def __init__(self, source: ForeignClassifier, how: Relabel, question: Question) -> None:
        from trunkline.model.classifiers import Classifier

        self._classifier = Classifier(source, question.device)
        self._tagging = source.per_token
        self._how = how
        self._question = question

    def logits(self, items: Sequence[Input], moved: Moved) -> list[Logits | ItemError]:
        from trunkline.engine.batching import tokenize
        from trunkline.model.branch import first_subwords, word_logits
        from trunkline.training.loop import by_length

        reader, question = self._classifier.reader, self._question
        texts = [(item.text, item.text_pair) for item in items]
        most = min(question.max_tokens, reader.max_positions)
        rows = tokenize(reader, texts, most, offsets=self._tagging)
        found: dict[int, Logits | ItemError] = {i: row for i, row in enumerate(rows) if isinstance(row, ItemError)}
        tokens = [(i, row) for i, row in enumerate(rows) if not isinstance(row, ItemError)]
        outside = question.labels.index("O") if self._tagging else 0
        passes = list(by_length(np.asarray([len(row) for _, row in tokens]), _TOKENS_PER_PASS))
        for count, picks in enumerate(passes, 1):
            outputs = self._classifier.outputs([tokens[pick][1] for pick in picks])
            for pick, values in zip(picks, outputs, strict=True):
                i, row = tokens[pick]
                logits = self._how(values)
                found[i] = (
                    word_logits(logits, first_subwords(row, items[i].spans()), outside) if self._tagging else logits
                )
            moved(count, len(passes))
        return [found[i] for i in range(len(items))]


class _Engine:
    """A task of a release, or a full model, on the engine."""

    def __init__(self, model: Released | Trained, how: Relabel, device: str) -> None:
        self._how = how
        self._task = model.task
        self._engine = _released(model, device) if isinstance(model, Released) else _trained(model, device)

    def logits(self, items: Sequence[Input], moved: Moved) -> list[Logits | ItemError]:
        self._engine.forget()
        found: list[Logits | ItemError] = []
        starts = range(0, len(items), _ROWS_PER_CALL)
        for count, start in enumerate(starts, 1):
            part = items[start : start + _ROWS_PER_CALL]
            for logits in self._engine.logits(part, [self._task])[self._task]:
                found.append(logits if isinstance(logits, ItemError) else self._how(np.atleast_1d(logits)))
            moved(count, len(starts))
        return found


def _released(model: Released, device: str) -> Engine:
    from trunkline.bundle import Bundle

    return Bundle.load(model.bundle, tasks=[model.task], device=device).engine


def _trained(model: Trained, device: str) -> Engine:
    from trunkline.engine.choose import Choice
    from trunkline.engine.load import Loader
    from trunkline.model.branch import load_branch
    from trunkline.model.encoders import Encoder
    from trunkline.model.trunk import Trunk

    trunk = Trunk(Encoder.load(model.encoder), model.fingerprint)
    choice = Choice("torch", "float32", device, "in the digits that its students learn from")
    return Loader(trunk, choice).engine({model.task: ("", lambda: load_branch(model.branch, trunk.encoder))})
