"""Many inputs through a merged model: read in pieces, answered in batches, written as JSON lines in their order.

Holds a few batches at a time, whatever the size of the input. A line that cannot be read becomes an `ItemError` in its
place and touches no other. Knows file formats, not how answers are computed.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

from trunkline.engine.base import Input, ItemError, as_input
from trunkline.errors import UsageError, unknown
from trunkline.project.readers import EXTENSIONS, cells_of
from trunkline.project.tasks import Answer, to_dict

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
        speed: float | None = None,
        keep: float | None = None,
    ) -> list[dict[str, Answer | ItemError]]:
        """Answers per input, in the order given."""
        ...


def answers_of(answers: Mapping[str, Answer | ItemError]) -> dict[str, dict[str, Any]]:
    """The answers of one input ready for JSON; a task that cannot read it has {"error": …}."""
    return {task: to_dict(found) if isinstance(found, Answer) else found.to_dict() for task, found in answers.items()}


def read_inputs(
    file: Path | None, stdin: TextIO, text: str = "text", text_pair: str = "text_pair"
) -> Iterator[Input | ItemError]:
    """Inputs from a jsonl, csv, tsv or parquet file with columns `text` and `text_pair`, other columns left aside.

    Without a file, each line of stdin is a text, or a JSON object where it starts with "{". Raises UsageError at once
    for a file that cannot be read at all; a bad line is an `ItemError`.
    """
    if file is None:
        return _lines(stdin, text, text_pair)
    suffix = file.suffix.lower()
    if suffix not in EXTENSIONS:
        raise UsageError(f"{file}: not a file of inputs that can be read; known are {', '.join(EXTENSIONS)}")
    try:
        if suffix == ".parquet":
            return _parquet(file, text, text_pair)
        opened = file.open("rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error
    return _jsonl(opened, text, text_pair) if suffix == ".jsonl" else _csv(opened, file, text, text_pair)


def stream(
    model: Model,
    inputs: Iterable[Input | ItemError],
    tasks: Iterable[str] | None,
    batch_size: int,
    out: TextIO,
    *,
    speed: float | None = None,
    keep: float | None = None,
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


def _lines(stdin: TextIO, text: str, text_pair: str) -> Iterator[Input | ItemError]:
    # Bytes where they are to be had, so that one broken line does not end the stream.
    source: Iterable[str | bytes] = getattr(stdin, "buffer", stdin)
    for number, raw in enumerate(source, start=1):
        line = _decoded(raw, number)
        if isinstance(line, ItemError):
            yield line
        elif line.lstrip().startswith("{"):
            yield _object(line, number, text, text_pair)
        else:
            yield Input(line)


def _jsonl(opened: IO[bytes], text: str, text_pair: str) -> Iterator[Input | ItemError]:
    with opened as lines:
        for number, raw in enumerate(lines, start=1):
            line = _decoded(raw, number)
            if isinstance(line, ItemError):
                yield line
            elif line.strip():
                yield _object(line, number, text, text_pair)


def _decoded(raw: str | bytes, number: int) -> str | ItemError:
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return ItemError(f"line {number}: broken UTF-8: byte 0x{error.object[error.start]:02x}")
    return raw.rstrip("\r\n")


def _object(line: str, number: int, text: str, text_pair: str) -> Input | ItemError:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return ItemError(f"line {number}: not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return ItemError(f"line {number}: not valid JSON: {str(error).split(';')[0]}")
    if not isinstance(row, dict):
        return ItemError(f'line {number}: not an object, as {{"text": "…"}}')
    return _row(row, f"line {number}", text, text_pair)


def _row(row: dict[str, Any], where: str, text: str, text_pair: str) -> Input | ItemError:
    if row.get(text) is None:
        return ItemError(f"{where}: no {text}")
    item = {"text": row[text], "text_pair": row.get(text_pair)}
    read = as_input(item if row.get("words") is None else {**item, "words": row["words"]})
    return ItemError(f"{where}: {read.message}") if isinstance(read, ItemError) else read


def _csv(opened: IO[bytes], file: Path, text: str, text_pair: str) -> Iterator[Input | ItemError]:
    reader = cells_of(_csv_lines(opened), "," if file.suffix.lower() == ".csv" else "\t")
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        opened.close()
        raise UsageError(f"{file}: line 1 is not valid CSV: {error}") from error
    if text not in header:
        opened.close()
        raise _no_column(file, text, header)
    return _csv_rows(opened, reader, header, text, text_pair)


def _csv_rows(
    opened: IO[bytes], reader: Any, header: list[str], text: str, text_pair: str
) -> Iterator[Input | ItemError]:
    with opened:
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield ItemError(f"line {number}: not valid CSV: {error}")
                continue
            if cells is None:
                return
            if len(cells) == len(header):
                row = {name: cell for name, cell in zip(header, cells, strict=True) if name in (text, text_pair)}
                yield _utf8(_row(row, f"line {number}", text, text_pair), number)
            elif cells:
                yield ItemError(f"line {number}: {len(cells)} cells; the header has {len(header)}")


def _csv_lines(opened: IO[bytes]) -> Iterator[str]:
    for number, raw in enumerate(opened):
        yield raw.decode("utf-8" if number else "utf-8-sig", errors="surrogateescape")


def _utf8(item: Input | ItemError, number: int) -> Input | ItemError:
    """Bytes that are no UTF-8 came through as surrogates: they fail where they stand in a text."""
    if isinstance(item, Input):
        try:
            (item.text + (item.text_pair or "")).encode()
        except UnicodeEncodeError as error:
            return ItemError(f"line {number}: broken UTF-8: byte 0x{ord(error.object[error.start]) - 0xDC00:02x}")
    return item


def _parquet(file: Path, text: str, text_pair: str) -> Iterator[Input | ItemError]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    columns = table.schema_arrow.names
    if text not in columns:
        raise _no_column(file, text, columns)
    return _parquet_rows(table, [name for name in (text, text_pair) if name in columns], text, text_pair)


def _parquet_rows(table: Any, columns: list[str], text: str, text_pair: str) -> Iterator[Input | ItemError]:
    number = 0
    for batch in table.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield _row(row, f"row {number}", text, text_pair)


def _no_column(file: Path, text: str, columns: list[str]) -> UsageError:
    named = ", ".join(columns) or "none"
    return UsageError(f"{file} has no column '{text}' (columns: {named}); name another one with --text")
