"""What each column of a table could be learned as: a kind of task, or the reason why it is none.

Looks at cells only. Writes nothing, and knows nothing of a project's files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.project.readers import Table
from trunkline.project.tasks import Kind

MANY = 10
"""Whole numbers of more than so many values are a quantity, of fewer a set of labels."""
LONG = 60
"""Labels that are longer than this on average are texts."""
SEPARATOR = "|"


@dataclass(frozen=True)
class Guess:
    """One column: the kind of task it makes, or None with the reason in `about`; else `about` says what is in it."""

    column: str
    kind: Kind | None
    about: str


def guess_columns(table: Table, texts: Collection[str]) -> list[Guess]:
    """A guess for every column but those that hold the texts, in the order of the table."""
    return [_guess(table, column) for column in table.columns if column not in texts]


def task_name(column: str, taken: Collection[str]) -> str:
    """A name of a task for a column: lower-case letters, digits, _ and -, and not one of `taken`."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", column.casefold()).strip("_-") or "task"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}_{number}", number + 1
    return name


def _guess(table: Table, column: str) -> Guess:
    cells = [cell for row in table.rows if not _is_empty(cell := row.get(column))]
    kind, about = _kind(cells, table.plain)
    missing = len(table.rows) - len(cells)
    if kind is not None and missing:
        about += f", {missing:,} rows unlabelled"
    return Guess(column, kind, about)


def _kind(cells: Sequence[Any], plain: bool) -> tuple[Kind | None, str]:
    if not cells:
        return None, "every cell is empty"
    if any(isinstance(cell, list) for cell in cells):
        return _of_lists(cells)
    if not all(isinstance(cell, str | int | float) for cell in cells):
        return None, "neither text, numbers nor lists of text"
    if plain and any(SEPARATOR in cell for cell in cells):
        return _of_lists([[part.strip() for part in cell.split(SEPARATOR) if part.strip()] for cell in cells])
    numbers = _numbers(cells, plain)
    if numbers is not None:
        return _of_numbers(numbers)
    return _of_labels([cell.strip() if isinstance(cell, str) else str(cell) for cell in cells])


def _of_lists(cells: Iterable[Any]) -> tuple[Kind | None, str]:
    lists = list(cells)
    if not all(isinstance(cell, list) and all(isinstance(part, str) for part in cell) for cell in lists):
        return None, "not lists of labels"
    labels = {part for cell in lists for part in cell}
    if not labels:
        return None, "only empty lists"
    if len(labels) * 2 > sum(map(len, lists)):
        return None, "hardly a label occurs twice"
    return Kind.MULTILABEL, _counted(len(labels), "label")


def _of_numbers(numbers: Sequence[float]) -> tuple[Kind | None, str]:
    different = set(numbers)
    whole = all(number.is_integer() for number in different)
    if len(different) == 1:
        return None, f"{numbers[0]:g} in every row"
    if whole and len(different) == len(numbers) > 2:
        return None, "every row has another whole number, as ids have"
    if not whole or len(different) > MANY:
        return Kind.REGRESSION, f"{min(different):g} to {max(different):g}"
    return Kind.CLASSIFICATION, _counted(len(different), "label")


def _of_labels(labels: Sequence[str]) -> tuple[Kind | None, str]:
    different = set(labels)
    if len(different) == 1:
        return None, "the same label in every row"
    if len(different) == len(labels) > 2:
        return None, "every row has another value, as ids and texts have"
    if len(different) * 2 > len(labels):
        return None, "hardly a value occurs twice"
    if sum(map(len, different)) / len(different) > LONG:
        return None, "long texts"
    return Kind.CLASSIFICATION, _counted(len(different), "label")


def _numbers(cells: Sequence[Any], plain: bool) -> list[float] | None:
    """The cells as finite numbers; None where one is none. Digits in quotes are text, except where all cells are."""
    found = []
    for cell in cells:
        if isinstance(cell, bool) or (isinstance(cell, str) and not plain):
            return None
        try:
            number = float(cell)
        except (ValueError, OverflowError):
            return None
        if not math.isfinite(number):
            return None
        found.append(number)
    return found


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())
