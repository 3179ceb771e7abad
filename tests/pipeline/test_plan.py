"""What a plan lists and why, and what a stage's key depends on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from projects import SORTS, as_toml, write_settings, write_task

from trunkline.errors import ProjectError
from trunkline.pipeline.plan import record
from trunkline.pipeline.project import Project

Planned = Callable[[Path], dict[str, str]]


def keys(root: Path) -> dict[str, str]:
    return Project.load(root).graph.keys


def edit(root: Path, task: str, old: str, new: str) -> None:
    file = root / "tasks" / f"{task}.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_first_plan_lists_every_stage_after_those_it_needs(fresh: Path) -> None:
    project = Project.load(fresh)
    plan = project.plan()
    assert plan.merges
    assert {step.why for step in plan.steps} == {"first run"}
    assert [step.stage.id for step in plan.steps if step.stage.task == "intent"] == [
        "intent/prepare",
        "intent/full/single/s13",
        "intent/tune/single/L1/s13",
        "intent/tune/single/L2/s13",
        "intent/distill/single/L2-l1/teacher/self/s13",
    ]
    seen: set[str] = set()
    for step in plan.steps:
        assert set(step.stage.needs) <= seen
        seen.add(step.stage.id)


def test_after_a_run_nothing_is_planned(done: Path) -> None:
    plan = Project.load(done).plan()
    assert (plan.steps, plan.merges, plan.removed, plan.done) == ([], False, (), 15)


def test_comments_order_of_keys_and_times_change_no_key(done: Path, planned: Planned) -> None:
    before = keys(done)
    file = done / "tasks" / "intent.toml"
    head, *tables = file.read_text().split("\n[")
    file.write_text("# a comment\n" + "\n[".join([head, *reversed(tables)]))
    (done / "project.toml").write_text("# another\n" + (done / "project.toml").read_text())
    for path in done.rglob("*.jsonl"):
        os.utime(path, (1, 1))
    assert keys(done) == before
    assert planned(done) == {}


def test_fields_that_a_stage_does_not_read_are_not_in_its_key(done: Path) -> None:
    before = keys(done)
    write_settings(
        done,
        encoder=_encoder(done),
        name="renamed",
        budget={"max_cost": 0.7},
        store={"max_states_gb": 2.0},
        search={"marginal_gain": 0.1},
    )
    assert keys(done) == before


def test_a_schedule_is_read_by_its_own_stages_only(done: Path) -> None:
    before = keys(done)
    write_task(done, "intent", **SORTS["intent"], distill={"temperature": 4.0})
    assert changed(before, keys(done)) == {"intent/distill/single/L2-l1/teacher/self/s13"}
    write_task(done, "intent", **SORTS["intent"], full={"epochs": 2.0})
    assert changed(before, keys(done)) == {"intent/full/single/s13"}


def test_data_reaches_every_stage_of_its_task_and_of_no_other(done: Path) -> None:
    before = keys(done)
    file = done / "data" / "intent.jsonl"
    file.write_text(file.read_text() + '{"text": "one more song", "label": "music"}\n')
    assert changed(before, keys(done)) == {id for id in before if id.startswith("intent/")}


def test_the_encoder_and_the_seed_reach_all_training(done: Path) -> None:
    before = keys(done)
    other = shutil.copytree(_encoder(done), done / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    write_settings(done, encoder=str(other))
    assert changed(before, keys(done)) == {id for id in before if not id.endswith("/prepare")}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("layers = [1, 2]", "layers = [1, 3]", {"layers 2 -> 3", "from 2 -> 3"}),
        ("min_steps = 6", "min_steps = 7", {"schedule.min_steps 6 -> 7"}),
        ("max_tokens = 16", "max_tokens = 12", {"max_tokens 16 -> 12"}),
    ],
)
def test_a_plan_says_which_field_changed(done: Path, planned: Planned, old: str, new: str, why: set[str]) -> None:
    edit(done, "intent", old, new)
    found = planned(done)
    assert all(id.startswith("intent/") for id in found)
    assert set(found.values()) - {id for id in found.values() if id.startswith("follows")} == why


def test_a_plan_says_that_data_changed(done: Path, planned: Planned) -> None:
    file = done / "data" / "intent.jsonl"
    file.write_text(file.read_text() + '{"text": "one more song", "label": "music"}\n')
    found = planned(done)
    assert found.pop("intent/prepare") == "train data changed"
    assert all(why.startswith("follows intent/") for why in found.values())


def test_a_set_of_the_hub_is_keyed_by_its_commit(done: Path, planned: Planned) -> None:
    def at(commit: str) -> dict[str, str]:
        data = {"train": f"hub:owner/messages@{commit * 40}#train"}
        (done / "tasks" / "tone.toml").write_text(as_toml({"kind": "classification", "pair": "joint", "data": data}))
        return {id: key for id, key in keys(done).items() if id.startswith("tone/")}

    before = at("1")
    assert changed(before, at("2")) == set(before)
    assert at("1") == before
    project = Project.load(done)
    record(project.graph, project.store, ["tone"], ["intent", "slots", "urgency"])
    at("2")
    assert planned(done)["tone/prepare"] == "train data changed on the hub, 1111111 -> 2222222"


def test_a_plan_of_one_task_needs_no_data_of_others(done: Path) -> None:
    edit(done, "intent", "min_steps = 6", "min_steps = 7")
    whole = Project.load(done).plan(["intent"])
    (done / "data" / "slots.jsonl").unlink()
    plan = Project.load(done).plan(["intent"])
    assert {step.stage.task for step in plan.steps} == {"intent"}
    assert (plan.steps, plan.merges, plan.removed) == (whole.steps, True, ())
    for tasks in (["slots"], ["intent", "slots"], None):
        with pytest.raises(ProjectError) as caught:
            Project.load(done).plan(tasks)
        [problem] = caught.value.problems
        assert (problem.file, problem.where, problem.found) == ("tasks/slots.toml", "data.train", '"data/slots.jsonl"')


def test_a_plan_says_which_task_is_new_or_gone(done: Path, planned: Planned) -> None:
    write_task(done, "tone", **SORTS["tone"])
    assert set(planned(done).values()) == {"new task"}
    (done / "tasks" / "tone.toml").unlink()
    (done / "tasks" / "slots.toml").unlink()
    plan = Project.load(done).plan()
    assert (plan.steps, plan.removed, plan.merges) == ([], ("slots",), True)


def test_a_stage_that_is_gone_from_the_store_is_not_finished(done: Path, planned: Planned) -> None:
    shutil.rmtree(done / ".trunkline" / "stages" / keys(done)["slots/full/single/s13"])
    assert planned(done) == {"slots/full/single/s13": "not finished"}


def test_running_one_task_keeps_the_reasons_of_the_others(done: Path, planned: Planned) -> None:
    edit(done, "intent", "min_steps = 6", "min_steps = 7")
    edit(done, "urgency", "min_steps = 6", "min_steps = 8")
    Project.load(done).run(["intent"])
    assert set(planned(done).values()) - {"follows urgency/tune/single/L2/s13"} == {"schedule.min_steps 6 -> 8"}


def test_a_plan_says_what_a_killed_run_left_to_resume(fresh: Path) -> None:
    class Killed(Exception):
        pass

    class Show:
        stage = ""

        def say(self, text: str) -> None: ...
        def done(self, name: str, summary: str, seconds: float) -> None: ...
        def begin(self, name: str, number: int, total: int, why: str) -> None:
            self.stage = name

        def advance(self, position: object) -> None:
            # Evaluations come at steps 2, 3, 5 and 6, and the checkpoint is written after the report.
            if self.stage == "intent/tune/single/L1/s13" and getattr(position, "step", 0) == 3:
                raise Killed

    with pytest.raises(Killed):
        Project.load(fresh).run(show=Show())
    plan = Project.load(fresh).plan()
    assert [step.stage.id for step in plan.steps if step.resumes] == ["intent/tune/single/L1/s13"]
    assert plan.done == 2
    assert Project.load(fresh).run().ran == 13


def test_layers_that_the_encoder_does_not_have_are_refused(done: Path) -> None:
    edit(done, "intent", "layers = [1, 2]", "layers = [1, 4]")
    with pytest.raises(ProjectError, match=r"(?s)intent\.toml: tune\.layers.*found: +4.*1 to 3"):
        Project.load(done).plan()


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {id for id in after if before.get(id) != after[id]}


def _encoder(root: Path) -> str:
    return Project.load(root).files.settings.encoder
