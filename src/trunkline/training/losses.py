"""Losses against gold labels and against teachers, per task kind.

Knows logits and targets only. Sources: Wei et al. 2022, section 3.2, `T^2 * CE(softmax(z_t/T), z_s/T) + CE(gold)`; the
per-label sigmoid form for multilabel and squared error for regression are the same idea for those outputs. Squared
distance: Yang et al. 2020 (TMKD). The loss of exits: Liu et al. 2020 (FastBERT), section 3.2.2.

Notation: B rows, C outputs, T tokens; tagging has logits (B, T, C) and targets (B, T), IGNORE where no word starts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trunkline.project.tasks import Kind
from trunkline.project.teachers import Match

IGNORE = -100


def gold_loss(kind: Kind, logits: Tensor, targets: Tensor, *, std: float = 1.0) -> Tensor:
    """Mean loss against gold: cross entropy, per-label binary cross entropy, or squared error in units of `std`."""
    logits = logits.float()
    match kind:
        case Kind.MULTILABEL:
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
        case Kind.REGRESSION:
            return F.mse_loss(logits.squeeze(-1) / std, targets.to(logits.dtype) / std)
        case _:
            return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE)


def soften(kind: Kind, logits: Tensor, temperature: float) -> Tensor:
    """What a teacher hands its student: softmax or sigmoid at `temperature`, for regression the values."""
    match kind:
        case Kind.MULTILABEL:
            return torch.sigmoid(logits / temperature)
        case Kind.REGRESSION:
            return logits
        case _:
            return torch.softmax(logits / temperature, dim=-1)


def harden(kind: Kind, soft: Tensor) -> Tensor:
    """Finite logits that `soften` gives back at temperature 1."""
    match kind:
        case Kind.MULTILABEL:
            return torch.logit(soft, eps=1e-7)
        case Kind.REGRESSION:
            return soft
        case _:
            return soft.clamp_min(torch.finfo(soft.dtype).tiny).log()


def teacher_loss(
    kind: Kind,
    logits: Tensor,
    soft: Tensor,
    temperature: float,
    *,
    keep: Tensor,
    std: float = 1.0,
    match: Match = Match.KL,
) -> Tensor:
    """Mean loss against softened teacher outputs of the same shape as `logits`, scaled by T^2 where softened.

    `keep` (B,) or (B, T) is 1 where a prediction counts (tagging: where a word starts).
    """
    if match is Match.MSE and kind is not Kind.REGRESSION:
        off = (soften(kind, logits, temperature) - soft).square() * temperature**2
        return _mean(off.mean(-1) if kind is Kind.MULTILABEL else off.sum(-1), keep)
    match kind:
        case Kind.MULTILABEL:
            each = (
                F.binary_cross_entropy_with_logits(logits / temperature, soft, reduction="none").mean(-1)
                * temperature**2
            )
        case Kind.REGRESSION:
            each = ((logits - soft) / std).square().squeeze(-1)
        case _:
            each = -(soft * F.log_softmax(logits / temperature, dim=-1)).sum(-1) * temperature**2
    return _mean(each, keep)


def exit_loss(kind: Kind, logits: Tensor, head: Tensor, *, keep: Tensor, std: float = 1.0) -> Tensor:
    """Mean KL(exit || head), FastBERT's equation 7, from logits of either; of single labels for multilabel, and for
    regression squared error in units of `std`. `keep` as for `teacher_loss`.
    """
    logits, head = logits.float(), head.float()
    match kind:
        case Kind.MULTILABEL:
            share = torch.sigmoid(logits)
            yes, no = (F.logsigmoid(sign * logits) - F.logsigmoid(sign * head) for sign in (1, -1))
            each = (share * yes + (1 - share) * no).mean(-1)
        case Kind.REGRESSION:
            each = ((logits - head) / std).square().squeeze(-1)
        case _:
            logs = F.log_softmax(logits, dim=-1)
            each = (logs.exp() * (logs - F.log_softmax(head, dim=-1))).sum(-1)
    return _mean(each, keep)


def _mean(each: Tensor, keep: Tensor) -> Tensor:
    weights = keep.to(each.dtype)
    return (each * weights).sum() / weights.sum().clamp(min=1)
