"""The first of two stages: a student learns what teachers said of unlabelled texts, a shard of them at a time.

Knows lessons, and how a branch learns from them over a trunk that reads each batch anew: a million texts have more
states than a disk should hold. Knows nothing of files. Source: Yang et al. 2020 (TMKD),
"distillation pre-training".

Notation: B rows, T tokens, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from trunkline.model.branch import Branch, first_subwords
from trunkline.project.tasks import Offsets
from trunkline.project.teachers import Mode
from trunkline.training.candidates import OverStates, Report, Trained, held_out, new_student, scored
from trunkline.training.loop import BatchRows, Schedule, epoch_batches, fit
from trunkline.training.material import FIT, Logits, TaskMaterial, token_rows, word_starts
from trunkline.training.states import LiveStates, SlotTexts
from trunkline.training.teaching import Teaching, aims_of, merge_heads, separate_heads, teacher_terms

EVALUATIONS = 10
"""Where a long run may be stopped, or taken up after a kill: it costs a tenth at most."""


@dataclass(frozen=True)
class Lesson:
    """Texts, or pairs, with what each teacher says of them; `words` are those that tagging logits are of."""

    texts: list[str]
    pairs: list[str] | None
    words: list[Offsets] | None
    said: list[Logits]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: BatchRows) -> Self:
        """These rows, in this order."""
        picks = np.asarray(rows, dtype=np.int64)
        said: list[Logits] = [
            one[picks] if isinstance(one, np.ndarray) else [one[i] for i in picks] for one in self.said
        ]
        return type(self)(
            [self.texts[i] for i in picks],
            None if self.pairs is None else [self.pairs[i] for i in picks],
            None if self.words is None else [self.words[i] for i in picks],
            said,
        )

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each row, (rows,), by which rows of like length are put together: tokens are not known yet."""
        slots = [self.texts] if self.pairs is None else [self.texts, self.pairs]
        lengths: np.ndarray = np.asarray([[len(text) for text in texts] for texts in slots]).sum(axis=0)
        return lengths


class Lessons(Protocol):
    """Lessons that are read when they are needed."""

    @property
    def teachers(self) -> int:
        """Teachers that speak in each of them."""
        ...

    @property
    def rows(self) -> Sequence[int]:
        """Rows of each lesson."""
        ...

    def read(self, number: int) -> Lesson:
        """A lesson, by its place."""
        ...


class LessonBatches:
    """The batch of every step: all rows once an epoch, lesson by lesson in an order of its own, and the rows of a
    lesson as `epoch_batches` has them. Holds one lesson at a time.
    """

    def __init__(self, lessons: Lessons, size: int, seed: int) -> None:
        self._lessons, self._size, self._seed = lessons, size, seed
        self._counts = [math.ceil(rows / size) for rows in lessons.rows]
        self.per_epoch = sum(self._counts)
        self._at = (-1, -1)
        self._lesson: Lesson | None = None
        self._batches = list[np.ndarray]()

    def __call__(self, step: int) -> Lesson:
        epoch, position = divmod(step, self.per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._counts))
        ends = list(accumulate(self._counts[number] for number in order))
        place = int(np.searchsorted(ends, position, side="right"))
        number = int(order[place])
        if self._at != (epoch, number) or self._lesson is None:
            self._lesson = None  # gone before the next is there
            self._lesson = self._lessons.read(number)
            self._at = epoch, number
            rows = np.arange(len(self._lesson))
            self._batches = epoch_batches(rows, self._lesson.lengths, self._size, (self._seed, epoch, number))
        return self._lesson.take(self._batches[position - ends[place]])  # counted back from its last


def pretrain_student(
    material: TaskMaterial,
    teacher: Branch,
    lessons: Lessons,
    layers: int,
    init: str,
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    *,
    teaching: Teaching,
    latents: int = 0,
    crossing: int = 1,
) -> Trained:
    """Distil what the teachers of `lessons` say into a student that reads at the fork of `teacher`, the tuned layers,
    and is made as `train_student` makes it. The best on `valid` counts.
    """
    student = new_student(material, teacher, layers, init, seed=schedule.seed, latents=latents, crossing=crossing)
    if teaching.mode is Mode.HEADS:
        separate_heads(student, teaching.heads(lessons.teachers))
    student.to(schedule.device)
    fitted = OverStates(material, student, FIT)
    batches = LessonBatches(lessons, schedule.batch_size, schedule.seed)
    outcome = fit(
        fitted,
        # As if all batches were full: each lesson may end in one that is not.
        steps=schedule.steps(batches.per_epoch * schedule.batch_size),
        batch=batches,
        loss=lambda lesson: _loss(material, student, lesson, teaching),
        evaluate=held_out(material, student.spec.reading, fitted),
        schedule=schedule,
        checkpoint=checkpoint,
        report=report,
        evaluations=EVALUATIONS,
    )
    merge_heads(student)
    return scored(material, student, lambda pool: OverStates(material, student, pool), outcome)


def _loss(material: TaskMaterial, student: Branch, lesson: Lesson, teaching: Teaching) -> Tensor:
    spec, encoder = student.spec, material.trunk.encoder
    device = next(student.parameters()).device
    states, masks, firsts = [], [], list[list[int | None]]()
    for slot in spec.reading.slots:
        tokens = token_rows(slot, lesson.texts, lesson.pairs, encoder, spec.max_tokens)
        if lesson.words is not None:
            firsts = [first_subwords(row, words) for row, words in zip(tokens, lesson.words, strict=True)]
        read, mask = LiveStates(material.trunk, SlotTexts.of(tokens), spec.fork).batch(range(len(lesson)))
        states.append(read.to(device))
        masks.append(mask.to(device))
    logits, _ = student.watched(encoder, states, masks, first=True)
    aims = aims_of(spec.kind, lesson.said, teaching)
    keep = word_starts(firsts, logits.shape[1]) if firsts else torch.ones(len(lesson))
    parts = logits.chunk(len(aims), dim=-1)
    return torch.stack(
        list(teacher_terms(spec.kind, parts, aims, firsts, keep.to(device), teaching, std=spec.std))
    ).sum()
