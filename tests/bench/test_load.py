"""The load generator: what it sends, what it counts, and that a stall of the server cannot hide."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the load generator is tested on the real server, which needs the extra serve")

from client.fake import Handler, drop, refuse, say, serving
from serving.fakes import FakeService

from trunkline.bench.load import Load, measure, percentiles, trunkline
from trunkline.bench.texts import made_texts, read_texts
from trunkline.engine.base import Input
from trunkline.errors import UsageError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REPLY = {"results": [{"intent": {"score": 1.0}, "slots": {"tags": ["O"]}}] * 2}
SCORES = {"data": [[{"label": "a", "score": 1.0}]] * 2}


@pytest.fixture(scope="module")
def process() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("load_process")
    finally:
        sys.path.remove(str(BENCHMARKS))


def measured(url: str, target: Any, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"rows": 2, "seconds": 0.25, "warmup": 0.05, "timeout": 2.0, "connections": 64}
    texts = [Input(f"text {number}") for number in range(50)]
    return asyncio.run(measure(url, target, texts, Load(**{**defaults, "seed": 1, **options})))


def test_the_process_measures_a_real_server_and_prints_one_object(
    served: tuple[str, FakeService], tmp_path: Path
) -> None:
    url, service = served
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(9)))
    load = {"clients": 3, "rows": 4, "seconds": 0.5, "warmup": 0.1}
    given = {"url": url, "texts": str(texts), "tasks": ["intent", "slots"], "load": load}
    command = [sys.executable, str(BENCHMARKS / "load_process.py")]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
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
    assert len(inputs) == 4


@pytest.mark.parametrize("at_once", [True, False])
def test_a_request_to_infinity_is_done_when_every_model_has_answered(process: ModuleType, at_once: bool) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.05)
        say(SCORES)(handler)

    with serving(slow) as server:
        target = process.infinity(server.url, ("m1", "m2", "m3"), at_once)
        found = measured(server.url, target, clients=1)
    assert found["errors"] == {}
    asked = [(request.path, request.body["model"], len(request.body["input"])) for request in server.asked[:3]]
    assert sorted(asked) == [("/classify", name, 2) for name in ("m1", "m2", "m3")]
    assert len({request.port for request in server.asked}) == (3 if at_once else 1)
    assert found["latency_ms"]["p50"] > (50 if at_once else 150)
    assert len(server.asked) % 3 == 0


def test_a_stall_is_seen_by_every_request_that_was_due_in_it() -> None:
    def step(handler: Handler) -> None:
        if len(handler.server.asked) == 30:
            time.sleep(0.4)
        say(REPLY)(handler)

    with serving(step) as server:
        target = trunkline(server.url, ("intent", "slots"))
        found = measured(server.url, target, rate=100.0, seconds=0.9, connections=1)
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
def test_what_is_no_complete_answer_is_an_error_of_its_kind(step: Any, outcome: str) -> None:
    with serving(step) as server:
        found = measured(server.url, trunkline(server.url, ("intent", "slots")), clients=2, seconds=1.0)
    assert set(found["errors"]) == set(found["examples"]) == {outcome}
    assert found["errors"][outcome] == found["requests"] > 0
    assert (found["texts_per_second"], found["latency_ms"]) == (0.0, {})


def test_an_answer_that_does_not_come_counts_as_a_timeout() -> None:
    def slow(handler: Handler) -> None:
        handler.server.over.wait(5)

    with serving(slow) as server:
        target = trunkline(server.url, ("intent",))
        found = measured(server.url, target, rate=20.0, timeout=0.2)
    assert set(found["errors"]) == {"timeout"}


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentiles([]) == {}
    found = percentiles([float(number) for number in range(1000, 0, -1)])
    assert found == {"mean": 500.5, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999, "p100": 1000}


def test_a_server_is_asked_over_plain_http_only() -> None:
    with pytest.raises(UsageError, match=r"https://example.org is not a URL that starts with http://"):
        measured("https://example.org", trunkline("https://example.org", ("intent",)), clients=1)


def test_texts_and_pairs_come_from_a_file_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": "ä", "label": "x"}, {"text": "b", "text_pair": "c"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert read_texts(path) == [Input("ä"), Input("b", "c")]
    (tmp_path / "rows.csv").write_text("text,n\n")
    with pytest.raises(UsageError, match=r"rows.csv holds no texts"):
        read_texts(tmp_path / "rows.csv")
    path.write_text('{"text": "a"}\n{"text": 5}\n')
    with pytest.raises(UsageError, match=r"rows.jsonl: line 2: text must be a string"):
        read_texts(path)


def test_made_texts_have_as_many_tokens_as_asked_in_the_vocabularies_of_bert() -> None:
    (text,) = made_texts(16, 1, random.Random(0), pairs=True)
    assert text.text_pair is not None
    assert [len(one.split()) for one in (text.text, text.text_pair)] == [14, 14]
