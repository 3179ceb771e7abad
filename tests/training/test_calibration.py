"""Calibration: scores become as sure as they are right, and no decision moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.project.tasks import Kind, probabilities
from trunkline.training.calibration import LEAST, MOST, calibrate, calibration_error, fit_temperature, flatten


def drawn(kind: Kind, rows: int, temperature: float, seed: int) -> tuple[Any, Any]:
    """Logits `temperature` times as far apart as what their targets were drawn from."""
    rng = np.random.default_rng(seed)
    if kind is Kind.TAGGING:
        values = [rng.normal(size=(rng.integers(1, 9), 5)) * 2 for _ in range(rows)]
        targets = [np.asarray([rng.choice(5, p=probabilities(kind, word)) for word in row]) for row in values]
        return [temperature * row for row in values], targets
    values = rng.normal(size=(rows, 4)) * 2
    if kind is Kind.MULTILABEL:
        return temperature * values, (rng.random(values.shape) < probabilities(kind, values)).astype(np.float32)
    return temperature * values, np.asarray([rng.choice(4, p=probabilities(kind, row)) for row in values])


@pytest.mark.parametrize("kind", [Kind.CLASSIFICATION, Kind.MULTILABEL, Kind.TAGGING])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_logits_were_stretched_by_is_found(kind: Kind, temperature: float) -> None:
    splits = {"valid": drawn(kind, 1500, temperature, 1), "test": drawn(kind, 1500, temperature, 2)}
    found = calibrate(kind, splits)
    assert found is not None
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    before, after = found.ece["test"]
    assert after < 0.03
    assert after < before or temperature == 1.0


def test_regression_has_no_confidence() -> None:
    assert calibrate(Kind.REGRESSION, {"valid": (np.zeros((3, 1)), np.zeros(3))}) is None


def test_a_few_rows_that_are_all_right_do_not_make_it_certain() -> None:
    logits, targets = np.eye(3)[[0, 1, 2, 0]] * 2.0, np.asarray([0, 1, 2, 0])
    assert 0.3 < fit_temperature(Kind.CLASSIFICATION, logits, targets) < 1


@given(st.integers(0, 10_000), st.floats(LEAST, MOST), st.sampled_from([Kind.CLASSIFICATION, Kind.MULTILABEL]))
def test_no_temperature_moves_a_decision(seed: int, temperature: float, kind: Kind) -> None:
    logits, _ = drawn(kind, 20, 1.0, seed)
    plain, scaled = probabilities(kind, logits), probabilities(kind, logits / temperature)
    if kind is Kind.MULTILABEL:
        assert ((plain >= 0.5) == (scaled >= 0.5)).all()
    else:
        assert (plain.argmax(-1) == scaled.argmax(-1)).all()


def test_the_error_is_the_distance_of_confidence_from_accuracy() -> None:
    logits = np.log(np.asarray([[0.8, 0.2]] * 10))
    targets = np.asarray([0] * 6 + [1] * 4)
    assert calibration_error(Kind.CLASSIFICATION, logits, targets) == pytest.approx(0.2)


def test_no_words_at_all_leave_the_temperature_at_one() -> None:
    logits, targets = flatten(Kind.TAGGING, [np.ones((0, 3))], [np.asarray([])])
    assert fit_temperature(Kind.TAGGING, logits, targets) == pytest.approx(1, abs=1e-3)
    assert calibration_error(Kind.TAGGING, logits, targets) == 0
