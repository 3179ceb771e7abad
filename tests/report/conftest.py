"""Report data of the shape that the pipeline writes, for any number of tasks: seeded, and consistent in itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

KINDS = {
    "classification": ("accuracy", ("accuracy", "macro_f1", "matthews")),
    "tagging": ("entity_f1", ("entity_f1", "token_accuracy")),
    "multilabel": ("micro_f1", ("micro_f1", "macro_f1", "subset_accuracy")),
    "regression": ("pearson_spearman", ("pearson_spearman", "pearson", "spearman", "mae")),
    "relevance": ("map", ("map", "mrr", "auc", "accuracy")),
}
NAMES = ("intent", "slots", "tone", "urgency", "same-request")
LAYER_MS = 4.0  # one layer on the reference request
BUDGET = 0.985


def candidates(draw: random.Random, depth: int, full: float, readings: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every (layers tuned, layers distilled, reading): more own layers are a little better and cost more."""
    hard = draw.choice((0.3, 1.0, 1.6))  # how much the task suffers from fewer layers
    made = []
    for reading in readings:
        for tuned in (1, 2, 3, 4):
            grid = [("tune", tuned)] + [("distill", own) for own in (1, 2) if own < tuned]
            for stage, own in grid:
                loss = hard * (0.004 * (4 - tuned) + 0.006 * (tuned - own)) + (0.03 if reading == "joint" else 0.0)
                valid = full - loss + draw.uniform(-0.006, 0.006)
                ms = own * LAYER_MS * (1.6 if reading == "joint" else 1.0) * draw.uniform(0.95, 1.05) + 0.3
                made.append(
                    {
                        "id": f"{stage}-{depth - tuned}-{own}-{reading}",
                        "stage": stage,
                        "fork": depth - tuned,
                        "layers": own,
                        "reading": reading,
                        "init": "teacher" if stage == "distill" else None,
                        "teacher": "self" if stage == "distill" else None,
                        "seed": 13,
                        "valid": valid,
                        "reported": valid - 0.007,
                        "ms": ms,
                        "ms_alone": (depth - tuned) * LAYER_MS + ms,
                        "chosen": False,
                    }
                )
    return made


def task(draw: random.Random, kind: str, depth: int) -> dict[str, Any]:
    """A task of which nothing is chosen yet."""
    metric, metrics = KINDS[kind]
    full = draw.uniform(0.82, 0.95)
    return {
        "kind": kind,
        "metric": metric,
        "rows": {"train": 3600, "valid": 400, "test": 212},
        "reported": "test",
        "baseline": {
            "valid": full,
            "metrics": {name: 0.11 if name == "mae" else full - 0.01 * i for i, name in enumerate(metrics)},
            "ms": depth * LAYER_MS,
            "reading": "joint" if kind == "relevance" else "single",
            "learning_rate": 1e-4,
        },
        "candidates": candidates(draw, depth, full, ("joint", "separate") if kind == "relevance" else ("single",)),
        "chosen": None,
        "scope": {"asked": 0.05, "valid": 0.0475, "reported": 0.0613} if kind == "classification" else None,
        "exits": exits(draw, kind, full),
        "notes": [],
    }


def exits(draw: random.Random, kind: str, full: float) -> dict[str, Any] | None:
    """What a task asks for, has, and has not: two exits for classification, none that pays for tagging."""
    if kind not in ("classification", "tagging"):
        return None
    if kind == "tagging":
        return {"rule": "entropy", "kept": [], "speeds": [], "curve": []}
    rows = []
    for i, keep in enumerate((None, 0.995, 0.99, 0.98)):
        valid = full * (keep or 1.0) + 0.001
        shares = {"layers": 1 - 0.17 * i, "time": 1 - 0.15 * i}
        speed = {"keep": keep, "speed": 0.04 * i**2, "valid": valid, "reported": valid - draw.uniform(0, 0.01)}
        rows.append({**speed, **shares, "calibration": 0.012 + 0.003 * i, "left": [0.1 * i, 0.2 * i, 1 - 0.3 * i]})
    curve = [{name: row[name] for name in ("speed", "valid", "reported", "layers", "time")} for row in rows]
    kept = [{"depth": 2, "form": "linear"}, {"depth": 4, "form": "attention"}]
    return {"rule": "entropy", "kept": kept, "speeds": rows, "curve": curve}


def choose(data: dict[str, Any], one: dict[str, Any], draw: random.Random) -> None:
    one["chosen"] = True
    gain = one["valid"] - data["baseline"]["valid"]
    metrics = {name: value + gain + draw.uniform(-0.004, 0.004) for name, value in data["baseline"]["metrics"].items()}
    data["chosen"] = {key: one[key] for key in ("fork", "layers", "reading", "seed", "valid", "ms")}
    data["chosen"]["metrics"] = metrics
    calibration = {"temperature": draw.uniform(0.8, 2.0), "before": draw.uniform(0.02, 0.1), "after": 0.0125}
    data["chosen"]["calibration"] = None if data["kind"] == "regression" else calibration


def depth_row(tasks: dict[str, Any], trunk: int) -> dict[str, Any]:
    """The selection's row of one trunk depth: for each task what is worth its milliseconds."""
    picked = {}
    for name, data in tasks.items():
        fitting = [one for one in data["candidates"] if one["fork"] <= trunk]
        picked[name] = max(fitting, key=lambda one: one["valid"] - 0.0022 * one["ms"])
    full = sum(data["baseline"]["valid"] for data in tasks.values())
    quality = sum(one["valid"] for one in picked.values()) / full
    separate = sum(data["baseline"]["ms"] for data in tasks.values())
    return {
        "depth": trunk,
        "feasible": quality >= BUDGET,
        "relative_quality_valid": quality,
        "relative_time": (trunk * LAYER_MS + sum(one["ms"] for one in picked.values())) / separate,
        "choice": {name: one["id"] for name, one in picked.items()},
    }


def build(n: int = 5, *, depth: int = 6, names: list[str] | None = None) -> dict[str, Any]:
    """A report of n tasks on an encoder of `depth` layers; the same for the same arguments."""
    draw = random.Random(5)
    kinds = list(KINDS)
    names = names or [NAMES[i] if i < len(NAMES) else f"{NAMES[i % 5]}-{i // 5 + 1}" for i in range(n)]
    tasks = {name: task(draw, kinds[i % len(kinds)], depth) for i, name in enumerate(names)}
    first = next(iter(tasks.values()))
    first["notes"] = ["train: 7 rows that also stand in test were dropped", "valid: 400 rows cut from train, seed 13"]
    rows = [depth_row(tasks, trunk) for trunk in range(depth - 4, depth)]
    best = min((row for row in rows if row["feasible"]), key=lambda row: row["relative_time"], default=rows[-1])
    for name, data in tasks.items():
        choose(data, next(one for one in data["candidates"] if one["id"] == best["choice"][name]), draw)
    graph = best["depth"] + sum(data["chosen"]["layers"] for data in tasks.values())
    quality_full = sum(data["baseline"]["metrics"][data["metric"]] for data in tasks.values()) / n
    quality = sum(data["chosen"]["metrics"][data["metric"]] for data in tasks.values()) / n
    separate = depth * LAYER_MS * n
    return {
        "project": "assistant",
        "created": "2026-03-04T16:20:00+00:00",
        "encoder": {"name": "minilm", "depth": depth, "width": 384, "fingerprint": "53aa51172d142c89" * 4},
        "machine": {"cpu": "Intel Xeon Platinum 8481C", "cores": 2, "torch": "2.9.1"},
        "cost": {"batch": 32, "tokens": 32, "engine": "torch", "dtype": "float32"},
        "tasks": tasks,
        "merged": {
            "trunk_depth": best["depth"],
            "layers_in_graph": graph,
            "layers_separate": depth * n,
            "relative_layers": graph / (depth * n),
            "ms_merged": best["relative_time"] * separate,
            "ms_separate": separate,
            "relative_time": best["relative_time"],
            "quality": quality,
            "quality_full": quality_full,
            "relative_quality": quality / quality_full,
            "budget": {"min_relative_quality": BUDGET},
            "met": best["feasible"],
        },
        "depths": rows,
        "paper_rule": {
            "relative_quality_valid": best["relative_quality_valid"] - 0.003,
            "relative_time": best["relative_time"] + 0.02,
            "relative_layers": graph / (depth * n) + 0.03,
            "choice": {name: data["candidates"][0]["id"] for name, data in tasks.items()},
        },
        "release": {"id": "r3", "bundle": "9f2c41d07be35a68"},
    }


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """Builds report data: `make_report(tasks, depth=…, names=…)`."""
    return build
