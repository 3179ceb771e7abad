"""New projects, tasks more and tasks less: what is written is right, and where something is wrong nothing is."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from projects import read_project

from trunkline.errors import ProjectError, UsageError
from trunkline.project.config import ProjectSettings, load_files
from trunkline.project.scaffold import add_task, new_project, remove_task
from trunkline.project.tasks import Kind

Cell = Callable[[int], Any]

COLUMNS: dict[str, Cell] = {
    "id": lambda i: i,
    "text": lambda i: f"message, number {i}",
    "mood": lambda i: ("good", "bad", "")[i % 3],
    "stars": lambda i: i % 5 + 1,
    "hours": lambda i: i / 4,
    "Topic Tags!": lambda i: ("a|b", "b", "|")[i % 3],
    "comment": lambda i: f"nobody said this twice {i}",
    "always": lambda i: "same",
    "never": lambda i: "",
}


def csv_table(path: Path, columns: dict[str, Cell] = COLUMNS, *, rows: int = 60, separator: str = ",") -> Path:
    """Write a csv of these columns."""

    def line(cells: list[Any]) -> str:
        return separator.join(f'"{cell}"' if separator in str(cell) else str(cell) for cell in cells) + "\n"

    body = "".join(line([cell(i) for cell in columns.values()]) for i in range(rows))
    path.write_text(line(list(columns)) + body, encoding="utf-8")
    return path


def whole_tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_new_project_is_right_and_can_be_read(tmp_path: Path) -> None:
    made = new_project(tmp_path / "a" / "shop")
    assert {path.name for path, _ in made} == {"project.toml", "intent.toml", "example.jsonl"}
    assert all(path.is_file() for path, _ in made)
    files, data = read_project(tmp_path / "a" / "shop")
    assert files.settings == ProjectSettings(name="shop")
    assert len(data["intent"].labels) == 4
    assert sum(map(len, [data["intent"].train, data["intent"].valid, data["intent"].reported["test"]])) == 40
    assert whole_tree(tmp_path / "a") == {
        *("shop", "shop/data", "shop/data/example.jsonl", "shop/project.toml", "shop/tasks", "shop/tasks/intent.toml")
    }


@pytest.mark.parametrize("file", ["project.toml", "tasks/intent.toml"])
def test_every_key_with_a_default_shows_it_as_a_comment_that_can_be_uncommented(tmp_path: Path, file: str) -> None:
    new_project(tmp_path / "shop")
    path = tmp_path / "shop" / file
    before = load_files(tmp_path / "shop")
    text = re.sub(r"^# (\S+ = )(?=\S)(?!\"data/test)", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    given = tomllib.loads(text)
    assert len(given) > 2
    path.write_text(text, encoding="utf-8")
    after = load_files(tmp_path / "shop")
    assert (after.settings, dict(after.tasks)) == (before.settings, dict(before.tasks))


@pytest.mark.parametrize("name", ['say "hi"', "a\\b", "señor 猫 🚂", "tab\tand\x7f"])
def test_any_folder_name_makes_a_project(tmp_path: Path, name: str) -> None:
    new_project(tmp_path / name)
    assert load_files(tmp_path / name).settings.name == name


def test_each_label_column_of_a_table_becomes_a_task_and_the_others_are_named(tmp_path: Path) -> None:
    table = csv_table(tmp_path / "mails.csv")
    made = new_project(tmp_path / "shop", table, "text")
    files, data = read_project(tmp_path / "shop")
    assert {name: task.kind for name, task in files.tasks.items()} == {
        "hours": Kind.REGRESSION,
        "mood": Kind.CLASSIFICATION,
        "stars": Kind.CLASSIFICATION,
        "topic_tags": Kind.MULTILABEL,
    }
    assert data["mood"].labels == ("bad", "good")
    assert "data/mails.csv: 20 rows without a label left out" in data["mood"].notes
    assert data["topic_tags"].labels == ("a", "b")
    assert (tmp_path / "shop" / "data" / "mails.csv").read_bytes() == table.read_bytes()
    said = [what for _, what in made if "makes no task" in what]
    assert [re.match(r"column '(.+)' makes", what)[1] for what in said] == ["id", "comment", "always", "never"]  # type: ignore[index]
    assert "ids" in said[0]


def test_a_pair_column_makes_pair_tasks(tmp_path: Path) -> None:
    columns: dict[str, Cell] = {
        "question": lambda i: f"what is {i}?",
        "answer": lambda i: f"it is {i}",
        "fits": lambda i: i % 2,
    }
    new_project(tmp_path / "shop", csv_table(tmp_path / "t.csv", columns), "question", "answer")
    files, data = read_project(tmp_path / "shop")
    assert files.tasks["fits"].kind is Kind.CLASSIFICATION
    assert data["fits"].fit.pairs is not None
    assert data["fits"].fit.texts[0].startswith("what is")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_of_a_csv_is_found(tmp_path: Path, separator: str) -> None:
    columns: dict[str, Cell] = {"text": lambda i: f"well, {i}", "mood": lambda i: "ab"[i % 2]}
    new_project(tmp_path / "shop", csv_table(tmp_path / "t.csv", columns, separator=separator), "text")
    assert list(read_project(tmp_path / "shop")[1]) == ["mood"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_truth_values_and_numbers_of_typed_tables_are_told_apart(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "text": f"message {i}",
            "tags": [["x"], ["x", "y"], []][i % 3],
            "spam": i % 2 == 0,
            "share": i / 100,
            "code": str(i % 3),
        }
        for i in range(60)
    ]
    table = tmp_path / f"t{suffix}"
    if suffix == ".jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    new_project(tmp_path / "shop", table, "text")
    files, data = read_project(tmp_path / "shop")
    assert {name: task.kind.value for name, task in files.tasks.items()} == {
        "code": "classification",
        "share": "regression",
        "spam": "classification",
        "tags": "multilabel",
    }
    assert data["spam"].labels == ("false", "true")


def test_columns_whose_names_come_out_alike_make_tasks_of_different_names(tmp_path: Path) -> None:
    columns: dict[str, Cell] = {"text": str, "A b": lambda i: i % 2, "a_b": lambda i: i % 3, "ÄÖ": lambda i: i % 2}
    new_project(tmp_path / "shop", csv_table(tmp_path / "t.csv", columns), "text")
    assert list(load_files(tmp_path / "shop").tasks) == ["a_b", "a_b_2", "task"]


def test_a_table_that_lies_in_the_folder_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    table = csv_table(tmp_path / "data" / "mails.csv")
    before = table.read_bytes()
    new_project(tmp_path, table, "text")
    assert "mood" in read_project(tmp_path)[1]
    assert table.read_bytes() == before
    assert not [path for path in whole_tree(tmp_path) if "staging" in path]


def test_a_project_is_never_overwritten(tmp_path: Path) -> None:
    new_project(tmp_path)
    before = {path: (tmp_path / path).read_bytes() for path in whole_tree(tmp_path) if (tmp_path / path).is_file()}
    with pytest.raises(UsageError, match="holds a project already"):
        new_project(tmp_path, csv_table(tmp_path.parent / "t.csv"), "text")
    assert before == {path: (tmp_path / path).read_bytes() for path in before}


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        ({"text": str, "id": lambda i: i}, 60, "no column with labels"),
        ({"text": str}, 60, "no column with labels"),
        ({"text": lambda i: "" if i == 7 else f"t {i}", "mood": lambda i: i % 2}, 60, "empty text"),
        ({"text": lambda i: f"t {i}", "mood": lambda i: i % 2}, 8, "too few rows"),
        ({"txt": str, "mood": lambda i: i % 2}, 60, r"unknown column 'text' \(did you mean 'txt'\?"),
    ],
)
@pytest.mark.parametrize("folder", ["new", "there"])
def test_a_table_that_makes_no_project_leaves_nothing_behind(
    tmp_path: Path, columns: dict[str, Cell], rows: int, said: str, folder: str
) -> None:
    (tmp_path / "there").mkdir()
    table = csv_table(tmp_path / "t.csv", columns, rows=rows)
    before = whole_tree(tmp_path)
    with pytest.raises((UsageError, ProjectError), match=said):
        new_project(tmp_path / folder, table, "text")
    assert whole_tree(tmp_path) == before


def test_arguments_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    table = csv_table(tmp_path / "t.csv")
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"text,mood\n\xff,a\n")
    (tmp_path / "file").write_text("")
    before = whole_tree(tmp_path)
    for arguments, said in (
        ((None, "text", None), "name the table with --from"),
        ((table, None, None), "--from needs --text COLUMN"),
        ((table, "text", "text"), "both name"),
        ((table, "text", "par"), "unknown column 'par'"),
        ((tmp_path / "none.csv", "text", None), "no such file"),
        ((tmp_path / "t.xlsx", "text", None), ".parquet"),
        ((broken, "text", None), "broken UTF-8"),
    ):
        with pytest.raises((UsageError, ProjectError), match=said):
            new_project(tmp_path / "shop", *arguments)
    for folder in ("file", "file/shop"):
        with pytest.raises(UsageError, match="file"):
            new_project(tmp_path / folder)
    assert whole_tree(tmp_path) == before


def test_a_task_is_added_with_its_columns_and_removed_again(tmp_path: Path) -> None:
    new_project(tmp_path)
    csv_table(tmp_path / "data" / "mails.csv", separator=";")
    path = add_task(tmp_path, "tone", "classification", "data/mails.csv", label="mood")
    assert read_project(tmp_path)[1]["tone"].labels == ("bad", "good")
    assert remove_task(tmp_path, "tone") == path
    assert list(load_files(tmp_path).tasks) == ["intent"]
    assert (tmp_path / "data" / "mails.csv").exists()


def test_a_tagging_task_is_added_by_the_column_of_its_words(tmp_path: Path) -> None:
    new_project(tmp_path)
    rows = [{"words": ["to", "paris", str(i)], "tags": ["O", "B-city", "O"]} for i in range(30)]
    (tmp_path / "data" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    add_task(tmp_path, "city", "tagging", "data/t.jsonl", text="words")
    assert read_project(tmp_path)[1]["city"].labels == ("O", "B-city", "I-city")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("intent", "classification", "data/example.jsonl"), "a task 'intent' already"),
        (("My Task", "classification", "data/example.jsonl"), "for instance 'my_task'"),
        (("a/b", "classification", "data/example.jsonl"), "cannot be the name"),
        (("new", "clasification", "data/example.jsonl"), "did you mean 'classification'"),
        (("new", "classification", "data/none.jsonl"), "no such file, as seen from"),
        (("new", "classification", "data/none.txt"), ".jsonl, .csv"),
        (("new", "regression", "data/example.jsonl"), "no column 'score'; name it with --label"),
        (("new", "classification", "data/example.jsonl", "txt"), "did you mean 'text'"),
    ],
)
def test_a_task_that_cannot_be_is_not_added(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    new_project(tmp_path)
    before = whole_tree(tmp_path)
    with pytest.raises(UsageError, match=re.escape(said)):
        add_task(tmp_path, *arguments)
    assert whole_tree(tmp_path) == before


def test_only_a_project_has_tasks_to_add_or_remove(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trunkline init"):
        add_task(tmp_path, "tone", "classification", "rows.jsonl")
    with pytest.raises(UsageError, match="trunkline init"):
        remove_task(tmp_path, "tone")
    new_project(tmp_path)
    with pytest.raises(UsageError, match="did you mean 'intent'"):
        remove_task(tmp_path, "intnt")
