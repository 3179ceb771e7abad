"""What the engine adds to the bare trunk: `python benchmarks/engine.py [--data DATA_FOLDER]`.

The chain of one OpenVINO model per layer, in which the engine runs the trunk, against the same trunk as one static
model of one shape; and, where real texts are at hand, the whole engine on them, tokenising and padding included, per
real token. Timed in turn, medians. Result: benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving_cost import branch_of, trunk_of
from torch import Tensor, nn

from trunkline.atomic import write_json
from trunkline.engine.base import Input, Job
from trunkline.engine.choose import choose
from trunkline.engine.load import Loader
from trunkline.engine.planned import PlannedEngine
from trunkline.engine.runtime import ov
from trunkline.model.encoders import Encoder
from trunkline.pipeline.costs import machine

RESULT = Path(__file__).resolve().parent / "results" / "engine.json"
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
    parser.add_argument("--shapes", nargs="+", default=["minilm", "base"], choices=["minilm", "base"])
    parser.add_argument("--texts", type=int, default=512, help="real texts in one run")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", type=Path, default=Path("build/serving_cost"), help="where the base shape is made")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        rows.append(measure(shape, options))
        print(json.dumps(rows[-1]), file=sys.stderr)
    command = " ".join(["python benchmarks/engine.py", *(["--data DATA_FOLDER"] if options.data else [])])
    write_json(options.out, {"command": command, "machine": machine(), "rows": rows})


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
    times = in_turn(runs, options.rounds)
    per_token = times["static"] / (ROWS * TOKENS)
    return {
        "shape": shape,
        "dtype": choice.dtype,
        "threads": backend.threads,
        "batch": ROWS,
        "tokens": TOKENS,
        "static_ms": times["static"],
        "chain_ms": times["chain"],
        "chain_over_static_throughput": times["static"] / times["chain"],
        "real": {
            name: {
                "texts": options.texts,
                "tokens": work.tokens,
                "padding": work.padded / work.tokens - 1,
                "ms": times[name],
                # The branch and one trunk layer less: the trunk stops at the fork.
                "over_static_per_real_token": per_token * work.tokens / times[name],
            }
            for name, work in lengths.items()
        },
    }


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


def in_turn(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, all in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
