"""Tiny classifiers as transformers saves them, for tests of teachers from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config, tiny_tokenizer


def tiny_classifier(
    folder: Path,
    labels: Sequence[str],
    family: str = "bert",
    *,
    tokens: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a classifier of `family` with random weights and return its folder."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    tokenizer = tiny_tokenizer(family)
    options = {**tiny_config(family, layers=2, vocabulary=tokenizer.get_vocab_size()), **config}
    names = dict(enumerate(labels))
    made = AutoConfig.for_model(
        family, **options, id2label=names, label2id={name: place for place, name in names.items()}
    )
    of: Any = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = of.from_config(made)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)  # wide enough for answers to differ
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
