"""The hostile set: broken projects, each with what its one message must hold.

`HOSTILE[name].write(folder)` makes a project that is right but for one thing. All of them must end in one clear
message, from Python and from the command line (exit code 2, no traceback).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """A broken project; `says` must all stand in its message; `in_data`: only reading the data shows it."""

    write: Write
    says: tuple[str, ...]
    in_data: bool


HOSTILE: dict[str, Hostile] = {}

CLASSIFICATION = 'kind = "classification"\ndata.train = "data/rows.jsonl"\n'


def good_rows(count: int = 40) -> list[dict[str, Any]]:
    """Rows that a classification task can be made from."""
    return [{"text": f"message number {i}", "label": "good" if i % 2 else "bad"} for i in range(count)]


def good_project(folder: Path, task: str = CLASSIFICATION, rows: list[dict[str, Any]] | None = None) -> None:
    """A project without fault: one task `tone` and its data, and a second task that stays right."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "project.toml").write_text('name = "shop"\n', encoding="utf-8")
    (folder / "tasks" / "tone.toml").write_text(task, encoding="utf-8")
    (folder / "tasks" / "other.toml").write_text(CLASSIFICATION.replace("rows", "other"), encoding="utf-8")
    write_jsonl(folder / "data" / "rows.jsonl", good_rows() if rows is None else rows)
    write_jsonl(folder / "data" / "other.jsonl", good_rows())


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _add(name: str, write: Write, *says: str, in_data: bool) -> None:
    assert name not in HOSTILE, name
    HOSTILE[name] = Hostile(write, says, in_data)


def _file(name: str, path: str, content: str | bytes | None, *says: str) -> None:
    """One file of the project is replaced (None: removed)."""

    def write(folder: Path) -> None:
        good_project(folder)
        target = folder / path
        if content is None:
            target.unlink()
        else:
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    _add(name, write, path, *says, in_data=False)


def _project(name: str, toml: str, *says: str) -> None:
    _file(name, "project.toml", toml, *says)


def _task(name: str, toml: str, *says: str, in_data: bool = False) -> None:
    """The settings of the task are wrong."""
    _add(name, lambda folder: good_project(folder, toml), "tasks/tone.toml", *says, in_data=in_data)


def _data(
    name: str, content: str | bytes, *says: str, file: str = "rows.jsonl", task: str = "", more: str = ""
) -> None:
    """The task's data file has this content."""

    def write(folder: Path) -> None:
        good_project(folder, task or f'kind = "classification"\ndata.train = "data/{file}"\n{more}')
        (folder / "data" / file).write_bytes(content.encode() if isinstance(content, str) else content)

    _add(name, write, f"data/{file}", *says, in_data=True)


def _rows(name: str, change: Callable[[list[Any]], None], *says: str, task: str = CLASSIFICATION) -> None:
    """The rows of a right data file after a change."""

    def write(folder: Path) -> None:
        rows: list[Any] = good_rows()
        change(rows)
        good_project(folder, task)
        write_jsonl(folder / "data" / "rows.jsonl", rows)

    _add(name, write, "data/rows.jsonl", *says, in_data=True)


def _reported(name: str, rows: list[Any], *says: str, task: str = CLASSIFICATION) -> None:
    """A right train file, and a test file with these rows."""

    def write(folder: Path) -> None:
        good_project(folder, task + 'data.test = "data/test.jsonl"\n')
        write_jsonl(folder / "data" / "test.jsonl", rows)

    _add(name, write, *says, in_data=True)


def _set(row: int, **cells: Any) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        rows[row] = {key: value for key, value in {**rows[row], **cells}.items() if value is not ...}

    return change


def _each(make: Callable[[int, dict[str, Any]], Any]) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        rows[:] = [make(index, row) for index, row in enumerate(rows)]

    return change


# project.toml
_file("no project file", "project.toml", None, "not found")
_project("project file is not TOML", 'name = "shop\n', "line 1", "not valid TOML")
_project("project file ends too early", "budget = { max_cost = 0.5", "not valid TOML")
_file("project file is not UTF-8", "project.toml", b'seed = 1\nname = "caf\xe9"\n', "line 2", "UTF-8", "0xe9")
_project("key given twice", 'name = "a"\nname = "b"\n', "line 2", "not valid TOML")
_project("unknown key", 'encodr = "minilm"\n', "'encodr'", "did you mean 'encoder'?", '"minilm"')
_project(
    "unknown key in a table", "[budget]\nmin_quality = 0.9\n", "budget.min_quality", "'budget.min_relative_quality'"
)
_project("unknown table", "[serch]\nseeds = 2\n", "'serch'", "did you mean 'search'?")
_project("key in the wrong table", "max_cost = 0.5\n", "did you mean 'budget.max_cost'?", "0.5")
_project("seed is text", 'seed = "13"\n', "seed", '"13"', "a whole number")
_project("seed is a truth value", "seed = true\n", "seed", "true", "a whole number")
_project("seed is a fraction", "seed = 1.5\n", "seed", "1.5", "a whole number")
_project("seed is negative", "seed = -1\n", "seed", "-1", "at least 0")
_project("seed is a date", "seed = 2024-01-01\n", "seed", "2024-01-01", "a whole number")
_project("budget is too high", "budget.min_relative_quality = 99.6\n", "99.6", "at most 1.2")
_project("cost is nothing", "budget.max_cost = 0\n", "budget.max_cost", "more than 0")
_project("cost is not a number", "budget.max_cost = nan\n", "budget.max_cost", "NaN", "more than 0")
_project("both budgets", "[budget]\nmin_relative_quality = 0.9\nmax_cost = 0.5\n", "budget", "max_cost", "one of them")
_project("budget is not a table", "budget = 0.99\n", "budget", "0.99", "a table", "max_cost")
_project("no such device", 'device = "gpu"\n', "device", '"gpu"', '"cuda"')
_project("no such engine", 'cost.engine = "onnx"\n', "cost.engine", '"onnx"', '"openvino"')
_project("empty name", 'name = " "\n', "name", "empty")

# Names of task files
_file("name with capitals", "tasks/Tone.toml", CLASSIFICATION, "file name", '"Tone.toml"', "a-z")
_file("name with a blank", "tasks/my tone.toml", CLASSIFICATION, "file name", '"my tone.toml"', "a-z")
_file("task in YAML", "tasks/new.yaml", "kind: classification\n", "not a task file", ".yaml", "tasks/new.toml")


def _no_tasks(folder: Path) -> None:
    good_project(folder)
    for path in (folder / "tasks").iterdir():
        path.unlink()


def _task_folder(folder: Path) -> None:
    good_project(folder)
    (folder / "tasks" / "old.toml").mkdir()


_add("no tasks", _no_tasks, "tasks/", "no task", "tasks/NAME.toml", in_data=False)
_add("folder named like a task", _task_folder, "tasks/old.toml", "not a file", "a folder", in_data=False)

# Task files
_task("task file is not TOML", "kind classification\n", "line 1", "not valid TOML")
_task("no kind", 'data.train = "data/rows.jsonl"\n', "kind", "is required", '"tagging"')
_task("no such kind", 'kind = "sentiment"\ndata.train = "data/rows.jsonl"\n', "kind", '"sentiment"', '"multilabel"')
_task("kind is a number", 'kind = 3\ndata.train = "data/rows.jsonl"\n', "kind", "3", '"multilabel"')
_task("no data", 'kind = "classification"\n', "data.train", "is required", "nothing")
_task("no train", 'kind = "classification"\ndata.test = "data/rows.jsonl"\n', "data.train", "is required", "a path")
_task("train is nothing", 'kind = "classification"\ndata.train = ""\n', "data.train", "not a path", "hub:owner/name")
_task("layers in a table of tables", f"{CLASSIFICATION}[[tune]]\nlayers = [2]\n", "tune", "wrong type", "a table")
_task("data is a file name", 'kind = "classification"\ndata = "data/rows.jsonl"\n', "data", "a table", "train")
_task(
    "unknown key in tune", f"{CLASSIFICATION}tune.learning_rat = 1e-4\n", "did you mean 'tune.learning_rate'?", "0.0001"
)
_task("tune key at the top", f"{CLASSIFICATION}learning_rate = 1e-4\n", "'tune.learning_rate'", "'full.learning_rate'")
_task("no layers", f"{CLASSIFICATION}tune.layers = []\n", "tune.layers", "empty", "[]")
_task("zero layers", f"{CLASSIFICATION}tune.layers = [0]\n", "tune.layers", "0", "at least 1")
_task("layers in words", f'{CLASSIFICATION}tune.layers = ["two"]\n', "tune.layers", '"two"', "whole numbers")
_task("layers given twice", f"{CLASSIFICATION}tune.layers = [2, 2]\n", "tune.layers", "'2' stands there twice")
_task(
    "student as deep as its teacher",
    f"{CLASSIFICATION}tune.layers = [2]\ndistill.layers = [2]\n",
    "distill.layers",
    "fewer layers than its teacher",
    "2",
    "tune.layers = [2]",
)
_task("no such teacher", f'{CLASSIFICATION}distill.teachers = ["gpt"]\n', "distill.teachers", '"gpt"', '"full"')
_task("no such form of exit", f'{CLASSIFICATION}exits.forms = ["mlp"]\n', "exits.forms", '"mlp"', '"linear"')
_task("no such rule of exits", f'{CLASSIFICATION}exits.rule = "doubt"\n', "exits.rule", '"doubt"', '"patience"')
_task("an exit before all layers", f"{CLASSIFICATION}exits.depths = [0]\n", "exits.depths", "0", "at least 1")
_task("exits neither on nor off", f'{CLASSIFICATION}exits.enabled = "yes"\n', "exits.enabled", '"yes"', "true or false")
_task("learning rate is text", f'{CLASSIFICATION}tune.learning_rate = "5e-5"\n', "tune.learning_rate", '"5e-5"')
_task("warmup is all", f"{CLASSIFICATION}full.warmup = 1.0\n", "full.warmup", "1.0", "less than 1")
_task("no epochs", f"{CLASSIFICATION}tune.epochs = 0\n", "tune.epochs", "0", "more than 0")
_task("metric of another kind", f'{CLASSIFICATION}metric = "entity_f1"\n', "metric", '"entity_f1"', "matthews")
_task(
    "fraction above half", f"{CLASSIFICATION}data.valid_fraction = 0.9\n", "data.valid_fraction", "0.9", "at most 0.5"
)
_task("labels twice", f'{CLASSIFICATION}labels = ["bad", "good", "bad"]\n', "labels", "'bad' stands there twice")
_task("one label", f'{CLASSIFICATION}labels = ["bad"]\n', "labels", "at least two labels")
_task(
    "positive is no label",
    f'{CLASSIFICATION}labels = ["bad", "good"]\npositive = "great"\n',
    "positive",
    '"great"',
    '"bad", "good"',
)
_task("no such reading", f'{CLASSIFICATION}pair = "both"\n', "pair", '"both"', '"separate"')
_task(
    "separator of two characters", f'{CLASSIFICATION}data.separator = ";;"\n', "data.separator", '";;"', "one character"
)
_task(
    "unknown column role", f'{CLASSIFICATION}data.columns.txt = "body"\n', "did you mean 'data.columns.text'?", "body"
)
_task("hub name without a split", 'kind = "classification"\ndata.train = "hub:glue/sst2"\n', "data.train", "#split")
_task(
    "labels of a number",
    'kind = "regression"\nlabels = ["1"]\ndata.train = "data/rows.jsonl"\n',
    "labels",
    "regression",
)
_task(
    "tags out of shape", 'kind = "tagging"\nlabels = ["O", "city"]\ndata.train = "data/rows.jsonl"\n', "BIO", '"city"'
)
_task("tags without O", 'kind = "tagging"\nlabels = ["B-city"]\ndata.train = "data/rows.jsonl"\n', "labels", '"O"')
_task("pair for tags", 'kind = "tagging"\npair = "joint"\ndata.train = "data/rows.jsonl"\n', "pair", "tagging")
_task(
    "same file twice",
    f'{CLASSIFICATION}data.test = "data/../data/rows.jsonl"\n',
    "data.test",
    "data.train",
    "another file",
)

# Data files that cannot be read
_task("no such data file", CLASSIFICATION.replace("rows", "gone"), "data.train", '"data/gone.jsonl"', in_data=True)
_task("data file is a folder", 'kind = "classification"\ndata.train = "data"\n', "data.train", ".jsonl", in_data=True)
_task("data in a workbook", CLASSIFICATION.replace(".jsonl", ".xlsx"), "rows.xlsx", ".parquet", in_data=True)
_data("empty file", "", "no rows")
_data("blank lines only", "\n\n", "no rows")
_data("header only", "text,label\n", "no rows", file="rows.csv")
_data("broken UTF-8", b'{"text": "ok", "label": "a"}\n{"text": "caf\xe9", "label": "b"}\n', "line 2", "UTF-8", "0xe9")
_data("UTF-16", '{"text": "ok"}\n'.encode("utf-16"), "line 1", "UTF-16", "UTF-8")
_data("broken UTF-8 in a csv", b"text,label\nok,a\ncaf\xe9,b\n", "line 3", "UTF-8", file="rows.csv")
_data("not JSON", '{"text": "ok", "label": "a"}\n{"text": "no\n', "line 2", "not valid JSON", "one JSON object a line")
_data("one JSON array", '[{"text": "ok", "label": "a"}]\n', "line 1", "not an object")
_data("an endless number", '{"text": "ok", "label": ' + "9" * 5000 + "}\n", "line 1", "not valid JSON")
_data("nested without end", "[" * 100_000 + "\n", "line 1", "not valid JSON")
_data(
    "more cells than columns",
    "text,label\nok,a\nyes, please,b\n",
    "line 3",
    "3",
    "2, as in the header",
    file="rows.csv",
)
_data("unclosed quote", 'text,label\nok,a\n"never closed,b\nmore,a\n', "line 3", "CSV", file="rows.csv")
_data("text after a quote", 'text,label\n"so" they said,a\n', "line 2", "CSV", file="rows.csv")
_data("two columns of one name", "text,label,text\na,b,c\n", "line 1", '"text"', "each once", file="rows.csv")
_data("other separator", "text;label\nok;a\n", "line 1", '"text;label"', "data.separator", file="rows.csv")
_data("not parquet", b"PAR1 but not really", "parquet", file="rows.parquet")

# Rows
_rows("no text column", _each(lambda _, row: {"body": row["text"], "label": row["label"]}), '"text"', '"body"')
_rows("no label column", _each(lambda _, row: {"text": row["text"]}), '"label"', "data.columns.label")
_rows(
    "no such named column",
    _each(lambda _, row: row),
    'column "body"',
    "data.columns.text",
    task=f'{CLASSIFICATION}data.columns.text = "body"\n',
)
_rows("pair task without pairs", _each(lambda _, row: row), '"text_pair"', task=f'{CLASSIFICATION}pair = "joint"\n')
_rows("empty text", _set(3, text="  "), "line 4", "empty text")
_rows("missing text", _set(3, text=...), "line 4", "empty text", "nothing")
_rows("text is a number", _set(3, text=17), "line 4", "wrong type of text", "17")
_rows("half a surrogate pair", _set(3, text="\ud83d"), "line 4", "Unicode", "surrogate")
_rows("label is a list", _set(3, label=["good"]), "line 4", "wrong type of label", '["good"]')
_rows("label is a fraction", _set(3, label=0.5), "line 4", "wrong type of label", "0.5")
_rows("no labels at all", _each(lambda _, row: {**row, "label": ""}), '"label"', "every row is unlabelled", "40")
_rows("one label only", _each(lambda _, row: {**row, "label": "good"}), "only one label", '"good"', "at least two")
_rows("too few rows", lambda rows: rows.__delitem__(slice(6, None)), "too few rows", "at least 10 in train")
_rows(
    "duplicate ids",
    _each(lambda index, row: {**row, "id": f"m{index % 39}"}),
    "line 40",
    "duplicate id",
    '"m0", as line 1',
)
_rows("pair in later rows only", _set(3, text_pair="and this"), "line 1", "missing text_pair")
_rows(
    "label outside the list",
    _set(3, label="so-so"),
    "line 4",
    '"so-so"',
    task=f'{CLASSIFICATION}labels = ["bad", "good"]\n',
)
_rows(
    "more than ten of a kind",
    _each(lambda index, row: {**row, "text": ""}),
    "lines 1, 2, 3",
    "(40 in all)",
    "empty text",
)

REGRESSION = 'kind = "regression"\ndata.train = "data/rows.jsonl"\n'
_score = _each(lambda index, row: {"text": row["text"], "score": index / 8})


def _scores(name: str, value: Any, *says: str) -> None:
    def change(rows: list[Any]) -> None:
        _score(rows)
        rows[3]["score"] = value

    _rows(name, change, *says, task=REGRESSION)


_scores("score is text", "high", "line 4", "score is not a number", '"high"', "a finite number")
_scores("score is a truth value", True, "line 4", "score is not a number", "true")
_scores("score is NaN", float("nan"), "line 4", "score is not finite", "NaN")
_scores("score is infinite", float("-inf"), "line 4", "score is not finite", "-Infinity")
_scores("score is out of all bounds", 10**400, "line 4", "score is not a number")
_rows(
    "all scores equal",
    _each(lambda _, row: {"text": row["text"], "score": 3}),
    "every score is the same",
    "3 in every row",
    task=REGRESSION,
)
_data(
    "decimal comma",
    "text;score\n" + "".join(f"row {i};{i},5\n" for i in range(12)),
    "score is not a number",
    '"0,5"',
    file="rows.csv",
    task='kind = "regression"\ndata.train = "data/rows.csv"\ndata.separator = ";"\n',
)

TAGGING = 'kind = "tagging"\ndata.train = "data/rows.jsonl"\n'


def _tagged(name: str, cells: dict[str, Any], *says: str) -> None:
    def change(rows: list[Any]) -> None:
        rows[:] = [{"tokens": ["to", f"city{i}"], "tags": ["O", "B-city"]} for i in range(40)]
        rows[3].update(cells)

    _rows(name, change, *says, task=TAGGING)


_tagged("more tokens than tags", {"tags": ["O"]}, "line 4", "tokens and tags differ in length", "2 tokens, 1 tags")
_tagged("tags out of BIO", {"tags": ["O", "city"]}, "line 4", "not a BIO tag", '"city"', "B-type")
_tagged("tags are text", {"tags": "O B-city"}, "line 4", "tags is not a list of text", '"O B-city"')
_tagged("empty token", {"tokens": ["to", " "]}, "line 4", "empty text in tokens")
_tagged("no tokens", {"tokens": []}, "line 4", "empty tokens")
_rows(
    "no entity",
    _each(lambda index, row: {"tokens": ["to", f"city{index}"], "tags": ["O", "O"]}),
    "no entity in any row",
    task=TAGGING,
)

MULTILABEL = 'kind = "multilabel"\ndata.train = "data/rows.jsonl"\n'


def _labelled(rows: list[Any]) -> None:
    rows[:] = [{"text": row["text"], "labels": [row["label"]]} for row in rows]
    rows[3]["labels"] = "good"


_rows("labels are text", _labelled, "line 4", "wrong type of labels", '"good"', "a list of labels", task=MULTILABEL)
_rows(
    "no label in any list",
    _each(lambda _, row: {"text": row["text"], "labels": []}),
    "no label in any row",
    task=MULTILABEL,
)

RELEVANCE = 'kind = "relevance"\ndata.train = "data/rows.jsonl"\n'


def _answers(labels: list[str]) -> Callable[[list[Any]], None]:
    return _each(
        lambda index, row: {
            "text": f"question {index // 4}",
            "text_pair": row["text"],
            "label": labels[index % len(labels)],
        }
    )


_rows("three grades of relevance", _answers(["0", "1", "2"]), "two labels", '"0", "1", "2"', task=RELEVANCE)
_rows("relevance without pairs", _each(lambda _, row: row), 'column "text_pair"', task=RELEVANCE)


def _unclear(folder: Path) -> None:
    rows = good_rows()
    _answers(["hot", "cold"])(rows)
    good_project(folder, RELEVANCE, rows)


_add("positive unclear", _unclear, "tasks/tone.toml", "positive", '"cold"', '"hot"', in_data=True)
_task("f1 without a positive", f'{CLASSIFICATION}metric = "f1"\n', "positive", '"bad"', '"good"', in_data=True)

# Other splits
_reported(
    "unseen label",
    [{"text": f"news {i}", "label": "fine" if i in (2, 4) else "good"} for i in range(6)],
    "data/test.jsonl",
    "lines 3, 5",
    '"fine"',
    "data/rows.jsonl",
    '"bad", "good"',
)
_reported(
    "test holds the rows of train",
    good_rows(),
    "data/rows.jsonl",
    "too few rows",
    "40 rows dropped, found in test as well",
)
_reported("one row to report on", [{"text": "news", "label": "good"}], "too few rows", "1 in test")


def _unpaired_test(folder: Path) -> None:
    good_project(
        folder, f'{CLASSIFICATION}data.test = "data/test.jsonl"\n', [{**row, "text_pair": "so"} for row in good_rows()]
    )
    write_jsonl(folder / "data" / "test.jsonl", good_rows())


_add("test without pairs", _unpaired_test, "data/test.jsonl", 'column "text_pair"', '"text", "label"', in_data=True)


def _many_labels(folder: Path) -> None:
    rows = [{"text": f"number {i}", "label": f"label {i % 15}"} for i in range(60)]
    good_project(folder, f"{CLASSIFICATION}data.max_train_rows = 12\n", rows)


_add(
    "fewer rows than labels", _many_labels, "tasks/tone.toml", "data.max_train_rows", "12", "at least 15", in_data=True
)
