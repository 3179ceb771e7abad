"""How rare a false alarm can be asked for: what `valid` can tell.

Knows prepared data and task files; nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trunkline.errors import Problem, ProjectError
from trunkline.project.config import ProjectFiles
from trunkline.project.data import TaskData


def least_rate(rows: int) -> float:
    """The least share of false alarms for which so many held-out rows set a limit."""
    return 1 / (rows + 1)


def check_scope(files: ProjectFiles, data: Mapping[str, TaskData]) -> None:
    """Raises ProjectError where any of these tasks asks for fewer false alarms than its `valid` can tell."""
    problems = [
        Problem(
            f"tasks/{task}.toml",
            "scope.false_alarms",
            f"valid has {len(found.valid)} rows, too few to tell what is as rare",
            found=f"{files.tasks[task].scope.false_alarms:g}",
            allowed=f"at least {math.ceil(1e4 * least_rate(len(found.valid))) / 1e4:g}, or more rows in valid",
        )
        for task, found in data.items()
        if files.tasks[task].scope.enabled and files.tasks[task].scope.false_alarms < least_rate(len(found.valid))
    ]
    if problems:
        raise ProjectError(problems)
