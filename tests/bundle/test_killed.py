"""Promise 6 for merges and releases: killed at any step, they leave the old state or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from branches import INPUTS, Made

from trunkline.bundle import Releases
from trunkline.bundle.merge import merge


@pytest.fixture(scope="module")
def steps(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """A release of two tasks, then a merge and release of three, killed before each step that reaches the disk."""
    folder = tmp_path_factory.mktemp("killed")
    home = folder / "state"
    Releases(home).publish(merge(made.source, made.some("intent", "same"), INPUTS, home / "bundles", name="x"))
    (folder / "branches").mkdir()
    for task in ("intent", "same", "tone"):
        shutil.copy(made.files[task], folder / "branches" / f"{task}.safetensors")
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, home, folder / "branches", made.source.path, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_promise_6_a_merge_and_release_killed_at_any_step_leave_the_old_release_or_the_new(
    steps: list[dict[str, object]],
) -> None:
    assert len(steps) > 20
    assert [step["status"] for step in steps] == [-9] * (len(steps) - 1) + [0]
    lives = []
    for step in steps:
        killed = step["killed"]
        assert isinstance(killed, dict)
        assert killed["damaged"] == [], f"step {step['step']}"
        assert (killed["live"], killed["history"]) in (("r1", 1), ("r2", 2)), f"step {step['step']}"
        lives.append(killed["live"])
    assert lives == sorted(lives)  # once it moved, it stays
    assert lives[0] == "r1"
    assert lives[-1] == "r2"


def test_promise_6_the_next_run_finishes_what_a_killed_one_began_and_leaves_no_trace(
    steps: list[dict[str, object]],
) -> None:
    expected = {"live": "r2", "history": 2, "bundles": 2, "damaged": [], "leftovers": 0}
    for step in steps:
        assert (step["again"], step["after"]) == (0, expected), f"step {step['step']}"
