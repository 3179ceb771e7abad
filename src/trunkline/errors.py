"""Every error that Trunkline raises on purpose, and what the command line does with each.

    TrunklineError            exit code 1   something went wrong that the user can read about
    ├── UsageError            exit code 2   an argument names something that does not exist
    ├── ProjectError          exit code 2   project or data files are wrong; carries *all* problems
    ├── EncoderError          exit code 2   an encoder cannot be found, verified or supported
    ├── MissingExtra          exit code 2   an optional dependency is not installed
    ├── StoreError            exit code 1   the store is damaged, or in use by another process
    └── BundleError           exit code 1   a bundle is damaged or does not fit its trunk
        └── ProbeError        exit code 1   a merge broke a promise on the probe inputs; names the task

This module knows nothing about the terminal: it only composes the text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class TrunklineError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class UsageError(TrunklineError):
    """A command or call names something that does not exist or cannot be combined."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place of the user's files.

    `where` is a key ("tune.layers") or a line ("line 12"); `found` and `allowed` are shown as given. `tasks` are those
    that read the file, where it is one of data, which several may share.
    """

    file: str
    where: str
    message: str
    found: str | None = None
    allowed: str | None = None
    tasks: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.file}: {self.where}: {self.message}" if self.where else f"{self.file}: {self.message}"
        if self.found is not None:
            text += f"\n    found:   {self.found}"
        if self.allowed is not None:
            text += f"\n    allowed: {self.allowed}"
        if self.tasks:
            text += f"\n    of:      {', '.join(self.tasks)}"
        return text


class ProjectError(TrunklineError):
    """The project's files or data are wrong. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(head + ":\n" + "\n".join(str(problem) for problem in self.problems))


class EncoderError(TrunklineError):
    """An encoder cannot be found, does not match its hash, or is of a family that cannot work."""

    exit_code = 2


class MissingExtra(TrunklineError):
    """An optional dependency is needed and absent."""

    exit_code = 2

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra that is not installed: pip install -e '.[{extra}]' in the clone")


class StoreError(TrunklineError):
    """The store is damaged, or another process is writing to it."""


class BundleError(TrunklineError):
    """A bundle is damaged, incomplete, or does not fit the trunk it names."""


class ProbeError(BundleError):
    """A merged model broke a promise on its probe inputs; the release does not move."""

    def __init__(self, task: str, reason: str) -> None:
        self.task = task
        super().__init__(f"task '{task}' failed its probe: {reason}. The old release stays live.")


_SHOWN = 80  # characters


def unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest known one, then all of them.

    Of a name that is longer than any sensible one only the beginning is compared and shown: it may come from anyone.

    >>> unknown("task", "intnt", ["slots", "intent"])
    "unknown task 'intnt' (did you mean 'intent'? tasks: intent, slots)"
    """
    names = sorted(known)
    name = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {noun} '{name}' ({hint}{noun}s: {', '.join(names) or 'none'})"
