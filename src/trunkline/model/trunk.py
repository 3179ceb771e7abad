"""The trunk: an encoder that is frozen and stays so.

Gives states at forks. Knows nothing of branches, nor of who asks.

B: rows, T: tokens, H: width of a state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from trunkline.model.encoders import Encoder
from trunkline.model.tokens import TokenBatch


class Trunk(nn.Module):
    """A frozen encoder, identified by `fingerprint`: no gradient, no dropout, and `.train()` does not change that."""

    def __init__(self, encoder: Encoder, fingerprint: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.fingerprint = fingerprint
        self._parts = tuple(encoder.modules())
        self.requires_grad_(False)
        self.eval()

    @property
    def depth(self) -> int:
        """Number of layers, which is the deepest fork."""
        return self.encoder.depth

    @property
    def width(self) -> int:
        """Size of a state (H)."""
        return self.encoder.width

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` says: a model that holds a trunk may be trained as a whole."""
        return super().train(False)

    def states(self, batch: TokenBatch, forks: Iterable[int]) -> dict[int, Tensor]:
        """The states (B, T, H) at each of `forks`, where fork k is after k layers.

        Each layer runs at most once, and none deeper than the deepest fork. Raises ValueError for a fork outside
        0 to depth.
        """
        wanted = set(forks)
        if not wanted:
            return {}
        if not wanted <= set(range(self.depth + 1)):
            raise ValueError(f"forks {sorted(wanted)} of a trunk with {self.depth} layers")
        if any(part.training for part in self._parts):  # switched one by one, past `train`
            self.eval()
        # no_grad and not inference_mode: branches are trained on these states.
        with torch.no_grad():
            states = self.encoder.embed(batch.ids, batch.types, batch.mask)
            context = self.encoder.context(batch.mask, states.dtype)
            found = {0: states} if 0 in wanted else {}
            for index in range(max(wanted)):
                states = self.encoder.run(self.encoder.layers[index], index, states, context)
                if index + 1 in wanted:
                    found[index + 1] = states
        return found
