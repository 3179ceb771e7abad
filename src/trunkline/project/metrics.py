"""Every metric of every kind, through scikit-learn, scipy and seqeval, from logits.

Knows targets and logits as numbers. A metric that the rows cannot define (F1 without a positive label, MAP without a
query that has both labels) is left out rather than made up; a constant prediction correlates 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trunkline.project.tasks import Kind, encode_targets, predicted_tags

if TYPE_CHECKING:
    from trunkline.project.rows import Rows

Logits = NDArray[Any] | Sequence[NDArray[Any]]
Floats = NDArray[np.float64]


def evaluate(kind: Kind, labels: Sequence[str], positive: str | None, rows: Rows, logits: Logits) -> dict[str, float]:
    """Metric name -> value for these rows.

    `logits`: (n, C), regression (n, 1) or (n,) in the user's unit, tagging n arrays of (words, C), where missing or NaN
    words count as "O". Raises ValueError for logits that are not one finite row per row.
    """
    if len(logits) != len(rows):
        raise ValueError(f"{len(logits)} rows of logits for {len(rows)} rows")
    if kind is Kind.TAGGING:
        return _tagging(labels, rows, logits)
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("logits are not finite")
    targets = np.asarray(encode_targets(kind, labels, rows))
    if kind is Kind.REGRESSION:
        return _regression(targets.astype(np.float64), values.reshape(-1))
    if kind is Kind.MULTILABEL:
        return _multilabel(targets.astype(np.int64), values)
    if kind is Kind.RELEVANCE:
        return _relevance(targets, values, rows.groups or rows.texts)
    return _classification(
        targets, values.argmax(-1), None if positive is None else list(labels).index(positive), len(labels)
    )


def _classification(gold: NDArray[Any], guess: NDArray[Any], positive: int | None, count: int) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    found = {
        "accuracy": float(accuracy_score(gold, guess)),
        "macro_f1": float(f1_score(gold, guess, average="macro", zero_division=0)),
        # Undefined where all is one label on both sides; 0 as where only one side is.
        "matthews": float(matthews_corrcoef(gold, guess)) if len({*gold.tolist(), *guess.tolist()}) > 1 else 0.0,
    }
    if count == 2 and positive is not None:
        found["f1"] = float(f1_score(gold == positive, guess == positive, zero_division=0))
        found["accuracy_f1"] = (found["accuracy"] + found["f1"]) / 2
    return found


def _multilabel(gold: NDArray[Any], logits: Floats) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    guess = (logits >= 0).astype(np.int64)  # probability at least 0.5
    return {
        "micro_f1": float(f1_score(gold, guess, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(gold, guess, average="macro", zero_division=0)),
        "subset_accuracy": float(accuracy_score(gold, guess)),
    }


def _regression(gold: Floats, guess: Floats) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error

    pearson, spearman = _correlation(pearsonr, gold, guess), _correlation(spearmanr, gold, guess)
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
        "mae": float(mean_absolute_error(gold, guess)),
    }


def _correlation(measure: Any, gold: Floats, guess: Floats) -> float:
    if len(gold) < 2 or np.ptp(gold) == 0 or np.ptp(guess) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant: the value is noise, and so it may be
        value = float(measure(gold, guess).statistic)
    return value if np.isfinite(value) else 0.0


def _tagging(labels: Sequence[str], rows: Rows, logits: Logits) -> dict[str, float]:
    from seqeval.metrics import accuracy_score, f1_score

    guess = [predicted_tags(labels, np.asarray(row), len(tags)) for row, tags in zip(logits, rows.targets, strict=True)]
    return {
        "entity_f1": float(f1_score(rows.targets, guess, zero_division=0)),
        "token_accuracy": float(accuracy_score(rows.targets, guess)),
    }


def _relevance(gold: NDArray[Any], logits: Floats, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy and AUC over all rows; MAP and MRR over the queries that have both labels, as usual for WikiQA.

    Ties count against the ranking, so that equal scores for all are no good ranking.
    """
    from sklearn.metrics import accuracy_score, label_ranking_average_precision_score, roc_auc_score

    score = logits[:, 1] - logits[:, 0]  # (n,) rises with the probability of the positive label
    found = {"accuracy": float(accuracy_score(gold, logits.argmax(-1)))}
    if 0 < gold.sum() < len(gold):
        found["auc"] = float(roc_auc_score(gold, score))
    queries: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        queries.setdefault(group, []).append(row)
    by_size: dict[int, list[list[int]]] = {}  # one call of the library for all queries of a size
    reciprocal: list[float] = []
    for members in queries.values():
        if 0 < gold[members].sum() < len(members):
            by_size.setdefault(len(members), []).append(members)
            positive, negative = score[members][gold[members] == 1], score[members][gold[members] == 0]
            reciprocal.append(float(1 / (1 + np.sum(negative >= positive.max()))))  # no library has MRR
    if reciprocal:
        totals = [
            label_ranking_average_precision_score(gold[np.asarray(same)], score[np.asarray(same)]) * len(same)
            for same in by_size.values()
        ]
        found["map"] = float(sum(totals) / len(reciprocal))
        found["mrr"] = float(np.mean(reciprocal))
    return found
