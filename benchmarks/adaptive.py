"""What exits save and cost: `python benchmarks/adaptive.py DATA --work FOLDER`.

`single` is FastBERT's own setting: a branch of all of the encoder's layers over its embeddings, an exit after each
layer but the last. `merged` is a model of six tasks with two layers each over a trunk of four, exits where they pay,
asked for all tasks at once and for each alone. Per task and dial: the metric on the reported split through the engine,
mean layers of a row, and time of the same requests in turn at this dial and at speed 0. What speed a keep stands for
was found on `valid`. For reference, fewer of the same layers without exits: distilled from the whole branch, as
DistilBERT is, and trained on the labels alone. Chinese is read by a random encoder, so that only its mechanics are
shown. A killed run goes on where it was, and `--tasks` puts its rows in the place of what the result has of them.

Result: benchmarks/results/adaptive.json, docs/adaptive.md with its plot.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptive_page import RESULT, write_page
from asked import calibrated, engine_of, jobs, outputs, requests, score
from cells import Bench, Cell, figures, run_all
from data_projects import with_values, write_project
from kept import with_rows
from rich.console import Console
from transformers import BertConfig, BertModel, BertTokenizerFast

from trunkline.atomic import write_json
from trunkline.engine.base import Engine, Input
from trunkline.engine.choose import Choice, choose
from trunkline.machine import machine
from trunkline.model.branch import Branch, Reading, load_branch
from trunkline.model.encoders import Encoder
from trunkline.model.source import Source
from trunkline.model.trunk import Trunk
from trunkline.pipeline.assemble import inputs_of
from trunkline.pipeline.execute import BRANCH
from trunkline.pipeline.progress import Silent, Terminal
from trunkline.pipeline.project import Project
from trunkline.pipeline.stages import StageKind
from trunkline.project.speed import Dial
from trunkline.project.stage_settings import DistillSettings, ExitSettings

SINGLE = ("agnews", "dbpedia", "yelp_polarity", "sst2", "qnli", "zh_book_review")
MERGED = ("agnews", "dbpedia", "yelp_polarity", "sst2", "snips_intent", "clinc150")
SMALL = ("yelp_polarity", "sst2")
CHINESE = "zh_book_review"
CHINESE_ROWS, CHINESE_TOKENS = 5000, 64
"""Of its train rows, and of a text: its encoder knows nothing, so that more would show no more."""
FEWER = (1, 3)
"""Layers of the references."""
SEEDS = (13, 14, 15)
DIALS = (
    *(Dial(speed=speed) for speed in (0.1, 0.4, 0.5, 0.8)),
    *(Dial(keep=keep) for keep in (0.995, 0.99, 0.98)),
)
BATCHES = (32, 1)
BY_TORCH = ("sst2",)
"""Tasks of the paper's setting that the engine torch runs too, at the larger batch."""
TORCH = Choice("torch", "float32", "cpu", "to compare")
COMMAND = "python benchmarks/adaptive.py DATA_FOLDER --work FOLDER"
ROUNDS = 5
TIMED = {32: 12, 1: 40}
"""Requests that are timed, by their rows."""
RATE = {6: 1e-4}
"""Learning rate of a branch of so many layers, where it is not that of the task's file."""


@dataclass(frozen=True)
class Ready:
    """A task with its branch for each seed, the rows that it is judged on, and by layers its distilled students and the
    metric of branches trained on labels, where it has those.
    """

    name: str
    source: Source
    branches: dict[int, Branch]
    rows: Any
    metric: str
    inputs: list[Input]
    train_rows: int
    students: dict[int, Branch] = field(default_factory=dict)
    truncated: dict[int, float] = field(default_factory=dict)

    def trunk(self) -> Trunk:
        """The trunk under its branches."""
        return Trunk(Encoder.load(self.source.path), self.source.fingerprint)


def main() -> None:
    """Train what is not there yet, measure, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds fastbert/, glue/ and utterance/, with ../vocab/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--settings", nargs="+", choices=("single", "merged"), default=("single", "merged"))
    parser.add_argument("--tasks", nargs="+", help="some of the tasks, instead of all of a setting's")
    parser.add_argument("--train-rows", type=int, default=0, help="most rows of a task that are trained on (0: all)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="at most so many seeds of a small task")
    parser.add_argument("--no-references", action="store_true", help="without the models that have fewer layers")
    parser.add_argument("--train-only", action="store_true", help="measure nothing, as where others use the machine")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--page", type=Path, help="the docs page (docs/adaptive.md for the default --out)")
    options = parser.parse_args()
    choice: Choice | None = None
    for setting in options.settings:
        names = [task for task in (SINGLE if setting == "single" else MERGED) if task in (options.tasks or (task,))]
        ready = [
            trained(
                prepared(options, setting, [name], references=not options.no_references), name, setting, options.seeds
            )
            for name in names
        ]
        if options.train_only:
            continue
        choice = choice or choose(ready[0].trunk(), "openvino", "auto", "cpu")
        for found in map(partial(single, choice), ready) if setting == "single" else [merged(choice, ready)]:
            command = " ".join([COMMAND, *given(options, setting, found[0]["task"])])
            write([{**row, "command": command, "machine": machine()} for row in found], options)


def given(options: argparse.Namespace, setting: str, task: str) -> list[str]:
    """The arguments that rows of a setting depend on; in FastBERT's each task stands alone."""
    fewer = ["--train-rows", str(options.train_rows)] if options.train_rows else []
    fewer += ["--seeds", str(options.seeds)] if setting == "single" and options.seeds < len(SEEDS) else []
    fewer += ["--tasks", task] if setting == "single" else []
    return ["--settings", setting, *fewer, *(["--no-references"] if options.no_references else [])]


def write(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Put these rows in the place of those of the same tasks, and write result and page."""
    order = [*(("single", task) for task in SINGLE), *(("merged", task) for task in (*MERGED, "all"))]
    rows = with_rows(options.out, rows, "setting", "task")
    found = {
        "command": COMMAND,
        "machine": machine(),
        "rounds": ROUNDS,
        "requests": {str(batch): count for batch, count in TIMED.items()},
        "rows": sorted(rows, key=lambda row: order.index((row["setting"], row["task"]))),
    }
    write_json(options.out, found)
    write_page(options.out, options.page)


def prepared(options: argparse.Namespace, setting: str, names: Sequence[str], *, references: bool = True) -> Project:
    """The project of a setting: its own layers, exits after every layer or where they pay, and in FastBERT's setting
    students as references.
    """
    folder = options.work / (setting if CHINESE not in names else "chinese")
    rows = CHINESE_ROWS if CHINESE in names else options.train_rows
    write_project(options.data, folder, names, "--rows", str(rows), "--pair", "joint")
    if CHINESE in names:
        random_encoder(options.data.parent / "vocab" / "bert-base-chinese-vocab.txt", folder / "encoder")
    project = Project.load(folder)
    if CHINESE in names:
        project = project.over(replace(project.files, settings=with_values(project.files.settings, encoder="encoder")))
    own = project.source.depth if setting == "single" else 2
    exits = ExitSettings(enabled=True, depths=list(range(1, own)) if setting == "single" else [])
    tasks = {}
    for name, settings in project.files.tasks.items():
        tune = with_values(settings.tune, layers=[own], learning_rate=RATE.get(own, settings.tune.learning_rate))
        students = list(FEWER) if references and setting == "single" and name != CHINESE else []
        most = CHINESE_TOKENS if name == CHINESE else settings.max_tokens
        distill = with_values(DistillSettings(layers=students), learning_rate=tune.learning_rate)
        tasks[name] = with_values(settings, tune=tune, distill=distill, exits=exits, max_tokens=most)
    return project.over(replace(project.files, tasks=tasks))


def random_encoder(vocabulary: Path, folder: Path) -> None:
    """Write an encoder of six layers that has learned nothing, over this vocabulary."""
    if folder.exists():
        return
    torch.manual_seed(SEEDS[0])
    tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    size = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=6, **size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trained(project: Project, name: str, setting: str, seeds: int = len(SEEDS)) -> Ready:
    """A task's branches, one for each of the first `seeds` for small tasks in the paper's setting, and there its
    references.
    """
    branches = {}
    for seed in SEEDS[: seeds if setting == "single" and name in SMALL else 1]:
        settings = with_values(project.files.settings, seed=seed)
        mine = project.over(replace(project.files, settings=settings, tasks={name: project.task(name)}))
        [tuned] = [stage.id for stage in mine.graph.of(name, StageKind.TUNE)]
        branches[seed] = branch_of(mine, f"{tuned}/speeds")
    data = mine.train([f"{name}/prepare"], show=Silent()).data(name)
    rows = data.reported[data.main_split]
    metric = project.task(name).primary_metric
    ready = Ready(name, project.source, branches, rows, metric, inputs_of(rows), len(data.train))
    if not project.task(name).distill.layers:
        return ready
    first = project.over(replace(project.files, tasks={name: project.task(name)}))
    students = {stage.fields["layers"]: stage.id for stage in first.graph.of(name, StageKind.DISTILL)}
    bench = Bench(project, project.store.work)
    pair = "joint" if branches[SEEDS[0]].spec.reading is Reading.JOINT else None
    cells = [Cell(name, 0, layers, pair, "trunk", "cls", SEEDS[0]) for layers in students]
    found = run_all(
        cells,
        project.root / "truncated.jsonl",
        lambda cell: figures(bench.material(name), bench.train(cell)),
        print,
        lambda cell: bench.about(cell.task),
    )
    return replace(
        ready,
        students={layers: branch_of(first, id) for layers, id in students.items()},
        truncated={one["layers"]: one["dev"] for one in found},
    )


def branch_of(project: Project, stage: str) -> Branch:
    """The branch that a stage made, trained if need be."""
    with Terminal(Console(stderr=True)) as show:
        workshop = project.train([stage], show=show)
    return load_branch(project.store.get(project.graph.keys[stage]).folder / BRANCH, workshop.trunk.encoder)


def single(choice: Choice, task: Ready) -> list[dict[str, Any]]:
    """Rows of a task in the paper's setting, with references."""
    trunk = task.trunk()
    alone = [{task.name: branch} for branch in task.branches.values()]
    by_seed = [engine_of(trunk, choice, one) for one in alone]
    rows = leaving(task, f"openvino {choice.dtype}", by_seed, BATCHES)
    if task.name in BY_TORCH:
        rows += leaving(task, "torch float32", [engine_of(trunk, TORCH, one) for one in alone], BATCHES[:1])
    students = {layers: engine_of(trunk, choice, {task.name: one}) for layers, one in task.students.items()}
    return rows + fewer(task, f"openvino {choice.dtype}", by_seed[0], students)


def leaving(task: Ready, backend: str, by_seed: Sequence[Engine], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of one task with exits, on one backend."""
    rows = []
    full = [quality(engine, task, Dial())[0] for engine in by_seed]
    for dial in DIALS:
        found = [quality(engine, task, dial) for engine in by_seed]
        for batch in batches:
            by_round = [times(Side(engine, (task.name,), dial), [task], batch) for engine in by_seed]
            rows.append(
                {
                    "task": task.name,
                    "setting": "single",
                    "model": "exits",
                    **dialled(dial),
                    "backend": backend,
                    "batch": batch,
                    "quality": [score for score, _ in found],
                    "quality_full": full,
                    "mean_layers_ratio": statistics.mean(layers_of(left) for _, left in found),
                    "left": np.mean([left for _, left in found], axis=0).tolist(),
                    "time_ratio": statistics.median(map(either_first, by_round)),
                    "time_by_round": [ratio for ratios in by_round for ratio in ratios],
                    "seeds": list(task.branches),
                    "train_rows": task.train_rows,
                }
            )
            print(rows[-1], flush=True)
    return rows


def fewer(task: Ready, backend: str, whole: Engine, students: dict[int, Engine]) -> list[dict[str, Any]]:
    """Rows of models with fewer layers and no exits, beside the whole branch of the first seed."""
    rows = []
    full = quality(whole, task, Dial())[0]
    for layers, engine in students.items():
        scores = {"student": quality(engine, task, Dial())[0], "truncated": task.truncated[layers]}
        for batch in BATCHES:
            other = Side(whole, (task.name,), Dial())
            ratios = times(Side(engine, (task.name,), Dial()), [task], batch, other)
            for model, reached in scores.items():
                rows.append(
                    {
                        "task": task.name,
                        "setting": "single",
                        "model": model,
                        **dialled(None),
                        "backend": backend,
                        "batch": batch,
                        "quality": [reached],
                        "quality_full": [full],
                        "mean_layers_ratio": layers / task.branches[SEEDS[0]].spec.depth,
                        "left": None,
                        "time_ratio": either_first(ratios),
                        "time_by_round": ratios,
                        "seeds": [SEEDS[0]],
                        "train_rows": task.train_rows,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def merged(choice: Choice, ready: Sequence[Ready]) -> list[dict[str, Any]]:
    """Rows of the merged model: every task asked alone, and all tasks at once of texts of every task."""
    rows = []
    names = [task.name for task in ready]
    engine = engine_of(ready[0].trunk(), choice, {task.name: task.branches[SEEDS[0]] for task in ready})
    full = {task.name: quality(engine, task, Dial())[0] for task in ready}
    for dial in DIALS:
        scores = {task.name: quality(engine, task, dial) for task in ready}
        for batch in BATCHES:
            for name in [*names, "all"]:
                texts = [task for task in ready if name in (task.name, "all")]
                tasks = names if name == "all" else [name]
                ratios = times(Side(engine, tuple(tasks), dial), texts, batch)
                rows.append(
                    {
                        "task": name,
                        "setting": "merged",
                        "model": "exits",
                        **dialled(dial),
                        "backend": f"openvino {choice.dtype}",
                        "batch": batch,
                        "quality": [statistics.mean(scores[task][0] for task in tasks)],
                        "quality_full": [statistics.mean(full[task] for task in tasks)],
                        # Asked together, the trunk carries a text as deep as the last of them needs it.
                        "mean_layers_ratio": None if name == "all" else layers_of(scores[name][1]),
                        "left": None if name == "all" else scores[name][1],
                        "time_ratio": either_first(ratios),
                        "time_by_round": ratios,
                        "seeds": [SEEDS[0]],
                        "train_rows": sum(task.train_rows for task in texts),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def dialled(dial: Dial | None) -> dict[str, float | None]:
    """A dial as the result file has it; None for a model without exits."""
    if dial is None:
        return {"speed": None, "keep": None}
    return {"speed": None if dial.keep is not None else dial.speed, "keep": dial.keep}


def quality(engine: Engine, task: Ready, dial: Dial) -> tuple[float, list[float]]:
    """The metric on the reported split, and the share of rows that was answered after each number of layers, from 0."""
    spec, said = engine.specs[task.name], outputs(engine, task.inputs, task.name, dial)
    left = np.bincount([one.depth for one in said], minlength=spec.depth + 1) / len(said)
    return score(spec, task.metric, task.rows, calibrated(spec, said)), left.tolist()


def layers_of(left: Sequence[float]) -> float:
    """The mean share of the layers that a row went through."""
    return float(np.average(range(len(left)), weights=left)) / (len(left) - 1)


@dataclass(frozen=True)
class Side:
    """One of two that are compared: an engine, what it is asked for, and how."""

    engine: Engine
    tasks: tuple[str, ...]
    dial: Dial

    def run(self, inputs: Sequence[Input]) -> Callable[[], object]:
        """What is timed."""
        asked = jobs(self.engine, inputs, self.tasks, self.dial)
        return lambda: self.engine.run(asked)


def times(side: Side, ready: Sequence[Ready], batch: int, other: Side | None = None) -> list[float]:
    """Time of the same requests, as a fraction of what another side takes, by default the same one at speed 0: by round
    of both in turn, the other first in the first.
    """
    other = other or replace(side, dial=Dial())
    inputs = [item for task in ready for item in task.inputs]
    prepared = [(other.run(one), side.run(one)) for one in requests(inputs, batch, TIMED[batch])]
    ratios = []
    for number in range(ROUNDS + 1):
        spent = [0.0, 0.0]
        for pair in prepared:
            for place in (0, 1) if number % 2 else (1, 0):
                started = time.perf_counter()
                pair[place]()
                spent[place] += time.perf_counter() - started
        if number:  # the first round builds kernels for new shapes
            ratios.append(spent[1] / spent[0])
    return ratios


def either_first(ratios: Sequence[float]) -> float:
    """The geometric mean of two medians: of the rounds that began with one side, and of those that began with the
    other. What runs second finds the text of a single request in the caches, which is worth up to a tenth.
    """
    return statistics.geometric_mean(statistics.median(ratios[first::2]) for first in (0, 1))


if __name__ == "__main__":
    main()
