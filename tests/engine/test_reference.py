"""The reference engine: one trunk pass, isolation, and errors that stay with their item."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branches import ALL_SORTS, INPUTS, load_trunk, random_branch, tiny_source
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.engine import Input, ItemError, predict
from trunkline.engine.reference import ReferenceEngine
from trunkline.errors import BundleError, EncoderError, UsageError
from trunkline.model.branch import Branch
from trunkline.model.trunk import Trunk

DEPTH = 4
WORDS = ["a", "play", "music", "rain", "weather", "today", "dinner", "hello", "not", "seven", "eight", "xyzzy", "12"]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(tiny_source(tmp_path_factory.mktemp("trunk") / "encoder", layers=DEPTH))


@pytest.fixture(scope="module")
def branches(trunk: Trunk) -> dict[str, Branch]:
    return {task: random_branch(trunk, task, **sort) for task, sort in ALL_SORTS.items()}


@pytest.fixture(scope="module")
def engine(trunk: Trunk, branches: dict[str, Branch]) -> ReferenceEngine:
    return ReferenceEngine(trunk, branches)


def bits(results: Sequence[Any]) -> list[Any]:
    """Results in a form where equal means equal to the last bit."""
    return [(found.shape, found.tobytes()) if isinstance(found, np.ndarray) else found for found in results]


@contextmanager
def counted(trunk: Trunk) -> Iterator[Counter[int]]:
    """How often each layer of the trunk runs."""
    calls: Counter[int] = Counter()

    def count(index: int) -> Any:
        return lambda *_: calls.update([index])

    hooks = [layer.register_forward_hook(count(index)) for index, layer in enumerate(trunk.encoder.layers)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["tone"], {0: 1}),
        (["intent", "tone"], {0: 1, 1: 1}),
        (["intent", "slots", "tone", "urgency"], {0: 1, 1: 1, 2: 1}),
        (["short"], {}),
        (["short", "intent"], {0: 1, 1: 1}),
        (["probe", "tone"], {0: 1, 1: 1, 2: 1, 3: 1}),
        (["same"], {0: 2, 1: 2}),  # two sequences, the text and its pair
        (["same", "intent", "slots"], {0: 2, 1: 2}),
        (["same", "urgency"], {0: 2, 1: 2, 2: 1}),
        (["follows"], {0: 1, 1: 1, 2: 1}),
        (["follows", "same", "probe"], {0: 3, 1: 3, 2: 2, 3: 1}),
        ([], {}),
    ],
)
def test_promise_3_each_sequence_passes_each_trunk_layer_once_and_no_deeper_than_asked(
    trunk: Trunk, engine: ReferenceEngine, tasks: list[str], expected: dict[int, int]
) -> None:
    with counted(trunk) as calls:
        engine.logits(INPUTS, tasks)
    assert calls == expected


def test_promise_3_limits_on_tokens_cost_a_second_pass_only_where_they_cut(trunk: Trunk) -> None:
    two = {
        "long": random_branch(trunk, "long", fork=2, max_tokens=64),
        "short": random_branch(trunk, "short", fork=3, max_tokens=6),
    }
    engine = ReferenceEngine(trunk, two)
    brief = [Input("play music"), Input("a nice day")]
    with counted(trunk) as calls:
        engine.logits(brief, ["long", "short"])
    assert calls == {0: 1, 1: 1, 2: 1}
    with counted(trunk) as calls:
        engine.logits([*brief, Input("will it rain in the city today or not")], ["long", "short"])
    assert calls == {0: 2, 1: 2, 2: 1}


def test_promise_3_layers_run_once_for_each_batch(trunk: Trunk, engine: ReferenceEngine) -> None:
    with counted(trunk) as calls:
        engine.logits(INPUTS, ["intent", "tone", "urgency"], batch_size=2)
    assert calls == {0: 3, 1: 3, 2: 3}


def test_equal_texts_are_read_once(trunk: Trunk, engine: ReferenceEngine) -> None:
    query = "play some music"
    pairs = [Input(query, f"{passage} today") for passage in ("rain", "a very nice song", "the weather")]
    rows: list[int] = []
    hook = trunk.encoder.layers[0].register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    try:
        together = engine.logits(pairs, ["same", "intent"])
    finally:
        hook.remove()
    assert sorted(rows) == [1, 3]  # the query, and its three passages
    assert len({found.tobytes() for found in together["intent"] if isinstance(found, np.ndarray)}) == 1
    for position, item in enumerate(pairs):
        np.testing.assert_allclose(together["same"][position], engine.logits([item], ["same"])["same"][0], atol=1e-5)


# Promise 2, over task sets and requests drawn at random.

sorts = st.sampled_from(sorted(ALL_SORTS)).map(lambda name: ALL_SORTS[name])
sorts = sorts | st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["classification", "multilabel", "regression", "tagging"]),
        "fork": st.integers(0, 2),
        "layers": st.integers(0, DEPTH - 2),
        "max_tokens": st.sampled_from([5, 8, 64]),
    }
)
pair_sorts = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["classification", "regression", "relevance"]),
        "reading": st.sampled_from(["joint", "separate"]),
        "fork": st.integers(0, 2),
        "layers": st.integers(1, DEPTH - 2),
        "pooling": st.just("cls"),
        "max_tokens": st.sampled_from([5, 8, 64]),
    }
)
task_sets = st.dictionaries(st.sampled_from("abcdefg"), sorts | pair_sorts, min_size=1, max_size=5)
texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=12).map(" ".join)
inputs = st.lists(st.builds(Input, texts, st.none() | texts), min_size=1, max_size=9)


isolation = given(
    tasks=task_sets, change=st.tuples(st.sampled_from("abcdefgz"), sorts | pair_sorts), inputs=inputs, draw=st.randoms()
)


def check_isolation(
    trunk: Trunk,
    tasks: dict[str, dict[str, Any]],
    change: tuple[str, dict[str, Any]],
    inputs: list[Input],
    draw: random.Random,
) -> None:
    """Ask some tasks, then all, then all after one was added or replaced; seen backwards, one was removed."""
    name, sort = change
    after_tasks = {**tasks, name: sort}
    before = ReferenceEngine(trunk, {task: random_branch(trunk, task, **sort) for task, sort in tasks.items()})
    after = ReferenceEngine(
        trunk, {task: random_branch(trunk, task, seed=int(task == name), **sort) for task, sort in after_tasks.items()}
    )
    asked = draw.sample(sorted(tasks), draw.randint(1, len(tasks)))
    size = draw.choice([1, 3, 32])
    some = before.logits(inputs, asked, batch_size=size)
    every = before.logits(inputs, tasks, batch_size=size)
    changed = after.logits(inputs, after_tasks, batch_size=size)
    for task in tasks:
        if task in some:
            assert bits(some[task]) == bits(every[task])
        if task != name:
            assert bits(every[task]) == bits(changed[task])


@settings(max_examples=60)
@isolation
def test_promise_2_other_tasks_change_no_bit_when_one_is_added_replaced_removed_or_asked_for(
    trunk: Trunk,
    tasks: dict[str, dict[str, Any]],
    change: tuple[str, dict[str, Any]],
    inputs: list[Input],
    draw: random.Random,
) -> None:
    check_isolation(trunk, tasks, change, inputs, draw)


@settings(max_examples=12)  # few: threads that share busy cores wait far more than they compute
@isolation
def test_promise_2_holds_with_several_threads(
    trunk: Trunk,
    tasks: dict[str, dict[str, Any]],
    change: tuple[str, dict[str, Any]],
    inputs: list[Input],
    draw: random.Random,
) -> None:
    torch.set_num_threads(2)
    try:
        check_isolation(trunk, tasks, change, inputs, draw)
    finally:
        torch.set_num_threads(1)


def test_the_same_call_gives_the_same_bits(engine: ReferenceEngine) -> None:
    once, again = (engine.logits(INPUTS, list(ALL_SORTS)) for _ in range(2))
    for task in ALL_SORTS:
        assert bits(once[task]) == bits(again[task])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_results_come_in_the_order_of_the_inputs_whatever_the_batch_size(
    engine: ReferenceEngine, batch_size: int
) -> None:
    together = engine.logits(INPUTS, list(ALL_SORTS), batch_size=batch_size)
    for position, item in enumerate(INPUTS):
        alone = engine.logits([item], list(ALL_SORTS))
        for task in ALL_SORTS:
            one, other = together[task][position], alone[task][0]
            if isinstance(other, ItemError):
                assert one == other
            else:
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, atol=1e-5)


BAD = [
    "",
    " ",
    "half \ud800",
    "half \udfff of a pair",
    None,
    17,
    b"bytes",
    {},
    {"txt": "a"},
    {"text": ["a"]},
    {"text": "a", "words": [[0, 50]]},
    ("a", "b", "c"),
    ("", "b"),
]
ODD = [
    "\x00",
    "\u200b",
    "a" * 5000,
    "🙂🙃",
    "你好 世界",
    "{}",
    "[CLS] [SEP] [PAD]",
    "a\nb\tc",
    "\u202eabc",
    "e\u0301" * 40,
]


@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_promise_8_one_bad_item_fails_alone(engine: ReferenceEngine, bad: object) -> None:
    good = [("play some music", "a song"), ("will it rain", "the weather today")]
    clean = predict(engine, good)
    mixed = predict(engine, [good[0], bad, good[1]])
    assert isinstance(mixed[1]["slots"], ItemError)
    for position, answers in ((0, clean[0]), (2, clean[1])):
        for task, expected in answers.items():
            found = mixed[position][task]
            assert not isinstance(found, ItemError)
            assert not isinstance(expected, ItemError)
            assert found.label == expected.label
            assert found.score == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_promise_8_odd_but_readable_items_are_answered(engine: ReferenceEngine, odd: str) -> None:
    mixed = predict(engine, [("play", "music"), (odd, odd)])
    assert not [answer for answers in mixed for answer in answers.values() if isinstance(answer, ItemError)]


def test_promise_8_a_missing_pair_fails_only_the_tasks_that_read_pairs(engine: ReferenceEngine) -> None:
    alone, paired = predict(engine, ["play some music", ("play some music", "a song")])
    assert {task for task, answer in alone.items() if isinstance(answer, ItemError)} == {
        "same",
        "follows",
        "alike",
        "near",
    }
    assert not [task for task, answer in paired.items() if isinstance(answer, ItemError)]


def test_promise_8_bad_words_fail_only_the_tasks_that_tag(engine: ReferenceEngine) -> None:
    [answers] = predict(engine, [{"text": "play", "text_pair": "music", "words": [[3, 2]]}])
    assert {task for task, answer in answers.items() if isinstance(answer, ItemError)} == {"slots"}


def test_promise_8_a_branch_that_gives_no_number_fails_alone(trunk: Trunk, branches: dict[str, Branch]) -> None:
    broken = random_branch(trunk, "broken")
    broken.head.output.bias.data.fill_(float("nan"))
    [answers] = predict(ReferenceEngine(trunk, {"intent": branches["intent"], "broken": broken}), ["play"])
    assert "not a number" in getattr(answers["broken"], "message", "")
    assert not isinstance(answers["intent"], ItemError)


def test_no_input_and_only_bad_inputs_are_answered_too(engine: ReferenceEngine) -> None:
    assert predict(engine, []) == []
    assert all(isinstance(answer, ItemError) for answer in predict(engine, ["", None])[0].values())


def test_tags_come_as_spans_with_characters_of_the_raw_text(trunk: Trunk) -> None:
    text = "  Wake  me,\tat SEVEN-thirty… 你好"
    branch = random_branch(trunk, "slots", kind="tagging")
    branch.head.output.weight.data.zero_()
    branch.head.output.bias.data = torch.tensor([0.0, 5.0, 0.0])  # every word begins an entity
    [answers] = predict(ReferenceEngine(trunk, {"slots": branch}), [text])
    slots = answers["slots"]
    assert not isinstance(slots, ItemError)
    assert slots.spans is not None
    assert [text[span.start : span.end] for span in slots.spans] == [span.text for span in slots.spans]
    assert [span.text for span in slots.spans] == ["Wake", "me", ",", "at", "SEVEN-thirty", "…", "你", "好"]


def test_tags_of_equal_tokens_keep_the_characters_of_their_own_text(engine: ReferenceEngine) -> None:
    texts = ["play music", "PLAY   music", "  play\nMusic"]
    for text, answers in zip(texts, predict(engine, texts, ["slots"]), strict=True):
        slots = answers["slots"]
        assert not isinstance(slots, ItemError)
        assert slots.words == text.split()


def test_given_words_are_tagged_as_they_are(engine: ReferenceEngine) -> None:
    item = Input("seven-thirty today", words=((0, 5), (5, 12), (13, 18)))
    [found] = engine.logits([item], ["slots"])["slots"]
    assert isinstance(found, np.ndarray)
    assert found.shape == (3, 3)


def test_words_beyond_the_limit_on_tokens_are_outside_every_entity(trunk: Trunk) -> None:
    branch = random_branch(trunk, "slots", kind="tagging", max_tokens=5)
    branch.head.output.weight.data.zero_()
    branch.head.output.bias.data = torch.tensor([0.0, 5.0, 0.0])
    [answers] = predict(ReferenceEngine(trunk, {"slots": branch}), ["play some music today please"])
    slots = answers["slots"]
    assert not isinstance(slots, ItemError)
    assert slots.tags == ["B-time", "B-time", "B-time", "O", "O"]


def test_regression_answers_are_in_the_unit_of_the_data(trunk: Trunk) -> None:
    branch = random_branch(trunk, "urgency", kind="regression")
    scaled = random_branch(trunk, "urgency", kind="regression")
    scaled.spec = replace_spec(scaled, mean=100.0, std=10.0)
    plain = ReferenceEngine(trunk, {"urgency": branch}).logits(INPUTS, ["urgency"])["urgency"]
    found = ReferenceEngine(trunk, {"urgency": scaled}).logits(INPUTS, ["urgency"])["urgency"]
    for one, other in zip(plain, found, strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_allclose(100.0 + 10.0 * one, other, rtol=1e-5)


def replace_spec(branch: Branch, **fields: Any) -> Any:
    return branch.spec.model_copy(update=fields)


def test_unknown_tasks_are_named_with_the_nearest(engine: ReferenceEngine) -> None:
    with pytest.raises(UsageError, match=r"unknown task 'intnt' \(did you mean 'intent'\?"):
        predict(engine, ["play"], ["intnt"])
    with pytest.raises(UsageError, match=r"\['intent'\]"):
        predict(engine, ["play"], "intent")
    with pytest.raises(UsageError, match="list of texts"):
        predict(engine, "play")
    with pytest.raises(ValueError, match="batch_size"):
        predict(engine, ["play"], batch_size=0)


def test_a_branch_of_another_trunk_is_refused(trunk: Trunk, branches: dict[str, Branch], tmp_path: Path) -> None:
    other = load_trunk(tiny_source(tmp_path / "other", layers=DEPTH, seed=1))
    with pytest.raises(BundleError, match="branch 'intent' was made for trunk"):
        ReferenceEngine(other, {"intent": branches["intent"]})


def test_a_limit_that_the_encoder_cannot_read_is_an_error_of_the_whole(trunk: Trunk) -> None:
    with pytest.raises(EncoderError, match="max_tokens = 9999"):
        ReferenceEngine(trunk, {"a": random_branch(trunk, "a", max_tokens=9999)}).logits([Input("play")], ["a"])


def test_training_mode_changes_no_answer(trunk: Trunk, branches: dict[str, Branch]) -> None:
    engine = ReferenceEngine(trunk, {"intent": branches["intent"]})
    before = engine.logits(INPUTS, ["intent"])["intent"]
    trunk.train()
    assert bits(engine.logits(INPUTS, ["intent"])["intent"]) == bits(before)
