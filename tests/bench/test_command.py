"""`trunkline bench` as users call it: on a bundle, on a project, on a running server, and where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from branches import INPUTS, branch_files, load_trunk, tiny_source

pytest.importorskip("uvicorn", reason="the command is tested on the real server, which needs the extra serve")

from client.fake import refuse, say, serving
from projects import write_project
from serving.fakes import FakeService

from trunkline.bench.command import bench
from trunkline.bundle.merge import merge
from trunkline.errors import TrunklineError

QUICK = ["--engine", "torch", "--seconds", "0.1", "--batch", "2", "--tokens", "8"]
MODEL = {
    "name": "support",
    "bundle": "ab" * 8,
    "tasks": [{"name": "intent", "pair": False, "loaded": True}],
    "engine": "torch",
    "dtype": "float32",
    "device": "cpu",
}


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(bench)

    @app.callback()
    def options(project: Path = Path()) -> None:
        """As the real command line has them."""

    app(
        ["bench", *arguments] if "--project" not in arguments else [*arguments[:2], "bench", *arguments[2:]],
        standalone_mode=False,
    )


def test_a_bundle_is_measured_into_a_table_json_and_a_file(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    run(str(bundle), *QUICK, "--task", "intent", "--task", "same", "--out", str(out))
    table = capsys.readouterr().out
    assert "2 texts of 8 tokens at a time" in table
    assert "tasks: intent, same" in table
    found = json.loads(out.read_text())
    assert (found["bundle"], found["tasks"]) == (bundle.name, ["intent", "same"])
    assert found["machine"].keys() >= {"cpu", "cores", "torch"}
    assert [(row["tasks"], row["system"]) for row in found["rows"]] == [
        (count, system) for count in (1, 2) for system in ("trunkline", "separate")
    ]
    rows = tmp_path / "rows.csv"
    rows.write_text("text,text_pair\nplay music,a song\nwake me at seven,an alarm\n")
    run(str(bundle), *QUICK[:-2], "--texts", str(rows), "--task", "same", "--json")
    said = json.loads(capsys.readouterr().out)
    assert {row["batch"] for row in said["rows"]} == {2}


def test_with_a_keep_the_pass_at_it_stands_beside_the_one_at_full_depth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [{"speed": speed, "quality": 0.9, "layers": 3.0, "time": 1 - speed} for speed in (0.0, 0.8)]
    sorts = {"intent": {"exits": [{"depth": 1, "form": "linear"}], "speeds": points}, "plain": {"fork": 2, "layers": 1}}
    source = tiny_source(tmp_path / "encoder")
    files = branch_files(tmp_path / "branches", load_trunk(source), sorts)
    bundle = merge(source, files, INPUTS, tmp_path / "bundles", name="exits")
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nplay music\nwake me at seven\n")
    asked = (str(bundle), *QUICK[:-2], "--texts", str(texts), "--keep", "0.9")
    run(*asked, "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["keep"] == 0.9
    assert [(row["tasks"], row["system"]) for row in said["rows"]] == [
        (count, system) for count in (1, 2) for system in ("trunkline", "exits", "separate")
    ]
    run(*asked, "--plot", str(tmp_path / "costs.svg"))
    table = capsys.readouterr().out
    assert "at keep" in table
    assert all(len(line) <= 80 for line in table.splitlines() if "torch" not in line)
    assert "faster" in table
    assert "where texts leave at exits" in (tmp_path / "costs.svg").read_text()
    with pytest.raises(TrunklineError, match="none of these tasks has exits"):
        run(*asked, "--task", "plain")


def test_a_server_is_asked_at_the_speed_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nplay music\n")
    reply = {"results": [{"intent": {"label": "a", "score": 1.0}}]}
    with serving(say(MODEL), say(reply)) as server:
        load = ["--clients", "1", "--seconds", "0.1", "--warmup", "0", "--json"]
        run("--url", server.url, *load, "--texts", str(texts), "--speed", "0.4")
    assert {asked.body["speed"] for asked in server.asked[1:]} == {0.4}
    assert json.loads(capsys.readouterr().out)["speed"] == 0.4


def test_a_running_server_is_measured_with_closed_and_open_loops(
    served: tuple[str, FakeService], capsys: pytest.CaptureFixture[str]
) -> None:
    url, service = served
    load = ["--url", url, "--seconds", "0.3", "--warmup", "0", "--rows", "2", "--tokens", "8"]
    run(*load, "--clients", "2", "--rate", "50", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [one["loop"] for one in found["loads"]] == [
        {"clients": 2, "connections": 2},
        {"rate": 50.0, "connections": 256},
    ]
    assert all(one["requests"] > 0 and not one["errors"] for one in found["loads"])
    assert found["server"]["bundle"] == service.model.bundle
    assert found["tasks"] == sorted(service.model.tasks)
    inputs, _, _ = service.asked[0]
    assert [len(item["text_pair"].split()) for item in inputs] == [6, 6]  # type: ignore[index]  # some tasks read pairs


def test_what_a_server_refuses_is_counted_apart_from_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(say(MODEL), refuse(429, "overloaded", "the queue is full", Retry_After="0.05")) as server:
        run("--url", server.url, "--clients", "1", "--seconds", "0.2", "--warmup", "0")
    said = capsys.readouterr().out
    row = next(line.split() for line in said.splitlines() if line.startswith(" 1 client "))
    assert row[2:8] == ["0.0", "0.0", "-", "-", "-", "-"]
    assert int(row[8]) > 0
    assert row[9] == "0"
    assert "the queue is full" in said


def test_the_key_goes_with_every_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    key.write_text("very secret\n")
    reply = {"results": [{"intent": {"label": "a", "score": 1.0}}]}
    with serving(say(MODEL), say(reply)) as server:
        run(
            "--url",
            server.url,
            "--api-key-file",
            str(key),
            "--clients",
            "1",
            "--seconds",
            "0.1",
            "--warmup",
            "0",
            "--json",
        )
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer very secret"}
    assert "very secret" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a bundle"),
        ([], "is no project: name a bundle to measure"),
        (["nowhere", "--engine", "magic"], "unknown engine 'magic'"),
        (["nowhere", "--clients", "3"], "--clients has a meaning only with --url"),
        (["nowhere", "--texts", "a.jsonl", "--tokens", "8"], "give --texts or --tokens, not both"),
        (["nowhere", "--keep", "0.99"], "--speed and --keep need your own --texts"),
        (["nowhere", "--texts", "a.jsonl", "--keep", "0.99", "--speed", "0.5"], "give --speed or --keep, not both"),
        (["nowhere", "--plot", "a.pdf"], "a plot is written as .svg or .png"),
        (["--url", "http://127.0.0.1:9", "--batch", "3"], "--batch has a meaning only without --url"),
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer"),
        (["--url", "127.0.0.1:8080"], "127.0.0.1:8080 is not a URL that starts with http://"),
        (["--url", "http://127.0.0.1:9", "--tokens", "8", "--tokens", "9"], "one --tokens at a time"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrunklineError, match=message):
        run(*arguments)


def test_a_project_without_a_release_and_a_bundle_with_shorter_tasks_are_told_so(bundle: Path, tmp_path: Path) -> None:
    root = write_project(tmp_path / "project", {"intent": {"kind": "classification"}})
    with pytest.raises(TrunklineError, match="has no release yet: trunkline run"):
        run("--project", str(root))
    with pytest.raises(TrunklineError, match="--tokens 9: the tasks read at most 6 tokens"):
        run(str(bundle), "--engine", "torch", "--task", "short", "--tokens", "9")


def test_something_else_than_a_trunkline_server_is_recognised() -> None:
    answers: list[Any] = [b"<html>", {"model": "x"}, []]
    for answer in answers:
        with serving(say(answer)) as server, pytest.raises(TrunklineError, match="not as a Trunkline server does"):
            run("--url", server.url)
