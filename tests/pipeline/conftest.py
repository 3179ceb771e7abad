"""Projects of three tasks over one tiny encoder; one of them run once, to be copied by every test that changes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from projects import SORTS, write_project
from tiny import tiny_encoder

from trunkline.pipeline.project import Project

THREE = {name: SORTS[name] for name in ("intent", "slots", "urgency")}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny", layers=3)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A project after its first run."""
    root = write_project(tmp_path_factory.mktemp("finished") / "small", THREE, encoder=encoder)
    Project.load(root).run()
    return root


@pytest.fixture
def fresh(tmp_path: Path, encoder: Path) -> Path:
    """A project that was never run."""
    return write_project(tmp_path / "fresh", THREE, encoder=encoder)


@pytest.fixture
def done(tmp_path: Path, finished: Path) -> Path:
    """A copy of the finished project, times and all."""
    return Path(shutil.copytree(finished, tmp_path / "done"))


@pytest.fixture
def planned() -> Callable[[Path], dict[str, str]]:
    """planned(root) -> stage -> why, of what a run would do."""
    return lambda root: {step.stage.id: step.why for step in Project.load(root).plan().steps}
