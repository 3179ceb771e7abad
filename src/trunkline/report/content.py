"""The report's data as typed values: reads the pipeline's dict once, so that page and terminal never guess.

Every part that may be missing becomes None or an empty tuple, and every string loses its control characters here.
This module knows nothing about HTML, SVG or the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trunkline.report.teaching import Teaching, read_teaching
from trunkline.report.values import mapping, number, numbers, text, texts, whole

LOWER_IS_BETTER = frozenset({"mae"})


@dataclass(frozen=True)
class Candidate:
    """One trained (fork, layers, reading, seed): quality on `valid` and on the reported split, its branch's own time in
    ms, and `ms_alone` of a request for it alone, which runs the trunk to its fork.
    """

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
    reported: float | None
    ms: float | None
    ms_alone: float | None
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
    what speed 0 takes, the shares of its rows that `left` at each exit and that the head answered, and the calibration
    error of what they were answered. `keep` is the fraction of quality on `valid` that it was found for, if it was.
    """

    keep: float | None
    speed: float | None
    valid: float | None
    reported: float | None
    layers: float | None
    time: float | None
    calibration: float | None
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
    them, `teaching` where there are teachers to compare.
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
    teaching: Teaching | None
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
    encoder = mapping(report.get("encoder"))
    depth = whole(encoder.get("depth")) or 0
    tasks = tuple(_task(str(name), mapping(data)) for name, data in mapping(report.get("tasks")).items())
    merged = _merged(mapping(report.get("merged")))
    lookup = {(task.name, one.id): one for task in tasks for one in task.candidates}
    return Content(
        project=text(report.get("project")),
        created=text(report.get("created")),
        encoder=text(encoder.get("name")),
        encoder_depth=depth,
        encoder_width=whole(encoder.get("width")),
        fingerprint=text(encoder.get("fingerprint")),
        machine=texts(report.get("machine")),
        cost=texts(report.get("cost")),
        tasks=tasks,
        merged=merged,
        depths=tuple(_choice(mapping(row), lookup, depth * len(tasks)) for row in report.get("depths") or ()),
        paper=_choice(mapping(report["paper_rule"]), lookup, depth * len(tasks)) if report.get("paper_rule") else None,
        release=texts(report.get("release")),
    )


def _task(name: str, data: Mapping[str, Any]) -> Task:
    chosen, baseline = mapping(data.get("chosen")), mapping(data.get("baseline"))
    return Task(
        name=text(name),
        kind=text(data.get("kind")),
        metric=text(data.get("metric")),
        rows={text(split): whole(count) or 0 for split, count in mapping(data.get("rows")).items()},
        reported=text(data.get("reported")) or "test",
        baseline=_baseline(baseline) if baseline else None,
        candidates=tuple(_candidate(mapping(one)) for one in data.get("candidates") or ()),
        chosen=_chosen(chosen) if chosen else None,
        scope=_scope(mapping(data.get("scope"))),
        exits=_exits(mapping(data["exits"])) if data.get("exits") else None,
        teaching=read_teaching(mapping(data.get("teaching"))),
        notes=tuple(text(note) for note in data.get("notes") or ()),
    )


def _candidate(data: Mapping[str, Any]) -> Candidate:
    return Candidate(
        id=text(data.get("id")),
        stage=text(data.get("stage")) or "tune",
        fork=whole(data.get("fork")) or 0,
        layers=whole(data.get("layers")) or 0,
        latents=whole(data.get("latents")) or 0,
        reading=text(data.get("reading")) or "single",
        init=text(data.get("init")) or None,
        teacher=text(data.get("teacher")) or None,
        seed=whole(data.get("seed")),
        valid=number(data.get("valid")),
        reported=number(data.get("reported")),
        ms=number(data.get("ms")),
        ms_alone=number(data.get("ms_alone")),
        chosen=bool(data.get("chosen")),
    )


def _chosen(data: Mapping[str, Any]) -> Chosen:
    return Chosen(
        fork=whole(data.get("fork")) or 0,
        layers=whole(data.get("layers")) or 0,
        latents=whole(data.get("latents")) or 0,
        reading=text(data.get("reading")) or "single",
        seed=whole(data.get("seed")),
        valid=number(data.get("valid")),
        metrics=numbers(data.get("metrics")),
        ms=number(data.get("ms")),
        calibration=_calibration(mapping(data.get("calibration"))),
    )


def _calibration(data: Mapping[str, Any]) -> Calibration | None:
    temperature, before, after = (number(data.get(key)) for key in ("temperature", "before", "after"))
    if temperature is None or before is None or after is None:
        return None
    return Calibration(temperature, before, after)


def _scope(data: Mapping[str, Any]) -> Scope | None:
    asked, valid, reported = (number(data.get(key)) for key in ("asked", "valid", "reported"))
    if asked is None or valid is None or reported is None:
        return None
    return Scope(asked, valid, reported)


def _exits(data: Mapping[str, Any]) -> Exits:
    kept = [mapping(one) for one in data.get("kept") or ()]
    return Exits(
        rule=text(data.get("rule")),
        kept=tuple((whole(one.get("depth")) or 0, text(one.get("form"))) for one in kept),
        speeds=tuple(_speed(mapping(one)) for one in data.get("speeds") or ()),
        curve=tuple(_speed(mapping(one)) for one in data.get("curve") or ()),
    )


def _speed(data: Mapping[str, Any]) -> Speed:
    names = ("keep", "speed", "valid", "reported", "layers", "time", "calibration")
    figures = {key: number(data.get(key)) for key in names}
    return Speed(**figures, left=tuple(number(share) or 0.0 for share in data.get("left") or ()))


def _baseline(data: Mapping[str, Any]) -> Baseline:
    return Baseline(
        valid=number(data.get("valid")),
        metrics=numbers(data.get("metrics")),
        ms=number(data.get("ms")),
        reading=text(data.get("reading")) or "single",
        learning_rate=number(data.get("learning_rate")),
    )


def _merged(data: Mapping[str, Any]) -> Merged | None:
    if not data:
        return None
    budget = mapping(data.get("budget"))
    met = data.get("met")
    return Merged(
        trunk_depth=whole(data.get("trunk_depth")) or 0,
        layers_in_graph=whole(data.get("layers_in_graph")),
        layers_separate=whole(data.get("layers_separate")),
        relative_layers=number(data.get("relative_layers")),
        ms_merged=number(data.get("ms_merged")),
        ms_separate=number(data.get("ms_separate")),
        relative_time=number(data.get("relative_time")),
        quality=number(data.get("quality")),
        quality_full=number(data.get("quality_full")),
        relative_quality=number(data.get("relative_quality")),
        min_relative_quality=number(budget.get("min_relative_quality")),
        max_cost=number(budget.get("max_cost")),
        met=None if met is None else bool(met),
    )


def _choice(data: Mapping[str, Any], lookup: Mapping[tuple[str, str], Candidate], separate: int) -> Choice:
    """One row of the selection; its layers, where not given, are the trunk's plus every branch's own."""
    depth = whole(data.get("depth"))
    choice = {text(task): text(candidate) for task, candidate in mapping(data.get("choice")).items()}
    layers = number(data.get("relative_layers"))
    found = [lookup.get(pair) for pair in choice.items()]
    branches = [candidate for candidate in found if candidate is not None]
    if layers is None and branches and len(branches) == len(found) and separate:
        trunk = depth if depth is not None else max(candidate.fork for candidate in branches)
        layers = (trunk + sum(candidate.layers for candidate in branches)) / separate
    return Choice(
        depth=depth,
        feasible=bool(data.get("feasible", True)),
        quality=number(data.get("relative_quality_valid")),
        time=number(data.get("relative_time")),
        layers=layers,
        choice=choice,
    )
