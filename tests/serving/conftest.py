"""Two tiny bundles on one trunk, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from branches import ALL_SORTS, INPUTS, branch_files, load_trunk, random_branch, tiny_source

from trunkline.bundle.merge import merge
from trunkline.model.branch import save_branch


@dataclass(frozen=True)
class Bundles:
    """`second` has another branch for "intent"; all else is the same."""

    first: Path
    second: Path


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("served")
    source = tiny_source(folder / "encoder")
    trunk = load_trunk(source)
    files = branch_files(folder / "branches", trunk, ALL_SORTS)
    first = merge(source, files, INPUTS, folder / "bundles", name="served")
    save_branch(random_branch(trunk, "intent", seed=9, fork=1, layers=2), folder / "intent.safetensors")
    files["intent"] = folder / "intent.safetensors"
    return Bundles(first, merge(source, files, INPUTS, folder / "bundles", first, name="served"))
