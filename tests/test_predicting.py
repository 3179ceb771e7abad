"""Streams of inputs: every format, in order, in bounded memory, and a bad line alone in its failure."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from branches import INPUTS, branch_files, load_trunk, random_branch, tiny_source

from trunkline import cli
from trunkline.bundle import Bundle
from trunkline.bundle.merge import merge
from trunkline.engine.base import Input, ItemError
from trunkline.engine.inputs import read_inputs
from trunkline.errors import UsageError
from trunkline.model.branch import save_branch
from trunkline.predicting import AHEAD, answers_of, stream
from trunkline.project.tasks import Answer, Span


class Lengths:
    """Answers with the length of a text; remembers how many inputs it was given at once."""

    tasks = ("length",)

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.dialled: list[tuple[float | None, float | None]] = []

    def predict(
        self,
        inputs: Iterable[object],
        tasks: Iterable[str] | None = None,
        batch_size: int = 32,
        *,
        speed: float | None = None,
        keep: float | None = None,
    ) -> list[dict[str, Answer | ItemError]]:
        items = list(inputs)
        self.pieces.append(len(items))
        self.dialled.append((speed, keep))
        return [{"length": Answer(score=len(item.text)) if isinstance(item, Input) else item} for item in items]  # type: ignore[dict-item]


def read(file: Path | None = None, stdin: bytes = b"", **columns: str) -> list[Input | ItemError]:
    return list(read_inputs(file, io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"), **columns))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_stdin_holds_texts_and_objects() -> None:
    stdin = (
        'plain\r\n{"text": "a", "text_pair": "b", "id": 7}\n\n{"text": "c", "words": [[0, 1]]}\n  spaced 猫'.encode()
    )
    assert read(stdin=stdin) == [
        Input("plain"),
        Input("a", "b"),
        Input(""),  # a line of its own in the answers too, so that lines can be put side by side
        Input("c", words=((0, 1),)),
        Input("  spaced 猫"),
    ]


def test_stdin_without_bytes_is_read_as_text() -> None:
    assert list(read_inputs(None, io.StringIO("a\nb\n"))) == [Input("a"), Input("b")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": }', "line 2: not valid JSON: Expecting value at column 10"),
        (b"{" * 100_000, "line 2: not valid JSON"),
        (b'{"txt": "a"}', "line 2: no text"),
        (b'{"text": null}', "line 2: no text"),
        (b'{"text": 5}', "line 2: text must be a string"),
        (b'{"text": "a", "text_pair": ["b"]}', "line 2: text_pair must be a string"),
        (b'{"text": "a", "words": 3}', "line 2: words must be"),
        (b"caf\xe9", "line 2: broken UTF-8: byte 0xe9"),
    ],
)
@pytest.mark.parametrize("source", ["stdin", "file"])
def test_a_bad_line_fails_alone(tmp_path: Path, line: bytes, said: str, source: str) -> None:
    content = b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n'
    found = read(write(tmp_path / "x.jsonl", content)) if source == "file" else read(stdin=content)
    assert [found[0], found[2]] == [Input("before"), Input("after")]
    assert isinstance(found[1], ItemError)
    assert said in found[1].message


def test_a_jsonl_file_may_hold_empty_lines_a_byte_order_mark_and_other_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"text": "a", "label": "x"}\n\n{"text": "b\\u2028c"}')
    assert read(file) == [Input("a"), Input("b\u2028c")]


def test_a_line_of_jsonl_that_is_no_object_fails_alone(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x.jsonl", b'["a"]\n{"text": "b"}\n'))
    assert isinstance(found[0], ItemError)
    assert "not an object" in found[0].message
    assert found[1] == Input("b")


def test_csv_cells_may_hold_line_breaks_and_bad_rows_fail_alone(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid, text ,text_pair\n1,"a, ""b""\nc",d\n2,short\n\n3,"x" y,z\n4,caf\xe9,z\n5,,z\n'
    content += b'6,last,"caf\xc3\xa9"\n'
    found = read(write(tmp_path / "x.csv", content))
    assert found[0] == Input('a, "b"\nc', "d")
    assert [getattr(item, "message", "")[:40] for item in found[1:4]] == [
        "line 4: 2 cells; the header has 3",
        "line 6: not valid CSV: ',' expected afte",
        "line 7: broken UTF-8: byte 0xe9",
    ]
    assert found[4:] == [Input("", "z"), Input("last", "café")]


def test_quotes_in_tsv_are_letters(tmp_path: Path) -> None:
    file = write(tmp_path / "x.tsv", b'text\tlabel\n"open\t1\nnext"\t2\n')
    assert read(file) == [Input('"open'), Input('next"')]


def test_parquet_is_read_and_its_empty_cells_fail_alone(tmp_path: Path) -> None:
    rows = [{"text": "a", "text_pair": "b", "n": 1}, {"text": None, "text_pair": "b", "n": 2}, {"text": "c", "n": 3}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == [Input("a", "b"), ItemError("row 2: no text"), Input("c")]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", b"q,a,text\none,two,three\n")
    assert read(file, text="q", text_pair="a") == [Input("one", "two")]
    assert read(stdin=b'{"q": "one", "a": "two"}\n', text="q", text_pair="a") == [Input("one", "two")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "cannot be read"),
        ("x.xlsx", b"", "known are .jsonl"),
        ("x.csv", b"txt,label\na,b\n", "no column 'text' (columns: txt, label)"),
        ("x.csv", b"", "no column 'text' (columns: none)"),
        ("x.csv", b'"a" b,text\n', "line 1 is not valid CSV"),
        ("x.parquet", b"PAR0", "not a readable parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused_before_any_answer(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_inputs(file, io.StringIO())
    assert said in str(caught.value)


def test_a_parquet_file_that_is_damaged_further_on_says_where(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    texts = [f"the same words again and again {number}" for number in range(3072)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=1024, use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(file).metadata.row_group(2).column(0)
    content = bytearray(file.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 200] = bytes(byte ^ 0xFF for byte in content[middle : middle + 200])
    file.write_bytes(content)
    found = read_inputs(file, io.StringIO())
    assert [next(found) for _ in range(2048)] == [Input(text) for text in texts[:2048]]
    with pytest.raises(UsageError, match=r"x\.parquet: cannot be read after row 2048: "):
        next(found)


def test_answers_come_in_order_with_few_inputs_in_memory() -> None:
    model, out = Lengths(), io.StringIO()
    ahead: list[int] = []

    def inputs() -> Iterator[Input]:
        for number in range(100):
            ahead.append(number - out.getvalue().count("\n"))
            yield Input("x" * number)

    count, seconds = stream(model, inputs(), None, 4, out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["answers"]["length"]["score"] for row in rows] == list(range(100)) == [len(row["text"]) for row in rows]
    assert count == 100
    assert seconds >= 0
    assert max(model.pieces) == 4 * AHEAD
    assert max(ahead) < 4 * AHEAD


def test_a_speed_or_a_keep_is_for_every_piece() -> None:
    model = Lengths()
    stream(model, [Input("x")] * 40, None, 4, io.StringIO(), speed=0.5)
    stream(model, [Input("x")], None, 4, io.StringIO(), keep=0.98)
    assert model.dialled == [(0.5, None)] * 2 + [(None, 0.98)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose "intent" has exits."""
    folder = tmp_path_factory.mktemp("exits")
    source = tiny_source(folder / "encoder")
    exits = [{"depth": depth, "form": "linear"} for depth in (1, 2)]
    points = [{"speed": speed, "quality": 0.9, "layers": 3.0, "time": 1 - speed} for speed in (0.0, 0.9)]
    sorts = {"intent": {"exits": exits, "speeds": points}, "plain": {}}
    files = branch_files(folder / "branches", load_trunk(source), sorts)
    return merge(source, files, INPUTS, folder / "bundles", name="exits")


Command = Callable[..., tuple[object, str]]


@pytest.fixture
def command(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `trunkline predict` on the bundle; gives the exit code and what was said."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["trunkline", "predict", "--bundle", str(bundle), *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            said = capsys.readouterr()
            return stop.code, said.out + said.err
        return 0, capsys.readouterr().out

    return run


def test_the_command_lets_texts_leave_at_a_speed_or_at_what_keeps_as_much(command: Command, bundle: Path) -> None:
    right = answers_of(Bundle.load(bundle).predict(["play some music"], speed=0.9)[0])
    assert right["intent"]["exit_layer"] >= 1
    for dial in (["--speed", "0.9"], ["--speed", "intent=0.9"], ["--keep", "0.99"]):
        code, said = command("play some music", "--json", *dial)
        assert (code, json.loads(said)[0]["answers"]) == (0, right)
    assert "exit_layer" not in command("play some music", "--json")[1]
    shown = command("play some music", "--speed", "0.9")[1].splitlines()
    assert [line.endswith(f"layer {right['intent']['exit_layer']}") for line in shown] == [False, True, False]
    assert "layer" not in command("play some music")[1]
    assert "layer" not in command("play some music", "--speed", "plain=0.9")[1]


def test_the_speed_of_each_task_is_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Bundle.load(bundle)
    stands_for = model.speeds(keep=0.99)
    assert set(stands_for) == set(model.tasks)
    assert 0 < stands_for["intent"] < 1
    assert model.speeds(["intent"], speed={"intent": 0.4}) == {"intent": 0.4}
    assert model.predict(["play some music"], keep=0.99) == model.predict(["play some music"], speed=stands_for)
    monkeypatch.setattr(sys, "argv", ["trunkline", "predict", "--bundle", str(bundle), "hello", "--keep", "0.99"])
    cli.main()
    told = ", ".join(f"{task} {speed:g}" for task, speed in stands_for.items())
    assert capsys.readouterr().err == f"speed: {told}\n"


def test_the_command_marks_what_is_out_of_scope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, files = tiny_source(tmp_path / "encoder"), {}
    for task, shift in (("calm", -1e4), ("wary", 1e4)):
        scope = {"false_alarms": 0.1, "classes": 3, "depths": [{"depth": 2, "directions": 2}]}
        branch = random_branch(load_trunk(source), task, scope=scope)
        branch.get_submodule("scopes.2").get_buffer("offsets").add_(shift)
        files[task] = tmp_path / f"{task}.safetensors"
        save_branch(branch, files[task])
    folder = merge(source, files, INPUTS, tmp_path / "bundles", name="scope")

    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["trunkline", "predict", "--bundle", str(folder), "play music", *arguments])
        cli.main()
        return capsys.readouterr().out

    answers = json.loads(said("--json"))[0]["answers"]
    assert {task: (found["out_of_scope"], found["scope"] > 0) for task, found in answers.items()} == {
        "calm": (False, False),
        "wary": (True, True),
    }
    assert [line.endswith("out of scope") for line in said().splitlines()] == [False, False, True]


@pytest.mark.parametrize(
    ("dial", "said"),
    [
        (["--speed", "2"], "--speed is a number from 0 to 1, or TASK=NUMBER; found '2'"),
        (["--keep", "-1"], "--keep is a number from 0 to 1, or TASK=NUMBER; found '-1'"),
        (["--keep", "intent=nan"], "found 'intent=nan'"),
        (["--speed", "0.5", "--speed", "intent=0.9"], "--speed is given several times for different tasks"),
        (["--speed", "intent=0.5", "--speed", "intent=0.9"], "--speed names task 'intent' twice"),
        (["--speed", "intnet=0.5"], "unknown task 'intnet'"),
        (
            ["--speed", "intent=0.5", "--keep", "intent=0.9"],
            "ask for a speed or for a keep, not for both (task 'intent')",
        ),
        (["--speed", "0.5", "--keep", "0.9"], "give --speed or --keep, not both"),
    ],
)
def test_a_speed_that_is_none_is_the_users_error(command: Command, dial: list[str], said: str) -> None:
    code, found = command("play some music", *dial)
    assert code == 2
    assert said in found


def test_an_input_that_could_not_be_read_keeps_its_place() -> None:
    out = io.StringIO()
    stream(Lengths(), [Input("a", "b"), ItemError("line 2: broken"), Input("c")], ["length"], 2, out)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"text": "a", "text_pair": "b", "answers": {"length": {"score": 1}}},
        {"text": None, "answers": {"length": {"error": "line 2: broken"}}},
        {"text": "c", "answers": {"length": {"score": 1}}},
    ]


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "half \ud83d"), ("ascii", "猫"), ("latin-1", "猫")])
def test_letters_that_the_output_cannot_hold_are_escaped(encoding: str, text: str) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    stream(Lengths(), [Input(text)], None, 2, out)
    assert json.loads(raw.getvalue())["text"] == text


def test_an_unknown_task_is_refused_even_without_inputs() -> None:
    with pytest.raises(UsageError, match="did you mean 'length'"):
        stream(Lengths(), [], ["lenght"], 2, io.StringIO())


def test_answers_are_ready_for_json_and_leave_out_what_their_kind_has_not() -> None:
    span = Span("city", 0, 5, "Paris", 0.5)
    found: dict[str, Any] = answers_of(
        {"slots": Answer(spans=[span], words=["Paris"], tags=["B-city"]), "bad": ItemError("no")}
    )
    assert json.loads(json.dumps(found)) == {
        "slots": {
            "spans": [{"label": "city", "start": 0, "end": 5, "text": "Paris", "score": 0.5}],
            "words": ["Paris"],
            "tags": ["B-city"],
        },
        "bad": {"error": "no"},
    }
