"""What a fast engine needs of whoever does its arithmetic: layers, branches and their parts, over batches of states.

Notation: R rows of a batch, T tokens, H width, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.base import Logits
from trunkline.model.branch import BranchSpec

States = Any  # a batch of states (R, T, H) in the backend's own form
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ScopeAt:
    """A branch's scope at a depth, as a part of the branch; its (R, 1) stand in the place of logits."""

    depth: int


Part = int | ScopeAt | None
"""None for the branch from its fork on, the depth of one of its exits for that exit, its full depth for its last own
layer and head, from the states of the layer before, and `ScopeAt`."""


@dataclass(frozen=True)
class Call:
    """One branch, or a part of one, on one batch: states and masks of the one or two texts that it reads."""

    task: str
    states: tuple[States, ...]
    masks: tuple[Mask, ...]
    part: Part = None


class Backend(Protocol):
    """Computes layers and branches. States stay as they are, whatever runs next."""

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """The branches that it can run, by task."""
        ...

    def embed(self, ids: NDArray[np.int64], types: NDArray[np.int64], mask: Mask) -> States:
        """The states before the first layer, of (R, T) token ids and types."""
        ...

    def layer(self, index: int, states: States, mask: Mask) -> States:
        """The states after trunk layer `index`."""
        ...

    def own_layer(self, task: str, index: int, states: States, mask: Mask) -> States:
        """The states after own layer `index` of a branch that has exits between its own layers; not after its last."""
        ...

    def branches(self, calls: Sequence[Call]) -> list[Logits]:
        """Logits (R, C) or (R, T, C) of each call, float32."""
        ...

    def gather(self, taken: Sequence[tuple[States, NDArray[np.int64]]], rows: int, tokens: int) -> States:
        """A copy, as one batch (rows, tokens, H), of these rows of each of these states, one after the other and as far
        as there are tokens, with zeros elsewhere.
        """
        ...

    def keep(self, states: States, row: int, length: int) -> States:
        """A copy of one row's first `length` states, (length, H), to be joined later."""
        ...

    def join(self, kept: Sequence[States], rows: int, tokens: int) -> States:
        """Kept rows as one batch (rows, tokens, H), zeros elsewhere."""
        ...
