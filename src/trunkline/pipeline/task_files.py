"""What planning knows of a task's data, and of all that teaches it from outside: whatever changes when they do.

Knows files, sets of the hub and foreign models by content; reads no rows and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trunkline.errors import Problem, ProjectError
from trunkline.model.source import Source, hash_files
from trunkline.pipeline.adapted import teaching_trunks
from trunkline.pipeline.foreign import foreign_teachers
from trunkline.pipeline.lessons import find_taught
from trunkline.pipeline.store import key_of
from trunkline.project.config import TaskSettings
from trunkline.project.data import hub_sets, pinned, read_task, reads_pairs, sources
from trunkline.project.hub import HubError
from trunkline.project.readers import shard_files
from trunkline.project.sources import Commits
from trunkline.project.teachers import FILE


@dataclass(frozen=True)
class TaskFiles:
    """What planning knows of a task's data: a content hash per local file and a name with its commit per set of the
    hub, by split, whether the task reads pairs, a content hash per file of soft labels and per file of texts without
    labels, by the content hash of each folder that its first stage reads how much it counts, and by the name that the
    task's file has for it what identifies each foreign teacher, and each other trunk whose full model teaches.
    """

    hashes: dict[str, str]
    sets: dict[str, str]
    pairs: bool
    soft: list[str]
    foreign: dict[str, str] = field(default_factory=dict)
    trunks: dict[str, Source] = field(default_factory=dict)
    shards: dict[str, float] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path, name: str, settings: TaskSettings, cache: Path, commits: Commits) -> TaskFiles:
        """Identify the data of a task: hashes of unchanged files are taken from `cache`, commits known from `commits`.

        Raises ProjectError, MissingExtra.
        """
        files = sources(root, settings)
        if any(not path.is_file() for path in files.values()):
            read_task(root, name, settings)  # says what is missing, with all else that is wrong
        hashes = hash_files(files.values(), cache)
        sets = hub_sets(name, settings, commits)
        try:
            pairs = reads_pairs(root, pinned(settings, sets))
        except HubError as error:
            raise ProjectError([error.problem((f"tasks/{name}.toml", "data.train"), settings.data.train)]) from error
        soft = {name: root / name for name in settings.soft_files}
        unlabelled = {name: root / name for name in settings.data.unlabelled}
        named = [("distill.teachers", f"{FILE}{file}", path) for file, path in soft.items()]
        named += [("data.unlabelled", file, path) for file, path in unlabelled.items()]
        missing = [
            Problem(f"tasks/{name}.toml", key, "no such file", file, f"a file in {root}")
            for key, file, path in named
            if not (path.exists() if key == "distill.teachers" else path.is_file())  # soft labels may be a folder
        ]
        found, wrong = foreign_teachers(root, name, settings, cache)
        trunks, strange = teaching_trunks(root, name, settings, cache)
        taught, incomplete = find_taught(root, name, settings)
        if missing or wrong or strange or incomplete:
            raise ProjectError([*missing, *wrong, *strange, *incomplete])
        by_split = {split: hashes[str(path)] for split, path in files.items()}
        foreign = {teacher: one.content for teacher, one in found.items()}
        labels = [_soft_hash(path, cache) for path in soft.values()]
        texts = unlabelled_contents(root, settings, cache)
        shards = {one.content: one.weight for one in taught}
        return cls(by_split, sets, pairs, labels, foreign, trunks, shards, texts)


def unlabelled_contents(root: Path, settings: TaskSettings, cache: Path) -> list[str]:
    """What identifies each file of texts without labels: its content, and how it is read."""
    paths = [root / name for name in settings.data.unlabelled]
    hashes = hash_files(paths, cache)
    ways = {".csv": settings.data.separator}
    return sorted(key_of([hashes[str(path)], suffix := path.suffix.lower(), ways.get(suffix)]) for path in paths)


def _soft_hash(path: Path, cache: Path) -> str:
    """The content hash of a file of soft labels, or of a folder of them."""
    if not path.is_dir():
        return hash_files([path], cache)[str(path)]
    return key_of(list(hash_files(shard_files(path), cache).values()))
