"""Which of its teacher's layers a student starts from, where it has fewer. Knows numbers of layers only."""

from __future__ import annotations

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
