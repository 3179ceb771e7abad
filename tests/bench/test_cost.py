"""What the tasks of a bundle cost: which rows there are, what they are compared with, and what keeps them honest."""

from __future__ import annotations

from pathlib import Path

import pytest

from trunkline.bench.cost import Asked, counts, measure
from trunkline.bundle import Bundle
from trunkline.engine.base import Input, Job
from trunkline.errors import UsageError


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return Bundle.load(bundle, engine="torch")


def test_tasks_double_until_all_are_asked() -> None:
    assert [counts(most) for most in (1, 2, 5, 8)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]


def test_every_cell_has_each_number_of_tasks_in_one_pass_and_as_separate_models(loaded: Bundle) -> None:
    asked = Asked(("same", "intent", "slots"), (1, 3), (8,), seconds=0.0)
    cells = list(measure(loaded, asked))
    assert [{(row["batch"], row["tokens"]) for row in rows} for rows in cells] == [{(1, 8)}, {(3, 8)}]
    for rows in cells:
        kinds = [(row["tasks"], row["system"]) for row in rows]
        assert kinds == [(count, system) for count in (1, 2, 3) for system in ("trunkline", "separate")]
        for row in rows:
            assert 0 < row["low"] <= row["ms"] <= row["high"]
            assert row["rounds"] >= 3
            assert (row["backend"], row["dtype"]) == ("torch", "float32")
        ratios = [row["ratio_to_one_pass"] for row in rows if row["system"] == "separate"]
        assert ratios == pytest.approx([1.0, 2.0, 3.0])
        for merged, separate in zip(rows[::2], rows[1::2], strict=True):
            ratio = merged["ms"] / separate["ms"] * merged["tasks"]
            assert merged["ratio_to_one_pass"] == pytest.approx(ratio, rel=0.02)


def test_nothing_is_measured_from_the_cache_of_known_texts(bundle: Path) -> None:
    pytest.importorskip("trunkline.engine.runtime", exc_type=ImportError)
    planned = Bundle.load(bundle, engine="openvino", dtype="float32", tasks=["same"])
    pair = Input("a song", "some music")
    (rows,) = measure(planned, Asked(("same",), (2,), (), (pair,), seconds=0.0))
    assert rows[0]["backend"] == "openvino"
    assert planned.loader._cache.used == 0
    planned.engine.run([Job(pair, ("same",))])
    assert planned.loader._cache.used > 0  # as it answers otherwise


def test_own_texts_count_their_own_tokens(loaded: Bundle) -> None:
    texts = tuple(Input(text) for text in ("play music", "play music now"))
    ((merged, _),) = measure(loaded, Asked(("intent",), (2,), (8,), texts, seconds=0.0))
    assert merged["tokens"] == 4.5  # with [CLS] and [SEP]


def test_a_text_that_a_task_cannot_read_is_not_measured_as_one_that_takes_no_time(loaded: Bundle) -> None:
    with pytest.raises(UsageError, match="task 'same' cannot read 'alone': text_pair is missing"):
        list(measure(loaded, Asked(("intent", "same"), (1,), (8,), (Input("alone"),), seconds=0.0)))
