"""Options that several commands take: one name, one check and one text of help each. Imports no torch.

An option of a single command stands with that command.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.engine.choose import DEVICES, DTYPES, ENGINES, check_name
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.project.speed import DialValue


def dial_of(speed: list[str] | None, keep: list[str] | None) -> dict[str, DialValue]:
    """What was asked for, by name: a number, or numbers by task. Raises UsageError for what is none, and for both."""
    found = {name: _number_or_tasks(name, given) for name, given in (("speed", speed), ("keep", keep)) if given}
    if len(found) == 2 and not all(isinstance(value, dict) for value in found.values()):
        raise UsageError("give --speed or --keep, not both, unless each names its tasks")
    return found


def _number_or_tasks(name: str, given: list[str]) -> DialValue:
    """0.5, or intent=0.5 as often as there are tasks to name."""
    if len(given) == 1 and "=" not in given[0]:
        return _number(name, given[0], given[0])
    found: dict[str, float] = {}
    for one in given:
        task, named, value = one.rpartition("=")
        if not named or not task:
            raise UsageError(f"--{name} is given several times for different tasks: TASK=NUMBER; found {one!r}")
        if task in found:
            raise UsageError(f"--{name} names task '{task}' twice")
        found[task] = _number(name, value, one)
    return found


def _number(name: str, value: str, given: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = nan
    if not 0 <= number <= 1:
        raise UsageError(f"--{name} is a number from 0 to 1, or TASK=NUMBER; found {given!r}")
    return number


def _checked(what: str) -> Callable[[str | None], str | None]:
    """A callback that lets through the names that `choose` knows, before anything is loaded or started."""

    def check(value: str | None) -> str | None:
        if value is not None:
            check_name(what, value)
        return value

    return check


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

Release = Annotated[str | None, typer.Argument(help="A release; the live one by default.", show_default=False)]
Folder = Annotated[
    Path | None,
    typer.Argument(help="A bundle's folder; the live release of the project by default.", show_default=False),
]
Tasks = Annotated[list[str] | None, typer.Argument(help="Only these tasks; all by default.", show_default=False)]
OnlyTasks = Annotated[
    list[str] | None, typer.Option("--task", "-t", help="Only this task (repeatable).", show_default=False)
]

Engine = Annotated[str, typer.Option(help=f"One of {', '.join(ENGINES)}.", callback=_checked("engine"))]
UsualEngine = Annotated[
    str | None,
    typer.Option(
        help="torch (the default), openvino (faster, once it has started; the default in int8) or auto.",
        callback=_checked("engine"),
        show_default=False,
    ),
]
"""None is torch, or in int8 the only one that has it."""
Dtype = Annotated[
    str,
    typer.Option(help=f"One of {', '.join(DTYPES)}; int8 where the bundle was quantized.", callback=_checked("dtype")),
]
Device = Annotated[
    str, typer.Option(help=f"One of {', '.join(DEVICES)}; cuda:1 is the second GPU.", callback=_checked("device"))
]

_DIAL = "NUMBER|TASK=NUMBER"
Speed = Annotated[
    list[str] | None,
    typer.Option(
        help="Let texts leave at a task's exits; the higher, the sooner. 0, the default, is off. One number, or "
        "TASK=NUMBER for each task that is to be faster.",
        metavar=_DIAL,
        show_default=False,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        help="In place of --speed: the fastest that keeps this fraction of a task's quality, as measured on valid.",
        metavar=_DIAL,
        show_default=False,
    ),
]

ShardRows = Annotated[int, typer.Option(min=1, help="Rows of a shard, the most that a kill can cost each process.")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes at once; by default as many as keep all cores busy.")
]
Threads = Annotated[
    int, typer.Option(min=1, help="Threads of each process. Part of the job: last digits depend on it.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", help='Make the shards on a Ray cluster: its address, or "local" to start one here.', show_default=False
    ),
]
