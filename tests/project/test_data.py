"""A task's data: honest splits (promise 9), and what of the settings they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project.hostile import good_rows, write_jsonl

from trunkline.project.config import TaskSettings
from trunkline.project.data import TaskData, data_fields, read_task, sources
from trunkline.project.rows import Rows, fold

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def task(kind: str = "classification", **data: Any) -> TaskSettings:
    return TaskSettings.model_validate({"kind": kind, "data": {"train": "train.jsonl", **data}})


def inputs(rows: Rows, picks: Any = None) -> set[tuple[str, str]]:
    chosen = rows if picks is None else rows.take(picks)
    return {
        (fold(text), fold(pair)) for text, pair in zip(chosen.texts, chosen.pairs or [""] * len(chosen), strict=True)
    }


WORDS = st.sampled_from(["Red car", "red  CAR", "blue car", "sky", "SKY", "rain", "snow", "sun", "moon", "star"])
LINES = st.lists(
    st.builds(lambda a, b, c: {"text": f"{a} {b}", "label": c}, WORDS, WORDS, st.sampled_from("xyz")), max_size=60
)
BASE = [{"text": f"base {i}", "label": "xyz"[i % 3]} for i in range(40)]


@quick
@given(LINES, LINES, LINES, st.integers(0, 1000), st.sampled_from(["", "valid", "test", "valid test", "dev test"]))
def test_no_input_is_in_two_of_train_valid_and_reported(
    tmp_path: Path, train: list[Any], valid: list[Any], test: list[Any], seed: int, given_splits: str
) -> None:
    own = {"train": [*BASE, *train], "valid": valid, "dev": valid, "test": test}
    named = {}
    for split in ["train", *given_splits.split()]:
        extra = [{"text": f"{split} only {i}", "label": "x"} for i in range(3)]
        write_jsonl(tmp_path / f"{split}.jsonl", own[split] + extra)
        named[split] = f"{split}.jsonl"
    data = read_task(tmp_path, "tone", task(**named, seed=seed))
    learned, chosen = inputs(data.fit, data.train), inputs(data.fit, data.valid)
    judged = set().union(*(inputs(rows) for rows in data.reported.values()))
    assert learned
    assert chosen
    assert judged
    assert not learned & chosen
    assert not learned & judged
    assert not chosen & judged
    assert not set(data.train.tolist()) & set(data.valid.tolist())
    assert set(data.reported) == set(given_splits.split()) & {"dev", "test"} or set(data.reported) == {"test"}


@quick
@given(LINES, st.integers(0, 1000))
def test_splits_are_decided_by_the_files_and_the_seed(tmp_path: Path, train: list[Any], seed: int) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*BASE, *train])
    first, second = (read_task(tmp_path, "tone", task(seed=seed)) for _ in range(2))
    assert first.fit == second.fit
    assert first.reported == second.reported
    assert (first.train.tolist(), first.valid.tolist()) == (second.train.tolist(), second.valid.tolist())


def test_another_seed_cuts_another_valid(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", good_rows(100))
    one, two = (read_task(tmp_path, "tone", task(seed=seed)) for seed in (1, 2))
    assert inputs(one.fit, one.valid) != inputs(two.fit, two.valid)


def test_a_cut_is_stratified_and_of_the_asked_size(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "rare" if i % 10 == 0 else "often"} for i in range(400)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = read_task(tmp_path, "tone", task(valid_fraction=0.25, test_fraction=0.2))
    test, valid = data.reported["test"], data.fit.take(data.valid)
    assert (len(test), len(valid), len(data.train)) == (80, 80, 240)
    assert (test.targets.count("rare"), valid.targets.count("rare")) == (8, 8)


def test_dropped_rows_are_noted_with_their_number(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", good_rows())
    write_jsonl(tmp_path / "test.jsonl", [{**row, "text": row["text"].upper() + " "} for row in good_rows(3)])
    data = read_task(tmp_path, "tone", task(test="test.jsonl"))
    assert "train: 3 rows dropped, found in test as well" in data.notes
    assert len(data.train) + len(data.valid) == 37


def test_pairs_are_the_same_input_only_where_both_texts_are(tmp_path: Path) -> None:
    rows = [{"text": "the same text", "text_pair": f"pair {i}", "label": "xy"[i % 2]} for i in range(40)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    others = [{**rows[0], "text_pair": " PAIR  0"}, {**rows[0], "text": "the other text"}]
    write_jsonl(tmp_path / "test.jsonl", others)
    data = read_task(tmp_path, "tone", task(test="test.jsonl"))
    assert len(data.train) + len(data.valid) == 39
    assert "train: 1 row dropped, found in test as well" in data.notes


def test_train_gives_way_to_a_valid_that_is_given(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", good_rows())
    write_jsonl(tmp_path / "valid.jsonl", good_rows(4))
    write_jsonl(tmp_path / "dev.jsonl", [{"text": "unlike", "label": "good"}, {"text": "others", "label": "bad"}])
    data = read_task(tmp_path, "tone", task(valid="valid.jsonl", dev="dev.jsonl"))
    assert (len(data.valid), len(data.train), data.main_split) == (4, 36, "dev")
    assert "train: 4 rows dropped, found in valid as well" in data.notes


def test_test_is_the_main_split_where_dev_is_given_too(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{**row, "text": f"{split} {row['text']}"} for row in good_rows()])
    data = read_task(tmp_path, "tone", task(dev="dev.jsonl", test="test.jsonl"))
    assert list(data.reported) == ["dev", "test"]
    assert data.main_split == "test"


@quick
@given(st.lists(st.integers(0, 12), min_size=40, max_size=80), st.integers(0, 1000))
def test_queries_of_a_relevance_task_are_never_cut_apart(tmp_path: Path, queries: list[int], seed: int) -> None:
    rows = [
        {"text": f"Query {query}" if i % 2 else f"query  {query}", "text_pair": f"passage {i}", "label": str(i % 2)}
        for i, query in enumerate([*queries, *range(100, 120)] * 2)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = read_task(tmp_path, "answers", task("relevance", seed=seed))
    parts = [data.fit.take(data.train), data.fit.take(data.valid), data.reported["test"]]
    asked = [{fold(text) for text in part.texts} for part in parts]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]
    assert data.labels == ("0", "1")
    assert data.positive == "1"


def test_the_query_of_a_relevance_task_is_its_group_or_its_text(tmp_path: Path) -> None:
    rows = [{"text": f"q {i // 4}", "text_pair": f"p {i}", "label": "yes" if i % 4 else "no"} for i in range(80)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = read_task(tmp_path, "answers", task("relevance"))
    assert data.fit.groups == data.fit.texts
    write_jsonl(tmp_path / "train.jsonl", [{**row, "group": i // 8} for i, row in enumerate(rows)])
    data = read_task(tmp_path, "answers", task("relevance"))
    assert data.fit.groups is not None
    assert {
        (group, int(text.split()[1]) // 2) for group, text in zip(data.fit.groups, data.fit.texts, strict=True)
    } == {(str(number), number) for number in {int(group) for group in data.fit.groups}}


def test_a_named_group_column_holds_rows_of_any_kind_together(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{**row, "user": i // 5} for i, row in enumerate(good_rows(200))])
    data = read_task(tmp_path, "tone", task(columns={"group": "user"}))
    train, valid = data.fit.take(data.train), data.fit.take(data.valid)
    assert train.groups is not None
    assert valid.groups is not None
    assert not set(train.groups) & set(valid.groups)


def test_labels_come_from_train_even_those_that_are_drawn_away(tmp_path: Path) -> None:
    rows = [*good_rows(100), {"text": "a single one", "label": "rare"}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = read_task(tmp_path, "tone", task(max_train_rows=30))
    assert data.labels == ("bad", "good", "rare")
    assert len(data.fit) + len(data.reported["test"]) <= 30
    assert "rare" in data.fit.take(data.train).targets


def test_listed_labels_keep_their_order_and_may_be_idle(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", good_rows())
    given_labels = TaskSettings.model_validate({**task().model_dump(), "labels": ["so-so", "good", "bad"]})
    data = read_task(tmp_path, "tone", given_labels)
    assert data.labels == ("so-so", "good", "bad")
    assert 'train.jsonl: no row has "so-so"' in data.notes


KINDS: dict[str, dict[str, Any]] = {
    "classification": {"text": "a", "label": ["x", "y"]},
    "multilabel": {"text": "a", "labels": [["x", "y"], []]},
    "regression": {"text": "a", "text_pair": "b", "score": [0.1, 1e-17]},
    "tagging": {"tokens": ["é", "b"], "tags": [["O", "B-x"], ["B-x", "I-x"]]},
    "relevance": {"text": "a", "text_pair": "b", "label": ["0", "1"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_data_comes_back_the_same_and_saves_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {
            name: value[i % 2]
            if name in {"label", "labels", "score", "tags"}
            else [value[0], f"{value[1]}{i}"]
            if name == "tokens"
            else f"{value} ü\u2028{i}"
            for name, value in KINDS[kind].items()
        }

    write_jsonl(tmp_path / "train.jsonl", [row(i) for i in range(40)])
    data = read_task(tmp_path, "any", task(kind))
    data.save(tmp_path / "one")
    back = TaskData.load(tmp_path / "one")
    assert back.fit == data.fit
    assert back.reported == data.reported
    assert (back.train.tolist(), back.valid.tolist()) == (data.train.tolist(), data.valid.tolist())
    assert (back.labels, back.positive, back.notes) == (data.labels, data.positive, data.notes)
    back.save(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_only_settings_that_change_the_data_change_its_fields() -> None:
    base = data_fields(task())
    same = [
        TaskSettings.model_validate({**task().model_dump(), **other})
        for other in ({"max_tokens": 64}, {"metric": "macro_f1"}, {"tune": {"epochs": 9}}, {"distill": {"layers": []}})
    ]
    same += [task(separator=";"), task(label_separator="/"), task(train="elsewhere/train.jsonl")]
    same += [task(columns={"score": "points"}), task(columns={"text": "text"})]
    assert all(data_fields(other) == base for other in same)
    changed = [
        task(seed=1),
        task(valid_fraction=0.2),
        task(test_fraction=0.2),
        task(max_train_rows=50),
        task("multilabel"),
    ]
    changed += [task(columns={"text": "body"}), task(test="t.jsonl"), task(train="train.csv")]
    changed += [TaskSettings.model_validate({**task().model_dump(), "labels": ["a", "b"]})]
    changed += [TaskSettings.model_validate({**task().model_dump(), "positive": "a"})]
    found = [data_fields(other) for other in changed]
    assert all(fields != base for fields in found)
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


def test_fractions_and_seed_do_not_count_where_nothing_is_cut() -> None:
    whole = {"valid": "v.jsonl", "test": "t.jsonl"}
    base = data_fields(task(**whole))
    assert data_fields(task(**whole, seed=1, valid_fraction=0.3, test_fraction=0.3)) == base
    assert data_fields(task(**whole, max_train_rows=20, seed=1)) != data_fields(task(**whole, max_train_rows=20))


def test_sources_are_local_files_by_split() -> None:
    found = sources(Path("root"), task(valid="../v.csv", test="hub:owner/name#test"))
    assert found == {"train": Path("root/train.jsonl"), "valid": Path("root/../v.csv")}
