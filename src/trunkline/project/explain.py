"""What a key accepts, in plain words, and pydantic's errors as problems that name file, key, found and allowed.

Knows pydantic's error shapes and type annotations; does not know what any key means.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trunkline.errors import Problem

_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_SHOWN = 80


def show(value: Any) -> str:
    """A value as it would stand in a file, cut to a length that fits a message."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def quoted(names: Sequence[str], most: int = 12) -> str:
    """Names in quotes, the first of them where they are many."""
    shown = ", ".join(show(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"


def describe(field: FieldInfo) -> str:
    """What a field accepts: "a whole number, at least 1", "'a' or 'b'", "a list of …".

    A plain text among the metadata of its annotation says it better than its type.
    """
    return _describe(field.annotation, field.metadata)


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin = get_origin(annotation)
    said = next((part for part in metadata if isinstance(part, str)), None)
    if said is not None:
        return said
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _describe(inner, [*metadata, *more])
    if origin in (Union, types.UnionType):
        return _describe(next(part for part in get_args(annotation) if part is not type(None)), metadata)
    if origin is Literal:
        return " or ".join(show(choice) for choice in get_args(annotation))
    if origin is list:
        least = " (not empty)" if any(getattr(part, "min_length", 0) for part in _flat(metadata)) else ""
        return f"a list{least} of {_plural(_describe(get_args(annotation)[0]))}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(show(str(member)) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table with the keys {', '.join(annotation.model_fields)}"
    return ", ".join([_PLAIN.get(annotation, str(annotation)), *_bounds(metadata)])


def _plural(text: str) -> str:
    return text.replace("a whole number", "whole numbers", 1) if text.startswith("a whole number") else text


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for part in metadata:
        if isinstance(part, FieldInfo):
            yield from _flat(part.metadata)
        else:
            yield part


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for part in _flat(metadata):
        match part:
            case annotated_types.Ge(ge=bound):
                yield f"at least {bound}"
            case annotated_types.Gt(gt=bound):
                yield f"more than {bound}"
            case annotated_types.Le(le=bound):
                yield f"at most {bound}"
            case annotated_types.Lt(lt=bound):
                yield f"less than {bound}"
            case annotated_types.MaxLen(max_length=1):
                yield "one character"


def explain(file: str, model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Every error of one file as a problem."""
    return [problem for fault in error.errors() for problem in _problems(file, model, fault)]


def _problems(file: str, model: type[BaseModel], fault: Mapping[str, Any]) -> Iterator[Problem]:
    keys = [str(part) for part in fault["loc"] if isinstance(part, str)]
    owner, field = _field(model, keys)
    where = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        yield _unknown(file, model, owner, keys, fault["input"])
    elif fault["type"] == "missing":
        table = field.annotation if field else None
        if isinstance(table, type) and issubclass(table, BaseModel):
            for name, needed in table.model_fields.items():
                if needed.is_required():
                    yield Problem(file, f"{where}.{name}", "is required", found="nothing", allowed=describe(needed))
        else:
            yield Problem(file, where, "is required", found="nothing", allowed=describe(field) if field else None)
    else:
        details = fault.get("ctx") or {}
        allowed = details.get("allowed") or (describe(field) if field else None)
        yield Problem(file, where, _said(fault), found=show(fault["input"]), allowed=allowed)


def _said(fault: Mapping[str, Any]) -> str:
    name = str(fault["type"])
    if name == "too_short" and not fault["input"]:
        return "empty"
    if name in {"literal_error", "enum"}:
        return "not one of the choices"
    if name.endswith(("_than", "_than_equal")) or name == "finite_number":
        return "out of range"
    if name.startswith(("string_too", "too_")):
        return "wrong length"
    if name.endswith("_type") or name == "int_from_float":
        return "wrong type"
    return str(fault["msg"])


def _field(model: type[BaseModel], keys: Sequence[str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The table that holds the last key, and the key's field where there is one; in a table whose keys are the user's
    own, that of the table.
    """
    owner: type[BaseModel] = model
    field: FieldInfo | None = None
    for key in keys:
        if field is not None and get_origin(field.annotation) is dict:
            break
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            owner = field.annotation
        field = owner.model_fields.get(key)
    return owner, field


def _unknown(file: str, model: type[BaseModel], owner: type[BaseModel], keys: Sequence[str], value: Any) -> Problem:
    name, table = keys[-1], ".".join(keys[:-1])
    known = list(owner.model_fields)
    places = _places(model)
    near = difflib.get_close_matches(name.lower(), known, n=1)
    close = difflib.get_close_matches(name.lower(), list(places), n=1, cutoff=0.8)
    hint = ""
    if near and name not in places:
        hint = f" (did you mean '{'.'.join([*keys[:-1], near[0]])}'?)"
    elif close:
        hint = f" (did you mean {' or '.join(repr(place) for place in places[close[0]])}?)"
    return Problem(
        file,
        ".".join(keys),
        f"unknown key '{name}'" + (f" in [{table}]" if table else "") + hint,
        found=f"{name} = {show(value)}",
        allowed=", ".join(known),
    )


def _places(model: type[BaseModel], table: str = "") -> dict[str, list[str]]:
    """Key name -> every dotted key that ends in it."""
    places: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        dotted = f"{table}.{name}" if table else name
        places.setdefault(name, []).append(dotted)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner, more in _places(field.annotation, dotted).items():
                places.setdefault(inner, []).extend(more)
    return places
