"""Soft labels from outside: what a teacher that Trunkline never runs said about a task's train rows.

Each row of the file names a train row, by `id` or by `text` (and `text_pair`), and has one of

    probabilities   {"alarm": 0.9, "music": 0.1}; tagging: one such object per word
    logits          the same with logits
    score           a number: regression in the task's own unit, relevance the probability of the positive label

Labels stand by name, so that no order can be mistaken. Rows that are not trained on may be there and are left out.
Knows files, rows and label spaces; nothing of teachers that run here, nor of losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import Problem, ProjectError
from trunkline.project.config import ProjectFiles
from trunkline.project.data import TaskData
from trunkline.project.explain import quoted, show
from trunkline.project.readers import Faults, Table, read_table
from trunkline.project.rows import Rows, fold
from trunkline.project.tasks import Kind

VALUES = ("probabilities", "logits", "score")
LEAST = 1e-6
"""Probabilities are taken as at least this and at most one less it: no teacher is that sure."""
LOOSE = 0.02
"""How far probabilities that exclude each other may be from a sum of 1, as where they were rounded."""
SHOWN = 5

Row = NDArray[np.float64]


def check_soft(files: ProjectFiles, data: Mapping[str, TaskData]) -> None:
    """Raises ProjectError with all that is wrong with the files that teach these tasks."""
    problems: list[Problem] = []
    for task, found in data.items():
        try:
            soft_labels(files, task, found)
        except ProjectError as error:
            problems += error.problems
    if problems:
        raise ProjectError(problems)


def soft_labels(files: ProjectFiles, task: str, data: TaskData) -> list[list[Row]]:
    """What each file that teaches a task says of its train rows; see `read_soft`. Raises ProjectError with all that is
    wrong with any of them.
    """
    settings = files.tasks[task]
    where = f"tasks/{task}.toml", "distill.teachers"
    found = [read_soft(files.root, file, where, settings.kind, data) for file in settings.soft_files]
    if problems := [problem for _, wrong in found for problem in wrong]:
        raise ProjectError(problems)
    return [rows for rows, _ in found]


def read_soft(
    root: Path, source: str, where: tuple[str, str], kind: Kind, data: TaskData
) -> tuple[list[Row], list[Problem]]:
    """Logits of the train rows in order, (C,) each, (words, C) for tagging, (1,) for regression; and all that is wrong
    with the file that `where`, a (file, key), names.
    """
    table = read_table(root, source, where, ",")
    if isinstance(table, list):
        return [], table
    named = [name for name in VALUES if name in table.columns]
    fits = ("score",) if kind is Kind.REGRESSION else VALUES if kind is Kind.RELEVANCE else VALUES[:2]
    keyed = "id" in table.columns or "text" in table.columns
    problems = []
    if len(named) != 1 or named[0] not in fits:
        problems.append(Problem(source, "", "what the teacher said", show(named), f"one column of {', '.join(fits)}"))
    if not keyed:
        found = f"columns {quoted(table.columns)}"
        problems.append(Problem(source, "", "no row says which text it is about", found, "a column id or text"))
    if problems:
        return [], problems
    return _Soft(table, named[0], kind, data).read()


class _Soft:
    """Reads the rows of one table and gathers their faults."""

    def __init__(self, table: Table, value: str, kind: Kind, data: TaskData) -> None:
        self.table, self.value, self.kind, self.data = table, value, kind, data
        self.train: Rows = data.fit.take(data.train)
        self.by_id = "id" in table.columns
        self.faults = Faults(table.file, table.unit)

    def read(self) -> tuple[list[Row], list[Problem]]:
        wanted = self.train.ids if self.by_id else self.train.keys()
        words = dict(zip(wanted, self.train.targets, strict=True)) if self.kind is Kind.TAGGING else {}
        said: dict[str, Row] = {}
        strange = 0
        known = set(wanted)
        for line, row in zip(self.table.lines, self.table.rows, strict=True):
            key = self._key(row, line)
            if key is None:
                continue
            if key not in known:
                strange += 1
                continue
            found = self._row(row, line, len(words[key]) if words else None)
            if found is None:
                continue
            if key in said and not np.allclose(said[key], found, atol=1e-6):
                self.faults.add("another row says something else of this input", line, show(key), "one row an input")
            said[key] = found
        problems = self.faults.problems()
        missing = [key for key in dict.fromkeys(wanted) if key not in said]
        if missing and not problems:
            about = f"; {strange:,} rows of the file are of no train row" if strange else ""
            which = f"{len(missing):,} of {len(known):,}, first {quoted(missing, SHOWN)}{about}"
            problems.append(Problem(self.table.file, "", "train rows without soft labels", which, "all train rows"))
        return ([] if problems else [said[key] for key in wanted]), problems

    def _key(self, row: Mapping[str, Any], line: int) -> str | None:
        columns = ["id"] if self.by_id else ["text", *(["text_pair"] if self.train.pairs is not None else [])]
        parts = [row.get(column) for column in columns]
        for column, part in zip(columns, parts, strict=True):
            if not isinstance(part, str | int) or isinstance(part, bool) or not str(part).strip():
                self.faults.add(f"no {column}", line, show(part), f"the {column} of a train row")
                return None
        return str(parts[0]) if self.by_id else "\n".join(fold(str(part)) for part in parts)

    def _row(self, row: Mapping[str, Any], line: int, words: int | None) -> Row | None:
        value = row.get(self.value)
        if self.value == "score":
            return self._score(value, line)
        if words is None:
            return self._labels(value, line)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != words:
            found = f"{len(value)} objects" if isinstance(value, list) else show(value)
            self.faults.add("not one object per word", line, found, f"{words} objects" if words else "an empty list")
            return None
        rows = [self._labels(word, line) for word in value]
        return None if any(one is None for one in rows) else np.stack([one for one in rows if one is not None])

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
        if self.kind is not Kind.MULTILABEL and abs(float(values.sum()) - 1) > LOOSE:
            self.faults.add("probabilities do not add up to 1", line, f"{values.sum():.4g}", "1")
            return None
        return self._logits(values)

    def _logits(self, shares: Row) -> Row:
        shares = shares.clip(LEAST, 1 - LEAST)
        return np.log(shares) - (np.log1p(-shares) if self.kind is Kind.MULTILABEL else 0.0)

    def _number(self, value: Any, line: int, name: str) -> float | None:
        if self.table.plain and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.faults.add(f"{name}: not a finite number", line, show(value), "a number")
            return None
        return float(value)
