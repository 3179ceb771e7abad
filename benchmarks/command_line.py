"""The command and the machine that stand in a result and on its page: the command as others would give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LEFT_OUT = ("--work", "--out", "--page")


def without_folders(arguments: Sequence[str]) -> list[str]:
    """The arguments without folders of this machine, and no word of resuming."""
    shown: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument.endswith("-python"):
            shown += [argument, "PYTHON"]
            next(given)
        elif argument == "--data":
            shown += [argument, "DATA_FOLDER"]
            next(given)
        elif argument in _LEFT_OUT:
            next(given)
        elif argument != "--resume":
            shown.append(argument)
    return shown


def words_of(machine: Mapping[str, Any]) -> str:
    """The machine of a result, for readers."""
    return f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
