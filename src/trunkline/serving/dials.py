"""Speeds as requests write them, on whatever wire: numbers from 0 to 1, for all tasks or by task.

Knows what is such a number. What it does to a task is the matter of `project.speed`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema

from trunkline.serving.errors import Invalid
from trunkline.serving.http import shown


def given(name: str, value: Any) -> float | None:
    """A number that may be left out, as null too. Raises Invalid."""
    return None if value is None else number(name, value)


def number(name: str, value: Any) -> float:
    """The value, if it is a number from 0 to 1. Raises Invalid, in the words of `project.speed.dials` but for what was
    found, which over a wire may be of any size.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Invalid(f"{name} is a number from 0 to 1; found {shown(value)}")
    return float(value)


def _for_all(value: Any, info: ValidationInfo) -> float | None:
    return given(str(info.field_name), value)


def _by_task(value: Any, info: ValidationInfo) -> float | dict[str, float] | None:
    name = str(info.field_name)
    return {task: number(name, one) for task, one in value.items()} if isinstance(value, dict) else given(name, value)


_NUMBER = {"type": "number", "minimum": 0, "maximum": 1}
_NULL = {"type": "null"}
_ONE = WithJsonSchema({"anyOf": [_NUMBER, _NULL]})
_EACH = WithJsonSchema({"anyOf": [_NUMBER, {"type": "object", "additionalProperties": _NUMBER}, _NULL]})
_SPEED = "From 0 (off, the default) to 1: a text leaves at the first exit asked at it that is less uncertain than this."
_KEEP = "In place of a speed: the fastest that keeps this fraction of the task's quality, as measured on `valid`."

Speed = Annotated[Any, AfterValidator(_for_all), _ONE, Field(description=_SPEED)]
Keep = Annotated[Any, AfterValidator(_for_all), _ONE, Field(description=_KEEP)]
SpeedByTask = Annotated[Any, AfterValidator(_by_task), _EACH, Field(description=f"{_SPEED} For all tasks, or by task.")]
KeepByTask = Annotated[Any, AfterValidator(_by_task), _EACH, Field(description=f"{_KEEP} For all tasks, or by task.")]
