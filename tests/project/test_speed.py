"""Uncertainty is between 0 and 1 for every kind, and a keep finds the fastest speed that holds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.project.speed import Dial, Rule, SpeedPoint, Trail, dials, fastest
from trunkline.project.tasks import Kind

ROWS = np.arange(2)


def uncertainty(kind: Kind, logits: list[list[float]], rule: Rule = Rule.ENTROPY) -> list[float]:
    values = np.asarray(logits)
    return [float(one) for one in Trail(kind, rule, rows=len(values)).uncertainty(values, np.arange(len(values)))]


def test_a_sure_class_has_none_and_an_even_one_all() -> None:
    assert uncertainty(Kind.CLASSIFICATION, [[50.0, 0, 0], [1.0, 1, 1]]) == pytest.approx([0, 1])


def test_many_unlikely_classes_do_not_hide_that_two_are_even() -> None:
    """Over all 150 the entropy of two even classes is 0.14 of the largest: a threshold would do nothing."""
    two = [9.0, 9.0] + [-9.0] * 148
    [found] = uncertainty(Kind.CLASSIFICATION, [two])
    assert found > 0.4


def test_the_most_uncertain_label_or_word_counts() -> None:
    assert uncertainty(Kind.MULTILABEL, [[9.0, -9.0], [9.0, 0.0]]) == pytest.approx([0, 1], abs=0.01)
    words = np.asarray([[[9.0, 0, 0], [1.0, 1, 1]]])  # one row of two words
    trail = Trail(Kind.TAGGING, Rule.ENTROPY, rows=1)
    row = np.asarray([0])
    assert trail.uncertainty(words, row, np.asarray([[True, True]])) == pytest.approx([1.0])
    assert trail.uncertainty(words, row, np.asarray([[True, False]]))[0] < 0.01
    assert trail.uncertainty(words, row, np.asarray([[False, False]])) == pytest.approx([0.0])


def test_a_regression_is_sure_where_two_exits_agree() -> None:
    trail = Trail(Kind.REGRESSION, Rule.ENTROPY, rows=2, std=2.0)
    assert list(trail.uncertainty(np.asarray([[1.0], [1.0]]), ROWS)) == [1, 1]  # nothing to agree with yet
    assert trail.uncertainty(np.asarray([[1.0], [1.5]]), ROWS) == pytest.approx([0, 0.25])


def test_patience_counts_exits_that_confirm_the_one_before() -> None:
    trail = Trail(Kind.CLASSIFICATION, Rule.PATIENCE, rows=2)
    a, b = [1.0, 0.0], [0.0, 1.0]
    found = [list(trail.uncertainty(np.asarray(said), ROWS)) for said in ([a, a], [a, b], [a, b], [a, a])]
    assert found == [[1, 1], [0.5, 1], [pytest.approx(1 / 3), 0.5], [0.25, 1]]


numbers = st.floats(-60, 60)


@given(
    st.sampled_from([Kind.CLASSIFICATION, Kind.MULTILABEL, Kind.REGRESSION, Kind.RELEVANCE]),
    st.sampled_from(list(Rule)),
    st.lists(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=2), min_size=1, max_size=4),
)
def test_uncertainty_stays_between_0_and_1(kind: Kind, rule: Rule, exits: list[list[list[float]]]) -> None:
    trail = Trail(kind, rule, rows=2)
    for logits in exits:
        found = trail.uncertainty(np.asarray(logits)[:, : 1 if kind is Kind.REGRESSION else 3], ROWS)
        assert ((found >= 0) & (found <= 1)).all()


def points(*qualities: float) -> list[SpeedPoint]:
    return [
        SpeedPoint(speed=i / 10, quality=quality, layers=6 - i, time=1 - i / 10) for i, quality in enumerate(qualities)
    ]


def test_a_keep_is_the_fastest_speed_below_which_nothing_falls_short() -> None:
    assert fastest(points(0.9, 0.9, 0.895, 0.88, 0.5), 0.99) == 0.2
    assert fastest(points(0.9, 0.7, 0.9, 0.9), 0.99) == 0.0  # luck further up is not trusted
    assert fastest(points(0.9, 0.95, 0.93), 1.0) == 0.2
    assert fastest(points(0.0, 0.0), 0.99) == 0.1
    assert [fastest(points(-0.1, -0.11, -0.2), keep) for keep in (0.99, 0.9)] == [0.0, 0.1]


def test_a_speed_that_costs_more_than_it_saves_is_not_taken() -> None:
    slow = [
        SpeedPoint(speed=0, quality=0.9, layers=6, time=1.0),
        SpeedPoint(speed=0.1, quality=0.9, layers=6, time=1.02),
    ]
    assert fastest(slow, 0.9) == 0.0


def test_each_task_has_its_own_dial() -> None:
    found = dials(["a", "b", "c"], speed={"a": 0.5}, keep={"b": 0.99})
    assert found == {"a": Dial(speed=0.5), "b": Dial(keep=0.99), "c": Dial()}
    assert [found[task].of(points(0.9, 0.9, 0.5)) for task in "abc"] == [0.5, 0.1, 0.0]
    assert dials(["a"], keep=1)["a"].of([]) == 0.0


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("kind", [Kind.CLASSIFICATION, Kind.MULTILABEL, Kind.REGRESSION])
def test_what_is_no_number_is_all_doubt_and_confirms_nothing(kind: Kind, rule: Rule) -> None:
    trail = Trail(kind, rule, rows=1)
    width = 1 if kind is Kind.REGRESSION else 2
    real, broken = np.zeros((1, width)), np.full((1, width), np.nan)
    row = np.asarray([0])
    trail.uncertainty(real, row)
    assert list(trail.uncertainty(broken, row)) == [1.0]
    if rule is Rule.PATIENCE or kind is Kind.REGRESSION:
        assert list(trail.uncertainty(real, row)) == [1.0]
