"""Rows of a task in memory and on disk: texts, pairs, targets, word offsets.

Plain columns; does not know where they came from or what a label means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.project.tasks import Offsets


@dataclass(frozen=True)
class Rows:
    """Columns of n rows.

    `targets`: a label, a list of labels, a number, or one tag per word. `groups`: the query of each row of a relevance
    task. `words`: for tagging, the (start, end) of each word in its text.
    """

    texts: list[str]
    pairs: list[str] | None
    targets: list[Any]
    ids: list[str]
    groups: list[str] | None = None
    words: list[Offsets] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | Any) -> Rows:
        """These rows, in this order."""
        picks = [int(index) for index in indices]

        def pick(column: list[Any]) -> list[Any]:
            return [column[index] for index in picks]

        return Rows(
            pick(self.texts),
            None if self.pairs is None else pick(self.pairs),
            pick(self.targets),
            pick(self.ids),
            None if self.groups is None else pick(self.groups),
            None if self.words is None else pick(self.words),
        )

    def __add__(self, other: Rows) -> Rows:
        def both(mine: list[Any] | None, theirs: list[Any] | None) -> list[Any] | None:
            return None if mine is None or theirs is None else mine + theirs

        return Rows(
            self.texts + other.texts,
            both(self.pairs, other.pairs),
            self.targets + other.targets,
            self.ids + other.ids,
            both(self.groups, other.groups),
            both(self.words, other.words),
        )

    def keys(self) -> list[str]:
        """What makes two rows the same input; see `input_keys`."""
        return input_keys(self.texts, self.pairs)

    def save(self, path: Path) -> None:
        """Write one JSON object a row."""
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for index in range(len(self)):
                row = {"id": self.ids[index], "text": self.texts[index], "target": self.targets[index]}
                for name, column in (("pair", self.pairs), ("group", self.groups), ("words", self.words)):
                    if column is not None:
                        row[name] = column[index]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read what `save` wrote."""
        with path.open(encoding="utf-8", newline="\n") as file:
            rows = [json.loads(line) for line in file]

        def column(name: str) -> list[Any] | None:
            return [row[name] for row in rows] if rows and name in rows[0] else None

        words = column("words")
        return cls(
            [row["text"] for row in rows],
            column("pair"),
            [row["target"] for row in rows],
            [row["id"] for row in rows],
            column("group"),
            None if words is None else [[(start, end) for start, end in row] for row in words],
        )


def input_keys(texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """What makes two inputs the same: text and pair, without regard to case and white space."""
    folded = [fold(text) for text in texts]
    return folded if pairs is None else [f"{text}\n{fold(pair)}" for text, pair in zip(folded, pairs, strict=True)]


def fold(text: str) -> str:
    """A text without regard to case and white space."""
    return " ".join(text.casefold().split())
