"""How inputs become batches of token rows.

Isolation rests on this module: which rows stand in a batch, and so its shape, depends on the inputs alone and never
on the tasks that are asked for or that exist. Rows of different slots ("text", "pair", "joint") or limits never share
a batch. It knows token rows; nothing of trunk states or branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trunkline.engine.base import Input, ItemError, fault
from trunkline.errors import EncoderError
from trunkline.model.reader import TextReader
from trunkline.model.tokens import TokenRow

Ids = tuple[tuple[int, ...], tuple[int, ...]]  # the ids and types of a row: all that the trunk sees of it


@dataclass(frozen=True)
class Group:
    """What the trunk reads of one batch of inputs in one slot: its distinct token rows, (B, T) once padded.

    Equal texts are one row: a query stands once beside its passages. Groups with equal `ids` are equal batches, so that
    one pass of the trunk serves them all.
    """

    ids: tuple[Ids, ...]  # (B,) distinct
    rows: tuple[TokenRow, ...]  # (B,)
    row_of: dict[int, int]  # input -> row; inputs that cannot be read in this slot are absent
    tokens: dict[int, TokenRow]  # input -> its own token row, whose offsets may differ from those of an equal row
    faults: dict[int, ItemError]  # input -> why it is absent


def batches(inputs: Sequence[Input | ItemError], batch_size: int) -> list[list[int]]:
    """Cut positions of inputs into batches of similar length, the shortest first.

    Length in UTF-8 bytes, which follows tokens closely in any script and needs no tokenizer: a limit on tokens
    belongs to a task, and no task may move an input to another batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    order = sorted(range(len(inputs)), key=lambda i: _length(inputs[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _length(item: Input | ItemError) -> int:
    if isinstance(item, ItemError):
        return 0
    return len(item.text.encode(errors="replace")) + len((item.text_pair or "").encode(errors="replace"))


def read_group(
    reader: TextReader, inputs: Sequence[Input | ItemError], batch: Sequence[int], slot: str, max_tokens: int
) -> Group:
    """The token rows of one slot for the inputs at the positions in `batch`, cut to `max_tokens`."""
    faults: dict[int, ItemError] = {}
    texts: dict[int, tuple[str, str | None]] = {}
    for i in batch:
        item = inputs[i]
        reason = fault(item, (slot,))
        if reason is not None:
            faults[i] = reason
        elif isinstance(item, Input):
            texts[i] = texts_of(item, slot)
    tokens: dict[int, TokenRow] = {}
    distinct: dict[Ids, TokenRow] = {}
    for i, row in zip(texts, tokenize(reader, list(texts.values()), max_tokens), strict=True):
        if isinstance(row, ItemError):
            faults[i] = row
        else:
            tokens[i] = row
            distinct.setdefault(_ids(row), row)
    position = {ids: row for row, ids in enumerate(distinct)}
    row_of = {i: position[_ids(row)] for i, row in tokens.items()}
    return Group(tuple(distinct), tuple(distinct.values()), row_of, tokens, faults)


def texts_of(item: Input, slot: str) -> tuple[str, str | None]:
    """What the tokenizer gets of an input in one slot."""
    if slot == "joint":
        return item.text, item.text_pair
    return (item.text if slot == "text" else item.text_pair or ""), None


def _ids(row: TokenRow) -> Ids:
    return tuple(row.ids), tuple(row.types)


def tokenize(
    reader: TextReader, texts: Sequence[tuple[str, str | None]], max_tokens: int, *, offsets: bool = True
) -> Sequence[TokenRow | ItemError]:
    """One row per text or pair; where the tokenizer refuses a batch, each is tried alone: only the culprit fails."""
    if not texts:
        return []
    try:
        pairs = [pair for _, pair in texts if pair is not None]
        return reader.tokenize([text for text, _ in texts], pairs or None, max_tokens, offsets=offsets)
    except EncoderError:
        raise  # the limit does not fit the encoder, whatever the texts
    except Exception as error:  # the tokenizers library raises bare Exception
        if len(texts) == 1:
            return [ItemError(f"the text cannot be tokenised: {error}")]
        return [row for text in texts for row in tokenize(reader, [text], max_tokens, offsets=offsets)]
