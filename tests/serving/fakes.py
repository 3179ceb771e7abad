"""A service without a worker, for tests of the wires: answers are made up, but always the same for the same input."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trunkline.engine.base import Input, ItemError, Work, as_input, fault
from trunkline.errors import unknown
from trunkline.project.speed import SpeedPoint
from trunkline.project.tasks import Answer, Kind, answer, split_words
from trunkline.serving.admission import asked_speeds
from trunkline.serving.errors import DeadlineExceeded, Invalid, NotFound, Refusal, Unavailable
from trunkline.serving.limits import Limits
from trunkline.serving.replies import Batch, Event, Finished, Left, ModelInfo, Reply, Swapped, TaskInfo, Timings

SPEEDS = (
    SpeedPoint(speed=0.0, quality=0.9, layers=3.0, time=1.0),
    SpeedPoint(speed=0.4, quality=0.89, layers=2.0, time=0.8),
    SpeedPoint(speed=0.8, quality=0.6, layers=1.5, time=0.5),
)
TASKS = {
    task.name: task
    for task in (
        TaskInfo("follows", Kind.CLASSIFICATION, ("alarm", "music"), None, True, 64, 3, 1, "0f" * 8),
        TaskInfo(
            "intent",
            Kind.CLASSIFICATION,
            ("alarm", "music", "weather"),
            None,
            False,
            64,
            2,
            1,
            "1a" * 8,
            exits=(1, 2),
            speeds=SPEEDS,
        ),
        TaskInfo("same", Kind.RELEVANCE, ("no", "yes"), "yes", True, 64, 2, 1, "2b" * 8),
        TaskInfo("slots", Kind.TAGGING, ("O", "B-time", "I-time"), None, False, 64, 2, 2, "3c" * 8),
        TaskInfo("tone", Kind.MULTILABEL, ("angry", "happy", "polite", "sad"), None, False, 64, 1, 2, "4d" * 8),
        TaskInfo("urgency", Kind.REGRESSION, (), None, False, 64, 3, 1, "5e" * 8, false_alarms=0.05),
    )
}
MODEL = ModelInfo("support", "ab" * 8, TASKS, "bert", 4, 32, "torch", "float32", "cpu")


class FakeService:
    """The surface of `Service`. `refusal` is raised by every call while it is set, `seconds` is what an answer takes.

    `asked` keeps what `predict` was given, `dialled` the speed and the keep that came with it, `calls` what was done to
    the model.
    """

    def __init__(self, model: ModelInfo | None = MODEL, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self.ready = True
        self.live = True
        self.waiting = 0
        self.level = 0.0
        self.refusal: Refusal | None = None
        self.seconds = 0.0
        self.asked: list[tuple[list[object], list[str] | None, float | None]] = []
        self.dialled: list[tuple[Any, Any]] = []
        self.calls: list[tuple[str, object]] = []
        self.cancelled = 0
        self._model = model
        self._observers: list[Callable[[Event], None]] = []

    @property
    def model(self) -> ModelInfo:
        if self._model is None:
            raise Unavailable("no bundle is loaded yet", 1.0)
        return self._model

    async def predict(
        self,
        inputs: Sequence[object],
        tasks: Sequence[str] | None = None,
        *,
        deadline_ms: float | None = None,
        speed: Any = None,
        keep: Any = None,
    ) -> Reply:
        self.asked.append((list(inputs), None if tasks is None else list(tasks), deadline_ms))
        self.dialled.append((speed, keep))
        try:
            reply = await self._predict(inputs, tasks, deadline_ms, speed, keep)
        except Refusal as refusal:
            self.emit(Finished(refusal.status, (), len(inputs), 0.0, 0.0, 0))
            raise
        except asyncio.CancelledError:
            self.cancelled += 1
            self.emit(Finished(499, (), len(inputs), 0.0, 0.0, 0))
            raise
        work = Work(0.001, 0.002, 0.001, len(inputs), 8 * len(inputs), 10 * len(inputs), 3 * len(inputs))
        self.emit(Batch(reply.model.bundle, len(inputs), 1, 0.004, work))
        names = tuple(dict.fromkeys(name for row in reply.answers for name in row))
        exits = {name: Left(speed, left_at(reply, name)) for name, speed in reply.speeds.items() if speed}
        self.emit(Finished(200, names, len(inputs), reply.timings.queue, reply.timings.total, reply.layers, exits))
        return reply

    async def _predict(
        self, inputs: Sequence[object], tasks: Sequence[str] | None, deadline_ms: float | None, speed: Any, keep: Any
    ) -> Reply:
        if self.refusal is not None:
            raise self.refusal
        model = self.model
        if not inputs:
            raise Invalid("there are no inputs")
        names = [name for name, task in model.tasks.items() if task.loaded] if tasks is None else list(tasks)
        for name in names:
            if name not in model.tasks:
                raise NotFound(unknown("task", name, model.tasks))
            if not model.tasks[name].loaded:
                raise Unavailable(f"task '{name}' is unloaded")
        dials = asked_speeds(names, speed, keep)
        speeds = {name: dial.of(model.tasks[name].speeds) for name, dial in dials.items()}
        if deadline_ms is not None and deadline_ms < 1000 * self.seconds:
            raise DeadlineExceeded(f"not answered within {deadline_ms:g} ms")
        await asyncio.sleep(self.seconds)
        items = [as_input(item) for item in inputs]
        answers = [{name: made_up(model.tasks[name], item, speeds.get(name, 0.0)) for name in names} for item in items]
        layers = max((model.tasks[name].fork for name in names), default=0)
        return Reply(answers, model, Timings(0.5, 1.0, 2.0, 1.0, 4.5), layers, speeds)

    async def swap(self, bundle: Path | None = None) -> ModelInfo:
        self.calls.append(("swap", bundle))
        if self.refusal is not None:
            raise self.refusal
        self._become(replace(self.model, bundle="cd" * 8))
        return self.model

    async def load(self, task: str) -> None:
        await self._turn("load", task, True)

    async def unload(self, task: str) -> None:
        await self._turn("unload", task, False)

    async def _turn(self, call: str, task: str, loaded: bool) -> None:
        self.calls.append((call, task))
        if self.refusal is not None:
            raise self.refusal
        if task not in self.model.tasks:
            raise NotFound(unknown("task", task, self.model.tasks))
        changed = replace(self.model.tasks[task], loaded=loaded)
        self._become(replace(self.model, tasks={**self.model.tasks, task: changed}))

    def _become(self, model: ModelInfo) -> None:
        old, self._model = self.model, model
        self.emit(Swapped(old, model))

    def subscribe(self, observer: Callable[[Event], None]) -> None:
        self._observers.append(observer)

    def emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    async def start(self) -> None:
        self.calls.append(("start", None))

    async def drain(self) -> None:
        self.calls.append(("drain", None))
        self.ready = self.live = False


def left_at(reply: Reply, task: str) -> Counter[int]:
    """How many answers of a task came after how many layers."""
    answers = [row[task] for row in reply.answers]
    return Counter(one.exit_layer for one in answers if isinstance(one, Answer) and one.exit_layer is not None)


def made_up(task: TaskInfo, item: Input | ItemError, speed: float = 0.0) -> Answer | ItemError:
    """An answer of the task's kind that depends on the task and the texts alone, and with exits on the speed; out of
    scope, of a task that flags that, is what has a question mark.
    """
    reason = fault(item, ("text", "pair") if task.pair else ("text",), words=task.kind is Kind.TAGGING)
    if reason is not None:
        return reason
    assert isinstance(item, Input)
    seed = zlib.crc32(f"{task.name} {item.text} {item.text_pair if task.pair else ''}".encode())
    random = np.random.default_rng(seed)
    words = split_words(item.text) if item.words is None else list(item.words)
    shape = (len(words), len(task.labels)) if task.kind is Kind.TAGGING else (max(1, len(task.labels)),)
    found = answer(task.kind, task.labels, task.positive, random.normal(size=shape), item.text, words)
    if task.false_alarms is not None:
        strange = "?" in item.text
        found = replace(found, out_of_scope=strange, scope=0.5 if strange else -0.5)
    if not speed:
        return found
    unsure = {depth: float(random.random()) for depth in (*task.exits, task.depth)}
    left = next((depth for depth in task.exits if unsure[depth] < speed), task.depth)
    return replace(found, exit_layer=left, uncertainty=unsure[left])
