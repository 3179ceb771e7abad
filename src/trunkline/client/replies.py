"""The native wire's replies as typed, frozen values. Fields that a newer server adds are passed over.

Answers are those that `Bundle.predict` gives. Knows JSON, and nothing of how it came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from trunkline.client.errors import BadReply
from trunkline.engine.base import ItemError
from trunkline.project.tasks import Answer, Span

T = TypeVar("T")


@dataclass(frozen=True)
class Timings:
    """Milliseconds in the server: waiting for a batch, each stage of it, and all from request to answer."""

    queue: float
    tokenise: float
    trunk: float
    branches: float
    total: float


@dataclass(frozen=True)
class Reply:
    """Answers per input in the order given, {task: Answer}, or ItemError where a task cannot read an input.

    One bundle gave them all: `bundle` is its id, `model` its name, and `branches` holds the version of each branch that
    answered. `layers` counts the trunk layers that were run. `speeds` are those that were used: of every task where a
    speed or keep was asked for, else of those whose speed the server raised.
    """

    answers: list[dict[str, Answer | ItemError]]
    model: str
    bundle: str
    branches: Mapping[str, str]
    layers: int
    timings: Timings
    speeds: Mapping[str, float]


@dataclass(frozen=True)
class SpeedPoint:
    """What a speed came to on `valid`: the task's metric, with the standard error of what it differs by from that at
    speed 0, mean layers run for a text, and mean time, as a fraction of what speed 0 takes. `exits` are the depths at
    which a text may leave at this speed, None for all that the task has.
    """

    speed: float
    quality: float
    error: float
    layers: float
    time: float
    exits: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TaskInfo:
    """One task that is served.

    `kind` is a `trunkline.project.tasks.Kind`; `pair` says that it needs a text_pair; it reads the trunk at `fork`
    and has `layers` of its own, `depth` in all; `branch` is its version, which changes when its branch does and only
    then. Where it has `exits`, the depths at which a text may leave, `speeds` is what speeds come to. Where it flags
    texts that are out of scope, `false_alarms` is the share of texts in scope that it flags too.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    positive: str | None
    pair: bool
    max_tokens: int
    fork: int
    layers: int
    depth: int
    branch: str
    loaded: bool
    exits: tuple[int, ...]
    speeds: tuple[SpeedPoint, ...]
    false_alarms: float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """The bundle that is served: its name and id, its trunk of `depth` layers of `width`, and what runs it."""

    name: str
    bundle: str
    tasks: Mapping[str, TaskInfo]
    family: str
    depth: int
    width: int
    engine: str
    dtype: str
    device: str


def read(path: str, body: bytes, make: Callable[[Any], T]) -> T:
    """What `make` makes of the JSON in a reply's body. Raises BadReply where it is none, or not what it should be."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the reply of {path} is not JSON: {error}") from error
    try:
        return make(value)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadReply(f"the reply of {path} is not what the native wire has there: {error!r}") from error


def reply(found: Any, asked: int) -> Reply:
    """The answers to `asked` inputs."""
    rows: list[dict[str, Any]] = found["results"]
    if len(rows) != asked:
        raise ValueError(f"{len(rows)} results for {asked} inputs")
    return Reply(
        answers=[{task: _result(result) for task, result in row.items()} for row in rows],
        model=found["model"],
        bundle=found["bundle"],
        branches={task: result["branch"] for row in rows for task, result in row.items() if "branch" in result},
        layers=found["layers"],
        timings=_made(Timings, found["timings"]),
        speeds=dict(found["speeds"]),
    )


def tasks(found: Any) -> dict[str, TaskInfo]:
    """Tasks by name."""
    return {info["name"]: _task(info) for info in found["tasks"]}


def model(found: Any) -> ModelInfo:
    """The model with its tasks."""
    return _made(ModelInfo, {**found, "tasks": tasks(found)})


def _task(info: dict[str, Any]) -> TaskInfo:
    speeds = tuple(_point(point) for point in info["speeds"])
    return _made(TaskInfo, {**info, "labels": tuple(info["labels"]), "exits": tuple(info["exits"]), "speeds": speeds})


def _point(found: dict[str, Any]) -> SpeedPoint:
    exits = found.get("exits")
    return _made(SpeedPoint, {**found, "exits": None if exits is None else tuple(exits)})


def _result(result: dict[str, Any]) -> Answer | ItemError:
    if "error" in result:
        return ItemError(result["error"])
    if "spans" in result:
        result = {**result, "spans": [_made(Span, span) for span in result["spans"]]}
    return _made(Answer, result)


def _made(kind: type[T], found: Mapping[str, Any]) -> T:
    """A dataclass from an object that may hold more than its fields."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: found[name] for name in names if name in found})
