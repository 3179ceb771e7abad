"""Teachers of any origin, from a project's files to a release: found by content, asked once, taught in every mode."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import tiny_classifier
from projects import SORTS, Heard, write_project, write_settings, write_task
from safetensors.torch import load_file, save_file
from tiny import tiny_encoder

from trunkline.bundle import Bundle
from trunkline.bundle.merge import merge
from trunkline.engine import Input
from trunkline.errors import ProjectError
from trunkline.model.branch import read_spec
from trunkline.model.source import Source
from trunkline.pipeline.foreign import load_logits, logits_file
from trunkline.pipeline.grid import graph
from trunkline.pipeline.project import Project
from trunkline.pipeline.stages import Stage
from trunkline.pipeline.task_files import TaskFiles
from trunkline.pipeline.teach import teacher_work
from trunkline.project.config import load_files
from trunkline.project.tasks import Kind, probabilities

LABELS = ("alarm", "music", "weather")
BIG = "path:../models/big"


def project(tmp_path: Path, encoder: Path, task: str = "intent", **distill: Any) -> Path:
    keys = {**SORTS[task], "tune": {"layers": [1]}, "distill": {"teachers": BIG, **distill}}
    return write_project(tmp_path / "project", {task: keys}, encoder=encoder)


def rewrite(root: Path, task: str = "intent", **distill: Any) -> None:
    write_task(root, task, **SORTS[task], tune={"layers": [1]}, distill={"teachers": BIG, **distill})


def said(root: Path) -> Any:
    """Logits of the one foreign teacher of a project for the train rows, as its students read them."""
    made = Project.load(root)
    [id] = [stage.id for stage in made.graph.stages.values() if stage.kind == "teach"]
    made.train([id])
    return load_logits(made.store.stages / made.graph.keys[id] / logits_file("train"))


def shares(root: Path) -> np.ndarray:
    """Probabilities of a classification task that its one foreign teacher gives."""
    return probabilities(Kind.CLASSIFICATION, np.asarray(said(root)))


def problems(root: Path) -> list[str]:
    with pytest.raises(ProjectError) as caught:
        Project.load(root).check()
    return [f"{problem.where}: {problem.message}" for problem in caught.value.problems]


def test_stages_of_projects_that_use_none_of_this_keep_their_keys(tmp_path: Path) -> None:
    """Literal keys, computed before foreign teachers and modes existed: stores of finished stages stay of use. That of
    latents is of when they got dropout.
    """
    (tmp_path / "tasks").mkdir()
    (tmp_path / "project.toml").write_text("seed = 13\n")
    (tmp_path / "tasks" / "intent.toml").write_text(
        'kind = "classification"\nmax_tokens = 32\ndata.train = "intent.jsonl"\ntune.layers = [2, 3]\n'
        '[distill]\nlayers = [1, 2]\nteachers = ["self", "full", "file:soft/llm.jsonl"]\n'
        "temperature = [1.0, 2.0]\nlatents = [0, 4]\n"
    )
    (tmp_path / "tasks" / "same.toml").write_text(
        'kind = "regression"\npair = ["joint", "separate"]\ndata.train = "same.csv"\ndata.test = "test.csv"\n'
    )
    source = Source("minilm", tmp_path, "e" * 64, "bert", 6, 384, 512)
    data = {
        "intent": TaskFiles({"train": "a" * 64}, {}, False, ["c" * 64]),
        "same": TaskFiles({"train": "b" * 64, "test": "d" * 64}, {}, True, []),
    }
    keys = graph(load_files(tmp_path), source, data).keys
    literal = {
        "intent/full/single/s13": "c032f8aea2d1aad07ae06e2a7aadc9dc",
        "intent/tune/single/L3/s13": "429a83750beb8723ad4b91d638da119c",
        "intent/distill/single/L2-l1/teacher/file:llm+full+self/T1/s13": "de1050037c099a00f777e7576fff5869",
        "intent/distill/single/L2-l2-m4/teacher/file:llm+full+self/T2/s13": "93c18535f31de2f31af8c1e88b93e0ad",
        "intent/distill/single/L3-l2/teacher/file:llm+full+self/T2/s13": "078232336a828810e3460c91558c13ae",
        "same/tune/joint/L2/s13": "4db72f59ffd4a64fdb44fdb0b07d34f6",
        "same/distill/separate/L2-l1/teacher/self/s13": "2e268b74702e753ad5c561bd23ddce57",
        "same/distill/separate/L3-l2/teacher/self/s13": "aa25b0f752058de5eae6eec756302ee3",
    }
    assert {id: keys[id] for id in literal} == literal
    assert len(keys) == 32


def test_students_of_other_layers_keep_their_keys(tmp_path: Path) -> None:
    """Literal keys, computed before a teacher's name could say how it reads."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "project.toml").write_text("seed = 13\nsearch.seeds = 2\n")
    (tmp_path / "tasks" / "same.toml").write_text(
        'kind = "regression"\npair = ["joint", "separate"]\ndata.train = "same.csv"\ndata.test = "test.csv"\n'
        'tune.layers = [2, 3]\n[distill]\nlayers = [1]\nteachers = ["self", "tune:2", "tune:3@14"]\n'
    )
    source = Source("minilm", tmp_path, "e" * 64, "bert", 6, 384, 512)
    files = TaskFiles({"train": "b" * 64, "test": "d" * 64}, {}, True, [])
    keys = graph(load_files(tmp_path), source, {"same": files}).keys
    literal = {
        "same/distill/joint/L3-l1/teacher/self+tune:2+tune:3@14/s13": "ec69103dd0ca9ab7ef5c9039fb497fce",
        "same/distill/separate/L2-l1/teacher/self+tune:3@14/s14": "9adf506d9c0d2ede39933cfcf9ff51e8",
    }
    assert {id: keys[id] for id in literal} == literal


@pytest.mark.parametrize("task", SORTS)
def test_a_classifier_teaches_a_task_of_every_kind(tmp_path: Path, encoder: Path, task: str) -> None:
    labels = {
        "intent": ["weather", "alarm", "music"],
        "tone": ["weather", "long", "alarm", "music"],
        "urgency": ["LABEL_0"],
        "slots": ["O", *(f"{place}-{topic}" for place in "IB" for topic in LABELS)],
        "same": ["yes", "no"],
    }[task]
    options = {"problem_type": "multi_label_classification"} if task == "tone" else {}
    tiny_classifier(tmp_path / "models" / "big", labels, tokens=task == "slots", **options)
    root = project(tmp_path, encoder, task, teachers=["self", BIG], mode=["mean", "heads"])
    Project.load(root).check()
    report = Project.load(root).run().report["tasks"][task]
    taught = {one["teacher"] for one in report["candidates"] if one["stage"] == "distill"}
    assert taught == {"path:big+self", "path:big+self, heads"}
    assert Project.load(root).run().ran == 0
    answer = Project.load(root).bundle().predict([("play some music", "a song")])[0][task]
    assert not hasattr(answer, "error")


def test_another_order_of_classes_gives_the_same_soft_labels(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", ["alarm", "music", "weather"])
    before = shares(project(tmp_path, encoder))
    config = json.loads((tmp_path / "models" / "big" / "config.json").read_text())
    weights = load_file(tmp_path / "models" / "big" / "model.safetensors")
    order = [2, 0, 1]
    for part in ("weight", "bias"):
        weights[f"classifier.{part}"] = weights[f"classifier.{part}"][order].contiguous()
    save_file(weights, tmp_path / "models" / "big" / "model.safetensors", metadata={"format": "pt"})
    config["id2label"] = {str(place): LABELS[old] for place, old in enumerate(order)}
    (tmp_path / "models" / "big" / "config.json").write_text(json.dumps(config))
    after = shares(tmp_path / "project")
    assert len({int(row.argmax()) for row in before}) > 1
    assert after == pytest.approx(before, abs=1e-6)


def test_labels_of_other_names_are_mapped_by_name(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", ["LABEL_0", "LABEL_1", "LABEL_2", "noise"], seed=1)
    root = project(tmp_path, encoder)
    assert [one.partition(": ")[2] for one in problems(root)] == [
        f"{BIG} has labels that the task does not have",
        f"{BIG} lacks labels of the task",
    ]
    renamed = {"LABEL_0": "weather", "LABEL_1": "alarm", "LABEL_2": "music", "noise": ""}
    rewrite(root, label_maps={BIG: renamed})
    found = shares(root)
    assert found.sum(-1) == pytest.approx(np.ones(len(found)))
    rewrite(root, label_maps={BIG: {**renamed, "LABEL_0": "alarm", "LABEL_1": "weather"}})
    assert shares(root) == pytest.approx(found[:, [2, 1, 0]], abs=1e-6)


def test_a_teacher_counts_by_content_and_is_asked_once_for_all_students(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", LABELS)
    root = project(tmp_path, encoder, mode=["mean", "heads"], temperature=[1.0, 2.0])
    heard = Heard()
    Project.load(root).run(show=heard)
    assert [id for id in heard.stages if "/teach/" in id] == ["intent/teach/path:big"]
    assert len([id for id in heard.stages if "/distill/" in id]) == 4
    shutil.move(tmp_path / "models", tmp_path / "elsewhere")
    rewrite(root, teachers="path:../elsewhere/big", mode=["mean", "heads"], temperature=[1.0, 2.0])
    assert Project.load(root).plan().steps == []
    freed = {item.path.name for item in Project.load(root).gc(dry=True)}
    assert not freed & set(Project.load(root).graph.keys.values())
    config = tmp_path / "elsewhere" / "big" / "config.json"
    config.write_text(config.read_text() + " ")
    kinds = [step.stage.kind for step in Project.load(root).plan().steps]
    assert kinds == ["teach", "distill", "distill", "distill", "distill"]
    [abandoned] = [item for item in Project.load(root).gc(dry=True) if (item.path / logits_file("train")).exists()]
    assert abandoned.what == "stage"


@pytest.mark.parametrize("task", ["intent", "slots", "urgency"])
def test_a_task_of_another_project_teaches(tmp_path: Path, encoder: Path, finished: Path, task: str) -> None:
    """What it says is what its release answers, for other texts than it was trained on."""
    root = project(tmp_path, encoder, task, teachers=[f"project:{finished}#{task}"])
    data = Project.load(root).train([f"{task}/prepare"]).data(task)
    rows = data.fit.take(data.train)
    bundle = Project.load(finished).bundle()
    words = [tuple(spans) for spans in rows.words] if rows.words else [None] * len(rows)
    inputs = [Input(text, None, spans) for text, spans in zip(rows.texts, words, strict=True)]
    wanted = bundle.logits(inputs, [task])[task]
    for found, expected in zip(said(root), wanted, strict=True):
        assert found == pytest.approx(np.atleast_1d(expected), abs=1e-5)
    assert Project.load(root).run().release is not None


def test_a_project_that_cannot_teach_is_refused_with_the_reason(
    tmp_path: Path, encoder: Path, finished: Path, fresh: Path
) -> None:
    root = project(tmp_path, encoder, teachers=["project:../nowhere#intent"])
    pairs = {"kind": "classification", "pair": "joint"}
    for teacher, reason in {
        "project:../nowhere#intent": "no project that was ever run",
        f"project:{fresh}#intent": "no project that was ever run",
        f"project:{finished}#intnt": "did you mean 'intent'?",
        "project:.#intent": "not taught by its own release",
        f"project:{finished}#slots": "is a task of another kind",
    }.items():
        rewrite(root, teachers=[teacher])
        (root / ".trunkline").mkdir(exist_ok=True)
        assert [reason in one for one in problems(root)] == [True], teacher
    write_task(root, "intent", **pairs, tune={"layers": [1]}, distill={"teachers": [f"project:{finished}#intent"]})
    assert ["reads other inputs" in one for one in problems(root)] == [True]


def test_a_classifier_of_the_hub_is_fetched_at_its_revision(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tiny_classifier(tmp_path / "models" / "big", LABELS)
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        asked.append((name, revision))
        return str(big)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    root = project(tmp_path, encoder, teachers=["hub:someone/big@v2"])
    shares(root)
    assert set(asked) == {("someone/big", "v2")}
    assert "intent/teach/hub:someone/big" in Project.load(root).graph.keys

    def gone(name: str, **_: object) -> str:
        raise ValueError("not reached\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", gone)
    assert problems(root) == [
        "distill.teachers: 'someone/big' could not be fetched from the hub (ValueError: not reached)"
    ]


def test_numbers_in_another_unit_are_pointed_at(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", ["LABEL_0"])
    root = project(tmp_path, encoder, "urgency")
    data = root / "data" / "urgency.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps({**row, "score": 1000 + row["score"]}) + "\n" for row in rows))
    heard = Heard()
    Project.load(root).train(["urgency/teach/path:big"], show=heard)
    assert [one for one in heard.said if "farther from the labels" in one]


def test_a_task_s_own_models_of_other_layers_and_seeds_teach(tmp_path: Path, encoder: Path) -> None:
    keys = {"tune": {"layers": [1, 2]}, "distill": {"teachers": ["self", "tune:2", "full@14"], "layers": [1]}}
    root = write_project(
        tmp_path / "project", {"intent": {**SORTS["intent"], **keys}}, encoder=encoder, search={"seeds": 2}
    )
    made = Project.load(root)
    done: set[str] = set()
    for stage in made.graph.stages.values():
        assert set(stage.needs) <= done
        done.add(stage.id)
    students = {stage.id: stage for stage in made.graph.stages.values() if stage.kind == "distill"}
    first = students["intent/distill/single/L1-l1/teacher/full@14+self+tune:2/s13"]
    assert first.needs == ("intent/tune/single/L1/s13", "intent/full/single/s14", "intent/tune/single/L2/s13")
    own = students["intent/distill/single/L2-l1/teacher/full@14+self/s13"]  # tuned with two layers, it is `self`
    assert own.needs == ("intent/tune/single/L2/s13", "intent/full/single/s14")
    assert made.run().release is not None


def test_a_teacher_may_read_pairs_otherwise_than_its_student(tmp_path: Path, encoder: Path) -> None:
    keys = {**SORTS["same"], "tune": {"layers": [1, 2]}, "distill": {"teachers": ["self", "tune:1/separate@14"]}}
    made = Project.load(write_project(tmp_path / "project", {"same": keys}, encoder=encoder, search={"seeds": 2}))
    students = {stage.id: stage.needs[1:] for stage in made.graph.stages.values() if stage.kind == "distill"}
    other = "same/tune/separate/L1/s14"
    assert students["same/distill/joint/L2-l1/teacher/self+tune:1/separate@14/s13"] == (other,)
    assert students["same/distill/separate/L2-l1/teacher/self+tune:1/separate@14/s13"] == (other,)
    assert "same/distill/separate/L1-l1/teacher/self/s14" not in students  # it would start from its one teacher
    student = "same/distill/joint/L2-l1/teacher/self+tune:1/separate@14/s13"
    shop = made.train([student])
    assert made.graph.keys[student] in made.store
    rows = shop.data("same").fit.take(shop.data("same").train)
    file = made.store.stages / made.graph.keys[other] / "branch.safetensors"
    inputs = [Input(*pair) for pair in zip(rows.texts, rows.pairs or (), strict=True)]
    bundle = Bundle.load(merge(made.source, {"same": file}, inputs[:1], tmp_path / "out", name="x"))
    answers = np.stack(bundle.logits(inputs, ["same"])["same"])
    assert shop.taught(other) == pytest.approx(answers, abs=1e-5)
    work = teacher_work(made, "same", "tune:1/separate@14", threads=1, show=Heard())
    assert work.content == f"stage {made.graph.keys[other]}"


@pytest.mark.parametrize(
    ("task", "pair", "teacher", "said"),
    [
        ("same", "joint", "tune:1/separate", "(?s)nothing is tuned in this reading.*allowed: tune:1/joint "),
        ("intent", None, "tune:1/joint", "nothing is tuned in this reading"),
        ("same", "joint", "tune:7/joint", "nothing is tuned so"),
    ],
)
def test_a_reading_that_is_not_searched_teaches_nobody(
    tmp_path: Path, encoder: Path, task: str, pair: str | None, teacher: str, said: str
) -> None:
    keys = {**SORTS[task], **({"pair": pair} if pair else {}), "distill": {"teachers": ["self", teacher]}}
    root = write_project(tmp_path / "project", {task: keys}, encoder=encoder)
    with pytest.raises(ProjectError, match=said):
        _ = Project.load(root).graph


def test_weights_are_searched_and_count(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", LABELS)
    root = project(tmp_path, encoder, teachers=["self", BIG], layers=[0], weights={BIG: [1.0, 4.0]})
    report = Project.load(root).run().report["tasks"]["intent"]
    students = {one["id"]: one["teacher"] for one in report["candidates"] if one["stage"] == "distill"}
    assert students == {
        "intent/distill/single/L1-l0/teacher/path:big+self/w1/s13": "path:big+self",
        "intent/distill/single/L1-l0/teacher/path:big+self/w4/s13": "path:big+self, path:big × 4",
    }
    made = Project.load(root)
    branches = [(made.store.stages / made.graph.keys[id] / "branch.safetensors").read_bytes() for id in students]
    assert branches[0] != branches[1]


@pytest.mark.parametrize("mode", ["mean_logits", "best"])
@pytest.mark.parametrize("task", ["intent", "slots", "urgency"])
def test_every_mode_runs_with_teachers_of_several_origins(tmp_path: Path, encoder: Path, mode: str, task: str) -> None:
    root = project(tmp_path, encoder, task, teachers=["self", "full"], mode=mode, loss="mse")
    report = Project.load(root).run().report["tasks"][task]
    [student] = [one for one in report["candidates"] if one["stage"] == "distill"]
    usual = task == "urgency"  # a mean of numbers is a mean of numbers, and their distance is squared anyway
    shown = ["full+self", *([] if usual and mode == "mean_logits" else [mode.replace("_", " ")])]
    assert student["teacher"] == ", ".join([*shown, *([] if usual else ["mse"])])


def test_what_is_wrong_with_teachers_is_said_by_file_and_key_all_at_once(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", LABELS, tokens=True)
    tiny_classifier(tmp_path / "models" / "five", [f"{stars} stars" for stars in range(1, 6)])
    root = project(
        tmp_path,
        encoder,
        teachers=["self", BIG, "path:../models/five", "path:../models/none", "tune:3", "full@20"],
        weights={"full": 2.0, "self": 3.0},
        label_maps={"self": {"a": "alarm"}, "path:../models/five": {"6 stars": "alarm"}},
    )
    with pytest.raises(ProjectError) as caught:
        Project.load(root)
    assert [(one.where, one.message) for one in caught.value.problems] == [
        ('distill.weights."full"', "no such teacher"),
        ('distill.label_maps."self"', "has the task's labels"),
        ("distill.teachers", "nothing is tuned so"),
    ]
    teachers = ["self", BIG, "path:../models/five", "path:../models/none"]
    rewrite(root, teachers=teachers, label_maps={"path:../models/five": {"6 stars": "alarm"}})
    assert problems(root) == [
        "distill.teachers: no such folder: '../models/none' (looked in " + str(root) + ")",
        f"distill.teachers: {BIG} cannot teach a task of kind classification",
        'distill.label_maps."path:../models/five": not a label of this teacher',
        "distill.teachers: path:../models/five has labels that the task does not have",
        "distill.teachers: path:../models/five lacks labels of the task",
    ]


def test_a_seed_that_nothing_is_trained_with_and_twins_are_refused(tmp_path: Path, encoder: Path) -> None:
    root = project(tmp_path, encoder, teachers=["self@15"])
    with pytest.raises(ProjectError, match=r"distill\.teachers: nothing is trained with this seed"):
        _ = Project.load(root).graph
    write_settings(root, encoder=str(encoder), search={"seeds": 3})
    assert Project.load(root).graph
    rewrite(root, teachers=["path:a/big", "path:b/big"])
    with pytest.raises(ProjectError, match="several teachers are called alike"):
        Project.load(root)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "self@",
        "self@x",
        "tune",
        "tune:0",
        "tune:x",
        "tune:1/single",
        "tune:1@14/joint",
        "full/joint",
        "path:",
        "hub:bert",
        "hub:a/b@",
        "project:x",
        "project:#t",
        "gpt",
    ],
)
def test_a_name_that_is_no_teacher_is_refused(tmp_path: Path, encoder: Path, name: str) -> None:
    root = project(tmp_path, encoder, teachers=[name])
    with pytest.raises(ProjectError, match="not a teacher"):
        Project.load(root)


@pytest.mark.parametrize(("kind", "said"), [("tone", "another problem_type"), ("urgency", "gives no single number")])
def test_outputs_that_mean_something_else_are_refused(tmp_path: Path, encoder: Path, kind: str, said: str) -> None:
    tiny_classifier(tmp_path / "models" / "big", [*LABELS, "long"])
    [problem] = problems(project(tmp_path, encoder, kind))
    assert said in problem


def test_weights_that_are_none_are_said_by_their_key(tmp_path: Path, encoder: Path) -> None:
    root = project(tmp_path, encoder, teachers="self", layers=[0], weights={"self": [0.0, 1.0]})
    with pytest.raises(ProjectError) as caught:
        Project.load(root)
    [problem] = caught.value.problems
    assert (problem.where, problem.message, problem.found) == ("distill.weights.self", "out of range", "0.0")
    assert "above 0" in str(problem.allowed)


def test_a_student_of_heads_is_merged_like_any_other(tmp_path: Path, encoder: Path) -> None:
    """The merge proves that the bundle answers as the branch alone does."""
    tiny_classifier(tmp_path / "models" / "big", LABELS)
    made = Project.load(project(tmp_path, encoder, teachers=["self", BIG], mode="heads"))
    [student] = [id for id, stage in made.graph.stages.items() if stage.kind == "distill"]
    made.train([student])
    file = made.store.stages / made.graph.keys[student] / "branch.safetensors"
    bundle = Bundle.load(merge(made.source, {"intent": file}, [Input("play some music")], tmp_path / "out", name="x"))
    assert bundle.predict(["play some music"])[0]["intent"].label in LABELS  # type: ignore[union-attr]


def students(root: Path) -> dict[str, Stage]:
    """Who taught, as stages call it -> the stage of the student."""
    stages = [stage for stage in Project.load(root).graph.stages.values() if stage.kind == "distill"]
    return {stage.id.split("/")[-2]: stage for stage in stages}


def test_to_compare_students_of_none_of_each_and_of_all_but_each_are_tried(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", LABELS)
    (tmp_path / "soft.jsonl").write_text("")
    names = ["self", "full", BIG]
    root = project(tmp_path, encoder, teachers=names, compare=True)
    alone = {"self", "full", "path:big"}
    pairs = {"full+self", "full+path:big", "path:big+self"}
    assert set(students(root)) == {"full+path:big+self", *alone, *pairs, "labels"}
    assert students(root)["labels"].needs == ("intent/tune/single/L1/s13",)
    assert "intent/teach/path:big" not in students(root)["full+self"].needs
    before = {by: Project.load(root).graph.keys[stage.id] for by, stage in students(root).items()}
    rewrite(root, teachers=names)
    assert {by: Project.load(root).graph.keys[stage.id] for by, stage in students(root).items()} == {
        "full+path:big+self": before["full+path:big+self"]  # comparing makes no other student of all
    }
    rewrite(root, teachers=["self", "full"], compare=True)  # all but one of two is one alone
    assert set(students(root)) == {"full+self", "self", "full", "labels"}
    rewrite(root, teachers="self", compare=True, layers=[0])
    assert set(students(root)) == {"self", "labels"}
    rewrite(root, teachers=["self", "file:../soft.jsonl"], compare=True, mode=["mean", "heads"], temperature=[1.0, 4.0])
    found = {id for id in Project.load(root).graph.stages if "/distill/" in id and "/labels/" in id}
    assert found == {"intent/distill/single/L1-l1/teacher/labels/T1/mean/s13"}  # labels alone know no such ways
    assert all(("soft" in stage.fields) == ("file:soft" in stage.id) for stage in students(root).values())


def test_students_are_compared_by_the_seeds_that_both_have(tmp_path: Path, encoder: Path) -> None:
    root = project(tmp_path, encoder, teachers=["full", "full@14"])  # which of seed 14 are one and the same
    write_settings(root, encoder=str(encoder), search={"seeds": 2})
    found = Project.load(root).run().report["tasks"]["intent"]["teaching"]
    assert [one["change"] for one in found["students"]] == [None, None]
    rewrite(root, teachers=["self", "self@14"], compare=True)
    found = Project.load(root).run().report["tasks"]["intent"]["teaching"]
    changes = {"+".join(one["teachers"]): one["change"] for one in found["students"]}
    assert changes["self+self@14"] is None
    assert (changes[""]["settings"], changes[""]["spread"]) == (1, None)  # seed 13 alone has students of both


def test_which_layers_a_student_takes_is_searched_where_it_makes_a_difference(tmp_path: Path, encoder: Path) -> None:
    takes = ["bottom", "spread", "top"]
    distill = {
        "teachers": ["self", "full"],
        "take": takes,
        "init": ["teacher", "trunk", "random"],
        "layers": [0, 1, 2, 3],
    }
    keys = {**SORTS["intent"], "tune": {"layers": [3]}, "distill": distill}
    root = write_project(tmp_path / "project", {"intent": keys}, encoder=encoder)
    found = {id.split("/")[3]: set() for id in Project.load(root).graph.stages if "/distill/" in id}
    for id, stage in Project.load(root).graph.stages.items():
        if "/distill/" in id:
            found[id.split("/")[3]].add((id.split("/")[4], stage.fields.get("take")))
    plain = {(init, None) for init in ("teacher", "trunk", "random")}
    top = {(f"{init}-top", "top") for init in ("teacher", "trunk")}
    spread = {(f"{init}-spread", "spread") for init in ("teacher", "trunk")}
    assert found == {
        "L3-l0": plain - {("random", None)},
        "L3-l1": plain | top,
        "L3-l2": plain | top | spread,
        "L3-l3": plain,
    }
    top_of_two = "intent/distill/single/L3-l2/teacher-top/full+self/s13"
    workshop = Project.load(root).train([top_of_two])
    spec = read_spec(workshop.store.stages / workshop.graph.keys[top_of_two] / "branch.safetensors")
    assert (spec.fork, spec.layers) == (0, 2)


def test_hidden_states_are_compared_where_there_are_any_and_each_way_once(tmp_path: Path) -> None:
    deep = tiny_encoder(tmp_path / "deep", layers=5)
    distill = {
        **{"teachers": ["self", "full"], "layers": [0, 1, 2, 5], "latents": [0, 2], "compare": True},
        **{"hidden": [0, 1.0], "layer_map": ["uniform", "top"]},
    }
    keys = {**SORTS["intent"], "tune": {"layers": [5]}, "distill": distill}
    root = write_project(tmp_path / "project", {"intent": keys}, encoder=deep)
    graph = Project.load(root).graph
    found: dict[tuple[str, str], set[str]] = {}
    for id in graph.stages:
        if "/distill/" in id:
            _, _, _, size, _, by, *way, _ = id.split("/")
            found.setdefault((size, by), set()).update(way or [""])
    uniform, both = {"h0", "h1-uniform"}, {"h0", "h1-uniform", "h1-top"}
    assert {size: found[size, "full+self"] for size, by in found if by == "full+self"} == {
        **{"L5-l0": {"h0"}, "L5-l1": uniform, "L5-l2": both, "L5-l5": uniform},
        **{f"L5-l{layers}-m2": {"h0"} for layers in (1, 2, 5)},
    }
    assert {by: found["L5-l2", by] for by in ("self", "full", "labels")} == {
        **{"self": both, "full": {"h0"}, "labels": {"h0"}}  # without `self` there is nothing to compare with
    }
    plain, held = (f"intent/distill/single/L5-l2/teacher/self/{way}/s13" for way in ("h0", "h1-top"))
    workshop = Project.load(root).train([plain, held])
    one, other = (workshop.store.stages / graph.keys[id] / "branch.safetensors" for id in (plain, held))
    assert one.read_bytes() != other.read_bytes()
    rewrite(root, teachers="full", hidden=1.0)
    with pytest.raises(ProjectError, match=r"distill\.hidden: compares states with those of `self`"):
        Project.load(root)


def test_the_report_says_what_teachers_are_alone_together_and_left_out(tmp_path: Path, encoder: Path) -> None:
    tiny_classifier(tmp_path / "models" / "big", LABELS)
    root = project(tmp_path, encoder, teachers=["self", BIG], compare=True)
    write_settings(root, encoder=str(encoder), search={"seeds": 2})
    made = Project.load(root)
    report = made.run().report["tasks"]["intent"]
    found = report["teaching"]
    assert [one["teacher"] for one in found["teachers"]] == ["self", "path:big"]
    own, big = found["teachers"]
    tuned = [one for one in report["candidates"] if one["stage"] == "tune"]
    assert own["valid"] == pytest.approx(np.mean([one["valid"] for one in tuned]))
    assert own["reported"] == pytest.approx(np.mean([one["reported"] for one in tuned]))
    assert own["ms"] > tuned[0]["ms"]  # the trunk on its way is part of it
    assert big["ms"] is None  # nobody measured it

    workshop = made.train(["intent/teach/path:big"])
    data, asked = workshop.data("intent"), made.store.stages / made.graph.keys["intent/teach/path:big"]
    splits = {"valid": ("valid", data.fit.take(data.valid)), "reported": ("test", data.reported["test"])}
    for name, (split, rows) in splits.items():
        scores, labels = [], [data.labels.index(label) for label in rows.targets]
        foreign = np.asarray(load_logits(asked / logits_file(split)))
        assert big[name] == pytest.approx(np.mean(foreign.argmax(-1) == labels))
        for seed in (13, 14):
            voices = [np.asarray(workshop.taught(f"intent/tune/single/L1/s{seed}", split)), foreign]
            shares = sum(probabilities(Kind.CLASSIFICATION, voice / 2) for voice in voices)
            scores.append(np.mean(np.asarray(shares).argmax(-1) == labels))
        assert found["ensemble"][name] == pytest.approx(np.mean(scores))

    valid = {(one["teacher"], one["seed"]): one["valid"] for one in report["candidates"] if one["stage"] == "distill"}
    changes = {"+".join(one["teachers"]): one["change"] for one in found["students"]}
    assert changes.pop("path:big+self") is None
    for by, change in changes.items():
        off = [valid[by or "labels alone", seed] - valid["path:big+self", seed] for seed in (13, 14)]
        assert change == pytest.approx({"mean": np.mean(off), "spread": np.std(off, ddof=1), "settings": 1})
    assert made.write_page(made.report()).read_text().count("<h4>Teachers</h4>") == 1
    assert Project.load(root).run().ran == 0


def test_what_teachers_say_together_is_told_only_where_it_is_known(tmp_path: Path, encoder: Path) -> None:
    root = project(tmp_path, encoder, teachers=["self", "full"], mode="best")  # which looks at the labels
    unknown = {"valid": None, "reported": None}
    assert Project.load(root).run().report["tasks"]["intent"]["teaching"]["ensemble"] == unknown
    rewrite(root, teachers="self", layers=[0])
    assert Project.load(root).run().report["tasks"]["intent"]["teaching"] is None
