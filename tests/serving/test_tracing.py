"""Spans as a collector gets them: a real server, OpenTelemetry's own exporter, and what arrives over HTTP."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")
pytest.importorskip("uvicorn", reason="the server's tests need the extra serve")
pytest.importorskip("opentelemetry.sdk.trace", reason="sending spans needs the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="sending spans needs the extra otel")

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving.conftest import Bundles
from serving.test_run import TEXT, serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEYS = {"TRUNKLINE_API_KEY": "a secret key", "TRUNKLINE_ADMIN_KEY": "an admin key"}
OWN = {"Authorization": "Bearer a secret key"}


@dataclass
class Collector:
    """A collector on a port of its own, and all that it was sent."""

    endpoint: str
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Each span with the attributes of its resource."""
        return [
            (_values(sent.resource.attributes), span)
            for body in self.bodies
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in sent.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            made.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        made = Collector(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield made
        http.shutdown()
        thread.join()


def _values(attributes: Any) -> dict[str, Any]:
    def value(found: Any) -> Any:
        kind = found.WhichOneof("value")
        return [value(one) for one in found.array_value.values] if kind == "array_value" else getattr(found, kind)

    return {attribute.key: value(attribute.value) for attribute in attributes}


def test_a_collector_gets_spans_that_nest_and_hold_no_text_and_no_key(bundles: Bundles, collector: Collector) -> None:
    asked = {"inputs": [TEXT, "play"], "tasks": ["intent", "tone"]}
    with (
        serving(str(bundles.first), OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **KEYS) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        traced = {**OWN, "traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "traced"}
        assert client.post("/v1/predict", json=asked, headers=traced).status_code == 200
        unsampled = {**OWN, "traceparent": f"00-{'ab' * 16}-{PARENT}-00"}
        assert client.post("/v1/predict", json=asked, headers=unsampled).status_code == 200
        assert client.post("/v1/predict", json={**asked, "deadline_ms": 1e-6}, headers=OWN).status_code == 504
        assert client.post("/v1/predict", json=asked, headers={"Authorization": f"Bearer {TEXT}"}).status_code == 401
        assert client.get(f"/{TEXT}?text={TEXT}", headers=OWN).status_code == 404
        assert client.post("/admin/release", content=TEXT, headers={"Authorization": "Bearer an admin key"}).is_error
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
    found = collector.spans()
    assert {about["service.name"] for about, _ in found} == {"trunkline"}
    spans = [span for _, span in found]
    [request] = [span for span in spans if _values(span.attributes).get("trunkline.request_id") == "traced"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert (request.name, request.kind, request.status.code) == ("POST /v1/predict", request.SPAN_KIND_SERVER, 0)
    assert _values(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 200,
        "trunkline.request_id": "traced",
        "trunkline.rows": 2,
        "trunkline.tasks": ["intent", "tone"],
        "trunkline.layers": 2,
    }
    assert [span.name for span in _inside(request, spans)] == ["queue", "run"]
    batches = [span for span in spans if span.name == "batch"]
    assert [span.name for span in _inside(batches[0], spans)] == ["tokenise", "trunk", "branches"]
    assert _values(batches[0].attributes)["trunkline.bundle"] == bundles.first.name
    assert "ab" * 16 not in {span.trace_id.hex() for span in spans}  # its caller did not ask for it
    failed = {_values(span.attributes)["http.response.status_code"] for span in spans if span.status.code == 2}
    assert failed == {504}
    said = {_values(span.attributes).get("http.response.status_code") for span in spans}
    assert {401, 404, 422} <= said
    sent = b"".join(collector.bodies)
    for text in (TEXT, "play", "secret key", "admin key", "alarm"):
        assert text.encode() not in sent


def _inside(parent: Any, spans: list[Any]) -> list[Any]:
    """The children of a span in their order, which must lie within it."""
    children = [span for span in spans if span.parent_span_id == parent.span_id]
    for span in children:
        assert span.trace_id == parent.trace_id
        assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano
    return sorted(children, key=lambda span: span.start_time_unix_nano)


def test_a_collector_that_never_answers_costs_no_request_and_does_not_hold_up_the_end(bundles: Bundles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://user:a-secret-word@127.0.0.1:{silent.getsockname()[1]}"
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "10"}
        with (
            serving(str(bundles.first), **environment) as running,
            httpx.Client(base_url=running.url, timeout=5) as client,
        ):
            for _ in range(5):
                assert client.post("/v1/predict", json={"inputs": [TEXT]}).status_code == 200
            silent.settimeout(60)
            silent.accept()[0].close()  # it tried
            running.process.send_signal(signal.SIGTERM)
            ended = time.monotonic() + 9  # less than the exporter waits for a collector
            running.process.wait(60)
            assert time.monotonic() < ended
            assert running.process.returncode == 0
            assert "a-secret-word" not in running.process.communicate()[1]
