"""The masked-language loss, by which an encoder learns from text without labels.

BERT's own (Devlin et al. 2019, section 3.1): of 15 % of the words' tokens, 80 % become the mask token, 10 % a random
one, 10 % stay, and all of them are to be told. The output layer is the embedding matrix itself, under a transform that
starts afresh. Knows token rows and an encoder; nothing of tasks.

Notation: B rows, T tokens, H width, E width of embeddings, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trunkline.errors import EncoderError
from trunkline.model.encoders import Encoder
from trunkline.model.tokens import TokenRow, collate
from trunkline.training.loop import BatchRows
from trunkline.training.states import GRANULE

SHARE = 0.15
MASKED, RANDOM = 0.8, 0.1
NAMES = ("[MASK]", "<mask>")


class MaskedWords(nn.Module):
    """The loss of `encoder` on some of `rows`, masked anew each time; holds the transform and is trained with it.

    Raises EncoderError where the tokenizer has no mask token.
    """

    def __init__(self, encoder: Encoder, rows: Sequence[TokenRow]) -> None:
        super().__init__()
        known = [encoder.reader.tokenizer.token_to_id(name) for name in NAMES]
        found = next((id for id in known if id is not None), None)
        if found is None:
            raise EncoderError(f"this tokenizer has no mask token ({' or '.join(NAMES)}), which adapt.masked needs")
        self._encoder = [encoder]  # in a list: its weights are somebody else's to train
        self._rows, self._mask_id = rows, found
        embeddings = encoder.model.get_input_embeddings()
        self._words = encoder.reader.tokenizer.get_vocab_size()
        self.transform = nn.Sequential(
            nn.Linear(encoder.width, embeddings.embedding_dim), nn.GELU(), nn.LayerNorm(embeddings.embedding_dim)
        )
        self.bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.asarray([len(row) for row in self._rows])

    def forward(self, picks: BatchRows) -> Tensor:
        """The mean loss over the masked tokens of these rows; draws from torch's global generator."""
        encoder = self._encoder[0]
        embeddings = encoder.model.get_input_embeddings().weight  # (V, E)
        rows = [self._rows[int(pick)] for pick in picks]
        batch = collate(rows, encoder.reader.pad_id, multiple=GRANULE)
        width = batch.ids.shape[1]
        words = torch.tensor([[s is not None for s in row.sequence] + [False] * (width - len(row)) for row in rows])
        told = words & (torch.rand(words.shape) < SHARE)  # (B, T)
        told[torch.arange(len(rows)), (words * torch.rand(words.shape)).argmax(1)] |= words.any(1)  # one each at least
        how = torch.rand(words.shape)
        ids = batch.ids.masked_fill(told & (how < MASKED), self._mask_id)
        drawn = torch.randint(self._words, words.shape)
        ids = torch.where(told & (how >= MASKED) & (how < MASKED + RANDOM), drawn, ids)
        given = type(batch)(ids, batch.types, batch.mask).to(embeddings.device)
        states = encoder.hidden_states(given)[-1][told.to(embeddings.device)]  # (masked, H)
        logits = F.linear(self.transform(states), embeddings, self.bias).float()  # (masked, V)
        return F.cross_entropy(logits, batch.ids[told].to(logits.device))
