"""A million unlabelled pairs scored by a teacher and learned from, killed on the way: rows per second, peak memory,
nothing made twice and nothing lost.

    python benchmarks/shards.py DATA_FOLDER --work build/shards --pairs 1000000 --kills 5

Pairs are made by recombining queries and passages of the train splits of question answering sets, so that no text that
is reported on is among them. `trunkline teach` has them scored by the full model of one of these sets, and a stage of
its project has a student of one layer learn from the shards. Each runs in a process of its own; the resident memory of
all that it starts is added up several times a second. It is killed a random time after it got to some random place, and
begun again; a kill takes all of its processes at once. What was there must stay: shards the same files, evaluations of
the student the same numbers, and never fewer. What a kill interrupts is done anew: the shard that each process had in
hand, or what was learned since the last checkpoint; the result says how many rows that may have been. In the end the
ids in the shards are counted: each pair once. Training the teacher is not part of what is measured. Should this script
itself be stopped, the same command goes on: that counts as a kill more. Exit code 1, with what is wrong, if anything
was lost, made again or has no answer, if there were fewer kills than asked for, or if memory reached `MOST_GIB`.

Result: benchmarks/results/shards.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from data_projects import write_project
from numpy.typing import NDArray

from trunkline.atomic import write_json
from trunkline.machine import machine
from trunkline.pipeline.execute import CHECKPOINT
from trunkline.pipeline.progress import Silent
from trunkline.pipeline.project import Project
from trunkline.pipeline.stages import Stage, StageKind
from trunkline.pipeline.teach import teacher_work
from trunkline.training.pretrain import EVALUATIONS

SETS = ("wikiqa", "trecqa")
TASK = "wikiqa"
TEACHER = "full"
DEPTH, LAYERS = 6, 1
"""Layers of the trunk, which all are tuned, and of the student that starts from them."""
LEARN = "import sys; from trunkline.pipeline.project import Project; Project.load(sys.argv[1]).train([sys.argv[2]])"
PAUSE = 0.25
"""Seconds between two looks at memory and at what there is."""
MOST_DELAY = 20.0
"""Seconds, at most, between a place and the kill."""
MOST_GIB = 4.0
WRITTEN_AT_ONCE = 100_000
NOTED = 5.0
"""Seconds between two notes of how far a run is."""


def write_pairs(data: Path, path: Path, count: int, seed: int) -> None:
    """Write `count` pairs of the train splits, recombined."""
    rows = [json.loads(line) for name in SETS for line in (data / "qa" / name / "train.jsonl").open(encoding="utf-8")]
    recombine([row["text"] for row in rows], [row["text_pair"] for row in rows], path, count, seed)


def recombine(texts: Sequence[str], pairs: Sequence[str], path: Path, count: int, seed: int) -> None:
    """Write `count` pairs, each a random query with a random passage; of a file that is there already, nothing."""
    if path.exists():
        return
    queries, passages = sorted(set(texts)), sorted(set(pairs))
    rng = np.random.default_rng(seed)
    staging = path.with_suffix(".part")
    with staging.open("w", encoding="utf-8") as file:
        for start in range(0, count, WRITTEN_AT_ONCE):
            size = min(WRITTEN_AT_ONCE, count - start)
            picks = zip(rng.integers(len(queries), size=size), rng.integers(len(passages), size=size), strict=True)
            file.writelines(
                json.dumps({"id": id, "text": queries[query], "text_pair": passages[passage]}, ensure_ascii=False)
                + "\n"
                for id, (query, passage) in enumerate(picks, start)
            )
    staging.replace(path)


def resident(pid: int) -> int:
    """Bytes of resident memory of a process and all that it started; memory that they share counts for each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0  # it has ended
    return pages * 4096 + sum(resident(int(child)) for child in children)


def alive(group: int) -> bool:
    """Whether a process of this group still runs: one that is dead and not yet buried does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def times_there(out: Path, pairs: int) -> NDArray[np.int64]:
    """(pairs,): how often each pair stands in the shards that are there."""
    tables = [pyarrow.parquet.read_table(path, columns=["id"]) for path in out.glob("shard-*.parquet")]
    ids = np.concatenate([np.asarray(table.column("id").to_pylist(), dtype=np.int64) for table in tables])
    return np.bincount(ids, minlength=pairs)


def shards(out: Path) -> dict[str, int]:
    """The shards that are there: name -> inode, which another file of the same name would not have."""
    return {path.name: path.stat().st_ino for path in out.glob("shard-*.parquet")}


class Scoring:
    """`trunkline teach`: how far it is, by its shards, and how many of those were made again."""

    def __init__(self, out: Path) -> None:
        self._out, self._seen, self.made_again = out, shards(out), 0

    def reached(self) -> int:
        """How many shards there are."""
        return len(shards(self._out))

    def ended(self) -> None:
        """After a run, killed or not."""
        now = shards(self._out)
        self.made_again += sum(now.get(name) != inode for name, inode in self._seen.items())
        self._seen = now


class Learning:
    """The first stage of a student: how far it is, by the evaluations of its checkpoint, and how many of those were
    made again.
    """

    def __init__(self, project: Project, stage: Stage) -> None:
        self._store, self._key = project.store, project.graph.keys[stage.id]
        self._seen: list[Any] = []
        self._most = 0
        self._read: tuple[int, list[Any]] = 0, []
        self.made_again = 0

    def _kept(self) -> list[Any]:
        checkpoint = self._store.work / self._key / CHECKPOINT
        try:
            written = checkpoint.stat().st_mtime_ns
            if written != self._read[0]:
                self._read = written, torch.load(checkpoint, map_location="cpu", weights_only=True)["history"]
            return self._read[1]
        except FileNotFoundError:  # none yet, or the stage has ended
            history: list[Any] = self._store.get(self._key).result["history"] if self._key in self._store else []
            return history

    def reached(self) -> int:
        """How many evaluations are kept. Fewer than before means that those are made again."""
        count = len(self._kept())
        self.made_again += max(0, self._most - count)
        self._most = count
        return count

    def ended(self) -> None:
        """After a run, killed or not."""
        now = self._kept()
        self.made_again += sum(old != new for old, new in zip_longest(self._seen, now[: len(self._seen)]))
        self._seen = now


def run_once(
    command: list[str],
    watched: Scoring | Learning,
    kill_at: tuple[int, float] | None,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """Run until the end, or for so many seconds after it has reached something, and note now and then what that came
    to: as if it were killed, until it has ended.
    """
    started, peak, before = time.monotonic(), 0, watched.reached()
    due: float | None = None
    noted = -NOTED

    def so_far(killed: bool) -> dict[str, Any]:
        run = {"killed": killed, "seconds": time.monotonic() - started, "peak_bytes": peak}
        return {**run, "reached": [before, watched.reached()], "made_again": watched.made_again}

    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        if kill_at is not None and due is None and watched.reached() >= kill_at[0]:
            due = time.monotonic() + kill_at[1]
        if due is not None and time.monotonic() >= due:
            os.killpg(process.pid, signal.SIGKILL)
        if time.monotonic() - noted >= NOTED:
            noted = time.monotonic()
            note(so_far(True))
        time.sleep(PAUSE)
    while alive(process.pid):
        time.sleep(PAUSE)
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}")
    watched.ended()
    note(so_far(process.returncode != 0))


def measure(
    command: list[str], watched: Scoring | Learning, total: int, kills: int, seed: int, kept: Path
) -> dict[str, Any]:
    """Run the command to its end with so many kills; what that came to, with the runs that `kept` has of before."""
    rng = np.random.default_rng(seed)
    marks = sorted(rng.choice(np.arange(1, total), size=min(kills, total - 1), replace=False).tolist())
    plan = [(mark, float(rng.uniform(0, MOST_DELAY))) for mark in marks]
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    while not runs or runs[-1]["killed"]:
        number = len(runs)
        watched.made_again = 0

        def note(run: dict[str, Any], before: list[dict[str, Any]] = runs) -> None:
            write_json(kept, [*before, run])

        run_once(command, watched, plan[number] if number < len(plan) else None, note)
        runs = json.loads(kept.read_text())
    return {
        "kills": sum(run["killed"] for run in runs),
        "made_again": sum(run["made_again"] for run in runs),
        "seconds": sum(run["seconds"] for run in runs),
        "peak_gib": max(run["peak_bytes"] for run in runs) / 2**30,
        "runs": runs,
    }


def write_student(project: Path, taught: Path) -> None:
    """Have the task's student learn from these shards before it learns the task."""
    path = project / "tasks" / f"{TASK}.toml"
    text = path.read_text(encoding="utf-8").replace("[distill]\n", '[distill]\ninit = "pretrained"\n')
    path.write_text(f"{text}\n[pretrain]\nshards = [{json.dumps(str(taught))}]\n", encoding="utf-8")


def main() -> None:
    """Make the pairs, score them, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/shards"))
    parser.add_argument("--rows", type=int, default=10_000, help="train rows of the task, at most; 0: all")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shards.json"))
    asked = parser.parse_args()
    folder, out = asked.work / "project", asked.work / "out"
    asked.work.mkdir(parents=True, exist_ok=True)
    source = asked.work / f"pairs-{asked.pairs}.jsonl"
    write_pairs(asked.data, source, asked.pairs, asked.seed)
    shape = ("--tune", str(DEPTH), "--distill", str(LAYERS), "--pair", "joint")
    write_project(asked.data, folder, [TASK], "--rows", str(asked.rows), *shape)
    teacher_work(Project.load(folder), TASK, TEACHER, threads=1, show=Silent())  # trains it, where it is not yet

    teach = [sys.executable, "-m", "trunkline", "-C", str(folder), "teach", TASK, str(source), "--teacher", TEACHER]
    teach += ["--out", str(out), "--shard-rows", str(asked.shard_rows)]
    teach += ["--processes", str(asked.processes)]
    scored = measure(
        teach, Scoring(out), -(-asked.pairs // asked.shard_rows), asked.kills, asked.seed, asked.work / "teach.json"
    )
    done = subprocess.run([*teach, "--json"], check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)  # nothing is left to do: every shard is verified and counted

    write_student(folder, out.resolve())
    project = Project.load(folder)
    [stage] = project.graph.of(TASK, StageKind.PRETRAIN)
    project.train(list(stage.needs), show=Silent())  # the tuned layers that the student starts from
    learn = [sys.executable, "-c", LEARN, str(folder), stage.id]
    learned = measure(learn, Learning(project, stage), EVALUATIONS, asked.kills, asked.seed, asked.work / "learn.json")
    result = project.store.get(project.graph.keys[stage.id]).result

    there = times_there(out, asked.pairs)
    wrong = {
        "pairs that are in no shard": int((there == 0).sum()),
        "pairs that are in several shards": int((there > 1).sum()),
        "pairs without an answer": summary["faults"],
        "shards made again": scored["made_again"] + summary["made"],
        "evaluations made again": learned["made_again"],
        "pairs that the student did not hear of": asked.pairs
        - result["rows"]["train"]
        - sum(result["rows"]["left_out"].values()),
        "kills too few": sum(max(0, asked.kills - phase["kills"]) for phase in (scored, learned)),
        f"processes that reached {MOST_GIB:g} GiB": sum(phase["peak_gib"] >= MOST_GIB for phase in (scored, learned)),
    }
    line = f"--pairs {asked.pairs} --kills {asked.kills}"
    write_json(
        asked.out,
        {
            "command": f"python benchmarks/shards.py DATA_FOLDER --work FOLDER {line}",
            "machine": machine(),
            "task": TASK,
            "train_rows": asked.rows,
            "pairs": asked.pairs,
            "shard_rows": asked.shard_rows,
            "processes": asked.processes,
            "wrong": wrong,
            "teach": {
                "teacher": TEACHER,
                "rows_scored_again_at_most": scored["kills"] * asked.processes * asked.shard_rows,
                "rows_per_second": asked.pairs / scored["seconds"],
                **scored,
            },
            "learn": {
                "layers": LAYERS,
                "rows": result["rows"],
                "rows_per_second": result["rows"]["train"] / learned["seconds"],
                "history": result["history"],
                **learned,
            },
        },
    )
    if found := [f"{what}: {number:,}" for what, number in wrong.items() if number]:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
