"""Temperature scaling: one number by which a finished branch's logits are divided, so that its confidence holds.

Guo et al. 2017, section 4.2: the temperature that makes the labels of `valid` most likely. It moves no decision. Knows
logits and targets of a kind; nothing of models.

Notation: n outcomes that were predicted (rows, words, or labels of rows), C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.project.tasks import Kind, probabilities

BINS = 15
LEAST, MOST = 0.1, 10.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The temperature of a branch, and its expected calibration error by split, before and after."""

    temperature: float
    ece: dict[str, tuple[float, float]]


def flatten(kind: Kind, logits: Any, targets: Any) -> tuple[Floats, NDArray[Any]]:
    """Logits (n, C) and what they should have been, (n,) or for multilabel (n, 1) of single labels; of tagging, the
    words of all rows one after the other.
    """
    if kind is Kind.TAGGING:
        rows = [np.asarray(row, dtype=np.float64) for row in logits]
        return np.concatenate(rows), np.concatenate([np.asarray(tags, dtype=np.int64) for tags in targets])
    values = np.asarray(logits, dtype=np.float64)
    if kind is Kind.MULTILABEL:
        return values.reshape(-1, 1), np.asarray(targets).reshape(-1, 1)
    return values, np.asarray(targets)


def fit_temperature(kind: Kind, logits: Floats, targets: NDArray[Any]) -> float:
    """The temperature between `LEAST` and `MOST` under which these targets are most likely, from what `flatten` gives.

    A weak preference for 1 keeps it from running off where few rows are all told right.
    """
    from scipy.optimize import minimize_scalar

    def loss(log: float) -> float:
        return float(_surprise(kind, logits / np.exp(log), targets).sum() + 0.5 * log**2)

    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded")
    return float(np.exp(found.x))


def calibration_error(kind: Kind, logits: Floats, targets: NDArray[Any]) -> float:
    """Expected calibration error: how far confidence is from accuracy, over `BINS` equal ranges of confidence (Naeini
    et al. 2015).
    """
    shares = probabilities(kind, logits)
    if kind is Kind.MULTILABEL:
        shares, targets = np.concatenate([1 - shares, shares], axis=1), targets[:, 0].astype(np.int64)
    sure, right = shares.max(-1), shares.argmax(-1) == targets
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(float(right[bins == i].mean() - sure[bins == i].mean())) * float((bins == i).mean()) for i in set(bins)]
    return float(sum(gaps))


def calibrate(kind: Kind, splits: Mapping[str, tuple[Any, Any]]) -> Calibration | None:
    """From logits and encoded targets by split, "valid" among them, on which alone it is fitted; None for regression,
    which has no confidence. Of tagging, give the words that were read: those that truncation took have no logits.
    """
    if kind is Kind.REGRESSION:
        return None
    flat = {split: flatten(kind, logits, targets) for split, (logits, targets) in splits.items()}
    temperature = fit_temperature(kind, *flat["valid"])
    ece = {
        split: (calibration_error(kind, logits, targets), calibration_error(kind, logits / temperature, targets))
        for split, (logits, targets) in flat.items()
    }
    return Calibration(temperature, ece)


def _surprise(kind: Kind, logits: Floats, targets: NDArray[Any]) -> Floats:
    """Minus the log likelihood of each target, (n,)."""
    if kind is Kind.MULTILABEL:
        return np.asarray(np.logaddexp(0.0, np.where(targets > 0, -logits, logits)))[:, 0]
    peak = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]
    return np.asarray(total - np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0])
