"""Selection against brute force over all sets, and the paper's rule against an example worked out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.pipeline.select import READS, Budget, Candidate, Choice, TrunkCost, choose, paper_rule

# Qualities and costs on a grid of exact binary fractions, so that ties are ties in every order of adding up.
QUALITIES = st.integers(0, 16).map(lambda n: n / 16)
MS = st.integers(0, 24).map(lambda n: n / 8)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Candidate], TrunkCost]:
    candidates = []
    for task in "abc"[: draw(st.integers(1, 3))]:
        for number in range(draw(st.integers(1, 4))):
            candidates.append(
                Candidate(
                    f"{task}{number}",
                    task,
                    draw(st.integers(0, 3)),
                    draw(st.integers(0, 2)),
                    draw(st.sampled_from(list(READS))),
                    draw(QUALITIES),
                    draw(MS),
                )
            )
    rising = st.lists(MS, min_size=4, max_size=4).map(lambda steps: list(itertools.accumulate(steps)))
    return candidates, TrunkCost({slot: draw(rising) for slot in ("text", "pair", "joint")})


def all_sets(candidates: Sequence[Candidate]) -> list[tuple[Candidate, ...]]:
    by_task: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_task.setdefault(candidate.task, []).append(candidate)
    return list(itertools.product(*by_task.values()))


def measured(chosen: Sequence[Candidate], trunk: TrunkCost) -> tuple[float, float]:
    """(mean quality, ms) from the definition: every slot once, to the deepest fork that is read there."""
    ms = sum(c.ms for c in chosen)
    for slot in trunk.ms:
        forks = [c.fork for c in chosen if slot in READS[c.reading]]
        ms += trunk.ms[slot][max(forks)] if forks else 0.0
    return sum(c.quality for c in chosen) / len(chosen), ms


def found(choice: Choice | None) -> tuple[float, float, bool]:
    assert choice is not None
    return choice.quality, choice.ms, choice.met


@settings(max_examples=150)
@given(problems(), st.integers(0, 16))
def test_the_cheapest_set_of_a_quality_is_found(problem: tuple[list[Candidate], TrunkCost], least: int) -> None:
    candidates, trunk = problem
    sets = [measured(chosen, trunk) for chosen in all_sets(candidates)]
    good = [(ms, -quality) for quality, ms in sets if quality >= least / 16 - 1e-9]
    if good:
        ms, quality = min(good)
        expected = (-quality, ms, True)
    else:
        quality, ms = min((-quality, ms) for quality, ms in sets)
        expected = (-quality, ms, False)
    choice = choose(candidates, trunk, Budget(min_quality=least / 16))
    assert found(choice) == pytest.approx(expected)


@settings(max_examples=150)
@given(problems(), st.integers(0, 120))
def test_the_best_set_of_a_cost_is_found(problem: tuple[list[Candidate], TrunkCost], most: int) -> None:
    candidates, trunk = problem
    sets = [measured(chosen, trunk) for chosen in all_sets(candidates)]
    good = [(-quality, ms) for quality, ms in sets if ms <= most / 8 + 1e-9]
    if good:
        quality, ms = min(good)
        expected = (-quality, ms, True)
    else:
        ms, quality = min((ms, -quality) for quality, ms in sets)
        expected = (-quality, ms, False)
    choice = choose(candidates, trunk, Budget(max_ms=most / 8))
    assert found(choice) == pytest.approx(expected)


@settings(max_examples=60)
@given(problems(), st.data())
def test_pins_and_depth_narrow_the_candidates_and_nothing_else(
    problem: tuple[list[Candidate], TrunkCost], data: st.DataObject
) -> None:
    candidates, trunk = problem
    pin = data.draw(st.sampled_from(candidates))
    depth = data.draw(st.integers(0, 3))
    usable = [c for c in candidates if c.fork <= depth and (c.task != pin.task or c.id == pin.id)]
    choice = choose(candidates, trunk, Budget(min_quality=0.5, pinned={pin.task: pin.id}), depth=depth)
    if {c.task for c in usable} != {c.task for c in candidates}:
        assert choice is None
        return
    assert choice is not None
    assert choice.candidates[pin.task] == pin
    assert all(c.fork <= depth for c in choice.candidates.values())
    assert found(choice) == pytest.approx(found(choose(usable, trunk, Budget(min_quality=0.5))))


def test_a_choice_holds_one_candidate_of_every_task() -> None:
    candidates = [Candidate(f"{t}{n}", t, n, 1, "single", n / 4, 1.0) for t in "ab" for n in (1, 2)]
    choice = choose(candidates, TrunkCost({"text": [0, 1, 2]}), Budget(min_quality=0.5))
    assert choice is not None
    assert {task: c.id for task, c in choice.candidates.items()} == {"a": "a2", "b": "b2"}


def test_a_shared_trunk_is_paid_once() -> None:
    """Alone, the shallow branch is cheaper for either task; together, one deep trunk is."""
    deep = [Candidate(f"{t}-deep", t, 2, 1, "single", 0.5, 1.0) for t in "ab"]
    shallow = [Candidate(f"{t}-shallow", t, 0, 3, "single", 0.5, 2.5) for t in "ab"]
    trunk = TrunkCost({"text": [0.0, 1.0, 2.0]})
    alone = choose([deep[0], shallow[0]], trunk, Budget(min_quality=0.5))
    both = choose([*deep, *shallow], trunk, Budget(min_quality=0.5))
    assert alone is not None
    assert both is not None
    assert alone.candidates["a"].id == "a-shallow"
    assert {c.id for c in both.candidates.values()} == {"a-deep", "b-deep"}
    assert both.ms == pytest.approx(4.0)


def test_of_two_branches_of_one_shape_the_better_one_is_taken() -> None:
    candidates = [Candidate(str(n), "a", 1, 1, "single", 0.5 + n / 100, 1.0) for n in (0, 3, 1, 2)]
    choice = choose(candidates, TrunkCost({"text": [0, 1]}), Budget(min_quality=0.4))
    assert choice is not None
    assert choice.candidates["a"].id == "3"


# Qualities at (L, l) of an encoder of six layers: the rule adds a layer while it gains at least 0.01.
_TABLE = {(1, 1): 0.70, (2, 2): 0.76, (2, 1): 0.755, (3, 3): 0.765, (3, 1): 0.72, (4, 4): 0.90}


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.01, (2, 1)),  # 1 -> 2 gains 0.06; 2 -> 3 only 0.005; then l = 2 gains 0.005 over l = 1
        (0.001, (4, 4)),  # every L gains
        (0.1, (1, 1)),
        (0.004, (4, 4)),
    ],
)
def test_the_paper_s_rule_by_hand(gain: float, expected: tuple[int, int]) -> None:
    candidates = [
        Candidate(f"L{tuned}-l{own}", "a", 6 - tuned, own, "single", quality, 0.0)
        for (tuned, own), quality in _TABLE.items()
    ]
    chosen = paper_rule(candidates, gain)["a"]
    assert (6 - chosen.fork, chosen.layers) == expected


def test_the_paper_s_rule_stays_within_the_first_reading_and_takes_tasks_apart() -> None:
    candidates = [
        Candidate("a-joint", "a", 2, 1, "joint", 0.5, 0.0),
        Candidate("a-separate", "a", 2, 1, "separate", 0.9, 0.0),
        Candidate("b1", "b", 2, 1, "single", 0.5, 0.0),
        Candidate("b2", "b", 1, 2, "single", 0.9, 0.0),
    ]
    assert {task: c.id for task, c in paper_rule(candidates, 0.01).items()} == {"a": "a-joint", "b": "b2"}
