"""The benchmarks of the server: figures come from what was measured, and a wrong answer cannot pass for a right one."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
        return {name: importlib.import_module(name) for name in ("served", "server", "server_page", "soak")}
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
    out = tmp_path / "server.json"
    cut = detail(scripts, ROUND, {"engine": ROUND["engine"]}, infinity={"missing": "no --infinity-python was given"})
    scripts["served"].record(out, {"shapes": {"base": {"infinity": {}, "rounds": []}}})
    scripts["server_page"].write_page(out, None)
    scripts["served"].record(out, {"soak": {"command": "soak", "machine": {"cpu": "a CPU", "cores": 2}}})
    for shape in ("base", "minilm"):
        found = scripts["served"].record(out, {"shapes": {shape: cut}})
    scripts["served"].record(out, scripts["server"].headlines(found["shapes"]))
    scripts["server_page"].write_page(out, None)
    assert set(json.loads(out.read_text())["shapes"]) == {"base", "minilm"}
    page = out.with_suffix(".md").read_text()
    assert "| server over engine alone, texts a second at saturation | at least 0.85 | 0.900 |" in page
    assert page.count("Infinity was not measured: no --infinity-python was given.") == 2
    assert page.count("| not measured |") == 2


def test_no_folder_of_this_machine_is_in_the_command(scripts: dict[str, ModuleType]) -> None:
    given = ["--rounds", "3", "--infinity-python", "/somewhere/python", "--work", "/tmp/here", "--shapes", "base"]
    shown = scripts["server"].without_folders(given)
    assert shown == ["--rounds", "3", "--infinity-python", "PYTHON", "--shapes", "base"]


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
    judge = scripts["soak"].Judge(expected, {"old": {"task": "b1"}, "new": {"task": "b2"}}, [{"text": "text"}])
    assert (judge.of([{"text": "text"}])(said) is None) is passes
    assert judge.mixed == (0 if passes else 1)


def test_readiness_counts_as_what_was_said_last_and_as_neither_while_it_changes(scripts: dict[str, ModuleType]) -> None:
    class Somewhere:
        port = 1

    readiness = scripts["soak"].Readiness(Somewhere())
    now = time.perf_counter()
    readiness.changes = [(now, True), (now + 5, False), (now + 9, True)]
    said = [readiness.said(now + after) for after in (-1, 0.1, 4, 5.1, 6, 9.5)]
    assert said == [None, None, True, None, False, True]
