"""Figures for Prometheus, at `/metrics`: from the service's events, and from the requests that pass the gate.

Labels are bounded: routes are patterns, methods HTTP's own, and tasks those of the model that is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from trunkline.serving.errors import Unavailable
from trunkline.serving.gate import Exchange
from trunkline.serving.http import code_of
from trunkline.serving.openapi import MEANINGS, ErrorResponse, responses
from trunkline.serving.replies import Batch, Event, Finished, Swapped, WorkerStopped

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
_LAYERS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)
_DEPTHS = tuple(range(1, 25))
_SPEEDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Telemetry:
    """Counts what a service and its wires do."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks: set[tuple[str, str]] = set()  # (task, status) with a count
        self._early: set[str] = set()  # tasks that were run at a speed
        self.registry = made = CollectorRegistry()
        self._stage = Histogram(
            "trunkline_stage_seconds",
            "Time in each stage: queue per request, tokenise, trunk and branches per batch.",
            ["stage"],
            buckets=_SECONDS,
            registry=made,
        )
        self._task_seconds = Histogram(
            "trunkline_task_seconds",
            "Time from request to answer of the requests that asked a task.",
            ["task"],
            buckets=_SECONDS,
            registry=made,
        )
        self._task_requests = Counter(
            "trunkline_task_requests", "Requests that asked a task.", ["task", "status"], registry=made
        )
        self._rows = Counter("trunkline_rows", "Inputs answered.", registry=made)
        self._batch_rows = Histogram("trunkline_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=made)
        self._padding = Histogram(
            "trunkline_padding_share",
            "Share of padding among the tokens that a batch sent through the trunk.",
            buckets=_SHARES,
            registry=made,
        )
        self._tokens = Counter("trunkline_tokens", "Tokens through the trunk.", ["kind"], registry=made)
        self._layers = Histogram(
            "trunkline_request_layers", "Trunk layers run for a request.", buckets=_LAYERS, registry=made
        )
        self._exit_layer = Histogram(
            "trunkline_exit_layer",
            "Layers after which a task that was run at a speed above 0 answered, per answer.",
            ["task"],
            buckets=_DEPTHS,
            registry=made,
        )
        self._speed = Histogram(
            "trunkline_speed",
            "Speed at which a task was run, per request at a speed above 0.",
            ["task"],
            buckets=_SPEEDS,
            registry=made,
        )
        self._cache = Counter(
            "trunkline_cache_rows", "Rows by whether the cache had their states.", ["result"], registry=made
        )
        self._restarts = Counter("trunkline_worker_restarts", "Workers that died or were killed.", registry=made)
        self._swaps = Counter("trunkline_swaps", "Models that took over from another.", registry=made)
        self._refusals = Counter("trunkline_refusals", "Requests refused, by kind.", ["kind"], registry=made)
        self._http = Histogram(
            "trunkline_http_seconds",
            "Time of HTTP requests.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=made,
        )
        self._model = Gauge(
            "trunkline_model", "The bundle that is served.", ["model", "bundle", "engine", "dtype"], registry=made
        )
        Gauge("trunkline_ready", "Whether requests are answered.", registry=made).set_function(lambda: service.ready)
        Gauge("trunkline_waiting_rows", "Rows in the queue.", registry=made).set_function(lambda: service.waiting)
        level = "How far load raises speeds: 0 as asked, 1 to the floor."
        Gauge("trunkline_load_level", level, registry=made).set_function(lambda: service.level)
        service.subscribe(self._event)

    def exchange(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        method = exchange.method if exchange.method in _METHODS else "other"
        self._http.labels(method, exchange.route or "other", exchange.status).observe(exchange.seconds)
        if exchange.status >= 400:
            self._refusals.labels(code_of(exchange.status)).inc()

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        self._model.clear()
        try:
            model = self._service.model
        except Unavailable:
            pass  # nothing is served yet
        else:
            self._model.labels(model.name, model.bundle, model.engine, model.dtype).set(1)
        return generate_latest(self.registry)

    def router(self) -> APIRouter:
        """The route that shows them."""
        routes = APIRouter(tags=["Health"])

        errors = responses(None, ErrorResponse, 401, 500)
        errors[200] = {"description": MEANINGS[200], "content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}

        @routes.get("/metrics", response_class=Response, responses=errors)
        async def metrics() -> Response:
            """Figures for Prometheus."""
            return Response(self.text(), media_type=CONTENT_TYPE_LATEST)

        return routes

    def _event(self, event: Event) -> None:
        match event:
            case Finished():
                self._finished(event)
            case Batch(work=work):
                self._batch_rows.observe(event.rows)
                for stage, seconds in (("tokenise", work.tokenise), ("trunk", work.trunk), ("branches", work.branches)):
                    self._stage.labels(stage).observe(seconds)
                if work.padded:
                    self._padding.observe(1 - work.tokens / work.padded)
                self._tokens.labels("text").inc(work.tokens)
                self._tokens.labels("padding").inc(work.padded - work.tokens)
                self._cache.labels("hit").inc(work.hits)
                self._cache.labels("miss").inc(work.misses)
            case WorkerStopped():
                self._restarts.inc()
            case Swapped(new=model):
                self._swaps.inc()
                for pair in [pair for pair in self._tasks if pair[0] not in model.tasks]:
                    self._forget(*pair)

    def _finished(self, event: Finished) -> None:
        self._stage.labels("queue").observe(event.queue / 1000)
        if event.status == 200:
            self._layers.observe(event.layers)
            self._rows.inc(event.rows)
        for task in event.tasks:
            self._tasks.add((task, str(event.status)))
            self._task_requests.labels(task, str(event.status)).inc()
            self._task_seconds.labels(task).observe(event.total / 1000)
        for task, left in event.exits.items():
            self._early.add(task)
            self._speed.labels(task).observe(left.speed)
            depths = self._exit_layer.labels(task)
            for layers, count in left.layers.items():
                for _ in range(count):
                    depths.observe(layers)

    def _forget(self, task: str, status: str) -> None:
        """Drop the figures of a task that is no longer there."""
        self._tasks.discard((task, status))
        self._task_requests.remove(task, status)
        if not any(name == task for name, _ in self._tasks):
            self._task_seconds.remove(task)
            if task in self._early:
                self._early.discard(task)
                self._exit_layer.remove(task)
                self._speed.remove(task)
