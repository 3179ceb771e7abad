"""Timing in turn: everything as often as all else, and what is said elsewhere is believed."""

from __future__ import annotations

import pytest

from trunkline.bench.turns import Took, in_turn, times_of


def test_all_take_turns_in_orders_that_change() -> None:
    seen: list[str] = []
    runs = {name: lambda name=name: seen.append(name) for name in "abcd"}
    found = in_turn(runs, 0.0, warm=2, least=9)
    assert {times.rounds for times in found.values()} == {9}
    assert "".join(seen[:8]) == "aabbccdd"
    rounds = ["".join(seen[start : start + 4]) for start in range(8, len(seen), 4)]
    assert len(rounds) == 9
    assert {"".join(sorted(one)) for one in rounds} == {"abcd"}
    assert len(set(rounds)) > 4


def test_a_run_that_was_timed_elsewhere_counts_as_it_says() -> None:
    said = iter([Took(99.0), Took(1.0), Took(2.0), Took(3.0), Took(4.0), Took(50.0)])
    (found,) = in_turn({"there": lambda: next(said)}, 0.0, warm=1, least=5).values()
    assert (found.low, found.ms, found.high) == (2.0, 3.0, 4.0)


def test_times_add_up_and_a_single_run_has_no_spread() -> None:
    one = times_of([2.0])
    assert (one.low, one.ms, one.high, one.rounds) == (2.0, 2.0, 2.0, 1)
    assert (one + one * 3).ms == pytest.approx(8.0)
