"""Which stages a project's files ask for: of each task its grid of L, l, readings, teachers and seeds.

Knows project files and how stages follow from each other; runs nothing and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from trunkline.errors import ProjectError
from trunkline.model.source import Source
from trunkline.pipeline.misfits import misfits, unread
from trunkline.pipeline.stages import FINISHING, Graph, Stage, StageKind
from trunkline.pipeline.task_files import TaskFiles
from trunkline.pipeline.ways import (
    GRID,
    NO_HIDDEN,
    PRETRAINED,
    Hidden,
    Teacher,
    full_stem,
    hiddens,
    pretrain_fields,
    taught_by,
    teach_id,
    teachers_of,
    ways,
)
from trunkline.project.config import CostSettings, ProjectFiles, TaskSettings
from trunkline.project.data import data_fields, pinned
from trunkline.project.stage_settings import DistillSettings, ExitSettings, PretrainSettings, ScopeSettings
from trunkline.project.taking import Take, taken
from trunkline.project.tasks import Kind
from trunkline.project.teachers import Elsewhere, foreign, own


def graph(files: ProjectFiles, source: Source, tasks: Mapping[str, TaskFiles]) -> Graph:
    """The stages of the tasks whose data are given.

    Raises ProjectError where the grid of any task does not fit the encoder.
    """
    problems = list(misfits(files, source))
    for name, data in tasks.items():
        problems += unread(name, files.tasks[name], readings(files.tasks[name], data.pairs))
    if problems:
        raise ProjectError(problems)
    stages: dict[str, Stage] = {}
    finishing: dict[str, Stage] = {}
    for name, data in tasks.items():
        for stage in _after_needs(_task_stages(name, files.tasks[name], files, source, data)):
            (finishing if stage.kind in FINISHING else stages)[stage.id] = stage
    return Graph(stages, finishing)


def _after_needs(stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages in the same order, but none before those that it needs: a student may have a later L to teach it."""
    by_id = {stage.id: stage for stage in stages}
    given: set[str] = set()

    def give(stage: Stage) -> Iterator[Stage]:
        if stage.id not in given:
            given.add(stage.id)
            for need in stage.needs:
                yield from give(by_id[need])
            yield stage

    for stage in by_id.values():
        yield from give(stage)


def readings(settings: TaskSettings, pairs: bool) -> list[str]:
    """The readings that a task searches: "single", or "joint" and "separate" as its file says."""
    if not pairs:
        return ["single"]
    return _of_pairs(settings, settings.pair or ["joint", "separate"])


def _of_pairs(settings: TaskSettings, asked: Sequence[str]) -> list[str]:
    return [reading for reading in asked if settings.kind is not Kind.TAGGING or reading == "joint"] or ["joint"]


def _task_stages(
    name: str, settings: TaskSettings, files: ProjectFiles, source: Source, data: TaskFiles
) -> Iterator[Stage]:
    prepare = Stage(
        f"{name}/prepare",
        StageKind.PREPARE,
        name,
        {
            **data_fields(pinned(settings, data.sets)),
            "files": data.hashes,
        },
    )
    yield prepare
    project = files.settings
    if settings.distill.layers:
        yield from _teach(name, settings, data, prepare)
    for seed in range(project.seed, project.seed + project.search.seeds):
        common = {
            "task": name,  # a branch file carries its task's name
            "encoder": source.fingerprint,
            "metric": settings.primary_metric,
            "max_tokens": settings.max_tokens,
            "pooling": settings.tune.pooling,
            "precision": project.precision,
            "seed": seed,
        }
        full = list(_full(name, settings, common, data.pairs, prepare))
        yield from full
        heavy = _heavy(name, settings, common, data, prepare) if settings.distill.layers else {}
        for asked in filter(None, map(own, settings.distill.teachers)):
            if asked.trunk in heavy and asked.seed in (None, seed):
                yield heavy[asked.trunk]
        whole: dict[str | None, str] = {None: full[0].id}
        whole |= {trunk: heavy.get(trunk, full[0]).id for trunk in data.trunks}
        for reading in readings(settings, data.pairs):
            for tuned in sorted(set(settings.tune.layers)):
                tune = Stage(
                    f"{name}/tune/{reading}/L{tuned}/s{seed}",
                    StageKind.TUNE,
                    name,
                    {
                        **common,
                        "reading": reading,
                        "layers": tuned,
                        "schedule": settings.tune.model_dump(mode="json", exclude={"layers", "pooling"}),
                    },
                    (prepare.id,),
                )
                for candidate in (tune, *_students(name, settings, common, reading, tune, whole, data)):
                    yield candidate
                    if candidate.kind is StageKind.PRETRAIN:
                        continue  # on the way to a candidate
                    finished = candidate
                    if settings.scope.enabled:
                        finished = _scope(candidate, common, settings.scope)
                        yield finished
                    if settings.exits.enabled:
                        exits = _exits(candidate, common, settings.exits, data.unlabelled)
                        yield exits
                        yield _speeds(candidate, finished, exits, settings, project.cost)


def _full(name: str, settings: TaskSettings, common: dict[str, Any], pairs: bool, prepare: Stage) -> Iterator[Stage]:
    """Full fine-tuning in every way that is searched; the first is the teacher."""
    schedule = settings.full.model_dump(mode="json", exclude={"pair"})
    rates = schedule.pop("learning_rate")
    for reading in _of_pairs(settings, settings.full.pair) if pairs else ["single"]:
        for rate in rates:
            searched = f"/lr{rate:g}" if len(rates) > 1 else ""
            yield Stage(
                f"{full_stem(name, None)}/{reading}{searched}/s{common['seed']}",
                StageKind.FULL,
                name,
                {**common, "reading": reading, "schedule": {**schedule, "learning_rate": rate}},
                (prepare.id,),
            )


def _heavy(
    name: str, settings: TaskSettings, common: dict[str, Any], data: TaskFiles, prepare: Stage
) -> dict[str, Stage]:
    """The full models of other trunks that teach a task, by what its file calls the trunk.

    Keys are those of a project that has this trunk, so that nothing is trained again after a move.
    """
    found = {}
    for trunk, source in data.trunks.items():
        if source.fingerprint != common["encoder"]:
            first = next(_full(name, settings, {**common, "encoder": source.fingerprint}, data.pairs, prepare))
            id = full_stem(name, trunk) + first.id.removeprefix(full_stem(name, None))
            found[trunk] = replace(first, id=id, trunk=source)
    return found


def _teach(name: str, settings: TaskSettings, data: TaskFiles, prepare: Stage) -> Iterator[Stage]:
    """A stage for each foreign teacher, whose students all read what it says once."""
    for teacher, content in data.foreign.items():
        labels = settings.distill.label_maps.get(teacher, {})
        yield Stage(
            teach_id(name, teacher),
            StageKind.TEACH,
            name,
            {
                "teacher": content,
                **({"label_map": labels} if labels else {}),
                **({"max_tokens": settings.max_tokens} if isinstance(foreign(teacher), Elsewhere) else {}),
            },
            (prepare.id,),
        )


def _students(
    name: str,
    settings: TaskSettings,
    common: dict[str, Any],
    reading: str,
    tune: Stage,
    full: Mapping[str | None, str],
    data: TaskFiles,
) -> Iterator[Stage]:
    """The students of tuned layers, each after its first stage where it has one."""
    distill = settings.distill
    teachers = teachers_of(name, settings, tune.id, full)
    files = list(zip(settings.soft_files, data.soft, strict=True))
    tuned = int(tune.fields["layers"])
    for layers in sorted(set(distill.layers)):
        if layers > tuned or (layers == tuned and all(teacher.stage == tune.id for teacher in teachers)):
            continue  # a student is smaller than its own teacher (Wei et al., l < L)
        few = distill.latents if layers and settings.kind is not Kind.TAGGING else [0]
        # A head alone starts afresh or as its teacher's, whatever else is asked for.
        starts = distill.init if layers else sorted({"trunk" if one == "random" else one for one in distill.init})
        begins = [(init, take) for init in starts for take in _takes(distill, init, layers, tuned)]
        taught = {
            latents: [
                (group, way)
                for group in taught_by(teachers, compare=distill.compare)
                for way in ways(distill, settings.kind, group, _hidden(distill, layers, tune, group, latents))
            ]
            for latents in few
        }
        searched = ((*begin, m, *one) for begin, m in product(begins, few) for one in taught[m])
        for init, take, latents, group, way in searched:
            start = init if take is Take.BOTTOM else f"{init}-{take}"
            size = f"L{tuned}-l{layers}" + (f"-m{latents}" if latents else "")
            called = sorted({teacher.called for teacher in group})
            soft = sorted(content for file, content in files if any(teacher.file == file for teacher in group))
            by = "+".join(called) or "labels"
            shape = {
                **common,
                "reading": reading,
                "from": tuned,
                "layers": layers,
                **({"latents": latents, "crossing": min(distill.crossing, layers), "version": 2} if latents else {}),
            }
            needs = [tune.id]  # they always take part: the student starts from them or reads at their fork
            if init == PRETRAINED:
                first = _pretrain(f"{reading}/{size}", settings.pretrain, shape, tune, data.shards)
                needs.append(first.id)
                yield first
            yield Stage(
                f"{name}/distill/{reading}/{size}/{start}/{by}{way.searched(distill)}/s{common['seed']}",
                StageKind.DISTILL,
                name,
                {
                    **shape,
                    "init": init,
                    **({"take": take.value} if take is not Take.BOTTOM else {}),
                    "teachers": called,
                    **({"soft": soft} if soft else {}),
                    **way.fields,
                    "schedule": {
                        **distill.model_dump(mode="json", exclude=GRID),
                        "temperature": way.temperature,
                        "gold_weight": way.gold_weight,
                    },
                },
                tuple(dict.fromkeys([*needs, *(one.stage for one in group if one.stage is not None)])),
                group,
            )


def _pretrain(
    size: str, settings: PretrainSettings, shape: dict[str, Any], tune: Stage, shards: Mapping[str, float]
) -> Stage:
    """The first stage of a student of this shape, whatever teaches it in the second."""
    # A head alone starts afresh or as its teacher's; see `_students`.
    init = "trunk" if settings.init == "random" and not shape["layers"] else settings.init
    return Stage(
        f"{tune.task}/pretrain/{size}/{init}/s{shape['seed']}",
        StageKind.PRETRAIN,
        tune.task,
        {**shape, "init": init, "shards": list(shards), **pretrain_fields(settings, shards)},
        (tune.id, f"{tune.task}/{StageKind.PREPARE}"),
    )


def _hidden(
    distill: DistillSettings, layers: int, tune: Stage, group: Sequence[Teacher], latents: int
) -> Sequence[Hidden]:
    """The losses on hidden states that students of these teachers search: against the tuned layers, if they are one."""
    if latents or all(teacher.stage != tune.id for teacher in group):
        return [NO_HIDDEN]
    return hiddens(distill, layers, int(tune.fields["layers"]))


def _takes(distill: DistillSettings, init: str, layers: int, tuned: int) -> list[Take]:
    """Which layers a student may start from, each choice once: what is the same as the lowest ones is called that."""
    takes = map(Take, distill.take if init in ("teacher", "trunk") else ["bottom"])
    same = taken(Take.BOTTOM, layers, tuned)
    return list(dict.fromkeys(Take.BOTTOM if taken(take, layers, tuned) == same else take for take in takes))


def _scope(candidate: Stage, common: dict[str, Any], settings: ScopeSettings) -> Stage:
    return Stage(
        f"{candidate.id}/scope",
        StageKind.SCOPE,
        candidate.task,
        {**common, "scope": settings.model_dump(mode="json", exclude={"enabled"})},
        (f"{candidate.task}/{StageKind.PREPARE}", candidate.id),
    )


def _exits(candidate: Stage, common: dict[str, Any], settings: ExitSettings, unlabelled: Sequence[str]) -> Stage:
    return Stage(
        f"{candidate.id}/exits",
        StageKind.EXITS,
        candidate.task,
        {
            **common,
            "forms": sorted(settings.forms),
            "depths": sorted(settings.depths),
            "schedule": settings.model_dump(mode="json", exclude={"enabled", "forms", "depths", "rule"}),
            **({"unlabelled": list(unlabelled)} if unlabelled else {}),
        },
        (f"{candidate.task}/{StageKind.PREPARE}", candidate.id),
    )


def _speeds(candidate: Stage, finished: Stage, exits: Stage, settings: TaskSettings, cost: CostSettings) -> Stage:
    """`finished` is the candidate, or what gives it a scope, which then reaches to its exits."""
    return Stage(
        f"{candidate.id}/speeds",
        StageKind.SPEEDS,
        candidate.task,
        {
            "task": candidate.task,
            "metric": settings.primary_metric,
            "depths": sorted(settings.exits.depths),
            "rule": settings.exits.rule.value,
            # Those that pay are told by time.
            "cost": cost.model_dump(mode="json", include={"batch", "tokens", "engine"}),
        },
        (f"{candidate.task}/{StageKind.PREPARE}", finished.id, exits.id),
    )
