"""Candidates that are trained one by one, apart from any project's grid: what the map and its levers are made of.

A cell is one branch over the frozen trunk, or full fine-tuning, of one task with one seed, on the train rows that the
project's files allow. Results go line by line into a file, so that a run that was cut short goes on after its last one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_projects import with_values

from trunkline.model.branch import Reading
from trunkline.pipeline.execute import Workshop
from trunkline.pipeline.progress import Show, Silent
from trunkline.pipeline.project import Project
from trunkline.training.candidates import Trained, schedule_of, train_full, train_tuned
from trunkline.training.loop import Schedule
from trunkline.training.material import TaskMaterial


@dataclass(frozen=True)
class Cell:
    """`layers` own layers above `fork`; with `init` "full" all of the encoder is trained, and `fork` is 0."""

    task: str
    fork: int
    layers: int
    pair: str | None
    init: str
    pooling: str
    seed: int


class Bench:
    """Trains cells of one project over its encoder; the material of one task is held at a time."""

    def __init__(self, project: Project, scratch: Path) -> None:
        self.project = project
        self._scratch = scratch
        self._held: tuple[str, Workshop] | None = None

    def material(self, task: str, pooling: str = "cls") -> TaskMaterial:
        """What training reads of a task, prepared if need be."""
        if self._held is None or self._held[0] != task:
            self._held = task, self.alone(task).train([f"{task}/prepare"], show=Silent())
        material = self._held[1].material(task)
        tune = with_values(material.settings.tune, pooling=pooling)
        return replace(material, settings=with_values(material.settings, tune=tune))

    def about(self, task: str) -> dict[str, Any]:
        """What figures of a task depend on besides the branch: trunk, rows and schedule."""
        settings = self.project.task(task)
        tables = {name: getattr(settings, name).model_dump(mode="json") for name in ("tune", "full")}
        return {"trunk": self.project.source.fingerprint, "rows": settings.data.max_train_rows, **tables}

    def alone(self, task: str) -> Project:
        """The project with this task only."""
        return self.project.over(replace(self.project.files, tasks={task: self.project.task(task)}))

    def schedule(self, material: TaskMaterial, seed: int, **changes: Any) -> Schedule:
        """The schedule of the task's `[tune]` table, with some of its values replaced."""
        tune = with_values(material.settings.tune, **changes)
        return schedule_of(tune, tune.learning_rate, seed=seed, precision=material.precision, device="cpu")

    def checkpoint(self) -> Path:
        """Where a run may keep its state; nothing of an earlier one is there."""
        path = self._scratch / "checkpoint.pt"
        path.unlink(missing_ok=True)
        return path

    def train(self, cell: Cell) -> Trained:
        """The branch of a cell with its metrics."""
        material = self.material(cell.task, cell.pooling)
        reading = Reading(cell.pair or "single")
        if cell.init == "full":
            rate = material.settings.full.learning_rate[0]
            schedule = self.schedule(material, cell.seed, learning_rate=rate)
            return train_full(material, reading, schedule, self.checkpoint(), _quiet)
        return train_tuned(
            material,
            reading,
            cell.layers,
            self.schedule(material, cell.seed),
            self.checkpoint(),
            _quiet,
            fork=cell.fork,
            random=cell.init == "random",
        )


def shortened(project: Project, epochs: Mapping[str, float]) -> Project:
    """The project with the same few epochs for every cell of a task: 5, or as many as `epochs` says."""
    tasks = {}
    for name, settings in project.files.tasks.items():
        tune = with_values(settings.tune, epochs=epochs.get(name, 5.0), min_steps=0)
        tasks[name] = with_values(settings, tune=tune)
    return project.over(replace(project.files, tasks=tasks))


def adapted(project: Project, name: str, without: Sequence[str], show: Show) -> None:
    """Adapt the trunk to the project's tasks but for `without`; one of that name that is there must be just that."""
    for trunk in project.trunks.all():
        if trunk.name == name:
            asked = project.files.settings.adapt.model_dump(mode="json")
            same = all(trunk.settings.get(key, value) == value for key, value in asked.items() if key != "depths")
            if set(trunk.tasks) != set(project.tasks) - set(without) or not same:
                raise SystemExit(f"{project.trunks.folder / name} was adapted to other tasks or otherwise: remove it")
            return
    project.trunks.adapt(name, without=without, show=show)


def over(project: Project, trunk: str | None) -> Project:
    """The project over one of its trunks, or over the published one."""
    if trunk is None:
        return project
    settings = with_values(project.files.settings, encoder=f"trunks/{trunk}")
    return project.over(replace(project.files, settings=settings))


def figures(material: TaskMaterial, trained: Trained) -> dict[str, Any]:
    """The task's metric on `valid` and on the reported split, and the steps that it took."""
    splits = {name: metrics[material.metric] for name, metrics in trained.metrics.items()}
    return {
        "valid": splits.pop("valid"),
        "dev": splits[material.data.main_split],
        "split": material.data.main_split,
        "steps": trained.outcome.steps,
    }


def run_all(
    cells: Iterable[Any],
    file: Path,
    train: Callable[[Any], dict[str, Any]],
    say: Callable[[str], None],
    about: Callable[[Any], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The figures of all cells (dataclasses), each with its fields; those that `file` has are not trained again.

    `about` gives all else that a cell's figures depend on, so that another limit on rows is another line.
    """
    lines = file.read_text().splitlines() if file.exists() else []
    done = {_name(line["cell"], line["about"]): line for line in map(json.loads, lines)}
    cells, found = list(cells), []
    for number, cell in enumerate(cells, 1):
        line: dict[str, Any] = {"cell": asdict(cell), "about": about(cell)}
        name = _name(**line)
        if name not in done:
            started = time.monotonic()
            figures = train(cell)
            done[name] = {**line, "figures": {**figures, "seconds": round(time.monotonic() - started, 1)}}
            with file.open("a") as out:
                out.write(json.dumps(done[name]) + "\n")
            say(f"{number}/{len(cells)} {' '.join(map(str, line['cell'].values()))}: {done[name]['figures']}")
        found.append({**line["cell"], **done[name]["figures"]})
    return found


def _name(cell: dict[str, Any], about: dict[str, Any]) -> str:
    return json.dumps([cell, about], sort_keys=True)


def _quiet(_: Any) -> None:
    pass
