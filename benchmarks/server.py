"""What the server takes and how it holds up: `python benchmarks/server.py [--infinity-python PYTHON]`.

For each shape one bundle with eight tasks (see `served.py`), texts of exactly 32 tokens, and all eight answers of each:
the engine alone, on batches as large as the server makes them; the server at saturation (closed loop), one request at a
time, and at half of that load (open loop, Poisson); and Infinity with eight classifiers of the same shape, asked at
once and in turn, with whichever of its settings is the fastest here. All of them take turns, round after round; medians
count. Every figure is kept as soon as it is there. Load comes from `load_process.py`, on a core of its own where there
are four or more.

Shapes can be measured one by one: they meet in benchmarks/results/server.json and in docs/server-benchmark.md.
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
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command_line import without_folders
from infinity_settings import SETTINGS, Infinity, missing
from kept import record
from served import RESULT, TASKS, TOKENS, Cores, Server, bundle_of, end_in_order, figures, rounded, trunkline
from server_page import write_page
from shapes import source_of

from trunkline.bench import plot
from trunkline.bench.load import Load as Asked
from trunkline.bench.load import fields
from trunkline.bench.texts import made_texts
from trunkline.bundle.loaded import Bundle
from trunkline.engine.base import Input, Job
from trunkline.machine import machine

HERE = Path(__file__).resolve().parent
TEXTS = 16384
REQUESTS = {"one": (1, 128), "many": (32, 8)}
"""Kinds of request: texts in each, and clients that saturate the server with them."""
RIVALS = 4
"""Clients that saturate Infinity: each of them asks eight models."""
ROWS = (32, 64)
"""Batches that the engine alone is timed on, besides those of the server's size."""
WARM = 2.0

Phase = dict[str, Any]


def main() -> None:
    """Measure the shapes, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["minilm", "base"], choices=["minilm", "base"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of a phase; a round has about ten")
    parser.add_argument("--infinity-python", type=Path, help="python of Infinity's environment")
    parser.add_argument("--infinity-settings", nargs="+", choices=list(SETTINGS), help="try these only")
    parser.add_argument("--screen", type=float, default=15.0, help="seconds in which each setting is tried")
    parser.add_argument("--work", type=Path, default=Path("build/server"), help="where bundles and models are made")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="the docs page (docs/server-benchmark.md for the default --out)")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    plot.check(options.out.with_suffix(".svg"))  # better now than when all is measured
    end_in_order()
    described = machine()
    cores = Cores.kept_apart()
    command = " ".join(["python benchmarks/server.py", *without_folders(sys.argv[1:])])
    for shape in options.shapes:
        for detail in measure(shape, cores, options):
            detail = {"command": command, "machine": described, "cores": cores.words(), **detail}
            found = record(options.out, {"shapes": {shape: rounded(detail)}})
            head = headlines(found["shapes"])
            found = record(options.out, {"command": command, "machine": described, **rounded(head)})
        print(json.dumps({shape: found["shapes"][shape]["summary"]}, indent=1), file=sys.stderr)
        write_page(options.out, options.page)


def measure(shape: str, cores: Cores, options: argparse.Namespace) -> Generator[dict[str, Any], None, None]:
    """The shape's detail, again after every phase with what that phase found."""
    bundle = bundle_of(shape, options.work)
    texts = options.work / "texts.jsonl"
    rows = made_texts(TOKENS, TEXTS, random.Random(13))
    texts.write_text("".join(json.dumps(fields(row)) + "\n" for row in rows))
    detail: dict[str, Any] = {"tasks": len(TASKS), "tokens": TOKENS, "seconds": options.seconds, "rounds": []}
    rival = yield from best_infinity(shape, cores, texts, options, detail)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(trunkline(bundle, options.work / "server.log"))
        load = Load(cores, texts, options)
        # The first batch of a size builds its kernels. The largest show how large the batches of the server are.
        warm = load.on(server, TASKS, "many")
        full = load.on(server, TASKS, "one")
        load.on(server, TASKS, "one", rate=full["requests_per_second"] / 2)
        detail["batch_rows"] = warm["batch_rows"]
        chosen = {name: json.loads(server.get("/v1/model")[1])[name] for name in ("engine", "dtype", "device")}
        detail["engine"] = ", ".join(chosen.values())
        engine = Engine(bundle, chosen, rows, {"server": round(warm["batch_rows"])})
        if rival is not None:
            stack.enter_context(rival.serving())
            rival.warm(load)
        for _ in range(options.rounds):
            done: Phase = {}
            detail["rounds"].append(done)
            for name, phase in phases(server, engine, rival, load, done, options.seconds):
                done[name] = phase()
                print(shape, len(detail["rounds"]), name, _short(done[name]), file=sys.stderr, flush=True)
                yield summarised(detail)


def phases(
    server: Server, engine: Engine, rival: Infinity | None, load: Load, done: Phase, seconds: float
) -> Iterator[tuple[str, Callable[[], Phase]]]:
    """One round: what is measured, in turn."""
    yield "engine", lambda: engine.throughput(seconds)
    for kind in ("many", "one"):
        yield f"saturation_{kind}", lambda kind=kind: load.on(server, TASKS, kind)
        yield f"single_{kind}", lambda kind=kind: load.on(server, TASKS, kind, clients=1)
        rate = done[f"saturation_{kind}"]["requests_per_second"] / 2
        yield f"half_{kind}", lambda kind=kind, rate=rate: load.on(server, TASKS, kind, rate=rate)
    if rival is not None:
        with rival.awake() as infinity:
            for way in rival.WAYS:
                yield f"infinity_{way}", lambda way=way: load.on(infinity, TASKS, "many", way=way)
            yield "infinity_single", lambda: load.on(infinity, TASKS, "one", way="at-once", clients=1)


class Load:
    """Runs `load_process.py` against a server; what comes back is what a phase keeps of it."""

    def __init__(self, cores: Cores, texts: Path, options: argparse.Namespace) -> None:
        self.cores, self.texts, self.seconds = cores, texts, options.seconds

    def on(
        self,
        server: Server,
        names: Sequence[str],
        kind: str,
        *,
        clients: int | None = None,
        rate: float | None = None,
        seconds: float | None = None,
        way: str | None = None,
        timeout: float = 300.0,
    ) -> Phase:
        """One run: open loop at `rate` requests a second, else closed with `clients`, by default enough to saturate."""
        rows, many = REQUESTS[kind]
        many = RIVALS if way else many
        seconds = seconds or self.seconds
        asked = Asked(
            clients=None if rate is not None else clients or many,
            rate=None if rate is None else max(rate, 0.1),
            rows=rows,
            seconds=seconds,
            warmup=WARM,
            timeout=timeout,
        )
        what = {"models": names, "at_once": way == "at-once"} if way else {"tasks": names}
        given = {"url": server.url, "texts": str(self.texts), "cores": self.cores.load, "load": asdict(asked), **what}
        cpu, batches = server.cpu(), _batches(server) if not way else None
        started = time.monotonic()
        command = [sys.executable, str(HERE / "load_process.py")]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the load {given} failed: {done.stderr[-2000:]}")
        found = json.loads(done.stdout)
        took = time.monotonic() - started
        kept = (
            "rows",
            "loop",
            "requests",
            "errors",
            "examples",
            "requests_per_second",
            "texts_per_second",
            "latency_ms",
        )
        phase = {name: found[name] for name in kept}
        if way and found["latency_ms"]:
            # Its requests take seconds, and only a few end in the measured time: clients over latency is exact then.
            steady = 1000 * rows * found["loop"]["clients"] / found["latency_ms"]["mean"]
            phase["texts_per_second"] = max(steady, found["texts_per_second"])
        # Over the whole run, warm-up included: in seconds of CPU for a second of time.
        phase["cpu"] = {name: (value - cpu.get(name, 0.0)) / took for name, value in server.cpu().items()}
        phase["cpu"]["load"] = found["generator"]["cpu_share"]
        if batches is not None:
            after = _batches(server)
            phase["batch_rows"] = (after[0] - batches[0]) / max(after[1] - batches[1], 1)
        return phase


class Engine:
    """The engine alone, in this process: batches of texts in, logits of every task out."""

    def __init__(self, bundle: Path, chosen: dict[str, str], texts: Sequence[Input], sizes: dict[str, int]) -> None:
        self.bundle = Bundle.load(bundle, **chosen)
        reader = self.bundle.loader.trunk.encoder.reader
        lengths = {len(row) for row in reader.tokenize([text.text for text in texts])}
        if lengths != {TOKENS}:
            raise RuntimeError(f"texts of {sorted(lengths)} tokens, where all should have {TOKENS}")
        jobs = [Job(text, TASKS) for text in texts]
        self.sizes = sizes | {str(size): size for size in ROWS}
        self.batches = {
            name: [jobs[start : start + size] for start in range(0, len(jobs) - size, size)]
            for name, size in self.sizes.items()
        }
        for batches in self.batches.values():
            for batch in batches[:3]:
                self.bundle.engine.run(batch)

    def throughput(self, seconds: float) -> Phase:
        """Texts a second on batches of each size, in turn; all together in about so many seconds."""
        times: dict[str, list[float]] = {name: [] for name in self.batches}
        end = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < end:
            for name, batches in self.batches.items():
                started = time.perf_counter()
                self.bundle.engine.run(batches[number % len(batches)])
                times[name].append(time.perf_counter() - started)
            number += 1
        rates = {name: self.sizes[name] * len(found) / sum(found) for name, found in times.items()}
        return {"rows": self.sizes, "texts_per_second": rates, "batches": number}


def best_infinity(
    shape: str, cores: Cores, texts: Path, options: argparse.Namespace, detail: dict[str, Any]
) -> Generator[dict[str, Any], None, Infinity | None]:
    """Infinity with the fastest of its settings, or None. Yields the detail with what each gave, or what is missing."""
    reason = missing(options.infinity_python)
    if reason is not None:
        detail["infinity"] = {"missing": reason}
        yield summarised(detail)
        return None
    found = Infinity(options.infinity_python, shape, source_of(shape, options.work).path, options.work)
    load = Load(cores, texts, options)
    rates: dict[str, float] = {}
    tried: dict[str, Any] = {}
    detail["infinity"] = {"version": found.version(), "tried": tried}
    for found.settings in options.infinity_settings or SETTINGS:
        try:
            with found.serving():
                found.warm(load)
                with found.awake() as server:
                    tried[found.settings] = {
                        way: load.on(server, TASKS, "many", way=way, seconds=options.screen)["texts_per_second"]
                        for way in found.WAYS
                    }
            rates[found.settings] = max(tried[found.settings].values())
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            tried[found.settings] = {"failed": str(error)[-500:]}
        print(shape, "infinity", found.settings, tried[found.settings], file=sys.stderr, flush=True)
        yield summarised(detail)
    if not any(rates.values()):
        detail["infinity"]["missing"] = "none of its settings answers"
        yield summarised(detail)
        return None
    found.settings = detail["infinity"]["settings"] = max(rates, key=rates.__getitem__)
    return found


def summarised(detail: dict[str, Any]) -> dict[str, Any]:
    """The detail with medians and spread of what its rounds have so far."""
    rounds = detail["rounds"]

    def spread(value: Callable[[Phase], float]) -> dict[str, float] | None:
        values = []
        for one in rounds:
            with contextlib.suppress(KeyError):  # a phase of the round that is not over
                values.append(value(one))
        if not values:
            return None
        return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": len(values)}

    summary: dict[str, Any] = {}
    for name in ("server", *map(str, ROWS)):
        summary[f"engine_{name}"] = spread(lambda one, name=name: one["engine"]["texts_per_second"][name])
    for kind in REQUESTS:
        full, single, half = (f"{phase}_{kind}" for phase in ("saturation", "single", "half"))
        summary[full] = spread(lambda one, full=full: one[full]["texts_per_second"])
        summary[f"saturation_ratio_{kind}"] = spread(
            lambda one, full=full: one[full]["texts_per_second"] / one["engine"]["texts_per_second"]["server"]
        )
        summary[f"{single}_ms"] = spread(lambda one, single=single: one[single]["latency_ms"]["p50"])
        for percentile in ("p50", "p99"):
            summary[f"{half}_{percentile}_ms"] = spread(
                lambda one, half=half, percentile=percentile: one[half]["latency_ms"][percentile]
            )
        summary[f"p99_over_single_{kind}"] = spread(
            lambda one, half=half, single=single: one[half]["latency_ms"]["p99"] / one[single]["latency_ms"]["p50"]
        )
    ways = {way: spread(lambda one, way=way: one[f"infinity_{way}"]["texts_per_second"]) for way in Infinity.WAYS}
    measured = {way: found["median"] for way, found in ways.items() if found is not None}
    if measured:
        best = max(measured, key=measured.__getitem__)
        summary |= {f"infinity_{way}": found for way, found in ways.items()}
        summary["infinity_single_ms"] = spread(lambda one: one["infinity_single"]["latency_ms"]["p50"])
        summary["infinity_ratio"] = spread(
            lambda one: one["saturation_many"]["texts_per_second"] / one[f"infinity_{best}"]["texts_per_second"]
        )
    summary["failed_requests"] = sum(sum(phase.get("errors", {}).values()) for one in rounds for phase in one.values())
    return {**detail, "summary": summary}


def headlines(shapes: dict[str, Any]) -> dict[str, float | None]:
    """The figures that the project promises, from medians; None for what is not measured."""

    def median(shape: str, name: str) -> float | None:
        found = shapes.get(shape, {}).get("summary", {}).get(name)
        return None if found is None else found["median"]

    return {
        "saturation_ratio": median("base", "saturation_ratio_many"),
        "p99_over_single_at_half_load": median("base", "p99_over_single_one"),
        **{f"infinity_ratio_{shape}": median(shape, "infinity_ratio") for shape in ("base", "minilm")},
    }


def _batches(server: Server) -> tuple[float, float]:
    """Rows and batches that the worker has done."""
    said = figures(server)
    return said["trunkline_batch_rows_sum"], said["trunkline_batch_rows_count"]


def _short(phase: Phase) -> str:
    latency = phase.get("latency_ms", {})
    shown = {"texts/s": phase["texts_per_second"], "p50": latency.get("p50"), "p99": latency.get("p99")}
    return json.dumps(rounded(shown | {"errors": phase.get("errors", {}), "cpu": phase.get("cpu")}, 2))


if __name__ == "__main__":
    main()
