"""The command line as a user meets it: every command on a small trained project, and every way to get it wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from project.hostile import HOSTILE
from tiny import tiny_encoder

import trunkline
from trunkline import cli

SCHEDULE = "min_steps = 2\nepochs = 0.1\n"
TASK = f"""\
tune = {{ layers = [2], {SCHEDULE.strip().replace(chr(10), ", ")} }}
full = {{ {SCHEDULE.strip().replace(chr(10), ", ")} }}
distill = {{ layers = [1], {SCHEDULE.strip().replace(chr(10), ", ")} }}
"""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


def write_project(root: Path) -> Path:
    """A project of three tasks over a tiny encoder, each trained for two steps."""
    (root / "tasks").mkdir(parents=True)
    (root / "data").mkdir()
    tiny_encoder(root / "encoder")
    (root / "project.toml").write_text(
        'name = "shop"\nencoder = "encoder"\ncost = { batch = 2, tokens = 8, repeats = 1, engine = "torch" }\n'
    )
    words = ("fine", "poor", "great", "slow")
    rows = [
        {"text": f"what a {words[i % 4]} day number {i}", "label": ("bad", "good")[i % 2], "score": i / 4}
        for i in range(40)
    ]
    pairs = [{"text": f"one {i}", "text_pair": f"two {i % 7}", "label": i % 2} for i in range(40)]
    for name, table in (("rows", rows), ("pairs", pairs)):
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    for name, kind, file in (
        ("mood", "classification", "rows"),
        ("level", "regression", "rows"),
        ("same", "relevance", "pairs"),
    ):
        pair = 'pair = "joint"\n' if name == "same" else ""
        (root / "tasks" / f"{name}.toml").write_text(f'kind = "{kind}"\n{pair}{TASK}data.train = "data/{file}.jsonl"\n')
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line in this process."""

    def call(*arguments: object, stdin: str | bytes = b"") -> Ran:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["trunkline", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return Ran(code or 0, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first `run`, done by the installed command. Only for commands that change nothing."""
    root = write_project(tmp_path_factory.mktemp("trained") / "shop")
    done = command("-C", root, "run")
    assert done.returncode == 0, done.stderr
    assert "release r1 is live" in done.stdout
    return root


@pytest.fixture
def shop(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained project that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "shop"))


def command(*arguments: object, stdin: str = "", columns: int = 80) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    line = [sys.executable, "-m", "trunkline", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": str(columns)}
    return subprocess.run(line, input=stdin, capture_output=True, text=True, env=environment)


def retrain(root: Path, task: str = "mood") -> None:
    """Change a task so that its next run gives another branch."""
    path = root / "tasks" / f"{task}.toml"
    path.write_text("max_tokens = 16\n" + path.read_text())


# From nothing to a project


def test_a_new_project_passes_check_at_once(run: Run, tmp_path: Path) -> None:
    encoder = tiny_encoder(tmp_path / "encoder")
    made = run("-C", tmp_path, "init", "shop")
    assert made.code == 0
    assert "check" in made.out
    settings = tmp_path / "shop" / "project.toml"
    settings.write_text(settings.read_text().replace('# encoder = "minilm"', f"encoder = {json.dumps(str(encoder))}"))
    checked = run("-C", tmp_path / "shop", "check")
    assert checked.code == 0, checked.err
    assert "intent" in checked.out


def test_a_table_becomes_a_project_with_a_task_per_label_column(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "mails.csv"
    rows = [f'{i},"message {i}",{("good", "bad")[i % 2]},{i * 0.5}' for i in range(40)]
    table.write_text("\n".join(["id,body,mood,hours", *rows]) + "\n")
    made = run("-C", tmp_path, "init", "shop", "--from", table, "--text", "body")
    assert made.code == 0, made.err
    assert sorted(path.stem for path in (tmp_path / "shop" / "tasks").iterdir()) == ["hours", "mood"]
    assert "id" in made.out


@pytest.mark.parametrize("arguments", [["init", "shop", "--text", "body"], ["init", "shop", "--from", "none.csv"]])
def test_arguments_that_do_not_fit_end_in_one_message(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    assert_wrong(run("-C", tmp_path, *arguments), "--from")
    assert not (tmp_path / "shop").exists()


# Trunks


def test_a_trunk_is_adapted_listed_and_moved_to(run: Run, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = shop / "project.toml"
    settings.write_text(settings.read_text() + "\n[adapt]\nepochs = 0.1\nmin_steps = 2\n")
    assert run("-C", shop, "trunk", "list", "--json").json["trunks"] == []
    monkeypatch.chdir(shop.parent)
    made = run("-C", shop.name, "trunk", "adapt", "v2", "--without", "level")
    assert made.code == 0, made.err
    assert re.search(r"mood\s+\d\.\d{4}", made.out)
    assert "level" not in made.out
    assert "next: trunkline trunk use v2" in made.out
    listed = run("-C", shop, "trunk", "list")
    assert re.search(r"\* +encoder", listed.out)
    assert re.search(r"v2 .* mood, same", listed.out)
    assert_wrong(run("-C", shop, "trunk", "use", "v2"), "--yes")
    assert_wrong(run("-C", shop, "trunk", "use", "no trunk", "--yes"), "no such folder")
    moved = run("-C", shop, "trunk", "use", "v2", "--yes")
    assert moved.code == 0, moved.err
    assert re.search(r"level\s+\w+(\s+-?\d\.\d{4}){2}", moved.err)
    assert "release r2 is live" in moved.out
    assert "live release" not in run("-C", shop, "trunk", "list").out
    assert run("-C", shop, "release", "rollback").code == 0
    told = run("-C", shop, "trunk", "list")
    assert "The live release stands on another one" in told.out
    listed = run("-C", shop, "trunk", "list", "--json").json
    assert (listed["trunks"][0]["in_use"], listed["trunks"][0]["live"]) == (True, False)
    assert run("-C", shop, "release", "rollback", "r2").code == 0
    assert run("-C", shop, "trunk", "list", "--json").json["trunks"][0]["live"]
    assert "nothing to do" in run("-C", shop, "plan").out


# Before training


def test_check_counts_rows_and_prints_notes_below(run: Run, trained: Path) -> None:
    said = run("-C", trained, "check")
    assert said.code == 0
    assert re.search(r"mood\s+classification\s+32\s+4\s+4 test\s+2: bad, good", said.out)
    assert "valid: 4 rows cut from train" in said.out
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert run("-C", trained, "check", "--json").json["mood"]["rows"] == {"train": 32, "valid": 4, "test": 4}


def test_a_narrow_terminal_cuts_labels_and_kinds_but_no_number_and_no_name(trained: Path) -> None:
    said = command("-C", trained, "check", columns=46).stdout
    assert re.search(r"^mood +\S+… +32 +4 +4 test +2: .*…$", said, re.MULTILINE)
    assert all(len(line) <= 46 for line in said.splitlines())


@pytest.mark.parametrize("name", HOSTILE)
def test_every_broken_project_ends_in_one_message_and_exit_code_2(name: str, run: Run, tmp_path: Path) -> None:
    case = HOSTILE[name]
    case.write(tmp_path)
    said = run("-C", tmp_path, "check")
    assert_wrong(said, "1 problem:\n", *case.says)
    assert said.err.count("found:") == 1


def test_check_reports_broken_settings_and_broken_data_together(run: Run, tmp_path: Path) -> None:
    root = write_project(tmp_path / "shop")
    (root / "project.toml").write_text("sed = 1\n")
    (root / "data" / "pairs.jsonl").write_text("{\n")
    assert_wrong(run("-C", root, "check"), "2 problems", "did you mean 'seed'", "data/pairs.jsonl: line 1")


def test_a_folder_without_a_project_is_said_so(run: Run, tmp_path: Path) -> None:
    for arguments in (["check"], ["plan"], ["run"], ["predict", "hello"], ["gc"], ["info"], ["report"]):
        assert_wrong(run("-C", tmp_path, *arguments), "project.toml")
        assert_wrong(run("-C", tmp_path / "absent", *arguments), f"no such folder: {tmp_path / 'absent'}")


def test_the_version_is_said(run: Run) -> None:
    assert run("--version").out.strip() == trunkline.__version__


def test_plan_lists_every_stage_with_its_reason_and_runs_none(run: Run, tmp_path: Path) -> None:
    root = write_project(tmp_path / "shop")
    said = run("-C", root, "plan")
    assert said.code == 0
    assert re.search(r"mood/tune/single/L2/s13\s+first run", said.out)
    assert "12 stages to run, 0 done" in said.out
    assert [step["why"] for step in run("-C", root, "plan", "mood", "--json").json["steps"]] == ["first run"] * 4
    assert "12 stages to run" in run("-C", root, "plan").out


def test_what_needs_a_release_says_how_to_get_one(run: Run, tmp_path: Path) -> None:
    root = write_project(tmp_path / "shop")
    for arguments in (["eval"], ["predict", "hello"], ["report"], ["release", "show"]):
        said = run("-C", root, *arguments)
        assert said.code == 1
        assert "trunkline run" in said.err
    assert "no release yet" in run("-C", root, "release", "list").out
    assert run("-C", root, "release", "list", "--json").json == []


# After training


def test_a_second_run_does_nothing_says_so_and_imports_no_torch(trained: Path) -> None:
    before = snapshot(trained)
    program = (
        "import sys; from trunkline.cli import main; main()\n"
        "heavy = sorted({'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)); assert not heavy, heavy"
    )
    for arguments in (["run"], ["plan"]):
        line = [sys.executable, "-c", program, "-C", str(trained), *arguments]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("nothing to do")
    assert snapshot(trained) == before


def test_a_second_run_says_so_in_json(run: Run, trained: Path) -> None:
    assert run("-C", trained, "run", "--json").json == {"release": "r1", "ran": 0}


def test_a_run_that_measures_again_keeps_the_release(run: Run, shop: Path) -> None:
    assert "nothing to do" in run("-C", shop, "run").out
    again = run("-C", shop, "run", "--remeasure", "--json")
    assert (again.json["release"], again.json["ran"]) == ("r1", 0)
    assert "measuring" in again.err
    assert "nothing to do" in run("-C", shop, "run").out


def test_only_the_edited_task_is_planned_and_released_anew(run: Run, shop: Path) -> None:
    retrain(shop)
    assert {step["stage"].split("/")[0] for step in run("-C", shop, "plan", "--json").json["steps"]} == {"mood"}
    said = run("-C", shop, "run")
    assert said.code == 0, said.err
    assert "release r2 is live" in said.out
    assert run("-C", shop, "release", "diff", "r1", "r2", "--json").json == {
        "added": [],
        "removed": [],
        "changed": ["mood"],
        "same": ["level", "same"],
    }


def test_releases_are_listed_shown_compared_and_rolled_back(run: Run, shop: Path) -> None:
    retrain(shop)
    assert run("-C", shop, "run", "--json").json["release"] == "r2"
    assert re.search(r"^\*\s+r2 .* 3 +mood$", tidy(run("-C", shop, "release", "list").out), re.MULTILINE)
    assert [release["live"] for release in run("-C", shop, "release", "list", "--json").json] == [False, True]
    assert "mood" in run("-C", shop, "release", "show", "r1").out
    assert run("-C", shop, "release", "show", "--json").json["id"] == "r2"
    assert re.search(r"^changed +mood$", run("-C", shop, "release", "diff", "r1", "r2").out, re.MULTILINE)
    assert run("-C", shop, "release", "rollback").out == "release r1 is live\n"
    assert run("-C", shop, "release", "show", "--json").json["id"] == "r1"
    assert run("-C", shop, "release", "rollback", "r2").out == "release r2 is live\n"
    assert_wrong(run("-C", shop, "release", "show", "r9"), "r9")
    assert_wrong(run("-C", shop, "release", "diff", "r1", "r9"), "r9")


def test_a_removed_task_leaves_the_next_release(run: Run, shop: Path) -> None:
    assert "tasks/level.toml" in run("-C", shop, "task", "remove", "level").out
    assert "level: its file is gone" in run("-C", shop, "plan").out
    assert run("-C", shop, "run", "--json").json["release"] == "r2"
    assert run("-C", shop, "release", "diff", "r1", "r2", "--json").json["removed"] == ["level"]
    assert set(run("-C", shop, "predict", "hello", "--json").json[0]["answers"]) == {"mood", "same"}


def test_an_added_task_is_planned(run: Run, shop: Path) -> None:
    said = run("-C", shop, "task", "add", "tone", "--kind", "classification", "--train", "data/rows.jsonl")
    assert said.code == 0, said.err
    steps = run("-C", shop, "plan", "--json").json["steps"]
    assert {step["stage"].split("/")[0] for step in steps} == {"tone"}
    assert run("-C", shop, "check").code == 0


def test_a_task_is_shown_with_its_defaults_and_its_branch(run: Run, trained: Path) -> None:
    said = run("-C", trained, "task", "show", "mood")
    assert re.search(r"tune\.learning_rate\s+0\.0002\s+default", said.out)
    assert re.search(r"tune\.min_steps\s+2\s*$", said.out, re.MULTILINE)
    shown = run("-C", trained, "task", "show", "mood", "--json").json
    assert shown["settings"]["kind"] == "classification"
    assert shown["live"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "moood"],
        ["run", "moood"],
        ["eval", "moood"],
        ["task", "show", "moood"],
        ["task", "remove", "moood"],
        ["predict", "hello", "-t", "moood"],
        ["predict", "-t", "moood"],
    ],
    ids=" ".join,
)
def test_an_unknown_task_is_answered_with_the_nearest_known_one(run: Run, trained: Path, arguments: list[str]) -> None:
    assert_wrong(run("-C", trained, *arguments), "unknown task 'moood' (did you mean 'mood'?")


def test_eval_scores_the_live_release(run: Run, trained: Path) -> None:
    found = run("-C", trained, "eval", "mood", "--json").json
    assert list(found) == ["mood"]
    assert 0 <= found["mood"]["test"]["accuracy"] <= 1
    assert re.search(r"level +test +.*pearson", run("-C", trained, "eval").out)


def test_report_prints_tables_and_writes_the_page(run: Run, shop: Path) -> None:
    (shop / "report.html").unlink()
    said = run("-C", shop, "report")
    assert said.code == 0
    assert "The merged model" in said.out
    assert (shop / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert set(run("-C", shop, "report", "--json").json["tasks"]) == {"level", "mood", "same"}


def test_info_names_encoder_tasks_and_release(run: Run, trained: Path) -> None:
    said = run("-C", trained, "info")
    assert "encoder: bert, 4 layers, width 32" in said.out
    assert "r1 of" in said.out
    assert run("-C", trained, "info", "--json").json["live"] == "r1"


def test_a_dry_gc_frees_nothing_and_a_real_one_keeps_the_release(run: Run, shop: Path) -> None:
    before = snapshot(shop)
    freed = run("-C", shop, "gc", "--dry-run", "--json").json
    assert freed["bytes"] > 0
    assert "would free" in run("-C", shop, "gc", "--dry-run").out
    assert snapshot(shop) == before
    assert run("-C", shop, "gc", "--json").json["bytes"] == freed["bytes"]
    assert not any(Path(item["path"]).exists() for item in freed["freed"])
    assert run("-C", shop, "predict", "hello").code == 0
    assert run("-C", shop, "run", "--json").json == {"release": "r1", "ran": 0}


# Predictions


def test_a_text_is_answered_by_every_task(run: Run, trained: Path) -> None:
    said = run("-C", trained, "predict", "what a fine day")
    assert said.code == 0
    assert re.search(r"mood +(good|bad) +0\.\d{3}", said.out)
    assert "(text_pair is missing: this task reads pairs)" in said.out
    answers = run("-C", trained, "predict", "one", "--pair", "two", "--json").json[0]["answers"]
    assert set(answers) == {"level", "mood", "same"}
    assert answers["same"]["label"] in {"0", "1"}


def test_what_looks_like_markup_is_shown_as_it_stands(run: Run, trained: Path) -> None:
    assert "[bold]not[/] this [x]" in run("-C", trained, "predict", "[bold]not[/] this [x]").out


def test_each_line_of_stdin_is_answered_in_order_and_a_bad_one_fails_alone(run: Run, trained: Path) -> None:
    stdin = b'first\n{"text": "second", "text_pair": "b"}\n{broken\n\xff\xfe\nlast'
    said = run("-C", trained, "predict", "-t", "mood", "-t", "same", "--batch-size", "2", stdin=stdin)
    assert said.code == 0
    assert [row["text"] for row in said.lines] == ["first", "second", None, None, "last"]
    assert "label" in said.lines[1]["answers"]["same"]
    assert "line 3: not valid JSON" in said.lines[2]["answers"]["mood"]["error"]
    assert "line 4: broken UTF-8" in said.lines[3]["answers"]["mood"]["error"]
    alone = run("-C", trained, "predict", "first", "--json").json[0]["answers"]["mood"]
    assert said.lines[0]["answers"]["mood"]["scores"] == pytest.approx(alone["scores"], abs=1e-4)
    assert re.fullmatch(r"5 inputs, [\d,]+ per second, 2 tasks each\n", said.err)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_files_of_every_format_are_answered_alike(run: Run, trained: Path, tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"row {i}", "text_pair": f"other {i}", "extra": "x"} for i in range(5)]
    file = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if suffix == "csv" else "\t"
        file.write_text("\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]) + "\n")
    said = run("-C", trained, "predict", "-f", file)
    assert [(row["text"], row["text_pair"]) for row in said.lines] == [(row["text"], row["text_pair"]) for row in rows]
    single = run("-C", trained, "predict", "row 2", "--pair", "other 2", "--json").json[0]["answers"]
    assert said.lines[2]["answers"]["same"]["label"] == single["same"]["label"]
    assert said.lines[2]["answers"]["level"]["score"] == pytest.approx(single["level"]["score"], abs=1e-4)


def test_a_column_of_another_name_is_read_where_it_is_named(run: Run, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("body,mood\nhello there,good\n")
    assert_wrong(run("-C", trained, "predict", "-f", file), "no column 'text'", "body, mood")
    assert run("-C", trained, "predict", "-f", file, "--text", "body").lines[0]["text"] == "hello there"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-f", "none.csv"], "cannot be read"),
        (["-f", "none.xlsx"], ".jsonl, .csv, .tsv, .parquet"),
        (["hello", "-f", "none.csv"], "not both"),
        (["hello", "you", "--pair", "me"], "single text"),
        (["--bundle", "none", "hello"], "none"),
    ],
)
def test_inputs_that_cannot_be_read_at_all_end_in_one_message(
    run: Run, trained: Path, arguments: list[str], said: str
) -> None:
    done = run("-C", trained, "predict", *arguments)
    assert done.code in {1, 2}
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_bundle_answers_without_its_project(run: Run, shop: Path, tmp_path: Path) -> None:
    bundle = shop / ".trunkline" / run("-C", shop, "release", "show", "--json").json["bundle"]
    alone = bundle.rename(tmp_path / bundle.name)
    shutil.rmtree(shop)
    said = run("predict", "--bundle", alone, "hello", "--json")
    assert said.code == 0, said.err
    assert set(said.json[0]["answers"]) == {"level", "mood", "same"}


# The process around it


def test_a_reader_that_has_enough_ends_the_command_in_silence(trained: Path) -> None:
    line = f"yes hello | head -2000 | {sys.executable} -m trunkline -C {trained} predict -t mood | head -1"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == "hello"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["predict", "--batch-size", "0", "x"], ["task", "show"], ["nosuch"]]
)
def test_wrong_arguments_are_the_users_error(run: Run, arguments: list[str]) -> None:
    said = run(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize("arguments", [[], ["task"], ["release"]])
def test_every_command_has_help(run: Run, arguments: list[str]) -> None:
    said = run(*arguments, "--help")
    assert said.code == 0
    for name in re.findall(r"^  (\w+)  ", said.out.partition("Commands:")[2], re.MULTILINE):
        assert run(*arguments, name, "--help").code == 0


def assert_wrong(ran: Ran, *says: str) -> None:
    """The command refused its input: exit code 2, one message on stderr, nothing on stdout, no traceback."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("trunkline: ")
    assert "Traceback" not in ran.err
    for part in says:
        assert part in ran.err


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the cache of hashes, which goes by absolute paths."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "hashes.json")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def tidy(text: str) -> str:
    """Without the spaces that a table ends its lines with."""
    return "\n".join(line.rstrip() for line in text.splitlines())
