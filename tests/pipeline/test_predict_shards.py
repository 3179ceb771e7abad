"""Files of any size answered in shards: the answers of a bundle, the same bytes whatever was answered before."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from branches import INPUTS, branch_files, load_trunk, tiny_source
from sharded import contents, finish, rows_of

from trunkline import cli
from trunkline.bundle import Bundle
from trunkline.bundle.merge import merge
from trunkline.engine import Input
from trunkline.engine.base import ItemError
from trunkline.pipeline.scoring import ASKED, READ, PredictWork
from trunkline.pipeline.shards import cut
from trunkline.project.tasks import to_dict

POINTS = [{"speed": speed, "quality": 0.9, "layers": 3.0, "time": 1 - speed} for speed in (0.0, 0.9)]
SORTS: dict[str, dict[str, Any]] = {
    "intent": {"exits": [{"depth": 1, "form": "linear"}], "speeds": POINTS},
    "tone": {"kind": "multilabel", "fork": 1, "layers": 1},
    "urgency": {
        "kind": "regression",
        "fork": 3,
        "layers": 1,
        "mean": 3.0,
        "std": 2.0,
        "scope": {"false_alarms": 0.1, "classes": 1, "depths": [{"depth": 3, "directions": 2}]},
    },
    "slots": {"kind": "tagging", "fork": 2, "layers": 1},
    "same": {"kind": "relevance", "reading": "separate", "fork": 2, "layers": 1, "pooling": "pair"},
}
PASSAGES = [item.text_pair for item in INPUTS if item.text_pair] + ["rain in the city", "a song for the night"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    source = tiny_source(folder / "encoder")
    files = branch_files(folder / "branches", load_trunk(source), SORTS)
    return merge(source, files, INPUTS, folder / "bundles", name="all")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Each query beside each passage, in a random order, and a row that no task can read."""
    rows = [{"text": item.text, "text_pair": passage} for item in INPUTS for passage in PASSAGES]
    random.Random(0).shuffle(rows)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": " ", "text_pair": "x"}]))
    return path


def work(bundle: Path, engine: str, **changed: Any) -> PredictWork:
    loaded = Bundle.load(bundle)
    usual = PredictWork(bundle, loaded.id, loaded.tasks, engine, "float32", None, None, 8, 1 << 24, 1, "cpu")
    return replace(usual, **changed)


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that parquet has for all rows and this one has not."""
    return {name: value for name, value in answer.items() if value is not None}


@pytest.mark.parametrize("speed", [None, 0.9])
def test_shards_hold_the_answers_of_the_bundle(tmp_path: Path, bundle: Path, pairs: Path, speed: float | None) -> None:
    asked = work(bundle, "torch", speed=speed)
    job = cut(tmp_path / "out", [str(pairs)], asked.fields, shard_rows=20)
    finish(job, asked.load)
    items = [Input(**json.loads(line)) for line in pairs.read_text().splitlines()]
    rows = rows_of(tmp_path / "out")
    assert [(row["text"], row["text_pair"]) for row in rows] == [(item.text, item.text_pair) for item in items]
    for row, expected in zip(rows, Bundle.load(bundle).predict(items, speed=speed), strict=True):
        for task, one in expected.items():
            found = plain(row["answers"][task])
            if isinstance(one, ItemError):
                assert found == one.to_dict()
                continue
            right = to_dict(one)
            assert found.keys() == right.keys()
            assert found.get("label") == right.get("label")
            if "scores" in right:
                assert found["scores"] == pytest.approx(right["scores"], abs=1e-5)
            assert [span["text"] for span in found.get("spans", [])] == [
                span["text"] for span in right.get("spans", [])
            ]
    counts = job.counts()
    assert (counts["rows"], counts["faults"]) == (len(items), 1)


def test_known_texts_are_read_once_and_what_was_answered_before_changes_no_bit(
    tmp_path: Path, bundle: Path, pairs: Path
) -> None:
    pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
    asked = work(bundle, "openvino", tasks=("same",))
    together = cut(tmp_path / "together", [str(pairs)], asked.fields, shard_rows=20)
    apart = cut(tmp_path / "apart", [str(pairs)], asked.fields, shard_rows=20)
    finish(together, asked.load)
    with apart.begun(print):
        for shard in reversed(apart.shards):
            list(apart.make(asked.load, lambda rows: None, [shard.number]))
    assert len(contents(together.folder)) == 3
    assert contents(apart.folder) == contents(together.folder)
    counts = together.counts()
    assert counts[ASKED] == 2 * counts["rows"]
    assert counts[READ] < counts[ASKED] / 2


def test_the_command_answers_patterns_into_a_folder(
    tmp_path: Path, bundle: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[object, str]:
        line = ["trunkline", "predict", "--bundle", str(bundle), "--task", "same", *arguments]
        monkeypatch.setattr(sys, "argv", line)
        try:
            cli.main()
        except SystemExit as stop:
            said = capsys.readouterr()
            return stop.code, said.out + said.err
        return 0, capsys.readouterr().out

    out = ["--file", str(tmp_path / "*.jsonl"), "--out", str(tmp_path / "out"), "--shard-rows", "20", "--json"]
    code, said = run(*out, "--processes", "1")
    assert (code, json.loads(said)["made"], json.loads(said)["rows"]) == (0, 3, len(pairs.read_text().splitlines()))
    code, said = run(*out)
    assert (code, json.loads(said)["made"]) == (0, 0)
    code, said = run(*out, "--speed", "0.5")
    assert code == 2
    assert "work.speed: asked otherwise before" in said
    assert run("--out", str(tmp_path / "none"))[0] == 2
    assert run("--file", "a", "--file", "b")[0] == 2
