"""Inputs from files and streams, read piece by piece: jsonl, csv, tsv, parquet, or the lines of stdin.

Holds a few rows at a time, whatever the size of the file. A row that cannot be read becomes an `ItemError` in its place
and touches no other. A `Mark` says where a row stands, so that reading can begin there. Knows file formats, not how
answers are computed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from trunkline.engine.base import Input, ItemError, as_input
from trunkline.errors import UsageError
from trunkline.project.readers import EXTENSIONS, cells_of

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are called, or the keys of its objects."""

    text: str = "text"
    text_pair: str = "text_pair"
    id: str = "id"


class Row(NamedTuple):
    """A row of a file: its id, where it has one, and what it asks."""

    id: str | None
    item: Input | ItemError


class Mark(NamedTuple):
    """Where a row of a file stands: its number from 0, and but for parquet its first byte and line."""

    row: int = 0
    byte: int = 0
    line: int = 1


START = Mark()


def read_inputs(
    file: Path | None, stdin: TextIO, text: str = "text", text_pair: str = "text_pair"
) -> Iterator[Input | ItemError]:
    """Inputs from a jsonl, csv, tsv or parquet file with columns `text` and `text_pair`, other columns left aside.

    Without a file, each line of stdin is a text, or a JSON object where it starts with "{". Raises UsageError at once
    for a file that cannot be read at all; a bad line is an `ItemError`.
    """
    if file is None:
        return _stdin(stdin, Columns(text, text_pair))
    return (row.item for row in read_rows(file, Columns(text, text_pair)))


def read_rows(file: Path, columns: Columns, start: Mark = START) -> Iterator[Row]:
    """The rows of a file from a mark on. Raises UsageError at once for a file that cannot be read at all."""
    if _suffix(file) == ".parquet":
        return _parquet(file, columns, start.row)
    opened = _open(file)
    return _jsonl(opened, columns, start) if _suffix(file) == ".jsonl" else _csv(opened, file, columns, start)


def marks(file: Path, every: int) -> tuple[int, list[Mark]]:
    """How many rows a file has, and the marks of its first row and each `every`-th after it.

    Reads all of the file but keeps none of it. Raises UsageError for a file that cannot be read at all.
    """
    if _suffix(file) == ".parquet":
        rows = int(_parquet_file(file).metadata.num_rows)
        return rows, [Mark(row) for row in range(0, rows, every)]
    found: list[Mark] = []
    rows = 0
    with _open(file) as opened:
        if _suffix(file) == ".jsonl":
            places: Iterator[Mark] = (mark for mark, _ in _objects(opened, START))
        else:
            places = (mark for mark, _ in islice(_records(opened, file, START), 1, None))
        for rows, mark in enumerate(places, start=1):
            if (rows - 1) % every == 0:
                found.append(Mark(rows - 1, mark.byte, mark.line))
    return rows, found


def _suffix(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix not in EXTENSIONS:
        raise UsageError(f"{file}: not a file of inputs that can be read; known are {', '.join(EXTENSIONS)}")
    return suffix


def _open(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error


def _stdin(stdin: TextIO, columns: Columns) -> Iterator[Input | ItemError]:
    # Bytes where they are to be had, so that one broken line does not end the stream.
    source: Iterable[str | bytes] = getattr(stdin, "buffer", stdin)
    for number, raw in enumerate(source, start=1):
        line = _decoded(raw, number)
        if isinstance(line, ItemError):
            yield line
        elif line.lstrip().startswith("{"):
            yield _object(line, number, columns).item
        else:
            yield Input(line)


def _objects(opened: IO[bytes], start: Mark) -> Iterator[tuple[Mark, bytes]]:
    """The lines of a jsonl file that are not empty."""
    opened.seek(start.byte)
    row, byte = start.row, start.byte
    for line, raw in enumerate(opened, start=start.line):
        if (raw.removeprefix(_BOM) if byte == 0 else raw).strip():
            yield Mark(row, byte, line), raw
            row += 1
        byte += len(raw)


def _jsonl(opened: IO[bytes], columns: Columns, start: Mark) -> Iterator[Row]:
    with opened:
        for mark, raw in _objects(opened, start):
            line = _decoded(raw, mark.line)
            yield Row(None, line) if isinstance(line, ItemError) else _object(line, mark.line, columns)


def _decoded(raw: str | bytes, number: int) -> str | ItemError:
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return ItemError(f"line {number}: broken UTF-8: byte 0x{error.object[error.start]:02x}")
    return raw.rstrip("\r\n")


def _object(line: str, number: int, columns: Columns) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(None, ItemError(f"line {number}: not valid JSON: {error.msg} at column {error.colno}"))
    except (ValueError, RecursionError) as error:
        return Row(None, ItemError(f"line {number}: not valid JSON: {str(error).split(';')[0]}"))
    if not isinstance(row, dict):
        return Row(None, ItemError(f'line {number}: not an object, as {{"text": "…"}}'))
    return _row(row, f"line {number}", columns)


def _row(row: dict[str, Any], where: str, columns: Columns) -> Row:
    named = row.get(columns.id)
    if isinstance(named, float) and named.is_integer():
        named = int(named)  # tables with empty cells store whole numbers as 1.0
    id = str(named) if isinstance(named, str | int) and not isinstance(named, bool) else None
    if row.get(columns.text) is None:
        return Row(id, ItemError(f"{where}: no {columns.text}"))
    item = {"text": row[columns.text], "text_pair": row.get(columns.text_pair)}
    read = as_input(item if row.get("words") is None else {**item, "words": row["words"]})
    return Row(id, ItemError(f"{where}: {read.message}") if isinstance(read, ItemError) else read)


def _records(opened: IO[bytes], file: Path, start: Mark) -> Iterator[tuple[Mark, list[str] | csv.Error]]:
    """The records of a csv or tsv file that are not empty, the header with them where it begins at the start."""
    opened.seek(start.byte)
    read = start.byte

    def lines() -> Iterator[str]:
        nonlocal read
        for raw in opened:
            encoding = "utf-8" if read else "utf-8-sig"
            read += len(raw)
            yield raw.decode(encoding, errors="surrogateescape")

    reader = cells_of(lines(), "," if file.suffix.lower() == ".csv" else "\t")
    row = start.row
    while True:
        mark = Mark(row, read, start.line + reader.line_num)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield mark, error
            row += 1
            continue
        if cells is None:
            return
        if cells:
            yield mark, cells
            row += 1


def _csv(opened: IO[bytes], file: Path, columns: Columns, start: Mark) -> Iterator[Row]:
    records = _records(opened, file, START)
    _, first = next(records, (START, []))
    if isinstance(first, csv.Error):
        opened.close()
        raise UsageError(f"{file}: line 1 is not valid CSV: {first}") from first
    header = [name.strip() for name in first]
    if columns.text not in header:
        opened.close()
        raise _no_column(file, columns.text, header)
    return _csv_rows(opened, _records(opened, file, start) if start.byte else records, header, columns)


def _csv_rows(
    opened: IO[bytes], records: Iterator[tuple[Mark, list[str] | csv.Error]], header: list[str], columns: Columns
) -> Iterator[Row]:
    wanted = (columns.text, columns.text_pair, columns.id)
    with opened:
        for mark, cells in records:
            if isinstance(cells, csv.Error):
                yield Row(None, ItemError(f"line {mark.line}: not valid CSV: {cells}"))
            elif len(cells) == len(header):
                row = {name: cell for name, cell in zip(header, cells, strict=True) if name in wanted}
                yield _utf8(_row(row, f"line {mark.line}", columns), mark.line)
            else:
                yield Row(None, ItemError(f"line {mark.line}: {len(cells)} cells; the header has {len(header)}"))


def _utf8(row: Row, number: int) -> Row:
    """Bytes that are no UTF-8 came through as surrogates: they fail where they stand in a text."""
    if isinstance(row.item, Input):
        try:
            (row.item.text + (row.item.text_pair or "")).encode()
        except UnicodeEncodeError as error:
            byte = ord(error.object[error.start]) - 0xDC00
            return Row(None, ItemError(f"line {number}: broken UTF-8: byte 0x{byte:02x}"))
    return row


def _parquet_file(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error


def _parquet(file: Path, columns: Columns, start: int) -> Iterator[Row]:
    table = _parquet_file(file)
    names = table.schema_arrow.names
    if columns.text not in names:
        raise _no_column(file, columns.text, names)
    wanted = [name for name in (columns.text, columns.text_pair, columns.id) if name in names]
    return _parquet_rows(file, table, wanted, columns, start)


def _parquet_rows(file: Path, table: Any, wanted: list[str], columns: Columns, start: int) -> Iterator[Row]:
    import pyarrow

    group, number = 0, 0
    while group < table.num_row_groups and number + table.metadata.row_group(group).num_rows <= start:
        number += table.metadata.row_group(group).num_rows
        group += 1
    groups = list(range(group, table.num_row_groups))
    batches = table.iter_batches(batch_size=1024, columns=wanted, row_groups=groups) if groups else iter(())
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:  # pyarrow says OSError of damaged bytes, too
            said = str(error).splitlines()[0]
            raise UsageError(f"{file}: cannot be read after row {number}: {said}") from error
        if batch is None:
            return
        skipped = max(0, min(start - number, len(batch)))
        number += skipped
        for row in batch.slice(skipped).to_pylist():
            number += 1
            yield _row(row, f"row {number}", columns)


def _no_column(file: Path, text: str, columns: list[str]) -> UsageError:
    named = ", ".join(columns) or "none"
    return UsageError(f"{file} has no column '{text}' (columns: {named}); name another one with --text")
