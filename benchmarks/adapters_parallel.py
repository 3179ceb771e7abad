"""N tasks by the adapters library's `Parallel` composition: `PYTHON benchmarks/adapters_parallel.py ENCODER`.

N bottleneck adapters ("seq_bn", the library's default) with a classification head of three labels each, on a trunk of
the shape of the encoder in the folder ENCODER, with random weights: in float32 and eager, as its users run it,
tokenising included. Each line on stdin, {"tasks": 8, "texts": ["...", ...]}, is run once and answered by a line with
the milliseconds that it took, {"ms": 12.3}; so `serving_cost.py` can let it take its turn with all else. By hand:

    echo '{"tasks": 2, "texts": ["a text", "another one"]}' | PYTHON benchmarks/adapters_parallel.py ENCODER

Runs in an environment of its own, with the version of transformers that the library wants, and knows nothing of
Trunkline. That environment, as it was for the committed figures (torch 2.13 comes first, in a build for CPUs):

    pip install torch==2.13.0 && pip install adapters==1.3.0
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from adapters import BertAdapterModel
from adapters.composition import Parallel
from transformers import BertConfig, PreTrainedTokenizerFast


def main() -> None:
    """Answer every line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder with config.json and tokenizer.json")
    tasks = Tasks(parser.parse_args().encoder)
    for line in sys.stdin:
        asked = json.loads(line)
        tasks.grow(asked["tasks"])
        started = time.perf_counter()
        tasks.run(asked["tasks"], asked["texts"])
        print(json.dumps({"ms": 1000 * (time.perf_counter() - started)}), flush=True)


class Tasks:
    """A trunk with as many tasks as were asked for so far."""

    def __init__(self, encoder: Path) -> None:
        config = BertConfig.from_pretrained(encoder)
        torch.manual_seed(0)
        self.model = BertAdapterModel(config).eval()
        self.names: list[str] = []
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(encoder / "tokenizer.json"), pad_token="[PAD]", model_max_length=512
        )

    def grow(self, count: int) -> None:
        """Have at least so many tasks, and exactly so many active."""
        while len(self.names) < count:
            self.names.append(f"task{len(self.names)}")
            self.model.add_adapter(self.names[-1], config="seq_bn")
            self.model.add_classification_head(self.names[-1], num_labels=3)
            self.model.eval()
        names = self.names[:count]
        self.model.active_adapters = Parallel(*names) if count > 1 else names[0]
        self.model.active_head = names if count > 1 else names[0]

    def run(self, count: int, texts: Sequence[str]) -> None:
        """All tasks of all texts."""
        with torch.inference_mode():
            batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            found = self.model(**batch)
            logits = [one.logits for one in found] if count > 1 else [found.logits]
        if [tuple(one.shape) for one in logits] != [(len(texts), 3)] * count:
            raise RuntimeError(f"{count} tasks gave {[tuple(one.shape) for one in logits]}")


if __name__ == "__main__":
    main()
