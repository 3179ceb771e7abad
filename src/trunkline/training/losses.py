"""Losses against gold labels and against teachers, per task kind.

Knows logits and targets only. Sources: Wei et al. 2022, section 3.2, `T^2 * CE(softmax(z_t/T), z_s/T) + CE(gold)`; the
per-label sigmoid form for multilabel and squared error for regression are the same idea for those outputs.

Notation: B rows, C outputs, T tokens; tagging has logits (B, T, C) and targets (B, T), IGNORE where no word starts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trunkline.project.tasks import Kind

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


def teacher_loss(
    kind: Kind, logits: Tensor, soft: Tensor, temperature: float, *, keep: Tensor, std: float = 1.0
) -> Tensor:
    """Mean loss against softened teacher outputs of the same shape as `logits`, scaled by T^2 where softened.

    `keep` (B,) or (B, T) is 1 where a prediction counts (tagging: where a word starts).
    """
    weights = keep.to(logits.dtype)
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
    return (each * weights).sum() / weights.sum().clamp(min=1)
