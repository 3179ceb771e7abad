"""Kinds: label order, targets, answers, words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from trunkline.project.rows import Rows
from trunkline.project.tasks import (
    Kind,
    answer,
    encode_targets,
    find_entities,
    order_labels,
    output_width,
    probabilities,
    recognise_positive,
    split_words,
    to_dict,
)


def rows(targets: list[Any]) -> Rows:
    return Rows(["t"] * len(targets), None, targets, ["i"] * len(targets))


@pytest.mark.parametrize(
    ("kind", "labels", "width"),
    [
        ("classification", "abc", 3),
        ("multilabel", "abc", 3),
        ("regression", "", 1),
        ("tagging", "Oab", 3),
        ("relevance", "01", 2),
    ],
)
def test_a_head_is_as_wide_as_the_label_space(kind: str, labels: str, width: int) -> None:
    assert output_width(Kind(kind), tuple(labels)) == width


def test_targets_become_numbers() -> None:
    found = encode_targets(Kind.CLASSIFICATION, ("a", "b"), rows(["b", "a"]))
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.tolist()) == (np.dtype("int64"), [1, 0])
    found = encode_targets(Kind.MULTILABEL, ("a", "b", "c"), rows([["c", "a"], []]))
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.tolist()) == (np.dtype("float32"), [[1, 0, 1], [0, 0, 0]])
    found = encode_targets(Kind.REGRESSION, (), rows([0.5, 2.0]))
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.tolist()) == (np.dtype("float32"), [0.5, 2.0])
    tags = encode_targets(Kind.TAGGING, ("O", "B-x"), rows([["O", "B-x"], ["O"]]))
    assert [row.tolist() for row in tags] == [[0, 1], [0]]


def test_labels_are_ordered_by_number_where_all_are_numbers() -> None:
    assert order_labels(Kind.CLASSIFICATION, ["10", "9", "1"]) == ("1", "9", "10")
    assert order_labels(Kind.CLASSIFICATION, ["10", "9", "b"]) == ("10", "9", "b")


def test_a_tag_set_is_closed_under_the_prefixes_that_occur() -> None:
    assert order_labels(Kind.TAGGING, ["B-x", "O"]) == ("O", "B-x", "I-x")
    assert order_labels(Kind.TAGGING, ["B-y", "E-x"]) == ("O", "B-x", "I-x", "E-x", "B-y", "I-y", "E-y")


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (("0", "1"), "1"),
        (("no", "Yes"), "Yes"),
        (("not_relevant", "relevant"), "relevant"),
        (("equivalent", "not_equivalent"), "equivalent"),
        (("acceptable", "unacceptable"), "acceptable"),
        (("duplicate", "non-duplicate"), "duplicate"),
        (("hot", "cold"), None),
        (("yes", "true"), None),
        (("a", "b", "1"), None),
    ],
)
def test_the_positive_label_is_recognised_only_where_it_is_plain(labels: tuple[str, ...], positive: str | None) -> None:
    assert recognise_positive(labels) == positive


def test_probabilities_do_not_overflow() -> None:
    assert probabilities(Kind.CLASSIFICATION, np.asarray([1e4, 0.0, -1e4])).tolist() == [1, 0, 0]
    assert probabilities(Kind.MULTILABEL, np.asarray([1e4, 0.0, -1e4])).tolist() == [1, 0.5, 0]
    assert probabilities(Kind.REGRESSION, np.asarray([1e4])).tolist() == [1e4]


def test_a_classification_answers_with_its_likeliest_label() -> None:
    given_ = answer(Kind.CLASSIFICATION, ("a", "b"), None, np.log([0.25, 0.75]))
    assert given_.label == "b"
    assert given_.score == pytest.approx(0.75)
    assert given_.scores == pytest.approx({"a": 0.25, "b": 0.75})
    assert set(to_dict(given_)) == {"label", "score", "scores"}


def test_a_multilabel_task_answers_with_every_label_that_applies_or_none() -> None:
    assert answer(Kind.MULTILABEL, ("a", "b", "c"), None, np.asarray([1.0, -1.0, 0.0])).labels == ["a", "c"]
    none = answer(Kind.MULTILABEL, ("a", "b"), None, np.asarray([-1.0, -1.0]))
    assert to_dict(none)["labels"] == []


def test_a_regression_answers_in_the_unit_of_its_scores() -> None:
    assert to_dict(answer(Kind.REGRESSION, (), None, np.asarray([3.5], dtype=np.float32))) == {"score": 3.5}


def test_relevance_scores_the_positive_label_even_where_it_loses() -> None:
    given_ = answer(Kind.RELEVANCE, ("no", "yes"), "yes", np.log([0.8, 0.2]))
    assert given_.label == "no"
    assert given_.score == pytest.approx(0.2)


def test_tags_come_back_as_spans_with_character_offsets() -> None:
    text = "fly to New  York, now"
    words = split_words(text)
    tags = [0, 0, 1, 2, 0, 0]
    logits = np.log(np.where(np.eye(3)[tags] == 1, 0.8, 0.1))
    given_ = answer(Kind.TAGGING, ("O", "B-city", "I-city"), None, logits, text, words)
    assert given_.words == ["fly", "to", "New", "York", ",", "now"]
    assert given_.tags == ["O", "O", "B-city", "I-city", "O", "O"]
    assert given_.spans is not None
    (span,) = given_.spans
    assert (span.label, span.start, span.end, span.text) == ("city", 7, 16, "New  York")
    assert text[span.start : span.end] == span.text
    assert span.score == pytest.approx(0.8)
    json.dumps(to_dict(given_), allow_nan=False)


def test_words_that_were_truncated_away_are_tagged_outside() -> None:
    given_ = answer(Kind.TAGGING, ("O", "B-x"), None, np.asarray([[0.0, 1.0], [np.nan, np.nan]]), "a b c")
    assert given_.tags == ["B-x", "O", "O"]
    json.dumps(to_dict(given_), allow_nan=False)


def test_a_text_without_words_has_no_spans() -> None:
    given_ = answer(Kind.TAGGING, ("O", "B-x"), None, np.zeros((0, 2)), " ")
    assert (given_.spans, given_.words, given_.tags) == ([], [], [])


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "E-x", "S-x", "B-y", "I-y", "E-y", "S-y"]), max_size=12))
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    assert find_entities(tags) == [(name, first, last + 1) for name, first, last in get_entities(tags)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, o’clock!", ["Don't", "stop", ",", "o’clock", "!"]),
        ("well-known 'quote' -x-", ["well-known", "'", "quote", "'", "-", "x", "-"]),
        ("at 8:30, $5", ["at", "8", ":", "30", ",", "$", "5"]),
        ("播放周杰伦的歌", ["播", "放", "周", "杰", "伦", "的", "歌"]),
        ("放Hello吧2次", ["放", "Hello", "吧", "2", "次"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("cafe\u0301 ok", ["cafe\u0301", "ok"]),
        ("  \n ", []),
    ],
)
def test_words_of_raw_text(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words


@given(st.text(max_size=40))
def test_every_character_but_white_space_is_in_one_word(text: str) -> None:
    words = split_words(text)
    covered = [position for start, end in words for position in range(start, end)]
    assert covered == [position for position, char in enumerate(text) if not char.isspace()]
    assert all(start < end for start, end in words)
