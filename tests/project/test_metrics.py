"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.project.metrics import evaluate
from trunkline.project.rows import Rows
from trunkline.project.tasks import METRICS, Kind


def rows(targets: Sequence[Any], groups: list[str] | None = None) -> Rows:
    texts = [f"text {i}" for i in range(len(targets))]
    return Rows(texts, None, list(targets), texts, groups)


def one_hot(choices: Sequence[int], width: int) -> np.ndarray[Any, Any]:
    return np.eye(width)[list(choices)] * 4 - 2


def test_two_label_classification() -> None:
    # gold 1 1 1 0 0 0 0 0, guess 1 1 0 1 0 0 0 0: TP 2, FN 1, FP 1, TN 4
    found = evaluate(
        Kind.CLASSIFICATION, ("no", "yes"), "yes", rows(["yes"] * 3 + ["no"] * 5), one_hot([1, 1, 0, 1, 0, 0, 0, 0], 2)
    )
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["accuracy_f1"] == pytest.approx((6 / 8 + 2 / 3) / 2)
    assert found["matthews"] == pytest.approx((2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 * 4 / (2 * 4 + 1 + 1)) / 2)


def test_f1_is_about_the_positive_label_whatever_its_place() -> None:
    gold, logits = rows(["yes", "yes", "no", "no"]), one_hot([0, 1, 1, 1], 2)
    found = evaluate(Kind.CLASSIFICATION, ("yes", "no"), "yes", gold, logits)
    assert found["f1"] == pytest.approx(2 / 3)


def test_without_a_positive_label_there_is_no_f1_of_two_labels() -> None:
    found = evaluate(Kind.CLASSIFICATION, ("cat", "dog"), None, rows(["cat", "dog"]), one_hot([0, 1], 2))
    assert set(found) == {"accuracy", "macro_f1", "matthews"}


def test_three_labels() -> None:
    gold = ["a", "a", "b", "b", "c", "c"]
    found = evaluate(Kind.CLASSIFICATION, ("a", "b", "c"), None, rows(gold), one_hot([0, 1, 1, 1, 2, 0], 3))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx((0.5 + 0.8 + 2 / 3) / 3)


def test_multilabel() -> None:
    # per label (TP, FP, FN): a (1, 1, 0), b (1, 0, 1), c (0, 0, 0)
    gold = rows([["a", "b"], ["b"], []])
    logits = np.asarray([[2.0, 2.0, -2.0], [0.0, -0.1, -2.0], [-2.0, -2.0, -2.0]])
    found = evaluate(Kind.MULTILABEL, ("a", "b", "c"), None, gold, logits)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["subset_accuracy"] == pytest.approx(2 / 3)


def test_regression() -> None:
    found = evaluate(Kind.REGRESSION, (), None, rows([1.0, 2.0, 3.0, 4.0]), np.asarray([[1.0], [3.0], [2.0], [9.0]]))
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["pearson"] == pytest.approx(11.5 / math.sqrt(5 * 38.75))
    assert found["pearson_spearman"] == pytest.approx((found["pearson"] + found["spearman"]) / 2)
    assert found["mae"] == pytest.approx((0 + 1 + 1 + 5) / 4)


TAGS = ("O", "B-x", "I-x", "B-y", "I-y")


def test_tagging_counts_whole_entities() -> None:
    # gold x[0:2], y[3:4]; guess x[0:2], y[3:5]: one of two right on either side
    gold = rows([["B-x", "I-x", "O", "B-y", "O"]])
    found = evaluate(Kind.TAGGING, TAGS, None, gold, [one_hot([1, 2, 0, 3, 4], 5)])
    assert found["entity_f1"] == pytest.approx(0.5)
    assert found["token_accuracy"] == pytest.approx(4 / 5)


def test_words_that_were_truncated_away_count_as_outside() -> None:
    gold = rows([["B-x", "I-x", "O", "B-y"], ["B-y", "O"]])
    cut = one_hot([3, 0], 5)
    cut[1] = np.nan
    found = evaluate(Kind.TAGGING, TAGS, None, gold, [one_hot([1, 2], 5), cut])
    assert found["token_accuracy"] == pytest.approx(5 / 6)
    assert found["entity_f1"] == pytest.approx(2 * 2 / (2 + 3))


def test_entities_that_end_in_e_tags() -> None:
    labels = ("O", "B-x", "I-x", "E-x")
    gold = rows([["B-x", "I-x", "E-x", "O"], ["B-x", "E-x", "B-x", "E-x"]])
    logits = [one_hot([1, 2, 3, 0], 4), one_hot([1, 3, 0, 0], 4)]
    assert evaluate(Kind.TAGGING, labels, None, gold, logits)["entity_f1"] == pytest.approx(0.8)


def scored(values: Sequence[float]) -> np.ndarray[Any, Any]:
    return np.asarray([[0.0, value] for value in values])


def test_relevance() -> None:
    # q1: + at rank 2 of 3. q2: + at ranks 1 and 3 of 3. q3 and q4 have one label only and do not count for MAP and MRR.
    gold = ["0", "1", "0", "1", "0", "1", "0", "0", "1"]
    groups = ["q1"] * 3 + ["q2"] * 3 + ["q3"] * 2 + ["q4"]
    logits = scored([3, 2, 1, 3, 2, 1, -1, -1, -1])
    found = evaluate(Kind.RELEVANCE, ("0", "1"), "1", rows(gold, groups), logits)
    assert found["map"] == pytest.approx((1 / 2 + (1 + 2 / 3) / 2) / 2)
    assert found["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    # pairs (+, -): + scores 2 3 1 -1, - scores 3 1 2 -1 -1
    assert found["auc"] == pytest.approx((3.5 + 4.5 + 2.5 + 1.0) / 20)
    assert found["accuracy"] == pytest.approx(5 / 9)


def test_equal_scores_for_all_are_no_good_ranking() -> None:
    gold = rows(["1", "0", "0", "0"], ["q"] * 4)
    found = evaluate(Kind.RELEVANCE, ("0", "1"), "1", gold, scored([1, 1, 1, 1]))
    assert (found["map"], found["mrr"], found["auc"]) == (0.25, 0.25, 0.5)


def test_without_a_query_of_both_labels_there_is_no_ranking() -> None:
    found = evaluate(Kind.RELEVANCE, ("0", "1"), "1", rows(["1", "0"], ["q", "r"]), scored([1, 0]))
    assert set(found) == {"accuracy", "auc"}


TARGETS: dict[Kind, tuple[tuple[str, ...], list[Any]]] = {
    Kind.CLASSIFICATION: (("0", "1"), ["0", "1", "1", "0"]),
    Kind.MULTILABEL: (("0", "1"), [["0"], ["1"], [], ["0", "1"]]),
    Kind.REGRESSION: ((), [1.0, 2.0, 4.0, 8.0]),
    Kind.TAGGING: (TAGS, [["B-x", "I-x"], ["O", "O"], ["B-y", "O"], ["O", "B-x"]]),
    Kind.RELEVANCE: (("0", "1"), ["0", "1", "1", "0"]),
}


@pytest.mark.parametrize("kind", Kind)
@given(level=st.floats(-50, 50, width=32))
def test_a_constant_prediction_scores_without_warning(kind: Kind, level: float) -> None:
    labels, targets = TARGETS[kind]
    width = max(len(labels), 1)
    logits: Any = np.full((4, width), level)
    if kind is Kind.TAGGING:
        logits = [np.full((2, width), level)] * 4
    found = evaluate(kind, labels, "1", rows(targets, ["q"] * 4), logits)
    assert all(math.isfinite(value) for value in found.values())
    assert set(METRICS[kind]) <= set(found)
    if kind is Kind.REGRESSION:
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize("kind", Kind)
def test_a_perfect_prediction_scores_one_in_every_metric_that_can_be_chosen(kind: Kind) -> None:
    labels, targets = TARGETS[kind]
    logits: Any
    if kind is Kind.REGRESSION:
        logits = np.asarray(targets)
    elif kind is Kind.TAGGING:
        logits = [one_hot([labels.index(tag) for tag in tags], len(labels)) for tags in targets]
    elif kind is Kind.MULTILABEL:
        logits = np.asarray([[1.0 if label in names else -1.0 for label in labels] for names in targets])
    else:
        logits = one_hot([labels.index(label) for label in targets], 2)
    found = evaluate(kind, labels, "1", rows(targets, ["q"] * 4), logits)
    assert {name: found[name] for name in METRICS[kind]} == pytest.approx(dict.fromkeys(METRICS[kind], 1.0))


def test_logits_that_do_not_fit_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 3 rows"):
        evaluate(Kind.REGRESSION, (), None, rows([1.0, 2.0, 3.0]), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="not finite"):
        evaluate(Kind.REGRESSION, (), None, rows([1.0, 2.0]), np.asarray([np.nan, 1.0]))
