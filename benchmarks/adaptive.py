"""What exits save and cost: `python benchmarks/adaptive.py DATA --work FOLDER`.

`single` is FastBERT's own setting: a branch of all of the encoder's layers over its embeddings, an exit after each
layer but the last. `merged` is a model of six tasks with two layers each over a trunk of four, exits where they pay,
asked for all tasks at once and for each alone. Per task and dial: the metric on the reported split through the engine,
mean layers of a row, and time of the same requests in turn at this dial and at speed 0. What speed a keep stands for
was found on `valid`. A killed run goes on where it was.

Result: benchmarks/results/adaptive.json, docs/adaptive.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from adaptive_page import page
from data_projects import with_values, write_project
from rich.console import Console

from trunkline.atomic import write_json, write_text
from trunkline.engine.base import Engine, Input, Job, Output
from trunkline.engine.choose import Choice, choose
from trunkline.engine.gpu import GpuBuilder
from trunkline.engine.load import Loader
from trunkline.engine.planned import PlannedEngine
from trunkline.engine.timing import uncached
from trunkline.machine import machine
from trunkline.model.branch import Branch, load_branch
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk
from trunkline.pipeline.assemble import inputs_of
from trunkline.pipeline.execute import BRANCH
from trunkline.pipeline.progress import Terminal
from trunkline.pipeline.project import Project
from trunkline.project.config import DistillSettings, ExitSettings
from trunkline.project.metrics import evaluate
from trunkline.project.speed import Dial
from trunkline.project.tasks import Kind

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "adaptive.json"
PAGE = HERE.parent / "docs" / "adaptive.md"
SINGLE = ("agnews", "dbpedia", "yelp_polarity", "sst2", "qnli")
MERGED = ("agnews", "dbpedia", "yelp_polarity", "sst2", "snips_intent", "clinc150")
SMALL = ("yelp_polarity",)
SEEDS = (13, 14, 15)
DIALS = (*(Dial(speed=speed) for speed in (0.1, 0.5, 0.8)), *(Dial(keep=keep) for keep in (0.995, 0.99, 0.98)))
BATCHES = (32, 1)
ROUNDS = 7
TIMED = {32: 20, 1: 100}
"""Requests that are timed, by their rows."""
RATE = {6: 1e-4}
"""Learning rate of a branch of so many layers, where it is not that of the task's file."""


@dataclass(frozen=True)
class Ready:
    """A task with its branch for each seed, and the rows that it is judged on."""

    name: str
    branches: dict[int, Branch]
    rows: Any
    metric: str
    inputs: list[Input]


def main() -> None:
    """Train what is not there yet, measure, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds fastbert/, glue/ and utterance/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--settings", nargs="+", choices=("single", "merged"), default=("single", "merged"))
    parser.add_argument("--tasks", nargs="+", help="some of the tasks, instead of all of a setting's")
    parser.add_argument("--train-only", action="store_true", help="measure nothing, as where others use the machine")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--page", type=Path, default=PAGE, help="page")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    choice: Choice | None = None
    for setting in options.settings:
        names = [task for task in (SINGLE if setting == "single" else MERGED) if task in (options.tasks or (task,))]
        project = prepared(options, setting, names)
        ready = [trained(project, name, setting) for name in names]
        if not options.train_only:
            trunk = Trunk(Encoder.load(project.source.path), project.source.fingerprint)
            choice = choice or choose(trunk, "openvino", "auto", "cpu")
            rows += (single if setting == "single" else merged)(trunk, choice, ready)
    if options.train_only:
        return
    found = {
        "command": "python benchmarks/adaptive.py DATA_FOLDER --work FOLDER",
        "machine": machine(),
        "rounds": ROUNDS,
        "requests": {str(batch): count for batch, count in TIMED.items()},
        "rows": rows,
    }
    write_json(options.out, found)
    write_text(options.page, page(found))


def prepared(options: argparse.Namespace, setting: str, names: Sequence[str]) -> Project:
    """The project of a setting: its own layers, and exits after every layer or where they pay."""
    folder = options.work / setting
    write_project(options.data, folder, names, "--rows", "0", "--pair", "joint")
    project = Project.load(folder)
    own = project.source.depth if setting == "single" else 2
    exits = ExitSettings(enabled=True, depths=list(range(1, own)) if setting == "single" else [])
    tasks = {}
    for name, settings in project.files.tasks.items():
        rate = RATE.get(own, settings.tune.learning_rate)
        tune = with_values(settings.tune, layers=[own], learning_rate=rate)
        tasks[name] = with_values(settings, tune=tune, distill=DistillSettings(layers=[]), exits=exits)
    return project.over(replace(project.files, tasks=tasks))


def trained(project: Project, name: str, setting: str) -> Ready:
    """A task's branches, three seeds of them for small tasks in the paper's setting."""
    branches = {}
    for seed in SEEDS if setting == "single" and name in SMALL else SEEDS[:1]:
        settings = with_values(project.files.settings, seed=seed)
        mine = project.over(replace(project.files, settings=settings, tasks={name: project.task(name)}))
        [tuned] = [stage for stage in mine.graph.stages.values() if "/tune/" in stage.id]
        with Terminal(Console(stderr=True)) as show:
            workshop = mine.train([f"{tuned.id}/exits"], show=show)
        entry = mine.store.get(mine.graph.keys[f"{tuned.id}/exits"])
        branches[seed] = load_branch(entry.folder / BRANCH, workshop.trunk.encoder)
    data = workshop.data(name)
    rows = data.reported[data.main_split]
    return Ready(name, branches, rows, project.task(name).primary_metric, inputs_of(rows))


def engines(trunk: Trunk, choice: Choice, branches: dict[str, Branch]) -> dict[str, Engine]:
    """The engine that was chosen for this CPU, and the same plan run by torch."""
    sources = {task: (task, partial(branches.__getitem__, task)) for task in branches}
    builder = GpuBuilder(trunk, device="cpu", dtype="float32")
    parts = {task: builder.part(branch) for task, branch in branches.items()}
    torch = PlannedEngine(trunk.encoder.reader, builder.backend(parts))
    found = {f"openvino {choice.dtype}": Loader(trunk, choice).engine(sources), "torch float32": torch}
    return {name: uncached(engine) for name, engine in found.items()}


def single(trunk: Trunk, choice: Choice, ready: Sequence[Ready]) -> list[dict[str, Any]]:
    """Rows of the paper's setting."""
    rows = []
    for task in ready:
        by_seed = [engines(trunk, choice, {task.name: branch}) for branch in task.branches.values()]
        for backend in by_seed[0]:
            full = [quality(one[backend], task, Dial())[0] for one in by_seed]
            for dial in DIALS:
                found = [quality(one[backend], task, dial) for one in by_seed]
                for batch in BATCHES:
                    ratios = [times(one[backend], [task], [task.name], {task.name: dial}, batch) for one in by_seed]
                    rows.append(
                        {
                            "task": task.name,
                            "setting": "single",
                            **asked(dial),
                            "backend": backend,
                            "batch": batch,
                            "quality": [score for score, _ in found],
                            "quality_full": full,
                            "mean_layers_ratio": statistics.mean(layers for _, layers in found),
                            "time_ratio": statistics.median(ratios),
                            "seeds": list(task.branches),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def merged(trunk: Trunk, choice: Choice, ready: Sequence[Ready]) -> list[dict[str, Any]]:
    """Rows of the merged model: every task asked alone, and all tasks at once of texts of every task."""
    rows = []
    names = [task.name for task in ready]
    branches = {task.name: task.branches[SEEDS[0]] for task in ready}
    for backend, engine in engines(trunk, choice, branches).items():
        for dial in DIALS:
            scores = {task.name: quality(engine, task, dial) for task in ready}
            full = {task.name: quality(engine, task, Dial())[0] for task in ready}
            for batch in BATCHES:
                for name in [*names, "all"]:
                    texts = [task for task in ready if name in (task.name, "all")]
                    tasks = names if name == "all" else [name]
                    rows.append(
                        {
                            "task": name,
                            "setting": "merged",
                            **asked(dial),
                            "backend": backend,
                            "batch": batch,
                            "quality": [statistics.mean(scores[task][0] for task in tasks)],
                            "quality_full": [statistics.mean(full[task] for task in tasks)],
                            # Asked together, the trunk carries a text as deep as the last of them needs it.
                            "mean_layers_ratio": None if name == "all" else scores[name][1],
                            "time_ratio": times(engine, texts, tasks, dict.fromkeys(tasks, dial), batch),
                            "seeds": [SEEDS[0]],
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def asked(dial: Dial) -> dict[str, float | None]:
    """A dial as the result file has it."""
    return {"speed": None if dial.keep is not None else dial.speed, "keep": dial.keep}


def jobs(engine: Engine, inputs: Sequence[Input], tasks: Sequence[str], dials: dict[str, Dial]) -> list[Job]:
    """What the engine is asked."""
    speeds = tuple((task, dials[task].of(engine.specs[task].speeds)) for task in tasks)
    return [Job(item, tuple(tasks), tuple(pair for pair in speeds if pair[1] > 0)) for item in inputs]


def quality(engine: Engine, task: Ready, dial: Dial) -> tuple[float, float]:
    """The metric on the reported split, and the mean share of the layers that a row went through."""
    spec = engine.specs[task.name]
    found, _ = engine.run(jobs(engine, task.inputs, [task.name], {task.name: dial}), batch_size=32)
    outputs = [one[task.name] for one in found]
    assert all(isinstance(one, Output) for one in outputs)
    logits: Any = [spec.calibrated(one.logits, one.depth) for one in outputs]
    values = logits if spec.kind is Kind.TAGGING else np.stack(logits)
    scores = evaluate(spec.kind, spec.labels, spec.positive, task.rows, values)
    return scores[task.metric], statistics.mean(one.depth for one in outputs) / spec.depth


def times(engine: Engine, ready: Sequence[Ready], tasks: Sequence[str], dials: dict[str, Dial], batch: int) -> float:
    """Time of the same requests at these dials, as a fraction of speed 0: the median over rounds of both in turn."""
    count = TIMED[batch]
    rng = np.random.default_rng(0)
    inputs = [item for task in ready for item in task.inputs]
    picks = rng.permutation(len(inputs))[: count * batch]
    requests = [[inputs[i] for i in picks[start : start + batch]] for start in range(0, len(picks), batch)]
    off = dict.fromkeys(tasks, Dial())
    prepared = [(jobs(engine, one, tasks, off), jobs(engine, one, tasks, dials)) for one in requests]
    ratios = []
    for number in range(ROUNDS + 1):
        spent = [0.0, 0.0]
        for pair in prepared:
            for side in (0, 1) if number % 2 else (1, 0):
                started = time.perf_counter()
                engine.run(pair[side])
                spent[side] += time.perf_counter() - started
        if number:  # the first round builds kernels for new shapes
            ratios.append(spent[1] / spent[0])
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
