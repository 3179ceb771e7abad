"""The torch backend: PyTorch on a CPU in float32, or on CUDA, in bfloat16 where the GPU has it.

Attention is scaled_dot_product_attention over batches of few shapes that are sorted by length.

Notation: R rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.engine import rewrite
from trunkline.engine.backend import Call, Mask, ScopeAt
from trunkline.engine.backend import Part as Name
from trunkline.engine.base import Logits
from trunkline.model.branch import Branch, BranchSpec, check_trunk
from trunkline.model.trunk import Trunk

Module = TypeVar("Module", bound=nn.Module)

MASKS = 64
"""Masks that are remembered on the device: those of the batches that go side by side, and more."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """A branch in the form in which it runs: modules by `Call.part`."""

    branch: Branch
    modules: Mapping[Name, nn.Module]

    @property
    def spec(self) -> BranchSpec:
        """What it is."""
        return self.branch.spec


class TorchBackend:
    """A trunk and branches on one device, run by one thread at a time."""

    def __init__(self, trunk: Trunk, parts: Mapping[str, Part], *, device: str, dtype: torch.dtype) -> None:
        self.encoder = trunk.encoder
        self.parts = dict(sorted(parts.items()))
        self.specs = {task: part.spec for task, part in self.parts.items()}
        self.device = torch.device(device)
        self.dtype = dtype
        self._masks: dict[int, tuple[Mask, Tensor]] = {}

    @torch.inference_mode()
    def embed(self, ids: NDArray[np.int64], types: NDArray[np.int64], mask: Mask) -> Tensor:
        """The states before the first layer, of (R, T) token ids and types."""
        return self.encoder.embed(self._there(ids), self._there(types), self._masked(mask)).to(self.dtype)

    @torch.inference_mode()
    def layer(self, index: int, states: Tensor, mask: Mask) -> Tensor:
        """The states after trunk layer `index`."""
        context = self.encoder.context(self._masked(mask), states.dtype)
        return self.encoder.run(self.encoder.layers[index], index, states, context)

    @torch.inference_mode()
    def own_layer(self, task: str, index: int, states: Tensor, mask: Mask) -> Tensor:
        """The states after own layer `index` of a branch."""
        branch = self.parts[task].branch
        context = self.encoder.context(self._masked(mask), states.dtype)
        return self.encoder.run(branch.layers[index], branch.spec.fork + index, states, context)

    @torch.inference_mode()
    def branches(self, calls: Sequence[Call]) -> list[Logits]:
        """Logits (R, C) or (R, T, C) of each call, float32. All are started before any is waited for."""
        found = [
            self.parts[call.task].modules[call.part](*call.states, *(self._masked(mask) for mask in call.masks)).float()
            for call in calls
        ]
        return [logits.cpu().numpy() for logits in found]

    def gather(self, taken: Sequence[tuple[Tensor, NDArray[np.int64]]], rows: int, tokens: int) -> Tensor:
        """A copy, as one batch (rows, tokens, H), of these rows of each of these states, zeros elsewhere."""
        gathered = torch.zeros((rows, tokens, self.encoder.width), dtype=self.dtype, device=self.device)
        start = 0
        for states, picks in taken:
            part = states[:, :tokens].index_select(0, self._there(picks))
            gathered[start : start + len(picks), : part.shape[1]] = part
            start += len(picks)
        return gathered

    def keep(self, states: Tensor, row: int, length: int) -> Tensor:
        """A copy of one row's first `length` states, (length, H)."""
        return states[row, :length].clone()

    def join(self, kept: Sequence[Tensor], rows: int, tokens: int) -> Tensor:
        """Kept rows as one batch (rows, tokens, H), zeros elsewhere."""
        joined = torch.zeros((rows, tokens, self.encoder.width), dtype=self.dtype, device=self.device)
        for row, states in zip(joined, kept, strict=False):
            row[: len(states)] = states
        return joined

    def _there(self, array: NDArray[np.int64] | Mask) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _masked(self, mask: Mask) -> Tensor:
        """The mask on the device; all layers of a pass ask for the same few."""
        found = self._masks.get(id(mask))
        if found is None:
            if len(self._masks) >= MASKS:
                self._masks.clear()
            found = self._masks[id(mask)] = mask, self._there(mask)  # the mask too: its id stays its own
        return found[1]


class TorchBuilder:
    """Makes the parts of backends over one trunk, on a device and in one dtype."""

    def __init__(self, trunk: Trunk, *, device: str, dtype: str) -> None:
        self.dtype = DTYPES[dtype]
        self.device = device
        self.fingerprint = trunk.fingerprint
        self.trunk = Trunk(self._moved(trunk.encoder), trunk.fingerprint)

    def part(self, branch: Branch) -> Part:
        """A branch in its cheapest form. Raises BundleError for a branch that was made for another trunk."""
        check_trunk(branch.spec, self.fingerprint)
        moved = self._moved(branch).eval().requires_grad_(False)
        modules: dict[Name, nn.Module] = {None: rewrite.cheapest(moved, self.trunk.encoder)[1]}
        modules |= {one.depth: rewrite.exit_alone(moved, one.depth) for one in branch.spec.exits}
        if branch.spec.scope is not None:
            depths = [one.depth for one in branch.spec.scope.depths]
            modules |= {ScopeAt(depth): rewrite.scope_alone(moved, depth) for depth in depths}
        if branch.spec.own_exits:
            modules[branch.spec.depth] = rewrite.cheapest(moved.end(), self.trunk.encoder)[1]
        return Part(moved, modules)

    def _moved(self, module: Module) -> Module:
        """A copy on the device, its weights in the dtype; buffers, such as rotary frequencies, keep their digits. On a
        CPU in float32 the module itself, which is that already.
        """
        if self.device == "cpu" and self.dtype is torch.float32:
            return module
        moved = copy.deepcopy(module).to(self.device)
        for weight in moved.parameters():
            weight.data = weight.data.to(self.dtype)
        return moved

    def backend(self, parts: Mapping[str, Part]) -> TorchBackend:
        """A backend of these parts over the trunk."""
        return TorchBackend(self.trunk, parts, device=self.device, dtype=self.dtype)
