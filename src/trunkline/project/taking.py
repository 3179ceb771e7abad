"""Which of its teacher's layers a student starts from, where it has fewer, and which its own are compared with. Knows
numbers of layers only.
"""

from __future__ import annotations

import math
from enum import StrEnum


class Take(StrEnum):
    """Which layers of several, when fewer are asked for."""

    BOTTOM = "bottom"
    """The lowest (Wei et al. 2022)."""
    SPREAD = "spread"
    """The lowest, the highest, and those that lie evenly between, as DistilBERT was started (Sanh et al. 2019)."""
    TOP = "top"
    """The highest."""


def taken(take: Take, count: int, of: int) -> list[int]:
    """`count` of `of` layers, by number from 0, in rising order; a single one of those that are spread is the lowest.

    Raises ValueError for more layers than there are.
    """
    if not 0 <= count <= of:
        raise ValueError(f"{count} layers of {of}")
    match take:
        case Take.BOTTOM:
            return list(range(count))
        case Take.TOP:
            return list(range(of - count, of))
    return [round(place * (of - 1) / max(1, count - 1)) for place in range(count)]


class LayerMap(StrEnum):
    """Which of a teacher's layers a student's are compared with; the last with the last in any case."""

    UNIFORM = "uniform"
    """Evenly, each with the one that closes its share of the teacher (TinyBERT, Jiao et al. 2020)."""
    TOP = "top"
    """With the highest (the PKD-last of Sun et al. 2019)."""


def compared(layer_map: LayerMap, count: int, of: int) -> list[int]:
    """For each of a student's `count` layers, the number of the one that it is compared with, of its teacher's `of`."""
    if layer_map is LayerMap.TOP:
        return taken(Take.TOP, count, of)
    return [math.ceil(place * of / count) - 1 for place in range(1, count + 1)]
