"""A teacher of a task found by its name, and made ready to score shards. torch is imported when one is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.errors import ProjectError, UsageError, unknown
from trunkline.pipeline.asking import Question, Trained
from trunkline.pipeline.execute import BRANCH, ENCODER
from trunkline.pipeline.foreign import ForeignTeacher, fit, foreign_teacher, released_teacher
from trunkline.pipeline.scoring import TeacherWork
from trunkline.pipeline.stages import StageKind
from trunkline.pipeline.ways import full_stem
from trunkline.project.teachers import MODEL_FORM, Own, foreign, own, soft_file

if TYPE_CHECKING:
    from trunkline.pipeline.progress import Show
    from trunkline.pipeline.project import Project

RELEASE = "release"
"""The task's own live release, as a teacher."""


def teacher_work(project: Project, task: str, name: str, *, threads: int, show: Show) -> TeacherWork:
    """What a process needs to ask a teacher of `task`. A model of the task's own is trained where it is not yet.

    Raises UsageError where the name stands for no model, ProjectError with all that keeps it from teaching the task.
    """
    if task not in project.tasks:
        raise UsageError(unknown("task", task, project.tasks))
    project = _without_shards(project, task)
    teacher = _teacher(project, task, name, show)
    workshop = project.train([f"{task}/prepare"], show=show)
    data, settings = workshop.data(task), project.task(task)
    how, problems = fit(teacher, task, settings, data)
    if problems:
        raise ProjectError(problems)
    question = Question(settings.kind, tuple(data.labels), settings.max_tokens, workshop.device)
    return TeacherWork(teacher.model, teacher.content, how, question, data.fit.pairs is not None, threads)


def _without_shards(project: Project, task: str) -> Project:
    """The project as if the task learned from no shards: folders that its file names may be those to be filled."""
    settings = project.task(task)
    first = settings.pretrain.model_copy(update={"shards": []})
    teachers = [name for name in settings.distill.teachers if soft_file(name) is None]
    students = settings.distill.model_copy(update={"init": ["teacher"], "teachers": teachers or ["self"]})
    alone = settings.model_copy(update={"pretrain": first, "distill": students})
    return project.over(replace(project.files, tasks={**project.files.tasks, task: alone}))


def _teacher(project: Project, task: str, name: str, show: Show) -> ForeignTeacher:
    if name == RELEASE:
        live = project.released()
        if task not in live.tasks:
            raise UsageError(unknown("task", task, live.tasks))
        return released_teacher(name, project.releases.folder(live), task)
    if (asked := foreign(name)) is not None:
        return foreign_teacher(project.root, name, asked, project.store.hashes)
    if (mine := own(name)) is not None and (mine.full or mine.layers is not None):
        return _own(project, task, name, mine, show)
    raise UsageError(f"'{name}' is no model that could be asked. One is \"{RELEASE}\", or of these: {MODEL_FORM}")


def _own(project: Project, task: str, name: str, asked: Own, show: Show) -> ForeignTeacher:
    """A model that the task trains, of the first way to train it, or to read, where several are searched."""
    seed = project.files.settings.seed if asked.seed is None else asked.seed
    kind = StageKind.FULL if asked.full else StageKind.TUNE
    named = {mine.trunk for teacher in project.task(task).distill.teachers if (mine := own(teacher)) and mine.trunk}
    if asked.trunk is not None and asked.trunk not in named | {Path(trunk).name for trunk in named}:
        raise UsageError(f"'{name}' stands for a model only where distill.teachers of {task} names it")
    graph, stem = project.graph_for([task]), full_stem(task, asked.trunk)
    of_kind = [stage for stage in graph.stages.values() if (stage.task, stage.kind) == (task, kind)]
    fits = [
        stage.id
        for stage in of_kind
        if stage.fields["seed"] == seed
        and (stage.id.startswith(f"{stem}/") if asked.full else stage.fields["layers"] == asked.layers)
        and asked.reading in (None, stage.fields["reading"])
    ]
    if not fits:
        trained = ", ".join(stage.id for stage in of_kind)
        raise UsageError(f"nothing is trained that '{name}' could stand for ({trained})")
    project.train(fits[:1], show=show)
    entry = project.store.get(graph.keys[fits[0]])
    encoder = entry.folder / ENCODER if asked.full else project.source.path
    model = Trained(encoder, entry.folder / BRANCH, entry.fields["encoder"], task)
    return ForeignTeacher(name, f"stage {graph.keys[fits[0]]}", model)
