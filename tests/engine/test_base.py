"""What counts as an input, and what is said of one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.engine import Input, ItemError, as_input
from trunkline.engine.base import fault


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("a b", Input("a b")),
        (("a", "b"), Input("a", "b")),
        (["a", "b"], Input("a", "b")),
        ({"text": "a"}, Input("a")),
        ({"text": "a", "text_pair": None}, Input("a")),
        ({"text": "a", "text_pair": "b"}, Input("a", "b")),
        ({"text": "a b", "words": [[0, 1], [2, 3]]}, Input("a b", words=((0, 1), (2, 3)))),
        (Input("a", "b"), Input("a", "b")),
    ],
)
def test_texts_pairs_and_objects_are_inputs(item: object, expected: Input) -> None:
    assert as_input(item) == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "found int"),
        (None, "found NoneType"),
        (["a"], "found list"),
        (b"a", "found bytes"),
        ({}, "no text"),
        ({"text_pair": "b"}, "no text"),
        ({"text": 3}, "text must be a string; found int"),
        ({"text": None}, "text must be a string"),
        (("a", 3), "text_pair must be a string; found int"),
        ({"txt": "a"}, "did you mean 'text'"),
        ({"text": "a", "textpair": "b"}, "did you mean 'text_pair'"),
        ({"text": "a", 7: "b"}, "unknown key '7'"),
        ({"text": "a", "words": [[0]]}, "words must be"),
        ({"text": "a", "words": 5}, "words must be"),
    ],
)
def test_anything_else_is_an_error_that_says_what_was_found(item: object, message: str) -> None:
    found = as_input(item)
    assert isinstance(found, ItemError)
    assert message in found.message
    assert found.to_dict() == {"error": found.message}


@pytest.mark.parametrize(
    ("item", "slots", "message"),
    [
        (Input(""), ("text",), "text is empty"),
        (Input(" \n\t"), ("text",), "text is empty"),
        (Input("a \ud800"), ("text",), "text is not valid Unicode"),
        (Input("a"), ("joint",), "text_pair is missing"),
        (Input("a"), ("text", "pair"), "text_pair is missing"),
        (Input("a", " "), ("joint",), "text_pair is empty"),
        (Input("a", "\udc00"), ("joint",), "text_pair is not valid Unicode"),
        (Input("a b", words=((0, 9),)), ("text",), "within the 3 characters"),
        (Input("a b", words=((2, 3), (0, 1))), ("text",), "in order"),
        (Input("a b", words=((1, 1),)), ("text",), "non-empty"),
    ],
)
def test_an_input_that_a_task_cannot_read_is_told_why(item: Input, slots: tuple[str, ...], message: str) -> None:
    reason = fault(item, slots, words=True)
    assert reason is not None
    assert message in reason.message


@pytest.mark.parametrize("item", [Input("a"), Input("a", ""), Input("a", "\ud800")])
def test_a_task_that_reads_one_text_does_not_mind_the_pair(item: Any) -> None:
    assert fault(item, ("text",)) is None
