"""A running server over a made-up service, and a bundle of every sort of task on a tiny trunk."""

from __future__ import annotations

from pathlib import Path

import pytest
from branches import ALL_SORTS, INPUTS, branch_files, load_trunk, tiny_source
from client.conftest import served

from trunkline.bundle.merge import merge

__all__ = ["served"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    source = tiny_source(folder / "encoder")
    files = branch_files(folder / "branches", load_trunk(source), ALL_SORTS)
    return merge(source, files, INPUTS, folder / "bundles", name="measured")
