"""Lessons in an order of their own: each row once an epoch, one lesson in memory, from any step the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trunkline.training.pretrain import Lesson, LessonBatches


class Numbered:
    """Lessons whose texts are their own numbers; remembers which were read."""

    teachers = 1

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.read_again: list[int] = []

    def read(self, number: int) -> Lesson:
        self.read_again.append(number)
        rows = range(self.rows[number])
        return Lesson([f"{number}.{row}" for row in rows], None, None, [np.asarray([[row] for row in rows])])


@given(
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), size=st.integers(1, 9), start=st.floats(0, 1)
)
def test_every_row_once_an_epoch_and_each_lesson_read_once(rows: list[int], size: int, start: float) -> None:
    lessons = Numbered(rows)
    batches = LessonBatches(lessons, size, seed=7)
    steps = range(2 * batches.per_epoch)
    found = [batches(step) for step in steps]
    for epoch in (found[: batches.per_epoch], found[batches.per_epoch :]):
        texts = [text for batch in epoch for text in batch.texts]
        assert sorted(texts) == sorted(f"{number}.{row}" for number, count in enumerate(rows) for row in range(count))
    assert all(len(batch) <= size for batch in found)
    assert all(
        f".{int(row)}" in text for batch in found for text, [row] in zip(batch.texts, batch.said[0], strict=True)
    )
    filled = [number for number, count in enumerate(rows) if count]
    assert sorted(lessons.read_again) == sorted(2 * filled)
    resumed = LessonBatches(Numbered(rows), size, seed=7)
    first = int(start * (len(steps) - 1))
    assert [resumed(step).texts for step in steps[first:]] == [batch.texts for batch in found[first:]]
