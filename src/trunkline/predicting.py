"""Many inputs through a merged model: answered in batches, written as JSON lines in their order.

Holds a few batches at a time, whatever the size of the input. Does not know how inputs are read or answers computed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from trunkline.engine.base import Input, ItemError
from trunkline.errors import UsageError, unknown
from trunkline.project.tasks import Answer, to_dict

if TYPE_CHECKING:
    from trunkline.project.speed import DialValue

AHEAD = 8
"""Batches read at once: batches are cut from inputs of like length, so a few of them pad less than one."""


class Model(Protocol):
    """What answers: a `Bundle`, or anything that predicts like one."""

    @property
    def tasks(self) -> Iterable[str]:
        """Names of its tasks."""
        ...

    def predict(
        self,
        inputs: Iterable[object],
        tasks: Iterable[str] | None = None,
        batch_size: int = 32,
        *,
        speed: DialValue | None = None,
        keep: DialValue | None = None,
    ) -> list[dict[str, Answer | ItemError]]:
        """Answers per input, in the order given."""
        ...


def answers_of(answers: Mapping[str, Answer | ItemError]) -> dict[str, dict[str, Any]]:
    """The answers of one input ready for JSON; a task that cannot read it has {"error": …}."""
    return {task: to_dict(found) if isinstance(found, Answer) else found.to_dict() for task, found in answers.items()}


def stream(
    model: Model,
    inputs: Iterable[Input | ItemError],
    tasks: Iterable[str] | None,
    batch_size: int,
    out: TextIO,
    *,
    speed: DialValue | None = None,
    keep: DialValue | None = None,
) -> tuple[int, float]:
    """Write one JSON object per input, in order: {"text": …, "answers": {task: …}}. Returns the count and seconds.

    Seconds leave out the time that is spent on waiting for input. Raises UsageError for an unknown task.
    """
    names = None if tasks is None else list(tasks)
    for name in names or ():
        if name not in model.tasks:
            raise UsageError(unknown("task", name, model.tasks))
    count, seconds = 0, 0.0
    waiting = iter(inputs)
    while items := list(islice(waiting, AHEAD * batch_size)):
        started = time.perf_counter()
        answers = model.predict(items, names, batch_size, speed=speed, keep=keep)
        seconds += time.perf_counter() - started
        for item, answer in zip(items, answers, strict=True):
            out.write(_json_line(item, answer, out.encoding or "utf-8"))
        out.flush()
        count += len(items)
    return count, seconds


def _json_line(item: Input | ItemError, answers: Mapping[str, Answer | ItemError], encoding: str) -> str:
    row: dict[str, Any] = {"text": None if isinstance(item, ItemError) else item.text}
    if isinstance(item, Input) and item.text_pair is not None:
        row["text_pair"] = item.text_pair
    row["answers"] = answers_of(answers)
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        line = json.dumps(row)  # half a surrogate pair, or a terminal that lacks the letter
    return line + "\n"
