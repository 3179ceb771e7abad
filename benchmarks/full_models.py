"""The strongest full model of each task: fine-tuning over learning rates and, for pairs, over both readings.

Rates are climbed in steps of two from `START` while `valid` rises, in the first reading that the task's `[full]` names;
other readings are then tried at the best rate. Large tasks are searched on `ROWS` train rows and trained once on all;
where these few tell nothing, as where a multilabel task learns to name no label, they are searched on all, too.
Every trial is a stage of the project's store, so that a killed search goes on where it was. A `Ledger` keeps what
trials came to beyond the life of a project's folder, so that one day's search goes on another day, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_projects import with_values
from kept import read_result

from trunkline.atomic import exclusive, write_json
from trunkline.machine import machine
from trunkline.pipeline.progress import Show
from trunkline.pipeline.project import Project
from trunkline.pipeline.stages import StageKind
from trunkline.project.config import TaskSettings

START = 1e-4
ROWS = 4_000
"""Train rows that the search of a large task sees."""


@dataclass(frozen=True)
class Way:
    """How a full model is trained; `reading` is None for single texts."""

    learning_rate: float
    reading: str | None = None


@dataclass(frozen=True)
class Full:
    """A full model: how it was found to be trained, with every way that was tried, and its metrics by split."""

    way: Way
    metrics: dict[str, dict[str, float]]
    tried: list[dict[str, Any]]


class Ledger:
    """Metrics of full models in a file, by the key of the stage that trains them: encoder, rows, schedule and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _models(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = read_result(self.path).get("models", {})
        return found

    def metrics(self, key: str) -> dict[str, dict[str, float]] | None:
        """What the model of a stage came to by split, None where it is not known."""
        found = self._models.get(key)
        return None if found is None else found["metrics"]

    def add(self, key: str, about: dict[str, Any]) -> None:
        """Write down one more, with what a reader wants to know about it, beside what others wrote meanwhile."""
        command = "python benchmarks/merged.py DATA_FOLDER --work FOLDER --set SET"
        with exclusive(self.path.with_suffix(".lock")):
            models = {**self._models, key: about}
            order = sorted(models.items(), key=lambda item: (item[1]["id"], item[1]["rows"], item[0]))
            write_json(self.path, {"command": command, "models": dict(order)})


def strongest(project: Project, large: Collection[str], show: Show, ledger: Ledger) -> dict[str, Full]:
    """The full model of each task by the best way on `valid`."""
    found = {}
    for task in project.tasks:
        settings = project.task(task)
        search = _with_rows(settings, ROWS) if task in large else settings
        way, tried = _search(project, task, search, show, ledger)
        if search is not settings and len({one["valid"] for one in tried}) == 1:
            way, tried = _search(project, task, settings, show, ledger)  # so few rows tell no rate from another
        found[task] = Full(way, trained(project, task, settings, way, show, ledger), tried)
    return found


def trained(
    project: Project, task: str, settings: TaskSettings, way: Way, show: Show, ledger: Ledger
) -> dict[str, dict[str, float]]:
    """Metrics by split of one full model, trained unless the ledger or the store has it."""
    alone = project.over(replace(project.files, tasks={task: by(settings, way)}))
    [stage] = alone.graph.of(task, StageKind.FULL)
    key = alone.graph.keys[stage.id]
    if (known := ledger.metrics(key)) is not None:
        return known
    alone.train([stage.id], show=show)
    result = alone.store.get(key).result
    rows = alone.store.get(alone.graph.keys[f"{task}/prepare"]).result["rows"]["train"]
    about = {"id": stage.id, **asdict(way), "trunk": project.source.fingerprint[:16], "rows": rows}
    ledger.add(key, {**about, **{name: result[name] for name in ("metrics", "seconds")}, "machine": machine()})
    metrics: dict[str, dict[str, float]] = result["metrics"]
    return metrics


def by(settings: TaskSettings, way: Way) -> TaskSettings:
    """A task whose full model is trained in one way alone."""
    asked: dict[str, Any] = {"learning_rate": [way.learning_rate]} | ({"pair": [way.reading]} if way.reading else {})
    return with_values(settings, full=with_values(settings.full, **asked))


def climb(score: Callable[[float], float], start: float = START) -> float:
    """The rate with the best score, from `start` in steps of two, upwards first, as long as it rises."""
    best, height = start, score(start)
    for factor in (2.0, 0.5):
        while (reached := score(best * factor)) > height:
            best, height = best * factor, reached
        if best != start:
            break
    return best


def _search(
    project: Project, task: str, settings: TaskSettings, show: Show, ledger: Ledger
) -> tuple[Way, list[dict[str, Any]]]:
    pairs = _reads_pairs(project, task)
    first, *others = settings.full.pair if pairs else [None]
    tried: list[dict[str, Any]] = []

    def score(way: Way) -> float:
        metrics = trained(project, task, settings, way, show, ledger)
        tried.append({**asdict(way), "valid": metrics["valid"][settings.primary_metric]})
        return float(tried[-1]["valid"])

    rate = climb(lambda rate: score(Way(rate, first)))
    for reading in others:
        score(Way(rate, reading))
    best = max(tried, key=lambda one: float(one["valid"]))
    return Way(best["learning_rate"], best["reading"]), tried


def _reads_pairs(project: Project, task: str) -> bool:
    return any(stage.fields["reading"] != "single" for stage in project.graph.of(task, StageKind.FULL))


def _with_rows(settings: TaskSettings, rows: int) -> TaskSettings:
    return with_values(settings, data=with_values(settings.data, max_train_rows=rows))
