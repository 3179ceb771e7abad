"""One layer of an encoder for a few query vectors over all states of a row, taken apart by family.

The projections of keys and values may be absorbed: moved to where a row has N vectors instead of T. For head h

    score_hj  = q_h · (W_k,h x_j + b_k,h)      = (q_h W_k,h) · x_j + a constant that falls out of the softmax
    context_h = sum_j a_hj (W_v,h x_j + b_v,h) = W_v,h (sum_j a_hj x_j) + b_v,h, as the a_hj sum to 1

Keys stay projected where they depend on their position (ModernBERT's rotation, DeBERTa's position embeddings): the
absorbed query would have to be made anew for every position. Values never depend on it. A query stands at position 0.

Knows layers; nothing of branches, nor of when which form is used. Dropout is in it for the families whose layers are
trained so (`source.LATENTS`). All that a layer is made of comes from the layer
itself and is shared with it, but for families that fuse projections: theirs are detached copies.

Notation: B rows, T tokens, H width, N heads, D width of a head, m queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trunkline.model.encoders import Encoder

Layer = Any  # a transformers layer; its attributes differ from family to family


def few_layer(layer: Layer, encoder: Encoder, *, absorb: bool) -> FewLayer:
    """The layer for few queries, with or without the projections that can be absorbed."""
    return _LAYERS[encoder.family](layer, encoder, absorb)


class FewQueries(nn.Module):
    """Attention of m queries over all states of a row; `keys` and `values` say how states are scored and summed.

    `forward` takes queries (B, m, H), states (B, T, H) and a mask (B, T), and gives (B, m, N * D), not yet projected.
    `dropout` is that of the weights, in training.
    """

    def __init__(
        self, query: nn.Linear, keys: nn.Module, values: nn.Module, heads: int, dropout: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.query = query
        self.keys = keys
        self.values = values
        self.heads = heads
        self.dropout = dropout or nn.Identity()

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        q = _heads(self.query(queries), self.heads)  # (B, N, m, D)
        scores = self.keys(q, states, mask)  # (B, N, m, T)
        weights = scores.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(-1)
        context: Tensor = self.values(self.dropout(weights), states)  # (B, m, N * D)
        return context


class PlainKeys(nn.Module):
    """Scores (B, N, m, T) of queries (B, N, m, D) against projected states."""

    def __init__(self, key: nn.Linear, scale: float) -> None:
        super().__init__()
        self.key = key
        self.scale = scale

    def forward(self, q: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return q @ _heads(self.key(states), q.shape[1]).transpose(2, 3) * self.scale


class AbsorbedKeys(nn.Module):
    """The same scores, save for a constant per query, by queries that have absorbed the projection."""

    def __init__(self, key: nn.Linear, heads: int, scale: float) -> None:
        super().__init__()
        self.weight = key.weight
        self.heads = heads
        self.scale = scale

    def forward(self, q: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        m, width = q.shape[2], self.weight.shape[1]
        folded = q.transpose(0, 1).flatten(1, 2) @ self.weight.view(self.heads, -1, width)  # (N, B * m, H)
        folded = folded.view(self.heads, -1, m, width).transpose(0, 1).flatten(1, 2)  # (B, N * m, H)
        scores: Tensor = folded @ states.transpose(1, 2) * self.scale  # (B, N * m, T)
        return scores.view(-1, self.heads, m, states.shape[1])


class PlainValues(nn.Module):
    """Context (B, m, N * D): projected states summed by attention weights (B, N, m, T)."""

    def __init__(self, value: nn.Linear) -> None:
        super().__init__()
        self.value = value

    def forward(self, weights: Tensor, states: Tensor) -> Tensor:
        return (weights @ _heads(self.value(states), weights.shape[1])).transpose(1, 2).flatten(2)


class AbsorbedValues(nn.Module):
    """The same context, projected after summing."""

    def __init__(self, value: nn.Linear, heads: int) -> None:
        super().__init__()
        self.weight = value.weight
        self.bias = value.bias
        self.heads = heads

    def forward(self, weights: Tensor, states: Tensor) -> Tensor:
        m, width = weights.shape[2], states.shape[2]
        sums = (weights.flatten(1, 2) @ states).view(-1, self.heads, m, width)  # (B, N, m, H)
        matrix = self.weight.view(self.heads, -1, width).transpose(1, 2)  # (N, H, D)
        context = sums.transpose(0, 1).flatten(1, 2) @ matrix  # (N, B * m, D)
        context = context.view(self.heads, -1, m, matrix.shape[2]).permute(1, 2, 0, 3).flatten(2)  # (B, m, N * D)
        return context if self.bias is None else context + self.bias


class _BiasedKeys(nn.Module):
    """MPNet: a bias per head and distance from position 0, from the table that all layers share."""

    def __init__(self, keys: nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.keys = keys
        self._encoder = [encoder]  # in a list: no part of the branch

    def forward(self, q: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        shared = self._encoder[0].model.encoder
        bias = shared.relative_attention_bias(shared.relative_position_bucket(_positions(mask)))  # (B, T, N)
        scores: Tensor = self.keys(q, states, mask) + bias.transpose(1, 2).unsqueeze(2).to(q.dtype)
        return scores


class _RotatedKeys(nn.Module):
    """ModernBERT: keys and the query of position 0 are rotated by position; some layers see a window only."""

    def __init__(self, key: nn.Linear, scale: float, kind: str, encoder: Encoder) -> None:
        super().__init__()
        self.key = key
        self.scale = scale
        self.kind = kind
        self._encoder = [encoder]

    def forward(self, q: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        model = self._encoder[0].model
        positions = _positions(mask)  # (B, T)
        cos, sin = (part.unsqueeze(1) for part in model.rotary_emb(states, positions, self.kind))  # (B, 1, T, D)
        k = _rotated(_heads(self.key(states), q.shape[1]), cos, sin)
        scores = _rotated(q, cos[:, :, :1], sin[:, :, :1]) @ k.transpose(2, 3) * self.scale
        if self.kind == "sliding_attention":
            scores = scores.masked_fill((positions > model.config.sliding_window)[:, None, None, :], float("-inf"))
        return scores


class _DisentangledKeys(nn.Module):
    """DeBERTa (He et al. 2021, section 3.1), for the query at position 0: content to content, content to position and
    position to content.

    `keys` and `queries` (S, N * D) are the projected relative positions, None where a layer leaves them out; `rows`
    (P,) tells which of the S stands for a key at a position, the last also for any further one.
    """

    rows: Tensor
    keys: Tensor | None
    queries: Tensor | None

    def __init__(self, key: nn.Linear, scale: float, rows: Tensor, keys: Tensor | None, queries: Tensor | None) -> None:
        super().__init__()
        self.key = key
        self.scale = scale
        self.register_buffer("rows", rows)
        self.register_buffer("keys", keys)
        self.register_buffer("queries", queries)

    def forward(self, q: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        rows = self.rows[_positions(mask).clamp(max=len(self.rows) - 1)]  # (B, T)
        content = self.key(states)  # (B, T, N * D)
        looked = content if self.keys is None else content + self.keys[rows]
        scores = q @ _heads(looked, q.shape[1]).transpose(2, 3)  # (B, N, 1, T)
        if self.queries is not None:
            scores = scores + _heads(content * self.queries[rows], q.shape[1]).sum(3).unsqueeze(2)
        return scores * self.scale


class FewLayer(nn.Module):
    """One layer for m queries: `forward` takes queries (B, m, H), states (B, T, H) and a mask (B, T), gives (B, m, H).

    `before` is the norm that attention reads through; `rest` takes queries and context (B, m, N * D) to the output.
    """

    def __init__(self, before: nn.Module, attention: FewQueries, rest: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.attention = attention
        self.rest = rest

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        context = self.attention(self.before(queries), self.before(states), mask)
        output: Tensor = self.rest(queries, context)
        return output


class _PostNorm(nn.Module):
    """After attention, as BERT has it: a norm after each sum."""

    def __init__(self, project: nn.Module, norm: nn.Module, feed: nn.Module, last_norm: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.norm = norm
        self.feed = feed
        self.last_norm = last_norm

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        states = self.norm(self.project(context) + queries)
        output: Tensor = self.last_norm(self.feed(states) + states)
        return output


class _PreNorm(nn.Module):
    """After attention, as ModernBERT has it: a norm before the feed-forward, none after a sum."""

    def __init__(self, project: nn.Module, norm: nn.Module, feed: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.norm = norm
        self.feed = feed

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        states: Tensor = queries + self.project(context)
        output: Tensor = states + self.feed(self.norm(states))
        return output


def _bert(layer: Layer, encoder: Encoder, absorb: bool) -> FewLayer:
    attention = layer.attention.self
    parts = (attention.query, attention.key, attention.value)
    few = _attention(*parts, attention.num_attention_heads, absorb, dropout=attention.dropout)
    output = layer.attention.output
    return _like_bert(layer, few, nn.Sequential(output.dense, output.dropout), output.LayerNorm)


def _like_bert(layer: Layer, few: FewQueries, project: nn.Module, norm: nn.Module) -> FewLayer:
    feed = nn.Sequential(layer.intermediate, layer.output.dense, layer.output.dropout)
    return FewLayer(nn.Identity(), few, _PostNorm(project, norm, feed, layer.output.LayerNorm))


def _distilbert(layer: Layer, encoder: Encoder, absorb: bool) -> FewLayer:
    attention = layer.attention
    parts = (attention.q_lin, attention.k_lin, attention.v_lin)
    rest = _PostNorm(attention.out_lin, layer.sa_layer_norm, layer.ffn, layer.output_layer_norm)
    return FewLayer(nn.Identity(), _attention(*parts, attention.n_heads, absorb, dropout=attention.dropout), rest)


def _mpnet(layer: Layer, encoder: Encoder, absorb: bool) -> FewLayer:
    attention = layer.attention.attn
    parts = (attention.q, attention.k, attention.v)
    few = _attention(*parts, attention.num_attention_heads, absorb, dropout=attention.dropout)
    few.keys = _BiasedKeys(few.keys, encoder)
    return _like_bert(layer, few, nn.Sequential(attention.o, layer.attention.dropout), layer.attention.LayerNorm)


def _modernbert(layer: Layer, encoder: Encoder, absorb: bool) -> FewLayer:
    attention = layer.attn
    fused = attention.Wqkv
    biases = (None, None, None) if fused.bias is None else fused.bias.chunk(3)
    query, key, value = (_linear(*parts) for parts in zip(fused.weight.chunk(3), biases, strict=True))
    heads = query.out_features // attention.head_dim
    few = _attention(query, key, value, heads, absorb)
    few.keys = _RotatedKeys(key, _scale(key, heads), layer.attention_type, encoder)
    return FewLayer(layer.attn_norm, few, _PreNorm(attention.Wo, layer.mlp_norm, layer.mlp))


def _deberta(layer: Layer, encoder: Encoder, absorb: bool) -> FewLayer:
    attention = layer.attention.self
    heads = attention.num_attention_heads
    # Each head's rows stand together: its query's, its key's, its value's.
    fused = attention.in_proj.weight
    weights = fused.view(heads, 3, -1, fused.shape[1]).transpose(0, 1).flatten(1, 2)  # (3, N * D, H)
    biases = (attention.q_bias, None, attention.v_bias)
    query, key, value = (_linear(*parts) for parts in zip(weights, biases, strict=True))
    kinds = attention.pos_att_type
    terms = 1 + len(kinds)
    few = _attention(query, key, value, heads, absorb, terms)
    if attention.relative_attention:
        span = attention.max_relative_positions
        relative = -torch.arange(span + 1, device=fused.device)
        to_keys = attention.pos_proj if "c2p" in kinds else None
        to_queries = attention.pos_q_proj if "p2c" in kinds else None
        few.keys = _disentangled(key, _scale(key, heads, terms), encoder, span, relative, to_keys, to_queries)
    return _like_bert(layer, few, layer.attention.output.dense, layer.attention.output.LayerNorm)


def _deberta_v2(layer: Layer, encoder: Encoder, absorb: bool) -> FewLayer:
    attention = layer.attention.self
    query, key, heads = attention.query_proj, attention.key_proj, attention.num_attention_heads
    kinds = attention.pos_att_type
    terms = 1 + ("c2p" in kinds) + ("p2c" in kinds)
    few = _attention(query, key, attention.value_proj, heads, absorb, terms)
    if attention.relative_attention:
        shared = attention.share_att_key
        # Buckets of positions widen with the distance; none is left beyond this many.
        mask = torch.ones(1, attention.max_relative_positions + 1, dtype=torch.bool, device=key.weight.device)
        relative = encoder.context(mask, key.weight.dtype)["layer"]["relative_pos"][0, 0]
        span, scale = attention.pos_ebd_size, _scale(key, heads, terms)
        to_keys = None if "c2p" not in kinds else key if shared else attention.pos_key_proj
        to_queries = None if "p2c" not in kinds else query if shared else attention.pos_query_proj
        few.keys = _disentangled(key, scale, encoder, span, relative, to_keys, to_queries)
    return _like_bert(layer, few, layer.attention.output.dense, layer.attention.output.LayerNorm)


@torch.no_grad()
def _disentangled(
    key: nn.Linear,
    scale: float,
    encoder: Encoder,
    span: int,
    relative: Tensor,
    to_keys: nn.Module | None,
    to_queries: nn.Module | None,
) -> nn.Module:
    """`relative` (P,) is what the family makes of the distance from position 0 to each key, and ends at `span`."""
    embeddings = encoder.model.encoder.get_rel_embedding()[: 2 * span].to(key.weight.dtype)  # (S, H)
    keys, queries = (None if project is None else project(embeddings) for project in (to_keys, to_queries))
    return _DisentangledKeys(key, scale, (relative + span).clamp(0, 2 * span - 1), keys, queries)


_LAYERS: dict[str, Callable[[Layer, Encoder, bool], FewLayer]] = {
    "bert": _bert,
    "deberta": _deberta,
    "deberta-v2": _deberta_v2,
    "distilbert": _distilbert,
    "electra": _bert,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
    "roberta": _bert,
    "xlm-roberta": _bert,
}


def _attention(
    query: nn.Linear,
    key: nn.Linear,
    value: nn.Linear,
    heads: int,
    absorb: bool,
    terms: int = 1,
    dropout: nn.Module | None = None,
) -> FewQueries:
    """Attention by content alone, both projections absorbed or neither."""
    scale = _scale(key, heads, terms)
    keys = AbsorbedKeys(key, heads, scale) if absorb else PlainKeys(key, scale)
    values = AbsorbedValues(value, heads) if absorb else PlainValues(value)
    return FewQueries(query, keys, values, heads, dropout)


def _scale(key: nn.Linear, heads: int, terms: int = 1) -> float:
    """What scores of `terms` dot products each are multiplied by."""
    return 1 / math.sqrt(key.out_features // heads * terms)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these tensors, which stay shared."""
    rows, width = weight.shape
    linear = nn.Linear(width, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """(B, T, N * D) -> (B, N, T, D)."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _rotated(tensor: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) of (B, N, T, D) by (B, 1, T, D); sums in float32, as the family has it."""
    left, right = tensor.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (tensor.float() * cos + turned.float() * sin).to(tensor.dtype)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among the real tokens of its row, (B, T), whatever the mask."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
