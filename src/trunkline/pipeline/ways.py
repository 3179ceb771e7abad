"""By whom, and in which ways, a student of a task may be taught: the part of the grid that is about teachers.

Knows a task's settings and how stages are named; makes no stage and runs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from trunkline.project.config import TaskSettings
from trunkline.project.stage_settings import DistillSettings, PretrainSettings
from trunkline.project.taking import LayerMap, compared
from trunkline.project.tasks import Kind
from trunkline.project.teachers import Match, Mode, called, foreign, own, soft_file

if TYPE_CHECKING:
    from trunkline.training.teaching import Teaching

GRID = {
    *("layers", "teachers", "init", "latents", "crossing", "temperature", "gold_weight"),
    *("mode", "loss", "weights", "label_maps", "compare", "take", "hidden", "layer_map"),
}
"""Keys of `[distill]` that are no part of the training schedule."""
PRETRAINED = "pretrained"
"""What `distill.init` calls a start from what the first of two stages made."""


@dataclass(frozen=True)
class Teacher:
    """One teacher of a student: what it is called, and where what it says is found: at a stage, or in a file."""

    called: str
    stage: str | None = None
    file: str | None = None


def teach_id(task: str, teacher: str) -> str:
    """The id of the stage that asks a foreign teacher, by its name in the task's file."""
    return f"{task}/teach/{called(teacher)}"


def full_stem(task: str, trunk: str | None) -> str:
    """The beginning of the ids of the stages that train a task's full model: the project's trunk, or another by what
    the task's file calls it.
    """
    return f"{task}/full" if trunk is None else f"{task}/{called(f'full:{trunk}')}"


def teachers_of(task: str, settings: TaskSettings, tune: str, full: Mapping[str | None, str]) -> tuple[Teacher, ...]:
    """The teachers of a student that starts from the stage `tune`; `full` has the stages of full models of its seed by
    trunk, None the project's own.

    In an order that the file does not change but for files; a model that two names stand for counts once.
    """
    names = settings.distill.teachers
    elsewhere = sorted((name for name in names if foreign(name)), key=called)
    stages: dict[str, str] = {}
    for name in sorted((name for name in names if own(name)), key=lambda name: (name != "self", name != "full", name)):
        stages.setdefault(_own_stage(name, tune, full), name)
    return (
        *(Teacher(called(name), stage=stage) for stage, name in stages.items()),
        *(Teacher(called(name), stage=teach_id(task, name)) for name in elsewhere),
        *(Teacher(called(name), file=file) for name in names if (file := soft_file(name))),
    )


def _own_stage(name: str, tune: str, full: Mapping[str | None, str]) -> str:
    asked = own(name)
    if asked is None:
        raise AssertionError(f"not a teacher of the task's own: {name}")
    stem, seed = (full[asked.trunk] if asked.full else tune).rsplit("/", 1)
    if asked.layers is not None:
        kind, reading, _ = stem.rsplit("/", 2)
        stem = f"{kind}/{asked.reading or reading}/L{asked.layers}"
    return f"{stem}/{seed if asked.seed is None else f's{asked.seed}'}"


def taught_by(teachers: tuple[Teacher, ...], *, compare: bool) -> list[tuple[Teacher, ...]]:
    """By whom students are taught: by all; to compare, also by none, by each alone, and by all but each."""
    found = [teachers]
    if compare:
        found += [(), *((one,) for one in teachers)]
        found += [tuple(other for other in teachers if other is not one) for one in teachers]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Hidden:
    """The loss on hidden states beside that of a way; with weight 0 there is none."""

    weight: float
    layer_map: LayerMap = LayerMap.UNIFORM

    @property
    def fields(self) -> dict[str, Any]:
        """What a stage reads of it, as `Way.fields`."""
        other = {"layer_map": self.layer_map.value} if self.layer_map is not LayerMap.UNIFORM else {}
        return {"hidden": self.weight, **other} if self.weight else {}

    def searched(self, distill: DistillSettings) -> str:
        """The part of a stage's id that tells it from the others that are searched."""
        if len(distill.hidden) == len(distill.layer_map) == 1:
            return ""
        return f"/h{self.weight:g}" + (f"-{self.layer_map}" if self.weight and len(distill.layer_map) > 1 else "")


NO_HIDDEN = Hidden(0.0)


@dataclass(frozen=True)
class Way:
    """One way to teach a student; `weights` are those that are not 1, by what the teachers are called."""

    temperature: float
    gold_weight: float
    mode: Mode
    match: Match
    weights: tuple[tuple[str, float], ...]
    hidden: Hidden = NO_HIDDEN

    @property
    def fields(self) -> dict[str, Any]:
        """What a stage reads of it: what is usual is left out."""
        return {
            **({"mode": self.mode.value} if self.mode is not Mode.MEAN else {}),
            **({"loss": self.match.value} if self.match is not Match.KL else {}),
            **({"weights": dict(self.weights)} if self.weights else {}),
            **self.hidden.fields,
        }

    def searched(self, distill: DistillSettings) -> str:
        """The part of a stage's id that tells it from the other ways that are searched."""
        weights = dict(self.weights)
        several = sorted(called(name) for name, each in distill.weights.items() if len(each) > 1)
        varied = [f"{weights.get(name, 1.0):g}" for name in several]
        return "".join(
            [
                f"/T{self.temperature:g}" if len(distill.temperature) > 1 else "",
                f"/g{self.gold_weight:g}" if len(distill.gold_weight) > 1 else "",
                f"/{self.mode}" if len(distill.mode) > 1 else "",
                f"/{self.match}" if len(distill.loss) > 1 else "",
                f"/w{'+'.join(varied)}" if varied else "",
                self.hidden.searched(distill),
            ]
        )


def ways(
    distill: DistillSettings, kind: Kind, teachers: tuple[Teacher, ...], hidden: Sequence[Hidden] = (NO_HIDDEN,)
) -> list[Way]:
    """The ways that are searched, each once: what makes no difference for a kind, or for so few teachers, is not."""
    if not teachers:
        return [Way(1.0, 1.0, Mode.MEAN, Match.KL, ())]
    return list(dict.fromkeys(_ways(distill, kind, teachers, hidden)))


def _ways(
    distill: DistillSettings, kind: Kind, teachers: tuple[Teacher, ...], hidden: Sequence[Hidden]
) -> Iterator[Way]:
    numbers = kind is Kind.REGRESSION
    names = {teacher.called for teacher in teachers}
    weighed = {called(name): each for name, each in distill.weights.items() if called(name) in names}
    weightings = list(product(*weighed.values())) if len(teachers) > 1 else [()]
    for temperature, gold_weight, mode, loss, weights, one in product(
        distill.temperature[: 1 if numbers else None],
        distill.gold_weight,
        map(Mode, distill.mode),
        map(Match, distill.loss),
        weightings,
        hidden,
    ):
        same = (numbers and mode is Mode.MEAN_LOGITS) or (len(teachers) == 1 and mode is not Mode.HEADS)
        yield Way(
            temperature,
            gold_weight,
            Mode.MEAN if same else mode,
            Match.KL if numbers else Match(loss),
            tuple(sorted((name, weight) for name, weight in zip(weighed, weights, strict=False) if weight != 1)),
            one,
        )


def hiddens(distill: DistillSettings, layers: int, tuned: int) -> list[Hidden]:
    """The losses on hidden states that are searched for a student of so many of so many layers, each once."""
    same = compared(LayerMap.TOP, layers, tuned) == compared(LayerMap.UNIFORM, layers, tuned)
    searched = product(distill.hidden if layers else [0.0], map(LayerMap, distill.layer_map))
    found = (Hidden(weight) if same or not weight else Hidden(weight, one) for weight, one in searched)
    return list(dict.fromkeys(found))


def pretrain_fields(settings: PretrainSettings, shards: Mapping[str, float]) -> dict[str, Any]:
    """What a first stage reads of how it is taught, by the weight of each folder of shards under its content hash: what
    is usual is left out, as in `Way.fields`.
    """
    weights = tuple((content, weight) for content, weight in shards.items() if weight != 1)
    way = Way(settings.temperature, 0.0, Mode(settings.mode), Match(settings.loss), weights)
    table = settings.model_dump(mode="json", exclude={"shards", "init", "mode", "loss", "weights"})
    return {**way.fields, "schedule": table}


def teaching_of(fields: Mapping[str, Any], teachers: Sequence[str]) -> Teaching:
    """What a student's stage says of how teachers of these names teach it; a first stage has no labels."""
    from trunkline.training.teaching import Teaching

    weights = fields.get("weights", {})
    return Teaching(
        temperature=fields["schedule"]["temperature"],
        gold_weight=fields["schedule"].get("gold_weight", 0.0),
        mode=Mode(fields.get("mode", Mode.MEAN)),
        match=Match(fields.get("loss", Match.KL)),
        weights=tuple(weights.get(teacher, 1.0) for teacher in teachers) if weights else (),
        hidden=fields.get("hidden", 0.0),
        layer_map=LayerMap(fields.get("layer_map", LayerMap.UNIFORM)),
    )
