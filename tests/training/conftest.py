"""A tiny trunk, and tasks of every kind over it with their data read as a project reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from branches import load_trunk, tiny_source
from projects import SORTS, write_project

from trunkline.model.trunk import Trunk
from trunkline.project.config import load_files
from trunkline.project.data import read_task
from trunkline.training.material import TaskMaterial
from trunkline.training.states import StateCache

Make = Callable[..., TaskMaterial]


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(tiny_source(tmp_path_factory.mktemp("trunk") / "encoder", layers=3))


@pytest.fixture
def make(tmp_path: Path, trunk: Trunk) -> Make:
    """make("intent", **keys of its task file) -> its material, states cached below `tmp_path`."""

    def made(name: str, *, max_bytes: int = 10**9, **keys: Any) -> TaskMaterial:
        root = write_project(tmp_path / f"project-{name}", {name: {**SORTS[name], **keys}}, encoder=tmp_path)
        files = load_files(root)
        data = read_task(root, name, files.tasks[name])
        return TaskMaterial(name, files.tasks[name], data, trunk, StateCache(tmp_path / "states", max_bytes))

    return made
