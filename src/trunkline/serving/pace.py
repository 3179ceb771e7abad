"""How fast the worker gets things done, as its last batches tell.

Only batches of at least half the limits tell it: a small one takes nearly as long as a large one, so that what it did
in a second says little of how long much work takes. Of the last few the median counts: one that meets a new shape, or a
bundle that loads beside it, takes many times as long. Knows amounts and seconds; no requests and no clock.
"""

from __future__ import annotations

import statistics
from collections import deque

from trunkline.serving.limits import Limits

_LAST = 9
"""Batches that are remembered."""


class Pace:
    """The pace of one worker; nothing is known before its first large batch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last: deque[float] = deque(maxlen=_LAST)  # seconds that a token took in each
        self._each = 0.0  # in most

    def took(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of so many rows and tokens was done, so many seconds after the one before it or after its start."""
        if self._limits.ample(rows, tokens):
            self._last.append(max(seconds, 1e-6) / tokens)
            self._each = statistics.median(self._last)

    def seconds(self, tokens: int) -> float:
        """What so many tokens should take, at the speeds of late; 0 as long as nothing is known."""
        return tokens * self._each
