"""Adapt an encoder to several tasks at once, before it is frozen: one encoder under a head per task and depth.

Every step trains one task, on a batch of its own (MT-DNN, Liu et al. 2019, section 3.2), and every head of it: heads
below the top ask of a lower layer what a branch that forks there will want to read. Knows materials and schedules;
nothing of stages, files or what becomes of the encoder.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.model.branch import Branch, Reading, first_alone, new_branch, states_to
from trunkline.model.encoders import Encoder
from trunkline.model.tokens import TokenRow
from trunkline.project.data import TaskData
from trunkline.project.tasks import Kind
from trunkline.training.candidates import Report
from trunkline.training.loop import BatchRows, Epochs, Outcome, Schedule, fit
from trunkline.training.masking import MaskedWords
from trunkline.training.material import FIT, Examples, Logits, TaskMaterial
from trunkline.training.teaching import SoftLoss, Teaching, distilled, gold


@dataclass(frozen=True)
class Part:
    """What one task brings: its material, how it is read, the train rows that it takes part with, and logits of a
    teacher for all of its train rows, if it has one.
    """

    material: TaskMaterial
    reading: Reading
    rows: np.ndarray
    soft: Logits | None = None


@dataclass(frozen=True)
class Adapted:
    """The encoder, and each task's metric on `valid` through its head at the top."""

    encoder: Encoder
    outcome: Outcome
    valid: dict[str, float]


def apart(data: Mapping[str, TaskData], asked: Collection[str]) -> dict[str, np.ndarray]:
    """The train rows of each task asked for that no task is judged on, those not asked for among them: an encoder that
    has seen a text with one task's label would know more of it than it should when another task is scored.
    """
    judged = {key for one in data.values() for rows in one.judged for key in rows.keys()}  # noqa: SIM118 - a method
    kept = {}
    for name in asked:
        keys = data[name].fit.keys()
        kept[name] = np.asarray([row for row in data[name].train if keys[row] not in judged], dtype=np.int64)
    return kept


MASKED = ""
"""Stands for a task's name where a step predicts masked words."""


class Mixture:
    """The task and the rows of every step. In an epoch each task has its share of the steps: rows ** (1 / temperature)
    of all, so that 1 is all rows of all tasks once, and more lifts the small tasks. Steps on `masked` rows come on top:
    `share` of all steps then.
    """

    def __init__(
        self,
        epochs: Mapping[str, Epochs],
        temperature: float,
        seed: int,
        masked: Epochs | None = None,
        share: float = 0.0,
    ) -> None:
        sizes = np.asarray([one.per_epoch for one in epochs.values()], dtype=float)
        weights = sizes ** (1 / temperature)
        self._counts = np.maximum(1, np.rint(sizes.sum() * weights / weights.sum())).astype(int)
        if masked is not None:
            more = round(share / (1 - share) * self._counts.sum())
            self._counts = np.append(self._counts, more)
            epochs = {**epochs, MASKED: masked}
        self.per_epoch = int(self._counts.sum())
        self._names, self._epochs, self._seed = list(epochs), epochs, seed
        self._epoch, self._order, self._turns = -1, np.empty(0, dtype=int), np.empty(0, dtype=int)

    def __call__(self, step: int) -> tuple[str, np.ndarray]:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            tasks = np.repeat(np.arange(len(self._counts)), self._counts)
            turns = np.concatenate([np.arange(count) for count in self._counts])
            shuffled = np.random.default_rng((self._seed, epoch)).permutation(len(tasks))
            self._order, self._turns = tasks[shuffled], turns[shuffled]
        task = int(self._order[position])
        name = self._names[task]
        return name, self._epochs[name](epoch * int(self._counts[task]) + int(self._turns[position]))


class ManyHeads(nn.Module):
    """One encoder, and per task a head for each of `depths`."""

    def __init__(self, encoder: Encoder, parts: Mapping[str, Part], depths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.depths = sorted(depths)
        self._of = {
            name: {depth: new_branch(part.material.spec(part.reading, depth, 0), encoder) for depth in self.depths}
            for name, part in parts.items()
        }
        # In a list, since a task may have a name that a module has no room for.
        self.heads = nn.ModuleList(nn.ModuleList(heads.values()) for heads in self._of.values())
        self.words: MaskedWords | None = None

    def logits(self, name: str, examples: Examples, rows: BatchRows, depths: Sequence[int]) -> dict[int, Tensor]:
        """Logits of these rows of a task by depth."""
        device = next(self.encoder.parameters()).device
        batches = [batch.to(device) for batch in examples.token_batches(rows, self.encoder)]
        top = max(depths)
        first = first_alone(self.branch(name, top).spec, self.encoder)
        states = [states_to(self.encoder, batch, top, first=first) for batch in batches]
        masks = [batch.mask for batch in batches]
        return {
            depth: self.branch(name, depth)(self.encoder, [text[depth] for text in states], masks) for depth in depths
        }

    def branch(self, name: str, depth: int) -> Branch:
        """The head of a task at a depth, as a branch without layers."""
        return self._of[name][depth]


def adapt(
    parts: Mapping[str, Part],
    depths: Sequence[int],
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    *,
    sampling: float,
    temperature: float,
    gold_weight: float,
    layers: Sequence[int] | None = None,
    masked: float = 0.0,
    texts: Sequence[TokenRow] = (),
) -> Adapted:
    """Train a copy of the trunk's encoder on all `parts` (by task), heads at `depths`, the deepest of which is scored.

    With `layers`, numbers from 0, the copy has these layers alone.

    `sampling` is the temperature of `Mixture`; `temperature` and `gold_weight` are those of distillation, for parts
    that have a teacher. `masked` is the share of steps that predict masked words, of `texts` and of all train rows. The
    best encoder by the mean metric on `valid` is kept.
    """
    torch.manual_seed(schedule.seed)
    trunk = next(iter(parts.values())).material.trunk
    encoder = copy.deepcopy(trunk.encoder) if layers is None else trunk.encoder.light(layers)
    encoder.requires_grad_(True)
    module = ManyHeads(encoder, parts, depths)
    if masked:
        module.words = MaskedWords(encoder, [*texts, *_train_texts(parts)])
    module.to(schedule.device)
    top = max(depths)
    examples = {name: part.material.examples(FIT, part.reading) for name, part in parts.items()}
    losses = {name: _loss(part, module.branch(name, top), temperature, gold_weight) for name, part in parts.items()}
    mixture = Mixture(
        {
            name: Epochs(
                part.rows,
                examples[name].lengths[part.rows],
                schedule.batch_size,
                schedule.seed + number,
            )
            for number, (name, part) in enumerate(parts.items())
        },
        sampling,
        schedule.seed,
        _epochs_of(module.words, schedule),
        masked,
    )

    def loss(batch: tuple[str, np.ndarray]) -> Tensor:
        name, rows = batch
        if name == MASKED and module.words is not None:
            lost: Tensor = module.words(rows)
            return lost
        found = module.logits(name, examples[name], rows, module.depths)
        first = next(iter(found.values()))
        width = first.shape[1] if parts[name].material.kind is Kind.TAGGING else 0
        targets = examples[name].target_batch(rows, width).to(first.device)
        return torch.stack([losses[name](rows, logits, targets) for logits in found.values()]).mean()

    def valid() -> dict[str, float]:
        return {
            name: _score(part, examples[name], _top(module, name, examples[name], top)) for name, part in parts.items()
        }

    outcome = fit(
        module,
        steps=max(math.ceil(schedule.epochs * mixture.per_epoch), schedule.min_steps),
        batch=mixture,
        loss=loss,
        evaluate=lambda: statistics.mean(valid().values()),
        schedule=schedule,
        checkpoint=checkpoint,
        report=report,
    )
    return Adapted(encoder.requires_grad_(False), outcome, valid())


def _train_texts(parts: Mapping[str, Part]) -> list[TokenRow]:
    """What the tasks read in the rows that they take part with, equal texts once."""
    found: dict[tuple[int, ...], TokenRow] = {}
    for part in parts.values():
        for slot in part.material.examples(FIT, part.reading).slots.values():
            for place in slot.index[part.rows]:
                row = slot.rows[int(place)]
                found[tuple(row.ids)] = row
    return list(found.values())


def _epochs_of(words: MaskedWords | None, schedule: Schedule) -> Epochs | None:
    if words is None:
        return None
    return Epochs(np.arange(len(words.lengths)), words.lengths, schedule.batch_size, schedule.seed)


def _loss(part: Part, branch: Branch, temperature: float, gold_weight: float) -> SoftLoss:
    if part.soft is None:
        return gold(part.material, branch)
    return distilled(part.material, branch, [part.soft], Teaching(temperature, gold_weight))


def _top(module: ManyHeads, name: str, examples: Examples, depth: int) -> Callable[[BatchRows], Tensor]:
    return lambda rows: module.logits(name, examples, rows, [depth])[depth]


def _score(part: Part, examples: Examples, forward: Callable[[BatchRows], Tensor]) -> float:
    material = part.material
    logits = examples.predict(forward, material.data.valid)
    return material.metrics(material.data.fit.take(material.data.valid), logits)[material.metric]
