"""Tables from files: jsonl, csv, tsv, parquet, or a set of the Hugging Face hub, with everything that is wrong in them.

Knows encodings and file formats. Does not know what a column means, and takes every cell as it stands.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trunkline.errors import Problem
from trunkline.project.explain import show
from trunkline.project.hub import HubError, HubSet, read_set

EXTENSIONS = (".jsonl", ".csv", ".tsv", ".parquet")
SHOWN = 10
"""Lines shown of one kind of problem in one file."""
SHARD_DIGITS = 16
"""Of the 64 of a sha256, in the name of a shard."""
SHARD_NAME = re.compile(rf"shard-(?P<number>\d{{5,}})-(?P<sha256>[0-9a-f]{{{SHARD_DIGITS}}})\.parquet")


@dataclass
class Faults:
    """What is wrong with a file's lines, gathered as one problem per kind of fault."""

    file: str
    unit: str = "line"
    _kinds: dict[str, list[tuple[int, str | None]]] = field(default_factory=dict)
    _allowed: dict[str, str | None] = field(default_factory=dict)

    def add(self, message: str, line: int, found: str | None = None, allowed: str | None = None) -> None:
        """Note that a line is wrong; `allowed` is kept from the first of its kind."""
        self._kinds.setdefault(message, []).append((line, found))
        self._allowed.setdefault(message, allowed)

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def problems(self) -> list[Problem]:
        """One problem per kind, with its first lines and how many there are."""
        return [
            Problem(self.file, self._where(places), message, self._found(places), self._allowed[message])
            for message, places in self._kinds.items()
        ]

    def _where(self, places: list[tuple[int, str | None]]) -> str:
        if len(places) == 1:
            return f"{self.unit} {places[0][0]}"
        shown = ", ".join(str(line) for line, _ in places[:SHOWN])
        return f"{self.unit}s {shown}" + (f", … ({len(places)} in all)" if len(places) > SHOWN else "")

    def _found(self, places: list[tuple[int, str | None]]) -> str | None:
        if len(places) == 1:
            return places[0][1]
        if len({found for _, found in places}) == 1:
            return places[0][1]
        shown = [f"{found} ({self.unit} {line})" for line, found in places[:SHOWN] if found is not None]
        return ", ".join(shown) + (", …" if len(places) > SHOWN else "") if shown else None


@dataclass(frozen=True)
class Table:
    """Rows as they stand in a file. `lines` are the numbers of the lines (of the rows, in parquet) they start at.

    `plain` says that every cell is text, as in csv; `columns` are those of any row.
    """

    file: str
    stem: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]
    unit: str = "line"
    plain: bool = False


def read_table(root: Path, source: str, where: tuple[str, str], separator: str) -> Table | list[Problem]:
    """The table that `source` names, or what keeps it from being read; `where` is the (file, key) that names it.

    Raises MissingExtra for a hub name without `datasets`.
    """
    if source.startswith("hub:"):
        return _hub(source, where)
    path = root / source
    if path.suffix.lower() not in EXTENSIONS:
        return [Problem(*where, "unknown kind of data file", show(source), ", ".join(EXTENSIONS))]
    try:
        if not path.exists():
            return [Problem(*where, "no such file", show(source), f"a file, as seen from {root.resolve()}")]
        if not path.is_file():
            return [Problem(*where, "not a file", show(source), "a file")]
        if path.suffix.lower() == ".parquet":
            return _parquet(path, source)
        data = path.read_bytes()
    except OSError as error:
        return [Problem(*where, "cannot be read", f"{show(source)}: {error.strerror}", "a readable file")]
    text = _decode(data, source)
    if not isinstance(text, str):
        return text
    if path.suffix.lower() == ".jsonl":
        return _jsonl(text, source, path.stem)
    return _csv(text, source, path.stem, separator if path.suffix.lower() == ".csv" else "\t")


def named_by(path: Path, sha256: str) -> bool:
    """Whether a shard's name says that its bytes have this hash: a damaged one's does not."""
    return path.stem.endswith(sha256[:SHARD_DIGITS])


def shard_files(folder: Path) -> list[Path]:
    """The parquet files of a folder of shards, in order of their names."""
    return [path for path in sorted(folder.glob("*.parquet")) if not path.name.startswith(".")]


def read_shards(root: Path, source: str, where: tuple[str, str]) -> Table | list[Problem]:
    """All rows of a folder of shards as one table; lines count through. Of files that are called as `trunkline teach`
    calls them the bytes are verified.
    """
    files = shard_files(root / source)
    tables = [_shard(path, str(path.relative_to(root))) for path in files]
    if problems := [problem for table in tables if isinstance(table, list) for problem in table]:
        return problems
    if not files:
        return [Problem(*where, "holds no shards", show(source), "a file, or a folder of parquet files")]
    rows = [row for table in tables if isinstance(table, Table) for row in table.rows]
    columns = tuple(dict.fromkeys(name for table in tables if isinstance(table, Table) for name in table.columns))
    return Table(source, (root / source).name, columns, rows, list(range(1, len(rows) + 1)), unit="row")


def _shard(path: Path, source: str) -> Table | list[Problem]:
    if SHARD_NAME.fullmatch(path.name):
        with path.open("rb") as file:
            if not named_by(path, hashlib.file_digest(file, "sha256").hexdigest()):
                mend = "the shard as it was made: the same `trunkline teach` again makes what is damaged anew"
                return [Problem(source, "", "is damaged", "bytes that its name does not tell of", mend)]
    return _parquet(path, source)


def read_texts(root: Path, source: str, where: tuple[str, str]) -> tuple[list[str], list[Problem]]:
    """The column `text` of a file, and what is wrong with it; empty texts are left out."""
    table = read_table(root, source, where, ",")
    if not isinstance(table, Table):
        return [], table
    faults = Faults(source, table.unit)
    texts = []
    for line, row in zip(table.lines, table.rows, strict=True):
        value = row.get("text")
        if not isinstance(value, str):
            faults.add("no text", line, show(value), "a string under `text`")
        elif value.strip():
            texts.append(value)
    return texts, faults.problems()


def peek_columns(root: Path, source: str, separator: str) -> tuple[str, ...]:
    """Columns of a local file by its first row or header; none where it cannot be read. Costs no more than that."""
    path = root / source
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            return ()
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                return tuple(pyarrow.parquet.read_schema(path).names)
            except pyarrow.ArrowException:
                return ()
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            if suffix == ".jsonl":
                row = json.loads(next((line for line in lines if line.strip()), "{}"))
                return tuple(row) if isinstance(row, dict) else ()
            return tuple(next(cells_of(lines, separator if suffix == ".csv" else "\t"), ()))
    except (OSError, ValueError, RecursionError, csv.Error):
        return ()


def _decode(data: bytes, file: str) -> str | list[Problem]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return [Problem(file, "line 1", "not UTF-8", "a UTF-16 byte order mark", "UTF-8 text; save the file as UTF-8")]
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        faults = Faults(file)
        for number, line in enumerate(data.split(b"\n"), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                faults.add("broken UTF-8", number, f"byte 0x{line[error.start]:02x}", "UTF-8 text")
        return faults.problems()


def _jsonl(text: str, file: str, stem: str) -> Table | list[Problem]:
    faults = Faults(file)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: texts may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.add("not valid JSON", number, f"{error.msg} at column {error.colno}", "one JSON object a line")
            continue
        except (ValueError, RecursionError) as error:
            faults.add("not valid JSON", number, str(error).split(";")[0], "one JSON object a line")
            continue
        if not isinstance(row, dict):
            faults.add("not an object", number, show(row), 'one JSON object a line, as {"text": "…"}')
            continue
        rows.append(row)
        lines.append(number)
    if faults:
        return faults.problems()
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(file, stem, columns, rows, lines) if rows else _no_rows(file)


def _csv(text: str, file: str, stem: str, separator: str) -> Table | list[Problem]:
    faults = Faults(file)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    reader = cells_of(io.StringIO(text, newline=""), separator)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [name.strip() for name in cells]
                twice = sorted({name for name in header if header.count(name) > 1})
                if len(header) == 1 and any(other in header[0] for other in ",;\t|"):
                    allowed = f"columns separated by {show(separator)}, or name the other one in data.separator"
                    return [Problem(file, f"line {number}", "one column only", show(header[0]), allowed)]
                if twice:
                    return [
                        Problem(
                            file, f"line {number}", "columns of the same name", ", ".join(map(show, twice)), "each once"
                        )
                    ]
            elif len(cells) != len(header):
                faults.add("wrong number of cells", number, str(len(cells)), f"{len(header)}, as in the header")
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                lines.append(number)
    except csv.Error as error:
        allowed = 'cells that hold a quote, the separator or a line break stand in "…", with quotes doubled'
        faults.add("not valid CSV", start, str(error), allowed)
    if faults:
        return faults.problems()
    return Table(file, stem, tuple(header), rows, lines, plain=True) if rows else _no_rows(file)


def cells_of(lines: Any, separator: str) -> Any:
    """A csv reader over lines of text; after a `csv.Error` it goes on with the next line."""
    # Quotes mean nothing in tsv (a cell cannot hold a tab), so that a lone " does not swallow the rows after it.
    if separator == "\t":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=separator, strict=True)


def _parquet(path: Path, file: str) -> Table | list[Problem]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:  # pyarrow says OSError of damaged bytes, too
        said = str(error).splitlines()[0].replace(str(path), file)
        return [Problem(file, "", "not a readable parquet file", said, "a parquet file")]
    if not rows:
        return _no_rows(file)
    return Table(file, path.stem, tuple(table.column_names), rows, list(range(1, len(rows) + 1)), unit="row")


def _hub(source: str, where: tuple[str, str]) -> Table | list[Problem]:
    wanted = HubSet.parse(source)
    try:
        columns, rows = read_set(wanted)
    except HubError as error:
        return [error.problem(where, source)]
    stem = f"{wanted.name.split('/')[1]}-{wanted.split}"
    return Table(source, stem, columns, rows, list(range(1, len(rows) + 1)), unit="row") if rows else _no_rows(source)


def _no_rows(file: str) -> list[Problem]:
    return [Problem(file, "", "holds no rows", "nothing", "at least one row")]


def rows_of(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with the number of their line."""
    return zip(table.lines, table.rows, strict=True)
