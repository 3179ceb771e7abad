"""Two stages: students learn what teachers said of unlabelled texts in shards, and then the task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import tiny_classifier
from projects import SORTS, Heard, write_project, write_task
from safetensors.torch import load_file

from trunkline.errors import ProjectError, TrunklineError
from trunkline.pipeline.execute import BRANCH
from trunkline.pipeline.project import Project
from trunkline.pipeline.shards import cut
from trunkline.pipeline.teach import teacher_work

LABELS = {
    "intent": ["weather", "alarm", "music"],
    "tone": ["weather", "alarm", "music", "long"],
    "urgency": ["LABEL_0"],
    "slots": ["O", *(f"{place}-{topic}" for place in "IB" for topic in ("alarm", "music", "weather"))],
    "same": ["yes", "no"],
}
SHORT = {"epochs": 2.0, "min_steps": 0, "batch_size": 8, "learning_rate": 1e-3}


def new_project(tmp_path: Path, encoder: Path, task: str, **keys: Any) -> Path:
    return write_project(tmp_path / "project", {task: {**SORTS[task], **keys}}, encoder=encoder)


def two_stages(root: Path, task: str, *shards: str, distill: dict[str, Any] | None = None, **pretrain: Any) -> None:
    students = {"init": "pretrained", **(distill or {})}
    stage = {"shards": shards, **SHORT, **pretrain}
    write_task(root, task, **SORTS[task], tune={"layers": [2]}, distill=students, pretrain=stage)


def texts_of(path: Path, root: Path, task: str) -> Path:
    """The test rows of a task, which it is judged on, twenty rows beside them and one that nobody can read."""
    judged = [json.loads(line) for line in (root / "data" / f"{task}-test.jsonl").read_text().splitlines()]
    rows = [
        {"text": " ".join(row["tokens"]) if "tokens" in row else row["text"], "pair": row.get("text_pair")}
        for row in judged
    ]
    rows += [{"text": f"play {'some ' * (n % 5)}music now {n}", "pair": f"a song at {n}"} for n in range(20)]
    rows.insert(3, {"text": " ", "pair": "a song"})
    rows[5]["text"] = f"  {rows[5]['text'].upper()}"
    path.write_text("".join(json.dumps({"text": row["text"], "text_pair": row["pair"]}) + "\n" for row in rows))
    return path


def teach(root: Path, task: str, source: Path, out: str, *, seed: int = 0, shard_rows: int = 8) -> None:
    """Fill a folder with what a tiny classifier of random opinions says."""
    model = root.parent / "models" / f"big{seed}"
    if not model.exists():
        options = {"problem_type": "multi_label_classification"} if task == "tone" else {}
        tiny_classifier(model, LABELS[task], tokens=task == "slots", seed=seed, **options)
    work = teacher_work(Project.load(root), task, f"path:../models/{model.name}", threads=1, show=Heard())
    job = cut(root / out, [str(source)], work.fields, shard_rows=shard_rows, pairs=work.pairs)
    with job.begun(print):
        list(job.make(work.load, lambda rows: None))


def weights(project: Project, id: str) -> dict[str, torch.Tensor]:
    return load_file(project.store.get(project.graph.keys[id]).folder / BRANCH)


def stages(project: Project, kind: str) -> list[Any]:
    return [stage for stage in project.graph.stages.values() if stage.kind == kind]


def problems(root: Path) -> list[tuple[str, str]]:
    with pytest.raises(ProjectError) as caught:
        Project.load(root).check()
    return [(f"{problem.file}: {problem.where}", problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize("task", SORTS)
def test_tasks_of_every_kind_learn_in_two_stages_but_not_from_what_they_are_judged_on(
    tmp_path: Path, encoder: Path, task: str
) -> None:
    root = new_project(tmp_path, encoder, task)
    source = texts_of(tmp_path / "texts.jsonl", root, task)
    teach(root, task, source, "soft/one")
    teach(root, task, source, "soft/two", seed=1)
    two_stages(root, task, "soft/one", "soft/two", mode="heads")
    Project.load(root).check()
    project, heard = Project.load(root), Heard()
    project.train([stage.id for stage in stages(project, "distill")], show=heard)
    readings = ["joint", "separate"] if task == "same" else ["single"]
    firsts = stages(project, "pretrain")
    assert [stage.id for stage in firsts] == [f"{task}/pretrain/{reading}/L2-l1/teacher/s13" for reading in readings]
    for stage in firsts:
        found = project.store.get(project.graph.keys[stage.id]).result
        assert found["rows"] == {"train": 20, "left_out": {"unanswered": 1, "judged": 16, "words": 0}}
        assert found["steps"] == 6  # of five shards three are left with 7, 8 and 5 rows, a batch each, twice
        assert (
            f"{stage.id}: rows left out: 1 that a teacher could not read, 16 that the task is judged on" in heard.said
        )


def test_a_report_names_the_first_stage_of_a_student_and_chooses_among_students_alone(
    tmp_path: Path, encoder: Path
) -> None:
    root = new_project(tmp_path, encoder, "intent")
    teach(root, "intent", texts_of(tmp_path / "texts.jsonl", root, "intent"), "soft")
    two_stages(root, "intent", "soft", distill={"init": ["teacher", "pretrained"]}, init="trunk")
    report = Project.load(root).run().report["tasks"]["intent"]
    told = [one["init"] for one in report["candidates"]]
    assert told == [None, "teacher", "pretrained on 20 rows, from trunk"]
    assert Project.load(root).run().ran == 0


def test_a_student_starts_from_what_its_own_first_stage_made(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "intent")
    teach(root, "intent", texts_of(tmp_path / "texts.jsonl", root, "intent"), "soft")
    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "init": ["teacher", "pretrained"]}
    two_stages(root, "intent", "soft", distill={**still, "layers": [0, 1], "latents": [0, 2]})
    project = Project.load(root)
    students = [stage for stage in stages(project, "distill") if stage.fields["init"] == "pretrained"]
    assert len(students) == len(stages(project, "pretrain")) == 3
    project.train([stage.id for stage in stages(project, "distill")])
    for student in students:
        [first] = [need for need in student.needs if "/pretrain/" in need]
        made, learned = weights(project, first), weights(project, student.id)
        assert made.keys() == learned.keys()
        assert all(torch.allclose(made[name], learned[name], atol=1e-6) for name in made)
        [other] = [id for id in project.graph.stages if id == student.id.replace("/pretrained/", "/teacher/")]
        assert not all(torch.allclose(made[name], value, atol=1e-6) for name, value in weights(project, other).items())


def test_a_first_stage_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, encoder: Path) -> None:
    class Killed(Exception):
        pass

    class Killing(Heard):
        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

        def advance(self, position: Any) -> None:
            if "/pretrain/" in self.stages[-1] and position.step >= self.step:
                raise Killed

    root = new_project(tmp_path, encoder, "intent")
    teach(root, "intent", texts_of(tmp_path / "texts.jsonl", root, "intent"), "soft")
    two_stages(root, "intent", "soft", epochs=3.0)
    whole = Path(shutil.copytree(root, tmp_path / "whole"))
    [stage] = stages(Project.load(root), "pretrain")
    for step in (2, 4, 8):  # in epochs of three steps; state is kept after the report of an evaluation
        with pytest.raises(Killed):
            Project.load(root).train([stage.id], show=Killing(step))
    project, again = Project.load(root), Project.load(whole)
    assert [step.resumes for step in project.plan().steps if step.stage.id == stage.id] == [True]
    project.train([stage.id])
    again.train([stage.id])
    key = project.graph.keys[stage.id]
    assert again.graph.keys[stage.id] == key
    one, other = (made.store.get(key) for made in (project, again))
    assert (one.folder / BRANCH).read_bytes() == (other.folder / BRANCH).read_bytes()
    assert one.result["history"] == other.result["history"]


def test_words_that_a_teacher_was_given_otherwise_are_left_out(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "slots")
    source = tmp_path / "texts.jsonl"
    lines = ['{"text": "play some music"}', '{"text": "play it", "words": [[0, 7]]}', '{"text": "rain now"}']
    source.write_text("\n".join(lines) + "\n")
    teach(root, "slots", source, "soft")
    two_stages(root, "slots", "soft")
    [stage] = stages(Project.load(root), "pretrain")
    Project.load(root).train([stage.id])
    found = Project.load(root).store.get(Project.load(root).graph.keys[stage.id]).result["rows"]
    assert found == {"train": 2, "left_out": {"unanswered": 0, "judged": 0, "words": 1}}


def test_stages_without_a_first_stage_keep_their_keys_and_shards_count_by_content(
    tmp_path: Path, encoder: Path
) -> None:
    root = new_project(tmp_path, encoder, "intent", tune={"layers": [2]}, distill={"init": "teacher"})
    before = Project.load(root).graph.keys
    source = texts_of(tmp_path / "texts.jsonl", root, "intent")
    teach(root, "intent", source, "soft")
    teach(root, "intent", source, "other", seed=1)
    two_stages(root, "intent", "soft", distill={"init": ["teacher", "pretrained"]})
    keys = Project.load(root).graph.keys
    assert before.items() <= keys.items()
    new = keys.keys() - before.keys()
    (root / "soft").rename(root / "moved")
    two_stages(root, "intent", "moved", distill={"init": ["teacher", "pretrained"]})
    assert Project.load(root).graph.keys == keys
    two_stages(root, "intent", "other", distill={"init": ["teacher", "pretrained"]})
    assert {id for id, key in Project.load(root).graph.keys.items() if keys[id] != key} == new
    two_stages(root, "intent", "other", "moved", distill={"init": ["teacher", "pretrained"]})
    both = Project.load(root).graph.keys
    two_stages(root, "intent", "moved", "other", distill={"init": ["teacher", "pretrained"]})
    assert Project.load(root).graph.keys == both


def test_a_teacher_of_much_weight_teaches_nearly_alone(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "intent")
    source = texts_of(tmp_path / "texts.jsonl", root, "intent")
    teach(root, "intent", source, "soft/one")
    teach(root, "intent", source, "soft/two", seed=1)

    def made(*shards: str, **weights_of: float) -> tuple[str, dict[str, torch.Tensor]]:
        named = {f"soft/{name}": weight for name, weight in weights_of.items()}
        two_stages(root, "intent", *shards, **({"weights": named} if named else {}))
        project = Project.load(root)
        [stage] = stages(project, "pretrain")
        project.train([stage.id])
        return project.graph.keys[stage.id], weights(project, stage.id)

    _, one = made("soft/one")
    key, both = made("soft/one", "soft/two")
    assert made("soft/one", "soft/two", one=1.0)[0] == key
    other, weighed = made("soft/one", "soft/two", one=100.0, two=0.01)
    assert other != key

    def distance(of: dict[str, torch.Tensor]) -> float:
        return sum(float((of[name] - value).abs().sum()) for name, value in one.items())

    assert distance(weighed) < 0.1 * distance(both)
    two_stages(root, "intent", "soft/one", weights={"soft/three": 2.0})
    with pytest.raises(ProjectError, match=r"pretrain.weights.\"soft/three\": not one of pretrain.shards"):
        Project.load(root)


def test_what_is_wrong_with_folders_is_said_at_once_before_anything_is_trained(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "intent")
    source = texts_of(tmp_path / "texts.jsonl", root, "intent")
    for out, rows, seed in (("soft", 8, 0), ("coarse", 16, 0), ("part", 8, 1)):
        teach(root, "intent", source, out, shard_rows=rows, seed=seed)
    next((root / "part").glob("shard-00002-*")).unlink()
    (root / "empty").mkdir()
    two_stages(root, "intent", "soft", "none", "empty", "part", "coarse")
    key = "tasks/intent.toml: pretrain.shards"
    assert problems(root) == [
        (key, "no such folder"),
        (key, "has no job.json of a teacher"),
        (key, "shards are missing, or there twice"),
        (key, "folders of different texts"),
    ]
    with pytest.raises(ProjectError, match="4 of 5 in"):
        Project.load(root).plan()
    teach(root, "intent", source, "part", seed=1)  # which a file that names it does not keep from being filled
    two_stages(root, "intent", "soft", "part")
    Project.load(root).check()
    two_stages(root, "intent", "soft", "./soft")
    assert problems(root) == [(key, "the same shards twice")]


def test_shards_that_change_after_a_run_was_planned_stop_its_first_stage(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "intent")
    source = texts_of(tmp_path / "texts.jsonl", root, "intent")
    for out, seed in (("soft", 0), ("other", 1)):
        teach(root, "intent", source, out, seed=seed)
    two_stages(root, "intent", "soft")
    project = Project.load(root)
    [stage] = stages(project, "pretrain")
    project.train([stage.needs[0]])
    shutil.rmtree(root / "soft")
    (root / "other").rename(root / "soft")
    with pytest.raises(TrunklineError, match="shards changed since the run was planned; run again"):
        project.train([stage.id])


def test_a_damaged_shard_and_a_teacher_of_another_task_stop_a_run(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "intent")
    write_task(root, "tone", **SORTS["tone"])
    source = texts_of(tmp_path / "texts.jsonl", root, "intent")
    teach(root, "intent", source, "soft")
    teach(root, "tone", source, "tones", seed=1)
    two_stages(root, "intent", "soft", "tones")
    assert problems(root) == [("tones: ", "teaches another kind of task")]
    two_stages(root, "intent", "soft")
    Project.load(root).train(["intent/prepare"])
    shard = next((root / "soft").glob("shard-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    heard = Heard()
    with pytest.raises(ProjectError, match=f"soft: damaged shards\n.*{shard.name}"):
        Project.load(root).run(["intent"], show=heard)
    assert heard.stages == []


def test_rows_that_are_all_judged_leave_nothing_to_learn_from(tmp_path: Path, encoder: Path) -> None:
    root = new_project(tmp_path, encoder, "intent")
    teach(root, "intent", root / "data" / "intent-test.jsonl", "soft")
    two_stages(root, "intent", "soft")
    [stage] = stages(Project.load(root), "pretrain")
    with pytest.raises(TrunklineError, match="no row is left to learn from"):
        Project.load(root).train([stage.id])


@pytest.mark.parametrize(
    ("shards", "init", "where"),
    [([], "pretrained", "pretrain.shards"), (["soft"], "teacher", "distill.init")],
)
def test_a_first_stage_and_students_that_start_from_it_go_together(
    tmp_path: Path, encoder: Path, shards: list[str], init: str, where: str
) -> None:
    root = new_project(tmp_path, encoder, "intent", pretrain={"shards": shards}, distill={"init": init})
    with pytest.raises(ProjectError) as caught:
        Project.load(root)
    assert [problem.where for problem in caught.value.problems] == [where]
