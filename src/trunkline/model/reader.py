"""Texts to token rows: a fast tokenizer with the limits of its encoder.

Knows text and tokens; nothing of weights.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from trunkline.errors import EncoderError
from trunkline.model import tokens
from trunkline.model.tokens import TokenBatch, TokenRow

# Truncation is a setting of the tokenizer, so setting it and using it must not interleave between threads.
_TOKENIZING = threading.Lock()


class TextReader:
    """A tokenizer, the longest input that its encoder takes (`max_positions` tokens), and its padding id."""

    def __init__(self, tokenizer: Tokenizer, max_positions: int, pad_id: int) -> None:
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.pad_id = pad_id

    def tokenize(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_tokens: int = 128,
        *,
        offsets: bool = True,
    ) -> list[TokenRow]:
        """Tokenise texts, or texts with their pairs, to at most `max_tokens` each; the longer text is cut first.

        Without `offsets`, which only tagging reads, rows have ids and types alone, in two thirds of the time. Raises
        EncoderError where `max_tokens` is more than the encoder has positions for, or leaves no room for text.
        """
        room = self.tokenizer.num_special_tokens_to_add(pairs is not None)
        if not room < max_tokens <= self.max_positions:
            raise EncoderError(
                f"max_tokens = {max_tokens}: this encoder reads between {room + 1} and {self.max_positions} tokens"
            )
        firsts = [_encodable(text) for text in texts]
        inputs = firsts if pairs is None else list(zip(firsts, map(_encodable, pairs), strict=True))
        with _TOKENIZING:
            self.tokenizer.enable_truncation(max_tokens, strategy="longest_first")
            encode = self.tokenizer.encode_batch if offsets else self.tokenizer.encode_batch_fast
            encodings = encode(inputs)
        if not offsets:
            return [TokenRow(row.ids, row.type_ids) for row in encodings]
        return [
            TokenRow(row.ids, row.type_ids, _without_space(row.offsets, row.sequence_ids, sources), row.sequence_ids)
            for row, sources in zip(encodings, zip(texts, pairs or texts, strict=True), strict=True)
        ]

    def collate(self, rows: Sequence[TokenRow]) -> TokenBatch:
        """Pad `rows` on the right with the padding id."""
        return tokens.collate(rows, self.pad_id)

    def save(self, path: Path) -> None:
        """Write tokenizer.json, without the limit of whoever used it last."""
        with _TOKENIZING:
            self.tokenizer.no_truncation()
            self.tokenizer.save(str(path))


def _encodable(text: str) -> str:
    """The text with lone surrogates, which JSON can smuggle in and no tokenizer takes, as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _without_space(
    offsets: list[tuple[int, int]], sequence: list[int | None], texts: tuple[str, str]
) -> list[tuple[int, int]]:
    """Offsets that begin at a token's first letter: SentencePiece counts the space before a word as part of it."""
    trimmed = []
    for (start, end), source in zip(offsets, sequence, strict=True):
        while source is not None and start < end and texts[source][start].isspace():
            start += 1
        trimmed.append((start, end))
    return trimmed
