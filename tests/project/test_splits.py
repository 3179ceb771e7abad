"""Cuts: exact, seeded, stratified, and never through what belongs together."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trunkline.project.splits import Ties, overlapping, take_out

LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)
SEEDS = st.integers(0, 2**31 - 1)


def ties_of(labels: list[str], keys: list[int], groups: list[int]) -> Ties:
    return Ties([keys, groups], [(label,) for label in labels], stratified=True)


@st.composite
def tables(draw: st.DrawFn) -> Ties:
    labels = draw(LABELS)
    column = st.lists(st.integers(0, len(labels)), min_size=len(labels), max_size=len(labels))
    return ties_of(labels, draw(column), draw(column))


@given(tables(), SEEDS, st.integers(1, 70), st.booleans())
def test_a_cut_loses_no_row_and_separates_no_tie(ties: Ties, seed: int, count: int, at_least: bool) -> None:
    rows = np.arange(len(ties.labels))
    kept, taken = take_out(rows, ties, count, np.random.default_rng(seed), at_least=at_least)
    assert sorted([*kept.tolist(), *taken.tolist()]) == rows.tolist()
    for column in ties.together:
        assert not {column[row] for row in kept} & {column[row] for row in taken}


@given(tables(), SEEDS, st.integers(1, 70), st.booleans())
def test_no_label_loses_its_last_row(ties: Ties, seed: int, count: int, at_least: bool) -> None:
    rows = np.arange(len(ties.labels))
    kept, _ = take_out(rows, ties, count, np.random.default_rng(seed), at_least=at_least)
    assert {ties.labels[row] for row in kept} == set(ties.labels)


@given(tables(), SEEDS, st.integers(1, 70))
def test_a_cut_is_decided_by_its_seed(ties: Ties, seed: int, count: int) -> None:
    rows = np.arange(len(ties.labels))
    again = Ties(ties.together, ties.labels, ties.stratified)
    first = take_out(rows, ties, count, np.random.default_rng(seed))
    second = take_out(rows, again, count, np.random.default_rng(seed))
    assert [part.tolist() for part in first] == [part.tolist() for part in second]


@given(st.lists(st.sampled_from("abcd"), min_size=40, max_size=300), SEEDS)
def test_a_stratified_cut_takes_the_same_share_of_every_label(labels: list[str], seed: int) -> None:
    alone = list(range(len(labels)))
    count = len(labels) // 5
    _, taken = take_out(np.arange(len(labels)), ties_of(labels, alone, alone), count, np.random.default_rng(seed))
    assert len(taken) <= count
    found, whole = Counter(labels[row] for row in taken), Counter(labels)
    rare = sum(number == 1 for number in whole.values())
    assert len(taken) >= count - rare
    for label, number in whole.items():
        assert abs(found[label] - number * count / len(labels)) <= 2


@given(tables(), SEEDS, st.integers(1, 70))
def test_a_cut_takes_no_more_than_asked_for_unless_every_unit_is_larger(ties: Ties, seed: int, count: int) -> None:
    rows = np.arange(len(ties.labels))
    _, taken = take_out(rows, ties, count, np.random.default_rng(seed))
    if len(taken) > count:
        assert len({int(ties.unit[row]) for row in taken}) == 1


def test_another_seed_makes_another_cut() -> None:
    labels, alone = ["a", "b"] * 100, list(range(200))
    cuts = [
        take_out(np.arange(200), ties_of(labels, alone, alone), 20, np.random.default_rng(seed))[1] for seed in (1, 2)
    ]
    assert cuts[0].tolist() != cuts[1].tolist()


def test_units_are_the_connected_rows_over_all_columns() -> None:
    ties = ties_of(list("aaaaa"), [0, 1, 1, 2, 3], [5, 5, 6, 7, 7])
    assert ties.unit.tolist() == [0, 0, 0, 3, 3]


@given(st.lists(st.sampled_from("uvwxyz"), max_size=20), st.sets(st.sampled_from("uvwxyz")))
def test_rows_that_stand_elsewhere_are_dropped_and_counted(keys: list[str], others: set[str]) -> None:
    kept, dropped = overlapping(range(len(keys)), keys, others)
    assert not {keys[row] for row in kept} & others
    assert len(kept) + dropped == len(keys)
