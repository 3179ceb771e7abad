"""Files of rows found by name, and looked through once: what they hold, how many rows, and where shards of them start.

Knows files and rows; nothing of what is done with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trunkline.engine.inputs import Columns, Mark, marks, read_rows
from trunkline.errors import Problem, ProjectError, TrunklineError, UsageError
from trunkline.project.explain import quoted, show
from trunkline.project.readers import EXTENSIONS, peek_columns

_KNOWN = ", ".join(EXTENSIONS)


@dataclass(frozen=True)
class Source:
    """A file of rows as it was when the job began; `mark`s are where its shards start."""

    path: Path
    sha256: str
    stamp: tuple[int, int]  # bytes, and nanoseconds of its last change
    rows: int
    marks: tuple[Mark, ...]


def find_sources(named: Iterable[str], folder: Path, columns: Columns, *, every: int, pairs: bool) -> list[Source]:
    """The sources named, with a mark at each `every`-th row; see `shards.cut`.

    Raises ProjectError with all that is wrong with them, such as to lie in `folder`, where the shards go.
    """
    named = list(named)
    problems: list[Problem] = []
    sources: list[Source] = []
    for path in _files(named, folder, problems):
        try:
            seen = stamp(path)
            next(read_rows(path, columns), None)
            wanted = {columns.text: "--text", **({columns.text_pair: "--text-pair"} if pairs else {})}
            problems += _no_columns(path, wanted | ({} if columns.id == Columns.id else {columns.id: "--id"}))
            rows, starts = marks(path, every)
            sources.append(Source(path.resolve(), _sha256(path), seen, rows, tuple(starts)))
        except UsageError as error:
            problems.append(Problem(str(path), "", str(error)))
    if not problems and not any(source.rows for source in sources):
        problems.append(Problem(", ".join(named), "", "holds no rows", "nothing", "at least one row"))
    if problems:
        raise ProjectError(problems)
    return sources


def _files(named: Iterable[str], folder: Path, problems: list[Problem]) -> list[Path]:
    found: dict[Path, None] = {}
    for name in named:
        path = Path(name)
        if path.is_dir():
            files = [one for one in sorted(path.iterdir()) if one.suffix.lower() in EXTENSIONS]
        elif path.exists():
            files = [path]
        else:
            files = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if set(name) & set("*?[") else []
        files = [one for one in files if not one.name.startswith(".")]
        if not files:
            problems.append(Problem(name, "", "no such file", "nothing", f"a file, a folder or a pattern of {_KNOWN}"))
        for file in files:
            if file.resolve() in found:
                problems.append(Problem(str(file), "", "named twice", name, "each file once"))
            elif file.resolve().is_relative_to(folder.resolve()):
                problems.append(Problem(str(file), "", "lies where the shards go", str(folder), "another folder"))
            found[file.resolve()] = None
    return list(found)


def _no_columns(path: Path, wanted: Mapping[str, str]) -> list[Problem]:
    """Columns that a file does not have, by its header or first object; a first line that is broken says nothing.
    `wanted` has the option that names each.
    """
    names = peek_columns(path.parent, path.name, ",")
    return [
        Problem(str(path), "", "no such column", show(name), f"one of {quoted(names)}: name it with {option}")
        for name, option in wanted.items()
        if names and name not in names
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does: its bytes, and nanoseconds of its last change."""
    try:
        stat = path.stat()
    except OSError as error:
        raise TrunklineError(f"{path} cannot be read: {error.strerror or error}") from error
    return stat.st_size, stat.st_mtime_ns
