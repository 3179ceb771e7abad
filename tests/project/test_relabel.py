"""A teacher's outputs become the task's logits by name: no order is mistaken, and every mismatch is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.project.relabel import Where, relabel
from trunkline.project.tasks import Kind, probabilities

WHERE = Where("tasks/tone.toml", "path:big")
LABELS = ("calm", "cross", "glad")
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5)


@given(order=st.permutations(range(5)), logits=LOGITS)
def test_shares_follow_their_names_whatever_the_order(order: list[int], logits: list[float]) -> None:
    """Two labels of the teacher become one, whose shares add up, and one is dropped, whose share goes to the others."""
    names = ["calm", "glad", "angry", "annoyed", "bored"]
    renamed = {"angry": "cross", "annoyed": "cross", "bored": ""}
    outputs = [names[place] for place in order]
    how, problems = relabel(Kind.CLASSIFICATION, LABELS, None, outputs, renamed, WHERE)
    assert problems == []
    found = probabilities(Kind.CLASSIFICATION, how(np.asarray([logits])[:, order]))[0]
    shares = dict(zip(names, probabilities(Kind.CLASSIFICATION, np.asarray(logits)), strict=True))
    wanted = np.asarray([shares["calm"], shares["angry"] + shares["annoyed"], shares["glad"]])
    assert found == pytest.approx(wanted / wanted.sum(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "outputs", "renamed", "said"),
    [
        (Kind.CLASSIFICATION, ["calm", "cross"], {}, ["lacks labels of the task"]),
        (Kind.CLASSIFICATION, [*LABELS, "bored"], {}, ["has labels that the task does not have"]),
        (Kind.CLASSIFICATION, ["Calm", "cross", "glad"], {}, ["does not have", "lacks labels"]),
        (Kind.CLASSIFICATION, ["calm", "calm", "glad"], {}, ["several labels of one name"]),
        (Kind.CLASSIFICATION, LABELS, {"sad": "cross"}, ["not a label of this teacher"]),
        (Kind.CLASSIFICATION, LABELS, {"calm": "quiet"}, ["not a label of this task", "lacks labels"]),
        (Kind.CLASSIFICATION, LABELS, {"calm": ""}, ["lacks labels of the task"]),
        (Kind.MULTILABEL, [*LABELS, "angry"], {"angry": "cross"}, ["several labels of the teacher become one"]),
        (Kind.REGRESSION, LABELS, {}, ["gives no single number"]),
        (Kind.REGRESSION, ["score"], {"score": "calm"}, ["a number has no label"]),
    ],
)
def test_every_mismatch_is_said_with_what_would_be_right(
    kind: Kind, outputs: list[str], renamed: dict[str, str], said: list[str]
) -> None:
    _, problems = relabel(kind, LABELS, None, outputs, renamed, WHERE)
    assert len(problems) == len(said)
    for problem, words in zip(problems, said, strict=True):
        assert words in problem.message
        assert (problem.file, problem.where.split(".")[0]) == ("tasks/tone.toml", "distill")
        assert problem.found
        assert problem.allowed


@pytest.mark.parametrize("positive", ["yes", "no"])
def test_one_output_of_a_relevance_teacher_is_the_logit_of_the_positive_label(positive: str) -> None:
    labels = ("no", "yes")
    how, problems = relabel(Kind.RELEVANCE, labels, positive, ["LABEL_0"], {}, WHERE)
    assert problems == []
    shares = probabilities(Kind.RELEVANCE, how(np.asarray([[1.5]])))
    assert shares[0, labels.index(positive)] == pytest.approx(1 / (1 + np.exp(-1.5)))
