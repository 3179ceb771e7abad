"""Exits: small classifiers that answer a branch's task from states on the way to its head.

`attention` is FastBERT's student classifier (Liu et al. 2020, section 3.1): states made narrow, one masked
self-attention among them, and two linear layers on position 0. `linear` is one linear layer on [CLS] and the mean.
Knows tensors only.

Notation: B rows, T tokens, H width, W inner width, C outputs.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from trunkline.model.heads import masked_mean

INNER = 128
HEADS = 2


class Form(StrEnum):
    """How an exit reads states."""

    ATTENTION = "attention"
    LINEAR = "linear"


class ExitSpec(BaseModel):
    """One exit: it reads the states after `depth` layers, the trunk's and then the branch's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: int = Field(ge=1)
    form: Form
    temperature: float = Field(default=1.0, gt=0)
    """What its logits are divided by before they become probabilities."""


def new_exit(form: Form, width: int, outputs: int, *, tokens: bool) -> nn.Module:
    """A fresh exit: `forward` takes states (B, T, H) and a mask (B, T) and gives (B, C), with `tokens` (B, T, C)."""
    made = _Attention(width, outputs, tokens) if form is Form.ATTENTION else _Linear(width, outputs, tokens)
    for linear in made.modules():
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
    return made


class _Attention(nn.Module):
    def __init__(self, width: int, outputs: int, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.narrow = nn.Linear(width, INNER)
        self.query, self.key, self.value = (nn.Linear(INNER, INNER) for _ in range(3))
        self.dense = nn.Linear(INNER, INNER)
        self.output = nn.Linear(INNER, outputs)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        narrow = torch.tanh(self.narrow(states))  # (B, T, W)
        asking = narrow if self.tokens else narrow[:, :1]
        q, k, v = (_heads(part) for part in (self.query(asking), self.key(narrow), self.value(narrow)))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool()[:, None, None, :])  # (B, heads, …)
        hidden = torch.tanh(self.dense(found.transpose(1, 2).flatten(2)))
        logits: Tensor = self.output(hidden if self.tokens else hidden[:, 0])
        return logits


class _Linear(nn.Module):
    def __init__(self, width: int, outputs: int, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.output = nn.Linear(width if tokens else 2 * width, outputs)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        read = states if self.tokens else torch.cat([states[:, 0], masked_mean(states, mask)], dim=-1)
        logits: Tensor = self.output(read)
        return logits


def _heads(states: Tensor) -> Tensor:
    return states.view(*states.shape[:2], HEADS, -1).transpose(1, 2)  # (B, heads, T, W / heads)
