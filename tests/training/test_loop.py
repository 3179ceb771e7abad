"""The loop on a module of a few numbers: floor, early stopping, decay, order of rows, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trunkline.training import loop
from trunkline.training.loop import Epochs, Outcome, Progress, Schedule, by_length, epoch_batches, fit, precision_of

torch.set_num_threads(1)
ROWS = np.arange(40)
POINTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(5))
AIMS = POINTS @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
SCHEDULE = Schedule(
    epochs=8, learning_rate=0.02, batch_size=8, min_steps=0, patience=100, warmup=0.1, weight_decay=0.01, seed=3
)


class Killed(Exception):
    """Stands for a kill."""


class Net(nn.Module):
    """Dropout in the middle, so that the state of the random generators shows in the weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        points = POINTS[torch.as_tensor(np.asarray(rows))]
        found: Tensor = self.outer(self.dropout(torch.tanh(self.inner(points)))).squeeze(-1)
        return found


def train(
    checkpoint: Path,
    schedule: Schedule = SCHEDULE,
    *,
    net: Net | None = None,
    before: Callable[[int], None] = lambda _: None,
    score: Callable[[], float] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> tuple[Net, Outcome]:
    """`before(n)` is called ahead of the n-th loss of this call; `score` replaces the held-out score."""
    net = net or Net()
    calls = 0

    def loss(rows: Sequence[int] | np.ndarray) -> Tensor:
        nonlocal calls
        calls += 1
        before(calls)
        found: Tensor = (net(rows) - AIMS[torch.as_tensor(np.asarray(rows))]).square().mean()
        return found

    def held_out() -> float:
        with torch.no_grad():
            return -float((net(ROWS) - AIMS).square().mean())

    outcome = fit(
        net,
        steps=schedule.steps(len(ROWS)),
        batch=Epochs(ROWS, ROWS % 7, schedule.batch_size, schedule.seed),
        loss=loss,
        evaluate=score or held_out,
        schedule=schedule,
        checkpoint=checkpoint,
        report=report,
    )
    return net, outcome


def kill_at(step: int) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == step:
            raise Killed

    return before


@pytest.mark.parametrize("at", [[3], [12], [39], [8, 9, 14]])
def test_a_killed_run_ends_with_the_very_weights_of_one_that_was_not(tmp_path: Path, at: list[int]) -> None:
    whole, expected = train(tmp_path / "whole.pt")
    for step in at:
        with pytest.raises(Killed):
            train(tmp_path / "killed.pt", before=kill_at(step))
        torch.manual_seed(99)  # whatever state the next process has
    resumed, outcome = train(tmp_path / "killed.pt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert outcome == expected


def test_a_resumed_run_repeats_no_step_before_its_last_evaluation(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "c.pt", before=kill_at(18))  # 40 steps, an evaluation every 5
    calls: list[int] = []
    train(tmp_path / "c.pt", before=calls.append)
    assert len(calls) == 40 - 15


def test_a_large_state_is_saved_less_often_and_a_killed_run_still_ends_with_the_very_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large() -> Net:
        net = Net()
        net.spare = nn.Parameter(torch.zeros(4_500_000))  # 72 MB of state: a save every 6 seconds at most
        return net

    now = 0.0
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now))
    calls: list[int] = []

    def before(call: int, kill: int | None = None) -> None:
        nonlocal now
        now += 1.0  # a step takes a second, so that 5 pass between evaluations
        calls.append(call)
        if call == kill:
            raise Killed

    whole, expected = train(tmp_path / "whole.pt", net=large(), before=before)
    with pytest.raises(Killed):
        train(tmp_path / "killed.pt", net=large(), before=lambda call: before(call, kill=18))
    calls.clear()
    resumed, outcome = train(tmp_path / "killed.pt", net=large(), before=before)
    assert len(calls) == 40 - 10, "saved at step 10, neither at 5 nor at 15"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert outcome == expected


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, expected = train(tmp_path / "c.pt")
    again, outcome = train(tmp_path / "c.pt", before=kill_at(1))
    assert outcome == expected
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_floor_on_steps_holds_however_few_the_epochs(tmp_path: Path) -> None:
    _, outcome = train(tmp_path / "c.pt", replace(SCHEDULE, epochs=0.1, min_steps=23))
    assert outcome.steps == 23
    assert replace(SCHEDULE, epochs=2.5, min_steps=5).steps(40) == 13


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    scores = iter([0.1, 0.9, 0.5, 0.9, 0.2, 0.8])
    net, seen = Net(), []

    def score() -> float:
        assert not net.training
        seen.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return next(scores)

    _, outcome = train(tmp_path / "c.pt", replace(SCHEDULE, patience=3), net=net, score=score)
    assert [entry["score"] for entry in outcome.history] == [0.1, 0.9, 0.5, 0.9, 0.2]
    assert (outcome.score, outcome.best_step, outcome.steps) == (0.9, 10, 25)
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in net.state_dict().items())
    assert not net.training


def test_only_matrices_decay(tmp_path: Path) -> None:
    """Without a gradient, only decay moves a weight."""
    net = Net()
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    strong = replace(SCHEDULE, weight_decay=0.5)

    def loss(rows: Sequence[int] | np.ndarray) -> Tensor:
        nothing: Tensor = net(rows).sum() * 0.0
        return nothing

    options: dict[str, Any] = {"schedule": strong, "checkpoint": tmp_path / "c.pt"}
    scores = iter(range(100))
    fit(net, steps=40, batch=lambda _: ROWS, loss=loss, evaluate=lambda: float(next(scores)), **options)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, start[name]) == name.endswith("bias"), name


def test_frozen_parameters_do_not_move(tmp_path: Path) -> None:
    net = Net()
    net.inner.requires_grad_(False)
    start = net.inner.weight.clone()
    train(tmp_path / "c.pt", net=net)
    assert torch.equal(net.inner.weight, start)


def test_progress_tells_step_loss_score_and_time_left(tmp_path: Path) -> None:
    told: list[Progress] = []
    train(tmp_path / "c.pt", report=told.append)
    assert [p.step for p in told if p.seconds_left is not None] == [10, 20, 30, 40]
    assert told[-1].steps == 40
    assert all(p.loss > 0 for p in told)
    assert told[-1].score is not None


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero() -> None:
    rates = [replace(SCHEDULE, warmup=0.25).rate(step, 40) for step in range(41)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([(40 - step) / 30 for step in range(10, 41)])


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_and_only_the_seed_orders_it(rows: int, size: int, seed: int) -> None:
    numbers = np.arange(rows) * 3
    lengths = (numbers * 7) % 11
    batches = epoch_batches(numbers, lengths, size, (seed, 0))
    assert sorted(np.concatenate(batches)) == numbers.tolist()
    assert all(len(batch) <= size for batch in batches)
    again = epoch_batches(numbers, lengths, size, (seed, 0))
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_by_length_hold_every_row_once_within_the_token_limit(lengths: list[int], tokens: int) -> None:
    batches = list(by_length(np.asarray(lengths), tokens))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens


def test_the_precision_asked_for_is_the_precision_used() -> None:
    assert precision_of("float32", "cpu") is torch.float32
    assert precision_of("bfloat16", "cpu") is torch.bfloat16
    assert precision_of("auto", "cpu") in {torch.float32, torch.bfloat16}


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_no_checkpoint_of_it(tmp_path: Path) -> None:
    net = Net()

    def poison(call: int) -> None:
        if call == 3:
            with torch.no_grad():
                net.inner.weight.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="step 3"):
        train(tmp_path / "checkpoint.pt", net=net, before=poison)
    assert not (tmp_path / "checkpoint.pt").exists()
