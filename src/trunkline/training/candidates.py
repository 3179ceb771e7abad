"""Train one candidate: full fine-tuning, the top layers over cached states, or a student distilled from them.

Knows how a candidate is made from its material, and scores it. Knows nothing of grids, stores or selection. Sources:
Wei et al. 2022, sections 3.1 (partial fine-tuning) and 3.2 (distillation; a student starts from the bottom layers of
its teacher's tuned ones).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.model.branch import Branch, Reading, first_alone, new_branch, states_to
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.project.stage_settings import TrainSettings
from trunkline.project.taking import LayerMap, Take, taken
from trunkline.project.tasks import Kind
from trunkline.project.teachers import Mode
from trunkline.training.calibration import Calibration, calibrate
from trunkline.training.loop import BatchRows, Epochs, Outcome, Progress, Schedule, fit
from trunkline.training.material import FIT, Examples, Logits, TaskMaterial
from trunkline.training.teaching import (
    SoftLoss,
    Teaching,
    distilled,
    gold,
    hidden_loss,
    merge_heads,
    separate_heads,
)

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Trained:
    """A finished candidate with its metrics per scored split; `encoder` is its own, for full fine-tuning only, and
    `calibration` None where there is no confidence to calibrate.
    """

    branch: Branch
    encoder: Encoder | None
    outcome: Outcome
    metrics: dict[str, dict[str, float]]
    calibration: Calibration | None


class OverStates(nn.Module):
    """A branch fed from cached states of one pool; calling it with row numbers gives logits."""

    def __init__(self, material: TaskMaterial, branch: Branch, pool: str) -> None:
        super().__init__()
        self.branch = branch
        self._encoder = [material.trunk.encoder]  # in a list: the trunk is no part of what is trained
        self._states = material.states(pool, branch.spec.reading, branch.spec.fork)

    def forward(self, rows: BatchRows) -> Tensor:
        return self.branch.watched(self._encoder[0], *self.read(rows), first=True)[0]

    def read(self, rows: BatchRows) -> tuple[list[Tensor], list[Tensor]]:
        """The states (B, T, H) and masks (B, T) of each slot that the branch is fed with."""
        device = next(self.branch.parameters()).device
        batches = [slot.batch(rows) for slot in self._states]
        return [states.to(device) for states, _ in batches], [mask.to(device) for _, mask in batches]


class Follower(OverStates):
    """A student that learns from the states of its teacher's layers, too, over the same states at the fork."""

    def __init__(self, material: TaskMaterial, student: Branch, teacher: Branch, layer_map: LayerMap) -> None:
        super().__init__(material, student, FIT)
        self._teacher = [teacher.eval()]  # in a list: not trained
        self._layer_map = layer_map
        self._apart: Tensor | None = None

    def forward(self, rows: BatchRows) -> Tensor:
        states, masks = self.read(rows)
        logits, own = self.branch.watched(self._encoder[0], states, masks, first=True)
        if self.training:
            with torch.no_grad():
                _, aims = self._teacher[0].watched(self._encoder[0], states, masks, first=True)
            self._apart = hidden_loss(self.branch, own, aims, masks, self._layer_map)
        return logits

    def beside(self, loss: SoftLoss, weight: float) -> SoftLoss:
        """A loss of the logits that were given last, and so many times the distance of the states on the way there."""

        def both(rows: BatchRows, logits: Tensor, targets: Tensor) -> Tensor:
            apart, self._apart = self._apart, None
            if apart is None:
                raise RuntimeError("a loss before the student was asked")
            return loss(rows, logits, targets) + weight * apart

        return both


class WholeEncoder(nn.Module):
    """An encoder of its own under a branch without layers: full fine-tuning."""

    def __init__(self, encoder: Encoder, branch: Branch, examples: Examples) -> None:
        super().__init__()
        self.encoder = encoder
        self.branch = branch
        self._examples = [examples]

    def forward(self, rows: BatchRows) -> Tensor:
        device = next(self.branch.parameters()).device
        batches = [batch.to(device) for batch in self._examples[0].token_batches(rows, self.encoder)]
        first = first_alone(self.branch.spec, self.encoder)
        states = [states_to(self.encoder, batch, self.encoder.depth, first=first)[-1] for batch in batches]
        logits: Tensor = self.branch(self.encoder, states, [batch.mask for batch in batches])
        return logits


def train_full(
    material: TaskMaterial, reading: Reading, schedule: Schedule, checkpoint: Path, report: Report
) -> Trained:
    """Fine-tune a whole copy of the encoder: the baseline of every table, and a teacher."""
    torch.manual_seed(schedule.seed)
    encoder = copy.deepcopy(material.trunk.encoder).requires_grad_(True)
    branch = new_branch(material.spec(reading, encoder.depth, 0), encoder).to(schedule.device)

    def module(pool: str) -> nn.Module:
        return WholeEncoder(encoder, branch, material.examples(pool, reading))

    trained = train(material, branch, module, schedule, checkpoint, report, gold(material, branch))
    return replace(trained, encoder=encoder)


def train_tuned(
    material: TaskMaterial,
    reading: Reading,
    layers: int,
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    *,
    fork: int | None = None,
    random: bool = False,
) -> Trained:
    """Fine-tune copies of the trunk's `layers` layers above `fork`, by default of its top ones, over states there;
    `random` starts them afresh.
    """
    torch.manual_seed(schedule.seed)
    spec = material.spec(reading, material.trunk.depth - layers if fork is None else fork, layers)
    branch = new_branch(spec, material.trunk.encoder, random=random)
    return _train_branch(material, branch, schedule, checkpoint, report, gold(material, branch))


def train_student(
    material: TaskMaterial,
    teacher: Branch,
    soft: Sequence[Logits],
    layers: int,
    init: str,
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    *,
    teaching: Teaching,
    followed: Branch | None = None,
    latents: int = 0,
    crossing: int = 1,
    take: Take = Take.BOTTOM,
) -> Trained:
    """Distil `teacher` into a student with `layers` of its tuned layers, those that `take` says; with `latents`, they
    run for so many vectors in place of the tokens (see `BranchSpec`).

    `soft` holds, per teacher, logits of the train rows in order; without teachers, where it is empty, the student
    learns from the labels alone. `init` and `take` are as for `new_student`. Hidden states are those of `followed`,
    tuned layers that read at the student's fork; by default `teacher`.
    """
    student = new_student(
        material, teacher, layers, init, seed=schedule.seed, latents=latents, crossing=crossing, take=take
    )
    if teaching.mode is Mode.HEADS:
        separate_heads(student, teaching.heads(len(soft)))
    loss = distilled(material, student, soft, teaching) if soft else gold(material, student)
    fitted = None
    if teaching.hidden:
        fitted = Follower(material, student, followed or teacher, teaching.layer_map)
        loss = fitted.beside(loss, teaching.hidden)
    return _train_branch(
        material, student, schedule, checkpoint, report, loss, fitted=fitted, finish=lambda: merge_heads(student)
    )


def new_student(
    material: TaskMaterial,
    teacher: Branch,
    layers: int,
    init: str,
    *,
    seed: int,
    latents: int = 0,
    crossing: int = 1,
    take: Take = Take.BOTTOM,
) -> Branch:
    """A student at the fork of `teacher`, before it is trained.

    `init` is "teacher" (Wei et al.: `layers` of its own, those that `take` says, its pooler and head), "pretrained"
    (all of it, where `teacher` is what a first stage made of this student), "trunk" (the trunk's own layers above the
    fork) or "random" (fresh ones); the last two start with a fresh head.
    """
    torch.manual_seed(seed)
    asked = {"latents": latents, "crossing": crossing, "pooling": Pooling.LATENTS} if latents else {}
    spec = teacher.spec.model_copy(update={"layers": layers, **asked})
    student = new_branch(spec, material.trunk.encoder, random=init == "random")
    if init in ("teacher", "pretrained"):
        _start(student, teacher.state_dict())
    trunk = material.trunk.encoder.layers[spec.fork : teacher.spec.depth]
    own = {"teacher": teacher.layers, "trunk": trunk}.get(init)
    if own is not None:
        for layer, place in zip(student.layers, taken(take, layers, teacher.spec.layers), strict=True):
            _start(layer, own[place].state_dict())
    return student


def _start(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights that fit: latents have another pooler, and ModernBERT's first layer lacks a norm."""
    for name, tensor in module.state_dict().items():
        if name in weights and weights[name].shape == tensor.shape:
            tensor.copy_(weights[name])


def logits_of(
    material: TaskMaterial, branch: Branch, encoder: Encoder | None, rows: np.ndarray, pool: str = FIT
) -> Logits:
    """A teacher's logits for these rows of a pool, in eval mode, in fp32; `encoder` is that of a full model."""
    examples = material.examples(pool, branch.spec.reading)
    module = OverStates(material, branch, pool) if encoder is None else WholeEncoder(encoder, branch, examples)
    return examples.predict(module.eval(), rows)


def schedule_of(
    settings: TrainSettings, learning_rate: float, *, seed: int, precision: torch.dtype, device: str
) -> Schedule:
    """The schedule that a project's file asks for."""
    return Schedule(
        epochs=settings.epochs,
        learning_rate=learning_rate,
        batch_size=settings.batch_size,
        min_steps=settings.min_steps,
        patience=settings.patience,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        seed=seed,
        precision=precision,
        device=device,
    )


def train(
    material: TaskMaterial,
    branch: Branch,
    module: Callable[[str], nn.Module],
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    loss: SoftLoss,
    *,
    finish: Callable[[], None] = lambda: None,
) -> Trained:
    """Train what `module(FIT)` holds, `branch` among it, `finish` it, and score `module(pool)` on every split: a module
    of a pool takes numbers of its rows and gives their logits.
    """
    examples = material.examples(FIT, branch.spec.reading)
    fitted, rows = module(FIT), material.data.train

    def batch_loss(batch: BatchRows) -> Tensor:
        logits: Tensor = fitted(batch)
        width = logits.shape[1] if material.kind is Kind.TAGGING else 0
        return loss(batch, logits, examples.target_batch(batch, width).to(logits.device))

    outcome = fit(
        fitted,
        steps=schedule.steps(len(rows)),
        batch=Epochs(rows, examples.lengths[rows], schedule.batch_size, schedule.seed),
        loss=batch_loss,
        evaluate=held_out(material, branch.spec.reading, fitted),
        schedule=schedule,
        checkpoint=checkpoint,
        report=report,
    )
    finish()
    return scored(material, branch, module, outcome)


def held_out(material: TaskMaterial, reading: Reading, module: nn.Module) -> Callable[[], float]:
    """What scores `module`, which takes row numbers of the pool FIT, on `valid` by the metric of the task."""
    examples, valid = material.examples(FIT, reading), material.data.valid
    return lambda: material.metrics(material.data.fit.take(valid), examples.predict(module, valid))[material.metric]


def scored(material: TaskMaterial, branch: Branch, module: Callable[[str], nn.Module], outcome: Outcome) -> Trained:
    """A branch that is trained, with its metrics on every split; `module` as for `train`."""
    metrics, judged = {}, {}
    for split, (pool, picks) in material.splits().items():
        seen = material.examples(pool, branch.spec.reading)
        logits = seen.predict(module(pool).eval(), picks)
        metrics[split] = material.metrics(material.rows(pool).take(picks), logits)
        judged[split] = seen.judged(logits, picks)
    return Trained(branch, None, outcome, metrics, calibrate(material.kind, judged))


def _train_branch(
    material: TaskMaterial,
    branch: Branch,
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    loss: SoftLoss,
    *,
    fitted: OverStates | None = None,
    finish: Callable[[], None] = lambda: None,
) -> Trained:
    """Train a branch over cached states, by `fitted` where something else than `OverStates` feeds it."""
    branch.to(schedule.device)

    def module(pool: str) -> nn.Module:
        return fitted if fitted is not None and pool == FIT else OverStates(material, branch, pool)

    trained = train(material, branch, module, schedule, checkpoint, report, loss, finish=finish)
    if trained.calibration is not None:
        branch.spec = branch.spec.model_copy(update={"temperature": trained.calibration.temperature})
    return trained
