"""Rows of large files cut into shards, each made once, by whichever process claims it, and written whole.

Knows rows, files and folders; nothing of models. What is done with rows is a `Scorer`'s matter.

    OUT/
      job.json                            what was asked: sources and the model by content, columns, versions
      shard-00017-3fa9c1d25b08e7f4.parquet   a finished shard: its number, and the sha256 of its bytes
      .claims/00017                       locked while a process makes that shard
      .lock                               held while a process begins

A shard is named by its content, and says inside which job it is of, so one rename publishes it with all that it is
verified by. The kernel drops a claim when its holder dies, so nobody waits for the dead. The same shard has the same
bytes, whoever makes it: a scorer sees the rows of one shard and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trunkline.atomic import InUse, clear_leftovers, exclusive, in_use, write_bytes, write_json
from trunkline.engine.base import Input, ItemError
from trunkline.engine.inputs import Columns, Mark, Row, read_rows
from trunkline.errors import Problem, ProjectError, StoreError, UsageError
from trunkline.pipeline.sources import Source, find_sources, stamp
from trunkline.pipeline.store import key_of
from trunkline.project.explain import show
from trunkline.project.readers import SHARD_DIGITS, SHARD_NAME, named_by

if TYPE_CHECKING:
    import pyarrow

JOB = "job.json"
SHARD_ROWS = 50_000
FORMAT = 1
_LOCK = ".lock"
_CLAIMS = ".claims"
_KEY = b"trunkline"
_BEGINNING = 3600.0
"""Seconds to wait for another process that begins: it may have many shards to verify."""
_WAITING = 0.2
"""Seconds between two looks at shards that others hold."""

Item = Input | ItemError


class Scored(NamedTuple):
    """What is said of the rows of a shard: a column or more, a row for each in order, and counts that add up."""

    table: pyarrow.Table
    counts: Mapping[str, int]


Moved = Callable[[int], None]
"""Hears how many more rows are done."""
Scorer = Callable[[Sequence[Item], Moved], Scored]
"""Rows of a shard to what is said of them. Equal rows must give equal bits, whatever was scored before."""


@dataclass(frozen=True)
class Shard:
    """Rows of one source from a mark on; shards never reach over the end of a file."""

    number: int
    source: Source
    start: Mark
    rows: int


@dataclass(frozen=True)
class Job:
    """All shards of some sources, and the folder that they go to; `asked` says whatever their bytes depend on."""

    folder: Path
    asked: dict[str, Any]
    columns: Columns
    shards: tuple[Shard, ...]

    @property
    def key(self) -> str:
        """The content address of what was asked."""
        return key_of(self.asked)

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def found(self) -> dict[int, list[Path]]:
        """Files of shards that are in the folder; see `found_shards`."""
        return found_shards(self.folder)

    def missing(self) -> list[Shard]:
        """The shards that nobody has made yet."""
        found = self.found()
        return [shard for shard in self.shards if shard.number not in found]

    @contextmanager
    def begun(self, say: Callable[[str], None]) -> Iterator[None]:
        """Work on this job: its folder is made, or held to be of this job, and its shards are verified.

        A shard that is damaged, or of another job, is removed, to be made again. Raises ProjectError with all that
        differs where the folder holds another job, UsageError where it is no job's.
        """
        with exclusive(self.folder / _LOCK, wait=_BEGINNING):
            self._check()
            if not in_use(self.folder):
                clear_leftovers(self.folder)
            for line in self._verify():
                say(line)
            if not (self.folder / JOB).exists():
                write_json(self.folder / JOB, self.asked)
            mark = InUse(self.folder)
        try:
            yield
        finally:
            mark.close()

    def _check(self) -> None:
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        strange = sorted(name for name in names if name.endswith(".parquet") and not SHARD_NAME.fullmatch(name))
        if JOB not in names:
            if names:
                raise UsageError(f"{self.folder} holds {min(names)}, but no {JOB}: name a new folder, or an empty one")
            return
        try:
            before = json.loads((self.folder / JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.folder / JOB} is damaged ({error}): name another folder") from error
        allowed = "what was asked when the shards here were begun, or another folder"
        problems = [
            Problem(
                str(self.folder / JOB), where, "asked otherwise before", f"{show(old)} then, {show(new)} now", allowed
            )
            for where, old, new in _differences(before, self.asked)
        ]
        problems += [
            Problem(str(self.folder / name), "", "not a shard of this job", None, "elsewhere: shards are read together")
            for name in strange
        ]
        if problems:
            raise ProjectError(problems)

    def _verify(self) -> Iterator[str]:
        """Remove shards that are not what this job makes; what was wrong with each."""
        for number, paths in self.found().items():
            sound = 0
            for path in paths:
                reason = self._fault(path, number)
                if reason is None and sound:
                    reason = "is there twice"
                if reason is None:
                    sound += 1
                else:
                    path.unlink()
                    yield f"{path.name} {reason}, and was removed"

    def _fault(self, path: Path, number: int) -> str | None:
        import pyarrow.parquet

        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not named_by(path, digest):
            return "is damaged"
        made = made_of(pyarrow.parquet.read_schema(path))
        return None if (made.get("job"), made.get("shard")) == (self.key, number) else "is of another job"

    @contextmanager
    def claimed(self, shard: Shard) -> Iterator[bool]:
        """Hold a shard, so that no other process makes it; False where one does, or has."""
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(self.folder / _CLAIMS / f"{shard.number:05d}", wait=0))
            except StoreError:
                mine = False
            else:
                mine = shard.number not in self.found()
            yield mine

    def make(self, load: Callable[[], Scorer], moved: Moved, numbers: Collection[int] | None = None) -> Iterator[Made]:
        """Make the shards, of all or of these `numbers`, that nobody has made, in order; `load` is called when there is
        one. Ends when all are there: those that others hold are waited for, and taken over from the dead.
        """
        scorer: Scorer | None = None
        while left := [shard for shard in self.missing() if numbers is None or shard.number in numbers]:
            held = True
            for shard in left:
                with self.claimed(shard) as mine:
                    if mine:
                        held = False
                        if scorer is None:
                            scorer = load()
                            moved(0)  # from now on time is spent on rows
                        yield self._make(shard, scorer, moved)
            if held:
                moved(0)  # fails where whoever listens is gone
                time.sleep(_WAITING)

    def _make(self, shard: Shard, scorer: Scorer, moved: Moved) -> Made:
        started = time.monotonic()
        rows = self._read(shard)
        scored = scorer([row.item for row in rows], moved)
        data = _parquet(self._table(shard, rows, scored))
        digest = hashlib.sha256(data).hexdigest()[:SHARD_DIGITS]
        write_bytes(self.folder / f"shard-{shard.number:05d}-{digest}.parquet", data)
        return Made(shard.number, shard.rows, time.monotonic() - started)

    def _read(self, shard: Shard) -> list[Row]:
        rows = list(islice(read_rows(shard.source.path, self.columns, shard.start), shard.rows))
        if len(rows) != shard.rows or stamp(shard.source.path) != shard.source.stamp:
            raise StoreError(f"{shard.source.path} was changed since the job began: begin again")
        return rows

    def _table(self, shard: Shard, rows: Sequence[Row], scored: Scored) -> pyarrow.Table:
        """The rows with what is said of them. A row without an id gets its place among all rows of the job, told from
        ids where the shard has some.
        """
        import pyarrow

        first = sum(one.rows for one in self.shards[: shard.number])
        place = "{}" if all(row.id is None for row in rows) else "row {}"
        ids = (place.format(number) if row.id is None else row.id for number, row in enumerate(rows, first))
        items = [row.item if isinstance(row.item, Input) else None for row in rows]
        told = {
            "id": [_unicode(id) for id in ids],
            "text": [None if item is None else _unicode(item.text) for item in items],
            "text_pair": [None if item is None else _unicode(item.text_pair) for item in items],
        }
        columns = {name: pyarrow.array(values, pyarrow.string()) for name, values in told.items()}
        table = pyarrow.table({**columns, **{name: scored.table[name] for name in scored.table.column_names}})
        about = {"job": self.key, "shard": shard.number, "counts": dict(scored.counts)}
        return table.replace_schema_metadata({_KEY: json.dumps(about, sort_keys=True).encode()})

    def counts(self) -> dict[str, int]:
        """The counts of all shards that are there, added up, and their number of rows as "rows"."""
        import pyarrow.parquet

        total = {"rows": 0}
        for paths in self.found().values():
            metadata = pyarrow.parquet.read_metadata(paths[0])
            total["rows"] += metadata.num_rows
            for name, count in made_of(metadata.schema.to_arrow_schema()).get("counts", {}).items():
                total[name] = total.get(name, 0) + count
        return total


class Made(NamedTuple):
    """A shard that was made: its number, its rows, and how many seconds it took."""

    number: int
    rows: int
    seconds: float


def cut(
    folder: Path,
    named: Iterable[str],
    work: Mapping[str, Any],
    *,
    shard_rows: int = SHARD_ROWS,
    columns: Columns | None = None,
    pairs: bool = False,
) -> Job:
    """The job of doing `work`, which says whatever a scorer's answers depend on, to the rows of the sources named.

    A source is a file, a folder of files, or a pattern; those of a folder or pattern in order of their names. With
    `pairs`, it must have the second text of a pair. Reads all of them once and keeps nothing. Raises ProjectError with
    all that is wrong with them.
    """
    columns = columns or Columns()
    sources = find_sources(named, folder, columns, every=shard_rows, pairs=pairs)
    asked = {
        "format": FORMAT,
        "work": dict(work),
        "columns": vars(columns),
        "sources": [{"name": one.path.name, "sha256": one.sha256, "rows": one.rows} for one in sources],
        "shard_rows": shard_rows,
    }
    places = [(source, start) for source in sources for start in source.marks]
    shards = (
        Shard(number, source, start, min(shard_rows, source.rows - start.row))
        for number, (source, start) in enumerate(places)
    )
    return Job(folder.resolve(), json.loads(json.dumps(asked)), columns, tuple(shards))


def found_shards(folder: Path) -> dict[int, list[Path]]:
    """Files of shards in a folder, by number, as their names have it; nothing where there is no folder."""
    files: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := SHARD_NAME.fullmatch(path.name):
            files.setdefault(int(match["number"]), []).append(path)
    return files


def begun_work(folder: Path) -> dict[str, Any]:
    """What is done to rows in a folder where a job was begun; nothing where none was, or where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))["work"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def made_of(schema: pyarrow.Schema) -> dict[str, Any]:
    """What a shard says that it was made of: its job's key, its number, its counts; nothing where it says nothing."""
    found: dict[str, Any] = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
    return found


def _differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: (key, old, new)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(name), now.get(name), f"{where}.{name}" if where else name)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _differences(one, other, f"{where}[{place}]")
    elif before != now:
        yield where, before, now


def _unicode(text: str | None) -> str | None:
    """Half a surrogate pair, which JSON can smuggle in, as a question mark."""
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()


def _parquet(table: pyarrow.Table) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
