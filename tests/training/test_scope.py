"""Scopes are the distances that they are named after, and flag as rarely as was asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage

from trunkline.model.scope import Scope
from trunkline.training.scope import fit


def rows(seed: int, count: int, classes: int, width: int) -> tuple[torch.Tensor, np.ndarray]:
    """Around a centre of each class, wider along some axes than along others."""
    centres = 2 * np.random.default_rng(7).standard_normal((classes, width))
    rng = np.random.default_rng(seed)
    members = rng.integers(0, classes, count)
    noise = rng.standard_normal((count, width)) * np.linspace(0.3, 1.5, width)
    return torch.from_numpy((centres[members] + noise + 5).astype(np.float32)), members


def naive(train: np.ndarray, members: np.ndarray, found: np.ndarray, *, relative: bool) -> np.ndarray:
    """The formulas as Ren et al. write them, (n,): with whole matrices, one inverse for each."""
    means = np.stack([train[members == one].mean(0) for one in np.unique(members)])
    within = train - means[members]
    share = ledoit_wolf_shrinkage(within, assume_centered=True)
    covariance = (1 - share) * within.T @ within / len(train)
    covariance += share * (within**2).sum(1).mean() / train.shape[1] * np.eye(train.shape[1])
    spread = (means - train.mean(0))[members]
    background = np.linalg.inv(covariance + spread.T @ spread / len(train))
    inverse = np.linalg.inv(covariance)
    gaps = found[:, None] - means  # (n, K, H)
    nearest = np.einsum("nkh,hg,nkg->nk", gaps, inverse, gaps).min(1)
    away = found - train.mean(0)
    return nearest - np.einsum("nh,hg,ng->n", away, background, away) if relative else nearest


@pytest.mark.parametrize(("classes", "width", "relative"), [(6, 12, True), (15, 8, True), (3, 12, False)])
def test_it_is_the_distance_of_the_paper_in_deviations_beyond_the_limit(
    classes: int, width: int, relative: bool
) -> None:
    train, members = rows(0, 400, classes, width)
    valid, _ = rows(1, 99, classes, width)
    strange = torch.cat([rows(2, 50, classes, width)[0], 8 * torch.randn(50, width)])
    scope = fit(train, members, valid, 0.1, relative=relative)
    plain = [part.numpy().astype(float) for part in (train, valid, strange)]
    known, expected = (naive(plain[0], members, part, relative=relative) for part in plain[1:])
    known.sort()
    limit = (known[89] + known[90]) / 2
    np.testing.assert_allclose(scope.of_means(strange)[:, 0], (expected - limit) / known.std(), rtol=1e-3, atol=1e-3)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    held=st.integers(4, 60),
    share=st.floats(0.0, 1.0),
    classes=st.sampled_from([1, 2, 6]),
    width=st.sampled_from([3, 20]),
    count=st.integers(8, 60),
)
def test_of_the_rows_that_set_the_limit_so_few_are_flagged(
    seed: int, held: int, share: float, classes: int, width: int, count: int
) -> None:
    """For any numbers of rows, classes and directions, also where rows are fewer than directions."""
    false_alarms = min(0.9, 1 / (held + 1) + share)
    train, members = rows(seed, count, classes, width)
    valid, _ = rows(seed + 1, held, classes, width)
    scope = fit(train, members, valid, false_alarms, relative=classes > 5)
    found = scope.of_means(valid)[:, 0]
    assert torch.isfinite(found).all()
    assert int((found > 1e-4).sum()) <= false_alarms * (held + 1) - 1 + 1e-6


def test_rows_of_the_same_kind_raise_about_as_many_alarms_as_was_asked_and_others_many() -> None:
    train, members = rows(0, 2000, 8, 16)
    scope = fit(train, members, rows(1, 1000, 8, 16)[0], 0.05, relative=True)
    others = 5 + train[:, [*range(8, 16), *range(8)]]
    alarms, found = (float((scope.of_means(one) > 0).float().mean()) for one in (rows(2, 4000, 8, 16)[0], others))
    assert 0.03 < alarms < 0.07
    assert found > 0.5


def test_rows_that_are_all_alike_make_a_scope_that_still_answers() -> None:
    train = torch.ones(20, 4)
    scope = fit(train, np.arange(20) % 2, train, 0.1, relative=False)
    assert torch.isfinite(scope.of_means(torch.cat([train, 2 * train]))).all()


def test_too_few_rows_for_a_rate_are_refused() -> None:
    train, members = rows(0, 50, 2, 4)
    with pytest.raises(ValueError, match="too few"):
        fit(train, members, train[:8], 0.1, relative=False)


def test_padding_counts_for_nothing() -> None:
    train, members = rows(0, 50, 2, 4)
    scope: Scope = fit(train, members, train[:30], 0.1, relative=False)
    states, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 0, 0]] * 3)
    whole = scope([states[:, :3]], [mask[:, :3]])
    assert torch.allclose(scope([states], [mask]), whole, atol=1e-5)
    apart = scope([states[:, :2], states[:, 2:]], [mask[:, :2], mask[:, 2:]])
    assert torch.allclose(apart, whole, atol=1e-5)
