"""Which layers a student takes, and is compared with: in order, and spread evenly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.project.taking import LayerMap, Take, compared, taken


@given(st.integers(1, 24).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_layers_are_taken_in_order_and_spread_from_the_lowest_to_the_highest(sizes: tuple[int, int]) -> None:
    count, of = sizes
    for take in Take:
        found = taken(take, count, of)
        assert found == sorted({*found} & {*range(of)})
        assert len(found) == count
    spread = taken(Take.SPREAD, count, of)
    steps = [after - before for before, after in itertools.pairwise(spread)]
    assert max(steps, default=0) - min(steps, default=0) <= 1
    assert count < 2 or (spread[0], spread[-1]) == (0, of - 1)


def test_more_layers_than_there_are_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="3 layers of 2"):
        taken(Take.TOP, 3, 2)


@given(st.integers(1, 24).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of))))
def test_layers_are_compared_in_order_and_the_last_with_the_last(sizes: tuple[int, int]) -> None:
    count, of = sizes
    assert compared(LayerMap.TOP, count, of) == list(range(of - count, of))
    found = [-1, *compared(LayerMap.UNIFORM, count, of)]
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert min(steps) >= 1
    assert max(steps) - min(steps) <= 1
    assert found[-1] == of - 1
