"""Writes docs/project-file.md from the pydantic types of the project files, or checks that it is up to date.

    python docs/generate_reference.py            write the page
    python docs/generate_reference.py --check    exit 1 and show the difference if the page is not what the types say

Knows the types only: every word about a key stands in the `description` of its field, every word about a table in the
docstring of its model. Order is that of the fields, a model's own before those it inherits.
"""

from __future__ import annotations

import difflib
import enum
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types as at
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trunkline.project.config import ProjectSettings, TaskSettings
from trunkline.project.tasks import DEFAULT_METRIC, METRICS, Kind

PAGE = Path(__file__).with_name("project-file.md")

INTRO = """\
<!-- Written by docs/generate_reference.py (`make docs`). Edit the types in src/trunkline/project/, not this page. -->

# Project files: every key

A project is a folder with one `project.toml`, and one file per task in `tasks/`. The file's name is the task's name:
lower-case letters, digits, `_` and `-`, starting with a letter or a digit. Unknown keys are refused, and
`trunkline check` lists every problem of every file at once. What a kind of task means is in
[task-kinds.md](task-kinds.md).

A key of a table may be written below its header or with a dot: `[tune]` and then `layers = [2, 3]`, or
`tune.layers = [2, 3]`.
"""


def reference() -> str:
    """The whole page as Markdown."""
    parts = [INTRO, "## `project.toml`\n", *tables(ProjectSettings), "## `tasks/NAME.toml`\n", *tables(TaskSettings)]
    parts += ["## Metrics of each kind\n", metrics_table()]
    return "\n".join(parts)


def tables(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The model's keys, then each of its tables with what it is about, depth first."""
    own = {name: model.model_fields[name] for name in model.__annotations__ if name in model.model_fields}
    plain = {name: field for name, field in (own | model.model_fields).items() if nested(field.annotation) is None}
    if plain:
        yield "| key | values | default | meaning |\n|---|---|---|---|"
        yield "\n".join(row(name, field) for name, field in plain.items()) + "\n"
    for name, field in model.model_fields.items():
        if inner := nested(field.annotation):
            key = prefix + name
            yield f"### `[{key}]`\n"
            yield (sentence(inner) or field.description or "") + "\n"
            yield from tables(inner, key + ".")


def row(name: str, field: FieldInfo) -> str:
    """One line of a table; a bar inside a cell would end the cell."""
    values = shown_type(field.annotation, list(field.metadata))
    cells = (f"`{name}`", values, shown_default(field), " ".join((field.description or "").split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def sentence(model: type[BaseModel]) -> str:
    """The first paragraph of the model's own docstring (not of pydantic's)."""
    doc = model.__dict__.get("__doc__") or ""
    return " ".join(doc.split("\n\n")[0].split())


def nested(annotation: Any) -> type[BaseModel] | None:
    """The model that a key holds as a table of its own, if it holds one."""
    options = [option for option in alternatives(annotation) if option is not type(None)]
    if len(options) == 1 and isinstance(options[0], type) and issubclass(options[0], BaseModel):
        return options[0]
    return None


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return list(typing.get_args(annotation))
    return [annotation]


NAMES = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path"}
PLURALS = {"text": "texts", "whole number": "whole numbers", "number": "numbers"}


def shown_type(annotation: Any, metadata: list[Any]) -> str:
    """The values that a key takes, in plain words with its bounds."""
    options = [option for option in alternatives(annotation) if option is not type(None)]
    if len(options) > 1:
        return " or ".join(shown_type(option, []) for option in options) + bounds(metadata)
    kind = options[0]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        inner: list[Any] = []
        for item in args[1:]:
            inner += item.metadata if isinstance(item, FieldInfo) else [item]
        return shown_type(args[0], inner + metadata)
    if origin is typing.Literal:
        return ", ".join(f"`{literal(value)}`" for value in args)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(f"`{literal(member.value)}`" for member in kind)
    if origin in (list, tuple, set, frozenset):
        return shown_list(args[0], metadata)
    if origin is dict:
        return f"table, each value: {shown_type(args[1], [])}"
    return NAMES.get(kind, f"`{getattr(kind, '__name__', kind)}`") + bounds(metadata)


def shown_list(item: Any, metadata: list[Any]) -> str:
    one = shown_type(item, [])
    if any(isinstance(rule, BeforeValidator) for rule in metadata):  # the types take `x` for `[x]`
        return f"{one}; or a list of such{bounds(metadata, of_list=True)}"
    many = one.split(",")[0]
    return f"list of {PLURALS.get(many, many)}{one[len(many) :]}{bounds(metadata, of_list=True)}"


def bounds(metadata: list[Any], of_list: bool = False) -> str:
    """ ", 1 or more", ", above 0, at most 1.2" …; empty where nothing bounds the value."""
    words = []
    for rule in metadata:
        if isinstance(rule, at.Ge):
            words.append(f"{rule.ge} or more")
        elif isinstance(rule, at.Gt):
            words.append(f"above {rule.gt}")
        elif isinstance(rule, at.Le):
            words.append(f"at most {rule.le}")
        elif isinstance(rule, at.Lt):
            words.append(f"below {rule.lt}")
        elif isinstance(rule, at.MinLen) and of_list:
            words.append("not empty" if rule.min_length == 1 else f"at least {rule.min_length}")
    return "".join(f", {word}" for word in words)


def shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None:
        return "–"
    return f"`{literal(value)}`"


def literal(value: Any) -> str:
    """A value as it is written in TOML."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def metrics_table() -> str:
    lines = ["| kind | metrics, the default in bold |", "|---|---|"]
    for kind in Kind:
        default = DEFAULT_METRIC[kind]
        shown = [f"**`{name}`**" if name == default else f"`{name}`" for name in METRICS[kind]]
        lines.append(f"| `{kind.value}` | {', '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    wanted = reference()
    if not arguments:
        PAGE.write_text(wanted, encoding="utf-8")
        print(f"wrote {PAGE.name}")
        return 0
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if found == wanted:
        print(f"{PAGE.name} is what the types say")
        return 0
    lines = difflib.unified_diff(found.splitlines(), wanted.splitlines(), PAGE.name, "from the types", lineterm="", n=1)
    print("\n".join(lines))
    print(f"\n{PAGE.name} is not what the types say: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
