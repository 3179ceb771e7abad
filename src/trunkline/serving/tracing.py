"""OpenTelemetry spans, where it is installed: one per request with its time in the queue and at work, one per batch.

A batch serves many requests, so that its stages are spans of the batch and not of a request. A request continues the
trace that its `traceparent` header names. Spans are made when what they span has ended; nothing runs inside them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trunkline.errors import MissingExtra
from trunkline.serving.gate import Exchange
from trunkline.serving.replies import Batch, Event

try:
    from opentelemetry import propagate, trace

    INSTALLED = True
except ImportError:
    INSTALLED = False

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service

_END_SECONDS = 3.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Traces:
    """Makes spans of what a service and its wires do; makes none without OpenTelemetry. `provider` is for tests."""

    def __init__(self, service: Service, provider: Any = None) -> None:
        self._tracer = trace.get_tracer("trunkline", tracer_provider=provider) if INSTALLED else None
        if self._tracer is not None:
            service.subscribe(self._event)

    def exchange(self, exchange: Exchange) -> None:
        """Make the spans of a request that has ended."""
        if self._tracer is None:
            return
        end = time.time_ns()
        start = end - _ns(exchange.seconds)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers.items()}
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.route or 'other'}",
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": exchange.method,
                "http.route": exchange.route or "other",
                "http.response.status_code": exchange.status,
                "trunkline.request_id": exchange.id,
            },
            start_time=start,
        )
        if not span.is_recording():
            return
        if exchange.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        if exchange.finished is not None:
            done = exchange.finished
            span.set_attributes(
                {"trunkline.rows": done.rows, "trunkline.tasks": done.tasks, "trunkline.layers": done.layers}
            )
            stages = {"queue": done.queue / 1000, "run": (done.total - done.queue) / 1000}
            self._row(span, end - _ns(done.total / 1000), stages)
        span.end(end)

    def _event(self, event: Event) -> None:
        assert self._tracer is not None
        if not isinstance(event, Batch):
            return
        end = time.time_ns()
        start = end - _ns(event.seconds)
        work = event.work
        span = self._tracer.start_span(
            "batch",
            attributes={
                "trunkline.bundle": event.bundle,
                "trunkline.rows": event.rows,
                "trunkline.requests": event.requests,
                "trunkline.tokens": work.tokens,
                "trunkline.padded": work.padded,
            },
            start_time=start,
        )
        if span.is_recording():
            self._row(span, start, {"tokenise": work.tokenise, "trunk": work.trunk, "branches": work.branches})
            span.end(end)

    def _row(self, parent: Any, start: int, stages: Mapping[str, float]) -> None:
        """Children one after the other from `start` on, each of so many seconds."""
        assert self._tracer is not None
        inside = trace.set_span_in_context(parent)
        for name, seconds in stages.items():
            end = start + _ns(seconds)
            self._tracer.start_span(name, context=inside, start_time=start).end(end)
            start = end


@contextlib.contextmanager
def exporting(environment: Mapping[str, str]) -> Iterator[None]:
    """Send the spans of this block to where OpenTelemetry's own variables say, and only if they do.

    Raises MissingExtra. What is left at the end is sent within `_END_SECONDS` or not at all.
    """
    if not any(environment.get(name) for name in _ENDPOINTS):
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtra("otel", "sending traces, as OTEL_EXPORTER_OTLP_ENDPOINT asks,") from None
    named = environment.get("OTEL_SERVICE_NAME") or f"{SERVICE_NAME}=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if named else {SERVICE_NAME: "trunkline"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        # By itself it would wait for a collector that does not answer, and for longer than the process has to end.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(_END_SECONDS)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
