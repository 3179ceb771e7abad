"""Losses against numbers worked out by hand and against the naive form of their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trunkline.project.tasks import Kind
from trunkline.training.losses import IGNORE, exit_loss, gold_loss, soften, teacher_loss

LABELLED = [Kind.CLASSIFICATION, Kind.RELEVANCE]


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize("kind", LABELLED)
def test_gold_cross_entropy_by_hand(kind: Kind) -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    # -log 1/2 and -log 3/4
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert float(gold_loss(kind, logits, torch.tensor([1, 0]))) == pytest.approx(expected)


def test_gold_of_a_multilabel_task_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    assert float(gold_loss(Kind.MULTILABEL, logits, torch.tensor([[1.0, 1.0]]))) == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )


def test_gold_of_a_regression_is_squared_error_in_units_of_the_standard_deviation() -> None:
    logits = torch.tensor([[3.0], [5.0]])
    targets = torch.tensor([1.0, 5.0])
    assert float(gold_loss(Kind.REGRESSION, logits, targets, std=2.0)) == pytest.approx(0.5)


def test_gold_of_tagging_leaves_out_subwords_where_no_word_starts() -> None:
    logits = torch.tensor([[[0.0, 0.0], [9.0, -9.0], [math.log(3), 0.0]]])
    targets = torch.tensor([[0, IGNORE, 0]])
    assert float(gold_loss(Kind.TAGGING, logits, targets)) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_gold_loss_is_computed_in_float32_whatever_the_training_precision() -> None:
    logits = torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16)
    targets = torch.tensor([1.001, 2.0])  # 1.001 is 1 in bfloat16
    assert float(gold_loss(Kind.REGRESSION, logits, targets)) == pytest.approx(0.5e-6, rel=1e-3)


def test_a_softened_teacher_by_hand() -> None:
    logits = torch.tensor([[2 * math.log(3), 0.0]])
    assert soften(Kind.CLASSIFICATION, logits, 2.0).tolist() == [pytest.approx([0.75, 0.25])]
    assert soften(Kind.MULTILABEL, logits, 2.0).tolist() == [pytest.approx([0.75, 0.5])]
    assert torch.equal(soften(Kind.REGRESSION, logits, 2.0), logits)


@pytest.mark.parametrize("kind", LABELLED)
def test_teacher_loss_by_hand(kind: Kind) -> None:
    # T = 2: student 1/2, 1/2 against 3/4, 1/4 costs log 2, times T^2.
    found = teacher_loss(kind, torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]), 2.0, keep=ones(1))
    assert float(found) == pytest.approx(4 * math.log(2))


def test_teacher_loss_of_a_regression_by_hand() -> None:
    found = teacher_loss(
        Kind.REGRESSION, torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]]), 2.0, keep=ones(2), std=2.0
    )
    assert float(found) == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_teacher_loss_equals_the_naive_formula(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    naive = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = (torch.exp(x / temperature) / torch.exp(x / temperature).sum() for x in (t, s))
        naive += float(-(p * q.log()).sum()) * temperature**2 / len(student)
    soft = soften(Kind.CLASSIFICATION, teacher, temperature)
    assert float(teacher_loss(Kind.CLASSIFICATION, student, soft, temperature, keep=ones(6))) == pytest.approx(naive)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_teacher_loss_of_a_multilabel_task_equals_the_naive_formula(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 5, 3, generator=generator).double()
    p, q = (1 / (1 + torch.exp(-x / temperature)) for x in (teacher, student))
    naive = float(-(p * q.log() + (1 - p) * (1 - q).log()).mean()) * temperature**2
    soft = soften(Kind.MULTILABEL, teacher, temperature)
    assert float(teacher_loss(Kind.MULTILABEL, student, soft, temperature, keep=ones(5))) == pytest.approx(naive)


def test_teacher_loss_counts_kept_subwords_only() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 2, 3, 4, generator=generator)
    soft = soften(Kind.TAGGING, teacher, 2.0)
    keep = torch.tensor([[True, False, True], [False, False, False]])
    rows = [teacher_loss(Kind.CLASSIFICATION, student[0, [t]], soft[0, [t]], 2.0, keep=ones(1)) for t in (0, 2)]
    found = teacher_loss(Kind.TAGGING, student, soft, 2.0, keep=keep)
    assert float(found) == pytest.approx(float(sum(rows)) / 2)


def test_nothing_kept_gives_zero_and_not_nan() -> None:
    found = teacher_loss(Kind.TAGGING, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), 2.0, keep=torch.zeros(1, 2))
    assert float(found) == 0.0


@pytest.mark.parametrize("kind", [Kind.CLASSIFICATION, Kind.RELEVANCE, Kind.MULTILABEL])
def test_the_loss_of_an_exit_is_its_divergence_from_the_head(kind: Kind) -> None:
    student, head = torch.randn(4, 3), torch.randn(4, 3)
    found = exit_loss(kind, student, head, keep=ones(4))
    if kind is Kind.MULTILABEL:
        p, q = torch.sigmoid(student), torch.sigmoid(head)
        naive = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
        expected = naive.mean(-1)
    else:
        p, q = torch.softmax(student, -1), torch.softmax(head, -1)
        expected = (p * torch.log(p / q)).sum(-1)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(exit_loss(kind, head, head, keep=ones(4))) == pytest.approx(0.0, abs=1e-6)


def test_an_exit_of_regression_is_taught_in_units_of_the_deviation() -> None:
    found = exit_loss(
        Kind.REGRESSION, torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [5.0]]), keep=ones(2), std=2.0
    )
    assert float(found) == pytest.approx((1.0 + 0.0) / 2)


def test_an_exit_of_tagging_learns_where_words_start() -> None:
    student, head = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    keep = torch.tensor([[True, False, True], [False, False, False]])
    rows = [exit_loss(Kind.CLASSIFICATION, student[0, [t]], head[0, [t]], keep=ones(1)) for t in (0, 2)]
    assert float(exit_loss(Kind.TAGGING, student, head, keep=keep)) == pytest.approx(float(sum(rows)) / 2)


def test_a_head_that_is_quite_sure_gives_a_loss_that_is_a_number() -> None:
    head = torch.tensor([[200.0, -200.0]])
    for kind in (Kind.CLASSIFICATION, Kind.MULTILABEL):
        assert torch.isfinite(exit_loss(kind, -head, head, keep=ones(1)))
