"""Batches of an adaptation: every task has its share, and every row its turn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.training.adapt import Mixture
from trunkline.training.loop import Epochs


def epochs(sizes: dict[str, int], batch: int) -> dict[str, Epochs]:
    return {
        name: Epochs(np.arange(rows) + 1000 * number, np.arange(rows) % 5, batch, number)
        for number, (name, rows) in enumerate(sizes.items())
    }


@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1),
    batch=st.integers(1, 16),
    seed=st.integers(0, 9),
)
def test_an_epoch_takes_every_row_of_every_task_once(sizes: dict[str, int], batch: int, seed: int) -> None:
    mixture = Mixture(epochs(sizes, batch), 1.0, seed)
    steps = [mixture(step) for step in range(2 * mixture.per_epoch)]
    for epoch in (steps[: mixture.per_epoch], steps[mixture.per_epoch :]):
        rows = {name: sorted(int(row) for task, batch in epoch if task == name for row in batch) for name in sizes}
        assert rows == {name: [row + 1000 * n for row in range(sizes[name])] for n, name in enumerate(sizes)}
    again = Mixture(epochs(sizes, batch), 1.0, seed)
    name, rows = again(mixture.per_epoch)  # a resumed run begins in the middle
    assert (name, rows.tolist()) == (steps[mixture.per_epoch][0], steps[mixture.per_epoch][1].tolist())


@pytest.mark.parametrize(("sampling", "share"), [(1.0, 0.1), (2.0, 0.25), (100.0, 0.49)])
def test_sampling_lifts_small_tasks(sampling: float, share: float) -> None:
    mixture = Mixture(epochs({"small": 100, "large": 900}, 10), sampling, 0)
    counts = Counter(mixture(step)[0] for step in range(mixture.per_epoch))
    assert counts["small"] / mixture.per_epoch == pytest.approx(share, abs=0.02)


def test_masked_words_have_their_share_of_the_steps() -> None:
    tasks = epochs({"a": 100, "b": 300}, 10)
    mixture = Mixture(tasks, 1.0, 0, Epochs(np.arange(50), np.ones(50), 10, 0), 0.2)
    steps = [mixture(step) for step in range(mixture.per_epoch)]
    counts = Counter(name for name, _ in steps)
    assert counts == {"a": 10, "b": 30, "": 10}
