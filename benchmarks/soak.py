"""The server for long, and in trouble: `python benchmarks/soak.py --minutes 10 --unloads 1000 --kills 20`.

Three parts, each on a server of its own and left out where its number is 0:

- swaps: saturated, while every few seconds `POST /admin/release` swaps between two bundles that differ in half of their
  branches;
- unloads: one task is unloaded and loaded again, so many times;
- kills: the worker gets SIGKILL under load, so many times, and what readiness says is watched all along.

Every reply is compared with what the bundle that it names answers to these texts when it is asked alone: an answer of
the other bundle is a mixed one. Memory of both processes is sampled. Result: `soak` in benchmarks/results/server.json.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import without_folders
from kept import read_result, record
from served import (
    RESULT,
    SECOND,
    TASKS,
    Server,
    bundle_of,
    end_in_order,
    resident,
    rounded,
    trunkline,
)
from server_page import write_page

from trunkline.bench import plot
from trunkline.bench.load import Generator, Load, Request, Target, fields
from trunkline.bench.texts import made_texts
from trunkline.bench.wire import Call, Connection, Pool, Refused, http
from trunkline.bundle.loaded import Bundle
from trunkline.engine.base import Input
from trunkline.machine import machine
from trunkline.project.tasks import Answer

LENGTHS = (6, 12, 20, 32, 48)
TEXTS = 60
"""Texts of each length that are kept at most."""
BODIES, ROWS, CLIENTS, CONNECTIONS = 512, 32, 8, 512
NEAR = 0.05
"""How far a score may be from the one expected: batches of other shapes round differently."""
APART = 4 * NEAR
"""How far the scores of both bundles must be apart, for every task that differs."""
WARM_SHARE, WARM_CYCLES = 0.2, 20
GRACE = 0.25
"""Seconds after a change of readiness that count as neither."""
POLL = 0.01
PATIENCE = 120.0


Scores = dict[str, dict[str, float]]
"""Per task, the score of each label."""


@dataclass
class Judge:
    """Whether replies say what the bundle that they name says: `expected` scores by bundle and text, and the `branches`
    of each bundle by task. Counts replies `by` bundle and `mixed` ones; `farthest` is the most that a score was off.
    """

    expected: dict[str, dict[str, Scores]]
    branches: dict[str, dict[str, str]]
    texts: list[Input]
    by: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    farthest: float = 0.0

    @classmethod
    def between(cls, folders: Sequence[Path]) -> Judge:
        """The judge over two bundles, on texts to which they answer clearly differently."""
        bundles = [Bundle.load(folder, engine="auto", device="cpu") for folder in folders]
        pool = [row.text for length in LENGTHS for row in made_texts(length, 4 * TEXTS, random.Random(length))]
        expected = {one.id: dict(zip(pool, map(_scores, one.predict(pool)), strict=True)) for one in bundles}
        first, second = expected.values()
        apart = [text for text in pool if all(_far(first[text][task], second[text][task]) > APART for task in SECOND)]
        if len(apart) < TEXTS:
            raise RuntimeError(f"the bundles differ on only {len(apart)} of {len(pool)} texts")
        texts = random.Random(0).sample(apart, min(len(apart), TEXTS * len(LENGTHS)))
        branches = {one.id: {task: sha[:16] for task, sha in one.manifest.hashes().items()} for one in bundles}
        return cls(expected, branches, [Input(text) for text in texts])

    def of(self, texts: Sequence[Input]) -> Callable[[Any], str | None]:
        """The check of a reply to these texts."""
        asked = [text.text for text in texts]

        def check(reply: Any) -> str | None:
            self.by[reply["bundle"]] += 1
            wrong = self._wrong(asked, reply)
            self.mixed += wrong is not None
            return wrong

        return check

    def _wrong(self, asked: Sequence[str], reply: Any) -> str | None:
        named = reply["bundle"]
        expected, branches = self.expected[named], self.branches[named]
        if len(reply["results"]) != len(asked):
            return f"{len(reply['results'])} results for {len(asked)} texts"
        for text, result in zip(asked, reply["results"], strict=True):
            for task, of_label in expected[text].items():
                answer = result[task]
                if answer["branch"] != branches[task]:
                    return f"{task}: branch {answer['branch']} in a reply of bundle {named}"
                off = _far(of_label, answer["scores"])
                self.farthest = max(self.farthest, off)
                if off > NEAR:
                    return f"{task}: scores {answer['scores']}, where bundle {named} gives {of_label}"
        return None


class Watched:
    """A pool that looks at every refusal: is it a clean 503, and when did it come?"""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.all = pool.all
        self.limit = pool.limit
        self.refused: list[float] = []
        self.unclean: list[str] = []

    async def ask(self, call: Call) -> None:
        """As a pool's."""
        try:
            await self.pool.ask(call)
        except Refused as refused:
            if refused.outcome == "503":
                self.refused.append(time.perf_counter())
                if not (refused.retry_after > 0 and _is_error(str(refused))):
                    self.unclean.append(str(refused))
            raise


class Readiness:
    """What `/health/ready` says, asked every few milliseconds: when it changed, and to what."""

    def __init__(self, server: Server) -> None:
        self._connection = Connection("127.0.0.1", server.port)
        self.changes: list[tuple[float, bool]] = []

    async def watch(self) -> None:
        """Until cancelled."""
        raw = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
        while True:
            status, _, _ = await self._connection.ask(raw)
            if not self.changes or self.changes[-1][1] != (status == 200):
                self.changes.append((time.perf_counter(), status == 200))
            await asyncio.sleep(POLL)

    async def becomes(self, ready: bool, since: float) -> float | None:
        """When it first said so after `since`; None where that takes too long."""
        end = time.perf_counter() + PATIENCE
        while time.perf_counter() < end:
            for at, said in self.changes:
                if at > since and said is ready:
                    return at
            await asyncio.sleep(POLL)
        return None

    def said(self, at: float) -> bool | None:
        """What it said at this time; None while it was just changing."""
        place = bisect.bisect(self.changes, (at, True)) - 1
        if place < 0 or at - self.changes[place][0] < GRACE:
            return None
        return self.changes[place][1]


def main() -> None:
    """Run the parts and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="minilm", choices=["minilm", "base"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of saturation with swaps")
    parser.add_argument("--swap-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--unloads", type=int, default=1000, help="cycles of unloading and loading a task")
    parser.add_argument("--kills", type=int, default=20, help="times that the worker is killed")
    parser.add_argument("--kill-seconds", type=float, default=20.0, help="of load around each kill")
    parser.add_argument("--work", type=Path, default=Path("build/server"), help="where bundles are made")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="the docs page (docs/server-benchmark.md for the default --out)")
    options = parser.parse_args()
    plot.check(options.out.with_suffix(".svg"))  # better now than when all is measured
    end_in_order()
    bundles = [bundle_of(options.shape, options.work), bundle_of(options.shape, options.work, second=True)]
    judge = Judge.between(bundles)
    before = read_result(options.out).get("soak", {})
    command = " ".join(["python benchmarks/soak.py", *without_folders(sys.argv[1:])])
    found = {
        **before,
        # Parts may be run one by one.
        "command": "; ".join(dict.fromkeys([*before.get("command", "").split("; "), command])).removeprefix("; "),
        "machine": machine(),
        "shape": options.shape,
    }
    failures: list[str] = []
    for wanted, part in ((options.minutes, swaps), (options.unloads, unloads), (options.kills, kills)):
        if wanted:
            came = rounded(serve(part, bundles, judge, options), 3)
            found |= came
            record(options.out, {"soak": found})
            print(json.dumps(came, indent=1), file=sys.stderr, flush=True)
            failures += faults(came)
    write_page(options.out, options.page)
    sys.exit("\n".join(failures) or None)


Part = Callable[["Soaked", Sequence[Path], Judge, argparse.Namespace], Coroutine[None, None, dict[str, Any]]]


def serve(part: Part, bundles: Sequence[Path], judge: Judge, options: argparse.Namespace) -> dict[str, Any]:
    """A part, on a server of its own."""
    key = options.work / "admin.key"
    key.write_text("soak\n")
    with trunkline(bundles[0], options.work / f"{part.__name__}.log", "--admin-key-file", str(key)) as server:
        return asyncio.run(part(Soaked(server, key.read_text().strip()), bundles, judge, options))


class Soaked:
    """A server with its load and its admin calls."""

    def __init__(self, server: Server, key: str) -> None:
        self.server = server
        self.key = key
        self.admins = Connection("127.0.0.1", server.port)
        self.pool = Watched(Pool("127.0.0.1", server.port, CONNECTIONS))

    async def admin(self, path: str, content: Any) -> tuple[int, Any]:
        """An admin call: status and body."""
        status, body, _ = await self.admins.ask(http(self.server.url, path, content, self.key))
        return status, json.loads(body or b"null")

    def load(self, judge: Judge, seconds: float, *, rate: float | None = None, seed: int = 0) -> Generator:
        """Requests of 1 to 32 texts: `rate` a second at random instants, else from a few clients that never pause."""
        chance = random.Random(seed)

        def calls(texts: Sequence[Input]) -> tuple[Call, ...]:
            raw = http(self.server.url, "/v1/predict", {"inputs": [fields(text) for text in texts], "tasks": TASKS})
            return (Call(raw, judge.of(texts)),)

        bodies = [calls(chance.choices(judge.texts, k=chance.randint(1, ROWS))) for _ in range(BODIES)]
        load = Load(CLIENTS, rate, ROWS, seconds, 0.0, 60.0, CONNECTIONS, seed)
        return Generator(Target("trunkline", TASKS, False, calls), self.pool, bodies, load)  # type: ignore[arg-type]

    def memory(self) -> dict[str, float]:
        """Resident MB of each process."""
        return {name: resident(pid) for name, pid in self.server.pids().items()}


async def swaps(soaked: Soaked, bundles: Sequence[Path], judge: Judge, options: argparse.Namespace) -> dict[str, Any]:
    """Saturation, with a swap every few seconds."""
    seconds = 60 * options.minutes
    generator = soaked.load(judge, seconds)
    started = time.perf_counter()
    running = asyncio.create_task(generator.run())
    took: list[float] = []
    failures: list[str] = []
    samples: list[tuple[float, dict[str, float]]] = []
    workers = set()
    due = options.swap_every
    while not running.done():
        await asyncio.sleep(max(0.0, min(started + due - time.perf_counter(), 1.0)))
        now = time.perf_counter() - started
        samples.append((now, soaked.memory()))
        workers.add(soaked.server.pids().get("worker"))
        if now >= due and now < seconds:
            due += options.swap_every
            other = bundles[(len(took) + 1) % 2].name
            asked = time.perf_counter()
            status, body = await soaked.admin("/admin/release", {"bundle": other})
            if status == 200 and body["bundle"] == other:
                took.append(time.perf_counter() - asked)
            else:
                failures.append(f"{status}: {body}")
    await running
    memory = {name: ends(samples, name, seconds) for name in ("front", "worker")}
    return {
        "minutes": options.minutes,
        "swap_every": options.swap_every,
        **outcomes(generator.requests),
        "examples": generator.examples,
        "mixed": judge.mixed,
        "by_bundle": dict(judge.by),
        "farthest_score": judge.farthest,
        "swaps": len(took),
        "swaps_failed": failures,
        "swap_seconds": {"median": statistics.median(took), "most": max(took)} if took else None,
        "workers": len(workers),
        "rss_mb": memory,
        "rss_growth_mb": sum(one["end"] - one["after_warmup"] for one in memory.values()),
    }


def ends(samples: Sequence[tuple[float, dict[str, float]]], name: str, seconds: float) -> dict[str, Any]:
    """Memory after the warm-up and at the end, medians over a fifth of the time each; the most, and some in between."""
    values = [(at, found[name]) for at, found in samples if name in found]
    share = seconds * WARM_SHARE
    return {
        "after_warmup": statistics.median(value for at, value in values if share <= at < 2 * share),
        "end": statistics.median(value for at, value in values if at >= seconds - share),
        "most": max(value for _, value in values),
        "samples": [round(value, 1) for _, value in values[:: max(1, len(values) // 20)]],
    }


async def unloads(soaked: Soaked, bundles: Sequence[Path], judge: Judge, options: argparse.Namespace) -> dict[str, Any]:
    """One task unloaded and loaded again, over and over."""
    samples: list[float] = []
    before, started = 0.0, 0.0
    every = max(1, options.unloads // 20)
    for cycle in range(-WARM_CYCLES, options.unloads):
        if cycle == 0:
            before, started = sum(soaked.memory().values()), time.perf_counter()
        for change in ("unload", "load"):
            status, body = await soaked.admin(f"/v2/repository/models/{TASKS[-1]}/{change}", {})
            if status != 200:
                raise RuntimeError(f"{change} failed in cycle {cycle}: {status} {body}")
        if cycle >= 0 and (cycle + 1) % every == 0:
            samples.append(sum(soaked.memory().values()))
    took = time.perf_counter() - started
    generator = soaked.load(judge, 2.0)
    await generator.run()
    return {
        "unloads": {
            "cycles": options.unloads,
            "before_mb": before,
            "after_mb": samples[-1],
            "samples_mb": samples,
            "cycle_ms": 1000 * took / options.unloads,
            "answers_after": outcomes(generator.requests),
        }
    }


async def kills(soaked: Soaked, bundles: Sequence[Path], judge: Judge, options: argparse.Namespace) -> dict[str, Any]:
    """The worker killed under load, again and again.

    Half of the load that saturates, at random instants: clients that wait for their answers would ask nothing while
    there is no worker.
    """
    full = soaked.load(judge, 5.0)
    await full.run()
    rate = len(full.requests) / 5.0 / 2
    readiness = Readiness(soaked.server)
    watching = asyncio.create_task(readiness.watch())
    chance = random.Random(0)
    requests: list[Request] = []
    blind: list[float] = []
    away: list[float] = []
    failures: list[str] = []
    examples: dict[str, str] = {}
    for number in range(options.kills):
        generator = soaked.load(judge, options.kill_seconds, rate=rate, seed=number)
        running = asyncio.create_task(generator.run())
        await asyncio.sleep(chance.uniform(1.0, 2.0))
        killed = time.perf_counter()
        os.kill(soaked.server.pids()["worker"], signal.SIGKILL)
        gone = await readiness.becomes(False, killed)
        back = None if gone is None else await readiness.becomes(True, gone)
        await running
        requests += generator.requests
        examples |= generator.examples
        if gone is None or back is None:
            failures.append(f"kill {number + 1}: readiness never {'went' if gone is None else 'came back'}")
            break
        blind.append(1000 * (gone - killed))
        away.append(back - killed)
        late = [one for one in generator.requests if one.due > back + GRACE and one.outcome != "ok"]
        if late:
            failures.append(f"kill {number + 1}: {len(late)} requests failed after it was ready again")
        print(f"kill {number + 1}: ready again after {away[-1]:.1f} s", file=sys.stderr, flush=True)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    found = Counter(one.outcome for one in requests)
    wrong = {name: count for name, count in found.items() if name not in ("ok", "503")}
    return {
        "kills": {
            "kills": len(away),
            "requests_per_second": rate,
            "requests": len(requests),
            "answered": found["ok"],
            "refused": found["503"],
            "failed": sum(wrong.values()) + len(soaked.pool.unclean),
            "outcomes": dict(found),
            "examples": examples,
            "unclean": soaked.pool.unclean[:3],
            "blind_ms": _middle(blind),
            "away_s": _middle(away),
            "refused_while_ready": sum(readiness.said(at) is True for at in soaked.pool.refused),
            "failures": failures,
        }
    }


def faults(came: dict[str, Any]) -> list[str]:
    """What of a part's result should not be; how much memory may grow is for readers to judge."""
    found = [f"{came[name]} requests {name}" for name in ("failed", "mixed") if came.get(name)]
    found += [f"a swap failed: {failure}" for failure in came.get("swaps_failed", ())]
    if failed := came.get("unloads", {}).get("answers_after", {}).get("failed"):
        found.append(f"{failed} requests failed after all the unloading")
    killed = came.get("kills", {})
    if killed.get("failed") or killed.get("refused_while_ready"):
        found.append("kills: requests had neither an answer nor a clean 503, or were refused while all seemed well")
    return found + killed.get("failures", [])


def outcomes(requests: Sequence[Request]) -> dict[str, Any]:
    """How many requests there were, and what became of them."""
    found = Counter(one.outcome for one in requests)
    return {"requests": len(requests), "failed": len(requests) - found["ok"], "outcomes": dict(found)}


def _middle(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": statistics.median(values), "most": max(values)} if values else None


def _scores(row: Any) -> Scores:
    found = {}
    for task, answer in row.items():
        assert isinstance(answer, Answer)
        assert answer.scores is not None
        found[task] = dict(answer.scores)
    return found


def _far(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference of the scores of one label."""
    return max(abs(score - other[label]) for label, score in one.items())


def _is_error(body: str) -> bool:
    try:
        return bool(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return False


if __name__ == "__main__":
    main()
