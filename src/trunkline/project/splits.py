"""Cuts of rows: seeded, stratified, and never through rows that belong together.

Knows keys, groups and labels of rows as plain values. Does not know kinds of task, files or texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Ties:
    """What a cut must respect, for each of n rows.

    `together`: one or more columns of n keys; rows that share a key of any column stay on one side.
    `labels`: the labels of each row; the last rows of a label are never taken out.
    `stratified`: whether a cut takes the same share of every label.
    """

    together: Sequence[Sequence[Hashable]]
    labels: Sequence[Sequence[str]]
    stratified: bool

    @cached_property
    def unit(self) -> Indices:
        """Which unit each row belongs to: the connected components over all columns, numbered by first row."""
        parent = list(range(len(self.labels)))

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = parent[row]
            return row

        for column in self.together:
            first: dict[Hashable, int] = {}
            for row, key in enumerate(column):
                one, other = root(first.setdefault(key, row)), root(row)
                parent[max(one, other)] = min(one, other)
        return np.asarray([root(row) for row in range(len(parent))], dtype=np.int64)


def take_out(
    rows: Indices, ties: Ties, count: int, rng: np.random.Generator, *, at_least: bool = False
) -> tuple[Indices, Indices]:
    """Split `rows` into (kept, taken), both in order, with about `count` rows taken.

    Never more than `count` unless the smallest unit is larger, or `at_least` asks for no fewer. Fewer where taking more
    would leave a label without rows.
    """
    units: dict[int, list[int]] = {}
    for row in rows.tolist():
        units.setdefault(int(ties.unit[row]), []).append(row)
    labels = {unit: {label for row in members for label in ties.labels[row]} for unit, members in units.items()}
    left = Counter(label for names in labels.values() for label in names)

    taken: list[int] = []

    def take(unit: int) -> None:
        taken.extend(units[unit])
        left.subtract(labels[unit])

    order = _order(units, labels, ties, rng)
    spare = [unit for unit in order if len(units[unit]) <= count or at_least]
    for unit in spare:
        if len(taken) >= count:
            break
        fits = at_least or len(taken) + len(units[unit]) <= count
        if fits and len(units) > 1 and all(left[label] > 1 for label in labels[unit]):
            take(unit)
    if not taken and count > 0:
        possible = [unit for unit in order if all(left[label] > 1 for label in labels[unit])]
        if possible and len(units) > 1:
            take(min(possible, key=lambda unit: len(units[unit])))
    out = set(taken)
    kept = [row for row in rows.tolist() if row not in out]
    return np.asarray(kept, dtype=np.int64), np.asarray(sorted(taken), dtype=np.int64)


def _order(units: dict[int, list[int]], labels: dict[int, set[str]], ties: Ties, rng: np.random.Generator) -> list[int]:
    """The order in which units are taken: shuffled, and with equal shares of every stratum in any beginning of it.

    Each stratum is laid out evenly over [0, 1) from a random offset: small ones are neither always nor never cut.
    """
    strata: dict[Hashable, list[int]] = {}
    for unit in units:
        strata.setdefault(tuple(sorted(labels[unit])) if ties.stratified else None, []).append(unit)
    placed: list[tuple[float, int]] = []
    for members in strata.values():
        places = (np.arange(len(members)) + rng.random()) / len(members)
        placed += zip(places.tolist(), rng.permutation(members).tolist(), strict=True)
    return [unit for _, unit in sorted(placed)]


def overlapping(rows: Iterable[int], keys: Sequence[str], others: Iterable[str]) -> tuple[Indices, int]:
    """The rows whose key is not among `others`, and how many were dropped."""
    taken = set(others)
    every = list(rows)
    kept = [row for row in every if keys[row] not in taken]
    return np.asarray(kept, dtype=np.int64), len(every) - len(kept)
