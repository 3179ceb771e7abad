"""A tiny trunk, branches of all sorts, and a bundle of them, made once."""

from __future__ import annotations

import pytest
from branches import ALL_SORTS, INPUTS, Made, branch_files, load_trunk, tiny_source

from trunkline.bundle.merge import merge


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    source = tiny_source(folder / "encoder")
    trunk = load_trunk(source)
    files = branch_files(folder / "branches", trunk, ALL_SORTS)
    return Made(source, trunk, files, merge(source, files, INPUTS, folder / "bundles", name="made"))
