"""More load than a server can take at full depth, with a floor and without: `python benchmarks/floor.py --data FOLDER
--work FOLDER`.

A merged model of six tasks with exits, that of `adaptive.py`: with the same `--work` folder it is trained once. Each
request has a few rows of the reported split of one task, and asks that task of them. First the capacity: what the
server answers in a closed loop that saturates it at full depth, with the correct answers of each request. Then requests
at random instants (Poisson): half of the capacity, twice the capacity, half again, against the plain server and against
the same one with `--floor`, in turn, round after round; deadline and limits are the same. Second by second: what came
and what became of it, the queue, the level, speed, depth, and how many answers are correct against full depth on the
same rows. A killed run goes on after the last load that ended.

Result: benchmarks/results/floor.json, docs/floor.md with its plot.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptive import MERGED, SEEDS, prepared, trained
from floor_page import write_page
from kept import read_result, record
from served import Cores, Server, end_in_order, figures, rounded, trunkline

from trunkline.atomic import write_json, write_text
from trunkline.bench import plot
from trunkline.bench.load import Load, fields
from trunkline.bundle.manifest import verify
from trunkline.bundle.merge import merge
from trunkline.engine.base import Input
from trunkline.machine import machine
from trunkline.model.branch import save_branch

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "floor.json"
FACTORS = (0.5, 2.0, 0.5)
"""The load of each part, as a share of the capacity."""
MODES = ("plain", "floor")
REQUESTS = 1024
"""Different requests, sent in turn."""
CLIENTS = 24
"""Clients that saturate the server, with two batches of texts and more under way."""
CONNECTIONS = 900
"""At most so many requests under way: fewer than the connections that a server takes."""
WARM = 15.0
"""Seconds in which a server builds its kernels, and as many again at the floor's speeds."""
CAPACITY = 30.0
SAMPLE = 0.25

Found = dict[str, Any]


def main() -> None:
    """Train and merge what is not there yet, measure what is missing, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds fastbert/, glue/ and utterance/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--tasks", nargs="+", choices=MERGED, default=MERGED)
    parser.add_argument("--floor", type=float, default=0.98)
    parser.add_argument("--deadline-ms", type=float, default=2000.0, help="of every request, on both servers")
    parser.add_argument("--train-rows", type=int, default=0, help="most rows of a task that are trained on (0: all)")
    parser.add_argument("--rows", type=int, default=8, help="texts in a request")
    parser.add_argument("--seconds", type=float, nargs=3, default=(20.0, 60.0, 20.0), help="of each part of a load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-only", action="store_true", help="measure nothing, as where others use the machine")
    parser.add_argument("--measure-only", action="store_true", help="train nothing: what is in --work is measured")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="the docs page (docs/floor.md for the default --out)")
    options = parser.parse_args()
    if options.data is None and not options.measure_only:
        parser.error("--data is needed to train; --measure-only measures what is there")
    plot.check(options.out.with_suffix(".svg"))  # better now than when all is measured
    end_in_order()
    if not options.measure_only:
        make(options)
    if not options.train_only:
        measure(options)
        write_page(options.out, options.page)


def make(options: argparse.Namespace) -> None:
    """The bundle, and the requests."""
    project = prepared(options, "merged", options.tasks)
    ready = [trained(project, name, "merged") for name in options.tasks]
    files = {task.name: options.work / "branches" / f"{task.name}.safetensors" for task in ready}
    (options.work / "branches").mkdir(exist_ok=True)
    for task in ready:
        save_branch(task.branches[SEEDS[0]], files[task.name])
    probes = [item for task in ready for item in task.inputs[:2]]
    bundle = merge(project.source, files, probes, options.work / "bundles", name="floor")
    chance = random.Random(13)
    lines = []
    for number in range(REQUESTS):
        task = ready[number % len(ready)]
        picks = chance.choices(range(len(task.inputs)), k=options.rows)
        lines.append(
            {
                "task": task.name,
                "depth": task.branches[SEEDS[0]].spec.depth,
                "texts": [fields(Input(task.inputs[pick].text, task.inputs[pick].text_pair)) for pick in picks],
                "labels": [task.rows.targets[pick] for pick in picks],
            }
        )
    write_text(options.work / "requests.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    about = {"bundle": bundle.name, "tasks": list(options.tasks), "rows": options.rows}
    write_json(options.work / "made.json", about)


def measure(options: argparse.Namespace) -> None:
    """The loads that the result has not; each is written when it ends."""
    made = json.loads((options.work / "made.json").read_text())
    bundle = options.work / "bundles" / made["bundle"]
    verify(bundle)
    cores = Cores.kept_apart()
    fewer = f" --train-rows {options.train_rows}" if options.train_rows else ""
    about = {
        **made,
        "command": f"python benchmarks/floor.py --data DATA_FOLDER --work FOLDER{fewer}",
        "machine": machine(),
        "cores": cores.words(),
        "floor": options.floor,
        "deadline_ms": options.deadline_ms,
        "parts": [list(part) for part in zip(FACTORS, options.seconds, strict=True)],
    }
    found = read_result(options.out)
    if {name: found.get(name) for name in about} != json.loads(json.dumps(about)):
        options.out.unlink(missing_ok=True)
        found = record(options.out, {**about, "runs": []})
    loads = Loads(cores, options)
    for number in range(options.rounds):
        for mode in MODES:
            if any((run["round"], run["mode"]) == (number, mode) for run in found["runs"]):
                continue
            extra = ["--floor", str(options.floor)] if mode == "floor" else []
            limit = f"deadline_ms={options.deadline_ms:g}"
            with trunkline(bundle, options.work / f"{mode}.log", "--limit", limit, *extra) as server:
                loads.warm(server)
                if "capacity" not in found:
                    found = record(options.out, {"capacity": rounded(loads.capacity(server))})
                run = loads.run(server, found["capacity"], found["parts"])
            run = {"round": number, "mode": mode, **rounded(run)}
            found = record(options.out, {"runs": [*found["runs"], run]})
            found = record(options.out, {"summary": rounded(summary(found["runs"]))})
            print(number, mode, json.dumps(run["parts"]), file=sys.stderr, flush=True)


class Loads:
    """Runs `floor_load.py` against a server."""

    def __init__(self, cores: Cores, options: argparse.Namespace) -> None:
        self.cores, self.options = cores, options

    def send(self, server: Server, parts: Sequence[tuple[float, Load]], **asked: float) -> Found:
        """Loads, each from its second on; every request has what is `asked` besides."""
        given = {
            "url": server.url,
            "requests": str(self.options.work / "requests.jsonl"),
            "cores": self.cores.load,
            "asked": asked,
            "parts": [{"at": at, "load": asdict(load)} for at, load in parts],
        }
        command = [sys.executable, str(HERE / "floor_load.py")]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the load failed: {done.stderr[-2000:]}")
        found: Found = json.loads(done.stdout)
        return found

    def closed(self, server: Server, seconds: float, **asked: float) -> Found:
        """Clients that never pause; a deadline does not trouble them."""
        load = Load(clients=CLIENTS, seconds=seconds, warmup=0.0, timeout=300.0, connections=CLIENTS)
        return self.send(server, [(0.0, load)], deadline_ms=300_000.0, **asked)

    def warm(self, server: Server) -> None:
        """Build the kernels that full depth needs, and those of texts that leave."""
        self.closed(server, WARM)
        self.closed(server, WARM, keep=self.options.floor)

    def capacity(self, server: Server) -> Found:
        """Requests a second at full depth, and how many answers to each request are correct, None for one that was
        not sent.
        """
        found = self.closed(server, CAPACITY)
        replies = [reply for reply in found["replies"] if reply["done"] < CAPACITY]
        correct: list[int | None] = [None] * REQUESTS
        for reply in replies:
            correct[reply["number"]] = reply["correct"]
        return {
            "requests_per_second": len(replies) / CAPACITY,
            "texts_per_second": self.options.rows * len(replies) / CAPACITY,
            "generator_cpu": found["cpu_share"],
            "correct": correct,
        }

    def run(self, server: Server, capacity: Found, parts: Sequence[tuple[float, float]]) -> Found:
        """The parts of a load, one after another without a pause."""
        sent, at = [], 0.0
        for seed, (factor, seconds) in enumerate(parts):
            rate = factor * capacity["requests_per_second"]
            load = Load(rate=rate, seconds=seconds, warmup=0.0, timeout=60.0, connections=CONNECTIONS, seed=seed)
            sent.append((at, load))
            at += seconds
        cpu, started = server.cpu(), time.monotonic()
        with watched(server) as samples:
            found = self.send(server, sent)
        took = time.monotonic() - started
        used = {name: (value - cpu.get(name, 0.0)) / took for name, value in server.cpu().items()}
        deadline = self.options.deadline_ms / 1000
        made = Course(found, [(at - found["began"], *rest) for at, *rest in samples], capacity["correct"], deadline)
        ends = [begin + load.seconds for begin, load in sent]
        return {
            "cpu": {**used, "load": found["cpu_share"]},
            "examples": found["examples"],
            "parts": [made.between(begin, end) for (begin, _), end in zip(sent, ends, strict=True)],
            "seconds": [made.between(second, second + 1.0) for second in range(round(ends[-1]))],
        }


@contextlib.contextmanager
def watched(server: Server) -> Iterator[list[tuple[float, float, float]]]:
    """What the server says of itself until the end of the block: (`time.perf_counter()`, rows that wait, level)."""
    samples: list[tuple[float, float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE):
            with contextlib.suppress(OSError):  # too busy to answer
                said = figures(server)
                samples.append((time.perf_counter(), said["trunkline_waiting_rows"], said["trunkline_load_level"]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


class Course:
    """A load that is over: requests count in the second in which they were due, replies in that in which they came.

    `correct` are the correct answers to each request at full depth, `deadline` is in seconds.
    """

    def __init__(
        self,
        found: Found,
        samples: Sequence[Sequence[float]],
        correct: Sequence[int | None],
        deadline: float,
    ) -> None:
        self.found, self.samples, self.correct, self.deadline = found, samples, correct, deadline

    def between(self, begin: float, end: float) -> Found:
        """Counts and means of some seconds; None where there is nothing to take a mean of."""
        requests = [one for one in self.found["requests"] if begin <= one["due"] < end]
        ok = [one for one in requests if one["outcome"] == "ok"]
        in_time = sum(one["done"] - one["due"] <= self.deadline for one in ok)
        refused = sum(one["outcome"] == "429" for one in requests)
        expired = sum(one["outcome"] == "504" for one in requests)
        replies = [one for one in self.found["replies"] if begin <= one["done"] < end]
        known = [one for one in replies if self.correct[one["number"]] is not None]
        by_task = {task: self._right([one for one in known if one["task"] == task]) for task in _tasks(known)}
        answered, full = self._right(known)
        samples = [sample for sample in self.samples if begin <= sample[0] < end]
        return {
            "requests": len(requests),
            "in_time": in_time,
            "late": len(ok) - in_time,
            "refused": refused,
            "expired": expired,
            "failed": len(requests) - len(ok) - refused - expired,
            "waiting_rows": mean([waiting for _, waiting, _ in samples]),
            "level": mean([level for _, _, level in samples]),
            "speed": mean([one["speed"] for one in replies]),
            "depth": mean([one["depth"] for one in replies]),
            "correct_of_full": answered / full if full else None,
            "right_by_task": by_task,
        }

    def _right(self, replies: Sequence[Found]) -> tuple[int, int]:
        """How many answers of these replies are correct, and how many would be at full depth."""
        return sum(one["correct"] for one in replies), sum(self.correct[one["number"]] or 0 for one in replies)


def _tasks(replies: Sequence[Found]) -> list[str]:
    return sorted({one["task"] for one in replies})


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return statistics.mean(values) if values else None


def summary(runs: Sequence[Found]) -> Found:
    """For each mode, each part of the load over all rounds: shares of the requests, and medians of the means."""
    found: Found = {}
    for mode in MODES:
        mine = [run["parts"] for run in runs if run["mode"] == mode]
        found[mode] = [_over(parts) for parts in zip(*mine, strict=True)]
    return found


def _over(rounds: Sequence[Found]) -> Found:
    total = sum(one["requests"] for one in rounds)
    shares = {
        name: sum(one[name] for one in rounds) / max(total, 1)
        for name in ("in_time", "late", "refused", "expired", "failed")
    }
    means = {}
    for name in ("waiting_rows", "level", "speed", "depth", "correct_of_full"):
        values = [one[name] for one in rounds if one[name] is not None]
        means[name] = statistics.median(values) if values else None
    by_task = {}
    for task in sorted({task for one in rounds for task in one["right_by_task"]}):
        found = [one["right_by_task"].get(task, (0, 0)) for one in rounds]
        full = sum(full for _, full in found)
        by_task[task] = sum(right for right, _ in found) / full if full else None
    return {"rounds": len(rounds), "requests": total, **shares, **means, "correct_of_full_by_task": by_task}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
