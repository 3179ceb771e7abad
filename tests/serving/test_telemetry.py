"""Figures and spans: what is counted, with labels that stay few."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")

from prometheus_client.parser import text_string_to_metric_families
from serving.fakes import MODEL, FakeService
from starlette.testclient import TestClient

from trunkline.engine.base import Work
from trunkline.errors import MissingExtra
from trunkline.serving import tracing
from trunkline.serving.app import create_app
from trunkline.serving.errors import Overloaded
from trunkline.serving.gate import Exchange
from trunkline.serving.replies import Batch, Finished, Left, Swapped, WorkerStopped

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as made:
        yield made


def figures(client: TestClient) -> Figures:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(found: Figures, name: str, **labels: str) -> float | None:
    return found.get((f"trunkline_{name}", frozenset(labels.items())))


def test_a_request_is_counted_by_stage_by_task_and_by_route(client: TestClient) -> None:
    for _ in range(2):
        client.post("/v1/predict", json={"inputs": ["a", "b", "c"], "tasks": ["tone", "intent"]})
    client.post("/tasks/intent/predict", json={"inputs": "a"})
    found = figures(client)
    assert value(found, "stage_seconds_count", stage="queue") == 3
    assert value(found, "stage_seconds_sum", stage="queue") == pytest.approx(0.0015)
    assert value(found, "stage_seconds_sum", stage="tokenise") == pytest.approx(0.003)
    assert value(found, "stage_seconds_sum", stage="trunk") == pytest.approx(0.006)
    assert value(found, "stage_seconds_sum", stage="branches") == pytest.approx(0.003)
    assert value(found, "task_requests_total", task="intent", status="200") == 3
    assert value(found, "task_requests_total", task="tone", status="200") == 2
    assert value(found, "task_seconds_sum", task="tone") == pytest.approx(0.009)
    assert value(found, "rows_total") == 7
    assert value(found, "batch_rows_sum") == 7
    assert value(found, "tokens_total", kind="text") == 56
    assert value(found, "tokens_total", kind="padding") == 14
    assert value(found, "padding_share_sum") == pytest.approx(0.6)
    assert value(found, "request_layers_sum") == 6
    assert value(found, "http_seconds_count", method="POST", route="/v1/predict", status="200") == 2
    assert value(found, "http_seconds_count", method="POST", route="/tasks/{task}/predict", status="200") == 1


def test_where_texts_leave_is_counted_for_tasks_run_at_a_speed(service: FakeService, client: TestClient) -> None:
    client.post("/v1/predict", json={"inputs": ["a"]})
    assert not [name for name, labels in figures(client) if "exit_layer" in name or name.startswith("trunkline_speed")]
    left = {"intent": Left(0.4, {1: 3, 3: 1})}
    service.emit(Finished(200, ("intent", "tone"), 4, 0.5, 4.5, 2, left))
    service.emit(Finished(200, ("intent",), 1, 0.5, 4.5, 1, {"intent": Left(0.8, {1: 1})}))
    found = figures(client)
    layers = {le: value(found, "exit_layer_bucket", task="intent", le=le) for le in ("1.0", "2.0", "3.0", "+Inf")}
    assert layers == {"1.0": 4, "2.0": 4, "3.0": 5, "+Inf": 5}
    assert value(found, "exit_layer_sum", task="intent") == 7
    assert value(found, "speed_count", task="intent") == 2
    assert value(found, "speed_sum", task="intent") == pytest.approx(1.2)
    assert value(found, "speed_count", task="tone") is None
    service._become(replace(MODEL, tasks={"tone": MODEL.tasks["tone"]}))
    assert not [labels for _, labels in figures(client) if ("task", "intent") in labels]


def test_caches_restarts_and_swaps_are_counted(service: FakeService, client: TestClient) -> None:
    service.emit(Batch("ab" * 8, 4, 1, 0.1, Work(rows=1, hits=3, misses=1)))
    service.emit(WorkerStopped("killed"))
    service.emit(Swapped(MODEL, MODEL))
    found = figures(client)
    assert value(found, "cache_rows_total", result="hit") == 3
    assert value(found, "cache_rows_total", result="miss") == 1
    assert value(found, "worker_restarts_total") == 1
    assert value(found, "swaps_total") == 1
    assert value(found, "padding_share_count") == 0  # nothing went through the trunk


def test_refusals_are_counted_by_kind(service: FakeService, client: TestClient) -> None:
    client.post("/v1/predict", json={"inputs": ["a"], "tasks": ["nothing"]})
    client.post("/v1/predict", content=b"{")
    service.refusal = Overloaded("full", 1.0)
    client.post("/v1/predict", json={"inputs": ["a"]})
    client.post("/tasks/intent/predict", json={"inputs": "a"})
    found = figures(client)
    assert value(found, "refusals_total", kind="not_found") == 1
    assert value(found, "refusals_total", kind="invalid") == 1
    assert value(found, "refusals_total", kind="overloaded") == 2
    assert value(found, "rows_total") == 0


def test_gauges_say_what_is_now(service: FakeService, client: TestClient) -> None:
    service.waiting, service.level = 7, 0.25
    found = figures(client)
    assert (value(found, "ready"), value(found, "waiting_rows"), value(found, "load_level")) == (1, 7, 0.25)
    served = {"model": "support", "engine": "torch", "dtype": "float32"}
    assert value(found, "model", bundle="ab" * 8, **served) == 1
    service._become(replace(MODEL, bundle="cd" * 8))
    service.ready = False
    found = figures(client)
    assert value(found, "ready") == 0
    assert value(found, "model", bundle="ab" * 8, **served) is None
    assert value(found, "model", bundle="cd" * 8, **served) == 1


def test_labels_stay_few_whatever_is_asked(client: TestClient) -> None:
    for number in range(20):
        client.get(f"/nothing/{number}")
        client.post(f"/tasks/nothing{number}/predict", json={"inputs": "a"})
        client.post("/v1/predict", json={"inputs": ["a"], "tasks": [f"nothing{number}"]})
        client.request(f"ODD{number}", "/v1/predict")
    found = figures(client)
    assert value(found, "http_seconds_count", method="GET", route="other", status="404") == 20
    assert value(found, "http_seconds_count", method="other", route="/v1/predict", status="405") == 20
    assert not [labels for _, labels in found if "nothing" in str(labels)]


def test_a_task_that_leaves_takes_its_figures_along(service: FakeService, client: TestClient) -> None:
    service.emit(Finished(200, ("tone", "intent"), 1, 0.5, 4.5, 2))
    service.emit(Finished(504, ("tone",), 1, 0.5, 4.5, 2))
    assert value(figures(client), "task_requests_total", task="tone", status="504") == 1
    service._become(replace(MODEL, tasks={"intent": MODEL.tasks["intent"]}))
    found = figures(client)
    assert value(found, "task_requests_total", task="intent", status="200") == 1
    assert not [labels for _, labels in found if ("task", "tone") in labels]


def test_a_request_is_a_span_in_the_trace_of_its_caller(service: FakeService) -> None:
    trace = pytest.importorskip("opentelemetry.trace", reason="spans need OpenTelemetry")
    provider = Provider()
    traces = tracing.Traces(service, provider)
    parent = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {b"traceparent": f"00-{parent}-00f067aa0ba902b7-01".encode()}
    exchange = Exchange("id", "POST", "/v1/predict", headers, route="/v1/predict", status=200)
    exchange.finished = Finished(200, ("tone",), 3, queue=1.0, total=5.0, layers=2)
    traces.exchange(exchange)
    request, queue, run = provider.spans
    assert (request.name, request.kind, request.failed) == ("POST /v1/predict", trace.SpanKind.SERVER, False)
    assert f"{trace.get_current_span(request.parent).get_span_context().trace_id:032x}" == parent
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 200,
        "trunkline.request_id": "id",
        "trunkline.rows": 3,
        "trunkline.tasks": ("tone",),
        "trunkline.layers": 2,
    }
    assert [(span.name, span.stop - span.start) for span in (queue, run)] == [("queue", 1_000_000), ("run", 4_000_000)]
    assert (queue.stop, run.stop) == (run.start, request.stop)
    exchange.status, exchange.finished = 500, None
    traces.exchange(exchange)
    assert provider.spans[3].failed


def test_a_batch_is_a_span_with_its_stages(service: FakeService) -> None:
    pytest.importorskip("opentelemetry.trace", reason="spans need OpenTelemetry")
    provider = Provider()
    tracing.Traces(service, provider)
    service.emit(Batch("ab" * 8, 4, 2, 0.008, Work(0.001, 0.004, 0.002, rows=4, tokens=30, padded=32)))
    service.emit(Swapped(MODEL, MODEL))
    batch, *stages = provider.spans
    assert (batch.name, batch.stop - batch.start) == ("batch", 8_000_000)
    assert batch.attributes["trunkline.requests"] == 2
    assert [(span.name, span.stop - span.start) for span in stages] == [
        ("tokenise", 1_000_000),
        ("trunk", 4_000_000),
        ("branches", 2_000_000),
    ]
    assert stages[0].start == batch.start


def test_traces_go_nowhere_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracing.exporting({}):
        pass
    for module in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    asked = tracing.exporting({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    with pytest.raises(MissingExtra, match=r"\.\[otel\]"), asked:
        pass


def test_without_opentelemetry_nothing_is_traced(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "INSTALLED", False)
    with TestClient(create_app(service)) as client:
        assert client.post("/v1/predict", json={"inputs": ["a"]}).status_code == 200


class Span:
    """What OpenTelemetry was told of one span."""

    def __init__(
        self, name: str, start_time: int, attributes: Any = None, context: Any = None, kind: Any = None
    ) -> None:
        self.name, self.start, self.attributes = name, start_time, dict(attributes or {})
        self.parent, self.kind, self.stop, self.failed = context, kind, 0, False

    def is_recording(self) -> bool:
        return True

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        self.attributes |= attributes

    def set_status(self, status: Any) -> None:
        self.failed = True

    def end(self, end_time: int) -> None:
        self.stop = end_time


class Provider:
    """A tracer provider that keeps all spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def get_tracer(self, *_: Any, **__: Any) -> Provider:
        return self

    def start_span(self, name: str, **about: Any) -> Span:
        self.spans.append(Span(name, **about))
        return self.spans[-1]
