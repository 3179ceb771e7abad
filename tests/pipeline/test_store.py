"""The store: whole stages or none, one writer at a time, damage named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trunkline.errors import StoreError
from trunkline.pipeline.project import Project
from trunkline.pipeline.store import Store, key_of


def test_a_key_is_that_of_a_value_and_not_of_how_it_is_written() -> None:
    assert key_of({"a": 1, "b": [1.5, None]}) == key_of({"b": [1.5, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_a_stage_is_published_whole_and_its_work_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(artifacts: Path, work: Path) -> dict[str, Any]:
        assert "key" not in store
        (work / "checkpoint").write_text("half way")
        (artifacts / "weights").write_text("7")
        return {"score": 0.5}

    entry = store.put("key", {"a": 1}, make)
    assert "key" in store
    assert (entry.fields, entry.result, (entry.folder / "weights").read_text()) == ({"a": 1}, {"score": 0.5}, "7")
    assert not store.resumable("key")
    assert store.get("key") == entry


def test_a_stage_that_breaks_off_leaves_its_work_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def broken(artifacts: Path, work: Path) -> dict[str, Any]:
        (artifacts / "weights").write_text("7")
        (work / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("key", {}, broken)
    assert "key" not in store
    assert list(store.stages.iterdir()) == []
    assert store.resumable("key")
    seen = store.put("key", {}, lambda _, work: {"found": (work / "checkpoint").read_text()})
    assert seen.result == {"found": "half way"}


def test_a_half_written_checkpoint_is_nothing_to_resume_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.work / "key").mkdir(parents=True)
    (store.work / "key" / ".staging-0123456789ab-checkpoint.pt").write_text("half")
    assert not store.resumable("key")


def test_a_second_writer_is_refused(done: Path) -> None:
    with Store(done).writing():
        project = Project.load(done)
        for write in (project.run, project.rollback, project.gc):
            with pytest.raises(StoreError, match="another process is writing"):
                write()
        assert Project.load(done).plan().steps == []  # reading needs no lock
    assert Project.load(done).run().ran == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fields": {}}', "\x00"])
def test_a_damaged_stage_is_named_with_what_to_do(done: Path, content: str) -> None:
    key = Project.load(done).graph.keys["intent/tune/single/L1/s13"]
    (done / ".trunkline" / "stages" / key / "stage.json").write_text(content)
    with pytest.raises(StoreError, match=f"{key}.*damaged.*delete that folder and run again"):
        Project.load(done).run(reselect=True)
    # … and doing so mends it.
    for file in (done / ".trunkline" / "stages" / key).iterdir():
        file.unlink()
    (done / ".trunkline" / "stages" / key).rmdir()
    assert Project.load(done).run().ran == 1


def test_before_the_first_run_there_is_nothing_to_answer_with(fresh: Path) -> None:
    project = Project.load(fresh)
    for ask in (project.bundle, project.report, project.released):
        with pytest.raises(StoreError, match="trunkline run"):
            ask()
