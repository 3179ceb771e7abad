"""Foreign teachers of a task: found, identified by content, checked against the task, and asked about its rows.

A foreign teacher is a classifier that was fine-tuned elsewhere, or a task of another project's live release. Knows
where they lie and what they must be like; nothing of students. torch is imported when one is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trunkline.bundle.manifest import read_manifest
from trunkline.bundle.release import Releases
from trunkline.engine.base import Input, ItemError
from trunkline.errors import Problem, ProjectError, TrunklineError, UsageError, unknown
from trunkline.model.foreign import CLASSIFIERS, ForeignClassifier, find_classifier
from trunkline.model.source import folder_of
from trunkline.pipeline.asking import Model, Moved, Question, Released, voice
from trunkline.pipeline.lessons import find_taught, unfit
from trunkline.pipeline.store import FOLDER
from trunkline.project.config import ProjectFiles, TaskSettings
from trunkline.project.data import Rows, TaskData
from trunkline.project.explain import show
from trunkline.project.metrics import evaluate
from trunkline.project.relabel import Relabel, Where, relabel
from trunkline.project.soft import soft_labels
from trunkline.project.tasks import Kind
from trunkline.project.teachers import Elsewhere, Foreign, OtherTask, foreign

if TYPE_CHECKING:
    from trunkline.training.material import Logits

_CLASSIFIER = f"a fine-tuned classifier in safetensors, of {', '.join(CLASSIFIERS)}"
_PROBLEM_TYPES: dict[Kind, tuple[str | None, ...]] = {
    Kind.CLASSIFICATION: (None, "single_label_classification"),
    Kind.MULTILABEL: ("multi_label_classification",),
    Kind.REGRESSION: (None, "regression"),
    Kind.TAGGING: (None, "single_label_classification"),
    Kind.RELEVANCE: (None, "single_label_classification", "regression"),
}
"""What a classifier may say that its outputs are, None for nothing, to teach a task of each kind."""


TRAIN, VALID = "train", "valid"


@dataclass(frozen=True)
class ForeignTeacher:
    """A foreign teacher that was found: its name in the task's file, and what identifies it wherever it lies."""

    name: str
    content: str
    model: Model


def foreign_teachers(
    root: Path, task: str, settings: TaskSettings, cache: Path | None
) -> tuple[dict[str, ForeignTeacher], list[Problem]]:
    """The foreign teachers of a task, by name, and why others cannot be had; `cache` holds hashes of files."""
    found: dict[str, ForeignTeacher] = {}
    problems = []
    for name in settings.distill.teachers:
        asked = foreign(name)
        if asked is None:
            continue
        try:
            found[name] = foreign_teacher(root, name, asked, cache)
        except TrunklineError as error:
            allowed = _CLASSIFIER if isinstance(asked, Elsewhere) else "a task of another project's live release"
            problems.append(Problem(f"tasks/{task}.toml", "distill.teachers", str(error), show(name), allowed))
    return found, problems


def foreign_teacher(root: Path, name: str, asked: Foreign, cache: Path | None) -> ForeignTeacher:
    """The foreign teacher that a name stands for. Raises TrunklineError where it cannot be had."""
    if isinstance(asked, Elsewhere):
        return _classifier(name, asked, root, cache)
    return _other_task(name, asked, root)


def _classifier(name: str, asked: Elsewhere, root: Path, cache: Path | None) -> ForeignTeacher:
    model = find_classifier(asked.name, root, cache, hub=asked.hub, revision=asked.revision)
    return ForeignTeacher(name, f"classifier {model.fingerprint}", model)


def _other_task(name: str, asked: OtherTask, root: Path) -> ForeignTeacher:
    folder = folder_of(asked.folder, root)
    if folder is None or not (folder / FOLDER).is_dir():
        raise UsageError(f"no project that was ever run: '{asked.folder}' (looked in {root})")
    if folder.resolve() == root.resolve():
        raise UsageError("a project is not taught by its own release, which would change with every run")
    releases = Releases(folder / FOLDER)
    live = releases.live()
    if live is None:
        raise UsageError(f"the project '{asked.folder}' has no release yet")
    if asked.task not in live.tasks:
        raise UsageError(unknown("task", asked.task, live.tasks))
    return released_teacher(name, releases.folder(live), asked.task)


def released_teacher(name: str, bundle: Path, task: str) -> ForeignTeacher:
    """A task of the bundle in a folder, as a teacher."""
    manifest = read_manifest(bundle)
    entry = manifest.branches[task]
    content = f"branch {entry.sha256} trunk {manifest.trunk.fingerprint}"
    return ForeignTeacher(name, content, Released(bundle, bundle / entry.file, task))


def check_teachers(files: ProjectFiles, data: Mapping[str, TaskData | None], cache: Path | None) -> None:
    """Raises ProjectError with all that is wrong with what teaches these tasks from outside: files, models, shards;
    of a task whose data could not be read, whether they are there at all.
    """
    problems: list[Problem] = []
    for task, rows in data.items():
        settings = files.tasks[task]
        found, wrong = foreign_teachers(files.root, task, settings, cache)
        taught, incomplete = find_taught(files.root, task, settings)
        problems += [*wrong, *incomplete]
        if rows is None:
            continue
        try:
            soft_labels(files, task, rows)
        except ProjectError as error:
            problems += error.problems
        for teacher in found.values():
            problems += fit(teacher, task, settings, rows)[1]
        problems += unfit(taught, settings.kind, rows, cache)
    if problems:
        raise ProjectError(problems)


def fit(teacher: ForeignTeacher, task: str, settings: TaskSettings, data: TaskData) -> tuple[Relabel, list[Problem]]:
    """How what a teacher says becomes logits of a task, and all that stands against it."""
    where = Where(f"tasks/{task}.toml", teacher.name)
    kind, pairs = settings.kind, data.fit.pairs is not None
    problems: list[Problem] = []
    if isinstance(teacher.model, ForeignClassifier):
        outputs = teacher.model.outputs
        if teacher.model.per_token != (kind is Kind.TAGGING):
            found = "a classifier of tokens" if teacher.model.per_token else "a classifier of texts"
            allowed = "one of tokens (…ForTokenClassification)" if kind is Kind.TAGGING else "one of texts"
            problems.append(where.problem(f"cannot teach a task of kind {kind}", found, allowed))
        types = _PROBLEM_TYPES[kind]
        if teacher.model.problem not in types:
            allowed = " or ".join("nothing" if one is None else show(one) for one in types)
            found = show(teacher.model.problem or "nothing")
            problems.append(where.problem("has another problem_type in its config.json", found, allowed))
    else:
        from trunkline.model.branch import read_spec

        spec = read_spec(teacher.model.branch)
        outputs = spec.labels or ("score",)
        if spec.kind is not kind:
            problems.append(where.problem("is a task of another kind", spec.kind, kind))
        if (spec.reading != "single") != pairs:
            reads = "pairs" if pairs else "single texts"
            problems.append(where.problem("reads other inputs", f"{spec.reading} texts", f"a task that reads {reads}"))
    if problems:
        return Relabel(()), problems
    renamed = settings.distill.label_maps.get(teacher.name, {})
    return relabel(kind, data.labels, data.positive, outputs, renamed, where)


@dataclass(frozen=True)
class Said:
    """What a teacher said: by split, logits of its rows in order, its metrics where no student learns, and what is odd
    about it.
    """

    logits: dict[str, Logits]
    metrics: dict[str, dict[str, float]]
    notes: list[str]


def ask(
    teacher: ForeignTeacher,
    task: str,
    settings: TaskSettings,
    data: TaskData,
    device: str,
    moved: Moved = lambda done, of: None,
) -> Said:
    """Ask a teacher about train, `valid` and the reported split. `moved` hears how many of how many passes are done.

    Logits are those of the task, float32: (rows, C), or for tagging one (words, C) per row. Raises ProjectError where
    the teacher does not fit the task, TrunklineError where it cannot be loaded, cannot read a row, or gives numbers
    that are not finite.
    """
    how, problems = fit(teacher, task, settings, data)
    if problems:
        raise ProjectError(problems)
    splits = {
        TRAIN: data.fit.take(data.train),
        VALID: data.fit.take(data.valid),
        data.main_split: data.reported[data.main_split],
    }
    items = [item for rows in splits.values() for item in _inputs(rows)]
    question = Question(settings.kind, data.labels, settings.max_tokens, device)
    found = []
    for item, logits in zip(items, voice(teacher.model, how, question).logits(items, moved), strict=True):
        if isinstance(logits, ItemError):
            raise TrunklineError(f"{teacher.name} cannot read {show(item.text)}: {logits.message}")
        found.append(logits)
    if not all(np.isfinite(one).all() for one in found):
        raise TrunklineError(f"{teacher.name} gives numbers that are not finite")
    rest = iter(found)
    said: dict[str, Logits] = {}
    for split, rows in splits.items():
        these = list(islice(rest, len(rows)))
        said[split] = these if settings.kind is Kind.TAGGING else np.stack(these)
    metrics = {
        split: evaluate(settings.kind, data.labels, data.positive, rows, said[split])
        for split, rows in splits.items()
        if split != TRAIN
    }
    notes = []
    if settings.kind is Kind.REGRESSION:
        gold = np.asarray(splits[VALID].targets, dtype=np.float64)
        if metrics[VALID]["mae"] > np.abs(gold - gold.mean()).mean():
            notes.append("farther from the labels of `valid` than their mean is; are its numbers in the task's unit?")
    return Said(said, metrics, notes)


def logits_file(split: str) -> str:
    """The name of the file that holds what a teacher says of a split."""
    return "logits.safetensors" if split == TRAIN else f"{split}.safetensors"


def _inputs(rows: Rows) -> list[Input]:
    return [
        Input(
            text,
            None if rows.pairs is None else rows.pairs[place],
            None if rows.words is None else tuple(rows.words[place]),
        )
        for place, text in enumerate(rows.texts)
    ]


def save_logits(logits: Logits, path: Path) -> None:
    """Write logits as one safetensors file: all rows together, with the number of words of each for tagging."""
    from safetensors.numpy import save_file

    flat = np.concatenate(logits) if isinstance(logits, list) else logits
    counts = {"words": np.asarray([len(one) for one in logits])} if isinstance(logits, list) else {}
    save_file({"logits": np.ascontiguousarray(flat, dtype=np.float32), **counts}, path)


def load_logits(path: Path) -> Logits:
    """Read what `save_logits` wrote."""
    from safetensors.numpy import load_file

    read = load_file(path)
    if "words" not in read:
        return read["logits"]
    return np.split(read["logits"], np.cumsum(read["words"])[:-1])
