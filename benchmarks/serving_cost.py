"""What N tasks for one text cost: `python benchmarks/serving_cost.py`.

One run on one machine: Trunkline (one trunk pass and N single-layer [CLS] branches at the last fork) against N separate
full models on the same engine and in the same dtype, N models in transformers as they come, and, where the adapters
library is installed in another environment, its parallel composition. Weights are random, as speed does not depend on
them; texts are made of words of the tokenizer, so that every system reads real input, tokenising included.

All systems of a cell are timed in turn, round after round; medians count. Result: benchmarks/results/serving_cost.json,
docs/serving-cost.md and its plot.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trunkline.atomic import write_json
from trunkline.engine.base import Input, Job
from trunkline.engine.choose import choose
from trunkline.engine.load import Loader
from trunkline.model.branch import Branch, BranchSpec, Reading, new_branch
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.model.source import resolve
from trunkline.model.trunk import Trunk
from trunkline.pipeline.costs import machine
from trunkline.project.tasks import Kind

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "serving_cost.json"
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SEPARATE = 4
"""Most separate models that are held at once; more of them are timed as so many passes of these in turn."""

Run = Callable[[], object]


def main() -> None:
    """Measure every cell and write the results after each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["minilm", "base"], choices=["minilm", "base"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--dtype", default="auto", help="arithmetic of the engine (auto: as at start-up)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each cell")
    parser.add_argument("--adapters-python", type=Path, help="python of an environment with the adapters library")
    parser.add_argument("--work", type=Path, default=Path("build/serving_cost"), help="where the base shape is made")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    for shape in options.shapes:
        for row in measure(shape, options, memory):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
        write_json(
            options.out,
            {
                "command": " ".join(["python benchmarks/serving_cost.py", *sys.argv[1:]]),
                "machine": machine(),
                "memory": memory,
                "rows": rows,
            },
        )


def trunk_of(shape: str, work: Path) -> Trunk:
    """The packaged trunk, or one of BERT-base's shape with random weights and the same tokenizer."""
    packaged = resolve("minilm", None, Path())
    if shape == "minilm":
        return Trunk(Encoder.load(packaged.path), packaged.fingerprint)
    folder = work / "base"
    if not folder.is_dir():
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        small = json.loads((packaged.path / "config.json").read_text())
        model = BertModel(BertConfig(**BASE, vocab_size=small["vocab_size"]), add_pooling_layer=False)
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes((packaged.path / "tokenizer.json").read_bytes())
    found = resolve(str(folder.resolve()), None, Path())
    return Trunk(Encoder.load(found.path), found.fingerprint)


def branch_of(trunk: Trunk, task: str, layers: int) -> Branch:
    """A classification branch of three labels that reads [CLS]."""
    spec = BranchSpec(
        task=task,
        kind=Kind.CLASSIFICATION,
        labels=("a", "b", "c"),
        metric="accuracy",
        fork=trunk.depth - layers,
        layers=layers,
        reading=Reading.SINGLE,
        pooling=Pooling.CLS,
        max_tokens=256,
        width=trunk.width,
        outputs=3,
        trunk=trunk.fingerprint,
    )
    return new_branch(spec, trunk.encoder).eval()


def texts_of(trunk: Trunk, batch: int, tokens: int) -> list[str]:
    """Different texts of exactly so many tokens."""
    reader = trunk.encoder.reader
    words = [word for word in reader.tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower()]
    words = [word for word in sorted(words) if len(reader.tokenize([word])[0]) == 3]
    rng = np.random.default_rng(tokens)
    return [" ".join(rng.choice(words, tokens - 2)) for _ in range(batch)]


def measure(shape: str, options: argparse.Namespace, memory: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of one shape."""
    trunk = trunk_of(shape, options.work)
    choice = choose(trunk, dtype=options.dtype, device="cpu")
    print(choice, file=sys.stderr)
    most = max(options.tasks)
    branches = {f"task{i}": branch_of(trunk, f"task{i}", 1) for i in range(most)}
    before = resident()
    loader = Loader(trunk, choice)
    merged = loader.engine({task: (task, lambda task=task: branches[task]) for task in branches})
    cells = list(itertools.product(options.batches, options.tokens))
    merged.run([Job(Input("warm"), tuple(branches))])
    memory.append({"shape": shape, "tasks": most, "mb_per_task": (resident() - before) / most})
    separate = []
    for i in range(min(SEPARATE, most)):
        own = Loader(trunk, choice)
        name = f"full{i}"
        separate.append(own.engine({name: (name, lambda name=name: branch_of(trunk, name, 0))}))
    eager = Eager(trunk, min(SEPARATE, most))
    for batch, tokens in cells:
        texts = texts_of(trunk, batch, tokens)
        items = [Input(text) for text in texts]
        one = {tasks: [Job(item, tuple(list(branches)[:tasks])) for item in items] for tasks in options.tasks}
        runs: dict[tuple[str, int], Run] = {("one_pass", 1): full_runs(separate, items)[0]}
        runs |= {("trunkline", tasks): lambda jobs=jobs: merged.run(jobs) for tasks, jobs in one.items()}
        runs |= {("separate", i): run for i, run in enumerate(full_runs(separate, items))}
        runs |= {("transformers", i): run for i, run in enumerate(eager.runs(texts))}
        times = in_turn(runs, options.seconds)
        one_pass = times.pop(("one_pass", 1))
        per_model = {
            system: statistics.mean(times.pop((system, i)) for i in range(len(separate)))
            for system in ("separate", "transformers")
        }
        for tasks in options.tasks:
            found = {"trunkline": times["trunkline", tasks]}
            found |= {system: tasks * ms for system, ms in per_model.items()}
            if options.adapters_python:
                found["adapters"] = adapters(options.adapters_python, shape, tasks, batch, tokens)
            for system, ms in found.items():
                fast = system in ("trunkline", "separate")
                yield {
                    "shape": shape,
                    "tasks": tasks,
                    "batch": batch,
                    "tokens": tokens,
                    "system": system,
                    "backend": choice.engine if fast else "torch eager",
                    "dtype": choice.dtype if fast else "float32",
                    "ms": round(ms, 3),
                    "ratio_to_one_pass": round(ms / one_pass, 4),
                }


def full_runs(engines: Sequence[Any], items: Sequence[Input]) -> list[Run]:
    """One pass of each separate full model."""
    runs = []
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


def adapters(python: Path, shape: str, tasks: int, batch: int, tokens: int) -> float:
    """Milliseconds of the adapters library's parallel composition, in its own environment and process."""
    script = HERE / "adapters_parallel.py"
    given = [shape, str(tasks), str(batch), str(tokens)]
    done = subprocess.run([str(python), str(script), *given], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["ms"])


def in_turn(runs: dict[tuple[str, int], Run], seconds: float) -> dict[tuple[str, int], float]:
    """Median milliseconds of each run, all in turn, for about so many seconds (five rounds at least)."""
    for run in runs.values():
        run()
        run()  # a shape that is new builds its kernels at the first, and caches fill at the second
    times: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in times.items()}


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
