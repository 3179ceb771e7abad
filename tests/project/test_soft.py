"""Soft labels from a file: read by key and by name, and every damage said in plain words."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import write_project

from trunkline.errors import ProjectError
from trunkline.pipeline.project import Project
from trunkline.project.config import load_files
from trunkline.project.data import TaskData, read_task
from trunkline.project.soft import soft_labels

LABELS = ("alarm", "music", "weather")
KINDS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "classification"},
    "tone": {"kind": "multilabel"},
    "level": {"kind": "regression"},
    "slots": {"kind": "tagging"},
    "same": {"kind": "relevance", "pair": ["joint"]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tasks = {name: {**keys, "distill": {"teachers": ["self", "file:soft.jsonl"]}} for name, keys in KINDS.items()}
    return write_project(tmp_path / "project", tasks)


def data_of(root: Path, task: str) -> TaskData:
    return read_task(root, task, load_files(root).tasks[task])


def shares(labels: tuple[str, ...], rng: np.random.Generator) -> dict[str, float]:
    values = rng.dirichlet(np.ones(len(labels)))
    return {label: float(value) for label, value in zip(labels, values, strict=True)}


def write(root: Path, rows: list[dict[str, Any]]) -> None:
    (root / "soft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def good_rows(data: TaskData, task: str) -> list[dict[str, Any]]:
    """What an outside teacher might say of every row, in any order, valid rows too."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for place in rng.permutation(len(data.fit)):
        row: dict[str, Any] = {"text": data.fit.texts[place].upper()}
        if data.fit.pairs is not None:
            row["text_pair"] = data.fit.pairs[place]
        if task == "level":
            row["score"] = float(rng.normal())
        elif task == "slots":
            row["probabilities"] = [shares(data.labels, rng) for _ in data.fit.targets[place]]
        elif task == "tone":
            row["probabilities"] = {label: float(rng.random()) for label in data.labels}
        else:
            row["probabilities"] = dict(reversed(shares(data.labels, rng).items()))
        rows.append(row)
    unique = {json.dumps([row["text"], row.get("text_pair")]): row for row in rows}
    return list(unique.values())


@pytest.mark.parametrize("task", KINDS)
def test_what_a_teacher_said_stands_by_every_train_row(root: Path, task: str) -> None:
    data = data_of(root, task)
    rows = good_rows(data, task)
    write(root, rows)
    [found] = soft_labels(load_files(root), task, data)
    assert len(found) == len(data.train)
    said = {(row["text"].lower(), row.get("text_pair")): row for row in rows}
    for place, logits in zip(data.train, found, strict=True):
        row = said[data.fit.texts[place].lower(), data.fit.pairs[place] if data.fit.pairs else None]
        if task == "level":
            assert logits.tolist() == [row["score"]]
            continue
        objects = row["probabilities"] if task == "slots" else [row["probabilities"]]
        for one, given in zip(np.atleast_2d(logits), objects, strict=True):
            wanted = [given[label] for label in data.labels]
            if task == "tone":
                assert 1 / (1 + np.exp(-one)) == pytest.approx(wanted, abs=1e-5)
            else:
                assert np.exp(one) / np.exp(one).sum() == pytest.approx(wanted, abs=1e-5)


def test_a_relevance_score_is_the_probability_of_the_positive_label(root: Path) -> None:
    data = data_of(root, "same")
    rows = [{**row, "score": 0.9} for row in good_rows(data, "same")]
    for row in rows:
        del row["probabilities"]
    write(root, rows)
    [found] = soft_labels(load_files(root), "same", data)
    positive = data.labels.index(data.positive or "")
    assert {int(logits.argmax()) for logits in found} == {positive}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda rows: [], "holds no rows"),
        (lambda rows: rows[:10], "train rows without soft labels"),
        (lambda rows: [{**row, "text": "a" + row["text"]} for row in rows], "rows of the file are of no train row"),
        (lambda rows: [{"probabilities": row["probabilities"]} for row in rows], "no row says which text it is about"),
        (lambda rows: [{"text": row["text"]} for row in rows], "what the teacher said"),
        (lambda rows: [{"text": row["text"], "score": 0.5} for row in rows], "what the teacher said"),
        (lambda rows: [{**row, "logits": row["probabilities"]} for row in rows], "what the teacher said"),
        (lambda rows: [{**rows[0], "text": None}, *rows[1:]], "no text"),
        (lambda rows: swapped(rows, [0.2, 0.3, 0.5]), "probabilities without names"),
        (lambda rows: swapped(rows, {"alarm": 0.5, "music": 0.5}), "labels are missing"),
        (lambda rows: swapped(rows, {"alarm": 0.5, "music": 0.3, "weather": 0.1, "news": 0.1}), "not a label"),
        (lambda rows: swapped(rows, {"alarm": 0.5, "music": 0.4, "weather": 0.3}), "do not add up to 1"),
        (lambda rows: swapped(rows, {"alarm": 1.5, "music": -0.5, "weather": 0.0}), "not probabilities"),
        (lambda rows: swapped(rows, {"alarm": "0.5", "music": 0.5, "weather": 0.0}), "not a finite number"),
        (lambda rows: swapped(rows, {"alarm": float("nan"), "music": 0.5, "weather": 0.5}), "not a finite number"),
        (
            lambda rows: [*rows, *swapped(rows, {"alarm": 1, "music": 0, "weather": 0})[:3]],
            "another row says otherwise",
        ),
    ],
)
def test_every_damage_is_named(root: Path, damage: Any, said: str) -> None:
    data = data_of(root, "intent")
    write(root, damage([row for row in good_rows(data, "intent") if trained(row, data)]))
    with pytest.raises(ProjectError) as caught:
        soft_labels(load_files(root), "intent", data)
    assert said in str(caught.value)
    assert "soft.jsonl" in str(caught.value)


def trained(row: dict[str, Any], data: TaskData) -> bool:
    return row["text"].lower() in {data.fit.texts[place].lower() for place in data.train}


def swapped(rows: list[dict[str, Any]], value: Any) -> list[dict[str, Any]]:
    """The third row says something else."""
    return [{**row, "probabilities": value} if number == 2 else row for number, row in enumerate(rows)]


def test_a_tagging_row_has_an_object_for_each_word(root: Path) -> None:
    data = data_of(root, "slots")
    rows = good_rows(data, "slots")
    write(root, [{**row, "probabilities": row["probabilities"][:-1]} for row in rows])
    with pytest.raises(ProjectError, match="not one object per word"):
        soft_labels(load_files(root), "slots", data)


def test_rows_may_be_named_by_id(root: Path) -> None:
    data = data_of(root, "level")
    write(root, [{"id": id, "score": number} for number, id in enumerate(data.fit.ids)])
    [found] = soft_labels(load_files(root), "level", data)
    assert [float(one[0]) for one in found] == data.train.tolist()


def test_scores_may_stand_in_a_csv_file(root: Path) -> None:
    path = root / "tasks" / "level.toml"
    path.write_text(path.read_text().replace("soft.jsonl", "soft.csv"))
    data = data_of(root, "level")
    lines = [f"{id},{number / 2}" for number, id in enumerate(data.fit.ids)]
    (root / "soft.csv").write_text("\n".join(["id,score", *lines]) + "\n")
    [found] = soft_labels(load_files(root), "level", data)
    assert [2 * float(one[0]) for one in found] == data.train.tolist()
    (root / "soft.csv").write_text("\n".join(["id,score", "x,high", *lines]) + "\n")
    assert soft_labels(load_files(root), "level", data)  # of a row that is not trained on
    (root / "soft.csv").write_text("\n".join(["id,score", f"{data.fit.ids[data.train[0]]},high", *lines]) + "\n")
    with pytest.raises(ProjectError, match="not a finite number"):
        soft_labels(load_files(root), "level", data)


def test_a_file_that_is_not_there_and_a_teacher_that_is_none_are_said_by_key(root: Path) -> None:
    with pytest.raises(ProjectError, match=r"intent\.toml: distill\.teachers: no such file"):
        _ = Project.load(root).graph
    path = root / "tasks" / "intent.toml"
    path.write_text(path.read_text().replace("file:soft.jsonl", "gpt"))
    with pytest.raises(ProjectError, match="not a teacher"):
        Project.load(root)


def test_a_student_learns_what_a_file_says(tmp_path: Path) -> None:
    distill = {"teachers": "file:soft.jsonl", "gold_weight": 0, "layers": [1], "epochs": 8.0, "learning_rate": 5e-3}
    task = {"kind": "classification", "tune": {"layers": [1]}, "distill": distill}
    root = write_project(tmp_path / "project", {"intent": task})
    data = data_of(root, "intent")
    certain = {"alarm": 0.0, "music": 0.0, "weather": 1.0}
    write(root, [{"text": text, "probabilities": certain} for text in data.fit.texts])
    Project.load(root).check()
    report = Project.load(root).run().report["tasks"]["intent"]
    [student] = [one for one in report["candidates"] if one["stage"] == "distill"]
    assert student["teacher"] == "file:soft, labels × 0"
    share = data.reported["test"].targets.count("weather") / len(data.reported["test"])
    assert student["reported"] == pytest.approx(share)
    assert Project.load(root).run().ran == 0
    write(root, [{"text": text, "probabilities": {**certain, "weather": 0.99}} for text in data.fit.texts])
    assert [step.stage.kind for step in Project.load(root).plan().steps] == ["distill"]  # the file's content counts


def test_what_is_wrong_is_said_before_anything_is_trained(root: Path) -> None:
    data = data_of(root, "intent")
    write(root, good_rows(data, "intent"))
    for name in KINDS:
        if name != "intent":
            (root / "tasks" / f"{name}.toml").unlink()
    for prepared in (False, True):
        write(root, good_rows(data, "intent")[:5])
        for go in (Project.load(root).check, Project.load(root).run):
            with pytest.raises(ProjectError, match="train rows without soft labels"):
                go()
        stages = root / ".trunkline" / "stages"
        assert not any((stage / "branch.safetensors").exists() for stage in stages.glob("*"))
        if not prepared:
            write(root, good_rows(data, "intent"))
            Project.load(root).train(["intent/prepare"])


def test_rows_of_one_text_have_their_own_answers_or_their_mean(root: Path) -> None:
    """A cased teacher tells "Good morning" from "good morning"; two batches round otherwise."""
    data = data_of(root, "intent")
    first, second = (data.fit.texts[place] for place in data.train[:2])
    data.fit.texts[data.train[1]] = first.upper()
    rows = [row for row in good_rows(data, "intent") if row["text"].lower() not in (first.lower(), second.lower())]
    sure = {"alarm": 0.9, "music": 0.05, "weather": 0.05}
    other = {"alarm": 0.05, "music": 0.9, "weather": 0.05}
    nearly = {"alarm": 0.8999, "music": 0.0501, "weather": 0.05}
    write(root, [*rows, {"text": first, "probabilities": sure}, {"text": first, "probabilities": nearly}])
    with_one = soft_labels(load_files(root), "intent", data)[0]
    assert with_one[0].tolist() == with_one[1].tolist()
    # The first is written as folding leaves it, and keeps its own answer all the same.
    data.fit.texts[data.train[0]] = first.lower()
    both = [{"text": first.lower(), "probabilities": sure}, {"text": first.upper(), "probabilities": other}]
    for said in (both, both[::-1]):
        write(root, [*rows, *said])
        [found] = soft_labels(load_files(root), "intent", data)
        exact = [[shares[label] for label in data.labels] for shares in (sure, other)]
        np.testing.assert_allclose(np.exp(found[:2]), exact, rtol=1e-6)


def test_texts_count_before_ids_and_are_named_as_the_task_names_them(root: Path) -> None:
    data = data_of(root, "intent")
    path = root / "tasks" / "intent.toml"
    path.write_text(path.read_text() + '\n[data.columns]\ntext = "sentence"\n')
    rows = [{"sentence": row.pop("text"), "id": number, **row} for number, row in enumerate(good_rows(data, "intent"))]
    write(root, rows)
    [found] = soft_labels(load_files(root), "intent", data)
    said = {row["sentence"].lower(): max(row["probabilities"], key=row["probabilities"].get) for row in rows}
    for place, one in zip(data.train, found, strict=True):
        assert data.labels[int(one.argmax())] == said[data.fit.texts[place].lower()]


def test_one_text_in_two_ways_of_words_needs_ids(root: Path) -> None:
    data = data_of(root, "slots")
    place = int(data.train[0])
    data.fit.texts[int(data.train[1])] = data.fit.texts[place]
    data.fit.targets[int(data.train[1])] = ["O", *data.fit.targets[place]]
    rows = [row for row in good_rows(data, "slots") if row["text"] != data.fit.texts[place].upper()]
    one = {
        "text": data.fit.texts[place],
        "probabilities": [shares(data.labels, np.random.default_rng(0))] * len(data.fit.targets[place]),
    }
    write(root, [*rows, one])
    with pytest.raises(ProjectError, match="train rows without soft labels"):
        soft_labels(load_files(root), "slots", data)


@pytest.mark.parametrize(("shares", "taken"), [((0.05,), False), ((0.91,), True), ((0.95, 0.95), False)])
def test_many_labels_are_no_excuse_for_what_is_no_distribution(
    root: Path, shares: tuple[float, ...], taken: bool
) -> None:
    data = data_of(root, "intent")
    data = replace(data, labels=(*data.labels, *(f"l{number}" for number in range(200))))
    said = dict.fromkeys(data.labels, 0.0) | dict(zip(data.labels, shares, strict=False))
    write(root, [{"text": text, "probabilities": said, "error": ""} for text in dict.fromkeys(data.fit.texts)])
    if taken:
        assert len(soft_labels(load_files(root), "intent", data)[0]) == len(data.train)
        return
    with pytest.raises(ProjectError, match="do not add up to 1"):
        soft_labels(load_files(root), "intent", data)


def test_many_rounded_labels_maps_and_decimals_are_taken(root: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    path = root / "tasks" / "intent.toml"
    path.write_text(path.read_text().replace("soft.jsonl", "soft.parquet"))
    data = data_of(root, "intent")
    texts = list(dict.fromkeys(data.fit.texts))
    numbers = [[("alarm", Decimal("0.34")), ("music", Decimal("0.33")), ("weather", Decimal("0.32"))]] * len(texts)
    column = pyarrow.array(numbers, pyarrow.map_(pyarrow.string(), pyarrow.decimal128(4, 2)))
    parquet.write_table(pyarrow.table({"text": texts, "probabilities": column}), root / "soft.parquet")
    [found] = soft_labels(load_files(root), "intent", data)
    assert {int(one.argmax()) for one in found} == {0}
    assert np.exp(found[0]).sum() == pytest.approx(1)


@pytest.mark.parametrize("start", [0, 4, -40], ids=["magic", "page", "footer"])
def test_a_damaged_parquet_file_is_named(root: Path, start: int) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    path = root / "tasks" / "intent.toml"
    path.write_text(path.read_text().replace("soft.jsonl", "soft.parquet"))
    data = data_of(root, "intent")
    rows = good_rows(data, "intent")
    table = pyarrow.table({name: [row[name] for row in rows] for name in ("text", "probabilities")})
    parquet.write_table(table, root / "soft.parquet", use_dictionary=False)
    content = bytearray((root / "soft.parquet").read_bytes())
    damaged = slice(start, start + 40 or None)
    content[damaged] = bytes(byte ^ 0xFF for byte in content[damaged])
    (root / "soft.parquet").write_bytes(content)
    with pytest.raises(ProjectError, match=r"soft\.parquet: not a readable parquet file"):
        soft_labels(load_files(root), "intent", data)
