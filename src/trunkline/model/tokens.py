"""Tokenised texts and padded batches of them. Knows nothing of encoders or tokenizers.

B: rows of a batch, T: tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRow:
    """One tokenised text or pair, special tokens included, unpadded. All lists have one entry per token.

    `offsets` are (start, end) characters in the token's own text, (0, 0) for special tokens; `sequence` says which
    text a token is from: 0 the text, 1 its pair, None a special token. Both are empty where nobody asked for them.
    """

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]] = field(default_factory=list)
    sequence: list[int | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TokenBatch:
    """Rows padded on the right: `ids` and `types` (B, T) int64, `mask` (B, T) bool, True at tokens."""

    ids: Tensor
    types: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.ids.to(device), self.types.to(device), self.mask.to(device))


def collate(rows: Sequence[TokenRow], pad_id: int, *, multiple: int = 1) -> TokenBatch:
    """Pad `rows` on the right to the longest of them, rounded up to a multiple of `multiple` tokens."""
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = [row.ids + [pad_id] * (width - len(row)) for row in rows]
    types = [row.types + [0] * (width - len(row)) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    return TokenBatch(torch.tensor(ids), torch.tensor(types), torch.arange(width)[None, :] < lengths[:, None])
