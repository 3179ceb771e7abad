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


@torch.no_grad()
def fast_exit(made: nn.Module) -> nn.Module:
    """An exit that computes the same from less work, for inference; the exit itself, where there is none."""
    return _Absorbed(made) if isinstance(made, _Attention) and not made.tokens else made


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


class _Absorbed(nn.Module):
    """`_Attention` of position 0 in few operations, most of which have one vector for each head and row in place of T:

    with narrow states x, of head h
        score_j = (W_q x_0 + b_q) · (W_k x_j + b_k) = (W_k^T (W_q x_0 + b_q)) · x_j + what falls out of the softmax
        dense(sum_j a_j (W_v x_j + b_v))            = (W_d W_v) sum_j a_j x_j + W_d b_v + b_d, as the a_j sum to 1
    """

    def __init__(self, made: _Attention) -> None:
        super().__init__()
        self.narrow, self.output = made.narrow, made.output
        size, like = INNER // HEADS, made.narrow.weight
        projections = (made.query, made.key, made.value)
        query, key, value = (one.weight.float().view(HEADS, size, INNER) for one in projections)
        dense = made.dense.weight.float()
        weight = torch.einsum("hdj,hdi->hji", key, query).flatten(0, 1)
        bias = torch.einsum("hdj,hd->hj", key, made.query.bias.float().view(HEADS, size)).flatten()
        self.ask = _linear(weight * size**-0.5, bias * size**-0.5, like)
        weight = torch.einsum("ohd,hdi->ohi", dense.view(INNER, HEADS, size), value).flatten(1)
        self.read = _linear(weight, made.dense.bias.float() + dense @ made.value.bias.float(), like)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        narrow = torch.tanh(self.narrow(states))  # (B, T, W)
        asking = self.ask(narrow[:, 0]).unflatten(1, (HEADS, INNER))
        scores = (asking @ narrow.transpose(1, 2)).masked_fill(~mask[:, None, :], float("-inf"))  # (B, heads, T)
        found = (scores.softmax(-1) @ narrow).flatten(1)  # (B, heads * W)
        logits: Tensor = self.output(torch.tanh(self.read(found)))
        return logits


def _linear(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device=like.device, dtype=like.dtype)
    made.weight.data, made.bias.data = weight.to(like.dtype), bias.to(like.dtype)
    return made


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
