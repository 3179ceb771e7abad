"""What a student learns from: the labels, the logits of teachers that teach together in one of four modes, and the
hidden states of one.

Knows tensors and losses; not who a teacher is, nor how a student is made. Sources: Wei et al. 2022, section 3.2 (one
teacher); Yang et al. 2019 (MKDM), a head for each teacher and one for the labels, whose mean answers; Yang et al. 2020
(TMKD), squared error in place of cross entropy.

Notation: B rows, T tokens, C outputs, K teachers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.model.branch import Branch
from trunkline.model.heads import Pooling
from trunkline.project.taking import LayerMap, compared
from trunkline.project.tasks import Kind
from trunkline.project.teachers import Match, Mode
from trunkline.training.loop import BatchRows
from trunkline.training.losses import IGNORE, gold_loss, harden, soften, teacher_loss
from trunkline.training.material import FIT, Logits, TaskMaterial

SoftLoss = Callable[[BatchRows, Tensor, Tensor], Tensor]
"""(row numbers, logits, gold targets) -> loss."""


@dataclass(frozen=True)
class Teaching:
    """How a student is taught. `weights` are those of the teachers in their order, on any scale; without, all count
    alike.
    """

    temperature: float
    gold_weight: float
    mode: Mode = Mode.MEAN
    match: Match = Match.KL
    weights: tuple[float, ...] = ()
    hidden: float = 0.0
    """Weight of the loss on hidden states."""
    layer_map: LayerMap = LayerMap.UNIFORM

    def weights_of(self, teachers: int) -> Tensor:
        """The weights of so many teachers, (K,)."""
        return torch.tensor(self.weights or (1.0,) * teachers)

    def heads(self, teachers: int) -> int:
        """How many heads a student of so many teachers has while it learns: one, or one for each and for the labels."""
        return teachers + (self.gold_weight > 0) if self.mode is Mode.HEADS else 1


class SeparateHeads(nn.Module):
    """Output layers side by side on one pooled state, each at first a copy of `output`.

    While training, forward gives the logits of all, (..., heads * C); else their mean, (..., C).
    """

    def __init__(self, output: nn.Linear, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(output) for _ in range(heads))

    def forward(self, pooled: Tensor) -> Tensor:
        each = [head(pooled) for head in self.heads]
        return torch.cat(each, dim=-1) if self.training else torch.stack(each).mean(0)

    def merged(self) -> nn.Linear:
        """The one output layer whose logits are the mean of all: a mean of linear maps is linear."""
        one: nn.Linear = copy.deepcopy(self.heads[0])  # type: ignore[assignment]
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                parameter.copy_(torch.stack([head.get_parameter(name) for head in self.heads]).mean(0))
        return one


def separate_heads(branch: Branch, heads: int) -> None:
    """Give a branch that is about to learn so many output layers in place of its one."""
    branch.head.register_module("output", SeparateHeads(branch.head.output, heads))


def merge_heads(branch: Branch) -> None:
    """Give a branch that learned with `SeparateHeads` the one output layer that answers as they do."""
    separate: nn.Module = branch.head.output
    if isinstance(separate, SeparateHeads):
        branch.head.output = separate.merged()


def gold(material: TaskMaterial, branch: Branch) -> SoftLoss:
    """The loss of `branch` against the labels alone."""
    return lambda _, logits, targets: gold_loss(material.kind, logits, targets, std=branch.spec.std)


def distilled(material: TaskMaterial, student: Branch, soft: Sequence[Logits], teaching: Teaching) -> SoftLoss:
    """The loss of `student` against its teachers, whose logits of the train rows, in order, are `soft`, and the labels.

    Where the teaching asks for several heads, the logits that it is given are those of `SeparateHeads`: first that of
    the labels, if they count, then one for each teacher.
    """
    kind, std, examples = material.kind, student.spec.std, material.examples(FIT, student.spec.reading)
    targets_of = [examples.targets[int(row)] for row in material.data.train]
    aims = [
        dict(zip(map(int, material.data.train), one, strict=True)) for one in aims_of(kind, soft, teaching, targets_of)
    ]
    heads = teaching.heads(len(soft))

    def loss(rows: BatchRows, logits: Tensor, targets: Tensor) -> Tensor:
        parts = logits.chunk(heads, dim=-1)
        total = teaching.gold_weight * gold_loss(kind, parts[0], targets, std=std)
        keep = (targets != IGNORE) if kind is Kind.TAGGING else torch.ones(len(rows), device=logits.device)
        firsts = [examples.firsts[row] for row in rows] if kind is Kind.TAGGING else []
        wanted = [[aim[int(row)] for row in rows] for aim in aims]
        for term in teacher_terms(kind, parts[-len(aims) :], wanted, firsts, keep, teaching, std=std):
            total = total + term
        return total

    return loss


def hidden_loss(
    student: Branch, own: Sequence[Tensor], aims: Sequence[Tensor], masks: Sequence[Tensor], layer_map: LayerMap
) -> Tensor:
    """Squared distance of a student's states after each own layer, `own`, from those of its teacher, `aims`, each
    (B, T, H): the mean over layers, over the tokens in `masks` and over H. Where the head reads [CLS] alone, the last
    layer's other states mean nothing, and are left out.
    """
    mask = torch.cat(list(masks), dim=1).bool()  # (B, T)
    distances = []
    for place, number in enumerate(compared(layer_map, len(own), len(aims))):
        states, aim, counted = own[place], aims[number], mask
        if place == len(own) - 1 and student.spec.pooling is Pooling.CLS:
            states, aim, counted = states[:, :1], aim[:, :1], mask[:, :1]
        distances.append((states.float() - aim.float()).square().mean(-1)[counted].mean())
    return torch.stack(distances).mean()


def teacher_terms(
    kind: Kind,
    parts: Sequence[Tensor],
    aims: Sequence[Sequence[Tensor]],
    firsts: Sequence[Sequence[int | None]],
    keep: Tensor,
    teaching: Teaching,
    *,
    std: float,
) -> Iterator[Tensor]:
    """The weighted loss of each head that learns from teachers: `parts` are the logits of these, (B, C) or (B, T, C),
    `aims` what they are held to (see `aims_of`), `firsts` of tagging the place of each word's first subword.

    `keep` as for `teacher_loss`.
    """
    shares = [1.0]
    if teaching.mode is Mode.HEADS:
        weights = teaching.weights_of(len(aims))
        shares = (weights / weights.sum()).tolist()
    for part, aim, share in zip(parts, aims, shares, strict=True):
        wanted = _batch(aim, firsts, part).to(part.device)
        yield share * teacher_loss(
            kind, part.float(), wanted, teaching.temperature, keep=keep, std=std, match=teaching.match
        )


def together(kind: Kind, soft: Sequence[Logits], teaching: Teaching) -> Logits:
    """Logits of what teachers say together of the same rows: in the mode `mean` those of the mean of what they soften
    to, else the mean of theirs, as heads answer.

    Raises ValueError for the mode `best`, which looks at the labels.
    """
    if teaching.mode is Mode.BEST:
        raise ValueError("the best teacher of a row is told by its label")
    weights, found = teaching.weights_of(len(soft)), []
    for values in zip(*soft, strict=True):
        each = torch.stack([torch.from_numpy(np.asarray(value)) for value in values])  # (K, C) or (K, words, C)
        if teaching.mode is Mode.MEAN:
            found.append(harden(kind, _mean(soften(kind, each, teaching.temperature), weights)).numpy())
        else:
            found.append(_mean(each, weights).numpy())
    return found if kind is Kind.TAGGING else np.stack(found)


def aims_of(kind: Kind, soft: Sequence[Logits], teaching: Teaching, targets: Sequence[Any] = ()) -> list[list[Tensor]]:
    """What each head that learns from teachers is held to, a tensor for each row: (C,), or (words, C) for tagging.

    `soft` holds logits of the same rows per teacher. Mode `best` asks for the rows' `targets`.
    """
    each = [[torch.from_numpy(np.asarray(values)) for values in one] for one in soft]
    if teaching.mode is Mode.HEADS:
        return [[soften(kind, values, teaching.temperature) for values in one] for one in each]
    rows = [torch.stack(values) for values in zip(*each, strict=True)]  # (K, C) or (K, words, C)
    if teaching.mode is Mode.BEST:
        return [[_combined(kind, row, teaching, target) for row, target in zip(rows, targets, strict=True)]]
    return [[_combined(kind, row, teaching, None) for row in rows]]


def _combined(kind: Kind, each: Tensor, teaching: Teaching, target: Any) -> Tensor:
    """What teachers, (K, C) or (K, words, C), say of a row together, in the modes with one head."""
    weights = teaching.weights_of(len(each))
    if teaching.mode is Mode.MEAN_LOGITS:
        return soften(kind, _mean(each, weights), teaching.temperature)
    if teaching.mode is Mode.BEST:
        gold = torch.as_tensor(target)
        losses = torch.stack([gold_loss(kind, *_alone(kind, one, gold)) for one in each]).nan_to_num()  # (K,)
        weights = weights * (losses <= losses.min())
    return _mean(soften(kind, each, teaching.temperature), weights)


def _alone(kind: Kind, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and target of one row as a batch: of a tagging row, its words are one already."""
    return (logits, target) if kind is Kind.TAGGING else (logits[None], target[None])


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over teachers: (K, ...) -> (...)."""
    return (each * weights.view(-1, *[1] * (each.ndim - 1))).sum(0) / weights.sum()


def _batch(aims: Sequence[Tensor], firsts: Sequence[Sequence[int | None]], logits: Tensor) -> Tensor:
    """What these rows are held to, in the shape of `logits`: (B, C), or (B, T, C) with zeros where no word starts."""
    if not firsts:
        return torch.stack(list(aims))
    batch = torch.zeros(logits.shape, dtype=torch.float32)
    for place, (words, aim) in enumerate(zip(firsts, aims, strict=True)):
        for first, values in zip(words, aim, strict=True):
            if first is not None:
                batch[place, first] = values
    return batch
