"""Ask a classifier that was fine-tuned elsewhere, with its own tokenizer, its own layers and its own head.

Beside `encoders` and `families` the only module that touches transformers: here a whole model is run, not layers. Reads
safetensors and JSON, never pickle, remote code or the network. Knows texts and outputs; not what the outputs mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trunkline.errors import EncoderError
from trunkline.model.encoders import build, fill, read_tokenizer
from trunkline.model.families import Model
from trunkline.model.foreign import ForeignClassifier
from trunkline.model.reader import TextReader
from trunkline.model.source import files
from trunkline.model.tokens import TokenBatch, TokenRow


class Classifier:
    """A foreign classifier in fp32 and eval mode, on `device`."""

    def __init__(self, source: ForeignClassifier, device: str = "cpu") -> None:
        """Load it. Raises EncoderError where its files do not make a whole model."""
        self.source = source
        self.device = device
        self.reader = TextReader(read_tokenizer(source.path), source.shape.max_positions, source.shape.pad_id)
        self._model = _load(source).to(device)
        known = self._model.get_input_embeddings().num_embeddings
        if self.reader.tokenizer.get_vocab_size() > known:
            raise EncoderError(
                f"{source.path}: the tokenizer knows {self.reader.tokenizer.get_vocab_size()} tokens, "
                f"the weights only {known}"
            )
        reads = inspect.signature(self._model.forward).parameters
        self._typed = "token_type_ids" in reads and getattr(self._model.config, "type_vocab_size", 0) > 1

    @torch.no_grad()
    def outputs(self, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
        """What it says of these rows, in one pass: (B, outputs), or (B, T, outputs) where it scores tokens."""
        batch: TokenBatch = self.reader.collate(rows).to(self.device)
        types = {"token_type_ids": batch.types} if self._typed else {}
        found = self._model(input_ids=batch.ids, attention_mask=batch.mask.long(), **types).logits
        values: NDArray[np.float32] = found.float().cpu().numpy()
        return values


def _load(source: ForeignClassifier) -> Model:
    """The transformers model with its head. Its weights must be all there: what is missing would be noise."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    auto: Any = AutoModelForTokenClassification if source.per_token else AutoModelForSequenceClassification
    model = build(source.shape, auto)
    fill(model, files(source.path), source.path, "classifier")
    return model.eval()
