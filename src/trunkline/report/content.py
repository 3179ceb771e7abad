"""The report's data as typed values: reads the pipeline's dict once, so that page and terminal never guess.

Every part that may be missing becomes None or an empty tuple, and every string loses its control characters here.
This module knows nothing about HTML, SVG or the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LOWER_IS_BETTER = frozenset({"mae"})


@dataclass(frozen=True)
class Candidate:
    """One trained (fork, layers, reading, seed): quality on `valid`, its branch's own time in ms."""

    id: str
    stage: str
    fork: int
    layers: int
    latents: int
    reading: str
    init: str | None
    teacher: str | None
    seed: int | None
    valid: float | None
    ms: float | None
    chosen: bool


@dataclass(frozen=True)
class Calibration:
    """What a branch's logits are divided by, and its calibration error on the reported split before and after."""

    temperature: float
    before: float
    after: float


@dataclass(frozen=True)
class Chosen:
    """The branch that was merged, with its metrics on the reported split."""

    fork: int
    layers: int
    latents: int
    reading: str
    seed: int | None
    valid: float | None
    metrics: dict[str, float | None]
    ms: float | None
    calibration: Calibration | None


@dataclass(frozen=True)
class Baseline:
    """The task's own fully fine-tuned model, and how it was trained; `ms` is the whole model's time."""

    valid: float | None
    metrics: dict[str, float | None]
    ms: float | None
    reading: str
    learning_rate: float | None


@dataclass(frozen=True)
class Speed:
    """What a speed comes to: the metric on `valid` and on the reported split, layers and time there as fractions of
    what speed 0 takes, and the shares of its rows that `left` at each exit and that the head answered. `keep` is the
    fraction of quality on `valid` that it was found for, if it was.
    """

    keep: float | None
    speed: float | None
    valid: float | None
    reported: float | None
    layers: float | None
    time: float | None
    left: tuple[float, ...]


@dataclass(frozen=True)
class Exits:
    """Where rows may leave the chosen branch, as (depth, form), what the speeds come to that keep so much, and all of
    them (`curve`); nothing where no exit pays.
    """

    rule: str
    kept: tuple[tuple[int, str], ...]
    speeds: tuple[Speed, ...]
    curve: tuple[Speed, ...]


@dataclass(frozen=True)
class Scope:
    """The share of texts in scope that may be flagged as out of it, and what is flagged of `valid` and of the reported
    split.
    """

    asked: float
    valid: float
    reported: float


@dataclass(frozen=True)
class Task:
    """One task: what was tried, what was chosen, and what full fine-tuning gives; `scope` and `exits` where it asks for
    them.
    """

    name: str
    kind: str
    metric: str
    rows: dict[str, int]
    reported: str
    baseline: Baseline | None
    candidates: tuple[Candidate, ...]
    chosen: Chosen | None
    scope: Scope | None
    exits: Exits | None
    notes: tuple[str, ...]

    @property
    def full(self) -> float | None:
        """The full model's value of the task's metric on the reported split."""
        return self.baseline.metrics.get(self.metric) if self.baseline else None

    @property
    def merged(self) -> float | None:
        """The merged model's value of the task's metric on the reported split."""
        return self.chosen.metrics.get(self.metric) if self.chosen else None

    @property
    def relative(self) -> float | None:
        """Merged over full on the reported split; None where a ratio says nothing (an error, a full model at 0)."""
        if self.full is None or self.merged is None or self.full <= 0 or self.metric in LOWER_IS_BETTER:
            return None
        return self.merged / self.full

    @property
    def stage(self) -> str | None:
        """How the chosen branch was trained ("tune" or "distill"), where a candidate is marked as chosen."""
        return next((candidate.stage for candidate in self.candidates if candidate.chosen), None)


@dataclass(frozen=True)
class Merged:
    """The merged model against N separate full models; quality is the average over tasks on the reported splits."""

    trunk_depth: int
    layers_in_graph: int | None
    layers_separate: int | None
    relative_layers: float | None
    ms_merged: float | None
    ms_separate: float | None
    relative_time: float | None
    quality: float | None
    quality_full: float | None
    relative_quality: float | None
    min_relative_quality: float | None
    max_cost: float | None
    met: bool | None


@dataclass(frozen=True)
class Choice:
    """A set of candidates, one per task, on one trunk; `depth` is None for the paper's rule."""

    depth: int | None
    feasible: bool
    quality: float | None
    time: float | None
    layers: float | None
    choice: dict[str, str]


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    project: str
    created: str
    encoder: str
    encoder_depth: int
    encoder_width: int | None
    fingerprint: str
    machine: dict[str, str]
    cost: dict[str, str]
    tasks: tuple[Task, ...]
    merged: Merged | None
    depths: tuple[Choice, ...]
    paper: Choice | None
    release: dict[str, str]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that trained a candidate, ascending."""
        found = {candidate.seed for task in self.tasks for candidate in task.candidates}
        found |= {task.chosen.seed for task in self.tasks if task.chosen}
        return tuple(sorted(seed for seed in found if seed is not None))

    @cached_property
    def selected(self) -> Choice | None:
        """The row of the selection that was merged."""
        if self.merged is None:
            return None
        return next((row for row in self.depths if row.depth == self.merged.trunk_depth), None)

    @cached_property
    def candidates(self) -> dict[tuple[str, str], Candidate]:
        """(task, candidate id) -> candidate."""
        return {(task.name, candidate.id): candidate for task in self.tasks for candidate in task.candidates}


def read(report: Mapping[str, Any]) -> Content:
    """The pipeline's report data, typed. Raises nothing for missing parts: they are shown as missing."""
    encoder = _mapping(report.get("encoder"))
    depth = _whole(encoder.get("depth")) or 0
    tasks = tuple(_task(str(name), _mapping(data)) for name, data in _mapping(report.get("tasks")).items())
    merged = _merged(_mapping(report.get("merged")))
    lookup = {(task.name, one.id): one for task in tasks for one in task.candidates}
    return Content(
        project=_text(report.get("project")),
        created=_text(report.get("created")),
        encoder=_text(encoder.get("name")),
        encoder_depth=depth,
        encoder_width=_whole(encoder.get("width")),
        fingerprint=_text(encoder.get("fingerprint")),
        machine=_texts(report.get("machine")),
        cost=_texts(report.get("cost")),
        tasks=tasks,
        merged=merged,
        depths=tuple(_choice(_mapping(row), lookup, depth * len(tasks)) for row in report.get("depths") or ()),
        paper=_choice(_mapping(report["paper_rule"]), lookup, depth * len(tasks)) if report.get("paper_rule") else None,
        release=_texts(report.get("release")),
    )


def _task(name: str, data: Mapping[str, Any]) -> Task:
    chosen, baseline = _mapping(data.get("chosen")), _mapping(data.get("baseline"))
    return Task(
        name=_text(name),
        kind=_text(data.get("kind")),
        metric=_text(data.get("metric")),
        rows={_text(split): _whole(count) or 0 for split, count in _mapping(data.get("rows")).items()},
        reported=_text(data.get("reported")) or "test",
        baseline=_baseline(baseline) if baseline else None,
        candidates=tuple(_candidate(_mapping(one)) for one in data.get("candidates") or ()),
        chosen=_chosen(chosen) if chosen else None,
        scope=_scope(_mapping(data.get("scope"))),
        exits=_exits(_mapping(data["exits"])) if data.get("exits") else None,
        notes=tuple(_text(note) for note in data.get("notes") or ()),
    )


def _candidate(data: Mapping[str, Any]) -> Candidate:
    return Candidate(
        id=_text(data.get("id")),
        stage=_text(data.get("stage")) or "tune",
        fork=_whole(data.get("fork")) or 0,
        layers=_whole(data.get("layers")) or 0,
        latents=_whole(data.get("latents")) or 0,
        reading=_text(data.get("reading")) or "single",
        init=_text(data.get("init")) or None,
        teacher=_text(data.get("teacher")) or None,
        seed=_whole(data.get("seed")),
        valid=_number(data.get("valid")),
        ms=_number(data.get("ms")),
        chosen=bool(data.get("chosen")),
    )


def _chosen(data: Mapping[str, Any]) -> Chosen:
    return Chosen(
        fork=_whole(data.get("fork")) or 0,
        layers=_whole(data.get("layers")) or 0,
        latents=_whole(data.get("latents")) or 0,
        reading=_text(data.get("reading")) or "single",
        seed=_whole(data.get("seed")),
        valid=_number(data.get("valid")),
        metrics=_numbers(data.get("metrics")),
        ms=_number(data.get("ms")),
        calibration=_calibration(_mapping(data.get("calibration"))),
    )


def _calibration(data: Mapping[str, Any]) -> Calibration | None:
    temperature, before, after = (_number(data.get(key)) for key in ("temperature", "before", "after"))
    if temperature is None or before is None or after is None:
        return None
    return Calibration(temperature, before, after)


def _scope(data: Mapping[str, Any]) -> Scope | None:
    asked, valid, reported = (_number(data.get(key)) for key in ("asked", "valid", "reported"))
    if asked is None or valid is None or reported is None:
        return None
    return Scope(asked, valid, reported)


def _exits(data: Mapping[str, Any]) -> Exits:
    kept = [_mapping(one) for one in data.get("kept") or ()]
    return Exits(
        rule=_text(data.get("rule")),
        kept=tuple((_whole(one.get("depth")) or 0, _text(one.get("form"))) for one in kept),
        speeds=tuple(_speed(_mapping(one)) for one in data.get("speeds") or ()),
        curve=tuple(_speed(_mapping(one)) for one in data.get("curve") or ()),
    )


def _speed(data: Mapping[str, Any]) -> Speed:
    figures = {key: _number(data.get(key)) for key in ("keep", "speed", "valid", "reported", "layers", "time")}
    return Speed(**figures, left=tuple(_number(share) or 0.0 for share in data.get("left") or ()))


def _baseline(data: Mapping[str, Any]) -> Baseline:
    return Baseline(
        valid=_number(data.get("valid")),
        metrics=_numbers(data.get("metrics")),
        ms=_number(data.get("ms")),
        reading=_text(data.get("reading")) or "single",
        learning_rate=_number(data.get("learning_rate")),
    )


def _merged(data: Mapping[str, Any]) -> Merged | None:
    if not data:
        return None
    budget = _mapping(data.get("budget"))
    met = data.get("met")
    return Merged(
        trunk_depth=_whole(data.get("trunk_depth")) or 0,
        layers_in_graph=_whole(data.get("layers_in_graph")),
        layers_separate=_whole(data.get("layers_separate")),
        relative_layers=_number(data.get("relative_layers")),
        ms_merged=_number(data.get("ms_merged")),
        ms_separate=_number(data.get("ms_separate")),
        relative_time=_number(data.get("relative_time")),
        quality=_number(data.get("quality")),
        quality_full=_number(data.get("quality_full")),
        relative_quality=_number(data.get("relative_quality")),
        min_relative_quality=_number(budget.get("min_relative_quality")),
        max_cost=_number(budget.get("max_cost")),
        met=None if met is None else bool(met),
    )


def _choice(data: Mapping[str, Any], lookup: Mapping[tuple[str, str], Candidate], separate: int) -> Choice:
    """One row of the selection; its layers, where not given, are the trunk's plus every branch's own."""
    depth = _whole(data.get("depth"))
    choice = {_text(task): _text(candidate) for task, candidate in _mapping(data.get("choice")).items()}
    layers = _number(data.get("relative_layers"))
    found = [lookup.get(pair) for pair in choice.items()]
    branches = [candidate for candidate in found if candidate is not None]
    if layers is None and branches and len(branches) == len(found) and separate:
        trunk = depth if depth is not None else max(candidate.fork for candidate in branches)
        layers = (trunk + sum(candidate.layers for candidate in branches)) / separate
    return Choice(
        depth=depth,
        feasible=bool(data.get("feasible", True)),
        quality=_number(data.get("relative_quality_valid")),
        time=_number(data.get("relative_time")),
        layers=layers,
        choice=choice,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    """A string without control characters (a note may quote a user's data); empty for None."""
    return "" if value is None else "".join(c for c in str(value) if c.isprintable() or c == " ")


def _texts(value: Any) -> dict[str, str]:
    return {_text(key): _text(item) for key, item in _mapping(value).items() if item is not None}


def _number(value: Any) -> float | None:
    """A finite float, or None."""
    if value is None or isinstance(value, str):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _numbers(value: Any) -> dict[str, float | None]:
    return {_text(key): _number(item) for key, item in _mapping(value).items()}


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
