"""Reading a project's TOML files: what stands in them, and everything that is wrong with them, at once.

Knows the layout of the folder and the rules between keys. Does not open data files.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trunkline.errors import Problem
from trunkline.project.config import SPLITS, TASK_NAME, ProjectFiles, ProjectSettings, TaskSettings
from trunkline.project.explain import explain, quoted, show
from trunkline.project.stage_settings import Settings
from trunkline.project.tasks import METRICS, NEEDS_POSITIVE, Kind
from trunkline.project.teachers import called, foreign, own, soft_file

PROJECT_FILE = "project.toml"
TASKS_FOLDER = "tasks"

_NOT_FOR_DATA = frozenset({"max_tokens", "tune", "full", "pretrain", "distill", "scope"})

Model = TypeVar("Model", bound=Settings)


def parse_files(root: Path) -> tuple[ProjectFiles, list[Problem]]:
    """All that can be read of a project, and all problems of all its files.

    A wrong key takes its default here, so that what depends on the others can still be checked; a task without a
    readable `kind` or `data` is left out.
    """
    root = Path(root)
    problems: list[Problem] = []
    settings = _project(root, problems)
    tasks: dict[str, TaskSettings] = {}
    misnamed: list[Problem] = []
    paths = _task_files(root, misnamed)
    problems += misnamed
    for path in paths:
        task = _task(root, path, problems)
        if task is not None:
            tasks[path.stem] = task
    return ProjectFiles(root, settings, tasks), problems


def _project(root: Path, problems: list[Problem]) -> ProjectSettings:
    path = root / PROJECT_FILE
    fallback = ProjectSettings(name=root.resolve().name or "project")
    if not path.is_file():
        problems.append(
            Problem(
                PROJECT_FILE, "", "not found", found=f"no such file in {root}", allowed="a project folder holds one"
            )
        )
        return fallback
    raw = _toml(path, PROJECT_FILE, problems)
    if raw is None:
        return fallback
    settings, wrong = _validated(ProjectSettings, {"name": fallback.name, **raw}, PROJECT_FILE, problems)
    if settings is None:
        return fallback
    if "budget" not in wrong and {"min_relative_quality", "max_cost"} <= settings.budget.model_fields_set:
        problems.append(
            Problem(
                PROJECT_FILE,
                "budget",
                "two budgets contradict each other",
                found="min_relative_quality and max_cost",
                allowed="one of them",
            )
        )
    return settings


def _task_files(root: Path, wrong: list[Problem]) -> list[Path]:
    folder = root / TASKS_FOLDER
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found = []
    for path in entries:
        file = f"{TASKS_FOLDER}/{path.name}"
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in {".toml", ".tml", ".yaml", ".yml", ".json"}:
            continue
        if not path.is_file():
            wrong.append(
                Problem(
                    file,
                    "",
                    "not a file",
                    found="a folder" if path.is_dir() else "no file",
                    allowed=f"{TASKS_FOLDER}/NAME.toml",
                )
            )
        elif suffix != ".toml":
            wrong.append(
                Problem(file, "", "not a task file", found=path.suffix, allowed=f"{TASKS_FOLDER}/{path.stem}.toml")
            )
        elif not TASK_NAME.fullmatch(path.stem) or path.suffix != ".toml":
            wrong.append(
                Problem(
                    file,
                    "file name",
                    "cannot be the name of a task",
                    found=show(path.name),
                    allowed="a-z, 0-9, _ and -, the first a letter or digit, then .toml",
                )
            )
        else:
            found.append(path)
    if not found and not wrong:
        wrong.append(
            Problem(
                f"{TASKS_FOLDER}/",
                "",
                "no task",
                found="no task file",
                allowed=f"at least one {TASKS_FOLDER}/NAME.toml",
            )
        )
    return found


def _task(root: Path, path: Path, problems: list[Problem]) -> TaskSettings | None:
    file = f"{TASKS_FOLDER}/{path.name}"
    raw = _toml(path, file, problems)
    if raw is None:
        return None
    settings, wrong = _validated(TaskSettings, raw, file, problems)
    if settings is None:
        return None
    for where, message, found, allowed in _contradictions(root, settings, wrong):
        problems.append(Problem(file, where, message, found=found, allowed=allowed))
        wrong.add(where)
    # With any key wrong that data is read by, its rows would show problems that are not there.
    return settings if all(key.split(".")[0] in _NOT_FOR_DATA for key in wrong) else None


def _toml(path: Path, file: str, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        problems.append(Problem(file, "", "cannot be read", found=error.strerror, allowed="a readable file"))
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        problems.append(
            Problem(
                file,
                f"line {line}",
                "broken UTF-8",
                found=f"byte 0x{error.object[error.start]:02x}",
                allowed="UTF-8 text",
            )
        )
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        said = str(error) or "nested too deeply"
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", said)
        where = f"line {place[1]}, column {place[2]}" if place and place[1] else "end of file"
        problems.append(
            Problem(
                file,
                where,
                "not valid TOML",
                found=said[: place.start()] if place else said,
                allowed='lines like key = "value"',
            )
        )
    return None


def _validated(
    model: type[Model], raw: dict[str, Any], file: str, problems: list[Problem]
) -> tuple[Model | None, set[str]]:
    """The settings without their wrong keys, and which keys were wrong; None where `kind` is one of them."""
    wrong: set[str] = set()
    while True:
        try:
            return model.model_validate(raw), wrong
        except ValidationError as error:
            if not wrong:
                problems += explain(file, model, error)
            for fault in error.errors():
                keys = [part for part in fault["loc"] if isinstance(part, str)]
                wrong.add(".".join(keys))
                if fault["type"] != "missing":
                    raw = _without(raw, keys)
                elif keys[0] == "data":  # something in its place, so that the rules between the other keys are checked
                    raw = {**raw, "data": {**raw.get("data", {}), "train": "-"}}
                else:
                    return None, wrong


def _without(raw: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    first, *rest = keys
    if not rest or not isinstance(raw.get(first), dict):
        return {key: value for key, value in raw.items() if key != first}
    return {**raw, first: _without(raw[first], rest)}


Contradiction = tuple[str, str, str, str]  # where, message, found, allowed


def _contradictions(root: Path, settings: TaskSettings, wrong: Collection[str]) -> Iterator[Contradiction]:
    """Keys that are right on their own and wrong together; a rule is skipped where one of its keys is wrong."""
    kind = settings.kind
    if settings.metric is not None and settings.metric not in METRICS[kind]:
        yield "metric", f"not a metric of {kind}", show(settings.metric), ", ".join(METRICS[kind])
    yield from _label_rules(settings)
    if settings.pair is not None and kind is Kind.TAGGING:
        yield "pair", "tagging reads one text", show(settings.pair), "leave the key out"
    layers = {"tune.layers", "distill.layers", "tune", "distill"}
    if not layers & set(wrong) and "layers" in settings.distill.model_fields_set:
        # The tuned layers that a student starts from; where another teaches, it may have all of them.
        equal = settings.distill.taught_by_others
        most = max(settings.tune.layers) - (not equal)
        for count in settings.distill.layers:
            if count > most:
                yield (
                    "distill.layers",
                    f"a student has {'no more' if equal else 'fewer'} layers than {'' if equal else 'its teacher, '}"
                    "the tuned ones that it starts from",
                    str(count),
                    f"at most {most} (tune.layers = {settings.tune.layers})",
                )
    if not {"distill.teachers", "distill"} & set(wrong):
        yield from _teacher_rules(settings, wrong)
    if not {"distill.init", "distill", "pretrain.shards", "pretrain"} & set(wrong):
        yield from _first_stage_rules(settings)
    yield from _same_files(root, settings)


def _teacher_rules(settings: TaskSettings, wrong: Collection[str]) -> Iterator[Contradiction]:
    distill = settings.distill
    teachers, elsewhere = distill.teachers, [name for name in distill.teachers if foreign(name)]
    for table, known in (("weights", teachers), ("label_maps", elsewhere)):
        for name in getattr(distill, table):
            if name not in known:
                what = "no such teacher" if name not in teachers else "has the task's labels"
                yield f'distill.{table}."{name}"', what, show(name), quoted(known) or "none: no teacher is foreign"
    if not {"tune.layers", "tune"} & set(wrong):
        for name in teachers:
            found = own(name)
            if found is not None and found.layers is not None and found.layers not in settings.tune.layers:
                allowed = ", ".join(f"tune:{layers}" for layers in sorted(settings.tune.layers))
                yield "distill.teachers", "nothing is tuned so", show(name), f"{allowed} (tune.layers)"
    if "distill.hidden" not in wrong and any(distill.hidden) and "self" not in teachers:
        allowed = '"self" among distill.teachers'
        yield "distill.hidden", "compares states with those of `self`, which teaches nobody", quoted(teachers), allowed
    names = [called(name) for name in teachers if distill.weights or soft_file(name) is None]
    if alike := sorted({name for name in names if names.count(name) > 1}):
        yield "distill.teachers", "several teachers are called alike", quoted(alike), "names that differ at their end"


def _first_stage_rules(settings: TaskSettings) -> Iterator[Contradiction]:
    init, shards = settings.distill.init, settings.pretrain.shards
    if "pretrained" in init and not shards:
        allowed = "folders that `trunkline teach` filled"
        yield "pretrain.shards", 'distill.init = "pretrained" has nothing to learn from', show(shards), allowed
    elif shards and "pretrained" not in init:
        yield "distill.init", "no student starts from what pretrain.shards teach", show(init), '"pretrained" among them'
    for name in settings.pretrain.weights:
        if name not in shards:
            yield f'pretrain.weights."{name}"', "not one of pretrain.shards", show(name), quoted(shards) or "none"


def _label_rules(settings: TaskSettings) -> Iterator[Contradiction]:
    kind, labels, positive = settings.kind, settings.labels, settings.positive
    if labels is not None:
        if kind is Kind.REGRESSION:
            yield "labels", "regression has no labels", quoted(labels), "leave the key out"
        elif kind is Kind.RELEVANCE and len(labels) != 2:
            yield "labels", "relevance has two labels", quoted(labels), "two labels"
        elif kind is Kind.CLASSIFICATION and len(labels) < 2:
            yield "labels", "too few labels", quoted(labels), "at least two labels"
        elif kind is Kind.CLASSIFICATION and len(labels) != 2 and settings.metric in NEEDS_POSITIVE:
            yield "metric", "needs a task of two labels", show(settings.metric), "accuracy, macro_f1, matthews"
        elif kind is Kind.TAGGING and (bad := [tag for tag in labels if not is_tag(tag)]):
            yield "labels", "not a BIO tag", quoted(bad), '"O", "B-type", "I-type" (also "E-type", "S-type")'
        elif kind is Kind.TAGGING and "O" not in labels:
            yield "labels", "lacks the tag of words outside", quoted(labels), '"O" and the others'
    if positive is not None:
        if kind not in {Kind.CLASSIFICATION, Kind.RELEVANCE}:
            yield "positive", f"{kind} has no positive label", show(positive), "leave the key out"
        elif labels is not None and positive not in labels:
            yield "positive", "not one of the labels", show(positive), quoted(labels)


def _same_files(root: Path, settings: TaskSettings) -> Iterator[Contradiction]:
    seen: dict[str, str] = {}
    for split in SPLITS:
        value: str | None = getattr(settings.data, split)
        if value is None:
            continue
        place = value if value.startswith("hub:") else os.path.realpath(root / value)
        if place in seen:
            yield f"data.{split}", f"the same rows as data.{seen[place]}", show(value), "another file"
        else:
            seen[place] = split


def is_tag(tag: str) -> bool:
    """Whether a tag is "O" or one of B-, I-, E-, S- and a type."""
    return tag == "O" or (len(tag) > 2 and tag[0] in "BIES" and tag[1] == "-" and bool(tag[2:].strip()))
