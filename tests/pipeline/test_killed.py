"""Nothing lost (promise 6): the kill test of benchmarks/, with few kills and fewer stages in a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_test.py"


@pytest.mark.slow
def test_nothing_lost_whenever_a_run_or_a_rollback_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("kill_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill_test", module)  # dataclasses look there
    spec.loader.exec_module(module)
    few = {name: module.TASKS[name] for name in ("intent", "same")}
    few = {name: {**keys, "tune": {**keys["tune"], "layers": [2]}} for name, keys in few.items()}
    monkeypatch.setattr(module, "TASKS", few)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    summary = module.kill_test(tmp_path, kills=6, seed=1)
    assert summary["failures"] == []
    assert (summary["kills"], summary["repeated_stages"], summary["half_releases"]) == (6, 0, 0)
    assert summary["branches_compared"] > 0
    assert summary["branches_different"] == 0
