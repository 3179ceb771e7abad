"""The trunk: promise 4 (frozen is frozen), and promise 3 (one trunk pass) as far as the trunk keeps it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_encoder
from torch import Tensor, nn

from trunkline.model.encoders import Encoder
from trunkline.model.source import FAMILIES
from trunkline.model.tokens import TokenBatch
from trunkline.model.trunk import Trunk

TEXTS = ["book a table for two", "rain", "play the new album"]
DEPTH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("trunk") / "bert", layers=DEPTH)


@pytest.fixture
def trunk(folder: Path) -> Trunk:
    return Trunk(Encoder.load(folder), "0" * 64)


def batch_of(trunk: Trunk) -> TokenBatch:
    return trunk.encoder.collate(trunk.encoder.tokenize(TEXTS))


def snapshot(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def unchanged(module: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(module.state_dict().values(), before, strict=True))


def test_frozen_is_frozen_train_cannot_undo_it(trunk: Trunk) -> None:
    model = nn.ModuleDict({"trunk": trunk, "head": nn.Linear(trunk.width, 2)})
    before = trunk.states(batch_of(trunk), [DEPTH])[DEPTH]
    model.train()
    trunk.train()
    assert model["head"].training
    assert not any(module.training for module in trunk.modules())
    assert torch.equal(trunk.states(batch_of(trunk), [DEPTH])[DEPTH], before), "dropout is on"
    for module in model.modules():
        module.training = True
    assert torch.equal(trunk.states(batch_of(trunk), [DEPTH])[DEPTH], before), "dropout is on"


def test_frozen_is_frozen_no_gradient_reaches_it(trunk: Trunk) -> None:
    head = nn.Linear(trunk.width, 2)
    states = trunk.states(batch_of(trunk), [0, DEPTH])
    assert not any(state.requires_grad for state in states.values())
    head(states[DEPTH]).sum().backward()
    assert head.weight.grad is not None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in trunk.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_is_frozen_an_optimiser_with_weight_decay_leaves_it_bit_identical(
    family: str, optimiser: type[torch.optim.AdamW | torch.optim.SGD], tmp_path: Path
) -> None:
    trunk = Trunk(Encoder.load(tiny_encoder(tmp_path / family, family, layers=2)), "0" * 64)
    own = trunk.encoder.copy_layers(1, 2).train()
    model = nn.ModuleDict({"trunk": trunk, "own": own, "norm": trunk.encoder.final_norm()})
    trunk_before, own_before = snapshot(trunk), snapshot(own)
    steps = optimiser(model.parameters(), lr=0.1, weight_decay=0.5)
    batch = batch_of(trunk)
    for _ in range(2):
        model.train()
        states = trunk.states(batch, [1])[1]
        context = trunk.encoder.context(batch.mask, states.dtype)
        model["norm"](trunk.encoder.run(own[0], 1, states, context)).sum().backward()
        steps.step()
        steps.zero_grad()
    assert unchanged(trunk, trunk_before)
    assert not unchanged(own, own_before)


@given(forks=st.lists(st.integers(0, DEPTH), max_size=6))
@settings(max_examples=30)
def test_one_trunk_pass_runs_each_layer_at_most_once_and_none_deeper_than_needed(
    trunk_once: Trunk, forks: list[int]
) -> None:
    runs: Counter[int] = Counter()
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, depth=depth: runs.update([depth]))
        for depth, layer in enumerate(trunk_once.encoder.layers, start=1)
    ]
    states = trunk_once.states(batch_of(trunk_once), forks)
    for hook in hooks:
        hook.remove()
    assert runs == dict.fromkeys(range(1, max(forks, default=0) + 1), 1)
    assert sorted(states) == sorted(set(forks))


@pytest.fixture(scope="module")
def trunk_once(folder: Path) -> Trunk:
    return Trunk(Encoder.load(folder), "0" * 64)


def test_states_at_a_fork_do_not_depend_on_the_other_forks(trunk: Trunk) -> None:
    batch = batch_of(trunk)
    with torch.no_grad():
        expected = trunk.encoder.hidden_states(batch)
    together = trunk.states(batch, range(DEPTH + 1))
    for fork in range(DEPTH + 1):
        assert torch.equal(together[fork], expected[fork])
        assert torch.equal(trunk.states(batch, [fork])[fork], expected[fork])


@pytest.mark.parametrize("fork", [-1, DEPTH + 1])
def test_a_fork_outside_the_trunk_is_refused(trunk: Trunk, fork: int) -> None:
    with pytest.raises(ValueError, match=f"trunk with {DEPTH} layers"):
        trunk.states(batch_of(trunk), [0, fork])


def test_a_trunk_says_what_it_is(trunk: Trunk) -> None:
    assert (trunk.depth, trunk.width, trunk.fingerprint) == (DEPTH, 32, "0" * 64)
