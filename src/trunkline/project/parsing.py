"""Tables read as rows of a task, with every fault named by its line.

Knows what each kind of task needs in a row. Does not know file formats, splits or label spaces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.errors import Problem
from trunkline.project.config import ColumnSettings, DataSettings, TaskSettings
from trunkline.project.explain import quoted, show
from trunkline.project.files import is_tag
from trunkline.project.readers import Faults, Table, rows_of
from trunkline.project.rows import Rows
from trunkline.project.tasks import TARGET, Kind, Offsets


@dataclass(frozen=True)
class Parsed:
    """Rows of one file with the line of each, and how many rows had no label."""

    rows: Rows
    lines: list[int]
    file: str
    unit: str
    unlabelled: int
    realigned: int  # tagging: rows whose tokens do not stand in their text


def needed_columns(settings: TaskSettings, pairs: bool, *, labelled: bool = True) -> dict[str, str]:
    """Role -> column of every column that a file must have."""
    columns = settings.data.columns
    roles = ["tokens" if settings.kind is Kind.TAGGING else "text"]
    if labelled:
        roles.append(TARGET[settings.kind])
    if pairs:
        roles.append("text_pair")
    roles += [role for role in ("text", "id", "group") if columns.names(role) and role not in roles]
    return {role: columns.name_of(role) for role in roles}


def parse_rows(table: Table, settings: TaskSettings, pairs: bool) -> Parsed | list[Problem]:
    """Read a table as rows of a task; rows whose label is empty are left out and counted."""
    missing = _missing(table, needed_columns(settings, pairs))
    return missing or _Parser(table, settings, pairs).parse()


def parse_unlabelled(table: Table, settings: TaskSettings, pairs: bool) -> Rows | list[Problem]:
    """Read a table as rows of a task that have no target: None stands for each."""
    missing = _missing(table, needed_columns(settings, pairs, labelled=False))
    return missing or _Parser(table, settings, pairs).parse_unlabelled()


def _missing(table: Table, needed: dict[str, str]) -> list[Problem]:
    return [
        Problem(
            table.file,
            f"column {show(column)}",
            f"no such column (data.columns.{role})",
            found=f"columns {quoted(table.columns)}",
            allowed=f"a column {show(column)}, or name another one in data.columns.{role}",
        )
        for role, column in needed.items()
        if column not in table.columns
    ]


class _Parser:
    """Reads the rows of one table and gathers their faults."""

    def __init__(self, table: Table, settings: TaskSettings, pairs: bool) -> None:
        self.table, self.pairs, self.kind = table, pairs, settings.kind
        self.data: DataSettings = settings.data
        self.column = {role: settings.data.columns.name_of(role) for role in ColumnSettings.model_fields}
        self.faults = Faults(table.file, table.unit)
        self.grouped = self.column["group"] in table.columns and (
            self.kind is Kind.RELEVANCE or settings.data.columns.names("group")
        )
        self.realigned = 0
        self.texts: list[str] = []
        self.second: list[str] = []
        self.ids: list[str] = []
        self.groups: list[str] = []
        self.words: list[Offsets] = []
        self.first_use: dict[str, int] = {}

    def parse(self) -> Parsed | list[Problem]:
        target = self.column[TARGET[self.kind]]
        targets: list[Any] = []
        lines: list[int] = []
        for line, row in rows_of(self.table):
            if _is_empty(row.get(target)):
                continue
            lines.append(line)
            targets.append(self._target(line, target, row[target]))
            tokens = self._input(line, row)
            if tokens is not None and targets[-1] is not None and len(tokens) != len(targets[-1]):
                column = self.column["tokens"]
                found = f"{len(tokens)} {column}, {len(targets[-1])} {target}"
                self.faults.add(f"{column} and {target} differ in length", line, found, "one tag for each token")
        unlabelled = len(self.table.rows) - len(lines)
        if not lines:
            return [
                Problem(
                    self.table.file,
                    f"column {show(target)}",
                    "every row is unlabelled",
                    found=f"{unlabelled} empty cells",
                    allowed="at least some rows with a label",
                )
            ]
        if self.faults:
            return self.faults.problems()
        rows = self._rows(targets)
        return Parsed(rows, lines, self.table.file, self.table.unit, unlabelled, self.realigned)

    def parse_unlabelled(self) -> Rows | list[Problem]:
        for line, row in rows_of(self.table):
            self._input(line, row)
        return self.faults.problems() if self.faults else self._rows([None] * len(self.texts))

    def _rows(self, targets: list[Any]) -> Rows:
        groups = self.groups
        if self.kind is Kind.RELEVANCE and not self.grouped:
            groups = list(self.texts)
        return Rows(
            self.texts, self.second if self.pairs else None, targets, self.ids, groups or None, self.words or None
        )

    def _input(self, line: int, row: dict[str, Any]) -> list[str] | None:
        """Take up what a row asks; its tokens where it has any."""
        tokens = None
        if self.kind is Kind.TAGGING:
            tokens = self._tokens(line, row)
            text, offsets = self._words(line, row, tokens)
            self.texts.append(text)
            self.words.append(offsets)
        else:
            self.texts.append(self._text(line, self.column["text"], row))
        if self.pairs:
            self.second.append(self._text(line, self.column["text_pair"], row))
        self.ids.append(self._id(line, row))
        if self.grouped:
            self.groups.append(self._name(line, self.column["group"], row.get(self.column["group"])))
        return tokens

    def _text(self, line: int, column: str, row: dict[str, Any]) -> str:
        value = row.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            self.faults.add(f"empty {column}", line, "nothing" if value is None else show(value), "text")
        elif not isinstance(value, str):
            self.faults.add(f"wrong type of {column}", line, show(value), "text")
        elif self._sound(line, column, value):
            return value
        return ""

    def _sound(self, line: int, column: str, value: str) -> bool:
        if value.isascii():
            return True
        try:
            value.encode()
        except UnicodeEncodeError as error:
            self.faults.add(f"{column} is not valid Unicode", line, show(value[error.start]), "no lone surrogates")
            return False
        return True

    def _name(self, line: int, column: str, value: Any) -> str:
        """A label, id or group: text, or a whole number or truth value as text."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return str(int(value))  # tables with empty cells store whole numbers as 1.0
        if not isinstance(value, str):
            self.faults.add(f"wrong type of {column}", line, show(value), "text or a whole number")
            return ""
        if not value.strip():
            self.faults.add(f"empty {column}", line, show(value), "text or a whole number")
        return value.strip() if self._sound(line, column, value) else ""

    def _id(self, line: int, row: dict[str, Any]) -> str:
        column = self.column["id"]
        if column not in self.table.columns:
            return f"{self.table.stem}:{line}"
        name = self._name(line, column, row.get(column))
        if name and name in self.first_use:
            found = f"{show(name)}, as {self.table.unit} {self.first_use[name]}"
            self.faults.add(f"duplicate {column}", line, found, "each once within a file")
        self.first_use.setdefault(name, line)
        return name

    def _target(self, line: int, column: str, value: Any) -> Any:
        if self.kind is Kind.REGRESSION:
            return self._score(line, column, value)
        if self.kind is Kind.MULTILABEL:
            if self.table.plain:
                value = [part for part in value.split(self.data.label_separator) if part.strip()]
            if not isinstance(value, list):
                self.faults.add(f"wrong type of {column}", line, show(value), "a list of labels")
                return []
            return list(dict.fromkeys(self._name(line, column, part) for part in value))
        if self.kind is Kind.TAGGING:
            tags = self._list(line, column, value)
            for tag in tags or ():
                if not is_tag(tag):
                    self.faults.add(
                        "not a BIO tag", line, show(tag), '"O", "B-type", "I-type" (also "E-type", "S-type")'
                    )
            return tags
        return self._name(line, column, value)

    def _score(self, line: int, column: str, value: Any) -> float:
        allowed = "a finite number"
        if isinstance(value, bool) or not isinstance(value, str if self.table.plain else int | float):
            self.faults.add(f"{column} is not a number", line, show(value), allowed)
            return 0.0
        try:
            number = float(value)
        except (ValueError, OverflowError):
            self.faults.add(f"{column} is not a number", line, show(value), allowed)
            return 0.0
        if not math.isfinite(number):
            self.faults.add(f"{column} is not finite", line, show(value), allowed)
        return number

    def _list(self, line: int, column: str, value: Any) -> list[str] | None:
        if self.table.plain and isinstance(value, str):
            value = value.split()
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            self.faults.add(f"{column} is not a list of text", line, show(value), "a list of text")
            return None
        for part in value:
            if not part.strip():
                self.faults.add(f"empty text in {column}", line, show(part), "text")
            elif not self._sound(line, column, part):
                break
        return value

    def _tokens(self, line: int, row: dict[str, Any]) -> list[str] | None:
        column = self.column["tokens"]
        if _is_empty(row.get(column)) or row[column] == []:
            self.faults.add(f"empty {column}", line, show(row.get(column)), "a list of text")
            return None
        return self._list(line, column, row[column])

    def _words(self, line: int, row: dict[str, Any], tokens: list[str] | None) -> tuple[str, Offsets]:
        if tokens is None:
            return "", []
        text = row.get(self.column["text"])
        if isinstance(text, str) and text.strip() and self._sound(line, self.column["text"], text):
            offsets = _find(tokens, text)
            if offsets is not None:
                return text, offsets
            self.realigned += 1
        joined = " ".join(tokens)
        return joined, _find(tokens, joined) or []


def _find(tokens: Sequence[str], text: str) -> Offsets | None:
    """Where the tokens stand in the text, in their order; None where one is missing or a word would be left over."""
    offsets: Offsets = []
    position = 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0 or any(char.isalnum() for char in text[position:start]):
            return None
        position = start + len(token)
        offsets.append((start, position))
    return None if any(char.isalnum() for char in text[position:]) else offsets


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())
