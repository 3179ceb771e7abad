"""The benchmarks: figures come from what was measured, a run that was cut short goes on, a wrong answer cannot pass."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shutil
import sys
import time
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("uvicorn", reason="the benchmarks drive the real server, which needs the extra serve")

from client.conftest import served
from projects import write_project
from serving.fakes import FakeService
from sharded import Lengths, finish
from tiny import tiny_encoder

from trunkline.atomic import write_json
from trunkline.bench.turns import Took
from trunkline.engine.base import Input, Job, Work
from trunkline.engine.choose import Choice
from trunkline.machine import machine
from trunkline.pipeline.progress import Silent
from trunkline.pipeline.project import Project
from trunkline.pipeline.shards import cut
from trunkline.project.tasks import Kind

__all__ = ["served"]
SCRIPTS = (
    "adaptive",
    "cells",
    "command_line",
    "engine_page",
    "exits_profile",
    "floor",
    "full_models",
    "kept",
    "leave_one_out",
    "levers",
    "levers_page",
    "map",
    "map_page",
    "merged",
    "scope",
    "served",
    "server",
    "server_page",
    "serving_cost",
    "serving_cost_page",
    "shards",
    "soak",
    "teachers",
    "training_steps",
)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROUND = {
    "engine": {"texts_per_second": {"server": 100.0, "32": 90.0, "64": 95.0}},
    "saturation_many": {"texts_per_second": 90.0, "errors": {}, "cpu": {"front": 0.1, "worker": 1.5, "load": 0.1}},
    "saturation_one": {"texts_per_second": 80.0, "errors": {"429": 2}, "cpu": {"front": 0.3, "load": 0.1}},
    "single_one": {"latency_ms": {"p50": 10.0}},
    "half_one": {"latency_ms": {"p50": 12.0, "p99": 25.0}, "cpu": {"front": 0.2, "load": 0.1}},
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return {name: importlib.import_module(name) for name in SCRIPTS}
    finally:
        sys.path.remove(str(BENCHMARKS))


def detail(scripts: dict[str, ModuleType], *rounds: dict[str, Any], infinity: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "a CPU", "cores": 2, "torch": "2"}
    about = {"command": "command", "machine": machine, "cores": "shared", "engine": "engine", "batch_rows": 50.2}
    found: dict[str, Any] = scripts["server"].summarised({**about, "infinity": infinity, "rounds": list(rounds)})
    return found


def test_headlines_are_medians_of_ratios_within_a_round(scripts: dict[str, ModuleType]) -> None:
    infinity = {"infinity_at-once": {"texts_per_second": 9.0}, "infinity_in-turn": {"texts_per_second": 6.0}}
    fast = {"engine": {"texts_per_second": {"server": 200.0}}, "saturation_many": {"texts_per_second": 140.0}}
    base = detail(scripts, {**ROUND, **infinity}, fast, infinity={})
    assert base["summary"]["saturation_ratio_many"] == {"median": 0.8, "least": 0.7, "most": 0.9, "rounds": 2}
    assert base["summary"]["failed_requests"] == 2
    found = scripts["server"].headlines({"base": base})
    assert found == {
        "saturation_ratio": 0.8,
        "p99_over_single_at_half_load": 2.5,
        "infinity_ratio_base": 10.0,  # over the better of both ways to ask it
        "infinity_ratio_minilm": None,
    }


def test_a_run_that_was_cut_short_has_a_page_that_says_what_is_missing(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="pages have plots, which need the extra report")
    out = tmp_path / "server.json"
    cut = detail(scripts, ROUND, {"engine": ROUND["engine"]}, infinity={"missing": "no --infinity-python was given"})
    scripts["kept"].record(out, {"shapes": {"base": {"infinity": {}, "rounds": []}}})
    scripts["server_page"].write_page(out)
    scripts["kept"].record(out, {"soak": {"command": "soak", "machine": {"cpu": "a CPU", "cores": 2}}})
    for shape in ("base", "minilm"):
        found = scripts["kept"].record(out, {"shapes": {shape: cut}})
    scripts["kept"].record(out, scripts["server"].headlines(found["shapes"]))
    scripts["server_page"].write_page(out)
    assert set(json.loads(out.read_text())["shapes"]) == {"base", "minilm"}
    page = out.with_suffix(".md").read_text()
    assert "| server over engine alone, texts a second at saturation | at least 0.85 | 0.900 |" in page
    assert page.count("Infinity was not measured: no --infinity-python was given.") == 2
    assert page.count("| not measured |") == 2
    assert "![Texts a second](server.svg)" in page
    assert "BERT-base shape" in out.with_suffix(".svg").read_text()


def test_no_folder_of_this_machine_is_in_the_command(scripts: dict[str, ModuleType]) -> None:
    given = ["--rounds", "3", "--infinity-python", "/somewhere/python", "--work", "/tmp/here", "--shapes", "base"]
    shown = scripts["command_line"].without_folders([*given, "--data", "/work", "--resume"])
    assert shown == ["--rounds", "3", "--infinity-python", "PYTHON", "--shapes", "base", "--data", "DATA_FOLDER"]


def reply(bundle: str, branch: str, score: float) -> dict[str, Any]:
    answer = {"branch": branch, "label": "yes", "scores": {"yes": score, "no": 1 - score}}
    return {"bundle": bundle, "results": [{"task": answer}]}


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        (reply("old", "b1", 0.91), True),  # another shape of batch rounds a little otherwise
        (reply("new", "b2", 0.2), True),
        (reply("old", "b1", 0.2), False),
        (reply("new", "b1", 0.2), False),
        ({"bundle": "old", "results": []}, False),
    ],
)
def test_a_reply_passes_only_with_the_answers_of_the_bundle_that_it_names(
    scripts: dict[str, ModuleType], said: dict[str, Any], passes: bool
) -> None:
    expected = {
        bundle: {"text": {"task": {"yes": score, "no": 1 - score}}} for bundle, score in (("old", 0.9), ("new", 0.2))
    }
    judge = scripts["soak"].Judge(expected, {"old": {"task": "b1"}, "new": {"task": "b2"}}, [Input("text")])
    assert (judge.of([Input("text")])(said) is None) is passes
    assert judge.mixed == (0 if passes else 1)


def test_readiness_counts_as_what_was_said_last_and_as_neither_while_it_changes(scripts: dict[str, ModuleType]) -> None:
    class Somewhere:
        port = 1

    readiness = scripts["soak"].Readiness(Somewhere())
    now = time.perf_counter()
    readiness.changes = [(now, True), (now + 5, False), (now + 9, True)]
    said = [readiness.said(now + after) for after in (-1, 0.1, 4, 5.1, 6, 9.5)]
    assert said == [None, None, True, None, False, True]


class Here:
    """The server at a URL, as if it were a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def cpu(self) -> dict[str, float]:
        return {"front": 0.0, "worker": 0.0}

    def get(self, path: str) -> tuple[int, str]:
        return 200, urllib.request.urlopen(self.url + path).read().decode()


def test_a_load_on_a_server_comes_back_with_what_it_cost(
    scripts: dict[str, ModuleType],
    served: tuple[str, FakeService],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, service = served
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one"}\n{"text": "another"}\n')
    load = scripts["server"].Load(scripts["served"].Cores(None, None), texts, Namespace(seconds=0.3))
    monkeypatch.setattr(scripts["server"], "WARM", 0.0)
    closed = load.on(Here(url), ["intent", "slots"], "many", clients=2)
    half = load.on(Here(url), ["intent"], "one", rate=40.0)
    assert (closed["rows"], closed["loop"], closed["errors"]) == (32, {"clients": 2, "connections": 2}, {})
    assert closed["batch_rows"] == 32  # the made-up service takes every request as a batch
    assert half["loop"]["rate"] == 40.0
    assert 0 < half["requests"] < 40
    assert closed["cpu"].keys() == {"front", "worker", "load"}
    assert {tuple(tasks or ()) for _, tasks, _ in service.asked} == {("intent", "slots"), ("intent",)}


def row(shape: str, tasks: int, system: str, ratio: float, **other: Any) -> dict[str, Any]:
    cell = {"shape": shape, "tasks": tasks, "batch": 32, "tokens": 32, "system": system, "measured_tasks": tasks}
    return {**cell, "ms": 10 * ratio, "ratio_to_one_pass": ratio, **other}


def test_a_run_goes_on_from_the_cells_that_it_has_and_only_on_the_same_machine(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts["serving_cost"]
    monkeypatch.setattr(sys, "argv", ["serving_cost.py", "--resume", "--adapters-python", "/somewhere/python"])
    asked = {"tasks": [1, 8], "dtype": "auto", "seconds": 1.0, "out": tmp_path / "cost.json"}
    new = script.begun(Namespace(**asked, resume=True))
    assert (new["rows"], new["machine"]) == ([], machine())
    assert new["command"] == "python benchmarks/serving_cost.py --adapters-python PYTHON"
    rows = [row("base", 8, "trunkline", 1.1)]
    asked["out"].write_text(json.dumps({**new, "rows": rows}))
    assert script.begun(Namespace(**asked, resume=True))["rows"] == rows
    assert script.begun(Namespace(**asked, resume=False))["rows"] == []
    with pytest.raises(SystemExit, match="another grid, so that it cannot be resumed"):
        script.begun(Namespace(**{**asked, "tasks": [1]}, resume=True))
    asked["out"].write_text(json.dumps({**new, "machine": {"cpu": "another"}}))
    with pytest.raises(SystemExit, match="another machine, so that it cannot be resumed"):
        script.begun(Namespace(**asked, resume=True))


class Instant:
    """An engine, and a rival in another process, that take no time."""

    specs = dict.fromkeys([f"task{number}" for number in range(8)])

    def run(self, jobs: list[Job], texts: object = None) -> Any:
        return (lambda: Took(100.0 * jobs)) if isinstance(jobs, int) else ([{}] * len(jobs), Work())


class Slow:
    """Models in transformers of which one pass takes this long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def runs(self, texts: list[str]) -> list[Any]:
        return [lambda: time.sleep(self.seconds)] * 4


def test_what_takes_long_is_measured_with_fewer_tasks_and_scaled(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts["serving_cost"]
    monkeypatch.setattr(script, "HEAVY", 25.0)  # milliseconds
    engines = [Instant() for _ in range(4)]
    quick = script.cell(Instant(), engines, Slow(0.005), Instant(), ["a"], [1, 2, 8], 0.0)
    assert quick[1] == {"trunkline": 8, "separate": 4, "transformers": 4, "adapters": 2}
    times = quick[0]
    assert {tasks: of.ms for tasks, of in times["adapters"].items()} == {1: 100.0, 2: 200.0, 8: 800.0}
    assert times["transformers"][8].ms == pytest.approx(8 * times["transformers"][1].ms)
    heavy = script.cell(Instant(), engines, Slow(0.03), None, ["a"], [1, 2, 8], 0.0)
    assert heavy[1] == {"trunkline": 8, "separate": 1, "transformers": 1, "adapters": 1}
    assert "adapters" not in heavy[0]


def test_the_page_of_what_tasks_cost_holds_them_to_what_was_promised(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="pages have plots, which need the extra report")
    rows = [
        row("base", 1, "trunkline", 0.95),
        row("base", 1, "separate", 1.0),
        row("base", 8, "trunkline", 1.1),
        row("base", 8, "separate", 8.0, measured_tasks=4),
    ]
    engines = {"base": {"engine": "openvino", "dtype": "bfloat16", "why": "measured"}}
    memory = [{"shape": "base", "tasks": 8, "mb_per_task": 30.0}]
    about = {"command": "the command", "machine": {"cpu": "a CPU", "cores": 2, "torch": "2"}, "engines": engines}
    out = tmp_path / "cost.json"
    out.write_text(json.dumps({**about, "memory": memory, "rows": rows}))
    scripts["serving_cost_page"].write_page(out)
    page = (tmp_path / "cost.md").read_text()
    assert "| BERT-base shape, 8 tasks | at most 1.15 | 1.10 |" in page
    assert "| The packaged trunk's shape, 64 tasks | at most 1.9 | not measured |" in page
    assert "| 32 x 32 | 10.0 | 0.95 | 1.10 |" in page
    assert "| 32 x 32 | 1.1 | 7.3* |" in page  # separate models over Trunkline; four of eight were measured
    assert page.count("Not measured here: ") == 2
    assert "Memory of one more task: 30.0 MB" in page
    assert (tmp_path / "cost.svg").is_file()


def test_the_page_of_the_engine_shows_shares_of_the_bare_trunk(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pages have plots, which need the extra report")

    def times(name: str, ms: float) -> dict[str, float]:
        return {name: ms, f"{name}_low": 0.9 * ms, f"{name}_high": 1.2 * ms}

    real = {"padding": 0.05, "tokens": 6000, **times("ms", 250.0), "over_static_per_real_token": 0.75}
    about = {"shape": "minilm", "dtype": "bfloat16", "threads": 2, "batch": 32, "tokens": 32}
    found = {**about, **times("static_ms", 32.0), **times("chain_ms", 33.0), "chain_over_static_throughput": 0.97}
    out = tmp_path / "engine.json"
    machine = {"cpu": "a CPU", "cores": 2, "torch": "2"}
    out.write_text(json.dumps({"command": "c", "machine": machine, "rows": [{**found, "real": {"snips": real}}]}))
    scripts["engine_page"].write_page(out)
    page = (tmp_path / "engine.md").read_text()
    assert "| throughput of the chain, of the static model's | at least 95 % | 97.0% |" in page
    assert "| SNIPS utterances: throughput per real token, of the static model's | at least 80 % | 75.0% |" in page
    assert "QNLI" not in page
    assert "engine, SNIPS utterances" in (tmp_path / "engine.svg").read_text()


def merged_report(seed: int, *tasks: str) -> dict[str, Any]:
    """A report as `merged.py` reads it."""

    def of(name: str) -> dict[str, Any]:
        reading = "single" if name == "cola" else "joint"
        candidate = {"id": f"{name}/distill/{reading}/L2-l1-m4/teacher/full/s{seed}", "fork": 4, "layers": 1}
        way = {"reading": None if name == "cola" else reading, "learning_rate": 1e-4}
        searched = {"way": way, "tried": [{**way, "valid": 0.8}]}
        metrics = {"accuracy": 0.7 + seed / 1000}
        return {
            "metric": "accuracy",
            "reported": "dev",
            "rows": {"train": 9},
            "chosen": {**candidate, "id": candidate["id"].rsplit("/", 1)[0], "reading": reading, "metrics": metrics},
            "baseline": {**searched, "valid": 0.8, "metrics": {"accuracy": 0.75}},
            "published": {**searched, "valid": 0.9, "metrics": {"accuracy": 0.8}},
            "candidates": [{**candidate, "reading": reading, "valid": 0.8, "reported": 0.6, "ms": 3.0}],
        }

    return {
        "tasks": {name: of(name) for name in tasks},
        "cost": {"batch": 32, "tokens": 32, "engine": "openvino", "dtype": "bfloat16"},
        "paper_rule": {},
        "merged": {"relative_time": 0.2 + seed / 1000, "relative_layers": 0.2},
    }


def test_tasks_of_one_seed_stand_beside_those_of_several(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    merged = scripts["merged"]
    options = Namespace(set="glue", grid=[])
    both, alone = merged_report(13, "cola", "qnli"), merged_report(14, "cola")
    found = merged.extended(merged.first(both, options), both, 13)
    found = merged.extended(found, alone, 14)
    cola, qnli = found["tasks"]["cola"], found["tasks"]["qnli"]
    assert cola["merged"] == pytest.approx([0.713, 0.714])
    assert qnli["merged"] == pytest.approx([0.713, 0.713])
    assert cola["full_from"] == "published"  # stronger on valid
    assert cola["full"] == cola["published"] == [0.8, 0.8]
    assert cola["baseline"] == [0.75, 0.75]
    assert (cola["ways"]["published"]["learning_rate"], cola["latents"], cola["tuned"]) == (1e-4, 4, 2)
    summary = found["summary"]
    assert summary["relative_times"] == [pytest.approx(0.213)]  # of the whole merged model only
    assert summary["relative_quality"] == pytest.approx((0.713 + 0.7135) / 1.6)
    page = merged.page(found, "merged_cheap.json")
    assert "| qnli | published | 0.0001 (joint): 0.800 | 0.0001 (joint) |" in page
    assert "| accuracy (dev) | 0.750 | 0.800 * | 0.714 (0.713 to 0.714) |" in page
    assert "| accuracy (dev) | 0.750 | 0.800 * | 0.713 | 89.1% | fork 4 + 1, 4 latents, distill | joint |" in page


def test_a_later_seed_counts_what_the_first_one_selected_though_it_would_take_another(
    scripts: dict[str, ModuleType],
) -> None:
    merged = scripts["merged"]
    found = merged.first(merged_report(13, "cola"), Namespace(set="glue", grid=[]))
    found = merged.extended(found, merged_report(13, "cola"), 13)
    other = merged_report(14, "cola")
    other["tasks"]["cola"]["chosen"]["id"] = "cola/tune/single/L1"
    assert merged.extended(found, other, 14)["tasks"]["cola"]["merged"] == pytest.approx([0.713, 0.6])


def test_full_models_of_both_trunks_stand_beside_the_merged_one(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    merged = scripts["merged"]
    tasks = {"mrpc": {"kind": "classification", "pair": ["joint"]}, "cola": {"kind": "classification"}}
    project = Project.load(write_project(tmp_path / "project", tasks, adapt={"epochs": 1.0, "min_steps": 4}))
    chosen = merged.Set("x", ("mrpc", "cola"), (), 0.9, epochs=1.0, large=("cola",))
    ledger = merged.Ledger(tmp_path / "full_models.json")
    report = merged.run(project, chosen, Silent(), ledger, None, again=False)
    found = merged.extended(merged.first(report, Namespace(set="glue", grid=[])), report, 13)
    for task in found["tasks"].values():
        for side in ("published", "baseline"):
            rates = {one["learning_rate"]: one["valid"] for one in task["tried"][side]}
            assert rates[task["ways"][side]["learning_rate"]] == max(rates.values())
        assert task["full"] == task[task["full_from"]]
    assert "| cola | published | " in merged.page(found, "merged_cheap.json")
    settings = project.files.settings.model_copy(update={"seed": 14})
    small = {"mrpc": found["tasks"]["mrpc"]}
    other = merged.narrowed(project.over(replace(project.files, settings=settings)), small)
    found = merged.extended(found, merged.run(other, chosen, Silent(), ledger, found["tasks"], again=False), 14)
    assert found["seeds"] == [13, 14]
    assert all(len(task["merged"]) == len(task["full"]) == 2 for task in found["tasks"].values())
    assert len(set(found["tasks"]["cola"]["full"])) == 1  # a large task has the first seed alone


def test_later_seeds_train_only_what_was_selected(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "project.toml").write_text("[budget]\nmax_cost = 0.2\n")
    for name in ("mrpc", "qnli"):
        (tmp_path / "tasks" / f"{name}.toml").write_text(
            'kind = "classification"\npair = ["joint", "separate"]\n[data]\ntrain = "train.jsonl"\n'
            "[tune]\nlayers = [1, 2]\n[distill]\nlayers = [1]\nlatents = [0, 4]\n"
        )
    selected = {"tuned": 2, "layers": 1, "stage": "distill", "latents": 4, "pair": "joint"}
    project = scripts["merged"].narrowed(Project.load(tmp_path), {"mrpc": selected})
    assert project.tasks == ["mrpc"]
    task = project.task("mrpc")
    assert (task.pair, task.tune.layers, task.distill.layers, task.distill.latents) == (["joint"], [2], [1], [4])
    assert project.files.settings.budget.max_cost is None


@pytest.mark.parametrize(
    ("heights", "best", "trials"),
    [
        ({1e-4: 0.5, 2e-4: 0.6, 4e-4: 0.6}, 2e-4, 3),  # as good is no better
        ({1e-4: 0.5, 2e-4: 0.4, 5e-5: 0.6, 2.5e-5: 0.3}, 5e-5, 4),
        ({1e-4: 0.5, 2e-4: 0.4, 5e-5: 0.4}, 1e-4, 3),
    ],
)
def test_rates_are_climbed_while_valid_rises(
    scripts: dict[str, ModuleType], heights: dict[float, float], best: float, trials: int
) -> None:
    asked: list[float] = []
    score = {round(rate, 9): height for rate, height in heights.items()}
    found = scripts["full_models"].climb(lambda rate: asked.append(rate) or score[round(rate, 9)])
    assert found == pytest.approx(best)
    assert len(asked) == trials


def test_a_full_model_is_trained_by_the_strongest_of_all_ways(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"kind": "classification", "pair": ["joint"], "full": {"pair": ["joint", "separate"]}}
    project = Project.load(write_project(tmp_path / "project", {"same": task}))
    way_of = scripts["full_models"].Way
    monkeypatch.setattr(scripts["full_models"], "ROWS", 20)
    ledger = scripts["full_models"].Ledger(tmp_path / "full_models.json")
    full = scripts["full_models"].strongest(project, {"same"}, Silent(), ledger)["same"]
    ways = {(one["learning_rate"], one["reading"]) for one in full.tried}
    assert {reading for _, reading in ways} == {"joint", "separate"}
    assert (full.way.learning_rate, full.way.reading) in ways
    chosen = [one["valid"] for one in full.tried if way_of(one["learning_rate"], one["reading"]) == full.way]
    assert chosen == [max(one["valid"] for one in full.tried)]
    only = scripts["full_models"].by(project.task("same"), full.way).full
    assert (only.learning_rate, only.pair) == ([full.way.learning_rate], [full.way.reading])
    shutil.rmtree(project.store.stages)  # as on another day, elsewhere
    ledger = scripts["full_models"].Ledger(tmp_path / "full_models.json")
    assert scripts["full_models"].strongest(Project.load(project.root), {"same"}, Silent(), ledger)["same"] == full
    assert not list(project.store.stages.glob("*/encoder"))


def test_a_kill_of_a_measured_run_takes_all_that_it_started(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    child = "import pathlib, subprocess, sys, time; child = subprocess.Popen(['sleep', '99'])"
    parent = f"{child}; pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(99)"
    watched = SimpleNamespace(reached=lambda: int(begun.exists() and bool(begun.read_text())), made_again=0)
    watched.ended = lambda: None
    noted: list[dict[str, Any]] = []
    scripts["shards"].run_once([sys.executable, "-c", parent, str(begun)], watched, (1, 0.0), noted.append)
    assert noted[-1]["killed"]
    left = Path("/proc", begun.read_text(), "cmdline")
    assert not (left.exists() and left.read_bytes())


def test_pairs_are_counted_by_their_ids(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    scripts["shards"].recombine(["what", "who"], ["this", "that"], source, 50, 13)
    job = cut(tmp_path / "out", [str(source)], {}, shard_rows=20)
    finish(job, Lengths)
    assert scripts["shards"].times_there(job.folder, 50).tolist() == [1] * 50
    max(job.folder.glob("shard-*")).unlink()
    first = min(job.folder.glob("shard-*"))
    shutil.copy(first, first.with_name(f"{first.stem}-again.parquet"))
    assert scripts["shards"].times_there(job.folder, 50).tolist() == [2] * 20 + [1] * 20 + [0] * 10


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A project with a task over pairs and one over single texts, on an encoder as deep as the packaged one."""
    encoder = tiny_encoder(tmp_path / "encoder", layers=6)
    tasks = {"mrpc": {"kind": "classification", "pair": ["joint"], "rows": 24}, "cola": {"kind": "classification"}}
    return write_project(tmp_path / "project", tasks, encoder=encoder)


def test_every_cell_of_the_map_is_trained_once_and_drawn(
    scripts: dict[str, ModuleType], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="heat maps need the extra report")
    cells, grid = scripts["cells"], scripts["map"]
    asked = list(grid.cells_of("mrpc"))
    assert len(asked) == len(set(asked))
    some = [cell for cell in asked if cell.seed == 13 and (cell.init == "full" or cell.fork == 5)]
    assert {(cell.pooling, cell.layers) for cell in some if cell.init == "trunk"} == {
        (pooling, layers) for pooling in ("cls", "mean", "concat") for layers in (0, 1)
    }
    monkeypatch.setattr(grid, "REPEATS", 1)
    monkeypatch.setattr(grid, "choose", lambda *_, **__: Choice("torch", "float32", "cpu", "for the test"))
    bench = cells.Bench(cells.shortened(Project.load(pairs), {"mrpc": 1.0}), tmp_path)
    trained = []

    def train(cell: Any) -> dict[str, Any]:
        trained.append(cell)
        found = bench.train(cell)
        assert (found.branch.spec.fork, found.branch.spec.layers) == (
            (6, 0) if cell.init == "full" else (cell.fork, cell.layers)
        )
        shape = grid.shape_of(cell, found.branch.spec.pooling)
        return {**cells.figures(bench.material(cell.task), found), "shape": shape}

    file = tmp_path / "map.jsonl"

    def about(cell: Any) -> dict[str, Any]:
        return bench.about(cell.task)

    cells.run_all(some[:3], file, train, lambda _: None, about)
    rows = cells.run_all(some, file, train, lambda _: None, about)
    assert trained == some  # those of the first call were not trained again
    cells.run_all(some[:1], file, train, lambda _: None, lambda cell: {**about(cell), "rows": 7})
    assert trained == [*some, some[0]]  # what was trained on other rows is another cell
    times = grid.measured(bench.project, rows)
    found = {
        "command": "command",
        "machine": machine(),
        "train_rows": 48,
        "times": times,
        "cells": [grid.with_time(row, times) for row in rows],
    }
    assert all(cell["ms"] > 0 for cell in found["cells"])
    write_json(tmp_path / "map.json", found)
    scripts["map_page"].write_page(tmp_path / "map.json")
    page = (tmp_path / "map.md").read_text()
    assert "| mrpc | separate | 0." in page
    assert "| concat, one layer | 1 |" in page
    assert "| 3 |" not in page
    again = [{**cell, "seed": seed, "valid": seed - 13} for cell in found["cells"] for seed in (14, 15)]
    write_json(tmp_path / "map.json", {**found, "cells": [*found["cells"], *again]})
    scripts["map_page"].write_page(tmp_path / "map.json")
    seeds = (tmp_path / "map.md").read_text()
    assert page.partition("## Several seeds")[0].partition("| task |")[2] in seeds  # chosen at one seed as before
    assert re.search(r"\| mrpc \| joint \| 1 over fork 5 \| 3 \| 1\.\d{3} \(0\.\d{3} to 2\.000\) \|", seeds)
    assert "mrpc, joint" in (tmp_path / "map.svg").read_text()


@pytest.mark.parametrize("task", ["mrpc", "cola"])
def test_every_lever_trains_a_branch_of_its_own(
    scripts: dict[str, ModuleType], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    levers, cells = scripts["levers"], scripts["cells"]
    monkeypatch.setattr(levers, "HEADS", 4)
    bench = cells.Bench(cells.shortened(Project.load(pairs), {task: 0.5}), tmp_path)
    taught = levers.Taught(bench, task)
    found: dict[str, tuple[int, bytes]] = {}
    rows = []
    for name, recipe in levers.LEVERS.items():
        trained = levers.trained(bench, taught, recipe, 13)
        weights = b"".join(value.detach().numpy().tobytes() for value in trained.branch.parameters())
        found[name] = trained.outcome.steps, weights
        rows.append({"task": task, "lever": name, "seed": 13, **cells.figures(bench.material(task), trained)})
    assert len(set(found.values())) == len(found)
    result = {"command": "command", "machine": machine(), "train_rows": 48, "trunks": {"published": rows}}
    write_json(tmp_path / "levers.json", result)
    scripts["levers_page"].write_page(tmp_path / "levers.json")
    assert "| distilled, relations | " in (tmp_path / "levers.md").read_text()


def test_relations_of_equal_states_do_not_diverge(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    levers = scripts["levers"]
    monkeypatch.setattr(levers, "HEADS", 2)
    states, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    padded = torch.where(mask[..., None], states, torch.randn(2, 5, 8))
    assert float(levers.relations(padded, states, mask)) == pytest.approx(0, abs=1e-6)
    assert float(levers.relations(states, torch.randn(2, 5, 8), mask)) > 0.01


def test_a_task_that_was_left_out_is_compared_over_three_trunks(
    scripts: dict[str, ModuleType], pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = scripts["leave_one_out"]
    settings = script.ADAPT.model_copy(update={"epochs": 1.0, "min_steps": 4})
    monkeypatch.setattr(script, "ADAPT", settings)
    monkeypatch.setattr(script, "SEEDS", (13,))
    monkeypatch.setattr(script, "write_project", lambda *_: None)
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    line = ["leave_one_out.py", str(tmp_path), "--work", str(pairs), "--tasks", "cola", "mrpc", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*line, "--page", str(page)])
    script.main()
    trials = json.loads(out.read_text())["trials"]
    assert len(trials) == 3 * 2
    assert sorted(path.name for path in (pairs / "trunks").iterdir()) == ["all", "without-cola", "without-mrpc"]
    assert "| mrpc | 5 | " in page.read_text()
    assert "Training took 0.0 hours." in page.read_text()


def test_steps_of_both_kinds_are_timed_for_branches_and_for_all_weights(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, out = scripts["training_steps"], tmp_path / "out.json"
    monkeypatch.setattr(script, "OWN", (1,))
    monkeypatch.setattr(script, "TOKENS", (4,))
    monkeypatch.setattr(script, "ROWS", 2)
    monkeypatch.setattr(sys, "argv", ["training_steps.py", "--rounds", "1", "--out", str(out)])
    script.main()
    steps = json.loads(out.read_text())["steps"]
    assert [(one["own"], one["tokens"]) for one in steps] == [(1, 4), (script.FULL, 4)]
    assert all(one["whole"] > 0 and one["first"] > 0 for one in steps)


def test_what_exits_save_is_measured_alone_and_merged(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
    script = scripts["adaptive"]
    tasks = {name: {"kind": "classification"} for name in ("agnews", "sst2")}
    for setting in ("single", "merged"):
        write_project(tmp_path / setting, tasks)
    usual = {"epochs": 1.0, "min_steps": 20, "batch_size": 8}
    monkeypatch.setattr(script, "ExitSettings", partial(script.ExitSettings, **usual))
    monkeypatch.setattr(script, "write_project", lambda *_: None)
    monkeypatch.setattr(script, "DIALS", (script.Dial(speed=1.0), script.Dial(keep=0.98)))
    monkeypatch.setattr(script, "SMALL", ("sst2",))
    monkeypatch.setattr(script, "FEWER", (1,))
    monkeypatch.setattr(script, "SEEDS", (13, 14))
    monkeypatch.setattr(script, "TIMED", {32: 1, 1: 2})
    monkeypatch.setattr(script, "ROUNDS", 2)
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    line = ["adaptive.py", str(tmp_path), "--work", str(tmp_path), "--tasks", *tasks, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*line, "--page", str(page)])
    script.main()
    rows = json.loads(out.read_text())["rows"]
    alone = [row for row in rows if row["setting"] == "single"]
    dialled = [row for row in alone if row["model"] == "exits"]
    assert {(row["task"], *row["seeds"]) for row in dialled} == {("agnews", 13), ("sst2", 13, 14)}
    assert {(row["model"], row["mean_layers_ratio"]) for row in alone if row["model"] != "exits"} == {
        (model, 1 / 3) for model in ("student", "truncated")
    }
    assert {row["task"] for row in rows if row["setting"] == "merged"} == {*tasks, "all"}
    assert all(row["mean_layers_ratio"] < 1 for row in dialled if row["speed"] == 1.0)
    assert all(len(row["quality"]) == len(row["seeds"]) and row["time_ratio"] > 0 for row in rows)
    assert "| sst2 | keep 0.98 | " in page.read_text()
    assert f"| merged | sst2 | {rows[-1]['train_rows'] // 2} | 1 | " in page.read_text()

    monkeypatch.setattr(script, "DIALS", (script.Dial(speed=0.5),))
    again = ["--settings", "single", "--tasks", "agnews", "--no-references"]
    monkeypatch.setattr(sys, "argv", [*line[: line.index("--tasks")], *again, "--out", str(out), "--page", str(page)])
    script.main()
    after = json.loads(out.read_text())["rows"]
    new = [row for row in after if (row["setting"], row["task"]) == ("single", "agnews")]
    assert {(row["model"], row["speed"]) for row in new} == {("exits", 0.5)}  # in the place of the old ones
    assert [row for row in after if row not in new] == [
        row for row in rows if (row["setting"], row["task"]) != ("single", "agnews")
    ]


def test_where_time_goes_that_exits_do_not_save(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
    script, whole = scripts["exits_profile"], scripts["adaptive"]
    write_project(tmp_path / "merged", {"agnews": {"kind": "classification"}})
    usual = {"epochs": 1.0, "min_steps": 20, "batch_size": 8}
    monkeypatch.setattr(whole, "ExitSettings", partial(whole.ExitSettings, **usual))
    monkeypatch.setattr(whole, "write_project", lambda *_: None)
    monkeypatch.setattr(script, "TIMED", {32: 1, 1: 2})
    monkeypatch.setattr(script, "ROUNDS", 2)
    out = tmp_path / "out.json"
    line = ["exits_profile.py", str(tmp_path), "--work", str(tmp_path), "--setting", "merged", "--tasks", "agnews"]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(out)])
    script.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["task"], row["batch"]) for row in rows] == [("agnews", 32), ("agnews", 1)]
    for row in rows:
        assert 0 < row["layers"] <= 1
        assert row["full"]["layers"] < row["full"]["all"]
        assert row["full"]["exits"] == 0
    assert "| merged | agnews | " in out.with_suffix(".md").read_text()


def test_what_a_floor_is_good_for_is_measured_once_with_it_and_once_without(
    scripts: dict[str, ModuleType],
    served: tuple[str, FakeService],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="pages have plots, which need the extra report")
    script, tasks = scripts["floor"], ["agnews", "sst2"]
    write_project(tmp_path / "merged", {name: {"kind": "classification"} for name in tasks})
    usual = {"epochs": 1.0, "min_steps": 20, "batch_size": 8}
    monkeypatch.setattr(scripts["adaptive"], "ExitSettings", partial(scripts["adaptive"].ExitSettings, **usual))
    monkeypatch.setattr(scripts["adaptive"], "write_project", lambda *_: None)
    for name, value in {"REQUESTS": 6, "CLIENTS": 2, "WARM": 0.1, "CAPACITY": 0.5, "SAMPLE": 0.05}.items():
        monkeypatch.setattr(script, name, value)
    url, service = served
    started: list[tuple[str, ...]] = []

    @contextlib.contextmanager
    def here(bundle: Path, log: Path, *options: str) -> Iterator[Here]:
        started.append(options)
        yield Here(url)

    monkeypatch.setattr(script, "trunkline", here)
    out = tmp_path / "floor.json"
    line = ["floor.py", "--work", str(tmp_path), "--tasks", *tasks, "--rows", "2", "--out", str(out)]

    def run(*more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [*line, "--rounds", "1", "--seconds", "0.4", "0.8", "0.8", *more])
        script.main()
        return json.loads(out.read_text()) if out.exists() else {}

    assert run("--data", str(tmp_path), "--train-only") == {}
    requests = [json.loads(one) for one in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [(one["task"], one["depth"], len(one["texts"])) for one in requests[:2]] == [
        ("agnews", 3, 2),
        ("sst2", 3, 2),
    ]
    assert all(len(one["labels"]) == 2 for one in requests)
    asked = [{**one, "task": "intent", "labels": ["alarm", "music"]} for one in requests]  # what is served here
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))

    found = run("--measure-only")
    assert started == [("--limit", "deadline_ms=2000"), ("--limit", "deadline_ms=2000", "--floor", "0.98")]
    assert {keep for _, keep in service.dialled} == {None, 0.98}  # the latter to warm it up
    assert [(one["mode"], len(one["seconds"])) for one in found["runs"]] == [("plain", 2), ("floor", 2)]
    assert found["capacity"]["requests_per_second"] > 0
    for run_ in found["runs"]:
        assert all(one["requests"] > 0 and one["in_time"] + one["late"] == one["requests"] for one in run_["parts"])
        assert all(one["correct_of_full"] == 1 for one in run_["parts"])  # nothing left early
    assert found["summary"]["floor"][1]["depth"] == 1
    page = out.with_suffix(".md").read_text()
    assert "| 2 | with a floor | " in page
    assert "| load | intent |" in page
    assert "![Load, queue, speed and quality over time](floor.svg)" in page
    assert "rows that wait" in out.with_suffix(".svg").read_text()
    assert run("--measure-only") == found  # nothing is measured twice
    assert len(started) == 2


def test_what_became_of_a_load_is_counted_by_the_second_and_held_to_full_depth(scripts: dict[str, ModuleType]) -> None:
    requests = [
        {"due": 0.1, "done": 0.4, "outcome": "ok"},
        {"due": 0.2, "done": 1.3, "outcome": "ok"},
        {"due": 0.3, "done": 0.3, "outcome": "429"},
        {"due": 0.9, "done": 1.9, "outcome": "504"},
        {"due": 1.0, "done": 1.1, "outcome": "connection"},
    ]
    replies = [
        {"done": 0.4, "number": 0, "task": "tone", "correct": 3, "speed": 0.2, "depth": 0.5},
        {"done": 0.5, "number": 1, "task": "intent", "correct": 1, "speed": 0.4, "depth": 1.0},
    ]
    found = {"requests": requests, "replies": replies}
    course = scripts["floor"].Course(found, [(0.2, 10.0, 0.5), (0.7, 30.0, 1.0)], [4, None], 1.0)
    first, second = course.between(0.0, 1.0), course.between(1.0, 2.0)
    counts = {"requests": 4, "in_time": 1, "late": 1, "refused": 1, "expired": 1, "failed": 0}
    means = {"waiting_rows": 20, "level": 0.75, "speed": 0.3, "depth": 0.75, "correct_of_full": 0.75}
    by_task = {"right_by_task": {"tone": (3, 4)}}  # of the other nobody knows what full depth gets right
    assert first == {**counts, **by_task, **{name: pytest.approx(value) for name, value in means.items()}}
    assert (second["requests"], second["failed"], second["in_time"], second["speed"]) == (1, 1, 0, None)
    total = scripts["floor"].summary([{"mode": "plain", "parts": [first]}, {"mode": "plain", "parts": [second]}])
    assert (total["plain"][0]["requests"], total["plain"][0]["in_time"]) == (5, 0.2)
    assert total["plain"][0]["depth"] == pytest.approx(0.75)
    assert total["plain"][0]["correct_of_full_by_task"] == {"tone": 0.75}


def test_students_of_many_teachers_stand_beside_these(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="pages have plots, which need the extra report")
    script, usual = scripts["teachers"], {"min_steps": 4, "batch_size": 8}
    task = {"kind": "classification", "pair": ["joint", "separate"], "pretrain": usual}
    work = write_project(tmp_path / "work", {"rte": task}, encoder=tiny_encoder(tmp_path / "encoder"))
    for name, value in {"PAIRS": 20, "ROUNDS": 1, "REQUESTS": 1, "write_project": lambda *_: None}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "choose", lambda *_: Choice("torch", "float32", "cpu", "a test"))
    monkeypatch.setattr(script, "make", lambda _, job, work, **__: finish(job, work.load))
    out = tmp_path / "out.json"
    line = ["teachers.py", str(tmp_path), "--work", str(work), "--tasks", "rte", "--seeds", "13", "14"]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(out)])
    script.main()
    found = json.loads(out.read_text())
    rows = {row.get("teacher", row["model"]): row for row in found["rows"]}
    assert {name: (row["layers"], len(row["quality"])) for name, row in rows.items()} == {
        **{"self": (4, 2), "full@14": (4, 1), "tune:3/separate@15": (4, 1), "ensemble": (12, 2)},
        **dict.fromkeys(script.STUDENTS, (3, 2)),
    }
    teachers = [rows[name] for name in script.TEACHERS]
    assert 1 / rows["ensemble"]["queries_per_s"] == pytest.approx(sum(1 / one["queries_per_s"] for one in teachers))
    assert rows["student_one"]["megabytes"] < rows["self"]["megabytes"] == rows["full@14"]["megabytes"]
    best = max(teachers, key=lambda one: np.mean(one["valid"]))
    assert rows["student_one"]["teachers"] == [best["teacher"]]
    chosen = rows[found["summary"]["student"]["rte"]]
    assert np.mean(chosen["valid"]) == max(np.mean(rows[name]["valid"]) for name in script.MANY)
    relative = np.mean(chosen["quality"]) / np.mean(rows["ensemble"]["quality"])
    assert found["summary"]["relative_to_ensemble"] == pytest.approx(relative)
    assert "| tune:3/separate@15 |" in out.with_suffix(".md").read_text()

    data = Project.load(work).train(["rte/prepare"]).data("rte")
    train = data.fit.take(data.train)
    [file] = work.glob("unlabelled/*/pairs.jsonl")
    pairs = [json.loads(one) for one in file.read_text().splitlines()]
    assert len(pairs) == 20
    assert all(one["text"] in train.texts and one["text_pair"] in (train.pairs or ()) for one in pairs)


def test_which_student_of_many_teachers_counts_is_decided_on_valid(scripts: dict[str, ModuleType]) -> None:
    def rows(task: str, speed: float, **found: tuple[float, float]) -> Iterator[dict[str, Any]]:
        for model, (valid, quality) in found.items():
            rate = speed if model == "ensemble" else 10.0
            yield {"task": task, "model": model, "valid": [valid], "quality": [quality], "queries_per_s": rate}

    several = {"student_mean": (0.5, 0.9), "student_heads": (0.6, 0.72), "student_heads_two_stage": (0.55, 0.95)}
    one = rows("a", 2.0, ensemble=(0, 0.8), student_plain=(0.9, 0.6), student_one=(0.9, 0.7), **several)
    several = {"student_mean": (0.6, 0.5), "student_heads": (0.5, 0.9), "student_heads_two_stage": (0.5, 0.9)}
    other = rows("b", 1.0, ensemble=(0, 0.6), student_plain=(0, 0.55), student_one=(0, 0.5), **several)
    found = scripts["teachers"].summary([*one, *other])
    assert found["student"] == {"a": "student_heads", "b": "student_mean"}
    assert found["relative_to_ensemble"] == pytest.approx(1.22 / 1.4)
    assert found["throughput_over_ensemble"] == pytest.approx((1 / 2 + 1) / (2 / 10))
    assert (found["better_than_plain"], found["over_one_teacher"]) == (1, pytest.approx(0.01))


def test_an_ensemble_says_the_mean_of_probabilities(scripts: dict[str, ModuleType]) -> None:
    sure, unsure = np.log([[0.9, 0.1]]), np.log([[0.4, 0.6]])
    said = scripts["teachers"].ensemble(Kind.CLASSIFICATION, [sure, unsure, unsure])
    assert np.exp(said) == pytest.approx(np.asarray([[1.7 / 3, 1.3 / 3]]))


def test_texts_out_of_scope_are_judged_by_depth_by_classes_and_at_every_speed(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = scripts["scope"]
    words = ["alarm", "music", "rain", "restaurant", "film", "money"]
    for split, count in (("train", 60), ("dev", 30), ("test", 18)):
        rows = [{"text": f"{words[i % 6]} for {split} {i}", "label": words[i % 6]} for i in range(count)]
        write_rows(tmp_path / "utterance" / "clinc150" / f"{split}.jsonl", rows)
    others = [{"text": f"who is he {i}", "label": "oos"} for i in range(9)]
    write_rows(tmp_path / "utterance" / "clinc150_oos" / "test.jsonl", others)
    encoder = tiny_encoder(tmp_path / "encoder")
    for name, value in (("CLASSES", (2, 5)), ("DRAWS", 2), ("EXITS", (1, 2)), ("EPOCHS", 1.0), ("RATE", 0.2)):
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "SEEDS", (13,))
    monkeypatch.setattr(script, "choose", lambda *_: Choice("torch", "float32", "cpu", "a test"))
    write, settings = script.write_project, tmp_path / "work" / "project.toml"

    def exact(*given: Any) -> None:
        write(*given)
        settings.write_text(f'precision = "float32"\n{settings.read_text()}')

    monkeypatch.setattr(script, "write_project", exact)
    out = tmp_path / "out.json"
    line = ["scope.py", str(tmp_path), "--work", str(tmp_path / "work"), "--encoder", str(encoder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    script.main()
    found = json.loads(out.read_text())
    assert [(row["depth"], row["relative"]) for row in found["depths"]] == [(d, r) for d in range(1, 5) for r in (1, 0)]
    assert [(row["classes"], row["relative"]) for row in found["classes"]] == [(2, 1), (2, 0), (5, 1), (5, 0)]
    [seed] = found["seeds"]
    assert [row["keep"] for row in seed["speeds"]] == [None, *script.KEEPS]
    [same] = [row for row in found["depths"] if (row["depth"], row["relative"]) == (seed["fork"], True)]
    assert seed["auroc"] == pytest.approx(same["auroc"], abs=0.02)
    assert str(tmp_path) not in out.read_text()


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
