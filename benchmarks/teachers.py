"""What several teachers make of a small student: `python benchmarks/teachers.py DATA_FOLDER --work FOLDER`.

Six tasks over pairs, at most 4,000 train rows each, over the packaged trunk as published, which is adapted to none of
them. Three teachers differ in how they were trained, in their layers, seeds and readings: `self`, all layers tuned,
reading jointly, of the student's own seed; `full@14`, full fine-tuning; `tune:3/separate@15`, the top three layers,
reading the texts of a pair apart. The student has the bottom three of the layers of `self` over the embeddings. It
learns from the labels alone, from the teacher that is best on `valid` too, from the mean of all, and on heads; the
last also after a first stage on 10,000 pairs without labels. These are queries and passages of the task's own train
rows, recombined, as the three teachers of the first seed answer them.

Quality is the task's metric on the reported split through the engine that serves; the ensemble is the mean of the
three teachers' calibrated probabilities. Speed is that of the same requests, asked of the teachers and a student in
turn; an ensemble asks its teachers one after the other. What counts of the students of all teachers is, for each task,
the one that is best on `valid`. Everything is trained as stages of the project in FOLDER, so that a killed run goes on
where it was, and `--tasks` puts its rows in the place of what the result has of them. Hours: about nine of one core,
reckoned from 3,700 padded tokens a second in full fine-tuning.

Result: benchmarks/results/teachers.json, docs/teachers-benchmark.md with its plot.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from asked import calibrated, engine_of, jobs, outputs, requests, score
from data_projects import with_values, write_project
from kept import with_rows
from numpy.typing import NDArray
from rich.console import Console
from shards import recombine
from teachers_page import RESULT, write_page

from trunkline.atomic import write_json
from trunkline.engine.base import Engine, Input
from trunkline.engine.choose import Choice, choose
from trunkline.engine.timing import compare, with_last_layer
from trunkline.machine import machine
from trunkline.model.branch import Branch, load_branch
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk
from trunkline.pipeline.assemble import inputs_of
from trunkline.pipeline.crew import usual_processes
from trunkline.pipeline.execute import BRANCH, ENCODER, Workshop
from trunkline.pipeline.progress import Terminal
from trunkline.pipeline.project import Project
from trunkline.pipeline.shards import cut
from trunkline.pipeline.stages import Stage, StageKind
from trunkline.pipeline.teach import teacher_work
from trunkline.pipeline.teach_command import make
from trunkline.project.rows import Rows
from trunkline.project.tasks import Kind, probabilities

TASKS = ("wikiqa", "trecqa", "boolq", "snli", "qnli", "rte")
ROWS = 4_000
PAIRS = 10_000
SEEDS = (13, 14, 15)
OWN, APART = 3, 3
"""Layers of a student, and of the teacher that reads texts apart."""
TEACHERS = ("self", "full@14", f"tune:{APART}/separate@15")
EPOCHS = {"boolq": 3.0}
"""Where fewer do than `examples/glue` has: the texts are long."""
RATE = 1e-4
"""Learning rate of all teachers and students."""
ROUNDS = 5
REQUESTS, BATCH = 12, 32
"""Requests that are timed, and pairs in each."""
STUDENTS = ("student_plain", "student_one", "student_mean", "student_heads", "student_heads_two_stage")
MANY = STUDENTS[2:]
"""Students of all teachers."""


@dataclass(frozen=True)
class Model:
    """A trained model, by the stage that made it: its branch, the trunk below, and the task's metric on `valid`."""

    stage: str
    branch: Branch
    trunk: Trunk
    valid: float

    @property
    def layers(self) -> int:
        """Layers that a row goes through."""
        return self.branch.spec.depth

    @property
    def megabytes(self) -> float:
        """Its weights in 32-bit floats: embeddings, the layers of the trunk below the branch, and the branch."""
        parts = self.trunk.encoder, self.trunk.encoder.layers[self.branch.spec.fork :], self.branch
        encoder, above, branch = (sum(weight.numel() for weight in part.parameters()) for part in parts)
        return 4 * (encoder - above + branch) / 1e6


@dataclass(frozen=True)
class Ready:
    """A task with the rows that it is judged on; its teachers by name, and its students, each by seed. `one` is the
    teacher that is best on `valid`.
    """

    name: str
    metric: str
    rows: Rows
    teachers: dict[str, dict[int, Model]]
    students: dict[str, dict[int, Model]]
    one: str


def main() -> None:
    """Train what is not there yet, measure, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/ and qa/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="of students")
    parser.add_argument("--train-only", action="store_true", help="measure nothing, as where others use the machine")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--page", type=Path, help="the docs page (docs/teachers-benchmark.md for the default --out)")
    options = parser.parse_args()
    write_project(options.data, options.work, options.tasks, "--rows", str(ROWS), "--pair", "joint", "separate")
    choice: Choice | None = None
    for name in options.tasks:
        ready = trained(prepared(Project.load(options.work), name), name, options.seeds)
        if options.train_only:
            continue
        choice = choice or choose(ready.students["student_plain"][options.seeds[0]].trunk, "openvino", "auto", "cpu")
        # Rows of other tasks may be of another day: each says how it was measured.
        about = {"seeds": list(options.seeds), "engine": f"{choice.engine} {choice.dtype}", "machine": machine()}
        write([{**row, **about} for row in measured(ready, choice)], options)


def write(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Put the rows of a task in the place of those that the result has of it, and write result and page."""
    rows = sorted(with_rows(options.out, rows, "task"), key=lambda row: TASKS.index(row["task"]))
    found = {
        "command": "python benchmarks/teachers.py DATA_FOLDER --work FOLDER",
        "machine": machine(),
        "train_rows": ROWS,
        "pairs": PAIRS,
        "batch": BATCH,
        "rounds": ROUNDS,
        "rows": rows,
        "summary": summary(rows),
    }
    write_json(options.out, found)
    print(options.out, write_page(options.out, options.page))


def prepared(project: Project, name: str) -> Project:
    """The project with this task alone: its teachers, and students of all of them, of each, and of none."""
    settings, task = project.files.settings, project.task(name)
    epochs = EPOCHS.get(name, task.tune.epochs)
    search = with_values(settings.search, seeds=len(SEEDS))
    taught = {"teachers": list(TEACHERS), "compare": True, "mode": ["mean", "heads"]}
    task = with_values(
        task,
        tune=with_values(task.tune, layers=sorted({APART, project.source.depth}), learning_rate=RATE, epochs=epochs),
        full=with_values(task.full, learning_rate=[RATE], pair=["joint"], epochs=epochs),
        distill=with_values(task.distill, layers=[OWN], learning_rate=RATE, epochs=epochs, **taught),
    )
    settings = with_values(settings, seed=SEEDS[0], search=search)
    return project.over(replace(project.files, settings=settings, tasks={name: task}))


def trained(project: Project, name: str, seeds: Sequence[int]) -> Ready:
    """A task's teachers and students, trained where they are not yet."""

    def students(of: Project, by: Sequence[str], mode: str) -> dict[int, Model]:
        return models(of, {seed: student(of, by, seed, mode) for seed in seeds})

    named = {
        seed: {one.called: str(one.stage) for one in student(project, TEACHERS, seed, "mean").teachers}
        for seed in seeds
    }
    teachers = {
        teacher: models(project, {seed: project.graph.all[named[seed][teacher]] for seed in seeds})
        for teacher in TEACHERS
    }
    one = max(TEACHERS, key=lambda teacher: statistics.mean(model.valid for model in teachers[teacher].values()))
    found = {
        "student_plain": students(project, (), "mean"),
        "student_one": students(project, (one,), "mean"),
        "student_mean": students(project, TEACHERS, "mean"),
        "student_heads": students(project, TEACHERS, "heads"),
        "student_heads_two_stage": students(two_stages(project, name), TEACHERS, "heads"),
    }
    data = project.train([f"{name}/prepare"]).data(name)
    return Ready(name, project.task(name).primary_metric, data.reported[data.main_split], teachers, found, one)


def student(project: Project, teachers: Sequence[str], seed: int, mode: str) -> Stage:
    """The stage of the project's one task that trains a student of these teachers."""
    wanted = {"reading": "joint", "from": project.source.depth, "seed": seed, "teachers": sorted(teachers)}
    [found] = [
        stage
        for stage in project.graph.of(project.tasks[0], StageKind.DISTILL)
        if all(stage.fields[key] == value for key, value in wanted.items()) and stage.fields.get("mode", "mean") == mode
    ]
    return found


def models(project: Project, stages: dict[int, Stage]) -> dict[int, Model]:
    """The models that these stages make, trained where they are not yet."""
    with Terminal(Console(stderr=True)) as show:
        workshop = project.train([stage.id for stage in stages.values()], show=show)
    return {seed: model_of(workshop, stage) for seed, stage in stages.items()}


def model_of(workshop: Workshop, stage: Stage) -> Model:
    """The model of a finished stage; a full one is over an encoder of its own, whose last layer is its branch's."""
    entry = workshop.store.get(workshop.graph.keys[stage.id])
    trunk = workshop.trunk
    if full := stage.kind is StageKind.FULL:
        trunk = Trunk(Encoder.load(entry.folder / ENCODER), trunk.fingerprint)
    branch = load_branch(entry.folder / BRANCH, trunk.encoder)
    temperature = entry.result["calibration"]["temperature"]  # which a full model's file does not have
    branch.spec = with_values(branch.spec, temperature=temperature)
    valid = entry.result["metrics"]["valid"][workshop.files.tasks[stage.task].primary_metric]
    return Model(stage.id, with_last_layer(branch, trunk.encoder) if full else branch, trunk, valid)


def two_stages(project: Project, name: str) -> Project:
    """The project whose students of all teachers first learn what these said of pairs without labels."""
    data = project.train([f"{name}/prepare"]).data(name)
    rows = data.fit.take(data.train)
    folder = Path("unlabelled", f"{name}-{PAIRS}-{project.graph.keys[f'{name}/prepare'][:8]}")
    pairs = project.root / folder / "pairs.jsonl"
    pairs.parent.mkdir(parents=True, exist_ok=True)
    recombine(rows.texts, rows.pairs or [], pairs, PAIRS, SEEDS[0])
    shards = []
    for teacher in (f"tune:{project.source.depth}/joint@{SEEDS[0]}", *TEACHERS[1:]):
        shards.append(str(folder / re.sub(r"\W", "-", teacher)))
        with Terminal(Console(stderr=True)) as show:
            work = teacher_work(project, name, teacher, threads=1, show=show)
        job = cut(project.root / shards[-1], [str(pairs)], work.fields, pairs=True)
        make(f"{name}: {teacher}", job, work, processes=usual_processes(1, work.question.device), ray=None)
    task = project.task(name)
    task = with_values(
        task,
        pretrain=with_values(task.pretrain, shards=shards, mode="heads", learning_rate=RATE),
        distill=with_values(task.distill, init=["pretrained"], compare=False),
    )
    return project.over(replace(project.files, tasks={name: task}))


def measured(ready: Ready, choice: Choice) -> list[dict[str, Any]]:
    """The rows of a task: its teachers, their ensemble, and its students."""
    inputs, seeds = inputs_of(ready.rows), list(ready.students["student_plain"])
    shapes = {**ready.teachers, "student": ready.students["student_plain"]}
    timed = {by_seed[seeds[0]].stage: who for who, by_seed in shapes.items()}
    said: dict[str, NDArray[Any]] = {}
    engines: dict[str, Engine] = {}
    for by_seed in (*ready.teachers.values(), *ready.students.values()):
        for one in by_seed.values():
            if one.stage in said:
                continue
            engine = engine_of(one.trunk, choice, {ready.name: one.branch})
            said[one.stage] = np.asarray(calibrated(one.branch.spec, outputs(engine, inputs, ready.name)))
            if one.stage in timed:
                engines[timed[one.stage]] = engine
    rates = speeds(engines, ready.name, inputs)

    def figures(by_seed: Mapping[int, Model], rate: float) -> dict[str, Any]:
        each = list({one.stage: one for one in by_seed.values()}.values())  # another seed may be the same model
        return {
            "quality": [score(one.branch.spec, ready.metric, ready.rows, said[one.stage]) for one in each],
            "valid": [one.valid for one in each],
            "queries_per_s": rate,
            "layers": each[0].layers,
            "megabytes": each[0].megabytes,
        }

    def together(seed: int) -> float:
        spec = ready.teachers[TEACHERS[0]][seed].branch.spec
        logits = ensemble(spec.kind, [said[by_seed[seed].stage] for by_seed in ready.teachers.values()])
        return score(spec, ready.metric, ready.rows, logits)

    about = {"task": ready.name, "metric": ready.metric}
    rows: list[dict[str, Any]] = [
        {**about, "model": "teacher", "teacher": teacher, **figures(by_seed, rates[teacher])}
        for teacher, by_seed in ready.teachers.items()
    ]
    joined: dict[str, Any] = {"quality": [together(seed) for seed in seeds]}
    joined["queries_per_s"] = 1 / sum(1 / row["queries_per_s"] for row in rows)
    joined |= {size: sum(row[size] for row in rows) for size in ("layers", "megabytes")}
    rows.append({**about, "model": "ensemble", **joined})
    fewer: dict[str, list[str]] = {"student_plain": [], "student_one": [ready.one]}
    for model, by_seed in ready.students.items():
        taught = {"model": model, "teachers": fewer.get(model, list(TEACHERS))}
        rows.append({**about, **taught, **figures(by_seed, rates["student"])})
    return rows


def ensemble(kind: Kind, said: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Logits (n, C) of the mean of what models say: of the probabilities of their calibrated logits (n, C)."""
    mean: NDArray[np.float64] = np.mean([probabilities(kind, logits) for logits in said], axis=0)
    return np.log(mean)


def speeds(engines: Mapping[str, Engine], task: str, inputs: Sequence[Input]) -> dict[str, float]:
    """Queries a second of each engine, all of them asked the same requests in turn."""
    drawn = requests(inputs, BATCH, REQUESTS)

    def ask(engine: Engine) -> None:
        for one in drawn:
            engine.run(jobs(engine, one, [task]), batch_size=BATCH)

    times = compare({who: partial(ask, engine) for who, engine in engines.items()}, ROUNDS)
    return {who: 1000 * sum(map(len, drawn)) / milliseconds for who, milliseconds in times.items()}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of these tasks come to: means over tasks, and over seeds in each. `student` is that of all teachers
    which counts, for each task the best on `valid`; throughput is that of as many queries of each task.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = {(row["task"], row["model"]): row for row in rows if row["model"] != "teacher"}
    chosen = {task: max(MANY, key=lambda model: statistics.mean(found[task, model]["valid"])) for task in tasks}
    models = {"ensemble": dict.fromkeys(tasks, "ensemble"), **{one: dict.fromkeys(tasks, one) for one in STUDENTS}}
    by_task = {
        name: [statistics.mean(found[task, model[task]]["quality"]) for task in tasks]
        for name, model in {**models, "student": chosen}.items()
    }
    quality = {name: statistics.mean(values) for name, values in by_task.items()}
    seconds = {
        name: sum(1 / found[task, model]["queries_per_s"] for task in tasks)
        for name, model in (("ensemble", "ensemble"), ("student", STUDENTS[0]))
    }
    return {
        "tasks": len(tasks),
        "student": chosen,
        "quality": quality,
        "relative_to_ensemble": quality["student"] / quality["ensemble"],
        "throughput_over_ensemble": seconds["ensemble"] / seconds["student"],
        "better_than_plain": sum(
            many > plain for many, plain in zip(by_task["student"], by_task["student_plain"], strict=True)
        ),
        "over_one_teacher": quality["student"] - quality["student_one"],
        "two_stages_over_one": quality["student_heads_two_stage"] - quality["student_heads"],
    }


if __name__ == "__main__":
    main()
