"""The load generator of benchmarks/: what it sends, what it counts, and that a stall of the server cannot hide."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from client.fake import Handler, drop, refuse, say, serving
from serving.fakes import FakeService

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load.py"
REPLY = {"results": [{"intent": {"score": 1.0}, "slots": {"tags": ["O"]}}] * 2}
SCORES = {"data": [[{"label": "a", "score": 1.0}]] * 2}


@pytest.fixture(scope="module")
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["load"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def measure(load: ModuleType, url: str, target: Any, **options: Any) -> dict[str, Any]:
    defaults = {
        "clients": None,
        "rate": None,
        "rows": 2,
        "seconds": 0.25,
        "warmup": 0.05,
        "timeout": 2.0,
        "connections": 64,
    }
    settings = load.Load(**{**defaults, "seed": 1, **options})
    texts = [{"text": f"text {number}"} for number in range(50)]
    found: dict[str, Any] = asyncio.run(load.measure(url, target, texts, settings))
    return found


def test_the_command_measures_a_real_server_and_prints_one_object(served: tuple[str, FakeService]) -> None:
    url, service = served
    options = [
        "--tasks",
        "intent,slots",
        "--clients",
        "3",
        "--rows",
        "4",
        "--tokens",
        "16",
        "--seconds",
        "0.5",
        "--warmup",
        "0.1",
    ]
    done = subprocess.run([sys.executable, str(SCRIPT), url, *options], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["target"], found["rows"], found["loop"]) == ("trunkline", 4, {"clients": 3, "connections": 3})
    assert found["errors"] == {}
    assert found["requests"] > 3
    assert found["texts_per_second"] == pytest.approx(4 * found["requests_per_second"], rel=0.01)
    assert sum(found["texts_each_second"]) == pytest.approx(0.5 * found["texts_per_second"], rel=0.01)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["p100"]
    assert 0 < found["generator"]["cpu_seconds"] < 1
    inputs, tasks, _ = service.asked[0]
    assert tasks == ["intent", "slots"]
    assert [len(item["text"].split()) for item in inputs] == [14] * 4  # type: ignore[index]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_request_to_infinity_is_done_when_every_model_has_answered(load: ModuleType, at_once: bool) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.05)
        say(SCORES)(handler)

    with serving(slow) as server:
        target = load.infinity(server.url, ("m1", "m2", "m3"), at_once, None)
        found = measure(load, server.url, target, clients=1)
    assert found["errors"] == {}
    asked = [(request.path, request.body["model"], len(request.body["input"])) for request in server.asked[:3]]
    assert sorted(asked) == [("/classify", name, 2) for name in ("m1", "m2", "m3")]
    assert len({request.port for request in server.asked}) == (3 if at_once else 1)
    assert found["latency_ms"]["p50"] > (50 if at_once else 150)
    assert len(server.asked) % 3 == 0


def test_a_stall_is_seen_by_every_request_that_was_due_in_it(load: ModuleType) -> None:
    def step(handler: Handler) -> None:
        if len(handler.server.asked) == 30:
            time.sleep(0.4)
        say(REPLY)(handler)

    with serving(step) as server:
        target = load.trunkline(server.url, ("intent", "slots"), None)
        found = measure(load, server.url, target, rate=100.0, seconds=0.9, connections=1)
    # A closed loop on this connection would have seen one slow request; here about 40 of 90 were due meanwhile.
    assert found["errors"] == {}
    assert found["latency_ms"]["p90"] > 200
    assert found["sent_late_ms"]["p50"] < 50


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (refuse(429, "overloaded", "the queue is full", Retry_After="0.1"), "429"),
        (say({"results": REPLY["results"][:1]}), "answer"),
        (say({"results": [{"intent": {"score": 1.0}, "slots": {"error": "text is empty"}}] * 2}), "answer"),
        (say(b"<html>"), "answer"),
        (drop, "connection"),
    ],
)
def test_what_is_no_complete_answer_is_an_error_of_its_kind(load: ModuleType, step: Any, outcome: str) -> None:
    with serving(step) as server:
        found = measure(load, server.url, load.trunkline(server.url, ("intent", "slots"), None), clients=2)
    assert set(found["errors"]) == set(found["examples"]) == {outcome}
    assert found["errors"][outcome] == found["requests"] > 0
    assert (found["texts_per_second"], found["latency_ms"]) == (0.0, {})


def test_an_answer_that_does_not_come_counts_as_a_timeout(load: ModuleType) -> None:
    def slow(handler: Handler) -> None:
        handler.server.over.wait(5)

    with serving(slow) as server:
        target = load.trunkline(server.url, ("intent",), None)
        found = measure(load, server.url, target, rate=20.0, timeout=0.2)
    assert set(found["errors"]) == {"timeout"}


def test_percentiles_are_by_nearest_rank(load: ModuleType) -> None:
    assert load.percentiles([]) == {}
    found = load.percentiles([float(number) for number in range(1000, 0, -1)])
    assert found == {"mean": 500.5, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999, "p100": 1000}


def test_texts_and_pairs_come_from_a_file_as_they_are(load: ModuleType, tmp_path: Path) -> None:
    rows = [{"text": "ä", "label": "x"}, {"text": "b", "text_pair": "c"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert load.read_texts(path) == [{"text": "ä"}, {"text": "b", "text_pair": "c"}]
