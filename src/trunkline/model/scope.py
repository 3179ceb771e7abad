"""Scope: how unlike the texts that a branch was trained on a text is, by the states that the branch reads anyway.

The relative Mahalanobis distance of Ren et al. 2021 ("A Simple Fix to Mahalanobis Distance for Improving Near-OOD
Detection"), over the mean of the token states at a depth: how far a text is from the nearest class, within-class
covariance taken as the unit, less how far it is from all train rows together. Knows tensors only; how they are found is
training's matter.

Notation: B rows, T tokens, H width, K classes, R directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from trunkline.model.heads import masked_mean


class ScopeDepth(BaseModel):
    """Where the distance is taken, after `depth` layers of the trunk, and along how many directions of its states."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = Field(ge=0)
    directions: int = Field(ge=1)


class ScopeSpec(BaseModel):
    """What a branch knows of the texts that it was trained on: at its fork and, since a text may leave there, at the
    depth of every exit in the trunk. `false_alarms` is the share of `valid` that is flagged at each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    false_alarms: float = Field(gt=0, lt=1)
    classes: int = Field(ge=1)
    depths: tuple[ScopeDepth, ...] = Field(min_length=1)


class Scope(nn.Module):
    """The distance at one depth. `forward` takes one (states, mask) per text read, states (B, T, H), and gives (B, 1):
    how far a row is beyond the limit, in standard deviations of what `valid` has; above 0 is out of scope.

    With z = directions (mean + shift), where the shift is minus the mean of all train rows and the covariance within
    classes is one and the same multiple of 1, the distance from class k is |z - m_k|^2, and that from all rows weighs
    each direction by the covariance of all rows there. Multiplied out, less the limit: sum(curvature * z^2) + min over
    k of (offsets_k + slopes_k z).
    """

    # Buffers and no parameters: a branch that is moved to 16 bits keeps their digits.
    shift: Tensor  # (H,)
    directions: Tensor  # (R, H)
    curvature: Tensor  # (R,)
    slopes: Tensor  # (K, R)
    offsets: Tensor  # (K,)

    def __init__(self, width: int, directions: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("directions", torch.zeros(directions, width))
        self.register_buffer("curvature", torch.zeros(directions))
        self.register_buffer("slopes", torch.zeros(classes, directions))
        self.register_buffer("offsets", torch.zeros(classes))

    def forward(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        return self.of_means(mean_state(states, masks))

    def of_means(self, means: Tensor) -> Tensor:
        """As `forward`, from what `mean_state` gives, (B, H)."""
        z = (means + self.shift) @ self.directions.T  # (B, R)
        nearest = (self.offsets + z @ self.slopes.T).amin(1, keepdim=True)
        return (self.curvature * z * z).sum(1, keepdim=True) + nearest


def mean_state(states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """(B, H) float32: the mean over the tokens of all texts of a row."""
    joined = states[0] if len(states) == 1 else torch.cat(list(states), dim=1)
    mask = masks[0] if len(masks) == 1 else torch.cat(list(masks), dim=1)
    return masked_mean(joined.float(), mask)
