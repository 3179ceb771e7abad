"""The few shapes of batches that a fast engine runs, and how rows are cut into them.

A kernel is built for every new shape, so that free shapes cost more than padding does. Rows are sorted by length and
cut so that the least is computed, padding included. Knows lengths only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of a batch."""
TOKENS = (
    *(*range(4, 32, 2), *range(32, 64, 4), *range(64, 128, 8)),
    *(*range(128, 256, 16), *range(256, 512, 32), *range(512, 8193, 128)),
)
"""Tokens of its rows."""
_OVERHEAD = 60
"""What one batch more costs beside its tokens, in tokens: some 2 ms in 30 for 1,000."""


@dataclass(frozen=True)
class Cut:
    """A batch: `members` are positions of rows, its shape is (rows, tokens) with filler rows at the end."""

    members: NDArray[np.int64]
    rows: int
    tokens: int


def cost(shapes: Iterable[Sequence[int]]) -> int:
    """What batches of these shapes (rows, tokens) come to, in tokens computed."""
    return sum(rows * tokens + _OVERHEAD for rows, tokens in shapes)


def rows_for(count: int) -> int:
    """The least allowed number of rows for `count`, at most the largest."""
    return ROWS[min(bisect_left(ROWS, count), len(ROWS) - 1)]


def tokens_for(length: int, longest: int = TOKENS[-1]) -> int:
    """The least allowed number of tokens for a row of `length`, at most `longest`."""
    return min(TOKENS[bisect_left(TOKENS, length)], longest) if length < longest else length


def cut(lengths: Sequence[int], *, max_tokens: int, max_rows: int = ROWS[-1], longest: int = TOKENS[-1]) -> list[Cut]:
    """All rows once, in batches of at most `max_rows` rows and `max_tokens` tokens (or one row), the longest first.

    `longest` is the most tokens that a row can have. The cut of least computed tokens among all of the sorted rows.
    """
    count = len(lengths)
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    best = [0.0] * (count + 1)  # cost of the rows from here on
    step = [1] * count
    for start in range(count - 1, -1, -1):
        tokens = tokens_for(lengths[order[start]], longest)
        room = max(1, min(max_rows, max_tokens // tokens))
        best[start] = float("inf")
        for rows in ROWS:
            if rows > room:
                break
            end = min(start + rows, count)
            cost = rows * tokens + _OVERHEAD + best[end]
            if cost < best[start]:
                best[start], step[start] = cost, rows
            if end == count:
                break
    cuts, start = [], 0
    while start < count:
        rows = step[start]
        cuts.append(Cut(order[start : start + rows], rows, tokens_for(lengths[order[start]], longest)))
        start += rows
    return cuts
