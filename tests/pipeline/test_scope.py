"""Out-of-scope flags from project files to a release: who gets them, what runs again, what is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import SORTS, Heard, write_project, write_task
from typer.testing import CliRunner

from trunkline.bundle import verify
from trunkline.cli import app
from trunkline.engine.base import Job, Output
from trunkline.errors import ProjectError
from trunkline.model.branch import BranchSpec, read_spec, scope_depths
from trunkline.pipeline.assemble import inputs_of
from trunkline.pipeline.project import Project
from trunkline.project.data import TaskData

SCOPE = {"enabled": True, "false_alarms": 0.2}
EXITS = {"enabled": True, "depths": [1], "epochs": 1.0, "min_steps": 12, "batch_size": 8}
TASKS: dict[str, dict[str, Any]] = {
    "intent": {**SORTS["intent"], "scope": SCOPE, "exits": EXITS},
    "tone": {**SORTS["tone"], "scope": SCOPE},
    "same": {"kind": "relevance", "pair": "separate", "scope": SCOPE},
    "slots": SORTS["slots"],
}


@pytest.fixture(scope="session")
def finished_scope(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A project after its first run: tasks with scope and exits, with scope alone, of two texts, and without."""
    root = write_project(tmp_path_factory.mktemp("finished") / "small", TASKS, encoder=encoder)
    Project.load(root).run()
    return root


@pytest.fixture
def left(tmp_path: Path, finished_scope: Path) -> Path:
    """A copy of that project, times and all."""
    return Path(shutil.copytree(finished_scope, tmp_path / "left"))


def files(root: Path) -> dict[str, Path]:
    project = Project.load(root)
    folder = project.releases.folder(project.released())
    return {task: folder / entry.file for task, entry in verify(folder).branches.items()}


def spec(root: Path, task: str) -> BranchSpec:
    return read_spec(files(root)[task])


def rows(project: Project, task: str, split: str = "test") -> Any:
    data = TaskData.load(project.store.get(project.graph.keys[f"{task}/prepare"]).folder / "data")
    return inputs_of(data.fit.take(data.valid) if split == "valid" else data.reported[split])


def outputs(project: Project, task: str, split: str, speed: float = 0.0) -> list[Output]:
    found, _ = project.bundle().engine.run([Job(row, (task,), ((task, speed),)) for row in rows(project, task, split)])
    return [one[task] for one in found if isinstance(one[task], Output)]


def run(root: Path) -> Heard:
    heard = Heard()
    Project.load(root).run(show=heard)
    return heard


@pytest.mark.parametrize("task", ["intent", "tone", "same"])
def test_the_released_branch_flags_as_few_rows_of_valid_as_was_asked_and_the_report_says_how_many(
    left: Path, task: str
) -> None:
    found, project = spec(left, task), Project.load(left)
    assert found.scope is not None
    assert found.scope.false_alarms == SCOPE["false_alarms"]
    assert [one.depth for one in found.scope.depths] == scope_depths(found)
    about = project.report()["tasks"][task]["scope"]
    assert about["asked"] == SCOPE["false_alarms"]
    for split, share in (("valid", about["valid"]), ("test", about["reported"])):
        flags = [output.scope > 0 for output in outputs(project, task, split) if output.scope is not None]
        assert len(flags) == len(rows(project, task, split))
        # States of training were kept in 16 bits, so that a row on the verge may fall to either side.
        assert np.mean(flags) == pytest.approx(share, abs=1.01 / len(flags))
    assert 0 < about["valid"] <= SCOPE["false_alarms"]


def test_a_task_that_does_not_ask_has_none(left: Path) -> None:
    assert spec(left, "slots").scope is None
    assert Project.load(left).report()["tasks"]["slots"]["scope"] is None
    assert all(output.scope is None for output in outputs(Project.load(left), "slots", "test"))


def test_an_exit_leaves_to_the_head_what_is_out_of_scope_there(left: Path) -> None:
    project = Project.load(left)
    found, depth = outputs(project, "intent", "test", 1.0), spec(left, "intent").depth
    assert {output.depth for output in found} == {EXITS["depths"][0], depth}
    assert all(output.depth == depth for output in found if output.scope is not None and output.scope > 0)
    [chosen] = [c["id"] for c in project.report()["tasks"]["intent"]["candidates"] if c["chosen"]]
    points = project.store.get(project.graph.keys[f"{chosen}/speeds"]).result["speeds"]["test"]
    assert np.mean([output.depth for output in found]) == pytest.approx(points[-1]["layers"], abs=1.01 / len(found))


def test_a_second_run_fits_nothing_again_and_another_rate_refits_that_alone(left: Path) -> None:
    before = {task: file.read_bytes() for task, file in files(left).items()}
    assert run(left).stages == []
    write_task(left, "tone", **{**TASKS["tone"], "scope": {**SCOPE, "false_alarms": 0.3}})
    plan = Project.load(left).plan()
    assert (plan.steps, plan.scope, plan.exits, plan.merges) == ([], ("tone",), (), True)
    assert "scope of the chosen branch (tone)" in CliRunner().invoke(app, ["-C", str(left), "plan"]).output
    [stage] = run(left).stages
    assert stage.endswith("/scope")
    after = {task: file.read_bytes() for task, file in files(left).items()}
    assert {task for task in TASKS if before[task] != after[task]} == {"tone"}
    write_task(left, "intent", **{**TASKS["intent"], "scope": {**SCOPE, "false_alarms": 0.3}})
    assert [stage.rsplit("/", 1)[1] for stage in run(left).stages] == ["scope", "speeds"]  # its exits are trained


def test_a_scope_that_gc_freed_is_fitted_again_where_a_report_tells_of_it(left: Path) -> None:
    write_task(left, "intent", **{**TASKS["intent"], "scope": {**SCOPE, "false_alarms": 0.3}})
    Project.load(left).gc(keep=1)
    write_task(left, "intent", **TASKS["intent"])
    write_task(left, "tone", **{**TASKS["tone"], "scope": {**SCOPE, "false_alarms": 0.3}})
    ran = [(stage.split("/")[0], stage.rsplit("/")[-1]) for stage in run(left).stages]
    assert ran == [("intent", "scope"), ("tone", "scope")]
    tasks = Project.load(left).report()["tasks"]
    assert [tasks[name]["scope"]["asked"] for name in ("intent", "tone")] == [SCOPE["false_alarms"], 0.3]


def test_projects_that_do_not_ask_keep_their_stages_and_their_bytes(left: Path) -> None:
    """A store from before there was any scope is used on as it is."""
    asking = Project.load(left).graph
    for task in TASKS:
        write_task(left, task, **{name: table for name, table in TASKS[task].items() if name != "scope"})
    plain = Project.load(left).graph
    assert {id: asking.keys[id] for id in asking.stages} == {id: plain.keys[id] for id in plain.stages}
    assert not any("scope" in json.dumps([stage.fields, stage.id]) for stage in plain.all.values())
    run(left)
    for task, file in files(left).items():
        header = file.read_bytes()[: 1 << 16]
        assert spec(left, task).scope is None
        assert b'\\"scope\\"' not in header
        assert b"scopes." not in header


def test_more_rarely_than_valid_can_tell_is_refused_before_anything_is_trained(left: Path) -> None:
    write_task(left, "tone", **{**TASKS["tone"], "scope": {**SCOPE, "false_alarms": 0.01}})
    for doing in (Project.load(left).check, Project.load(left).run):
        with pytest.raises(ProjectError, match=r"scope\.false_alarms: valid has \d+ rows"):
            doing()
