"""Run by test_killed.py in a process of its own: merge and release, killed at every step that reaches the disk.

    killed.py STATE FILES SOURCE WORK

Copies STATE (a store with one release) to a folder in WORK for each step, lets a child merge and publish there until
it kills itself just before that step, then lets another child do it again in peace. Prints one JSON line per step with
what was seen after the kill and after the second try. Children are forked before torch starts a thread, so that each
costs no import.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from branches import INPUTS

from trunkline.atomic import STAGING
from trunkline.bundle import Releases, verify
from trunkline.bundle.merge import merge
from trunkline.errors import TrunklineError
from trunkline.model.encoders import Encoder
from trunkline.model.source import Source, resolve

STEPS = ("fsync", "replace", "rename", "link", "mkdir", "unlink", "rmdir")


def kill_at(step: int) -> None:
    """Make this process kill itself just before its `step`-th call that reaches the disk."""
    calls = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in STEPS:
        setattr(os, name, wrapped(getattr(os, name)))


def work(home: Path, source: Source, files: dict[str, Path], step: int | None) -> int:
    """Merge and publish in a forked child; returns its exit status, -9 where it killed itself."""
    child = os.fork()
    if child == 0:
        try:
            if step is not None:
                kill_at(step)
            releases = Releases(home)
            live = releases.live()
            bundle = merge(source, files, INPUTS, home / "bundles", live and releases.folder(live), name="x")
            releases.publish(bundle)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seen(home: Path) -> dict[str, Any]:
    """What a reader finds in the store."""
    state: dict[str, Any] = {"live": None, "damaged": [], "leftovers": 0, "bundles": 0}
    live = Releases(home).live()
    state["live"] = live and live.id
    state["history"] = len(Releases(home).list())
    for path in (home / "bundles").iterdir():
        if path.name.startswith(STAGING):
            state["leftovers"] += 1
        elif path.is_dir():
            state["bundles"] += 1
            try:
                verify(path)
            except TrunklineError as error:
                state["damaged"].append(str(error))
    state["leftovers"] += sum(path.name.startswith(STAGING) for path in home.iterdir())
    return state


def main(state: Path, branches: Path, encoder: Path, scratch: Path) -> None:
    source = resolve(str(encoder), None, scratch)
    Encoder.load(encoder)  # brings all imports, which the children then share
    files = {path.stem: path for path in sorted(branches.iterdir())}
    for step in range(1, 1000):
        home = scratch / f"step{step}"
        shutil.copytree(state, home)
        status = work(home, source, files, step)
        killed = seen(home)
        again = work(home, source, files, None)
        print(json.dumps({"step": step, "status": status, "killed": killed, "again": again, "after": seen(home)}))
        shutil.rmtree(home)
        if status != -signal.SIGKILL:
            return


main(*map(Path, sys.argv[1:]))
