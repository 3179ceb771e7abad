"""Folders that `trunkline teach` filled, as what a first stage learns from: the same texts, a folder for each teacher.

Knows jobs and their shards, and which rows a task may learn from. Holds one shard of each folder at a time; trains
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trunkline.errors import Problem, StoreError
from trunkline.model.source import hash_files
from trunkline.pipeline.shards import FORMAT, JOB, found_shards
from trunkline.pipeline.store import key_of
from trunkline.project.config import TaskSettings
from trunkline.project.data import TaskData
from trunkline.project.explain import quoted, show
from trunkline.project.readers import named_by
from trunkline.project.rows import input_keys
from trunkline.project.tasks import Kind, split_words

if TYPE_CHECKING:
    import pyarrow

    from trunkline.training.material import Logits
    from trunkline.training.pretrain import Lesson

REASONS = {
    "unanswered": "that a teacher could not read",
    "judged": "that the task is judged on",
    "words": "of texts that a teacher was given in other words",
}
"""Why rows of a shard are left out; the last of tagging only, whose shards hold no words."""
_SHOWN = 5
_ALLOWED = "a folder that `trunkline teach` filled"


@dataclass(frozen=True)
class Taught:
    """A folder of shards that are all there, in order: its name in the task's file, and what it says to whom.

    `content` identifies what the shards say, `weight` is how much that counts; `texts` is alike where two folders have
    the same texts in the same shards.
    """

    name: str
    content: str
    texts: str
    kind: str
    labels: tuple[str, ...]
    pairs: bool
    shards: tuple[Path, ...]
    weight: float = 1.0


def find_taught(root: Path, task: str, settings: TaskSettings) -> tuple[list[Taught], list[Problem]]:
    """The folders that a task's first stage learns from, in an order that its file does not change, and what is wrong
    with them. Reads no shard.
    """
    where = f"tasks/{task}.toml", "pretrain.shards"
    found: list[Taught] = []
    problems: list[Problem] = []
    for name in settings.pretrain.shards:
        one = _read_folder(root, name, where)
        if isinstance(one, Taught):
            found.append(replace(one, weight=settings.pretrain.weights.get(name, 1.0)))
        else:
            problems.append(one)
    contents = [one.content for one in found]
    if twice := [one.name for one in found if contents.count(one.content) > 1]:
        problems.append(Problem(*where, "the same shards twice", quoted(twice), "a folder for each teacher"))
    strange = [one.name for one in found if one.texts != found[0].texts]
    if strange:
        allowed = "folders that were filled from the same sources, with the same --shard-rows"
        what = f"{quoted(strange)} beside {show(found[0].name)}"
        problems.append(Problem(*where, "folders of different texts", what, allowed))
    return sorted(found, key=lambda one: one.content), problems


def _read_folder(root: Path, name: str, where: tuple[str, str]) -> Taught | Problem:
    folder = root / name
    if not folder.is_dir():
        return Problem(*where, "no such folder", show(name), f"{_ALLOWED}, as seen from {root.resolve()}")
    try:
        asked = json.loads((folder / JOB).read_text(encoding="utf-8"))
        work, every = asked["work"], asked["shard_rows"]
        sources = [[source["sha256"], source["rows"]] for source in asked["sources"]]
        texts = key_of([sources, asked["columns"], every])
        kind, labels, pairs = str(work["kind"]), tuple(work["labels"]), bool(work["pairs"])
        if (asked["format"], work["what"]) != (FORMAT, "teach"):
            raise ValueError
        wanted = range(sum(-(-rows // every) for _, rows in sources))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return Problem(*where, f"has no {JOB} of a teacher", show(name), _ALLOWED)
    shards = found_shards(folder)
    sound = [number for number in wanted if len(shards.get(number, ())) == 1]
    if len(sound) != len(wanted) or len(shards) != len(wanted):
        found = f"{len(sound):,} of {len(wanted):,} in {show(name)}"
        return Problem(*where, "shards are missing, or there twice", found, "all of them: run that `teach` again")
    files = tuple(shards[number][0] for number in wanted)
    return Taught(name, key_of([asked, [path.name for path in files]]), texts, kind, labels, pairs, files)


def unfit(taught: Sequence[Taught], kind: Kind, data: TaskData, cache: Path | None) -> Iterator[Problem]:
    """All that keeps these folders from teaching a task; `cache` holds hashes of files, so that bytes are read once."""
    for one in taught:
        if one.kind != kind:
            yield Problem(one.name, "", "teaches another kind of task", one.kind, kind)
        elif sorted(one.labels) != sorted(data.labels):
            yield Problem(one.name, "", "has other labels than the task", quoted(one.labels), quoted(data.labels))
        if one.pairs != (data.fit.pairs is not None):
            reads = ("single texts", "pairs")
            yield Problem(one.name, "", "is about other inputs", reads[one.pairs], reads[not one.pairs])
        digests = hash_files(one.shards, cache)
        if damaged := [path.name for path in one.shards if not named_by(path, digests[str(path)])]:
            yield Problem(one.name, "", "damaged shards", quoted(damaged, _SHOWN), "whole ones: run that `teach` again")


class Lessons:
    """What a task's first stage learns, shard by shard: rows that every teacher answered, and that the task is not
    judged on.
    """

    def __init__(self, taught: Sequence[Taught], kind: Kind, data: TaskData) -> None:
        self._taught, self._kind, self._labels, self._pairs = taught, kind, data.labels, data.fit.pairs is not None
        self._judged = {key for rows in data.judged for key in rows.keys()}  # noqa: SIM118 - not a mapping
        self.teachers = len(taught)
        self.left_out = dict.fromkeys(REASONS, 0)
        """Rows that are in no lesson, by reason."""
        self.rows = [self._count(number) for number in range(len(taught[0].shards))]
        """Rows of each shard to learn from."""

    def _count(self, number: int) -> int:
        lesson, left_out = self._read(number)
        for reason, count in left_out.items():
            self.left_out[reason] += count
        return len(lesson)

    def read(self, number: int) -> Lesson:
        """The rows of a shard. Raises StoreError where one cannot be read."""
        return self._read(number)[0]

    def _read(self, number: int) -> tuple[Lesson, dict[str, int]]:
        from trunkline.training.pretrain import Lesson

        tables = [self._table(one.shards[number]) for one in self._taught]
        first = tables[0]
        answered = np.ones(len(first), dtype=bool)
        for table in tables:
            answered &= table["error"].is_null().to_numpy()
        picks = np.flatnonzero(answered)
        texts = first["text"].take(picks).to_pylist()
        pairs = first["text_pair"].take(picks).to_pylist() if self._pairs else None
        free = np.asarray([key not in self._judged for key in input_keys(texts, pairs)], dtype=bool)
        said = [self._said(table.take(picks)) for table in tables]
        words = [split_words(text) for text in texts] if self._kind is Kind.TAGGING else None
        alike = np.ones(len(texts), dtype=bool)
        for row, offsets in enumerate(words or ()):
            alike[row] = all(len(logits[row]) == len(offsets) for logits in said)
        kept = np.flatnonzero(free & alike)
        left_out = {
            "unanswered": len(first) - len(picks),
            "judged": int((~free).sum()),
            "words": int((free & ~alike).sum()),
        }
        return Lesson(texts, pairs, words, said).take(kept), left_out

    def _table(self, path: Path) -> pyarrow.Table:
        import pyarrow
        import pyarrow.parquet

        said = "score" if self._kind is Kind.REGRESSION else "logits"
        try:
            return pyarrow.parquet.read_table(path, columns=["text", "text_pair", said, "error"]).combine_chunks()
        except (pyarrow.ArrowException, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise StoreError(f"{path} cannot be read: {reason}") from error

    def _said(self, table: pyarrow.Table) -> Logits:
        """What a teacher said of rows that it answered: (rows, C), or of tagging one (words, C) per row."""
        if self._kind is Kind.REGRESSION:
            return np.asarray(table["score"].to_numpy(), dtype=np.float32)[:, None]
        column = table["logits"].combine_chunks()
        if self._kind is not Kind.TAGGING:
            return self._by_label(column)
        counts = column.value_lengths().to_numpy()
        return np.split(self._by_label(column.flatten()), np.cumsum(counts)[:-1]) if len(counts) else []

    def _by_label(self, column: pyarrow.StructArray) -> np.ndarray:
        each = [column.field(label).to_numpy(zero_copy_only=False) for label in self._labels]
        return np.stack(each, axis=1).astype(np.float32, copy=False)
