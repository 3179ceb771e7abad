"""Kill `trunkline run` and `trunkline release rollback` at random instants and check that nothing is lost (promise 6).

    python benchmarks/kill_test.py --kills 50 --seed 0 --out benchmarks/results/kills.json

A small project of three tasks over a tiny encoder is run in processes of its own. Each is sent SIGKILL after a random
delay, or a moment after the store shows that a merge or a training stage has begun; task files are edited now and then,
so that there is always work. After every kill: the list of releases reads, the live bundle verifies, and every stage
folder that was finished is still the same one. At the end a run completes and answers, and every branch trained through
the kills is compared, byte for byte, with a project that was never killed. Exit code 1 if any of that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from projects import write_project, write_task

from trunkline.atomic import STAGING, write_json
from trunkline.bundle.manifest import verify
from trunkline.errors import TrunklineError
from trunkline.pipeline.project import Project
from trunkline.project.tasks import Answer

_LONG = {"epochs": 1.0, "min_steps": 120}  # long enough to be killed between two evaluations
_TABLES: dict[str, dict[str, Any]] = {"tune": _LONG, "full": _LONG, "distill": _LONG}
TASKS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "classification", **_TABLES},
    "same": {"kind": "relevance", "pair": ["separate"], **_TABLES},
    "urgency": {"kind": "regression", **_TABLES},
}
TRUNKLINE = (sys.executable, "-m", "trunkline")
Seen = dict[str, tuple[int, int, int]]
"""Stage key -> what stays while the stage is not done again: inode, and times of the folder and its result."""


@dataclass
class Tally:
    """What the kills came to; `failures` says what broke a promise."""

    kills: int = 0
    rollbacks: int = 0
    merging: int = 0
    training: int = 0
    resumed: int = 0
    from_checkpoint: int = 0
    finished_first: int = 0
    repeated_stages: int = 0
    half_releases: int = 0
    failures: list[str] = field(default_factory=list)


class Victim:
    """A project whose processes are killed."""

    def __init__(self, root: Path, rng: np.random.Generator, tally: Tally) -> None:
        self.root, self.rng, self.tally = root, rng, tally
        self.store = root / ".trunkline"
        self.length = {"run": 0.0, "rollback": 0.0}
        self.edits = 0

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*TRUNKLINE, "-C", str(self.root), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def complete(self, *arguments: str) -> str:
        """Let a command end by itself; its stdout. What it says instead of exit code 0 is a failure."""
        process = self.command(*arguments)
        out, err = process.communicate()
        if process.returncode != 0:
            self.tally.failures.append(f"{' '.join(arguments)}: exit code {process.returncode}: {err[-2000:]}")
        return out

    def measure(self) -> None:
        """How long the commands take when left alone; leaves two releases."""
        for name, arguments in (("run", ["run"]), ("rollback", ["release", "rollback"])):
            if name == "rollback":
                self.edit(["intent"])
                self.complete("run")
            started = time.monotonic()
            self.complete(*arguments)
            self.length[name] = time.monotonic() - started

    def edit(self, names: list[str]) -> None:
        """Give these tasks new work: another learning rate."""
        self.edits += 1
        rate = 1e-3 + 1e-5 * self.edits
        for name in names:
            tables = {key: {**TASKS[name][key], "learning_rate": rate} for key in _TABLES}
            write_task(self.root, name, **{**TASKS[name], **tables})

    def stages(self) -> Seen:
        """The finished stages, as they are on disk now."""
        found: Seen = {}
        for folder in (self.store / "stages").iterdir():
            if not folder.name.startswith(STAGING):
                status = folder.stat()
                found[folder.name] = (status.st_ino, status.st_mtime_ns, (folder / "stage.json").stat().st_mtime_ns)
        return found

    def kill_once(self) -> bool:
        """One kill with its checks; False where the process ended before it."""
        project = Project.load(self.root)
        if not project.plan().merges:
            self.edit([str(name) for name in self.rng.permutation(list(TASKS))[: self.rng.integers(1, len(TASKS) + 1)]])
        before, live = self.stages(), self._live()
        rollback = bool(self.rng.random() < 0.2) and len(project.releases.list()) > 1 and live is not None
        if rollback:
            ids = [release.id for release in project.releases.list()]
            other = str(self.rng.choice([id for id in ids if id != live]))
            process = self.command("release", "rollback", other)
            killed = _kill(process, self.rng.uniform(0, self.length["rollback"]))
            aim = "rollback"
        else:
            started = time.time()
            process = self.command("run")
            aim = str(self.rng.choice(["any", "merge", "train"]))
            delay = self.rng.uniform(0, self.length["run"] if aim == "any" else 0.5)
            signs = {"any": None, "merge": ("bundles", f"{STAGING}*"), "train": ("work", "*/checkpoint.pt")}[aim]
            killed = _kill(process, delay, after=signs and partial(self._appeared, *signs, started))
        if not killed:
            self.tally.finished_first += 1
            if process.returncode != 0:
                self.tally.failures.append(f"after {self.tally.kills} kills: exit code {process.returncode}")
        else:
            self.tally.kills += 1
            self.tally.rollbacks += rollback
            self.tally.merging += aim == "merge"
            self.tally.training += aim == "train"
        self.check(before)
        if killed and not rollback:
            left = Project.load(self.root).plan()
            self.tally.resumed += left.merges
            self.tally.from_checkpoint += any(step.resumes for step in left.steps)
        return killed

    def check(self, before: Seen) -> None:
        """Releases are whole, and no stage that was there has been done again."""
        try:
            live = self._live()
            if live is not None:
                verify(Project.load(self.root).releases.folder(Project.load(self.root).released(live)))
        except TrunklineError as error:
            self.tally.half_releases += 1
            self.tally.failures.append(f"after {self.tally.kills} kills: {error}")
        now = self.stages()
        for key, status in before.items():
            if now.get(key) != status:
                self.tally.repeated_stages += 1
                self.tally.failures.append(f"after {self.tally.kills} kills: stage {key} was done again")

    def _live(self) -> str | None:
        release = Project.load(self.root).releases.live()
        return None if release is None else release.id

    def _appeared(self, folder: str, pattern: str, since: float) -> bool:
        """Whether something of this name was made below the store since then, and not by a process killed earlier."""
        try:
            return any(path.stat().st_mtime > since for path in (self.store / folder).glob(pattern))
        except FileNotFoundError:  # moved into place in between
            return False

    def answers(self) -> bool:
        """Whether the live release answers a message for every task."""
        (answers,) = Project.load(self.root).bundle().predict([("play some music", "play a song")])
        return set(answers) == set(TASKS) and all(isinstance(answer, Answer) for answer in answers.values())

    def leftovers(self) -> list[str]:
        """Half-written entries anywhere in the project."""
        return [str(path.relative_to(self.root)) for path in self.root.rglob(f"{STAGING}*")]


def _kill(process: subprocess.Popen[str], delay: float, after: Callable[[], bool] | None = None) -> bool:
    """SIGKILL `delay` seconds after `after` first holds; whether that came before the process's own end."""
    while after is not None and not after() and process.poll() is None:
        time.sleep(0.005)
    try:
        process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode < 0


def compare_untouched(root: Path, fresh: Path) -> tuple[int, int]:
    """Run a copy of the project's files without a break: (branches compared, branches that differ).

    In a process of its own, as the killed ones were: another number of threads rounds differently.
    """
    shutil.copytree(root, fresh, ignore=shutil.ignore_patterns(".trunkline"))
    subprocess.run([*TRUNKLINE, "-C", str(fresh), "run"], check=True, capture_output=True)
    pairs = [(path, root / path.relative_to(fresh)) for path in fresh.glob(".trunkline/stages/*/branch.safetensors")]
    return len(pairs), sum(not b.is_file() or a.read_bytes() != b.read_bytes() for a, b in pairs)


def kill_test(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """The summary of `kills` kills in a project made in `folder`."""
    started = time.monotonic()
    rng, tally = np.random.default_rng(seed), Tally()
    victim = Victim(write_project(folder / "project", TASKS), rng, tally)
    victim.measure()
    while tally.kills < kills and len(tally.failures) < 5:
        victim.kill_once()
    before = victim.stages()
    victim.complete("run")
    victim.check(before)
    if Project.load(victim.root).plan().merges:
        tally.failures.append("the last run left work")
    if not victim.answers():
        tally.failures.append("the last release does not answer")
    if left := victim.leftovers():
        tally.failures.append(f"left behind: {', '.join(left)}")
    compared, differ = compare_untouched(victim.root, folder / "untouched")
    if differ or not compared:
        tally.failures.append(f"{differ} of {compared} branches differ from those of a project that was never killed")
    return {
        **vars(tally),
        "branches_compared": compared,
        "branches_different": differ,
        "edits": victim.edits,
        "releases": len(Project.load(victim.root).releases.list()),
        "seconds_of_a_run": round(victim.length["run"], 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the summary to this file")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        summary = kill_test(Path(folder), given.kills, given.seed)
    command = f"python benchmarks/kill_test.py --kills {given.kills} --seed {given.seed}"
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    found = {"command": command, "machine": machine, "seed": given.seed, **summary}
    print(json.dumps(found, indent=2))
    if given.out is not None:
        write_json(given.out, found)
    sys.exit(1 if summary["failures"] else 0)


if __name__ == "__main__":
    main()
