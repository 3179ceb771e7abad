"""Counts and times in the shape of the statistics extension of the Open Inference Protocol.

They are those of all requests, whatever wire these came by, and of the version that is served: where a swap changes a
bundle or a branch, its counts begin again. A bundle counts every request and every batch; a task counts the requests
that ask for it, and all that comes after the queue as computing, since a batch is computed for all tasks together.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trunkline.serving.oip_models import Model
from trunkline.serving.replies import Batch, Event, Finished, Swapped

_COMPUTING = ("compute_input", "compute_infer", "compute_output")
_DURATIONS = ("success", "fail", "queue", *_COMPUTING, "cache_hit", "cache_miss")


@dataclass
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        self.count += 1
        self.ns += round(1e6 * milliseconds)

    def to_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


def _durations() -> dict[str, _Duration]:
    return defaultdict(_Duration)


@dataclass
class _Counts:
    last: int = 0
    rows: int = 0
    executions: int = 0
    spent: dict[str, _Duration] = field(default_factory=_durations)
    batches: dict[int, dict[str, _Duration]] = field(default_factory=lambda: defaultdict(_durations))

    def finished(self, event: Finished) -> None:
        self.last = int(1000 * time.time())
        if event.status != 200:
            self.spent["fail"].add(event.total)
            return
        self.rows += event.rows
        self.spent["success"].add(event.total)
        self.spent["queue"].add(event.queue)

    def batch(self, event: Batch) -> None:
        self.executions += 1
        infer = event.work.trunk + event.work.branches
        seconds = (event.work.tokenise, infer, max(0.0, event.seconds - event.work.tokenise - infer))
        for name, spent in zip(_COMPUTING, seconds, strict=True):
            self.spent[name].add(1000 * spent)
            self.batches[event.rows][name].add(1000 * spent)

    def to_dict(self, model: Model) -> dict[str, Any]:
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": self.last,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {name: self.spent[name].to_dict() for name in _DURATIONS},
            "batch_stats": [
                {"batch_size": rows} | {name: spent[name].to_dict() for name in _COMPUTING}
                for rows, spent in sorted(self.batches.items())
            ],
        }


class Statistics:
    """What the models have done, fed by the service's events."""

    def __init__(self) -> None:
        self._counts: dict[str | None, _Counts] = defaultdict(_Counts)  # by task; None: the bundle

    def observe(self, event: Event) -> None:
        """Take in what the service did."""
        match event:
            case Finished():
                self._counts[None].finished(event)
                for counts in [self._counts[name] for name in event.tasks]:
                    counts.finished(event)
                    if event.status == 200:
                        counts.executions += 1
                        counts.spent["compute_infer"].add(event.total - event.queue)
            case Batch():
                self._counts[None].batch(event)
            case Swapped():
                if event.old.bundle != event.new.bundle:
                    self._counts.pop(None, None)
                for name, task in event.old.tasks.items():
                    now = event.new.tasks.get(name)
                    if now is None or now.branch != task.branch:
                        self._counts.pop(name, None)

    def of(self, models: Iterable[Model]) -> dict[str, Any]:
        """The extension's answer for these models."""
        return {"model_stats": [self._counts.get(model.task, _Counts()).to_dict(model) for model in models]}
