"""Everything that is wrong with a project, at once: its files, its encoder, its data, its teachers.

Asks each part of what it needs, so that one mistake does not hide another. Trains nothing and imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trunkline.errors import EncoderError, Problem, ProjectError
from trunkline.pipeline.adapted import teaching_trunks
from trunkline.pipeline.foreign import check_teachers
from trunkline.pipeline.grid import readings
from trunkline.pipeline.misfits import misfits, unread
from trunkline.pipeline.project import Project
from trunkline.project.config import ProjectFiles
from trunkline.project.data import TaskData, read_all
from trunkline.project.files import PROJECT_FILE, parse_files
from trunkline.project.scope import check_scope


def check(root: Path) -> dict[str, dict[str, Any]]:
    """Read and check a project's files and all their data: task -> kind, rows per split, labels, notes.

    Raises ProjectError with all problems of all of them; `Project.load` reads no data, and knows of its files' alone.
    """
    files, problems = parse_files(root)
    project = Project(root).over(files)
    found, wrong = read_all(files)
    if not any(problem.file == PROJECT_FILE for problem in problems):  # else the encoder is not the one that is meant
        wrong += _misfits(project, found)
    read = {task: found.get(task) for task in files.tasks}
    wrong += _said(lambda: check_teachers(files, read, project.store.hashes))
    wrong += _said(lambda: check_scope(files, found))
    for task, settings in files.tasks.items():
        wrong += teaching_trunks(root, task, settings, project.store.hashes)[1]
    problems += dict.fromkeys(wrong)
    if problems:
        raise ProjectError(problems)
    _ = project.graph  # whatever else a plan would not go on from
    return {task: _about(files, task, data) for task, data in found.items()}


def _misfits(project: Project, data: dict[str, TaskData]) -> Iterator[Problem]:
    """What an encoder does not allow, or why there is none."""
    try:
        source = project.source
    except EncoderError as error:
        encoder = project.files.settings.encoder
        yield Problem(PROJECT_FILE, "encoder", str(error), f'"{encoder}"', "the name or the folder of an encoder")
    else:
        yield from misfits(project.files, source)
    for task, found in data.items():
        settings = project.files.tasks[task]
        yield from unread(task, settings, readings(settings, found.fit.pairs is not None))


def _said(ask: Callable[[], None]) -> tuple[Problem, ...]:
    """The problems that this raises."""
    try:
        ask()
    except ProjectError as error:
        return error.problems
    return ()


def _about(files: ProjectFiles, task: str, data: TaskData) -> dict[str, Any]:
    rows = {"train": len(data.train), "valid": len(data.valid)}
    return {
        "kind": files.tasks[task].kind.value,
        "rows": rows | {split: len(found) for split, found in data.reported.items()},
        "labels": list(data.labels),
        "notes": list(data.notes),
    }
