"""The adapted trunks in a project's folder, and which encoder a name stands for: one of them, or any other.

Knows trunks/NAME and its trunk.json; nothing of how a trunk is made, or of stages.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trunkline.errors import EncoderError, Problem, TrunklineError
from trunkline.model.source import CONFIG, TRUNKS, Source, read_shape, resolve
from trunkline.project.config import TASK_NAME, TaskSettings
from trunkline.project.explain import show
from trunkline.project.teachers import own

ABOUT = "trunk.json"


class AdaptedTrunk(BaseModel):
    """A trunk in `trunks/NAME`.

    `valid` has, by task, its metric there; `data` identifies the rows that each task was trained on; `base` names the
    encoder that was adapted, of which a light trunk has only the layers in `settings`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    base: str
    base_revision: str | None
    base_fingerprint: str
    created: str
    tasks: tuple[str, ...] = Field(min_length=1)
    valid: dict[str, float] = Field(min_length=1)
    data: dict[str, str]
    settings: dict[str, Any]
    seconds: float | None = None
    """Training took, without the teachers, in the process that ended it; None of trunks that an early version made."""


def adapted_trunks(root: Path) -> list[AdaptedTrunk]:
    """Those of the project in `root` that were adapted, by name; folders that hold something else are left out."""
    folder = root / TRUNKS
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [trunk for name in names if (trunk := adapted_trunk(root, name)) is not None]


def adapted_trunk(root: Path, name: str) -> AdaptedTrunk | None:
    """The trunk of this name, if one was adapted and says so."""
    if not TASK_NAME.fullmatch(name):
        return None
    try:
        found = AdaptedTrunk.model_validate_json((root / TRUNKS / name / ABOUT).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.name == name else None


def depth_of(root: Path, trunk: AdaptedTrunk) -> int | None:
    """How many layers a trunk has, None where its files are gone."""
    try:
        return read_shape(root / TRUNKS / trunk.name).depth
    except EncoderError:
        return None


def encoder_named(root: Path, name: str) -> tuple[str, str | None]:
    """What project.toml calls the encoder that a name stands for, and its revision: that of a folder in trunks/, by its
    name or its path, or any encoder, at the revision that was adapted here, if it was.
    """
    trunks = Path(os.path.normpath(root / TRUNKS))
    for folder in (Path(os.path.normpath(given / name)) for given in (trunks, root)):
        if folder.parent == trunks and TASK_NAME.fullmatch(folder.name) and (folder / CONFIG).is_file():
            return f"{TRUNKS}/{folder.name}", None
    return name, next((trunk.base_revision for trunk in adapted_trunks(root) if trunk.base == name), None)


def teaching_trunks(
    root: Path, task: str, settings: TaskSettings, cache: Path | None
) -> tuple[dict[str, Source], list[Problem]]:
    """The trunks whose full models teach a task, by what its file calls them, and why others cannot; `cache` holds
    hashes of files.
    """
    found: dict[str, Source] = {}
    problems = []
    asked = {teacher.trunk: name for name in settings.distill.teachers if (teacher := own(name)) and teacher.trunk}
    for trunk, name in asked.items():  # each once, whatever the seeds of its models
        allowed = "a trunk of `trunkline trunk list`, or an encoder that project.toml could name"
        try:
            source = resolve(*encoder_named(root, trunk), root, cache)
        except TrunklineError as error:
            problems.append(Problem(f"tasks/{task}.toml", "distill.teachers", str(error), show(name), allowed))
            continue
        if settings.max_tokens > source.max_positions:
            allowed = f"at most {source.max_positions} ({name})"
            what = "more tokens than a teacher reads"
            problems.append(Problem(f"tasks/{task}.toml", "max_tokens", what, str(settings.max_tokens), allowed))
        found[trunk] = source
    return found, problems
