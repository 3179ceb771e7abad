"""Exits from project files to a release: who gets them, what runs again, what is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import SORTS, Heard, write_project, write_task
from safetensors import safe_open
from typer.testing import CliRunner

from trunkline.bundle import verify
from trunkline.cli import app
from trunkline.engine import Input
from trunkline.engine.base import Job, Output
from trunkline.errors import ProjectError
from trunkline.model.branch import BranchSpec, read_spec
from trunkline.pipeline.assemble import inputs_of
from trunkline.pipeline.checking import check
from trunkline.pipeline.project import Project
from trunkline.project.data import TaskData
from trunkline.training.leaving import KEEPS, SPEEDS

EXITS = {"enabled": True, "depths": [1], "forms": ["linear"], "epochs": 1.0, "min_steps": 12, "batch_size": 8}
"""At a depth that every candidate can have, and of one form, so that no measured time decides."""
DEPTHS = {"intent": [1], "slots": [1], "urgency": [1, 2]}
"""Rows of a regression leave where two exits agree."""
THREE = {name: SORTS[name] for name in DEPTHS} | {"urgency": {**SORTS["urgency"], "distill": {"layers": []}}}
KNOWN = "only rows that the task has already"
INPUTS = [Input("play some music"), Input("will it rain in the city tomorrow"), Input("set an alarm", "wake me please")]


@pytest.fixture(scope="session")
def finished_exits(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A project after its first run, every task with exits."""
    tasks = {name: {**sort, "exits": {**EXITS, "depths": DEPTHS[name]}} for name, sort in THREE.items()}
    root = write_project(tmp_path_factory.mktemp("finished") / "small", tasks, encoder=encoder)
    Project.load(root).run()
    return root


@pytest.fixture
def left(tmp_path: Path, finished_exits: Path) -> Path:
    """A copy of the finished project with exits, times and all."""
    return Path(shutil.copytree(finished_exits, tmp_path / "left"))


def with_exits(root: Path, task: str, **changes: Any) -> None:
    write_task(root, task, **THREE[task], exits={**EXITS, "depths": DEPTHS[task], **changes})


def with_unlabelled(root: Path, task: str, *, fresh: int, **keys: Any) -> None:
    """Exits, and a file with the rows of train and test, and so many new ones twice, all without labels."""
    exits = {"exits": {**EXITS, "depths": DEPTHS[task]}, **keys}
    write_task(root, task, **THREE[task], data={"unlabelled": ["data/more.jsonl"]}, **exits)
    known = [line for file in (f"{task}.jsonl", f"{task}-test.jsonl") for line in read_lines(root / "data" / file)]
    new = [{"text": (text := f"play song {'very ' * i}well"), "tokens": text.split()} for i in range(fresh)]
    rows = [{key: row[key] for key in ("text", "tokens") if key in row} for row in (*known, *new, *new)]
    (root / "data" / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def files(root: Path) -> dict[str, Path]:
    """The live release's branch file of each task."""
    project = Project.load(root)
    folder = project.releases.folder(project.released())
    return {task: folder / entry.file for task, entry in verify(folder).branches.items()}


def contents(root: Path) -> dict[str, bytes]:
    return {task: file.read_bytes() for task, file in files(root).items()}


def spec(root: Path, task: str) -> BranchSpec:
    return read_spec(files(root)[task])


def weights(file: Path) -> dict[str, bytes]:
    with safe_open(file, framework="np") as tensors:
        return {name: tensors.get_tensor(name).tobytes() for name in tensors.keys()}  # noqa: SIM118 - not a mapping


def own_weights(file: Path) -> dict[str, bytes]:
    """Those of the branch without its exits."""
    return {name: values for name, values in weights(file).items() if not name.startswith("exits.")}


def candidate(root: Path, task: str) -> Path:
    """The branch file of the candidate that is live."""
    project = Project.load(root)
    [chosen] = [c for c in project.report()["tasks"][task]["candidates"] if c["chosen"]]
    return project.store.get(project.graph.keys[chosen["id"]]).folder / "branch.safetensors"


def run(root: Path, *tasks: str) -> tuple[Heard, Project]:
    heard = Heard()
    Project.load(root).run(list(tasks) or None, show=heard)
    return heard, Project.load(root)


@pytest.mark.parametrize("task", THREE)
def test_the_chosen_branch_is_released_with_exits_and_what_its_speeds_come_to(left: Path, task: str) -> None:
    found = spec(left, task)
    assert [one.depth for one in found.exits] == DEPTHS[task]
    assert [point.speed for point in found.speeds] == list(SPEEDS)
    assert (found.speeds[0].layers, found.speeds[0].time) == (found.depth, 1.0)
    plain = candidate(left, task)
    assert read_spec(plain).exits == ()
    assert own_weights(files(left)[task]) == own_weights(plain)


@pytest.mark.parametrize("task", THREE)
def test_the_report_shows_each_keep_with_its_speed_and_speed_0_as_it_was_measured(left: Path, task: str) -> None:
    about = Project.load(left).report()["tasks"][task]
    exits, points = about["exits"], {point.speed: point for point in spec(left, task).speeds}
    assert [row["keep"] for row in exits["speeds"]] == [None, *KEEPS]
    assert exits["kept"] == [{"depth": one.depth, "form": one.form.value} for one in spec(left, task).exits]
    for row in exits["speeds"]:
        assert row["valid"] == points[row["speed"]].quality
        assert row["keep"] is None or row["valid"] >= row["keep"] * points[0].quality
    [chosen] = [c for c in about["candidates"] if c["chosen"]]
    speed_0 = [exits["speeds"][0][split] for split in ("valid", "reported")]
    assert speed_0 == pytest.approx([chosen["valid"], chosen["reported"]], abs=1e-4)
    assert (exits["speeds"][0]["layers"], exits["speeds"][0]["time"]) == (1.0, 1.0)


@pytest.mark.parametrize("task", THREE)
def test_a_served_bundle_lets_rows_leave_where_the_table_says(left: Path, task: str) -> None:
    project = Project.load(left)
    about = project.report()["tasks"][task]
    [chosen] = [c["id"] for c in about["candidates"] if c["chosen"]]
    points = project.store.get(project.graph.keys[f"{chosen}/speeds"]).result["speeds"]["test"]
    data = TaskData.load(project.store.get(project.graph.keys[f"{task}/prepare"]).folder / "data")
    rows, engine = inputs_of(data.reported["test"]), project.bundle().engine
    for point in points[::5]:
        found, _ = engine.run([Job(row, (task,), ((task, point["speed"]),)) for row in rows])
        depths = [one[task].depth for one in found if isinstance(one[task], Output)]
        assert len(depths) == len(rows)
        # States of training were kept in 16 bits, so that a row on the verge may fall to either side.
        assert np.mean(depths) == pytest.approx(point["layers"], abs=1.01 * spec(left, task).depth / len(rows))


def test_a_second_run_trains_no_exit_again(left: Path) -> None:
    before = contents(left)
    plan = Project.load(left).plan()
    assert (plan.steps, plan.exits, plan.merges) == ([], (), False)
    heard, _ = run(left)
    assert heard.stages == []
    assert contents(left) == before


def test_without_them_a_branch_file_has_none(done: Path) -> None:
    for task in THREE:
        assert (spec(done, task).exits, spec(done, task).speeds) == ((), ())
    assert Project.load(done).graph.finishing == {}


def test_exits_of_one_task_leave_all_else_as_it_is(done: Path) -> None:
    before, plain = contents(done), files(done)
    answers = Project.load(done).bundle().logits(INPUTS)
    with_exits(done, "slots")
    plan = Project.load(done).plan()
    assert (plan.steps, plan.exits, plan.merges) == ([], ("slots",), True)
    said = CliRunner().invoke(app, ["-C", str(done), "plan"]).output
    assert "every stage is done; then select, exits of the chosen branch (slots), merge" in " ".join(said.split())
    heard, project = run(done)
    trained, chosen = heard.stages
    assert trained.startswith("slots/")
    assert trained.endswith("/s13/exits")
    assert chosen == trained.removesuffix("exits") + "speeds"
    measured = [line for line in heard.said if "shapes" in line]
    shapes = 4 if spec(done, "slots").layers > 1 else 2  # with exits between own layers
    assert measured == [f"measuring {shapes} shapes at batch {batch} x 8 tokens" for batch in (2, 1)]
    after = contents(done)
    assert {task for task in before if after[task] != before[task]} == {"slots"}
    assert own_weights(files(done)["slots"]) == own_weights(plain["slots"])
    for task, rows in project.bundle().logits(INPUTS).items():
        assert all(np.array_equal(a, b) for a, b in zip(rows, answers[task], strict=True)), task
    assert project.released().note == "slots"


def test_without_them_again_the_branch_is_the_very_file_it_was(done: Path) -> None:
    before = contents(done)
    with_exits(done, "intent")
    run(done)
    assert contents(done) != before
    write_task(done, "intent", **SORTS["intent"])
    heard, _ = run(done)
    assert heard.stages == []
    assert contents(done) == before


class Why(Heard):
    """Writes down why a stage begins, too, and may stop at one."""

    def __init__(self, stop: str = "") -> None:
        super().__init__()
        self.why: dict[str, str] = {}
        self.stop = stop

    def begin(self, name: str, number: int, total: int, why: str) -> None:
        super().begin(name, number, total, why)
        self.why[name] = why

    def advance(self, position: Any) -> None:
        here = bool(self.stop) and self.stages[-1].endswith(self.stop)
        if here and position.step == 20:  # of 40, after the first evaluation
            raise KeyboardInterrupt


def test_other_settings_of_exits_train_them_anew_and_nothing_else(left: Path) -> None:
    before = contents(left)
    with_exits(left, "urgency", batch_size=4)
    heard = Why()
    assert Project.load(left).run(show=heard).ran == 2
    trained, chosen = heard.why
    assert heard.why == {trained: "schedule.batch_size 8 -> 4", chosen: f"follows {trained}"}
    after = contents(left)
    assert {task for task in before if after[task] != before[task]} == {"urgency"}


def test_another_rule_chooses_among_the_exits_that_there_are(left: Path) -> None:
    before, plain = contents(left), candidate(left, "urgency")
    trained, keys = weights(files(left)["urgency"]), Project.load(left).graph.keys
    with_exits(left, "urgency", rule="patience")
    plan = Project.load(left).plan()
    assert (plan.steps, plan.exits, plan.merges) == ([], ("urgency",), True)
    heard = Why()
    assert Project.load(left).run(show=heard).ran == 1
    [(chosen, why)] = heard.why.items()
    assert chosen.endswith("/s13/speeds")
    assert why == 'rule "entropy" -> "patience"'
    after = contents(left)
    assert {task for task in before if after[task] != before[task]} == {"urgency"}
    assert spec(left, "urgency").rule == "patience"
    assert candidate(left, "urgency") == plain
    assert weights(files(left)["urgency"]) == trained
    assert not Project.load(left).plan().merges
    Project.load(left).gc(keep=1)
    store = Project.load(left).store
    assert keys[chosen] not in store  # what the other rule chose
    assert keys[chosen.replace("/speeds", "/exits")] in store


def test_another_candidate_gets_exits_of_its_own_before_it_is_released(left: Path) -> None:
    plain = candidate(left, "intent")
    write_task(left, "intent", **SORTS["intent"], exits=EXITS, tune={"layers": [3]}, distill={"layers": []})
    plan = Project.load(left).plan()
    assert [step.stage.id for step in plan.steps] == ["intent/tune/single/L3/s13"]
    assert plan.exits == ("intent",)
    heard, _ = run(left)
    tuned = "intent/tune/single/L3/s13"
    assert heard.stages == [tuned, f"{tuned}/exits", f"{tuned}/speeds"]
    assert candidate(left, "intent") != plain
    found = spec(left, "intent")
    assert (found.fork, found.layers) == (0, 3)
    assert [one.depth for one in found.exits] == [1]  # between its own layers, as in FastBERT
    assert own_weights(files(left)["intent"]) == own_weights(candidate(left, "intent"))


def test_a_killed_stage_of_exits_is_resumed_and_no_other_repeated(done: Path) -> None:
    with_exits(done, "intent", min_steps=40)
    with pytest.raises(KeyboardInterrupt):
        Project.load(done).run(show=Why(stop="/exits"))
    assert Project.load(done).released().id == "r1"
    heard = Why()
    Project.load(done).run(show=heard)
    assert list(heard.why.values()) == ["its branch was chosen; resumes", "its branch was chosen"]
    assert [one.depth for one in spec(done, "intent").exits] == [1]


def test_a_run_of_one_task_leaves_other_settings_of_exits_for_their_own_run(left: Path) -> None:
    before = contents(left)
    with_exits(left, "urgency", rule="patience")
    write_task(left, "intent", **SORTS["intent"], exits=EXITS, seed=3)
    heard, project = run(left, "intent")
    assert {stage.split("/")[0] for stage in heard.stages} == {"intent"}
    after = contents(left)
    assert {task for task in before if after[task] != before[task]} == {"intent"}
    assert project.plan().exits == ("urgency",)
    heard, _ = run(left)
    assert [stage.split("/")[0] for stage in heard.stages] == ["urgency"]
    final = contents(left)
    assert {task for task in before if final[task] != after[task]} == {"urgency"}


def test_what_is_refused_trains_no_exits(done: Path) -> None:
    with_exits(done, "intent")
    heard = Heard()
    result = Project.load(done).run(show=heard, agree=lambda _: False)
    assert (heard.stages, result.ran) == ([], 0)
    assert spec(done, "intent").exits == ()


def test_gc_keeps_the_exits_that_are_live_whatever_the_file_says_now(left: Path) -> None:
    before = contents(left)
    with_exits(left, "slots", batch_size=4)
    Project.load(left).gc(keep=1)
    write_task(left, "intent", **SORTS["intent"], exits=EXITS, seed=3)
    run(left, "intent")
    assert contents(left)["slots"] == before["slots"]
    with_exits(left, "slots")
    heard, _ = run(left)
    assert heard.stages == []


def test_a_stage_of_exits_can_be_asked_for_by_name(fresh: Path) -> None:
    with_exits(fresh, "intent")
    heard = Heard()
    Project.load(fresh).train(["intent/tune/single/L1/s13/exits"], show=heard)
    assert heard.stages == ["intent/prepare", "intent/tune/single/L1/s13", "intent/tune/single/L1/s13/exits"]


@pytest.mark.parametrize("task", THREE)
def test_exits_learn_from_texts_without_labels_that_no_row_of_the_task_holds(left: Path, task: str) -> None:
    before, plain = contents(left), candidate(left, task)
    with_unlabelled(left, task, fresh=5)
    heard = Why()
    assert Project.load(left).run(show=heard).ran == 2
    trained, chosen = heard.why
    assert heard.why == {trained: "other data.unlabelled", chosen: f"follows {trained}"}
    project = Project.load(left)
    [chosen] = [c["id"] for c in project.report()["tasks"][task]["candidates"] if c["chosen"]]
    assert project.store.get(project.graph.keys[f"{chosen}/exits"]).result["unlabelled"] == 5
    after = contents(left)
    assert {name for name in before if after[name] != before[name]} == {task}
    assert candidate(left, task) == plain


@pytest.mark.parametrize(
    ("keys", "line", "where", "what"),
    [
        ({}, None, "data.unlabelled", "no such file"),
        ({}, '{"words": "play"}', 'column "text"', "no such column (data.columns.text)"),
        ({}, '{"text": " "}', "line 1", "empty text"),
        ({}, KNOWN, "data.unlabelled", "nothing to learn from"),
        ({"exits": {"enabled": False}}, '{"text": "play"}', "data.unlabelled", "nothing reads it"),
    ],
)
def test_texts_without_labels_that_cannot_be_used_are_named(
    fresh: Path, keys: dict[str, Any], line: str | None, where: str, what: str
) -> None:
    with_unlabelled(fresh, "intent", fresh=0, **keys)
    if line is None:
        (fresh / "data" / "more.jsonl").unlink()
    elif line != KNOWN:
        (fresh / "data" / "more.jsonl").write_text(line + "\n")
    for ask in (check, lambda root: Project.load(root).train(["intent/prepare"], show=Heard())):
        with pytest.raises(ProjectError) as caught:
            ask(fresh)
        assert [(problem.where, problem.message) for problem in caught.value.problems] == [(where, what)]


def test_depths_are_found_by_time_where_none_are_given(done: Path) -> None:
    with_exits(done, "intent", depths=[], forms="linear")
    run(done)
    found, about = spec(done, "intent"), Project.load(done).report()["tasks"]["intent"]["exits"]
    assert [one.depth for one in found.exits] == [one["depth"] for one in about["kept"]]
    assert len(found.speeds) == (len(SPEEDS) if found.exits else 0)
    assert len(about["speeds"]) == (1 + len(KEEPS) if found.exits else 0)


def test_a_depth_that_no_branch_of_the_encoder_reaches_is_refused(done: Path) -> None:
    with_exits(done, "intent", depths=[1, 3])
    with pytest.raises(ProjectError) as caught:
        Project.load(done).plan()
    [problem] = caught.value.problems
    assert (problem.file, problem.where, problem.found) == ("tasks/intent.toml", "exits.depths", "3")
    assert (problem.allowed or "").startswith("below 3")


def test_an_exit_by_itself_is_none_where_rows_leave_when_two_agree(done: Path) -> None:
    write_task(done, "urgency", **THREE["urgency"], exits={**EXITS, "depths": [1]})
    heard, _ = run(done)
    assert "urgency: no exits: rows leave where two exits agree, and there is room for one" in heard.said
    assert spec(done, "urgency").exits == ()


def test_measuring_again_chooses_exits_anew_and_trains_none(left: Path) -> None:
    heard = Heard()
    Project.load(left).run(["intent"], remeasure=True, show=heard)
    [chosen] = heard.stages
    assert chosen.startswith("intent/")
    assert chosen.endswith("/s13/speeds")
