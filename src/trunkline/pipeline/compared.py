"""Who taught a task's students, and which teacher helped: the part of a report's data that is about teachers.

Compares what the store holds; trains nothing and draws nothing. Settings are compared with their like: students of
different teachers that read, start and end alike, each group of teachers in the way that suits it best on `valid`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.pipeline.assemble import Assembly, Options, over_seeds
from trunkline.pipeline.select import Candidate
from trunkline.pipeline.stages import Stage, StageKind
from trunkline.pipeline.ways import Teacher

_ALIKE = ("reading", "from", "layers", "init", "take", "latents")
"""Fields of a student that have nothing to do with its teachers."""

Ensemble = Callable[[Stage], dict[str, dict[str, float]]]
"""A student -> by split, the metrics of what its teachers say together, as far as they are known."""


@dataclass(frozen=True)
class _Students:
    """The students of one configuration, a stage for each seed, and their metric on `valid` by seed."""

    stages: list[Stage]
    valid: dict[int, float]

    @property
    def group(self) -> tuple[str, ...]:
        return tuple(self.stages[0].fields["teachers"])

    @property
    def alike(self) -> tuple[Any, ...]:
        return tuple(self.stages[0].fields.get(name) for name in _ALIKE)

    @property
    def mean(self) -> float:
        return statistics.mean(self.valid.values())


def compared(assembly: Assembly, options: Options, task: str, ensemble: Ensemble) -> dict[str, Any] | None:
    """Each teacher, what they say together, and the best students of each group of them; None where a task's students
    have one teacher and no other is compared with it.

    `change` is a group's metric on `valid` against that of the students of all, over like settings and the seeds that
    both have: its mean, and over seeds its standard deviation, None for a single seed.
    """
    metric = assembly.metric(task)
    found = [
        _Students(stages, {stage.fields["seed"]: _metrics(assembly, stage)["valid"][metric] for stage in stages})
        for stages in over_seeds(assembly.graph.of(task, StageKind.DISTILL)).values()
    ]
    most = max((len(one.group) for one in found), default=0)
    groups = sorted({one.group for one in found}, key=lambda group: (-len(group), group))
    if most < 2 and len(groups) < 2:
        return None
    whole = {one.alike: one.group for one in sorted(found, key=lambda one: len(one.group))}
    best = {(one.group, one.alike): one for one in sorted(found, key=lambda one: one.mean)}
    of_group = {group: max((o for o in found if o.group == group), key=lambda one: one.mean) for group in groups}
    of_all = of_group[groups[0]]
    named: dict[str, list[Teacher]] = {}  # where the groups of all differ, as by L, those of each
    for one in of_group.values():
        for teachers in zip(*(stage.teachers for stage in one.stages), strict=True):
            named.setdefault(teachers[0].called, list(teachers))
    together = [ensemble(stage) for stage in of_all.stages]
    return {
        "teachers": [_teacher(assembly, options, task, teachers) for teachers in named.values()],
        "all": list(of_all.group),
        "ensemble": {
            name: _mean(one.get(split, {}).get(metric) for one in together)
            for name, split in (("valid", "valid"), ("reported", _split(assembly, task)))
        },
        "students": [
            {
                **_student(assembly, options, of_group[group]),
                "change": _change(
                    [(one, best[whole[one.alike], one.alike]) for (by, _), one in best.items() if by == group]
                ),
            }
            for group in groups
        ],
    }


def _change(pairs: Sequence[tuple[_Students, _Students]]) -> dict[str, Any] | None:
    """How much better students are than their like of all teachers; None for those of all themselves, and where no seed
    has both.
    """
    by_seed: dict[int, list[float]] = {}
    settings = 0
    for one, other in pairs:
        shared = one.valid.keys() & other.valid.keys() if one is not other else set()
        settings += bool(shared)
        for seed in shared:
            by_seed.setdefault(seed, []).append(one.valid[seed] - other.valid[seed])
    if not by_seed:
        return None
    seeds = [statistics.mean(gains) for _, gains in sorted(by_seed.items())]
    spread = statistics.stdev(seeds) if len(seeds) > 1 else None
    return {"mean": statistics.mean(seeds), "spread": spread, "settings": settings}


def _student(assembly: Assembly, options: Options, best: _Students) -> dict[str, Any]:
    candidate = _candidate(options, best.stages[0])
    return {
        "teachers": list(best.group),
        "fork": candidate.fork,
        "layers": candidate.layers,
        "latents": best.stages[0].fields.get("latents", 0),
        "reading": candidate.reading,
        "valid": best.mean,
        "reported": _reported(assembly, best.stages),
        "ms": _alone(options, candidate),
    }


def _teacher(assembly: Assembly, options: Options, task: str, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """One teacher, of each seed's student; what is not known of it is None."""
    metric = assembly.metric(task)
    found: dict[str, Any] = {"teacher": teachers[0].called, "valid": None, "reported": None, "ms": None}
    if teachers[0].stage is None:
        return found
    stages = [assembly.graph.stages[teacher.stage] for teacher in teachers if teacher.stage is not None]
    found["valid"] = _mean(_metrics(assembly, stage)["valid"].get(metric) for stage in stages)
    found["reported"] = _reported(assembly, stages)
    if stages[0].kind is StageKind.TEACH:
        return found
    ms = None
    if stages[0].kind is StageKind.TUNE:
        ms = _alone(options, _candidate(options, stages[0]))
    elif stages[0].trunk is None:
        branch = assembly.store.get(assembly.graph.keys[stages[0].id]).result["branch"]
        ms = options.measured.full(branch["reading"], branch["pooling"], assembly.source.depth)
    return found | {"ms": ms}


def _candidate(options: Options, stage: Stage) -> Candidate:
    return next(one for one in options.candidates if stage.id.startswith(f"{one.id}/s"))


def _alone(options: Options, candidate: Candidate) -> float:
    """Milliseconds of the whole way of a branch: the trunk to its fork, and its own layers."""
    return options.measured.trunk.of([candidate]) + candidate.ms


def _metrics(assembly: Assembly, stage: Stage) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = assembly.store.get(assembly.graph.keys[stage.id]).result["metrics"]
    return found


def _reported(assembly: Assembly, stages: Sequence[Stage]) -> float | None:
    task = stages[0].task
    split, metric = _split(assembly, task), assembly.metric(task)
    return _mean(_metrics(assembly, stage).get(split, {}).get(metric) for stage in stages)


def _split(assembly: Assembly, task: str) -> str:
    """The split that a task is reported on."""
    return str(assembly.store.get(assembly.graph.keys[f"{task}/{StageKind.PREPARE}"]).result["reported"])


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, None where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.mean(known) if len(known) == len(found) else None
