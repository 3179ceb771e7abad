"""Whether a request makes sense and can ever fit: what is known before it takes a place in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trunkline.engine.base import Input, ItemError, as_input
from trunkline.errors import UsageError, unknown
from trunkline.project.speed import Dials, dials
from trunkline.serving.errors import Invalid, NotFound, TooLarge, Unavailable
from trunkline.serving.limits import Limits
from trunkline.serving.queue import Request, Served, rows_of
from trunkline.serving.replies import ModelInfo


def admit(
    served: Served,
    limits: Limits,
    inputs: Sequence[object],
    tasks: Iterable[str] | None,
    deadline_ms: float | None,
    speed: Any,
    keep: Any,
    arrived: float,
) -> Request:
    """The request, which has no place yet. Raises Invalid, NotFound, Unavailable for an unloaded task, TooLarge."""
    names = named(served.model, tasks)
    if isinstance(inputs, str | Mapping):
        raise Invalid("inputs is a list; write [text] for a single one")
    if not inputs:
        raise Invalid("there are no inputs")
    if deadline_ms is not None and not deadline_ms > 0:
        raise Invalid(f"deadline_ms must be more than 0; found {deadline_ms}")
    _check("inputs in one request", len(inputs), "items", limits.items)
    items = [as_input(item) for item in inputs]
    for position, item in enumerate(items):
        if isinstance(item, Input):
            longest = max(len(item.text), len(item.text_pair or ""))
            _check(f"characters in a text of input {position}", longest, "characters", limits.characters)
    allowed = min(deadline_ms or limits.deadline_ms, limits.max_deadline_ms)
    request = Request(
        served=served,
        tasks=names,
        dials=asked_speeds(names, speed, keep),
        items=items,
        arrived=arrived,
        deadline=arrived + allowed / 1000,
        done=asyncio.get_running_loop().create_future(),
        answers=[dict.fromkeys(names, item) if isinstance(item, ItemError) else None for item in items],
        missing=sum(isinstance(item, Input) for item in items),
    )
    rows = rows_of(request)
    _check("inputs in one request", len(rows), "queue_rows", limits.queue_rows)
    _check("tokens in one request", sum(row.tokens for row in rows), "queue_tokens", limits.queue_tokens)
    return request


def named(model: ModelInfo, tasks: Iterable[str] | None) -> tuple[str, ...]:
    """The tasks asked for, each once, or all that are loaded."""
    if isinstance(tasks, str):
        raise Invalid(f"tasks is a list of names; write ['{tasks}']")
    if tasks is None:
        names = tuple(name for name, task in model.tasks.items() if task.loaded)
        if not names:
            raise Unavailable("every task is unloaded")
        return names
    names = tuple(dict.fromkeys(tasks))
    if not names:
        raise Invalid(f"no task is asked for (tasks: {', '.join(model.tasks)})")
    for name in names:
        if name not in model.tasks:
            raise NotFound(unknown("task", name, model.tasks))
        if not model.tasks[name].loaded:
            raise Unavailable(f"task '{name}' is unloaded")
    return names


def asked_speeds(tasks: Sequence[str], speed: Any, keep: Any) -> Dials:
    """What is asked of each task, as `dials` has it; empty where nothing is. Raises Invalid."""
    if speed is None and keep is None:
        return {}
    try:
        return dials(tasks, speed, keep)
    except UsageError as error:
        raise Invalid(str(error)) from None


def _check(what: str, found: int, limit: str, allowed: int) -> None:
    if found > allowed:
        raise TooLarge(f"{found:,} {what}; the limit is {allowed:,} ({limit})")
