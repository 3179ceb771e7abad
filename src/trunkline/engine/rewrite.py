"""Exact cheaper forms of a branch that reads few positions: equal numbers from less work.

Every form is a module over the same inputs, the states of each text (B, T, H) and then their bool masks (B, T), and
gives the branch's logits. Which one runs is settled elsewhere, by measurement.

- `plain`: the branch as it is.
- `cls_only`: the last own layer for position 0 alone. Keys and values are still projected for T tokens; the attention's
  output and the feed-forward run for one token instead of T.
- `absorbed`: besides, the projections of keys and values move to where a row has N vectors instead of T (see
  model/few.py). For a branch of latents, so do those of the layers in which they read the states.

Left plain: heads that read all tokens; DeBERTa-v2's first layer where a convolution stands beside it, which lets
position 0 read its neighbours; and DeBERTa with talking heads.

A row that is all padding, as fills a batch up to a shape, is read as if it were all tokens: its numbers mean nothing,
but they are finite. In any other row column 0 is a token. A form shares its branch's parameters where their layout
allows, puts the branch into eval mode, and decides nothing by the values of tensors, so that it can be traced.

Notation: B rows, T tokens (of both texts where two are joined), H width, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trunkline.model.branch import Branch, first_latents, in_unit, latents_alone, run_layers
from trunkline.model.encoders import Encoder
from trunkline.model.exits import fast_exit
from trunkline.model.few import Layer, few_layer
from trunkline.model.heads import Pooling


def forms(branch: Branch, encoder: Encoder) -> dict[str, nn.Module]:
    """The forms that apply to a branch, by name; "plain" always does."""
    makers = {"plain": plain}
    if branch.spec.latents:
        makers["absorbed"] = absorbed
    elif _first_alone(branch, encoder):
        makers |= {"cls_only": cls_only, "absorbed": absorbed} if len(branch.layers) else {"cls_only": cls_only}
    return {name: make(branch, encoder) for name, make in makers.items()}


def cheapest(branch: Branch, encoder: Encoder) -> tuple[str, nn.Module]:
    """The form that took least time at every shape measured (benchmarks/serving_cost.py), and its name."""
    found = forms(branch, encoder)
    name = next(name for name in ("absorbed", "cls_only", "plain") if name in found)
    return name, found[name]


def plain(branch: Branch, encoder: Encoder) -> nn.Module:
    """The branch as it is."""
    return _Plain(branch, encoder).eval()


def cls_only(branch: Branch, encoder: Encoder) -> nn.Module:
    """The branch with its last layer, or its head where it has none, for position 0 only.

    Raises ValueError where this form does not apply.
    """
    return _First(branch, encoder, absorb=False).eval()


def absorbed(branch: Branch, encoder: Encoder) -> nn.Module:
    """The branch with its last layer for position 0 only, and without the projections of that layer that can go; of
    latents, without those of the layers in which they read the states.

    Raises ValueError where this form does not apply.
    """
    if branch.spec.latents:
        return _Latents(branch, encoder).eval()
    if not len(branch.layers):
        raise ValueError(f"branch '{branch.spec.task}' has no layer to absorb")
    return _First(branch, encoder, absorb=True).eval()


def exit_alone(branch: Branch, depth: int) -> nn.Module:
    """The exit of a branch at a depth in its cheapest form, over the states there and their mask."""
    return _Exit(branch, depth).eval()


def scope_alone(branch: Branch, depth: int) -> nn.Module:
    """The scope of a branch at a depth, over the states of each text there and their masks."""
    return _Scope(branch, depth).eval()


def _first_alone(branch: Branch, encoder: Encoder) -> bool:
    """Whether the head reads position 0 only, and the last layer's output there needs none of its others."""
    if branch.spec.pooling is not Pooling.CLS:
        return False
    if not len(branch.layers):
        return True
    if encoder.family == "deberta-v2":
        return branch.spec.fork + len(branch.layers) > 1 or encoder.model.encoder.conv is None
    last: Layer = branch.layers[-1]
    return encoder.family != "deberta" or not last.attention.self.talking_head


class _Plain(nn.Module):
    def __init__(self, branch: Branch, encoder: Encoder) -> None:
        super().__init__()
        self.branch = branch
        self._encoder = [encoder]

    def forward(self, *inputs: Tensor) -> Tensor:
        states, masks = _texts(inputs)
        logits: Tensor = self.branch(self._encoder[0], states, masks)
        return logits


class _Exit(nn.Module):
    def __init__(self, branch: Branch, depth: int) -> None:
        super().__init__()
        self.spec = branch.spec
        self.exit = fast_exit(branch.exits[str(depth)])

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return in_unit(self.spec, self.exit(states, mask))


class _Scope(nn.Module):
    def __init__(self, branch: Branch, depth: int) -> None:
        super().__init__()
        self.scope = branch.scopes[str(depth)]

    def forward(self, *inputs: Tensor) -> Tensor:
        states, masks = _texts(inputs)
        strangeness: Tensor = self.scope(states, masks)
        return strangeness


class _Rewritten(nn.Module):
    """A branch taken apart: what all cheap forms have in common."""

    def __init__(self, branch: Branch, encoder: Encoder) -> None:
        super().__init__()
        self.spec = branch.spec
        # Apart, so that they stand in a converted graph as they are.
        self.segments = None if branch.segments is None else nn.ParameterList(branch.segments.detach().unbind())
        self.norm = branch.norm
        self.head = branch.head
        self._encoder = [encoder]  # in a list: no part of the branch

    def forward(self, *inputs: Tensor) -> Tensor:
        states, masks = _texts(inputs)
        states = self._needed(states)
        if self.segments is not None:
            states = [text + segment for text, segment in zip(states, self.segments, strict=False)]
        found = self._last(states, masks)  # (B, m, H), of which the first is [CLS] where no latents are
        return in_unit(self.spec, self.head((self.norm(found),), (masks[0],)))

    def _needed(self, states: list[Tensor]) -> list[Tensor]:
        return states

    def _last(self, states: list[Tensor], masks: list[Tensor]) -> Tensor:
        raise NotImplementedError


class _First(_Rewritten):
    """A branch whose last layer, or norm and head where it has none, run for position 0."""

    def __init__(self, branch: Branch, encoder: Encoder, *, absorb: bool) -> None:
        if not _first_alone(branch, encoder):
            raise ValueError(f"branch '{branch.spec.task}' needs more than position 0 of its last states")
        super().__init__(branch, encoder)
        self.layers = branch.layers[:-1]
        self.last = few_layer(branch.layers[-1], encoder, absorb=absorb) if len(branch.layers) else None

    def _needed(self, states: list[Tensor]) -> list[Tensor]:
        return [states[0][:, :1]] if self.last is None else states

    def _last(self, states: list[Tensor], masks: list[Tensor]) -> Tensor:
        if self.last is None:
            return states[0]
        joined, mask = _joined(states), _joined(masks)
        joined = run_layers(self._encoder[0], self.layers, self.spec.fork, joined, mask)
        first: Tensor = self.last(joined[:, :1], joined, mask)
        return first


class _Latents(_Rewritten):
    """A branch of latents, which read the states without their projections."""

    def __init__(self, branch: Branch, encoder: Encoder) -> None:
        super().__init__(branch, encoder)
        crossing = branch.spec.crossing
        self.latents = branch.latents
        self.crossing = nn.ModuleList(few_layer(layer, encoder, absorb=True) for layer in branch.layers[:crossing])
        self.layers = branch.layers[crossing:]

    def _last(self, states: list[Tensor], masks: list[Tensor]) -> Tensor:
        assert self.latents is not None
        latents = first_latents(self.latents, states, masks)
        joined, mask = _joined(states), _joined(masks)
        for layer in self.crossing:
            latents = layer(latents, joined, mask)
        return latents_alone(self._encoder[0], self.spec, self.layers, latents)


def _joined(texts: list[Tensor]) -> Tensor:
    """(B, Ta + Tb, …) of both texts, where there are two."""
    return texts[0] if len(texts) == 1 else torch.cat(texts, dim=1)


def _texts(inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """States and masks of each text; a row that is all padding becomes all tokens, as softmax over nothing is NaN."""
    half = len(inputs) // 2
    states, masks = list(inputs[:half]), list(inputs[half:])
    empty = ~torch.cat(masks, dim=1).any(1, keepdim=True)  # (B, 1)
    return states, [mask | empty for mask in masks]
