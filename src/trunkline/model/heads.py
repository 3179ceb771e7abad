"""The head of a branch: pool the last states, then score the labels.

Knows tensors only; nothing of tasks, labels or files. `cls` is BERT's own pooler (Devlin et al. 2019), which Wei et al.
keep for every branch; `pair` is the sentence-pair feature of InferSent (Conneau et al. 2017) and Sentence-BERT, with
[CLS] beside it.

Notation: B rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn


class Pooling(StrEnum):
    """How the states of a row become what the output layer reads."""

    CLS = "cls"
    """The state at position 0."""
    MEAN = "mean"
    """The mean over the row's tokens, padding left out."""
    CONCAT = "concat"
    """[CLS], the mean and the maximum over the row's tokens, side by side (as ULMFiT, Howard and Ruder 2018)."""
    PAIR = "pair"
    """Two texts read apart: [CLS], u, v, |u - v|, u * v, where u and v are the means of either text."""
    LATENTS = "latents"
    """All latents of the row, side by side; the branch gives them in place of states."""
    TOKENS = "tokens"
    """Every token keeps its own state (tagging)."""


_FEATURES = {Pooling.CLS: 1, Pooling.MEAN: 1, Pooling.CONCAT: 3, Pooling.PAIR: 5}


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a row: states (B, T, H), mask (B, T) of 0/1 -> (B, H)."""
    weights = mask.unsqueeze(-1).to(states.dtype)  # (B, T, 1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def masked_max(states: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the tokens of a row: states (B, T, H), mask (B, T) of 0/1 -> (B, H)."""
    # In the place of padding stands what can win nowhere, and is a number in every dtype.
    return torch.where(mask.bool().unsqueeze(-1), states, states.amin(1, keepdim=True)).amax(1)


class Head(nn.Module):
    """Pooler and output layer of one branch.

    `forward` takes one (states, mask) per text that the branch reads, states (B, T, H), and gives (B, C), or (B, T, C)
    for `Pooling.TOKENS`; for `Pooling.LATENTS` it takes the row's latents (B, m, H) instead.
    """

    def __init__(self, width: int, outputs: int, pooling: Pooling, *, latents: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.pooling = Pooling(pooling)
        features = latents if self.pooling is Pooling.LATENTS else _FEATURES.get(self.pooling, 0)
        self.pooler = nn.Linear(features * width, width) if features else None
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, outputs)
        for linear in (self.pooler, self.output):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, states: tuple[Tensor, ...], masks: tuple[Tensor, ...]) -> Tensor:
        if self.pooler is None:
            tagged: Tensor = self.output(self.dropout(states[0]))  # (B, T, C)
            return tagged
        pooled = torch.tanh(self.pooler(self._features(states, masks)))  # (B, H)
        logits: Tensor = self.output(self.dropout(pooled))  # (B, C)
        return logits

    def _features(self, states: tuple[Tensor, ...], masks: tuple[Tensor, ...]) -> Tensor:
        if self.pooling is Pooling.CLS:
            return states[0][:, 0]
        if self.pooling is Pooling.MEAN:
            return masked_mean(states[0], masks[0])
        if self.pooling is Pooling.CONCAT:
            text, mask = states[0], masks[0]
            return torch.cat([text[:, 0], masked_mean(text, mask), masked_max(text, mask)], dim=-1)  # (B, 3H)
        if self.pooling is Pooling.LATENTS:
            return states[0].flatten(1)  # (B, m * H)
        u, v = (masked_mean(text, mask) for text, mask in zip(states, masks, strict=True))
        return torch.cat([states[0][:, 0], u, v, (u - v).abs(), u * v], dim=-1)  # (B, 5H)
