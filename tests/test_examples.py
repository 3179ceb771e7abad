"""The examples: their data keeps to its own guide, and what they write is a project that loads."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trunkline.project.config import load_files
from trunkline.project.data import read_task
from trunkline.project.tasks import Kind, split_words

ROOT = Path(__file__).parents[1]
ASSISTANT = ROOT / "examples" / "assistant"
PREPARE = ROOT / "examples" / "glue" / "prepare.py"
REAL = Path(os.environ.get("TRUNKLINE_DATA", ROOT.parent / "shared" / "data"))
GENERATED = ("messages", "messages_valid", "pairs", "pairs_valid")


def script(path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, check=False)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ASSISTANT / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ASSISTANT))
    return importlib.import_module("check")


# The assistant


def test_the_committed_data_keeps_to_its_guide_and_no_test_row_is_one_of_the_generator(check: ModuleType) -> None:
    assert check.problems() == []


def test_generate_writes_the_committed_files_again_byte_for_byte(tmp_path: Path) -> None:
    done = script(ASSISTANT / "generate.py", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(GENERATED)
    for name in GENERATED:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (ASSISTANT / "data" / f"{name}.jsonl").read_bytes()


def test_another_seed_writes_other_messages(tmp_path: Path) -> None:
    assert script(ASSISTANT / "generate.py", "--out", tmp_path, "--seed", "14").returncode == 0
    other = {json.loads(line)["text"] for line in (tmp_path / "messages.jsonl").read_text("utf-8").splitlines()}
    assert len(other & {row["text"] for row in rows("messages")}) < len(other) / 10


def test_the_check_recognises_what_the_generator_says(check: ModuleType) -> None:
    wordings = check.Wordings(check.tomllib.loads((ASSISTANT / "phrases.toml").read_text("utf-8")))
    messages = rows("messages")[:300]  # slips of the finger and shorthand hide the wording of some
    assert sum(wordings.fitting(row) is not None for row in messages) > 0.75 * len(messages)


def test_the_check_names_every_kind_of_broken_row(check: ModuleType, tmp_path: Path) -> None:
    files = {name: rows(name) for name in (*check.MESSAGE_FILES, *check.PAIR_FILES)}

    def found() -> str:
        for name, content in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
        return "\n".join(check.problems(tmp_path))

    first, copied = files["test"][0], files["test"][1]
    original = dict(copied)
    copied.update({key: value for key, value in files["messages"][0].items() if key != "id"})
    assert f"test: {copied['id']}: a generated message" in found()
    copied.update(original)
    files["test_pairs"][0]["text_pair"] = files["pairs"][0]["text"]
    assert "test_pairs: s0001-1: stands in another file" in found()
    first["tags"] = [*first["tags"], "B-colour"]
    first["intent"], first["tone"], first["urgency"] = "dance", ["neutral", "polite"], 0.33
    files["test_pairs"][0]["label"] = "maybe"
    del files["test"][150:]
    problems = found()
    for text in ("unknown tag B-colour", "unknown intent dance", "neutral beside another", "urgency 0.33"):
        assert text in problems
    assert f"{len(first['tokens'])} tokens and {len(first['tags'])} tags" in problems
    assert "unknown label maybe" in problems
    assert "at least 200 are promised" in problems


def test_the_assistant_has_a_task_of_each_kind_and_enough_hand_written_rows() -> None:
    files = load_files(ASSISTANT)
    assert {settings.kind for settings in files.tasks.values()} == set(Kind)
    for name, settings in files.tasks.items():
        data = read_task(ASSISTANT, name, settings)
        assert data.notes == []
        assert len(data.reported["test"]) >= (100 if settings.kind is Kind.RELEVANCE else 200)


def test_words_of_the_assistant_are_the_words_that_a_raw_text_is_split_into() -> None:
    for name in ("messages", "messages_valid", "test"):
        for row in rows(name):
            assert row["tokens"] == [row["text"][start:end] for start, end in split_words(row["text"])], row["id"]


# GLUE


def test_prepare_points_to_the_data_folder_as_it_was_given(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / "data" / "glue" / "cola").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "glue" / "cola" / f"{split}.jsonl").write_text("{}\n")
    absolute, relative = tmp_path / "absolute", tmp_path / "relative"
    assert script(PREPARE, tmp_path / "data", "--out", absolute, "--tasks", "cola").returncode == 0
    given = os.path.relpath(tmp_path / "data" / "glue")  # glue/ itself does as well
    assert script(PREPARE, given, "--out", relative, "--tasks", "cola", "--rows", "50").returncode == 0
    of_absolute, of_relative = (load_files(out).tasks["cola"].data for out in (absolute, relative))
    assert of_absolute.train == str(tmp_path / "data" / "glue" / "cola" / "train.jsonl")
    assert not Path(of_relative.train).is_absolute()
    assert (relative / of_relative.train).resolve() == (tmp_path / "data" / "glue" / "cola" / "train.jsonl").resolve()
    assert of_relative.max_train_rows == 50
    assert of_relative.dev is not None
    assert of_relative.test is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "cola: no file"),
        (("--tasks", "cola,colla"), "unknown tasks: colla"),
        (("--rows", "-1"), "--rows -1"),
    ],
)
def test_prepare_says_what_is_wrong_and_writes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = script(PREPARE, tmp_path, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (REAL / "glue").is_dir(), reason=f"no real data at {REAL}; set TRUNKLINE_DATA")
def test_prepare_writes_a_project_whose_data_can_be_read(tmp_path: Path) -> None:
    out = tmp_path / "glue"
    assert script(PREPARE, REAL, "--out", out, "--snips").returncode == 0
    files = load_files(out)
    assert len(files.tasks) == 10
    for name in ("cola", "mrpc", "stsb", "snips_slots"):
        assert read_task(out, name, files.tasks[name]).main_split == ("test" if name == "snips_slots" else "dev")
    assert script(PREPARE, REAL, "--out", out).returncode == 2
    assert script(PREPARE, REAL, "--out", out, "--tasks", "rte", "--replace").returncode == 0
    assert list(load_files(out).tasks) == ["rte"]
