"""Where rows leave, against following each row by hand; what that costs; which exits are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from branches import LABELS

from trunkline.model.branch import BranchSpec
from trunkline.model.exits import Form
from trunkline.project.speed import Rule, Trail, fastest
from trunkline.project.tasks import Kind
from trunkline.training.leaving import SPEEDS, Outcomes, Place, Prices, Said, at_depths, worthwhile

LINEAR, ATTENTION = Form.LINEAR, Form.ATTENTION
PRICES = Prices(trunk=[1.0, 3.0, 5.0, 7.0, 9.0], exits={LINEAR: 0.5, ATTENTION: 1.0}, branch=3.0, end=3.0)
"""Fork 3 and one layer of its own: 10 ms for the whole."""


def spec(kind: str = "classification", **changes: Any) -> BranchSpec:
    labels = LABELS[kind]
    fields = {"task": "t", "kind": kind, "labels": labels, "metric": "", "fork": 3, "layers": 1, "reading": "single"}
    sizes = {"pooling": "cls", "max_tokens": 8, "width": 8, "outputs": len(labels) or 1, "trunk": ""}
    return BranchSpec.model_validate({**fields, **sizes, **changes})


def sure(label: int, margin: float) -> list[float]:
    """Logits for one of two labels."""
    return [margin, 0.0] if label == 0 else [0.0, margin]


GOLD = np.asarray([0, 1, 0, 1])


def accuracy(logits: Any, rows: Any) -> float:
    return float((np.asarray(logits).argmax(-1) == GOLD)[rows].mean())


def said(exits: dict[Place, Sequence[Sequence[float]]]) -> Said:
    head = np.asarray([sure(label, 9.0) for label in GOLD])
    return Said(
        head, {place: np.asarray(logits) for place, logits in exits.items()}, None, accuracy, np.arange(len(head))
    )


def test_prices_add_up_along_the_way_exits_that_were_passed_among_them() -> None:
    costs = PRICES.costs(3, 4, [(1, LINEAR), (2, ATTENTION)])
    assert costs * 10 == pytest.approx([3 + 0.5, 5 + 1.5, 10 + 1.5])


def test_an_own_layer_costs_what_the_trunks_there_does() -> None:
    prices = Prices([1.0, 3.0, 5.0, 7.0, 9.0], {LINEAR: 0.5}, branch=7.0, end=6.0, own_exits={LINEAR: 0.25})
    assert prices.costs(2, 4, [(3, LINEAR)]) * 12 == pytest.approx([7 + 0.25, 7 + 6 + 0.25])  # layer by layer
    assert prices.costs(2, 4, [(2, LINEAR)]) * 12 == pytest.approx([5 + 0.5, 12 + 0.5])  # the branch as one


def test_each_speed_says_quality_layers_and_time_of_the_rows_that_leave() -> None:
    # The first exit is sure of two rows, rightly of one; the second knows the rest.
    first = [sure(0, 5.0), sure(0, 5.0), sure(0, 0.1), sure(1, 0.1)]
    second = [sure(label, 5.0) for label in GOLD]
    places: list[Place] = [(1, LINEAR), (2, ATTENTION)]
    given = said(dict(zip(places, [first, second], strict=True)))
    points = Outcomes(spec(), Rule.ENTROPY, [PRICES], given).points(places)
    assert [point.speed for point in points] == list(SPEEDS)
    assert (points[0].quality, points[0].layers, points[0].time) == (1.0, 4.0, 1.0)
    unused = points[1]
    assert unused.speed < 0.01
    assert (unused.quality, unused.layers, unused.time, unused.exits) == (1.0, 4.0, 1.0, ())
    half = next(point for point in points if point.speed > 0.5)
    assert (half.quality, half.layers, half.time) == pytest.approx((0.75, 1.5, (0.35 + 0.65) / 2))
    assert half.exits == (1, 2)


def test_the_calibration_error_is_that_of_the_answers_that_are_given() -> None:
    first = [sure(0, 5.0), sure(0, 5.0), sure(0, 0.1), sure(1, 0.1)]
    second = [sure(label, 5.0) for label in GOLD]
    places: list[Place] = [(1, LINEAR), (2, ATTENTION)]
    judged: list[Any] = []
    given = replace(
        said(dict(zip(places, [first, second], strict=True))), calibration=lambda logits: judged.append(logits) or 0.25
    )
    outcomes = Outcomes(spec(), Rule.ENTROPY, [PRICES], given)
    points = outcomes.points(places)
    half = next(point for point in points if point.speed > 0.5)
    assert [outcomes.calibration(places, point) for point in (points[0], half)] == [0.25, 0.25]
    assert [logits.tolist() for logits in judged] == [
        given.head.tolist(),
        np.asarray([*first[:2], *second[2:]]).tolist(),
    ]


def test_a_speed_asks_no_exit_that_costs_more_than_it_saves_there() -> None:
    """The first exit is a little unsure of its one row, and the second of none of the four."""
    first = [sure(0, 2.0), *[sure(0, 0.0)] * 3]
    given = said({(1, LINEAR): first, (2, LINEAR): [sure(label, 9.0) for label in GOLD]})
    places = list(given.exits)
    dear = Prices(PRICES.trunk, {LINEAR: 2.5}, PRICES.branch, PRICES.end)
    outcomes = Outcomes(spec(), Rule.ENTROPY, [dear], given)
    points = outcomes.points(places)
    assert {point.exits for point in points} == {(), (2,)}  # the first saves 2 ms for one row, and costs three 2.5
    assert all(point.time <= 1 for point in points)
    sure_of_all = next(point for point in points if point.exits)
    assert (sure_of_all.layers, sure_of_all.time) == pytest.approx((2.0, 0.75))
    assert outcomes.left(places, sure_of_all) == [0.0, 1.0, 0.0]
    elsewhere = said({(1, LINEAR): given.exits[places[1]], (2, LINEAR): first})
    there = Outcomes(spec(), Rule.ENTROPY, [dear], elsewhere).as_chosen(places, points)
    assert [point.exits for point in there] == [point.exits for point in points]
    assert min(point.time for point in there) > 0.9  # where the second is as unsure as the first was


def test_an_exit_must_pay_in_the_mean_of_batches_and_single_texts() -> None:
    """It lets two of four rows go, which saves a fifth in a batch; with one text it costs more than it saves."""
    given = said({(2, LINEAR): [sure(label, 5.0) for label in GOLD[:2]] + [sure(label, 0.0) for label in GOLD[2:]]})
    places = list(given.exits)
    one_text = Prices(PRICES.trunk, {LINEAR: 6.0}, PRICES.branch, PRICES.end)
    half = SPEEDS.index(0.49)
    asked = {}
    for prices in ([PRICES], [PRICES, one_text]):
        point = Outcomes(spec(), Rule.ENTROPY, prices, given).points(places)[half]
        asked[len(prices)] = point.exits, point.time
    assert asked == {1: ((2,), pytest.approx(0.8)), 2: ((), 1.0)}


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "tagging"])
def test_every_row_leaves_where_it_would_if_it_were_alone(kind: str, rule: Rule) -> None:
    rng = np.random.default_rng(3)
    rows, outputs = 12, len(LABELS[kind]) or 1
    shape = (rows, 5, outputs) if kind == "tagging" else (rows, outputs)
    words = rng.random((rows, 5)) < 0.7 if kind == "tagging" else None
    places: list[Place] = [(1, LINEAR), (2, LINEAR), (3, ATTENTION)]
    base = rng.normal(size=shape) * 3
    exits = {place: base + rng.normal(size=shape) * 0.4 for place in places}
    seen: list[np.ndarray] = []

    def heard(logits: Any, _: Any) -> float:
        seen.append(np.asarray(logits))
        return 1.0

    given = Said(base + 100, exits, words, heard, np.arange(rows))
    points = Outcomes(spec(kind, std=2.0), rule, [PRICES], given).points(places)
    for point in points:
        depths, mixture = [], []
        for row in range(rows):
            trail = Trail(Kind(kind), rule, rows=1, std=2.0)
            one = np.asarray([0])
            part = None if words is None else words[[row]]
            asked = [place for place in places if place[0] in (point.exits or ())]
            left = next(
                (p for p in asked if trail.uncertainty(exits[p][[row]], one, part)[0] < point.speed),
                None,
            )
            depths.append(4 if left is None else left[0])
            mixture.append(given.head[row] if left is None else exits[left][row])
        assert point.layers == pytest.approx(np.mean(depths))
        assert any(np.array_equal(np.stack(mixture), scored) for scored in seen)
    assert len({point.layers for point in points}) > 1
    assert len({point.exits for point in points}) > 1


def test_the_exit_that_pays_is_kept_and_one_that_is_wrong_or_dear_is_not() -> None:
    right, wrong = [sure(label, 9.0) for label in GOLD], [sure(1 - label, 9.0) for label in GOLD]
    both = said(
        {(1, LINEAR): wrong, (1, ATTENTION): wrong, (2, LINEAR): right, (2, ATTENTION): right, (3, LINEAR): right}
    )
    assert worthwhile(Outcomes(spec(), Rule.ENTROPY, [PRICES], both), list(both.exits)) == [(2, LINEAR)]
    dear = Prices(PRICES.trunk, {LINEAR: 6.0, ATTENTION: 6.0}, PRICES.branch, PRICES.end)
    assert worthwhile(Outcomes(spec(), Rule.ENTROPY, [dear], both), list(both.exits)) == []
    assert worthwhile(Outcomes(spec(), Rule.ENTROPY, [PRICES], both), []) == []


def test_exits_add_up_where_each_knows_other_rows() -> None:
    first = [sure(0, 9.0), sure(1, 9.0), sure(0, 0.0), sure(0, 0.0)]
    second = [sure(0, 0.0), sure(0, 0.0), sure(0, 9.0), sure(1, 9.0)]
    given = said({(1, LINEAR): first, (2, LINEAR): second})
    assert worthwhile(Outcomes(spec(), Rule.ENTROPY, [PRICES], given), list(given.exits)) == [(1, LINEAR), (2, LINEAR)]


@pytest.mark.parametrize(("kind", "rule"), [("classification", Rule.PATIENCE), ("regression", Rule.ENTROPY)])
def test_where_exits_are_compared_two_come_together(kind: str, rule: Rule) -> None:
    if kind == "regression":
        head = np.asarray([[1.0], [2.0], [3.0], [4.0]])
        right, wrong = head + 0.01, head[::-1] * 3
    else:
        head = np.asarray([sure(label, 9.0) for label in GOLD])
        right, wrong = head / 2, -head
    exits = {(1, LINEAR): wrong, (1, ATTENTION): right, (2, LINEAR): right, (3, LINEAR): wrong}

    def correlation(logits: Any, _: Any) -> float:
        return float(np.corrcoef(logits.ravel(), head.ravel())[0, 1])

    given = Said(head, exits, None, correlation, np.arange(len(head)))
    found = worthwhile(Outcomes(spec(kind), rule, [PRICES], given), list(exits))
    assert found == [(1, ATTENTION), (2, LINEAR)]


def test_depths_that_were_asked_for_are_all_kept_in_the_form_that_takes_less_time() -> None:
    right, wrong = [sure(label, 9.0) for label in GOLD], [sure(1 - label, 9.0) for label in GOLD]
    given = said({(1, LINEAR): wrong, (1, ATTENTION): right, (2, LINEAR): right, (2, ATTENTION): right})
    outcomes = Outcomes(spec(), Rule.ENTROPY, [PRICES], given)
    assert at_depths(outcomes, [2, 1], [LINEAR, ATTENTION]) == [(1, ATTENTION), (2, LINEAR)]


def test_a_speed_knows_how_sure_its_quality_is() -> None:
    """Of 100 rows answered right by the head an exit gets 4 wrong: the difference has a standard error of some 0.02."""
    gold = np.arange(100) % 2
    head = np.stack([gold == 0, gold == 1], axis=1) * 9.0
    early = np.where((np.arange(100) < 4)[:, None], head[:, ::-1], head)

    def right(logits: Any, rows: Any) -> float:
        return float((logits.argmax(-1) == gold)[rows].mean())

    spoken = Said(head, {(1, LINEAR): early}, None, right, np.arange(100))
    points = Outcomes(spec(), Rule.ENTROPY, [PRICES], spoken).points([(1, LINEAR)])
    assert (points[0].quality, points[0].error) == (1.0, 0.0)
    assert points[-1].quality == pytest.approx(0.96)
    assert points[-1].error == pytest.approx(np.sqrt(0.04 * 0.96 / 100), rel=0.5)
    assert fastest(points, 0.95) == 0.0  # 0.96 less its error is not 0.95 for sure
    assert fastest(points, 0.92) > 0


def test_a_metric_below_zero_is_kept_from_getting_worse() -> None:
    """As of a correlation on a small split: all speeds stand in the table, and no keep takes one that is worse."""
    given = said({(1, LINEAR): [sure(1 - label, 9.0) for label in GOLD]})
    below = Said(given.head, given.exits, None, lambda logits, rows: accuracy(logits, rows) - 2, given.clusters)
    outcomes = Outcomes(spec(), Rule.ENTROPY, [PRICES], below)
    points = outcomes.points([(1, LINEAR)])
    assert [point.speed for point in points] == list(SPEEDS)
    assert fastest(points, 0.98) == 0.0
    assert outcomes.time([(1, LINEAR)]) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_at_a_higher_speed_no_row_leaves_later(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places: list[Place] = [(1, LINEAR), (2, LINEAR), (3, ATTENTION)]
    head = rng.normal(size=(40, 3)) * 3
    exits = {place: head * rng.uniform(0.2, 1) + rng.normal(size=head.shape) for place in places}
    dear = Prices(
        PRICES.trunk, {LINEAR: rng.uniform(0.1, 2), ATTENTION: rng.uniform(0.1, 2)}, PRICES.branch, PRICES.end
    )
    given = Said(head, exits, None, lambda logits, rows: 1.0, np.arange(40))
    points = Outcomes(spec(labels=("a", "b", "c"), outputs=3), Rule.ENTROPY, [dear], given).points(places)
    asked = [set(point.exits or ()) for point in points]
    assert all(lower <= higher for lower, higher in pairwise(asked))
    layers = [point.layers for point in points]
    assert layers == sorted(layers, reverse=True)


def test_of_one_query_nobody_knows_how_sure_its_metric_is() -> None:
    given = said({(1, LINEAR): [sure(label, 9.0) for label in GOLD]})
    one = Said(given.head, given.exits, None, accuracy, np.zeros(len(GOLD), dtype=np.int64))
    points = Outcomes(spec(), Rule.ENTROPY, [PRICES], one).points([(1, LINEAR)])
    assert (points[0].error, points[-1].error) == (0.0, 1.0)
    assert fastest(points, 0.98) == 0.0


def test_rows_of_one_query_are_left_out_together() -> None:
    scored: list[np.ndarray] = []

    def heard(_: Any, rows: Any) -> float:
        scored.append(rows)
        return float(len(rows))

    given = said({(1, LINEAR): [sure(label, 9.0) for label in GOLD]})
    queries = np.asarray([0, 0, 1, 1])
    Outcomes(spec(), Rule.ENTROPY, [PRICES], Said(given.head, given.exits, None, heard, queries)).points([(1, LINEAR)])
    assert {tuple(rows) for rows in scored} == {(0, 1, 2, 3), (0, 1), (2, 3)}
