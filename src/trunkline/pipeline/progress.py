"""What a person sees while a run lasts: a line per finished stage, and for the one at hand how far, how good, how long
still.

Knows the results of stages, and how to say them; runs none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trunkline.pipeline.stages import StageKind

if TYPE_CHECKING:
    from trunkline.pipeline.shards import Made
    from trunkline.training.loop import Progress as Position


class Show(Protocol):
    """Told of everything that a run does."""

    def say(self, text: str) -> None:
        """A line worth keeping."""

    def begin(self, name: str, number: int, total: int, why: str) -> None:
        """Stage `name`, `number` of `total`, starts."""

    def advance(self, position: Position) -> None:
        """The stage at hand moved on."""

    def done(self, name: str, summary: str, seconds: float) -> None:
        """Stage `name` is finished."""


class Silent:
    """Shows nothing: for Python callers."""

    def say(self, text: str) -> None: ...
    def begin(self, name: str, number: int, total: int, why: str) -> None: ...
    def advance(self, position: Position) -> None: ...
    def done(self, name: str, summary: str, seconds: float) -> None: ...


class Terminal:
    """Shows a run on a console; without a terminal, one line per finished stage."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task("", total=1, detail="")
        self._count = ""

    def __enter__(self) -> Terminal:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def pause(self) -> None:
        """Draw no more, so that a question can be asked; lines still come."""
        self._bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def begin(self, name: str, number: int, total: int, why: str) -> None:
        self._count = f"{number:>{len(str(total))}}/{total}"
        self._bar.reset(self._row, total=1, description=f"{self._count}  {name}", detail=why)

    def advance(self, position: Position) -> None:
        score = "" if position.score is None else f"  best {position.score:.3f}"
        left = "" if position.seconds_left is None else f"  {_clock(position.seconds_left)} left"
        loss = "" if position.loss is None else f"  loss {position.loss:.3f}"
        detail = f"step {position.step}/{position.steps}{loss}{score}{left}"
        self._bar.update(self._row, completed=position.step, total=position.steps, detail=detail)

    def done(self, name: str, summary: str, seconds: float) -> None:
        line = f"{self._count}  {_clock(seconds):>6}  {name}"
        if len(line) + 2 + len(summary) > self.console.width:
            self.say(f"{line}\n{'':<{len(self._count) + 10}}{summary}")
        else:
            self.say(f"{line:<{min(64, self.console.width - len(summary) - 2)}}  {summary}")


class ShardTerminal:
    """Shows on a console how far a job of shards is; without a terminal, one line per shard.

    The rate is of the rows that this run scored, from when the first model is loaded, which is told as 0 rows.
    """

    def __init__(self, console: Console, name: str, shards: int, rows: int, missing: Sequence[int]) -> None:
        """A job of so many shards and rows; `missing` are the rows of each shard that is yet to be made."""
        self.console = console
        self.shards_made = 0
        self._shards, self._done = shards, shards - len(missing)
        self._left = sum(missing)
        self._started: float | None = None
        self._scored = 0
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}")
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task(name, total=rows, completed=rows - self._left, detail="loading")

    def __enter__(self) -> ShardTerminal:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float | None:
        """Rows per second so far."""
        if self._started is None or not self._scored:
            return None
        return self._scored / max(time.monotonic() - self._started, 1e-9)

    def say(self, text: str) -> None:
        """A line worth keeping."""
        self.console.print(text, highlight=False, markup=False)

    def moved(self, rows: int) -> None:
        """So many more rows are scored."""
        if self._started is None:
            self._started = time.monotonic()
        self._scored += rows
        self._left -= rows
        self._bar.update(self._row, advance=rows, detail=self._detail())

    def made(self, made: Made) -> None:
        """A shard is there."""
        self._done += 1
        self.shards_made += 1
        self._bar.update(self._row, detail=self._detail())
        if not self.console.is_terminal:
            self.say(f"shard {made.number}: {made.rows:,} rows in {_clock(made.seconds)}; {self._detail()}")

    def _detail(self) -> str:
        pace = "" if self.rate is None else f", {self.rate:,.0f} rows/s, {_clock(max(self._left, 0) / self.rate)} left"
        return f"{self._done}/{self._shards} shards{pace}"


def _clock(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def summary(kind: StageKind, result: Mapping[str, Any], metric: str) -> str:
    """What came of a stage of this kind, in a phrase; `metric` is what its task's candidates are compared by."""
    match kind:
        case StageKind.PREPARE:
            return ", ".join(f"{count:,} {name}" for name, count in result["rows"].items())
        case StageKind.SCOPE:
            return "flags " + ", ".join(f"{100 * share:.1f} % of {split}" for split, share in result["flagged"].items())
        case StageKind.EXITS:
            return f"after layer {_listed(result['depths'])}" if result["depths"] else "none can be had"
        case StageKind.SPEEDS:
            return _exits_kept(result)
        case StageKind.TEACH if metric not in result["metrics"]["valid"]:
            return "asked"  # `valid` has no query with both labels
    return f"{metric} {result['metrics']['valid'][metric]:.3f}"


def _exits_kept(result: Mapping[str, Any]) -> str:
    if not result["exits"]:
        return "none pays"
    most = result["keeps"][0]
    time = next(point["time"] for point in result["speeds"]["valid"] if point["speed"] == most["speed"])
    layers = _listed([one["depth"] for one in result["exits"]])
    return f"after layer {layers}: {100 * most['keep']:g} % kept in {100 * time:.0f} % of the time"


def _listed(depths: Sequence[int]) -> str:
    return ", ".join(map(str, depths))
