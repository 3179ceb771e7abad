"""What N tasks for one text cost: `python benchmarks/serving_cost.py [--adapters-python PYTHON]`.

One run on one machine: Trunkline (one trunk pass and N single-layer [CLS] branches at the last fork) against N separate
full models on the same engine and in the same dtype, N models in transformers as they come, and, where the adapters
library is installed in another environment (see `adapters_parallel.py`), its parallel composition. Weights are random,
as speed does not depend on them; texts are made of words of the tokenizer, so that every system reads real input,
tokenising included.

All systems of a cell (a batch of texts of one length) take turns, round after round; medians count. Trunkline is
measured with every number of tasks. Of N separate models, a pass of each of at most four is measured, or of one where
it takes a second, and N passes are counted; the adapters library is measured with as many tasks as it answers in about
a second, and more are counted in proportion: `measured_tasks` in a row says how many were.

Every cell is written as soon as it is there, and with --resume a run that was killed goes on from there. Result:
benchmarks/results/serving_cost.json, docs/serving-cost.md and its plot.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import without_folders
from serving_cost_page import RESULT, write_page
from shapes import SHAPES, branch_of, source_of, texts_of, trunk_of

from trunkline.atomic import write_json
from trunkline.bench import plot
from trunkline.bench.cost import row_of
from trunkline.bench.turns import Times, Took, in_turn
from trunkline.engine.base import Engine, Input, Job
from trunkline.engine.choose import Choice, choose
from trunkline.engine.load import Loader
from trunkline.machine import machine
from trunkline.model.trunk import Trunk

HERE = Path(__file__).resolve().parent
MODELS = 4
"""Most separate models that are held at once."""
HEAVY = 1000.0
"""Milliseconds of one pass from which one separate model stands for all, and of one run of the adapters library."""

Cell = tuple[int, int]
"""Texts in a batch, and tokens of each."""
Name = tuple[str, int]
"""A system, and how many tasks, or which model of several."""
Run = Callable[[], object]


def main() -> None:
    """Measure every cell, write the results after each, and the page at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--dtype", default="auto", help="arithmetic of the engine (auto: as at start-up)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each cell; three rounds at least")
    parser.add_argument("--adapters-python", type=Path, help="python of an environment with the adapters library")
    parser.add_argument("--work", type=Path, default=Path("build/serving_cost"), help="where the base shape is made")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="the docs page (docs/serving-cost.md for the default --out)")
    parser.add_argument("--resume", action="store_true", help="keep the cells that --out has, and measure the others")
    options = parser.parse_args()
    plot.check(options.out.with_suffix(".svg"))  # better now than when all is measured
    found = begun(options)
    for shape in options.shapes:
        done = {(row["batch"], row["tokens"]) for row in found["rows"] if row["shape"] == shape}
        cells = [cell for cell in itertools.product(options.batches, options.tokens) if cell not in done]
        for rows in measure(shape, cells, options, found) if cells else ():
            found["rows"] += rows
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, found)
    write_page(options.out, options.page)


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """The result to go on with: nothing measured yet, or what an earlier run left. Exits where that does not fit."""
    found: dict[str, Any] = {
        "command": " ".join(["python benchmarks/serving_cost.py", *without_folders(sys.argv[1:])]),
        "machine": machine(),
        "grid": {"tasks": sorted(options.tasks), "dtype": options.dtype, "seconds": options.seconds},
        "engines": {},
        "memory": [],
        "rows": [],
    }
    if not (options.resume and options.out.is_file()):
        return found
    left = json.loads(options.out.read_text())
    for name in ("machine", "grid"):
        if left[name] != found[name]:
            sys.exit(f"{options.out} has another {name}, so that it cannot be resumed: {left[name]}, not {found[name]}")
    return {**left, "command": found["command"]}


def measure(
    shape: str, cells: Sequence[Cell], options: argparse.Namespace, found: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each of these cells. Says in `found` which engine it was, and what memory tasks take."""
    trunk = trunk_of(shape, options.work)
    dtype = found["engines"].get(shape, {}).get("dtype", options.dtype)  # what is resumed stays comparable
    choice = choose(trunk, dtype=dtype, device="cpu")
    found["engines"].setdefault(shape, {"engine": choice.engine, "dtype": choice.dtype, "why": choice.why})
    print(shape, choice, file=sys.stderr, flush=True)
    names = tuple(f"task{number}" for number in range(max(options.tasks)))
    loader = Loader(trunk, choice)
    first = loader.engine({names[0]: (names[0], lambda: branch_of(trunk, names[0], 1))})
    first.run([Job(Input("warm"), names[:1])])
    before = resident()
    merged = loader.engine({task: (task, lambda task=task: branch_of(trunk, task, 1)) for task in names})
    merged.run([Job(Input("warm"), names)])
    if len(names) > 1:
        each = {"shape": shape, "tasks": len(names), "mb_per_task": (resident() - before) / (len(names) - 1)}
        found["memory"] = [*(one for one in found["memory"] if one["shape"] != shape), each]
    separate = [full_model(trunk, choice, number) for number in range(min(MODELS, len(names)))]
    eager = Eager(trunk, len(separate))
    backends = dict.fromkeys(("trunkline", "separate"), (choice.engine, choice.dtype))
    with contextlib.ExitStack() as stack:
        python = options.adapters_python
        rival = stack.enter_context(Adapters(python, shape, options.work)) if python else None
        for batch, tokens in cells:
            texts = texts_of(trunk, batch, tokens)
            began = time.perf_counter()
            times, measured = cell(merged, separate, eager, rival, texts, sorted(options.tasks), options.seconds)
            one_pass = times["separate"][1].ms
            print(
                f"{shape} {batch} x {tokens}: {time.perf_counter() - began:.0f} s",
                {system: round(of[max(of)].ms / one_pass, 2) for system, of in times.items()},
                file=sys.stderr,
                flush=True,
            )
            yield [
                {
                    "shape": shape,
                    "tasks": tasks,
                    "batch": batch,
                    "tokens": tokens,
                    "system": system,
                    "backend": backends.get(system, ("torch eager", "float32"))[0],
                    "dtype": backends.get(system, ("torch eager", "float32"))[1],
                    "measured_tasks": min(tasks, measured[system]),
                    **row_of(of[tasks], one_pass),
                }
                for tasks in sorted(options.tasks)
                for system, of in times.items()
            ]


def cell(
    merged: Engine,
    separate: Sequence[Engine],
    eager: Eager,
    rival: Adapters | None,
    texts: list[str],
    counts: Sequence[int],
    seconds: float,
) -> tuple[dict[str, dict[int, Times]], dict[str, int]]:
    """Times of each system by tasks (and of one separate model), and with how many tasks each was measured at most."""
    items = [Input(text) for text in texts]
    pass_of = eager.runs(texts)
    pass_of[0]()
    started = time.perf_counter()
    pass_of[0]()
    ms = 1000 * (time.perf_counter() - started)
    models = 1 if ms > HEAVY else len(separate)
    names = tuple(merged.specs)
    jobs = {tasks: [Job(item, names[:tasks]) for item in items] for tasks in counts}
    runs: dict[Name, Run] = {
        ("trunkline", tasks): lambda asked=asked: merged.run(asked) for tasks, asked in jobs.items()
    }
    runs |= {("separate", number): run for number, run in enumerate(full_runs(separate[:models], items))}
    runs |= {("transformers", number): run for number, run in enumerate(pass_of[:models])}
    few = [tasks for tasks in counts if tasks * ms <= HEAVY] or [counts[0]]
    if rival is not None:
        runs |= {("adapters", tasks): rival.run(tasks, texts) for tasks in few}
    found = in_turn(runs, seconds, warm=1 if ms > HEAVY else 2)
    times = {"trunkline": {tasks: found["trunkline", tasks] for tasks in counts}}
    for system in ("separate", "transformers"):
        passes = [found[system, number] for number in range(models)]
        mean = sum(passes[1:], start=passes[0]) * (1 / models)
        times[system] = {tasks: mean * tasks for tasks in {1, *counts}}
    if rival is not None:
        most = found["adapters", few[-1]]
        times["adapters"] = {tasks: found.get(("adapters", tasks), most * (tasks / few[-1])) for tasks in counts}
    measured = {"trunkline": max(counts), "separate": models, "transformers": models, "adapters": few[-1]}
    return times, measured


def full_model(trunk: Trunk, choice: Choice, number: int) -> Engine:
    """A full model with weights of its own."""
    name = f"full{number}"
    return Loader(trunk, choice).engine({name: (name, lambda: branch_of(trunk, name, 0))})


def full_runs(engines: Sequence[Engine], items: Sequence[Input]) -> list[Run]:
    """One pass of each separate full model."""
    runs: list[Run] = []
    for engine in engines:
        jobs = [Job(item, tuple(engine.specs)) for item in items]
        runs.append(lambda engine=engine, jobs=jobs: engine.run(jobs))
    return runs


class Eager:
    """Separate classifiers in transformers, as its users run them: tokenizer, padding, forward pass in float32."""

    def __init__(self, trunk: Trunk, count: int) -> None:
        from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

        config = trunk.encoder.model.config
        config.num_labels = 3
        torch.manual_seed(0)
        self.models = [AutoModelForSequenceClassification.from_config(config).eval() for _ in range(count)]
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trunk.encoder.reader.tokenizer, pad_token="[PAD]", model_max_length=512
        )

    def runs(self, texts: list[str]) -> list[Run]:
        """One pass of each model."""
        return [lambda model=model: self._run(model, texts) for model in self.models]

    def _run(self, model: Any, texts: list[str]) -> Any:
        with torch.inference_mode():
            return model(**self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.numpy()


class Adapters:
    """The adapters library's parallel composition, in its own environment and process, which waits for its turn."""

    def __init__(self, python: Path, shape: str, work: Path) -> None:
        command = [str(python), str(HERE / "adapters_parallel.py"), str(source_of(shape, work).path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, tasks: int, texts: list[str]) -> Run:
        """A run of so many tasks on these texts."""
        line = json.dumps({"tasks": tasks, "texts": texts}) + "\n"
        return lambda: self._ask(line)

    def _ask(self, line: str) -> Took:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError("the process with the adapters library ended")
        return Took(json.loads(said)["ms"])

    def __enter__(self) -> Adapters:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.process.communicate("", timeout=30)
        self.process.kill()
        self.process.wait()


def resident() -> float:
    """Resident memory of this process in MB, without what is free and only kept for later."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
