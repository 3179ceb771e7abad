"""The two shapes that benchmarks measure: a trunk of each, single-layer [CLS] branches on it, and texts for it.

"minilm" is the packaged trunk. "base" has the shape of BERT-base and the same tokenizer, with random weights, on which
speed does not depend. Knows shapes; nothing of what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from trunkline.model.branch import Branch, BranchSpec, Reading, new_branch
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.model.source import Source, resolve
from trunkline.model.trunk import Trunk
from trunkline.project.tasks import Kind

SHAPES = {
    "minilm": "The packaged trunk's shape (6 layers, 384 wide)",
    "base": "BERT-base shape (12 layers, 768 wide)",
}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def source_of(shape: str, work: Path) -> Source:
    """Where the encoder of a shape is on disk; "base" is made in the folder `work` where it is not there yet."""
    packaged = resolve("minilm", None, Path())
    if shape == "minilm":
        return packaged
    folder = work / "base"
    if not folder.is_dir():
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        small = json.loads((packaged.path / "config.json").read_text())
        model = BertModel(BertConfig(**_BASE, vocab_size=small["vocab_size"]), add_pooling_layer=False)
        scratch = work / ".base"
        model.save_pretrained(scratch)
        (scratch / "tokenizer.json").write_bytes((packaged.path / "tokenizer.json").read_bytes())
        scratch.rename(folder)
    return resolve(str(folder.resolve()), None, Path())


def trunk_of(shape: str, work: Path) -> Trunk:
    """The trunk of a shape."""
    found = source_of(shape, work)
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
