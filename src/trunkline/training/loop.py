"""The training loop: short, seeded, resumable, and the only one.

Knows a module, batches by step, a loss over a batch and a score on held-out rows. Knows nothing of tasks, trunks or
teachers. A run that is killed starts again at an evaluation, the last whose state it saved, and ends with the same
weights as one that was not: the random generators are set anew from (seed, step) at every evaluation, and the order of
rows from (seed, epoch).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.atomic import staging_path, sync_folder

BatchRows = Sequence[int] | np.ndarray
Batch = TypeVar("Batch")

CLIP = 1.0
"""Largest gradient norm."""
_SAVED_PER_SECOND = 12e6
"""Bytes of state saved per second of training: some 2 % of the time, on a disk that takes 500 MB a second."""
_WINDOW = 50
"""Batches among which rows are sorted by length: little padding, and still a random order."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. `warmup` is a share of all steps; the rate then falls linearly to zero."""

    epochs: float
    learning_rate: float
    batch_size: int
    min_steps: int
    patience: int
    warmup: float
    weight_decay: float
    seed: int
    precision: torch.dtype = torch.float32
    device: str = "cpu"

    def steps(self, rows: int) -> int:
        """Optimiser steps for this many rows: the epochs asked for, `min_steps` at least."""
        return max(math.ceil(self.epochs * rows / self.batch_size), self.min_steps)

    def rate(self, step: int, steps: int) -> float:
        """Share of the learning rate at `step` of `steps`."""
        warm = max(1, round(self.warmup * steps))
        return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


@dataclass
class Progress:
    """Where a run stands, for whoever shows it; there is no loss where nothing is trained."""

    step: int
    steps: int
    loss: float | None
    score: float | None
    seconds_left: float | None


@dataclass
class Outcome:
    """What a run came to: the best score on held-out rows, when, and how the score went. The module holds the best
    weights.
    """

    score: float
    best_step: int
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)


def precision_of(setting: str, device: str) -> torch.dtype:
    """The training dtype for a `precision` setting; auto takes bf16 where the hardware multiplies it natively."""
    if setting != "auto":
        return torch.bfloat16 if setting == "bfloat16" else torch.float32
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    cpu = torch.cpu
    native = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of similar length, padded tokens of a batch at most `tokens` (or one row)."""
    batch: list[int] = []
    for row in np.argsort(-lengths, kind="stable"):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield np.asarray(batch)
            batch = []
        batch.append(int(row))
    if batch:
        yield np.asarray(batch)


def epoch_batches(rows: np.ndarray, lengths: np.ndarray, size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """All rows once, in batches of `size`, in an order given by `seed`; `lengths` are those of `rows`."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))
    batches = []
    for start in range(0, len(order), size * _WINDOW):
        window = order[start : start + size * _WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [rows[window[i : i + size]] for i in range(0, len(window), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


class Epochs:
    """The batch of every step: all of `rows` once an epoch, each epoch in an order of its own."""

    def __init__(self, rows: np.ndarray, lengths: np.ndarray, size: int, seed: int) -> None:
        self.per_epoch = math.ceil(len(rows) / size)
        self._rows, self._lengths, self._size, self._seed = rows, lengths, size, seed
        self._epoch, self._batches = -1, list[np.ndarray]()

    def __call__(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = epoch_batches(self._rows, self._lengths, self._size, (self._seed, epoch))
        return self._batches[position]


def fit(
    module: nn.Module,
    *,
    steps: int,
    batch: Callable[[int], Batch],
    loss: Callable[[Batch], Tensor],
    evaluate: Callable[[], float],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[Progress], None] = lambda _: None,
    evaluations: int | None = None,
) -> Outcome:
    """Train `module` for so many steps and leave its best weights in it, in eval mode.

    `batch(step)` is what step `step` trains on, `loss(batch)` its mean loss, `evaluate()` the score on held-out rows
    (higher is better), asked `evaluations` times: by default once an epoch, within bounds. State is kept in
    `checkpoint` at evaluations, the larger it is the less often, and taken up from there.
    """
    evaluations = evaluations or min(10, max(4, math.ceil(schedule.epochs)))
    marks = sorted({math.ceil(steps * (i + 1) / evaluations) for i in range(evaluations)})
    optimiser = torch.optim.AdamW(_groups(module, schedule), lr=schedule.learning_rate, fused=True)
    run = _Run.load(checkpoint, module, optimiser) or _Run()
    started, first = time.monotonic(), run.step
    pause, saved = _pause(module), started
    for mark in marks:
        if mark <= run.step or run.stale >= schedule.patience:
            continue
        _seed(schedule.seed, run.step)
        module.train()
        total, counted = 0.0, 0
        while run.step < mark:
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * schedule.rate(run.step, steps)
            with torch.autocast(schedule.device, schedule.precision, enabled=schedule.precision is not torch.float32):
                value = loss(batch(run.step))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(module.parameters(), CLIP)
            optimiser.step()
            run.step += 1
            total, counted = total + float(value.detach()), counted + 1
            if not math.isfinite(total):
                raise FloatingPointError(f"training diverged: the loss at step {run.step} is not a number")
            if run.step % 10 == 0:
                pace = (time.monotonic() - started) / (run.step - first)
                report(Progress(run.step, steps, total / counted, run.score, pace * (steps - run.step)))
        module.eval()
        score = evaluate()
        run.history.append({"step": run.step, "loss": total / counted, "score": score})
        if run.score is None or score > run.score:
            run.score, run.best_step, run.stale = score, run.step, 0
            run.best = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        else:
            run.stale += 1
        report(Progress(run.step, steps, total / counted, run.score, None))
        if time.monotonic() - saved >= pause:
            run.save(checkpoint, module, optimiser)
            saved = time.monotonic()
    module.load_state_dict(run.best)
    module.eval()
    if run.score is None:
        raise RuntimeError("a run without an evaluation")
    return Outcome(run.score, run.best_step, run.step, run.history)


def _groups(module: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Weight decay for matrices only, as BERT's own recipe has it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _pause(module: nn.Module) -> float:
    """Seconds of training from one save to the next; none where a save takes an instant."""
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    seconds = 4 * trained / _SAVED_PER_SECOND  # the weights, the best ones, and two moments of each
    return seconds if seconds > 1 else 0.0


def _seed(seed: int, step: int) -> None:
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    torch.manual_seed(mixed)
    random.seed(mixed)


@dataclass
class _Run:
    """All that a run needs to go on where it was."""

    step: int = 0
    best_step: int = 0
    score: float | None = None
    stale: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> _Run | None:
        if not path.exists():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state.pop("module"))
        optimiser.load_state_dict(state.pop("optimiser"))
        return cls(**state)

    def save(self, path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        state = {**vars(self), "module": module.state_dict(), "optimiser": optimiser.state_dict()}
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = staging_path(path)
        torch.save(state, staging)
        staging.replace(path)
        sync_folder(path.parent)
