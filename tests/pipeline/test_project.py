"""Runs from project files to releases: what is repeated, what is left alone, what is selected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import SORTS, Heard, write_project, write_settings, write_task
from tiny import tiny_encoder

from trunkline.atomic import InUse
from trunkline.bundle import verify
from trunkline.engine import Input
from trunkline.errors import ProjectError, UsageError
from trunkline.pipeline.project import Project

Planned = Callable[[Path], dict[str, str]]
INPUTS = [Input("play some music"), Input("will it rain in the city tomorrow"), Input("set an alarm", "wake me please")]
Files = dict[str, bytes]


def branches(root: Path) -> Files:
    """Bytes of the live release's branch file of each task."""
    project = Project.load(root)
    folder = project.releases.folder(project.released())
    return {task: (folder / entry.file).read_bytes() for task, entry in verify(folder).branches.items()}


def answers(root: Path, tasks: list[str]) -> dict[str, list[Any]]:
    return Project.load(root).bundle().logits(INPUTS, tasks)


def stages(root: Path) -> dict[str, tuple[int, int]]:
    """What changes where a stage is done again."""
    folders = (root / ".trunkline" / "stages").iterdir()
    return {folder.name: (folder.stat().st_ino, folder.stat().st_mtime_ns) for folder in folders}


def test_a_first_run_makes_a_release_that_answers_every_task(done: Path) -> None:
    project = Project.load(done)
    assert project.released().id == "r1"
    assert set(project.bundle().tasks) == {"intent", "slots", "urgency"}
    (found,) = project.bundle().predict(["play some music"])
    assert all(not hasattr(answer, "message") for answer in found.values())
    assert (done / "report.html").read_text().lstrip().lower().startswith("<!doctype html")


def test_a_second_run_runs_no_stage_and_keeps_the_release(done: Path) -> None:
    before = stages(done)
    result = Project.load(done).run()
    assert (result.ran, result.release and result.release.id) == (0, "r1")
    assert result.report["release"]["id"] == "r1"
    assert stages(done) == before


def test_editing_one_task_runs_only_its_stages(done: Path) -> None:
    before = stages(done)
    write_task(done, "urgency", **SORTS["urgency"], tune={"learning_rate": 2e-3})
    heard = Heard()
    Project.load(done).run(show=heard)
    assert heard.stages == [
        "urgency/tune/single/L1/s13",
        "urgency/tune/single/L2/s13",
        "urgency/distill/single/L2-l1/teacher/self/s13",
    ]
    assert before.items() <= stages(done).items()


@pytest.mark.parametrize("change", ["add", "replace", "remove"])
def test_isolation_other_branches_are_byte_identical_and_answers_bit_identical(done: Path, change: str) -> None:
    others = ["intent", "urgency"] if change != "add" else ["intent", "slots", "urgency"]
    files, logits = branches(done), answers(done, others)
    if change == "add":
        write_task(done, "same", **SORTS["same"])
    elif change == "replace":
        write_task(done, "slots", **SORTS["slots"], seed=7)
    else:
        (done / "tasks" / "slots.toml").unlink()
    result = Project.load(done).run()
    assert result.release is not None
    assert result.release.id == "r2"
    after = branches(done)
    expected = {"add": {*files, "same"}, "replace": set(files), "remove": set(others)}[change]
    assert set(after) == expected
    assert all(after[task] == files[task] for task in others)
    assert change != "replace" or after["slots"] != files["slots"]
    for task, rows in answers(done, others).items():
        assert all(np.array_equal(a, b) for a, b in zip(rows, logits[task], strict=True)), task
    if change == "remove":
        with pytest.raises(UsageError, match="slots"):
            answers(done, ["slots"])


def test_a_run_of_one_task_touches_only_it(done: Path) -> None:
    files = branches(done)
    for task in ("intent", "urgency"):
        write_task(done, task, **SORTS[task], seed=3)
    heard = Heard()
    result = Project.load(done).run(["intent"], show=heard)
    assert {stage.split("/")[0] for stage in heard.stages} == {"intent"}
    after = branches(done)
    assert {task for task in files if after[task] != files[task]} == {"intent"}
    assert set(after) == set(files)
    assert result.release is not None
    assert Project.load(done).plan().steps
    Project.load(done).run()
    final = branches(done)
    assert {task for task in after if final[task] != after[task]} == {"urgency"}


def test_a_first_run_of_one_task_releases_it_alone_and_the_next_adds_the_rest(fresh: Path) -> None:
    Project.load(fresh).run(["intent"])
    first = branches(fresh)
    assert set(first) == {"intent"}
    Project.load(fresh).run()
    assert set(branches(fresh)) == {"intent", "slots", "urgency"}
    assert branches(fresh)["intent"] == first["intent"]


def test_a_run_of_one_task_needs_no_data_of_others_and_leaves_them_as_released(done: Path, planned: Planned) -> None:
    before = branches(done)
    write_task(done, "slots", **SORTS["slots"], tune={"min_steps": 7})
    write_task(done, "intent", **SORTS["intent"], seed=3)
    shutil.move(done / "data", done / "elsewhere")
    (done / "data").mkdir()
    for file in ("intent.jsonl", "intent-test.jsonl"):
        shutil.copy2(done / "elsewhere" / file, done / "data" / file)
    heard = Heard()
    result = Project.load(done).run(["intent"], show=heard)
    assert {stage.split("/")[0] for stage in heard.stages} == {"intent"}
    assert [line.split(":")[0] for line in heard.said if "not here" in line] == ["slots", "urgency"]
    assert set(result.report["tasks"]) == {"intent"}
    after = branches(done)
    assert {task for task in before if after[task] != before[task]} == {"intent"}
    assert Project.load(done).evaluate().keys() == before.keys()
    with pytest.raises(ProjectError, match=r"(?s)tasks/slots\.toml.*tasks/urgency\.toml"):
        Project.load(done).run()
    shutil.rmtree(done / "data")
    shutil.move(done / "elsewhere", done / "data")
    assert planned(done)["slots/tune/single/L1/s13"] == "schedule.min_steps 6 -> 7"
    Project.load(done).run()
    final = branches(done)
    assert {task for task in final if final[task] != after[task]} <= {"slots"}


def test_a_task_whose_data_were_away_is_chosen_anew_under_another_budget(done: Path) -> None:
    write_settings(done, encoder=Project.load(done).files.settings.encoder, budget={"max_cost": 1.0})
    for task in ("slots", "urgency"):
        (done / "data" / f"{task}.jsonl").rename(done / f"{task}.jsonl")
    Project.load(done).run(["intent"])
    for task in ("slots", "urgency"):
        (done / f"{task}.jsonl").rename(done / "data" / f"{task}.jsonl")
    results = [Project.load(done).run(), Project.load(done).run(reselect=True)]
    assert [result.ran for result in results] == [0, 0]
    chosen, anew = (
        {task: about["chosen"]["id"] for task, about in result.report["tasks"].items()} for result in results
    )
    assert chosen == anew


def test_after_a_rollback_a_run_releases_what_the_files_say(done: Path) -> None:
    first = branches(done)
    write_task(done, "slots", **SORTS["slots"], seed=7)
    Project.load(done).run()
    second = branches(done)
    assert Project.load(done).rollback().id == "r1"
    assert branches(done) == first
    assert Project.load(done).plan().merges
    result = Project.load(done).run()
    assert (result.ran, result.release and result.release.id) == (0, "r3")
    assert branches(done) == second


def test_after_a_rollback_with_the_files_put_back_the_report_is_of_the_live_release(done: Path) -> None:
    write_task(done, "slots", **SORTS["slots"], seed=7)
    Project.load(done).run()
    Project.load(done).rollback()
    write_task(done, "slots", **SORTS["slots"])
    assert Project.load(done).plan().merges
    result = Project.load(done).run()
    assert (result.ran, result.release and result.release.id) == (0, "r1")
    assert Project.load(done).report()["release"]["id"] == "r1"
    assert not Project.load(done).plan().merges


def test_another_budget_selects_anew_without_training(done: Path) -> None:
    before, encoder = stages(done), Project.load(done).files.settings.encoder
    reports = []
    for budget in ({"max_cost": 0.01}, {"min_relative_quality": 0.01}):
        write_settings(done, encoder=encoder, budget=budget)
        assert Project.load(done).plan().merges
        result = Project.load(done).run()
        assert result.ran == 0
        reports.append(result.report)
    # No set costs 1 %, so the first takes the cheapest set that there is; so does the second, to which any is good.
    assert [report["merged"]["met"] for report in reports] == [False, True]
    first, second = ({task: about["chosen"]["id"] for task, about in r["tasks"].items()} for r in reports)
    assert first == second
    assert before.items() <= stages(done).items()


def test_costs_are_measured_again_only_where_that_is_asked_for(done: Path) -> None:
    def measured() -> dict[str, tuple[int, int]]:
        found = stages(done)
        return {key: found[key] for key in found if "machine" in Project.load(done).store.get(key).fields}

    before, trained = measured(), stages(done)
    Project.load(done).run(reselect=True)
    assert measured() == before
    [costs] = [key for key in before if "shapes" in Project.load(done).store.get(key).fields]
    file = done / ".trunkline" / "stages" / costs / "stage.json"
    busy = json.loads(file.read_text())
    busy["result"]["trunk"] = {slot: [1e6 * ms for ms in each] for slot, each in busy["result"]["trunk"].items()}
    file.write_text(json.dumps(busy))
    assert Project.load(done).run(reselect=True).report["tasks"]["slots"]["baseline"]["ms"] > 1e4
    heard = Heard()
    result = Project.load(done).run(["slots"], remeasure=True, show=heard)
    assert heard.stages == []
    assert result.report["tasks"]["slots"]["baseline"]["ms"] < 1e4
    # New times may choose other candidates; they train nothing and write no stage anew that is not about time.
    assert all(measured().get(key) != before[key] for key in before)
    assert costs in measured()
    assert {key: stages(done)[key] for key in trained if key not in before} == {
        key: each for key, each in trained.items() if key not in before
    }


def test_a_quality_out_of_reach_is_not_met_and_the_best_is_taken(done: Path) -> None:
    encoder = Project.load(done).files.settings.encoder
    still = {"learning_rate": 1e-9}  # candidates that learn nothing
    for task in ("intent", "slots", "urgency"):
        full = {"epochs": 20.0, "learning_rate": 3e-3}
        write_task(done, task, **SORTS[task], full=full, tune={**still, "layers": [1, 2]}, distill=still)
    write_settings(done, encoder=encoder, budget={"min_relative_quality": 1.2})
    report = Project.load(done).run().report
    best = {task: max(c["valid"] for c in about["candidates"]) for task, about in report["tasks"].items()}
    full_quality = sum(about["baseline"]["valid"] for about in report["tasks"].values())
    assert sum(best.values()) < full_quality
    assert not report["merged"]["met"]
    assert {task: about["chosen"]["valid"] for task, about in report["tasks"].items()} == pytest.approx(best)


def test_a_released_task_keeps_its_branch_until_a_reselection_is_asked_for(done: Path) -> None:
    files = branches(done)
    result = Project.load(done).run(reselect=True)
    assert result.ran == 0
    assert set(branches(done)) == set(files)


def test_several_seeds_stand_for_one_candidate(fresh: Path) -> None:
    encoder = Project.load(fresh).files.settings.encoder
    write_settings(fresh, encoder=encoder, search={"seeds": 2})
    for task in ("slots", "urgency"):
        (fresh / "tasks" / f"{task}.toml").unlink()
    report = Project.load(fresh).run().report["tasks"]["intent"]
    assert [c["seed"] for c in report["candidates"]].count(14) == 3
    chosen = [c for c in report["candidates"] if c["chosen"]]
    assert len(chosen) == 1
    twins = [c["valid"] for c in report["candidates"] if c["id"].rsplit("/", 1)[0] == chosen[0]["id"].rsplit("/", 1)[0]]
    assert report["chosen"]["valid"] == pytest.approx(sum(twins) / 2)
    assert chosen[0]["valid"] == max(twins)


def test_every_teacher_and_init_runs_from_a_project(fresh: Path) -> None:
    for task in ("slots", "urgency"):
        (fresh / "tasks" / f"{task}.toml").unlink()
    distill = {"teachers": ["self", "full"], "init": ["teacher", "trunk", "random"]}
    write_task(fresh, "intent", **SORTS["intent"], distill=distill)
    report = Project.load(fresh).run().report["tasks"]["intent"]
    students = [c for c in report["candidates"] if c["stage"] == "distill"]
    assert {(c["init"], c["teacher"]) for c in students} == {(i, "full+self") for i in distill["init"]}


def test_scores_are_calibrated_on_valid_and_logits_are_not(done: Path) -> None:
    project = Project.load(done)
    report = project.report()["tasks"]
    bundle = project.bundle()
    text = "play some music"
    answer = bundle.predict([text])[0]["intent"]
    logits = bundle.logits([Input(text)])["intent"][0]
    temperature = report["intent"]["chosen"]["calibration"]["temperature"]
    assert temperature != 1.0
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert report["slots"]["chosen"]["calibration"]["temperature"] != 1.0
    assert report["urgency"]["chosen"]["calibration"] is None


def test_temperature_and_weight_of_a_student_are_searched(fresh: Path) -> None:
    for task in ("slots", "urgency"):
        (fresh / "tasks" / f"{task}.toml").unlink()
    distill = {"temperature": [1.0, 4.0], "gold_weight": [0.0, 1.0], "learning_rate": 3e-3}
    write_task(fresh, "intent", **SORTS["intent"], tune={"layers": [2]}, distill=distill)
    project = Project.load(fresh)
    report = project.run().report["tasks"]["intent"]
    taught = {candidate["teacher"] for candidate in report["candidates"] if candidate["stage"] == "distill"}
    assert taught == {f"self, {t}{g}" for t in ("T 1", "T 4") for g in ("", ", labels × 0")}
    students = [stage for stage in project.graph.of("intent") if stage.kind == "distill"]
    assert {stage.id.removeprefix("intent/distill/single/L2-l1/teacher/self/") for stage in students} == {
        f"T{temperature}/g{weight}/s13" for temperature in (1, 4) for weight in (0, 1)
    }
    branches = {
        (project.store.get(project.graph.keys[s.id]).folder / "branch.safetensors").read_bytes() for s in students
    }
    assert len(branches) == 4


def test_the_strongest_full_model_on_valid_is_the_baseline_and_the_first_one_teaches(fresh: Path) -> None:
    write_task(
        fresh,
        "intent",
        **SORTS["intent"],
        full={"learning_rate": [1e-9, 3e-3], "epochs": 4.0},
        distill={"teachers": "full"},
    )
    result = Project.load(fresh).run(["intent"])
    project = Project.load(fresh)
    stages = {stage.id: stage for stage in project.graph.of("intent")}
    ways = [f"intent/full/single/lr{rate}/s13" for rate in ("1e-09", "0.003")]
    found = {id: project.store.get(project.graph.keys[id]).result["metrics"] for id in ways}
    assert found[ways[0]]["valid"]["accuracy"] < found[ways[1]]["valid"]["accuracy"]
    assert result.report["tasks"]["intent"]["baseline"]["metrics"] == found[ways[1]]["test"]
    students = [stage for stage in stages.values() if stage.kind == "distill"]
    assert {stage.needs[1] for stage in students} == {ways[0]}


def test_students_of_latents_are_trained_timed_and_served(fresh: Path) -> None:
    latents = {"latents": [2], "teachers": "full", "layers": [0, 1, 2], "crossing": 2}
    for task in ("intent", "slots"):
        write_task(fresh, task, **SORTS[task], tune={"layers": [2]}, distill=latents)
    write_settings(fresh, encoder=str(tiny_encoder(fresh / "other", layers=3)), budget={"max_cost": 0.001})
    result = Project.load(fresh).run(["intent", "slots"])
    found = {id.partition("/s13")[0] for id in (c["id"] for c in result.report["tasks"]["intent"]["candidates"])}
    assert {f"intent/distill/single/L2-l{own}-m2/teacher/full" for own in (1, 2)} < found
    assert "intent/distill/single/L2-l0/teacher/full" in found  # a head alone has none
    assert all("-m" not in c["id"] for c in result.report["tasks"]["slots"]["candidates"])
    assert all(c["ms"] > 0 for c in result.report["tasks"]["intent"]["candidates"])
    assert Project.load(fresh).bundle().predict(["play some music"])


def test_an_unknown_task_is_refused_with_the_nearest(done: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'intent'"):
        Project.load(done).run(["intnt"])


def test_gc_keeps_what_the_live_release_needs_and_the_next_run_repeats_nothing(done: Path) -> None:
    old = stages(done)
    write_task(done, "slots", **SORTS["slots"], seed=7)
    Project.load(done).run()
    wanted = set(Project.load(done).graph.keys.values())
    dry = Project.load(done).gc(keep=1, dry=True)
    assert stages(done).keys() >= old.keys()
    freed = Project.load(done).gc(keep=1)
    assert {item.what for item in freed} == {"stage", "trunk states", "bundle", "selection"}
    assert not any(item.path.exists() for item in freed)
    assert {item.path for item in dry} <= {item.path for item in freed}
    assert wanted <= stages(done).keys()
    assert len(Project.load(done).releases.list()) == 1
    verify(Project.load(done).releases.folder(Project.load(done).released()))
    assert Project.load(done).run().ran == 0
    write_task(done, "intent", **SORTS["intent"], tune={"learning_rate": 2e-3})
    assert Project.load(done).run().ran == 3  # trunk states are computed again, stages are not


def test_gc_leaves_a_bundle_that_is_served(done: Path) -> None:
    project = Project.load(done)
    old = project.releases.folder(project.released())
    write_task(done, "slots", **SORTS["slots"], seed=7)
    Project.load(done).run()
    mark = InUse(old)
    Project.load(done).gc(keep=1)
    verify(old)
    mark.close()
    assert old in {item.path for item in Project.load(done).gc(keep=1)}
    assert not old.exists()


def test_gc_leaves_a_task_that_is_released_though_its_file_changed(done: Path) -> None:
    files = branches(done)
    write_task(done, "slots", **SORTS["slots"], seed=7)
    Project.load(done).gc(keep=1)
    Project.load(done).run(["intent"])
    assert branches(done) == files


def leftovers(root: Path) -> Iterator[Path]:
    return root.rglob(".staging-*")


def test_a_run_clears_what_a_killed_one_left(done: Path) -> None:
    for folder in ("stages", "states", "bundles", "selections", "."):
        (done / ".trunkline" / folder / ".staging-0123456789ab-x").mkdir()
    (done / ".staging-0123456789ab-report.html").write_text("half")
    write_task(done, "intent", **SORTS["intent"], tune={"learning_rate": 2e-3})
    Project.load(done).run()
    assert list(leftovers(done)) == []


def test_a_renamed_and_a_copied_task_are_released_under_their_own_names(done: Path) -> None:
    tasks = done / "tasks"
    (tasks / "copy.toml").write_text((tasks / "intent.toml").read_text())
    (tasks / "urgency.toml").rename(tasks / "haste.toml")
    project = Project.load(done)
    project.run()
    assert set(project.bundle().tasks) == {"copy", "haste", "intent", "slots"}


def test_a_run_of_one_task_after_a_rollback_leaves_the_others_rolled_back(done: Path) -> None:
    before = branches(done)
    write_task(done, "intent", **SORTS["intent"], seed=5)
    Project.load(done).run()
    assert branches(done)["intent"] != before["intent"]
    Project.load(done).rollback()
    write_task(done, "slots", **SORTS["slots"], seed=5)
    Project.load(done).run(["slots"])
    after = branches(done)
    assert after["slots"] != before["slots"]
    assert {task: after[task] for task in ("intent", "urgency")} == {
        task: before[task] for task in ("intent", "urgency")
    }


def test_a_run_of_one_task_under_another_budget_moves_no_other(done: Path) -> None:
    before = branches(done)
    write_settings(done, encoder=Project.load(done).files.settings.encoder, budget={"max_cost": 1.0})
    write_task(done, "slots", **SORTS["slots"], seed=5)
    Project.load(done).run(["slots"])
    after = branches(done)
    assert {task: after[task] for task in ("intent", "urgency")} == {
        task: before[task] for task in ("intent", "urgency")
    }
    assert Project.load(done).plan().merges  # the others are still to be chosen under it


@pytest.mark.parametrize("away", [[], ["intent", "urgency"]])
def test_one_task_is_not_trained_for_another_encoder_than_its_siblings(
    done: Path, tmp_path: Path, away: list[str]
) -> None:
    for task in away:
        (done / "data" / f"{task}.jsonl").unlink()
    write_settings(done, encoder=str(tiny_encoder(tmp_path / "other", layers=3, seed=9)))
    with pytest.raises(UsageError, match=r"also intent, urgency: trunkline run"):
        Project.load(done).run(["slots"])


def test_a_release_answers_and_rolls_back_while_a_task_file_is_broken(done: Path) -> None:
    (done / "tasks" / "intent.toml").write_text("kind = 3")
    project = Project(done)
    assert project.bundle().predict(["play some music"])[0]["intent"]
    assert project.report()["release"]["id"] == "r1"
    with pytest.raises(ProjectError):
        _ = project.files


def test_a_damaged_live_bundle_is_made_anew(done: Path) -> None:
    project = Project.load(done)
    bundle = project.releases.folder(project.released())
    branch = next((bundle / "branches").iterdir())
    data = bytearray(branch.read_bytes())
    data[-1] ^= 1
    branch.chmod(0o644)
    branch.write_bytes(bytes(data))
    heard = Heard()
    Project.load(done).run(show=heard)
    assert heard.stages == []
    assert any("damaged" in line for line in heard.said)
    verify(bundle)


@pytest.mark.parametrize(
    ("settings", "where"), [({"cost": {"batch": 2, "tokens": 4096}}, "cost.tokens"), ({"device": "cuda"}, "device")]
)
def test_settings_that_this_encoder_or_machine_cannot_meet_are_refused_by_key(
    done: Path, settings: dict[str, Any], where: str
) -> None:
    if where == "device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    write_settings(done, encoder=Project.load(done).files.settings.encoder, **settings)
    write_task(done, "intent", **SORTS["intent"], seed=7)
    with pytest.raises(ProjectError) as caught:
        Project.load(done).run()
    assert [problem.where for problem in caught.value.problems] == [where]


def test_an_engine_that_cannot_run_the_encoder_is_refused_before_anything_is_trained(done: Path) -> None:
    tiny_encoder(done / "deberta", "deberta")
    write_settings(done, encoder="deberta", cost={"batch": 2, "tokens": 8, "engine": "openvino"})
    with pytest.raises(ProjectError) as caught:
        Project.load(done).plan()
    assert [problem.where for problem in caught.value.problems] == ["cost.engine"]


def test_honest_splits_other_labels_on_the_reported_rows_change_no_weight_and_no_choice(done: Path) -> None:
    before, chosen = branches(done), Project.load(done).report()["tasks"]["intent"]["chosen"]
    file = done / "data" / "intent-test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**row, "label": rows[0]["label"]}) for row in rows) + "\n")
    heard = Heard()
    report = Project.load(done).run(show=heard, reselect=True).report
    after = report["tasks"]["intent"]["chosen"]
    assert heard.stages, "the data changed, so its stages run again"
    assert branches(done) == before
    assert (after["id"], after["valid"]) == (chosen["id"], chosen["valid"])
    assert after["metrics"] != chosen["metrics"]


def test_damage_to_a_waiting_tasks_branch_does_not_reach_the_next_release(done: Path) -> None:
    before = branches(done)
    project = Project.load(done)
    bundle = project.releases.folder(project.released())
    [file] = (bundle / "branches").glob("intent-*")
    file.unlink()  # not in place: the file may have other names
    file.write_bytes(before["intent"][:-1] + bytes([before["intent"][-1] ^ 1]))
    write_task(done, "intent", **SORTS["intent"], seed=5)  # it waits: its stages are not done
    write_task(done, "slots", **SORTS["slots"], seed=5)
    Project.load(done).run(["slots"])
    after = branches(done)
    assert after["slots"] != before["slots"]
    assert after["intent"] == before["intent"]


def test_costs_are_those_of_the_engine_that_is_asked_for(tmp_path: Path, encoder: Path) -> None:
    pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
    cost = {"batch": 2, "tokens": 8, "repeats": 2, "engine": "openvino"}
    report = Project.load(write_project(tmp_path, {"same": SORTS["same"]}, encoder=encoder, cost=cost)).run().report
    assert report["cost"]["engine"] == "openvino"
    assert report["cost"]["dtype"] in ("float32", "bfloat16")
    assert report["merged"]["relative_time"] > 0
    assert all(candidate["ms"] > 0 for task in report["tasks"].values() for candidate in task["candidates"])
