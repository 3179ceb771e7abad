"""What a branch is worth by where it forks and what it is made of: `python benchmarks/map.py DATA --work FOLDER`.

For every task: forks with numbers of own layers, trained on the labels over the published trunk, beside full
fine-tuning on the same rows; pairs in both readings; and, for branches of no or one layer at the upper forks, other
poolings and a random start. Left out is what earlier looks found to be worse and dearer than something that is there:
low forks, and many layers over a pair read apart. Small sets have three seeds of full fine-tuning and of the branches
that `AGAIN` names. Train rows and epochs are capped: figures compare with each other, not with other tables. `--times`
measures the milliseconds, on a quiet machine; without it those of the last time are kept.

Result: benchmarks/results/map.json, docs/map.md and its heat maps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from cells import Bench, Cell, figures, run_all, shortened
from data_projects import write_project
from map_page import RESULT, write_page

from trunkline.atomic import write_json
from trunkline.engine import timing
from trunkline.engine.choose import choose
from trunkline.machine import machine
from trunkline.model.branch import Reading
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk
from trunkline.pipeline.project import Project

ROWS = 2_500
EPOCHS = {"clinc150": 8.0}
"""Epochs of tasks that need more than 5."""
SMALL = ("cola", "mrpc", "rte", "stsb")
PAIRS = ("mrpc", "rte", "stsb", "qnli", "qqp", "mnli", "wikiqa")
SINGLE = ("cola", "sst2", "snips_intent", "snips_slots", "clinc150", "agnews")
TAGGING = ("snips_slots",)
DEPTH = 6
FORKS = (
    {0: (3, 4, 5, 6), 1: (2, 3, 4, 5), 2: (2, 3, 4), 3: (2, 3)},
    {0: (3, 4, 5, 6), 1: (3, 4, 5), 2: (3, 4)},
)
"""By own layers, of whatever is read as one and of pairs read apart."""
AGAIN = {1: (3, 4, 5), 2: (4,)}
UPPER = (4, 5)
"""Forks of what is tried at few: other poolings, and at the first of them a random start."""
SEEDS = (13, 14, 15)
BATCH, TOKENS, REPEATS = 32, 32, 40


def main() -> None:
    """Train what is not trained yet, and write result, page and plots of all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/, utterance/, fastbert/ and qa/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--tasks", nargs="+", default=[*SINGLE, *PAIRS], help="some of the tasks")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"most train rows of a task ({ROWS:,})")
    parser.add_argument("--times", action="store_true", help="measure times too, on a quiet machine")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--page", type=Path, help="page, instead of docs/map.md or beside the result")
    options = parser.parse_args()
    layers = [str(depth) for depth in range(1, DEPTH + 1)]
    write_project(
        options.data, options.work, options.tasks, "--rows", str(options.rows), "--distill", "--tune", *layers
    )
    project = shortened(Project.load(options.work), EPOCHS)
    bench = Bench(project, options.work)

    def train(cell: Cell) -> dict[str, Any]:
        trained = bench.train(cell)
        return {**figures(bench.material(cell.task), trained), "shape": shape_of(cell, trained.branch.spec.pooling)}

    def say(line: str) -> None:
        print(line, flush=True)

    rows = []
    for task in options.tasks:
        rows += run_all(cells_of(task), options.work / "map.jsonl", train, say, lambda cell: bench.about(cell.task))
    old = json.loads(options.out.read_text()) if options.out.exists() else {}
    # Tasks that were not asked for keep their cells, as long as they were trained on as many rows.
    others = [one for one in old.get("cells", ()) if one["task"] not in options.tasks]
    kept = others if old.get("train_rows") == options.rows else []
    times = measured(project, rows) if options.times else old.get("times", {})
    command = "python benchmarks/map.py DATA_FOLDER --work FOLDER --times"
    found = {
        "command": command,
        "machine": machine(),
        "train_rows": options.rows,
        "times": times,
        "cells": [*kept, *(with_time(row, times) for row in rows)],
    }
    write_json(options.out, found)
    write_page(options.out, options.page)


def cells_of(task: str) -> Iterator[Cell]:
    """The cells of a task, seed by seed."""
    readings = ("joint", "separate") if task in PAIRS else (None,)
    seeds = SEEDS if task in SMALL else SEEDS[:1]
    for seed, reading in product(seeds, readings):
        yield Cell(task, 0, DEPTH, reading, "full", "cls", seed)
        for layers, forks in FORKS[reading == "separate"].items():
            for fork in forks:
                if seed == SEEDS[0] or fork in AGAIN.get(layers, ()):
                    yield Cell(task, fork, layers, reading, "trunk", "cls", seed)
    for reading in readings:
        yield Cell(task, UPPER[0], 1, reading, "random", "cls", SEEDS[0])
        if reading == "separate" or task in TAGGING:
            continue  # their heads read in one way only
        for pooling, layers, fork in product(("mean", "concat"), (0, 1), UPPER):
            yield Cell(task, fork, layers, reading, "trunk", pooling, SEEDS[0])


def shape_of(cell: Cell, pooling: str) -> list[Any]:
    """All of a branch that its time depends on: reading, pooling, own layers. Where one position is read, the last
    layer of a full model is as cheap as that of a branch.
    """
    layers = int(pooling == "cls") if cell.init == "full" else cell.layers
    return [cell.pair or "single", str(pooling), layers]


def measured(project: Project, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of the trunk to each depth, by slot, and of every shape of branch."""
    trunk = Trunk(Encoder.load(project.source.path), project.source.fingerprint)
    choice = choose(trunk, "auto", device="cpu")
    shapes = sorted({tuple(row["shape"]) for row in rows} | {("single", "cls", 1), ("joint", "cls", 1)})
    timed = {shape: timing.Shape(trunk.depth - shape[2], shape[2], shape[0], shape[1]) for shape in shapes}
    times = timing.measure(trunk, choice, timed.values(), batch=BATCH, tokens=TOKENS, repeats=REPEATS)
    return {
        "batch": BATCH,
        "tokens": TOKENS,
        "engine": choice.engine,
        "dtype": choice.dtype,
        "trunk": times["trunk"],
        "branch": {"/".join(map(str, shape)): times["branch"][one.id][0] for shape, one in timed.items()},
    }


def with_time(row: dict[str, Any], times: dict[str, Any]) -> dict[str, Any]:
    """The row with the milliseconds of its trunk and of its branch, as far as they were measured."""
    reading, pooling, layers = row.pop("shape")
    if not times:
        return {**row, "ms": None}
    depth = DEPTH - layers if row["init"] == "full" else row["fork"]
    trunk = sum(times["trunk"][slot][depth] for slot in Reading(reading).slots)
    own = times["branch"].get(f"{reading}/{pooling}/{layers}")
    return {**row, "ms": None if own is None else trunk + own}


if __name__ == "__main__":
    main()
