"""`trunkline teach` at scale, killed on the way: rows per second, peak memory, nothing scored twice and nothing lost.

    python benchmarks/shards.py DATA_FOLDER --work build/shards --pairs 1000000 --kills 5

Pairs are made by recombining queries and passages of the train splits of question answering sets, so that no text that
is reported on is among them. `teach` runs in a process of its own, with those that it starts; their resident memory is
added up several times a second. It is killed when a random number of further shards is there, and begun again; shards
that were there must still be the same files at the end. What a kill interrupts is scored anew: at most the shard that
each process had in hand. Training the teacher is not part of what is measured. Exit code 1 if anything was lost or made
again, 2 where the work folder holds shards already.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_projects import write_project

from trunkline.atomic import write_json
from trunkline.machine import machine
from trunkline.pipeline.progress import Silent
from trunkline.pipeline.project import Project
from trunkline.pipeline.teach import teacher_work

SETS = ("wikiqa", "trecqa", "boolq")
TASK = "wikiqa"
PAUSE = 0.25
"""Seconds between two looks at memory and shards."""
WRITTEN_AT_ONCE = 100_000


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
                json.dumps({"text": queries[query], "text_pair": passages[passage]}, ensure_ascii=False) + "\n"
                for query, passage in picks
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


def shards(out: Path) -> dict[str, int]:
    """The shards that are there: name -> inode, which another file of the same name would not have."""
    return {path.name: path.stat().st_ino for path in out.glob("shard-*.parquet")}


def run_once(command: list[str], out: Path, kill_at: int | None) -> tuple[bool, float, int]:
    """Run until the end, or until there are `kill_at` shards: whether it was killed, seconds, peak bytes."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        if kill_at is not None and len(shards(out)) >= kill_at:
            process.kill()
        time.sleep(PAUSE)
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"teach ended with exit code {process.returncode}")
    return process.returncode != 0, time.monotonic() - started, peak


def measure(command: list[str], out: Path, total: int, kills: int, seed: int) -> dict[str, Any]:
    """Run the command to its end with so many kills; what that came to."""
    marks = sorted(np.random.default_rng(seed).choice(np.arange(1, total), size=min(kills, total - 1), replace=False))
    seen: dict[str, int] = {}
    runs: list[dict[str, Any]] = []
    again = 0
    while True:
        kill_at = next((int(mark) for mark in marks if mark > len(seen)), None)
        killed, seconds, peak = run_once(command, out, kill_at)
        now = shards(out)
        again += sum(now.get(name) != inode for name, inode in seen.items())
        runs.append({"killed": killed, "seconds": seconds, "peak_bytes": peak, "shards": len(now) - len(seen)})
        seen = now
        if not killed:
            break
    return {
        "kills": sum(run["killed"] for run in runs),
        "shards_made_again": again,
        "seconds": sum(run["seconds"] for run in runs),
        "peak_gib": max(run["peak_bytes"] for run in runs) / 2**30,
        "runs": runs,
    }


def main() -> None:
    """Make the pairs, score them, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/shards"))
    parser.add_argument("--teacher", default="full", help="as `trunkline teach` takes it")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shards.json"))
    asked = parser.parse_args()
    project, out = asked.work / "project", asked.work / "out"
    asked.work.mkdir(parents=True, exist_ok=True)
    if not project.exists():
        write_project(asked.data, project, [TASK])
    source = asked.work / f"pairs-{asked.pairs}.jsonl"
    write_pairs(asked.data, source, asked.pairs, asked.seed)
    if shards(out):
        print(f"{out} holds shards: remove it to begin anew", file=sys.stderr)
        sys.exit(2)
    teacher_work(Project.load(project), TASK, asked.teacher, threads=1, show=Silent())  # trains it, where it is its own
    command = [sys.executable, "-m", "trunkline", "-C", str(project), "teach", TASK, str(source)]
    command += ["--teacher", asked.teacher, "--out", str(out), "--shard-rows", str(asked.shard_rows)]
    command += ["--processes", str(asked.processes)]
    found = measure(command, out, -(-asked.pairs // asked.shard_rows), asked.kills, asked.seed)
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)  # nothing is left to do: every shard is verified and counted
    lost = asked.pairs - summary["rows"]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "teacher": asked.teacher,
        "pairs": asked.pairs,
        "shard_rows": asked.shard_rows,
        "processes": asked.processes,
        "rows_lost": lost,
        "rows_without_an_answer": summary["faults"],
        "rows_per_second": asked.pairs / found["seconds"],
        **found,
    }
    write_json(asked.out, result)
    sys.exit(1 if lost or found["shards_made_again"] or summary["made"] else 0)


if __name__ == "__main__":
    main()
