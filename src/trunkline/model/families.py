"""How each family of encoders embeds, builds what its layers share, and runs one layer.

The other files that touch transformers are encoders.py and, for whole foreign models, classifiers.py. A family is a few
functions over the transformers model; they know nothing of files, tokenizers or branches.

B: rows, T: tokens, H: width of a state, N: attention heads.

Positions are counted over real tokens, not over columns: a branch may read two padded texts side by side, and what a
row means must not depend on how much padding its neighbours caused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Model = Any  # a transformers PreTrainedModel; its attributes differ from family to family
_JIT: Any = torch.jit  # untyped

Context = Any  # what the layers of one pass share; only the family that made it looks inside


@dataclass(frozen=True)
class Family:
    """The seam between one family and everything else; all functions take the transformers model first.

    embed(model, ids, types, mask) -> states (B, T, H); context(model, mask, dtype) -> Context;
    run(model, layer, index, states, context) -> states (B, T, H); layers(model) -> its layers in order.
    """

    attention: str  # the transformers attention implementation
    embed: Callable[[Model, Tensor, Tensor, Tensor], Tensor]
    context: Callable[[Model, Tensor, torch.dtype], Context]
    run: Callable[[Model, nn.Module, int, Tensor, Context], Tensor]
    layers: Callable[[Model], nn.ModuleList]
    final_norm: Callable[[Model], nn.Module | None] = lambda model: None


def _output(result: Any) -> Tensor:
    """The states a layer returns, alone or first of a tuple."""
    states: Tensor = result[0] if isinstance(result, tuple) else result
    return states


def _keys(mask: Tensor) -> Tensor:
    return mask.bool()[:, None, None, :]  # (B, 1, 1, T): every query may look at the real tokens


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among the real tokens of its row: (B, T), or (1, T) where all padding is on the right."""
    mask = mask.bool()
    # A trace keeps the general path, whatever its example; a GPU would have to be waited for.
    if mask.device.type == "cpu" and not _JIT.is_tracing() and bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return torch.arange(mask.shape[1], device=mask.device)[None, :]
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _distances(mask: Tensor) -> Tensor:
    """Position of the query minus position of the key: (B or 1, T, T)."""
    positions = _positions(mask)
    return positions[:, :, None] - positions[:, None, :]


# BERT and those built like it: absolute positions in the embeddings, and layers that need a mask only.


def _encoder_layers(model: Model) -> nn.ModuleList:
    layers: nn.ModuleList = model.encoder.layer
    return layers


def _embed_typed(model: Model, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
    if model.config.type_vocab_size < 2:
        types = torch.zeros_like(types)
    states: Tensor = model.embeddings(input_ids=ids, token_type_ids=types)  # (B, T, H)
    if hasattr(model, "embeddings_project"):  # ELECTRA's embeddings may be narrower than its layers
        states = model.embeddings_project(states)
    return states


def _embed_untyped(model: Model, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
    states: Tensor = model.embeddings(input_ids=ids)
    return states


def _mask_context(model: Model, mask: Tensor, dtype: torch.dtype) -> Context:
    return {"attention_mask": _keys(mask)}


def _run(model: Model, layer: nn.Module, index: int, states: Tensor, context: Context) -> Tensor:
    return _output(layer(states, **context))


_BERT = Family("sdpa", _embed_typed, _mask_context, _run, _encoder_layers)
_DISTILBERT = Family("sdpa", _embed_untyped, _mask_context, _run, lambda model: model.transformer.layer)


# MPNet: one table of relative position biases, shared by all layers.


def _mpnet_context(model: Model, mask: Tensor, dtype: torch.dtype) -> Context:
    encoder = model.encoder
    buckets = encoder.relative_position_bucket(-_distances(mask))
    bias = encoder.relative_attention_bias(buckets).permute(0, 3, 1, 2)  # (B or 1, N, T, T)
    lowest = torch.finfo(dtype).min
    hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), lowest)
    return {"attention_mask": hidden[:, None, None, :], "position_bias": bias.to(dtype)}


_MPNET = Family("eager", _embed_untyped, _mpnet_context, _run, _encoder_layers)


# DeBERTa: content and relative position attend to each other; the position embeddings are shared by all layers.


def _deberta_embed(model: Model, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
    states: Tensor = model.embeddings(input_ids=ids, token_type_ids=types, mask=mask)
    return states


def _deberta_context(model: Model, mask: Tensor, dtype: torch.dtype) -> Context:
    relative = _distances(mask) if model.encoder.relative_attention else None
    return {
        "attention_mask": _keys(mask),
        "relative_pos": relative,
        "rel_embeddings": model.encoder.get_rel_embedding(),
    }


def _deberta_run(model: Model, layer: nn.Module, index: int, states: Tensor, context: Context) -> Tensor:
    # Its attention fills float32's lowest value into scores that autocast has made bfloat16, which overflows.
    with torch.autocast(states.device.type, enabled=False):
        return _run(model, layer, index, states.to(next(layer.parameters()).dtype), context)


def _deberta_v2_context(model: Model, mask: Tensor, dtype: torch.dtype) -> Context:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    shared = _deberta_context(model, mask, dtype)
    relative, encoder = shared["relative_pos"], model.encoder
    if relative is not None:
        if encoder.position_buckets > 0 and encoder.max_relative_positions > 0:
            relative = make_log_bucket_position(relative, encoder.position_buckets, encoder.max_relative_positions)
        relative = relative.long()
        if len(relative) > 1:  # its attention folds rows and heads into one axis: (1, B*N, T, T)
            relative = relative.repeat_interleave(model.config.num_attention_heads, dim=0)[None]
    return {"layer": {**shared, "relative_pos": relative}, "mask": mask.long()}


def _deberta_v2_run(model: Model, layer: nn.Module, index: int, states: Tensor, context: Context) -> Tensor:
    output = _output(layer(states, **context["layer"]))
    if index > 0 or model.encoder.conv is None:
        return output
    # The convolution beside the first layer belongs to the trunk, also where the layer is a branch's own. It mixes
    # neighbouring columns, so real tokens are moved together first, and back after.
    mask = context["mask"]
    order = mask.argsort(dim=1, descending=True, stable=True)  # (B, T)
    there, back = (columns[..., None].expand_as(states) for columns in (order, order.argsort(dim=1)))
    tokens = (states * mask[..., None]).gather(1, there)
    mixed: Tensor = model.encoder.conv(tokens, output.gather(1, there), mask.gather(1, order))
    return mixed.gather(1, back)


_DEBERTA = Family("eager", _deberta_embed, _deberta_context, _deberta_run, _encoder_layers)
_DEBERTA_V2 = Family("eager", _deberta_embed, _deberta_v2_context, _deberta_v2_run, _encoder_layers)


# ModernBERT: rotary positions, sliding windows in most layers, and a norm after the last.


def _modernbert_context(model: Model, mask: Tensor, dtype: torch.dtype) -> Context:
    keys = _keys(mask)
    positions = _positions(mask)
    near = (_distances(mask).abs() <= model.config.sliding_window)[:, None]  # (B or 1, 1, T, T)
    # Padding too far from any token would see nothing, and softmax over nothing is NaN: let it see itself.
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    masks = {"full_attention": keys, "sliding_attention": (keys & near) | itself}
    like = torch.empty(0, dtype=dtype, device=mask.device)
    return {
        kind: {
            "attention_mask": masks[kind],
            "position_embeddings": model.rotary_emb(like, positions, kind),
        }
        for kind in set(model.config.layer_types)
    }


def _modernbert_run(model: Model, layer: nn.Module, index: int, states: Tensor, context: Context) -> Tensor:
    return _output(layer(states, **context[layer.attention_type]))


_MODERNBERT = Family(
    "sdpa",
    _embed_untyped,
    _modernbert_context,
    _modernbert_run,
    lambda model: model.layers,
    lambda model: model.final_norm,
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
