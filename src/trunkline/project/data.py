"""The data of a task: read, checked, and split so that no row is both learned from and judged on.

Knows the settings of a task and the order of the steps. File formats are in `readers`, rows in `rows`, cuts in
`splits`. Knows no tokens and no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from trunkline.errors import Problem, ProjectError
from trunkline.project.config import REPORTED, SPLITS, ProjectFiles, TaskSettings
from trunkline.project.files import TASKS_FOLDER
from trunkline.project.hub import HubError
from trunkline.project.labels import LabelSpace, check_labels, find_labels, label_lists
from trunkline.project.parsing import Parsed, parse_rows, parse_unlabelled
from trunkline.project.readers import Table, read_table
from trunkline.project.rows import Rows, fold
from trunkline.project.sources import HUB, data_fields, hub_sets, pinned, reads_pairs, sources
from trunkline.project.splits import Indices, Ties, overlapping, take_out
from trunkline.project.tasks import Kind

__all__ = [
    "Rows",
    "TaskData",
    "data_fields",
    "hub_sets",
    "pinned",
    "read_all",
    "read_task",
    "reads_pairs",
    "sources",
]

LEAST_TRAIN = 10
LEAST_OTHER = 2


@dataclass(frozen=True)
class TaskData:
    """A task's rows, ready to train on.

    `train` and `valid` are row numbers of `fit`; `reported` holds "dev" and/or "test", of which `main_split` counts.
    `labels` is empty for regression; for relevance it is (negative, positive).
    """

    fit: Rows
    train: Indices
    valid: Indices
    reported: dict[str, Rows]
    labels: tuple[str, ...]
    positive: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def main_split(self) -> str:
        """The split whose figures are reported: "test", or "dev" without one."""
        return "test" if "test" in self.reported else "dev"

    @property
    def judged(self) -> list[Rows]:
        """The rows that candidates are compared and reported on, split by split."""
        return [self.fit.take(self.valid), *self.reported.values()]

    def save(self, folder: Path) -> None:
        """Write task.json, fit.jsonl and one jsonl per reported split; the same data gives the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.fit.save(folder / "fit.jsonl")
        for split, rows in self.reported.items():
            rows.save(folder / f"{split}.jsonl")
        about = {
            "labels": self.labels,
            "positive": self.positive,
            "notes": self.notes,
            "reported": list(self.reported),
            "train": self.train.tolist(),
            "valid": self.valid.tolist(),
        }
        text = json.dumps(about, ensure_ascii=False, sort_keys=True) + "\n"
        (folder / "task.json").write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: Path) -> TaskData:
        """Read what `save` wrote."""
        about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        return cls(
            fit=Rows.load(folder / "fit.jsonl"),
            train=np.asarray(about["train"], dtype=np.int64),
            valid=np.asarray(about["valid"], dtype=np.int64),
            reported={split: Rows.load(folder / f"{split}.jsonl") for split in about["reported"]},
            labels=tuple(about["labels"]),
            positive=about["positive"],
            notes=about["notes"],
        )


def read_all(files: ProjectFiles) -> tuple[dict[str, TaskData], list[Problem]]:
    """The data of every task that can be read, and all problems of all tasks, each once with the tasks that it is of
    where it lies in a file of data.
    """
    found: dict[str, TaskData] = {}
    tasks: dict[Problem, list[str]] = {}
    for name, settings in files.tasks.items():
        try:
            found[name] = read_task(files.root, name, settings)
            read_unlabelled(files.root, name, settings, found[name])
        except ProjectError as error:
            for problem in error.problems:
                tasks.setdefault(problem, []).append(name)
    of_tasks = f"{TASKS_FOLDER}/"
    return found, [
        problem if problem.file.startswith(of_tasks) else replace(problem, tasks=tuple(names))
        for problem, names in tasks.items()
    ]


def read_task(root: Path, name: str, settings: TaskSettings) -> TaskData:
    """Read, check and split the data of one task.

    Raises ProjectError with all problems of all its files, one for each kind of problem in a file; MissingExtra for a
    set of the hub without `datasets`.
    """
    return _Reading(Path(root), name, settings).read()


def read_unlabelled(root: Path, name: str, settings: TaskSettings, data: TaskData) -> Rows | None:
    """The rows of `data.unlabelled`, equal ones once, but for those that the task trains on or is judged on; None where
    it names no file.

    Raises ProjectError with all problems of all files.
    """
    files, pairs = settings.data.unlabelled, data.fit.pairs is not None
    found: list[Rows] = []
    problems: list[Problem] = []
    where = f"tasks/{name}.toml", "data.unlabelled"
    for file in files:
        if file.startswith(HUB):
            problems.append(Problem(*where, "not a file", file, "a path"))
            continue
        table = read_table(root, file, where, settings.data.separator)
        rows = table if isinstance(table, list) else parse_unlabelled(table, settings, pairs)
        if isinstance(rows, list):
            problems += rows
        else:
            found.append(rows)
    if problems:
        raise ProjectError(problems)
    if not files:
        return None
    joined = reduce(add, found)
    known = {key for rows in (data.fit, *data.reported.values()) for key in rows.keys()}  # noqa: SIM118 - a method
    picks = {key: row for row, key in enumerate(joined.keys()) if key not in known}
    if not picks:
        none_new = f"{_rows(len(joined))}, all of which the task has already"
        raise ProjectError([Problem(*where, "nothing to learn from", none_new, "at least one row that is new")])
    return joined.take(list(picks.values()))


class _Reading:
    """One task's data on its way from files to `TaskData`; problems are gathered until a step needs what is missing."""

    def __init__(self, root: Path, name: str, settings: TaskSettings) -> None:
        self.root, self.settings, self.kind, self.data = root, settings, settings.kind, settings.data
        self.task_file = f"tasks/{name}.toml"
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.parsed: dict[str, Parsed] = {}
        self.space = LabelSpace()

    def read(self) -> TaskData:
        try:
            pairs = reads_pairs(self.root, self.settings)
        except HubError as error:
            raise ProjectError([error.problem((self.task_file, "data.train"), self.data.train)]) from error
        for split in SPLITS:
            self._parse(split, pairs)
        if "train" in self.parsed:
            self._find_labels(self.parsed["train"])
        self._stop_on_problems()
        data = self._split()
        self._stop_on_problems()
        return data

    def _stop_on_problems(self) -> None:
        if self.problems:
            raise ProjectError(self.problems)

    def _find_labels(self, train: Parsed) -> None:
        self.space = find_labels(self.task_file, self.settings, train)
        self.problems += self.space.problems
        self.notes += self.space.notes
        if not any(problem.file == train.file for problem in self.space.problems):  # else all others look unseen
            for split, parsed in self.parsed.items():
                self.problems += check_labels(self.settings, self.space, split, parsed, train.file)

    def _parse(self, split: str, pairs: bool) -> None:
        source: str | None = getattr(self.data, split)
        if source is None:
            return
        table = read_table(self.root, source, (self.task_file, f"data.{split}"), self.data.separator)
        parsed = table if isinstance(table, list) else parse_rows(table, self.settings, pairs)
        if isinstance(table, list) or isinstance(parsed, list):
            self.problems += parsed if isinstance(parsed, list) else []
            return
        if split == "train" and not pairs and self._pairs_later(table):
            return
        self.parsed[split] = parsed
        if parsed.unlabelled:
            self.notes.append(f"{source}: {_rows(parsed.unlabelled)} without a label left out")
        if parsed.realigned:
            self.notes.append(
                f"{source}: {_rows(parsed.realigned)} without their tokens in the text; the tokens are read instead"
            )

    def _pairs_later(self, train: Table) -> bool:
        """Whether some rows have a pair and the first has none: it decides, so that planning need not read them all."""
        column = self.data.columns.name_of("text_pair")
        if self.kind is Kind.TAGGING or column not in train.columns:
            return False
        found, allowed = f"none, though later rows have a {column}", "all rows with one, or none"
        where = f"{train.unit} {train.lines[0]}"
        self.problems.append(Problem(train.file, where, f"missing {column}", found, allowed))
        return True

    def _split(self) -> TaskData:
        """Drop rows that would be judged on, draw, and cut what is not given."""
        rows = self.parsed["train"].rows
        fit = rows + self.parsed["valid"].rows if "valid" in self.parsed else rows
        keys = fit.keys()
        reported = {split: self.parsed[split].rows for split in REPORTED if split in self.parsed}
        judged = {split: set(table.keys()) for split, table in reported.items()}
        train = np.arange(len(rows), dtype=np.int64)
        valid = np.arange(len(rows), len(fit), dtype=np.int64)
        for split, taken in judged.items():
            train = self._drop("train", train, keys, taken, split)
            valid = self._drop("valid", valid, keys, taken, split)
        train = self._drop("train", train, keys, {keys[row] for row in valid}, "valid")

        # What a cut may not separate: the same input, and the same query or group.
        together = [keys] if fit.groups is None else [keys, [fold(group) for group in fit.groups]]
        stratified = self.kind in {Kind.CLASSIFICATION, Kind.RELEVANCE}
        ties = Ties(together, label_lists(self.kind, fit), stratified)
        rng = np.random.default_rng(self.data.seed)
        most = self.data.max_train_rows
        if most is not None and len(train) > most:
            before = len(train)
            train, _ = take_out(train, ties, before - most, rng, at_least=True)
            if len(train) > most:
                found, allowed = str(most), f"at least {len(train)}, so that every label keeps a row"
                raise ProjectError([Problem(self.task_file, "data.max_train_rows", "too few", found, allowed)])
            self.notes.append(f"{self.data.train}: {len(train):,} of {_rows(before)} drawn (data.max_train_rows)")
        if not reported:
            train, test = take_out(train, ties, max(1, round(len(train) * self.data.test_fraction)), rng)
            reported["test"] = fit.take(test)
            self.notes.append(f"test: {_rows(len(test))} cut from train")
        if "valid" not in self.parsed:
            train, valid = take_out(train, ties, max(1, round(len(train) * self.data.valid_fraction)), rng)
            self.notes.append(f"valid: {_rows(len(valid))} cut from train")
        self._enough_rows(train, valid, reported)
        self._rankable({"valid": fit.take(valid), **reported})
        # Only the rows in use are kept, so that a small draw from a large file stays small.
        used = np.sort(np.concatenate([train, valid]))
        return TaskData(
            fit.take(used),
            np.searchsorted(used, train),
            np.searchsorted(used, valid),
            reported,
            self.space.labels,
            self.space.positive,
            self.notes,
        )

    def _drop(self, split: str, rows: Indices, keys: Sequence[str], judged: set[str], other: str) -> Indices:
        kept, dropped = overlapping(rows.tolist(), keys, judged)
        if dropped:
            self.notes.append(f"{split}: {_rows(dropped)} dropped, found in {other} as well")
        return kept

    def _enough_rows(self, train: Indices, valid: Indices, reported: dict[str, Rows]) -> None:
        sizes = {"train": len(train), "valid": len(valid)} | {split: len(rows) for split, rows in reported.items()}
        short = {
            split: size for split, size in sizes.items() if size < (LEAST_TRAIN if split == "train" else LEAST_OTHER)
        }
        if short:
            history = f" ({'; '.join(self.notes)})" if self.notes else ""
            self.problems.append(
                Problem(
                    self.data.train,
                    "",
                    "too few rows are left",
                    ", ".join(f"{size} in {split}" for split, size in short.items()) + history,
                    f"at least {LEAST_TRAIN} in train, {LEAST_OTHER} in every other split",
                )
            )

    def _rankable(self, judged: dict[str, Rows]) -> None:
        """MAP and MRR are means over queries with both labels: a split without one could not be scored."""
        if self.settings.primary_metric not in ("map", "mrr"):
            return
        for split, rows in judged.items():
            seen: dict[str, set[str]] = {}
            for group, label in zip(rows.groups or rows.texts, rows.targets, strict=True):
                seen.setdefault(group, set()).add(label)
            if all(len(labels) < 2 for labels in seen.values()):
                self.problems.append(
                    Problem(
                        self.task_file,
                        "metric",
                        f"cannot be computed on {split}: none of its queries has candidates of both labels",
                        self.settings.primary_metric,
                        '"auc" or "accuracy", or data with several candidates per query',
                    )
                )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
