"""Pairs a second, where texts stand in many pairs and where not: `python benchmarks/pairs.py DATA_FOLDER`.

Each query of WikiQA's train split is asked of passages drawn from a pool, so that each passage stands in several pairs,
put in order as `trunkline predict --out` does. A branch that reads the two texts apart needs each text's states once;
one that reads them jointly, and a full model, read every pair. All are asked the same pairs in turn, on the engine that
serves, over the packaged trunk's shape; where no text stands in two pairs, a number is put behind each. Weights are
random, on which speed does not depend; quality by reading is what `map.py` is about.

Result: benchmarks/results/pairs.json; docs/shards.md quotes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from shapes import trunk_of

from trunkline.atomic import write_json
from trunkline.engine.base import Engine, Input, Job
from trunkline.engine.choose import choose
from trunkline.engine.load import Loader
from trunkline.engine.timing import compare
from trunkline.machine import machine
from trunkline.model.branch import BranchSpec, Reading, new_branch
from trunkline.model.heads import Pooling
from trunkline.model.trunk import Trunk
from trunkline.pipeline.scoring import WINDOW
from trunkline.project.tasks import Kind

RESULT = Path(__file__).resolve().parent / "results" / "pairs.json"
TASK = "relevance"
MODELS = {
    "apart": (3, 1, Reading.SEPARATE),
    "apart, no text in two pairs": (3, 1, Reading.SEPARATE),
    "apart, pooled": (6, 0, Reading.SEPARATE),
    "jointly, one layer": (5, 1, Reading.JOINT),
    "jointly, three layers": (3, 3, Reading.JOINT),
    "full model": (0, 6, Reading.JOINT),
}
"""Fork, own layers and reading."""
NEW = "apart, no text in two pairs"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds qa/wikiqa")
    parser.add_argument("--passages", type=int, default=200, help="in the pool")
    parser.add_argument("--queries", type=int, default=100, help="each asked of so many passages")
    parser.add_argument("--each", type=int, default=20, help="passages that a query is asked of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    trunk = trunk_of("minilm", Path())
    choice = choose(trunk, engine="openvino")
    pairs = drawn(options.data, options.passages, options.queries, options.each)
    runs: dict[str, Callable[[], object]] = {}
    for name, (fork, layers, reading) in MODELS.items():
        branch = new_branch(spec_of(trunk, fork, layers, reading), trunk.encoder).eval()
        engine = Loader(trunk, choice).engine({TASK: (TASK, lambda branch=branch: branch)})
        runs[name] = partial(ask, engine, numbered(pairs) if name == NEW else pairs)
    times = compare(runs, options.rounds)
    rows = []
    for name, (fork, layers, reading) in MODELS.items():
        row = {"model": name, "fork": fork, "layers": layers, "reading": reading.value}
        rows.append({**row, "pairs_per_s": round(1000 * len(pairs) / times[name], 1)})
        print(rows[-1], file=sys.stderr)
    write_json(
        options.out,
        {
            "command": "python benchmarks/pairs.py DATA_FOLDER "
            + f"--passages {options.passages} --queries {options.queries} --each {options.each}",
            "machine": machine(),
            "engine": f"openvino {choice.dtype}",
            "pairs": len(pairs),
            "texts": len({item.text for item in pairs} | {item.text_pair for item in pairs}),
            "rounds": options.rounds,
            "rows": rows,
        },
    )


def drawn(data: Path, passages: int, queries: int, each: int) -> list[Input]:
    """Pairs by passage, then query: every query with passages of the pool, drawn without replacement."""
    lines = (data / "qa" / "wikiqa" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    read: list[dict[str, Any]] = [json.loads(line) for line in lines]
    rng = np.random.default_rng(0)
    pool = rng.permutation(sorted({row["text_pair"] for row in read}))[:passages]
    asking = rng.permutation(sorted({row["text"] for row in read}))[:queries]
    pairs = [(str(passage), str(query)) for query in asking for passage in rng.permutation(pool)[:each]]
    return [Input(query, passage) for passage, query in sorted(pairs)]


def numbered(pairs: Sequence[Input]) -> list[Input]:
    """The same pairs, but none of their texts like another."""
    return [Input(f"{pair.text} {number}", f"{pair.text_pair} {number}") for number, pair in enumerate(pairs)]


def spec_of(trunk: Trunk, fork: int, layers: int, reading: Reading) -> BranchSpec:
    """A relevance branch of this shape."""
    return BranchSpec(
        task=TASK,
        kind=Kind.RELEVANCE,
        labels=("no", "yes"),
        positive="yes",
        metric="map",
        fork=fork,
        layers=layers,
        reading=reading,
        pooling=Pooling.PAIR if reading is Reading.SEPARATE else Pooling.CLS,
        max_tokens=128,
        width=trunk.width,
        outputs=2,
        trunk=trunk.fingerprint,
    )


def ask(engine: Engine, pairs: Sequence[Input]) -> None:
    """All pairs, as many at once as a shard's scorer asks; what earlier rounds left is forgotten."""
    engine.forget()
    for start in range(0, len(pairs), WINDOW):
        engine.run([Job(item, (TASK,)) for item in pairs[start : start + WINDOW]])


if __name__ == "__main__":
    main()
