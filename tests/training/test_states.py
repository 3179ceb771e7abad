"""Trunk states from the cache: the trunk's own, computed once, bounded on disk, and whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import SORTS

from trunkline.atomic import STAGING
from trunkline.model.branch import Reading
from trunkline.model.tokens import collate
from trunkline.model.trunk import Trunk
from trunkline.training.material import FIT
from trunkline.training.states import CachedStates, LiveStates, SlotTexts, StateCache, at_forks

TEXTS = ["play some music", "will it rain today", "no", "play some music", "set an alarm for seven please"]


@contextmanager
def layers_run(trunk: Trunk) -> Iterator[list[int]]:
    """The layers that the trunk runs, in order."""
    seen: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: seen.append(index))
        for index, layer in enumerate(trunk.encoder.layers)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def slot(trunk: Trunk, texts: list[str] = TEXTS) -> SlotTexts:
    return SlotTexts.of(trunk.encoder.tokenize(texts, max_tokens=16))


def real(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The states (tokens, H) of a batch without its padding, which has no fixed width."""
    return values[mask.bool()]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("task", "reading"), [(t, "single") for t in SORTS if t != "same"] + [("same", "joint"), ("same", "separate")]
)
def test_cached_states_are_the_trunk_s_within_float16(make: Any, trunk: Trunk, task: str, reading: str) -> None:
    material = make(task)
    rows = [7, 2, 30, 2]
    examples = material.examples(FIT, Reading(reading))
    for fork in (1, 2):
        found = material.states(FIT, Reading(reading), fork)
        assert len(found) == len(Reading(reading).slots)
        for states, batch in zip(found, examples.token_batches(rows, trunk.encoder), strict=True):
            values, mask = states.batch(rows)
            assert torch.equal(mask.sum(1), batch.mask.long().sum(1))
            expected = trunk.states(batch, [fork])[fork]
            torch.testing.assert_close(real(values, mask), real(expected, batch.mask), rtol=2e-3, atol=2e-3)
            assert not values[~mask.bool()].any()


def test_states_are_computed_once_for_all_forks_and_every_later_request(trunk: Trunk, tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 10**9)
    with layers_run(trunk) as seen:
        cache.states(trunk, slot(trunk), [1, 2])
        assert seen == [0, 1]
        cache.states(trunk, slot(trunk), [1, 2])
        StateCache(tmp_path, 10**9).states(trunk, slot(trunk), [2])
        assert seen == [0, 1]
        cache.states(trunk, slot(trunk), [2, 3])
        assert seen == [0, 1, 0, 1, 2]


def test_all_candidates_of_a_task_share_one_pass(make: Any, trunk: Trunk) -> None:
    material = make("intent")
    with layers_run(trunk) as seen:
        for fork in (2, 1, 2):
            material.states(FIT, Reading.SINGLE, fork)
    assert seen == [0, 1]


def test_equal_texts_are_kept_once(trunk: Trunk) -> None:
    texts = slot(trunk)
    assert len(texts.rows) == 4
    assert texts.index.tolist() == [0, 1, 2, 0, 3]


def test_other_texts_forks_or_precision_never_share_a_file(trunk: Trunk, tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 10**9)
    cache.states(trunk, slot(trunk), [1, 2])
    cache.states(trunk, slot(trunk, [*TEXTS, "yes"]), [1])
    cache.states(trunk, slot(trunk), [1], precision=torch.bfloat16)
    assert len(entries(tmp_path)) == 4


def test_the_least_recently_used_leave_and_the_bound_holds(trunk: Trunk, tmp_path: Path) -> None:
    sets = [slot(trunk, [f"{word} {text}" for text in TEXTS]) for word in ("a", "now", "then", "well")]
    StateCache(tmp_path, 10**9).states(trunk, sets[0], [1])
    (first,) = entries(tmp_path)
    bound = int(2.7 * on_disk(tmp_path))
    cache = StateCache(tmp_path, bound)
    cache.states(trunk, sets[1], [1])
    (second,) = set(entries(tmp_path)) - {first}
    cache.states(trunk, sets[0], [1])  # used again: the second is now the older one
    cache.states(trunk, sets[2], [1])
    assert first.exists()
    assert not second.exists()
    assert on_disk(tmp_path) <= bound


def test_the_bound_holds_where_some_forks_are_there_already(trunk: Trunk, tmp_path: Path) -> None:
    StateCache(tmp_path, 10**9).states(trunk, slot(trunk), [1])
    bound = int(1.5 * on_disk(tmp_path))
    found = StateCache(tmp_path, bound).states(trunk, slot(trunk), [1, 2])
    assert isinstance(found[1], CachedStates)
    assert isinstance(found[2], LiveStates)
    assert on_disk(tmp_path) <= bound


def test_a_set_too_large_for_the_bound_is_computed_live_with_the_same_batches(trunk: Trunk, tmp_path: Path) -> None:
    said: list[str] = []
    live = StateCache(tmp_path / "none", 10).states(trunk, slot(trunk), [2], say=said.append)[2]
    kept = StateCache(tmp_path / "all", 10**9).states(trunk, slot(trunk), [2])[2]
    assert isinstance(live, LiveStates)
    assert "max_states_gb" in said[0]
    assert entries(tmp_path / "none") == []
    rows = [3, 1, 4]
    (values, mask), (cached, cached_mask) = live.batch(rows), kept.batch(rows)
    assert torch.equal(mask.long().sum(1), cached_mask.sum(1))
    torch.testing.assert_close(real(values, mask), real(cached, cached_mask), rtol=2e-3, atol=2e-3)


def test_states_that_float16_cannot_hold_are_kept_in_float32(trunk: Trunk, tmp_path: Path) -> None:
    def louder(_: object, __: object, output: Any) -> Any:
        return output * 1e5 if isinstance(output, torch.Tensor) else (output[0] * 1e5, *output[1:])

    hook = trunk.encoder.layers[0].register_forward_hook(louder)
    try:
        values, mask = StateCache(tmp_path, 10**9).states(trunk, slot(trunk), [1])[1].batch([0, 4])
        batch = collate([slot(trunk).rows[i] for i in (0, 3)], trunk.encoder.reader.pad_id)
        expected = trunk.states(batch, [1])[1]
    finally:
        hook.remove()
    torch.testing.assert_close(real(values, mask), real(expected, batch.mask), rtol=1e-5, atol=1.0)
    assert len(entries(tmp_path)) == 1


def test_a_pass_that_breaks_off_publishes_nothing(trunk: Trunk, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def broken(*_: object) -> None:
        raise Killed

    hook = trunk.encoder.layers[1].register_forward_hook(broken)
    try:
        with pytest.raises(Killed):
            StateCache(tmp_path, 10**9).states(trunk, slot(trunk), [1, 2])
    finally:
        hook.remove()
    assert all(path.name.startswith(STAGING) for path in entries(tmp_path))
    values, _ = StateCache(tmp_path, 10**9).states(trunk, slot(trunk), [2])[2].batch([0])
    assert np.isfinite(values.numpy()).all()


@pytest.mark.parametrize("admitted", [0, 1, 2])
def test_states_at_several_forks_come_from_one_pass_admitted_or_not(
    trunk: Trunk, tmp_path: Path, admitted: int
) -> None:
    StateCache(tmp_path / "one", 10**9).states(trunk, slot(trunk), [1])
    cache = StateCache(tmp_path / "some", admitted * (on_disk(tmp_path / "one") + 512))
    found = cache.states(trunk, slot(trunk), [1, 2])
    assert sum(isinstance(states, CachedStates) for states in found.values()) == admitted
    with layers_run(trunk) as seen:
        states, mask = at_forks(found, [0, 4])
    assert seen == list(range(max((fork for fork in found if isinstance(found[fork], LiveStates)), default=0)))
    for fork, one in found.items():
        values, expected = one.batch([0, 4])
        assert torch.equal(mask.bool(), expected.bool())
        torch.testing.assert_close(real(states[fork], mask), real(values, expected))
