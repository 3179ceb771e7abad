"""Branches as they are trained: the last layer runs for position 0 alone where nothing else of it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from branches import load_trunk, random_branch, tiny_source
from torch import Tensor, nn

from trunkline.model.branch import Branch, states_to
from trunkline.model.source import FAMILIES, LATENTS
from trunkline.model.tokens import TokenBatch
from trunkline.model.trunk import Trunk

SORTS: tuple[dict[str, Any], ...] = (
    {"layers": 1},
    {"layers": 2, "reading": "joint"},
    {"layers": 2, "reading": "separate", "pooling": "cls"},
    {"layers": 2, "pooling": "latents", "latents": 3, "crossing": 2},
)


def inputs(branch: Branch) -> tuple[list[Tensor], list[Tensor]]:
    """Random states and masks of each text, padded at its end."""
    states, masks = [], []
    for size in (7, 5)[: len(branch.spec.reading.slots)]:
        states.append(torch.randn(4, size, branch.spec.width))
        masks.append(torch.arange(size)[None, :] < torch.tensor([[size], [1], [3], [size - 1]]))
    return states, masks


def trunk_of(family: str, folder: Path) -> Trunk:
    return load_trunk(tiny_source(folder / "encoder", family, layers=3))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("sort", SORTS[:3])
def test_training_position_0_gives_the_logits_and_gradients_of_all(
    tmp_path: Path, family: str, sort: dict[str, Any]
) -> None:
    trunk = trunk_of(family, tmp_path)
    branch = random_branch(trunk, "task", kind="classification", fork=1, **sort)
    states, masks = inputs(branch)
    for part in branch.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    found = []
    for first in (True, False):
        branch.train().zero_grad()
        logits, _ = branch.watched(trunk.encoder, states, masks, first=first)
        logits.square().sum().backward()
        found.append((logits.detach(), {name: value.grad for name, value in branch.named_parameters()}))
    (few, few_grads), (whole, grads) = found
    torch.testing.assert_close(few, whole)
    for name, value in branch.named_parameters():
        one, other = (torch.zeros_like(value) if of[name] is None else of[name] for of in (few_grads, grads))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", sorted(LATENTS))
@pytest.mark.parametrize("sort", SORTS)
def test_every_dropout_of_a_layer_is_there_in_training(tmp_path: Path, family: str, sort: dict[str, Any]) -> None:
    trunk = trunk_of(family, tmp_path)
    branch = random_branch(trunk, "task", kind="classification", fork=1, **sort)
    states, masks = inputs(branch)
    drops = {name: part for name, part in branch.named_modules() if isinstance(part, nn.Dropout)}
    assert len(drops) > len(branch.layers)
    for name, part in drops.items():
        for other in drops.values():
            other.p = 0.5 * (other is part)
        branch.train()
        with torch.no_grad():
            one, other = (branch.watched(trunk.encoder, states, masks, first=True)[0] for _ in range(2))
            assert not torch.equal(one, other), name


@pytest.mark.parametrize("family", sorted(LATENTS))
def test_an_encoder_s_states_to_a_depth_are_the_same_for_position_0_alone(tmp_path: Path, family: str) -> None:
    encoder = trunk_of(family, tmp_path).encoder
    ids = torch.randint(5, 20, (4, 7))
    mask = (torch.arange(7)[None, :] < torch.tensor([[7], [1], [3], [6]])).long()
    batch = TokenBatch(ids=ids * mask, types=torch.zeros_like(ids), mask=mask)
    with torch.no_grad():
        whole, first = (states_to(encoder, batch, 2, first=first) for first in (False, True))
    assert (len(whole), len(first), first[-1].shape[1]) == (3, 3, 1)
    torch.testing.assert_close(first[-1], whole[-1][:, :1])
    assert all(torch.equal(one, other) for one, other in zip(first[:-1], whole[:-1], strict=True))
