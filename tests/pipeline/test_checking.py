"""Everything that is wrong with a project is said at once: no mistake hides another."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import write_project

from trunkline.errors import Problem, ProjectError
from trunkline.pipeline.checking import check


def problems(root: Path) -> list[Problem]:
    with pytest.raises(ProjectError) as caught:
        check(root)
    return list(caught.value.problems)


def test_data_encoder_teachers_and_grid_are_all_looked_at(tmp_path: Path) -> None:
    task = {
        "kind": "classification",
        "tune": {"layers": [2, 9]},
        "distill": {"layers": [1], "teachers": ["self", "path:nowhere"]},
        "exits": {"enabled": True, "depths": [1, 99]},
    }
    root = write_project(tmp_path, {"intent": task, "tone": {"kind": "multilabel"}})
    for file in (root / "data").glob("tone*"):
        file.unlink()
    said = {(one.file, one.where) for one in problems(root)}
    assert {("tasks/intent.toml", key) for key in ("tune.layers", "distill.teachers", "exits.depths")} <= said
    assert any(file == "tasks/tone.toml" and where.startswith("data.") for file, where in said)

    settings = root / "project.toml"
    lines = settings.read_text().splitlines()
    settings.write_text("\n".join("encoder = 'nowhere'" if line.startswith("encoder") else line for line in lines))
    said = {(one.file, one.where) for one in problems(root)}
    assert {("project.toml", "encoder"), ("tasks/intent.toml", "distill.teachers")} <= said
    assert any(file == "tasks/tone.toml" for file, _ in said)
    assert ("tasks/intent.toml", "tune.layers") not in said  # of which encoder, nobody knows


def test_what_is_wrong_with_a_shared_table_names_every_task_that_reads_it(tmp_path: Path) -> None:
    root = write_project(tmp_path, {"intent": {"kind": "classification"}, "tone": {"kind": "classification"}})
    (root / "data" / "all.csv").write_text("text,mood\n" + "".join(f"text {n},good\n" for n in range(30)))
    table = 'kind = "classification"\n[data]\ntrain = "data/all.csv"\n[data.columns]\nlabel = "nope"\n'
    for task in ("intent", "tone"):
        (root / "tasks" / f"{task}.toml").write_text(table)
    [problem] = problems(root)
    assert (problem.file, problem.tasks) == ("data/all.csv", ("intent", "tone"))
    assert str(problem).endswith("of:      intent, tone")
