"""The five kinds of task: their label space, targets, metrics' names, and how logits become an answer.

Knows numpy only. Does not read files, and does not know what produced the logits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trunkline.project.rows import Rows

Offsets = list[tuple[int, int]]


class Kind(StrEnum):
    """What a task says about a text."""

    CLASSIFICATION = "classification"
    """Exactly one label of C; the labels exclude each other."""
    MULTILABEL = "multilabel"
    """Any number of C labels, none included; a label applies when its probability is at least 0.5."""
    REGRESSION = "regression"
    """One number, in the unit of the training scores."""
    TAGGING = "tagging"
    """One BIO tag per word, read back as spans with character offsets."""
    RELEVANCE = "relevance"
    """Whether `text_pair` answers `text`; judged within groups that share a query."""


TARGET = {
    Kind.CLASSIFICATION: "label",
    Kind.MULTILABEL: "labels",
    Kind.REGRESSION: "score",
    Kind.TAGGING: "tags",
    Kind.RELEVANCE: "label",
}
"""The column that holds what a task learns."""

METRICS: dict[Kind, tuple[str, ...]] = {
    Kind.CLASSIFICATION: ("accuracy", "macro_f1", "matthews", "f1", "accuracy_f1"),
    Kind.MULTILABEL: ("micro_f1", "macro_f1", "subset_accuracy"),
    Kind.REGRESSION: ("pearson_spearman", "pearson", "spearman"),
    Kind.TAGGING: ("entity_f1", "token_accuracy"),
    Kind.RELEVANCE: ("auc", "map", "mrr", "accuracy"),
}
"""What `metric` may name: for all of them more is better. (`mae` is reported beside and cannot be chosen.)"""

DEFAULT_METRIC: dict[Kind, str] = {kind: names[0] for kind, names in METRICS.items()}

NEEDS_POSITIVE = frozenset({"f1", "accuracy_f1"})
"""Metrics of a two-label classification that are about one of the two labels."""

MULTILABEL_THRESHOLD = 0.5

_POSITIVE = frozenset(
    {"1", "true", "yes", "y", "t", "positive", "pos", "relevant", "match", "duplicate", "equivalent", "entailment"}
    | {"same", "similar", "related", "correct"}
)
_NEGATIONS = ("not", "non", "no", "un", "ir", "dis")


def recognise_positive(labels: Sequence[str]) -> str | None:
    """The one of two labels that plainly means "yes" ("1", "relevant", the X of X and not_X); None when unclear."""
    if len(labels) != 2:
        return None
    plain = {label: label.strip().casefold() for label in labels}
    for label, other in (tuple(labels), tuple(labels)[::-1]):
        bare = plain[label].lstrip("_- ")
        if bare and any(plain[other] in {f"{no}{gap}{bare}" for gap in ("", "_", "-", " ")} for no in _NEGATIONS):
            return label
    hits = [label for label in labels if plain[label] in _POSITIVE]
    return hits[0] if len(hits) == 1 else None


def order_labels(kind: Kind, seen: Iterable[str]) -> tuple[str, ...]:
    """Inferred labels in a fixed order: numbers by value, all else by text; for tags "O" first, then type by type.

    The tag set is closed under the prefixes that occur: a type seen only as B-x in train may well continue as I-x.
    """
    found = set(seen)
    if kind is Kind.TAGGING:
        prefixes = sorted({tag[0] for tag in found if tag != "O"} | {"B", "I"}, key="BIES".index)
        types = sorted({tag[2:] for tag in found if tag != "O"})
        return ("O", *(f"{prefix}-{name}" for name in types for prefix in prefixes))
    if all(label.lstrip("-").isascii() and label.lstrip("-").isdigit() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def output_width(kind: Kind, labels: Sequence[str]) -> int:
    """How many numbers a head gives for one row (for tagging: for one word)."""
    if kind is Kind.REGRESSION:
        return 1
    return 2 if kind is Kind.RELEVANCE else len(labels)


def encode_targets(kind: Kind, labels: Sequence[str], rows: Rows) -> NDArray[Any] | list[NDArray[np.int64]]:
    """Targets as numbers.

    classification, relevance: int64 (n,); multilabel: float32 (n, C); regression: float32 (n,) in the user's unit;
    tagging: n arrays of int64 (words,). Raises KeyError for a label outside `labels` (reading the data rules that out).
    """
    index = {label: position for position, label in enumerate(labels)}
    if kind is Kind.REGRESSION:
        return np.asarray(rows.targets, dtype=np.float32)
    if kind is Kind.TAGGING:
        return [np.asarray([index[tag] for tag in tags], dtype=np.int64) for tags in rows.targets]
    if kind is Kind.MULTILABEL:
        hot = np.zeros((len(rows), len(labels)), dtype=np.float32)  # (n, C)
        for row, names in enumerate(rows.targets):
            hot[row, [index[name] for name in names]] = 1.0
        return hot
    return np.asarray([index[label] for label in rows.targets], dtype=np.int64)


def probabilities(kind: Kind, logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax over the last axis, a sigmoid for each label of a multilabel task, the value itself for regression."""
    values = np.asarray(logits, dtype=np.float64)
    if kind is Kind.REGRESSION:
        return values
    if kind is Kind.MULTILABEL:
        return np.exp(-np.logaddexp(0.0, -values))
    if values.size == 0:
        return values
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


@dataclass(frozen=True)
class Span:
    """One entity: `text` is `[start:end]` of the input; `score` the mean probability of its words' tags."""

    label: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Answer:
    """What a task says about one input; the fields that its kind does not have are None (or empty for `scores`).

    `exit_layer`, the layers that were run, and `uncertainty` of the exit or head that answered are there where a speed
    above 0 was asked of a task that has exits. `scope` is there where the task flags texts that are unlike those it was
    trained on: how far beyond the limit this one is, in standard deviations of the texts of `valid`; above 0 it is
    `out_of_scope`.
    """

    label: str | None = None
    labels: list[str] | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    spans: list[Span] | None = None
    words: list[str] | None = None
    tags: list[str] | None = None
    exit_layer: int | None = None
    uncertainty: float | None = None
    out_of_scope: bool | None = None
    scope: float | None = None


def answer(
    kind: Kind,
    labels: Sequence[str],
    positive: str | None,
    logits: NDArray[Any],
    text: str = "",
    words: Offsets | None = None,
) -> Answer:
    """The answer for one row from its logits: (C,), or (words, C) for tagging.

    Regression logits are in the user's unit. Words of a tagging task that were truncated away (missing or NaN rows)
    are tagged "O".
    """
    if kind is Kind.TAGGING:
        return _tagged(labels, np.asarray(logits), text, words if words is not None else split_words(text))
    shares = probabilities(kind, np.asarray(logits).reshape(-1))
    if kind is Kind.REGRESSION:
        return Answer(score=float(shares[0]))
    scores = {label: float(share) for label, share in zip(labels, shares, strict=True)}
    if kind is Kind.MULTILABEL:
        return Answer(labels=[label for label in labels if scores[label] >= MULTILABEL_THRESHOLD], scores=scores)
    label = labels[int(shares.argmax())]
    if kind is Kind.RELEVANCE:
        return Answer(label=label, score=scores[positive if positive is not None else labels[1]], scores=scores)
    return Answer(label=label, score=scores[label], scores=scores)


def to_dict(given: Answer) -> dict[str, Any]:
    """The answer ready for JSON; what its kind does not have is left out."""
    # By hand: a server says this of every row and task, and `asdict` copies all that it finds.
    found: dict[str, Any] = {name: value for name, value in vars(given).items() if value is not None and value != {}}
    if given.spans is not None:
        found["spans"] = [dict(vars(span)) for span in given.spans]
    return found


def predicted_tags(labels: Sequence[str], logits: NDArray[Any], count: int) -> list[str]:
    """One tag for each of `count` words from logits (words, C); "O" where a row is missing or NaN (truncated)."""
    tags = ["O"] * count
    for position, row in enumerate(logits[:count]):
        if not np.isnan(row).any():
            tags[position] = labels[int(row.argmax())]
    return tags


def find_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entities in BIO, BIOE or BIOES tags as (type, first word, last word + 1).

    As lenient as seqeval's default: an I- that follows another type, or nothing, starts an entity.
    """
    entities: list[tuple[str, int, int]] = []
    start, before, kind = 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, name = tag[0], tag[2:]
        if before != "O" and (before in "ES" or prefix in "BSO" or name != kind):
            entities.append((kind, start, position))
            before = "O"
        if prefix != "O" and before == "O":
            start = position
        before, kind = prefix, name
    return entities


def _tagged(labels: Sequence[str], logits: NDArray[Any], text: str, words: Offsets) -> Answer:
    tags = predicted_tags(labels, logits, len(words))
    certain = np.zeros(len(words))
    known = logits[: len(words)]
    if len(known):
        certain[: len(known)] = probabilities(Kind.TAGGING, known).max(axis=-1)
    spans = [
        Span(
            label=name,
            start=words[first][0],
            end=words[stop - 1][1],
            text=text[words[first][0] : words[stop - 1][1]],
            score=float(certain[first:stop].mean()),
        )
        for name, first, stop in find_entities(tags)
    ]
    return Answer(spans=spans, words=[text[start:end] for start, end in words], tags=tags)


_JOINERS = frozenset("'’-")
# Han (with extensions and compatibility forms), Hiragana and Katakana: scripts written without spaces.
_CJK = ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


def _class_of(char: str) -> str:
    if char.isspace():
        return "space"
    if char.isascii():
        return "word" if char.isalnum() or char == "_" else "mark"
    if any(low <= ord(char) <= high for low, high in _CJK):
        return "cjk"
    category = unicodedata.category(char)
    if category[0] == "M" or category == "Cf":
        return "joined"  # vowel signs, accents, variation selectors: part of whatever stands before
    return "word" if char.isalnum() else "mark"


def split_words(text: str) -> Offsets:
    """Words of raw text as (start, end): runs of letters and digits with inner ' ’ - kept, every other mark alone.

    Each Chinese character or kana is a word of its own. Every character that is not white space is in exactly one word.
    """
    words: Offsets = []
    open_word = False  # may the next letter still join the last word?
    for position, char in enumerate(text):
        kind = _class_of(char)
        touches = bool(words) and words[-1][1] == position
        joins = kind == "joined" and touches
        if kind == "word" and touches and open_word:
            joins = True
        if char in _JOINERS and touches and open_word and position + 1 < len(text):
            joins = _class_of(text[position + 1]) == "word"
        if joins:
            words[-1] = (words[-1][0], position + 1)
        elif kind != "space":
            words.append((position, position + 1))
            open_word = kind == "word"
    return words
