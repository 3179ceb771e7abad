"""The values that keys of project files take: how each is read, and what it may be in plain words.

Knows single values; nothing of tables, or of which keys contradict each other.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from trunkline.project.teachers import TEACHER_FORM, is_teacher

HUB_NAME = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[^#:@]+))?(?:@(?P<revision>[^#@\s]+))?#(?P<split>.+)"
)
HUB_FORM = '"hub:owner/name[:config][@revision]#split"'


def _listed(value: Any) -> Any:
    """`layers = 2` means `layers = [2]`."""
    return value if isinstance(value, list) else [value]


def _distinct(values: list[Any]) -> list[Any]:
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise PydanticCustomError("twice", "'{value}' stands there twice", {"value": str(twice)})
    return values


def _rising(values: list[int]) -> list[int]:
    if values != sorted(values):
        raise PydanticCustomError("rising", "not in rising order", {})
    return values


def _source(value: str) -> str:
    if value.startswith("hub:") and not HUB_NAME.fullmatch(value):
        raise PydanticCustomError("hub_name", "not a hub name", {})
    if not value.strip() or "\0" in value:
        raise PydanticCustomError("path", "not a path", {})
    return value


def _teacher(value: str) -> str:
    if not is_teacher(value):
        raise PydanticCustomError("teacher", "not a teacher", {})
    return value


def _filled(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("empty", "empty", {})
    return value


Text = Annotated[str, AfterValidator(_filled), "text"]
Searched = BeforeValidator(_listed)
Distinct = AfterValidator(_distinct)
Layers = Annotated[list[Annotated[int, Field(ge=1)]], Searched, Distinct]
Rising = AfterValidator(_rising)
Source = Annotated[str, AfterValidator(_source), f"a path from the project's folder, or {HUB_FORM}"]
Teacher = Annotated[str, AfterValidator(_teacher), TEACHER_FORM]
Weights = Annotated[
    dict[str, Annotated[list[Annotated[float, Field(gt=0, le=100)]], Searched, Distinct, Field(min_length=1)]],
    "a table of teachers, each a number above 0, at most 100, or a list of such",
]
ShardWeights = Annotated[
    dict[str, Annotated[float, Field(gt=0, le=100)]],
    "a table of folders of `pretrain.shards`, each a number above 0, at most 100",
]
LabelMaps = Annotated[dict[str, dict[str, str]], "a table of teachers, each a table from its labels to the task's"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1)]
Modes = Annotated[list[Literal["mean", "mean_logits", "heads", "best"]], Searched, Distinct, Field(min_length=1)]
Starts = Annotated[list[Literal["teacher", "trunk", "random", "pretrained"]], Searched, Distinct, Field(min_length=1)]
Readings = Annotated[list[Literal["joint", "separate"]], Searched, Distinct, Field(min_length=1)]
