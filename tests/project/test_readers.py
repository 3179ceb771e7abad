"""Data files: every format gives the same rows, and what may look like a fault but is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from project.hostile import write_jsonl

from trunkline.project.config import TaskSettings
from trunkline.project.data import read_task, reads_pairs
from trunkline.project.readers import peek_columns, read_table
from trunkline.project.rows import Rows

TEXTS = ["plain", 'a "quoted" one', "with, comma; and\ttab", "übergrößt 漢字 🙂", "line\u2028separator", "two\nlines"]


def task(file: str, kind: str = "classification", **data: Any) -> TaskSettings:
    return TaskSettings.model_validate({"kind": kind, "data": {"train": file, **data}})


def all_rows(root: Path, settings: TaskSettings) -> dict[str, Any]:
    """Text -> target of every row, whatever split it is in."""
    data = read_task(root, "tone", settings)
    tables: list[Rows] = [data.fit, *data.reported.values()]
    return {text: target for table in tables for text, target in zip(table.texts, table.targets, strict=True)}


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def test_jsonl_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": f"{TEXTS[i % 6]} {i}", "label": str(i % 2)} for i in range(60)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    lines = ["text,label", *(f"{quoted(row['text'])},{row['label']}" for row in rows)]
    (tmp_path / "a.csv").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = {row["text"]: row["label"] for row in rows}
    for file in ("a.jsonl", "a.csv", "a.parquet"):
        assert all_rows(tmp_path, task(file)) == expected, file


def test_quotes_in_tsv_are_characters_like_any_other(tmp_path: Path) -> None:
    lines = ["text\tlabel", *(f'"{i} says: "so\t{i % 2}' for i in range(20))]
    (tmp_path / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert all_rows(tmp_path, task("a.tsv")) == {f'"{i} says: "so': str(i % 2) for i in range(20)}


def test_a_csv_may_have_another_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;label\n" + "".join(f"a, {i};{i % 2}\n" for i in range(20)), encoding="utf-8")
    assert all_rows(tmp_path, task("a.csv", separator=";")) == {f"a, {i}": str(i % 2) for i in range(20)}


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = [
        {"body": f"m {i}", "reply": f"r {i}", "topic": "xy"[i % 2], "key": i, "label": "ignored"} for i in range(20)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    columns = {"text": "body", "text_pair": "reply", "label": "topic", "id": "key"}
    data = read_task(tmp_path, "tone", task("a.jsonl", columns=columns))
    assert data.labels == ("x", "y")
    assert data.fit.pairs is not None
    for text, pair, target, name in zip(data.fit.texts, data.fit.pairs, data.fit.targets, data.fit.ids, strict=True):
        number = int(name)
        assert (text, pair, target) == (f"m {number}", f"r {number}", "xy"[number % 2])


def test_rows_without_ids_are_named_by_file_and_line(tmp_path: Path) -> None:
    lines = ["text,label", *(f'"row\n{i}",{i % 2}' for i in range(20))]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    data = read_task(tmp_path, "tone", task("a.csv"))
    for table in (data.fit, *data.reported.values()):
        for text, name in zip(table.texts, table.ids, strict=True):
            assert name == f"a:{2 + 2 * int(text.split()[1])}"


def test_whole_numbers_and_truth_values_are_labels_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": i % 3} for i in range(30)])
    assert read_task(tmp_path, "tone", task("a.jsonl")).labels == ("0", "1", "2")
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"t {i}", "label": i % 2 == 0} for i in range(30)])
    found = read_task(tmp_path, "tone", task("b.jsonl"))
    assert (found.labels, found.positive) == (("false", "true"), "true")
    with_gaps = [{"text": f"t {i}", "label": None if i == 5 else float(i % 2)} for i in range(30)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(with_gaps), tmp_path / "c.parquet")
    assert read_task(tmp_path, "tone", task("c.parquet")).labels == ("0", "1")


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_rows_with_an_empty_label_are_left_out_and_counted(empty: str | None, tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": empty if i < 7 else str(i % 2)} for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    settings = task("a.jsonl")
    assert len(all_rows(tmp_path, settings)) == 33
    assert "a.jsonl: 7 rows without a label left out" in read_task(tmp_path, "tone", settings).notes


def test_multilabel_cells_are_lists_or_text_with_separators(tmp_path: Path) -> None:
    sets = [["a"], ["a", "b"], [], ["b", "c"]]
    rows = [{"text": f"t {i}", "labels": sets[i % 4]} for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    cells = ["a", " a | b |a", "|", "b|c"]
    (tmp_path / "a.csv").write_text(
        "text,labels\n" + "".join(f"t {i},{cells[i % 4]}\n" for i in range(40)), encoding="utf-8"
    )
    expected = {f"t {i}": sets[i % 4] for i in range(40)}
    assert all_rows(tmp_path, task("a.jsonl", "multilabel")) == expected
    assert all_rows(tmp_path, task("a.csv", "multilabel")) == expected


def test_scores_are_numbers_in_every_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"t {i}", "score": i if i % 2 else i / 2} for i in range(40)])
    (tmp_path / "a.csv").write_text(
        "text,score\n" + "".join(f"t {i}, {i if i % 2 else i / 2}\n" for i in range(40)), encoding="utf-8"
    )
    expected = {f"t {i}": float(i if i % 2 else i / 2) for i in range(40)}
    assert all_rows(tmp_path, task("a.jsonl", "regression")) == expected
    assert all_rows(tmp_path, task("a.csv", "regression")) == expected


def tagging_data(root: Path, rows: list[dict[str, Any]]) -> Rows:
    filler = [{"tokens": ["to", f"c{i}"], "tags": ["O", "B-x"]} for i in range(30)]
    write_jsonl(root / "a.jsonl", filler)
    write_jsonl(root / "t.jsonl", [*rows, *filler[:1]])
    return read_task(root, "tags", task("a.jsonl", "tagging", test="t.jsonl")).reported["test"]


def test_words_point_into_the_text_where_the_tokens_stand_in_it(tmp_path: Path) -> None:
    found = tagging_data(
        tmp_path,
        [
            {"text": "Fly  to Bonn!", "tokens": ["Fly", "to", "Bonn"], "tags": ["O", "O", "B-x"]},
            {"text": "something else", "tokens": ["to", "Bonn"], "tags": ["O", "B-x"]},
            {"text": "into Bonn", "tokens": ["to", "Bonn"], "tags": ["O", "B-x"]},
            {"tokens": ["to", "New York"], "tags": ["O", "B-x"]},
        ],
    )
    assert found.texts[:4] == ["Fly  to Bonn!", "to Bonn", "to Bonn", "to New York"]
    assert found.words is not None
    words = [[text[start:end] for start, end in row] for text, row in zip(found.texts, found.words, strict=True)]
    assert words[:4] == [["Fly", "to", "Bonn"], ["to", "Bonn"], ["to", "Bonn"], ["to", "New York"]]


def test_tags_in_csv_are_cut_at_white_space(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("tokens,tags\n" + "".join(f"to c{i},O B-x\n" for i in range(30)), encoding="utf-8")
    data = read_task(tmp_path, "tags", task("a.csv", "tagging"))
    assert data.labels == ("O", "B-x", "I-x")
    assert all(tags == ["O", "B-x"] for tags in data.fit.targets)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_pairs_are_noticed_without_reading_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "text_pair": ["b"], "label": ["c"]}), path)
    elif suffix == "jsonl":
        path.write_text('{"text": "a", "text_pair": "b", "label": "c"}\nbroken', encoding="utf-8")
    else:
        path.write_text("text,text_pair,label\n".replace(",", "," if suffix == "csv" else "\t"), encoding="utf-8-sig")
    assert peek_columns(tmp_path, path.name, ",") == ("text", "text_pair", "label")
    assert reads_pairs(tmp_path, task(path.name))
    assert not reads_pairs(tmp_path, task(path.name, columns={"text": "label", "text_pair": "x"}, kind="tagging"))


def test_what_a_task_says_decides_before_its_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "b"}])
    assert not reads_pairs(tmp_path, task("a.jsonl"))
    assert reads_pairs(tmp_path, task("a.jsonl", columns={"text_pair": "other"}))
    assert reads_pairs(tmp_path, TaskSettings.model_validate({**task("a.jsonl").model_dump(), "pair": ["joint"]}))
    assert not reads_pairs(tmp_path, task("gone.jsonl"))


def test_columns_of_a_table_are_those_of_any_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n\n" + json.dumps({"label": "b"}), encoding="utf-8")
    table = read_table(tmp_path, "a.jsonl", ("", ""), ",")
    assert not isinstance(table, list)
    assert (table.columns, table.lines) == (("text", "label"), [1, 3])
