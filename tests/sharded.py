"""Jobs of shards over made-up rows: their sources, a teacher that is asked about them, and what comes of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from foreign import tiny_classifier
from projects import SORTS, Heard, write_project

from trunkline.engine.base import Input
from trunkline.pipeline.project import Project
from trunkline.pipeline.scoring import TeacherWork
from trunkline.pipeline.shards import Item, Job, Made, Moved, Scored, Scorer
from trunkline.pipeline.teach import teacher_work

TOPICS = ("weather", "alarm", "music")
"""The labels of a project's intents, in the order of a classifier from elsewhere."""
TEACHER = "path:../models/big"
_WORDS = ["play", "some", "music", "please", "now", "rain", "weather", "alarm", "me", "at", "night", "song"]


class Lengths:
    """Scores texts by their length; remembers how many rows it was given."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, items: Sequence[Item], moved: Moved) -> Scored:
        self.rows += len(items)
        moved(len(items))
        lengths = [len(item.text) if isinstance(item, Input) else -1 for item in items]
        return Scored(pyarrow.table({"score": lengths}), {"faults": lengths.count(-1)})


class Told(Heard):
    """Hears of shards, too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.numbers: list[int] = []

    def moved(self, rows: int) -> None:
        self.rows += rows

    def made(self, made: Made) -> None:
        self.numbers.append(made.number)


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Write made-up rows as the suffix says; the texts of a csv are several lines each."""
    rng = random.Random(seed)
    rows = [
        {
            "text": " ".join(rng.choices(_WORDS, k=rng.randint(2, 9))),
            "text_pair": rng.choice(_WORDS),
            "id": f"r{number}",
        }
        for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("text,id\n" + "".join(f'"{row["text"]},\n",{row["id"]}\n' for row in rows))
    return path


def taught_project(
    folder: Path, encoder: Path, task: str = "intent", labels: Sequence[str] = TOPICS, **classifier: Any
) -> tuple[Path, TeacherWork]:
    """A project of one task beside a classifier from elsewhere, and what that is asked, on one thread."""
    tiny_classifier(folder / "models" / "big", labels, **classifier)
    root = write_project(folder / "project", {task: SORTS[task]}, encoder=encoder)
    return root, teacher_work(Project.load(root), task, TEACHER, threads=1, show=Heard())


def finish(job: Job, load: Callable[[], Scorer], say: Callable[[str], None] = print) -> list[int]:
    """Make what is missing of a job in this process; the numbers of the shards that were made."""
    with job.begun(say):
        return [made.number for made in job.make(load, lambda rows: None)]


def contents(job: Path) -> dict[str, bytes]:
    """The shards in a job's folder, by name."""
    return {path.name: path.read_bytes() for path in job.glob("shard-*")}


def rows_of(job: Path) -> list[dict[str, Any]]:
    """All rows in a job's folder, in order."""
    return [row for path in sorted(job.glob("shard-*")) for row in pyarrow.parquet.read_table(path).to_pylist()]
