"""`trunkline quantize`: a release that can run in int8, kept by later ones, and only what is new made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import SORTS, Heard, write_project, write_task

from trunkline.bundle.manifest import Int8Entry, read_manifest
from trunkline.engine.choose import no_int8
from trunkline.errors import StoreError
from trunkline.pipeline.project import Project
from trunkline.pipeline.quantize import quantize

pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
pytestmark = pytest.mark.skipif(no_int8() is not None, reason=no_int8() or "")


def int8_of(project: Project) -> Int8Entry:
    found = read_manifest(project.releases.folder(project.released())).int8
    assert found is not None
    return found


def test_the_live_release_can_run_in_int8_and_says_what_that_changes(done: Path) -> None:
    project = Project.load(done)
    before = project.released()
    release = quantize(project)
    assert (release.tasks, release.note) == (before.tasks, "int8 of intent, slots, urgency")
    assert int8_of(project).dtype in ("float32", "bfloat16")
    for found in int8_of(project).tasks.values():
        assert set(found.quality.splits) == {"valid", "test"}
    expected = project.evaluate()
    for task, entry in int8_of(project).tasks.items():
        metric = entry.quality.metric
        assert entry.quality.splits["test"].floats == pytest.approx(expected[task]["test"][metric], abs=0.1)
    assert quantize(project) == release
    assert not project.plan().merges
    assert project.report()["release"]["id"] == release.id


def test_a_later_run_keeps_it_and_only_the_new_task_is_measured(done: Path) -> None:
    project = Project.load(done)
    quantize(project)
    before = int8_of(project)
    write_task(done, "tone", **SORTS["tone"])
    project, heard = Project.load(done), Heard()
    project.run(show=heard)
    assert int8_of(project) == before
    assert any("not in int8 yet: tone;" in line for line in heard.said)
    release = quantize(project)
    assert release.note == "int8 of tone"
    after = int8_of(project)
    assert after.trunk == before.trunk
    assert before.tasks.items() <= after.tasks.items()
    assert set(after.tasks) == {*before.tasks, "tone"}


def test_the_trunk_is_calibrated_anew_only_where_that_is_asked_for(done: Path) -> None:
    project = Project.load(done)
    first = quantize(project)
    trunk = int8_of(project).trunk
    (done / "tasks" / "slots.toml").unlink()
    project = Project.load(done)
    project.run()
    assert int8_of(project).trunk == trunk
    assert quantize(project).id == project.released().id  # all of it is measured
    anew = quantize(project, recalibrate=True)
    assert int8_of(project).trunk != trunk
    assert anew.tasks.keys() == {"intent", "urgency"}
    assert project.rollback(first.id) == first
    assert int8_of(project).trunk == trunk


def test_nothing_is_quantized_before_the_first_release(tmp_path: Path) -> None:
    root = write_project(tmp_path / "new", {"intent": SORTS["intent"]})
    with pytest.raises(StoreError, match="no release yet"):
        quantize(Project.load(root))
