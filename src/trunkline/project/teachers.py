"""Teachers by name: who a name in `distill.teachers` stands for, and in which ways teachers teach.

Knows names only: no files, no models, no settings. A foreign teacher is a classifier that was trained elsewhere, or a
task of another project's release.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

FILE = "file:"
"""What stands before the path of a file of soft labels."""
PATH = "path:"
"""What stands before the folder of a fine-tuned classifier."""
MODEL_FORM = (
    '"full", "full:TRUNK", "tune:L" or "tune:L/READING" (joint, separate), each also with "@SEED"; "path:" and a path '
    'from the project\'s folder; "hub:owner/name[@revision]"; "project:FOLDER#TASK"'
)
TEACHER_FORM = f'"self", also with "@SEED"; {MODEL_FORM}; "file:" and a path from the project\'s folder'

_OWN = re.compile(
    r"(?P<who>self|full(?::(?P<trunk>[^@\0]*[^@\0\s]))?"
    r"|tune:(?P<layers>[1-9]\d{0,3})(?:/(?P<reading>joint|separate))?)(?:@(?P<seed>\d{1,10}))?"
)
_HUB = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^#@\s]+))?")
_PROJECT = re.compile(r"project:(?P<folder>[^#\0]*[^#\0\s])#(?P<task>[a-z0-9][a-z0-9_-]*)")


class Mode(StrEnum):
    """How several teachers teach together."""

    MEAN = "mean"
    """The weighted mean of what each softens to."""
    MEAN_LOGITS = "mean_logits"
    """The weighted mean of their logits, softened."""
    HEADS = "heads"
    """A head for each teacher and one for the labels; their mean answers (MKDM)."""
    BEST = "best"
    """For each row, the teacher whose loss against its label is lowest."""


class Match(StrEnum):
    """How far a student is from a teacher."""

    KL = "kl"
    """Cross entropy with the softened teacher, which has the gradient of KL (Hinton et al. 2015; Wei et al. 2022)."""
    MSE = "mse"
    """Squared distance between the softened outputs (TMKD)."""


@dataclass(frozen=True)
class Own:
    """A model that the task trains itself: the full one, or tuned layers (None: those that the student starts from).

    Of seed `seed`, None: of the student's. The full one may be that of another `trunk` than the project's, which is
    called as `trunkline trunk use` takes it. Tuned layers may have a `reading` of pairs, None: the student's.
    """

    full: bool
    layers: int | None
    seed: int | None
    trunk: str | None
    reading: str | None


@dataclass(frozen=True)
class Elsewhere:
    """A classifier that was trained elsewhere: a folder, or a name on the hub with its revision."""

    name: str
    hub: bool
    revision: str | None


@dataclass(frozen=True)
class OtherTask:
    """A task of the live release of the project in `folder`."""

    folder: str
    task: str


Foreign = Elsewhere | OtherTask


def is_teacher(name: str) -> bool:
    """Whether a name is one of those that `TEACHER_FORM` describes."""
    return soft_file(name) is not None or own(name) is not None or foreign(name) is not None


def own(name: str) -> Own | None:
    """The model of the task itself that a name stands for, if it does."""
    found = _OWN.fullmatch(name)
    if found is None:
        return None
    layers, seed = (None if found[part] is None else int(found[part]) for part in ("layers", "seed"))
    return Own(found["who"].startswith("full"), layers, seed, found["trunk"], found["reading"])


def soft_file(name: str) -> str | None:
    """The path of the file of soft labels that a name stands for, if it does."""
    return _path(name, FILE)


def foreign(name: str) -> Foreign | None:
    """The model from elsewhere that a name stands for, if it does."""
    if (path := _path(name, PATH)) is not None:
        return Elsewhere(path, hub=False, revision=None)
    if (hub := _HUB.fullmatch(name)) is not None:
        return Elsewhere(hub["name"], hub=True, revision=hub["revision"])
    other = _PROJECT.fullmatch(name)
    return None if other is None else OtherTask(other["folder"], other["task"])


def _path(name: str, before: str) -> str | None:
    path = name.removeprefix(before)
    return path if path != name and path.strip() and "\0" not in path else None


def called(name: str) -> str:
    """What a teacher is called in stages and reports: where it lies is left out, so that moving it changes nothing."""
    if (file := soft_file(name)) is not None:
        return FILE + Path(file).stem
    if (mine := own(name)) is not None and mine.trunk is not None:
        return f"full:{Path(mine.trunk).name}" + ("" if mine.seed is None else f"@{mine.seed}")
    match foreign(name):
        case Elsewhere(hub=True) as found:
            return f"hub:{found.name}"
        case Elsewhere() as found:
            return PATH + Path(found.name).name
        case OtherTask() as found:
            return f"project:{Path(found.folder).name}#{found.task}"
    return name
