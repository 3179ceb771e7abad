"""Soft labels from outside: what a teacher that Trunkline never runs said about a task's train rows.

Each row of the file names train rows by `text` (and `text_pair`), or by `id` where it has no text, and has one of

    probabilities   {"alarm": 0.9, "music": 0.1}; tagging: one such object per word
    logits          the same with logits
    score           a number: regression in the task's own unit, relevance the probability of the positive label

Labels stand by name, so that no order can be mistaken. Rows that are not trained on may be there and are left out, as
are those with an `error`; of several about one text the mean counts. A folder of shards is read as one file.
Knows files, rows and label spaces; nothing of teachers that run here, nor of losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import Problem, ProjectError
from trunkline.project.config import ProjectFiles, TaskSettings
from trunkline.project.data import TaskData
from trunkline.project.explain import quoted, show
from trunkline.project.readers import Faults, Table, read_shards, read_table
from trunkline.project.rows import Rows, fold
from trunkline.project.tasks import Kind, probabilities

VALUES = ("probabilities", "logits", "score")
LEAST = 1e-6
"""Probabilities are taken as at least this and at most one less it: no teacher is that sure."""
LOOSE, PER_LABEL, LOOSEST = 0.02, 0.005, 0.1
"""How far probabilities that exclude each other may be from a sum of 1: at least, by label, and at most. Some were
rounded."""
APART = 0.5
"""Two rows about one text contradict each other where a probability differs by more than this."""
SHOWN = 5

Row = NDArray[np.float64]
Key = tuple[str, ...]


def soft_labels(files: ProjectFiles, task: str, data: TaskData) -> list[list[Row]]:
    """What each file that teaches a task says of its train rows; see `read_soft`. Raises ProjectError with all that is
    wrong with any of them.
    """
    settings = files.tasks[task]
    where = f"tasks/{task}.toml", "distill.teachers"
    found = [read_soft(files.root, file, where, settings, data) for file in settings.soft_files]
    if problems := [problem for _, wrong in found for problem in wrong]:
        raise ProjectError(problems)
    return [rows for rows, _ in found]


def read_soft(
    root: Path, source: str, where: tuple[str, str], settings: TaskSettings, data: TaskData
) -> tuple[list[Row], list[Problem]]:
    """Logits of the train rows in order, (C,) each, (words, C) for tagging, (1,) for regression; and all that is wrong
    with the file that `where`, a (file, key), names.
    """
    if (root / source).is_dir():
        table = read_shards(root, source, where)
    else:
        table = read_table(root, source, where, settings.data.separator)
    if isinstance(table, list):
        return [], table
    kind = settings.kind
    named = [name for name in VALUES if name in table.columns]
    fits = ("score",) if kind is Kind.REGRESSION else VALUES if kind is Kind.RELEVANCE else VALUES[:2]
    columns = _columns(settings, table, pairs=data.fit.pairs is not None)
    problems = []
    if len(named) != 1 or named[0] not in fits:
        problems.append(Problem(source, "", "what the teacher said", show(named), f"one column of {', '.join(fits)}"))
    if columns is None:
        found = f"columns {quoted(table.columns)}"
        problems.append(Problem(source, "", "no row says which text it is about", found, "a column text or id"))
    if problems or columns is None:
        return [], problems
    return _Soft(table, named[0], columns, kind, data).read()


@dataclass(frozen=True)
class Columns:
    """The columns that name a row: those of its texts, or that of its id."""

    names: tuple[str, ...]
    by_id: bool


def _columns(settings: TaskSettings, table: Table, *, pairs: bool) -> Columns | None:
    """Those of the texts where the file has them, else that of the id, as the task's own data call them or as usual."""

    def column(role: str) -> str | None:
        named = (settings.data.columns.name_of(role), role)
        return next((name for name in named if name in table.columns), None)

    texts = [column(role) for role in (("text", "text_pair") if pairs else ("text",))]
    if all(texts):
        return Columns(tuple(name for name in texts if name is not None), by_id=False)
    id = column("id")
    return None if id is None else Columns((id,), by_id=True)


class _Soft:
    """Reads the rows of one table and gathers their faults."""

    def __init__(self, table: Table, value: str, columns: Columns, kind: Kind, data: TaskData) -> None:
        self.table, self.value, self.columns, self.kind, self.data = table, value, columns, kind, data
        self.rows: Rows = data.fit.take(data.train)
        self.faults = Faults(table.file, table.unit)

    def read(self) -> tuple[list[Row], list[Problem]]:
        exact, loose = self._wanted()
        sizes: dict[Key, set[int]] = {}
        for key, target in zip(loose, self.rows.targets, strict=True):
            sizes.setdefault(key, set()).add(len(target) if self.kind is Kind.TAGGING else 0)
        said: dict[Key, list[Row]] = {}  # of an input as it stands
        said_folded: dict[Key, list[Row]] = {}
        strange = 0
        for line, row in zip(self.table.lines, self.table.rows, strict=True):
            if row.get("error"):
                continue  # a row of a shard that its teacher could not read
            named = self._key(row, line)
            if named is None:
                continue
            folded = self._folded(named)
            if folded not in sizes:
                strange += 1
            elif (found := self._row(row, line, sizes[folded])) is not None:
                if named in said and self._contradicts(said[named][0], found):
                    self.faults.add("another row says otherwise of this input", line, show(named[0]), "one answer")
                said.setdefault(named, []).append(found)
                said_folded.setdefault(folded, []).append(found)
        answers = [
            self._answer(said.get(key) or said_folded.get(folded) or [], number)
            for number, (key, folded) in enumerate(zip(exact, loose, strict=True))
        ]
        missing = list(dict.fromkeys(key[0] for key, answer in zip(exact, answers, strict=True) if answer is None))
        problems = self.faults.problems()
        if missing and not problems:
            about = f"; {strange:,} rows of the file are of no train row" if strange else ""
            which = f"{len(missing):,} of {len(set(exact)):,}, first {quoted(missing, SHOWN)}{about}"
            problems.append(Problem(self.table.file, "", "train rows without soft labels", which, "all train rows"))
        return ([] if problems else [answer for answer in answers if answer is not None]), problems

    def _wanted(self) -> tuple[list[Key], list[Key]]:
        """What names each train row, as it stands and without regard to case and white space."""
        exact: list[Key]
        if self.columns.by_id:
            exact = [(id,) for id in self.rows.ids]
        elif self.rows.pairs is None:
            exact = [(text,) for text in self.rows.texts]
        else:
            exact = list(zip(self.rows.texts, self.rows.pairs, strict=True))
        return exact, [self._folded(key) for key in exact]

    def _folded(self, key: Key) -> Key:
        return key if self.columns.by_id else tuple(fold(part) for part in key)

    def _key(self, row: Mapping[str, Any], line: int) -> Key | None:
        parts = []
        for column in self.columns.names:
            part = row.get(column)
            if isinstance(part, float) and part.is_integer():
                part = int(part)  # tables with empty cells store whole numbers as 1.0
            if not isinstance(part, str | int) or isinstance(part, bool) or not str(part).strip():
                self.faults.add(f"no {column}", line, show(part), f"the {column} of a train row")
                return None
            parts.append(str(part).strip() if self.columns.by_id else str(part))
        return tuple(parts)

    def _contradicts(self, one: Row, other: Row) -> bool:
        if one.shape != other.shape:
            return False
        if self.kind is Kind.REGRESSION:
            return abs(float(one[0] - other[0])) > float(np.std([float(target) for target in self.rows.targets]))
        return bool((np.abs(probabilities(self.kind, one) - probabilities(self.kind, other)) > APART).any())

    def _answer(self, said: Sequence[Row], number: int) -> Row | None:
        """The mean of what was said of a train row; for tagging, of what has as many words."""
        fit = [one for one in said if self.kind is not Kind.TAGGING or len(one) == len(self.rows.targets[number])]
        return np.mean(fit, axis=0) if fit else None

    def _row(self, row: Mapping[str, Any], line: int, sizes: set[int]) -> Row | None:
        value = row.get(self.value)
        if self.value == "score":
            return self._score(value, line)
        if self.kind is not Kind.TAGGING:
            return self._labels(value, line)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in sizes:
            found = f"{len(value)} objects" if isinstance(value, list) else show(value)
            words = " or ".join(map(str, sorted(sizes)))
            self.faults.add("not one object per word", line, found, f"{words} objects, one for each word")
            return None
        rows = [self._labels(word, line) for word in value]
        if any(one is None for one in rows):
            return None
        return np.stack([one for one in rows if one is not None]) if rows else np.empty((0, len(self.data.labels)))

    def _score(self, value: Any, line: int) -> Row | None:
        number = self._number(value, line, "score")
        if number is None or self.kind is Kind.REGRESSION:
            return None if number is None else np.asarray([number])
        if not 0 <= number <= 1:
            self.faults.add("score is no probability", line, show(value), "a number from 0 to 1")
            return None
        positive = self.data.labels.index(self.data.positive) if self.data.positive is not None else 1
        shares = np.empty(2)
        shares[positive], shares[1 - positive] = number, 1 - number
        return self._logits(shares)

    def _labels(self, value: Any, line: int) -> Row | None:
        labels = self.data.labels
        if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            value = dict(value)  # as parquet gives a map
        if not isinstance(value, Mapping):
            self.faults.add(f"{self.value} without names", line, show(value), f"an object of {quoted(labels)}")
            return None
        given = {str(name): number for name, number in value.items() if number is not None}
        extra, missing = [name for name in given if name not in labels], [name for name in labels if name not in given]
        if extra:
            self.faults.add("not a label of this task", line, quoted(extra, SHOWN), quoted(labels))
        if missing:
            self.faults.add("labels are missing", line, quoted(missing, SHOWN), quoted(labels))
        if extra or missing:
            return None
        numbers = [self._number(given[name], line, self.value) for name in labels]
        if any(number is None for number in numbers):
            return None
        values = np.asarray(numbers, dtype=np.float64)
        if self.value == "logits":
            return values
        if ((values < 0) | (values > 1)).any():
            self.faults.add("not probabilities", line, show(value), "numbers from 0 to 1")
            return None
        if self.kind is Kind.MULTILABEL:
            return self._logits(values)
        total = float(values.sum())
        if abs(total - 1) > min(max(LOOSE, PER_LABEL * len(labels)), LOOSEST):
            self.faults.add("probabilities do not add up to 1", line, f"{total:.4g}", "1, or logits")
            return None
        return self._logits(values / total)

    def _logits(self, shares: Row) -> Row:
        shares = shares.clip(LEAST, 1 - LEAST)
        return np.log(shares) - (np.log1p(-shares) if self.kind is Kind.MULTILABEL else 0.0)

    def _number(self, value: Any, line: int, name: str) -> float | None:
        if isinstance(value, Decimal) or (self.table.plain and isinstance(value, str)):
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):
                if math.isfinite(value):
                    return float(value)
        self.faults.add(f"{name}: not a finite number", line, show(value), "a number")
        return None
