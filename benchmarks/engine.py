"""What the engine adds to the bare trunk: `python benchmarks/engine.py [--data DATA_FOLDER]`.

The chain of one OpenVINO model per layer, in which the engine runs the trunk, against the same trunk as one static
model of one shape; and, where real texts are at hand, the whole engine on them, tokenising and padding included, per
real token. Timed in turn, medians. Result: benchmarks/results/engine.json, docs/engine-benchmark.md and its plot.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import without_folders
from engine_page import RESULT, write_page
from shapes import SHAPES, branch_of, trunk_of
from torch import Tensor, nn

from trunkline.atomic import write_json
from trunkline.bench import plot
from trunkline.bench.turns import Times, in_turn
from trunkline.engine.base import Input, Job
from trunkline.engine.choose import choose
from trunkline.engine.load import Loader
from trunkline.engine.planned import PlannedEngine
from trunkline.engine.runtime import ov
from trunkline.machine import machine
from trunkline.model.encoders import Encoder

TEXTS = {"snips": ("utterance/snips/train.jsonl", False), "qnli": ("glue/qnli/train.jsonl", True)}
ROWS, TOKENS = 32, 32


class Whole(nn.Module):
    """A trunk as one module."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        """The last states."""
        states = self.encoder.embed(ids, types, mask)
        context = self.encoder.context(mask, states.dtype)
        for index, layer in enumerate(self.encoder.layers):
            states = self.encoder.run(layer, index, states, context)
        return states


def main() -> None:
    """Measure both shapes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds glue/ and utterance/")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--texts", type=int, default=512, help="real texts in one run")
    parser.add_argument("--seconds", type=float, default=30.0, help="time for each shape; three rounds at least")
    parser.add_argument("--work", type=Path, default=Path("build/serving_cost"), help="where the base shape is made")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="the docs page (docs/engine-benchmark.md for the default --out)")
    options = parser.parse_args()
    plot.check(options.out.with_suffix(".svg"))  # better now than when all is measured
    command = " ".join(["python benchmarks/engine.py", *without_folders(sys.argv[1:])])
    rows = []
    for shape in options.shapes:
        rows.append(measure(shape, options))
        print(json.dumps(rows[-1]), file=sys.stderr)
        write_json(options.out, {"command": command, "machine": machine(), "rows": rows})
    write_page(options.out, options.page)


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """One shape: the chain against the static model, and real texts."""
    trunk = trunk_of(shape, options.work)
    choice = choose(trunk, engine="openvino")
    branch = branch_of(trunk, "task", 1)
    engine = Loader(trunk, choice).engine({"task": ("task", lambda: branch)})
    assert isinstance(engine, PlannedEngine)
    backend = engine.backend
    ids = np.random.default_rng(0).integers(1000, 9000, (ROWS, TOKENS))
    types, mask = np.zeros_like(ids), np.ones((ROWS, TOKENS), dtype=np.bool_)
    static = static_model(trunk.encoder, choice.dtype, backend.threads)

    def chain() -> None:
        states = backend.embed(ids, types, mask)
        for index in range(trunk.depth):
            states = backend.layer(index, states, mask)

    runs: dict[str, Callable[[], object]] = {"static": lambda: static([ids, types, mask]), "chain": chain}
    lengths = {}
    for name, texts in real(options).items():
        jobs = [Job(Input(text, pair), ("task",)) for text, pair in texts]
        runs[name] = lambda jobs=jobs: engine.run(jobs)
        lengths[name] = engine.run(jobs)[1]
    times = in_turn(runs, options.seconds)
    per_token = times["static"] * (1 / (ROWS * TOKENS))
    return {
        "shape": shape,
        "dtype": choice.dtype,
        "threads": backend.threads,
        "batch": ROWS,
        "tokens": TOKENS,
        **spread("static_ms", times["static"]),
        **spread("chain_ms", times["chain"]),
        "chain_over_static_throughput": times["static"].ms / times["chain"].ms,
        "real": {
            name: {
                "texts": options.texts,
                "tokens": work.tokens,
                "padding": work.padded / work.tokens - 1,
                **spread("ms", times[name]),
                # The branch and one trunk layer less: the trunk stops at the fork.
                "over_static_per_real_token": per_token.ms * work.tokens / times[name].ms,
            }
            for name, work in lengths.items()
        },
    }


def spread(name: str, found: Times) -> dict[str, float]:
    """The median under this name, and the middle half."""
    return {name: found.ms, f"{name}_low": found.low, f"{name}_high": found.high}


def static_model(encoder: Encoder, dtype: str, threads: int) -> Any:
    """The whole trunk as one compiled model of one shape."""
    ids = torch.ones(ROWS, TOKENS, dtype=torch.int64)
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    shapes = [([ROWS, TOKENS], ov.Type.i64), ([ROWS, TOKENS], ov.Type.i64), ([ROWS, TOKENS], ov.Type.boolean)]
    with torch.no_grad():
        model = ov.convert_model(Whole(encoder), example_input=(ids, ids, mask), input=shapes)
    hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    return ov.Core().compile_model(model, "CPU", settings)


def real(options: argparse.Namespace) -> dict[str, list[tuple[str, str | None]]]:
    """Real texts by set; empty without a data folder. QNLI's two texts stand in one."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for name, (path, pair) in TEXTS.items() if options.data else ():
        rows = [json.loads(line) for line in (options.data / path).read_text().splitlines()[: options.texts]]
        texts = [row.get("text") or " ".join(row["tokens"]) for row in rows]
        found[name] = [
            (f"{text} {row['text_pair']}" if pair else text, None) for text, row in zip(texts, rows, strict=True)
        ]
    return found


if __name__ == "__main__":
    main()
