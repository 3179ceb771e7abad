"""Texts to measure with: made of common words, as many tokens long as asked, or read from a file.

Knows words and tokenizers; nothing of what is measured.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.engine.base import Input, ItemError
from trunkline.engine.inputs import read_inputs
from trunkline.errors import UsageError

if TYPE_CHECKING:  # importing it for real costs the tokenizers' start
    from trunkline.model.reader import TextReader

# Each is one token of the vocabularies of BERT, so that a text of n words has n + 2 tokens.
_WORDS = """
the of and in to was he is as for on with that it his by at from her she you had an were but be this are not my they one
which or have him me first all also their has up who out been when after there into new two its time would no what about
said we over then other so more can if like back them only some could where just during before do made school through
than now years most world may between down well three year while will later city under around did such being used state
people part know against your many second university both national these don known off way until how even get head war
since then day each long work high life still game old great name last house season group right left great place water
"""
WORDS = tuple(sorted(set(_WORDS.split())))
_MOST = 100_000


def made_texts(
    tokens: int, count: int, chance: random.Random, *, pairs: bool = False, words: Sequence[str] = WORDS
) -> list[Input]:
    """Texts of `tokens` tokens with two special ones, as BERT's vocabularies have them; with `pairs`, two in each."""

    def made() -> str:
        return " ".join(chance.choices(words, k=max(tokens - 2, 1)))

    return [Input(made(), made() if pairs else None) for _ in range(count)]


def single_tokens(reader: TextReader) -> tuple[str, ...]:
    """The common words that are one token each in the middle of a text of this tokenizer; all of them where few are."""

    def lengths(times: int) -> list[int]:
        texts = [" ".join(["the", *[word] * times]) for word in WORDS]
        return [len(row.ids) for row in reader.tokenize(texts, offsets=False)]

    once, twice = lengths(1), lengths(2)
    found = tuple(word for word, one, two in zip(WORDS, once, twice, strict=True) if two - one == 1)
    return found if len(found) >= 20 else WORDS


def read_texts(file: Path) -> list[Input]:
    """Texts, and pairs where it has them, of a jsonl, csv, tsv or parquet file with the columns text and text_pair.

    At most the first 100,000. Raises UsageError where there are none, or for a line that cannot be read.
    """
    found: list[Input] = []
    for item in read_inputs(file, sys.stdin):
        if isinstance(item, ItemError):
            raise UsageError(f"{file}: {item.message}")
        found.append(item)
        if len(found) == _MOST:
            break
    if not found:
        raise UsageError(f"{file} holds no texts")
    return found
