"""Run one stage: read what it needs from the store, train, leave its artifacts there.

    prepare   data/             rows, splits and labels (project/data.py)
    full      branch.safetensors, encoder/
    teach     logits.safetensors    of the train rows, and SPLIT.safetensors of those of `valid` and the reported split
    tune      branch.safetensors
    pretrain  branch.safetensors
    distill   branch.safetensors
    scope     branch.safetensors
    exits     exits.safetensors     all that are trained; none where the branch can have none
    speeds    branch.safetensors

A training stage's result holds the metrics of every scored split (that of speeds what each comes to there, that of a
scope the share that it flags, that of a foreign teacher its own metrics), the history and the seconds it
took. torch is imported when the first training stage runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.atomic import publish_folder, scratch_folder
from trunkline.errors import Problem, ProjectError, TrunklineError
from trunkline.machine import machine
from trunkline.model.source import Source
from trunkline.pipeline.costs import BranchShape, end_shape, exit_shape, measure, shape_of
from trunkline.pipeline.foreign import (
    TRAIN,
    ask,
    check_teachers,
    foreign_teachers,
    load_logits,
    logits_file,
    save_logits,
)
from trunkline.pipeline.lessons import REASONS, Lessons, find_taught
from trunkline.pipeline.select import READS
from trunkline.pipeline.stages import Graph, Stage, StageKind
from trunkline.pipeline.store import Entry, Store
from trunkline.pipeline.task_files import unlabelled_contents
from trunkline.pipeline.ways import teach_id, teaching_of
from trunkline.project.config import ProjectFiles
from trunkline.project.data import TaskData, pinned, read_task, read_unlabelled
from trunkline.project.explain import quoted
from trunkline.project.scope import check_scope
from trunkline.project.soft import soft_labels
from trunkline.project.speed import fastest
from trunkline.project.taking import Take

if TYPE_CHECKING:
    from trunkline.model.exits import Form
    from trunkline.model.trunk import Trunk
    from trunkline.training.candidates import Trained
    from trunkline.training.leaving import Prices
    from trunkline.training.loop import Outcome, Progress
    from trunkline.training.material import Logits, TaskMaterial

BRANCH = "branch.safetensors"
EXITS = "exits.safetensors"
CHECKPOINT = "checkpoint.pt"
ENCODER = "encoder"
DATA = "data"

Report = Callable[["Progress"], None]


@dataclass
class Workshop:
    """What stages share while a run lasts: the trunk, and the material of the task at hand."""

    files: ProjectFiles
    source: Source
    graph: Graph
    store: Store
    say: Callable[[str], None]
    _trunk: Trunk | None = None
    _material: dict[str, TaskMaterial] = field(default_factory=dict)

    def run(self, stage: Stage, report: Report) -> Entry:
        """Run `stage` and publish it; stages that it needs are in the store."""

        def make(artifacts: Path, work: Path) -> dict[str, Any]:
            started = time.monotonic()
            if stage.kind is StageKind.PREPARE:
                return self._prepare(stage, artifacts)
            if stage.kind is StageKind.TEACH:
                kept = self._teach(stage, artifacts, report)
                return {**kept, "seconds": round(time.monotonic() - started, 1)}
            checkpoint = work / CHECKPOINT
            try:
                if stage.kind is StageKind.SCOPE:
                    kept = self._scope(stage, artifacts)
                elif stage.kind is StageKind.EXITS:
                    kept = self._exits(stage, artifacts, checkpoint, report)
                elif stage.kind is StageKind.SPEEDS:
                    kept = self._speeds(stage, artifacts)
                elif stage.kind is StageKind.PRETRAIN:
                    kept = self._pretrain(stage, artifacts, checkpoint, report)
                else:
                    kept = self._keep(self._over(stage)._train(stage, checkpoint, report), artifacts)
            except FloatingPointError as error:
                key = f"{stage.kind}.learning_rate"  # tables of schedules are called as the stages that read them
                raise TrunklineError(f"{stage.id}: {error}; lower {key} in tasks/{stage.task}.toml") from error
            return {**kept, "seconds": round(time.monotonic() - started, 1)}

        return self.store.put(self.graph.keys[stage.id], stage.fields, make)

    def data(self, task: str) -> TaskData:
        """The prepared data of a task."""
        return TaskData.load(self._entry(f"{task}/prepare").folder / DATA)

    def _entry(self, id: str) -> Entry:
        return self.store.get(self.graph.keys[id])

    def _prepare(self, stage: Stage, artifacts: Path) -> dict[str, Any]:
        settings = pinned(self.files.tasks[stage.task], stage.fields["sources"])
        data = read_task(self.files.root, stage.task, settings)
        # What is wrong here is better known before anything is trained.
        check_teachers(self.files, {stage.task: data}, self.store.hashes)
        check_scope(self.files, {stage.task: data})
        read_unlabelled(self.files.root, stage.task, settings, data)
        data.save(artifacts / DATA)
        for note in data.notes:
            self.say(f"{stage.task}: {note}")
        rows = {name: len(split) for name, split in data.reported.items()}
        return {
            "rows": {"train": len(data.train), "valid": len(data.valid), **rows},
            "labels": list(data.labels),
            "reported": data.main_split,
            "notes": data.notes,
        }

    @property
    def trunk(self) -> Trunk:
        """The frozen trunk, loaded once."""
        if self._trunk is None:
            from trunkline.model.encoders import Encoder
            from trunkline.model.trunk import Trunk

            self._trunk = Trunk(Encoder.load(self.source.path), self.source.fingerprint).to(self.device)
        return self._trunk

    @property
    def device(self) -> str:
        """Where training runs. Raises ProjectError where the project asks for a device that is not there."""
        import torch

        asked = self.files.settings.device
        if asked == "cuda" and not torch.cuda.is_available():
            raise ProjectError(
                [Problem("project.toml", "device", "no CUDA device here", found="cuda", allowed='"cpu" or "auto"')]
            )
        return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else str(asked)

    def material(self, task: str) -> TaskMaterial:
        """What training reads of a task; only the task at hand is held."""
        if task not in self._material:
            self._material = {task: self._read(task)}
        return self._material[task]

    def _read(self, task: str) -> TaskMaterial:
        from trunkline.training.loop import precision_of
        from trunkline.training.material import TaskMaterial
        from trunkline.training.states import StateCache

        settings = self.files.settings
        return TaskMaterial(
            name=task,
            settings=self.files.tasks[task],
            data=self.data(task),
            trunk=self.trunk,
            cache=StateCache(self.store.states, int(settings.store.max_states_gb * 1e9)),
            precision=precision_of(settings.precision, self.device),
            say=self.say,
        )

    def _over(self, stage: Stage) -> Workshop:
        """This workshop with the trunk of a stage, where that is another than the project's."""
        return self if stage.trunk is None else replace(self, source=stage.trunk, _trunk=None, _material={})

    def _train(self, stage: Stage, checkpoint: Path, report: Report) -> Trained:
        from trunkline.model.branch import Reading
        from trunkline.training.candidates import schedule_of, train_full, train_student, train_tuned

        material = self.material(stage.task)
        fields = stage.fields
        reading = Reading(fields["reading"])
        settings = material.settings
        asked = {StageKind.FULL: settings.full, StageKind.TUNE: settings.tune, StageKind.DISTILL: settings.distill}[
            stage.kind
        ]
        schedule = schedule_of(
            asked,
            fields["schedule"]["learning_rate"],
            seed=fields["seed"],
            precision=material.precision,
            device=self.device,
        )
        if stage.kind is StageKind.FULL:
            return train_full(material, reading, schedule, checkpoint, report)
        if stage.kind is StageKind.TUNE:
            return train_tuned(material, reading, fields["layers"], schedule, checkpoint, report)
        return train_student(
            material,
            self._start(stage),
            self._soft(stage),
            fields["layers"],
            fields["init"],
            schedule,
            checkpoint,
            report,
            teaching=teaching_of(fields, [teacher.called for teacher in stage.teachers]),
            followed=self._branch(stage.needs[0]) if "hidden" in fields else None,
            latents=fields.get("latents", 0),
            crossing=fields.get("crossing", 1),
            take=Take(fields.get("take", Take.BOTTOM)),
        )

    def _start(self, student: Stage) -> Any:
        """The branch that a student starts from, and reads at the fork of: of its first stage, or the tuned layers."""
        first = [need for need in student.needs if self.graph.stages[need].kind is StageKind.PRETRAIN]
        return self._branch((first or student.needs)[0])

    def _pretrain(self, stage: Stage, artifacts: Path, checkpoint: Path, report: Report) -> dict[str, Any]:
        """Have a student learn what teachers said in shards, but for rows that the task is judged on."""
        from trunkline.training.candidates import schedule_of
        from trunkline.training.pretrain import pretrain_student

        material, fields = self.material(stage.task), stage.fields
        asked = material.settings.pretrain
        taught, problems = find_taught(self.files.root, stage.task, material.settings)
        if problems:
            raise ProjectError(problems)
        if [one.content for one in taught] != fields["shards"]:
            raise TrunklineError(f"{stage.id}: pretrain.shards changed since the run was planned; run again")
        lessons = Lessons(taught, material.kind, material.data)
        if any(lessons.left_out.values()):
            counts = [f"{count:,} {REASONS[why]}" for why, count in lessons.left_out.items() if count]
            self.say(f"{stage.id}: rows left out: {', '.join(counts)}")
        if not sum(lessons.rows):
            raise TrunklineError(f"{stage.id}: no row is left to learn from in {quoted([one.name for one in taught])}")
        schedule = schedule_of(
            asked, asked.learning_rate, seed=fields["seed"], precision=material.precision, device=self.device
        )
        trained = pretrain_student(
            material,
            self._branch(stage.needs[0]),
            lessons,
            fields["layers"],
            fields["init"],
            schedule,
            checkpoint,
            report,
            teaching=teaching_of(fields, fields["shards"]),
            latents=fields.get("latents", 0),
            crossing=fields.get("crossing", 1),
        )
        rows = {"train": sum(lessons.rows), "left_out": lessons.left_out}
        return {"rows": rows, **self._keep(trained, artifacts)}

    def _scope(self, stage: Stage, artifacts: Path) -> dict[str, Any]:
        from trunkline.model.branch import save_branch
        from trunkline.training.scope import add_scope

        candidate = self._entry(stage.needs[1]).result["branch"]
        made = add_scope(self.material(stage.task), self._branch(stage.needs[1]), stage.fields["scope"]["false_alarms"])
        save_branch(made.branch, artifacts / BRANCH)
        return {"branch": candidate, "flagged": made.flagged}

    def _exits(self, stage: Stage, artifacts: Path, checkpoint: Path, report: Report) -> dict[str, Any]:
        from trunkline.model.exits import Form
        from trunkline.training.candidates import schedule_of
        from trunkline.training.exits import save_exits, train_exits

        material, fields = self._with_unlabelled(stage), stage.fields
        asked = material.settings.exits
        schedule = schedule_of(
            asked,
            asked.learning_rate,
            seed=fields["seed"],
            precision=material.precision,
            device=self.device,
        )
        found = train_exits(
            material,
            self._branch(stage.needs[1]),
            schedule,
            checkpoint,
            report,
            forms=[Form(form) for form in fields["forms"]],
            depths=fields["depths"],
        )
        learned = {} if material.unlabelled is None else {"unlabelled": len(material.unlabelled)}
        if found is None:
            return {"depths": [], **learned}
        exits, outcome = found
        save_exits(exits, artifacts / EXITS)
        return {"depths": sorted({depth for depth, _ in exits.places}), **learned, **went(outcome)}

    def _speeds(self, stage: Stage, artifacts: Path) -> dict[str, Any]:
        """Choose among the exits of a branch, if there are any, and find what its speeds come to."""
        from trunkline.model.branch import save_branch
        from trunkline.project.speed import Rule
        from trunkline.training.exits import load_exits
        from trunkline.training.leaving import KEEPS
        from trunkline.training.speeds import WithExits, choose_exits

        finished, trained = stage.needs[1:]
        candidate, branch = self._entry(finished).result["branch"], self._branch(finished)
        made = WithExits(branch)
        if self._entry(trained).result["depths"]:
            exits = load_exits(self._entry(trained).folder / EXITS, branch.spec).to(self.device)
            forms = sorted({form for _, form in exits.places})
            made = choose_exits(
                self.material(stage.task),
                branch,
                exits,
                lambda: self._prices(candidate, forms),
                rule=Rule(stage.fields["rule"]),
                every=bool(stage.fields["depths"]),
            )
        save_branch(made.branch, artifacts / BRANCH)
        points = made.branch.spec.speeds
        return {
            "machine": machine(),  # whose times the choice rests on
            "depth": made.branch.spec.depth,
            "exits": [one.model_dump(mode="json") for one in made.branch.spec.exits],
            "speeds": {split: [point.model_dump() for point in found] for split, found in made.speeds.items()},
            "left": made.left,
            "ece": made.ece,
            "keeps": [{"keep": keep, "speed": fastest(points, keep)} for keep in KEEPS] if points else [],
        }

    def _with_unlabelled(self, stage: Stage) -> TaskMaterial:
        """The material of a stage of exits, which alone read texts without labels."""
        material = self.material(stage.task)
        settings, root = material.settings, self.files.root
        if unlabelled_contents(root, settings, self.store.hashes) != stage.fields.get("unlabelled", []):
            raise TrunklineError(f"{stage.id}: data.unlabelled changed since the run was planned; run again")
        rows = read_unlabelled(root, stage.task, settings, material.data)
        if rows is None:
            return material
        self.say(f"{stage.task}: exits learn from {len(rows):,} rows without labels, too")
        return replace(material, unlabelled=rows)

    def _prices(self, branch: Mapping[str, Any], forms: Sequence[Form]) -> list[Prices]:
        """What the way to a branch's head costs on this machine, in batches and for one text by itself."""
        from trunkline.training.leaving import Prices

        exits = {form: exit_shape(branch, form) for form in forms}
        whole = end = shape_of(branch)
        own_exits: dict[Form, BranchShape] = {}
        if branch["layers"] > 1 and not branch.get("latents"):  # else there are no exits between own layers
            end = end_shape(branch)
            own_exits = {form: exit_shape(branch, form, own=True) for form in forms}
        shapes = [whole, end, *exits.values(), *own_exits.values()]
        [slot] = READS[branch["reading"]]
        cost = self.files.settings.cost
        prices = []
        for batch in sorted({cost.batch, 1}, reverse=True):
            found = measure(self.source, cost.model_copy(update={"batch": batch}), self.store, shapes, self.say)
            prices.append(
                Prices(
                    trunk=found.trunk.ms[slot],
                    exits={form: found.branch[shape] for form, shape in exits.items()},
                    branch=found.branch[whole],
                    end=found.branch[end],
                    own_exits={form: found.branch[shape] for form, shape in own_exits.items()},
                )
            )
        return prices

    def check(self, stages: Sequence[Stage]) -> None:
        """Raises ProjectError for what these stages ask of data that cannot give it, of tasks that are prepared: with
        all that is wrong with what teaches them, or with rates of false alarms.
        """
        outside = (StageKind.TEACH, StageKind.PRETRAIN)
        taught = {stage.task for stage in stages if stage.kind in outside or "soft" in stage.fields}
        flagged = {stage.task for stage in stages if self.files.tasks[stage.task].scope.enabled}
        ready = [task for task in sorted(taught | flagged) if self.graph.keys[f"{task}/prepare"] in self.store]
        data = {task: self.data(task) for task in ready}
        check_teachers(self.files, {task: data[task] for task in ready if task in taught}, self.store.hashes)
        check_scope(self.files, data)

    def _teach(self, stage: Stage, artifacts: Path, report: Report) -> dict[str, Any]:
        """Ask a foreign teacher about the train rows, and to see how good it is about the splits it is judged on."""
        from trunkline.training.loop import Progress

        settings, started = self.files.tasks[stage.task], time.monotonic()
        found, problems = foreign_teachers(self.files.root, stage.task, settings, self.store.hashes)
        if problems:
            raise ProjectError(problems)
        [teacher] = [one for one in found.values() if teach_id(stage.task, one.name) == stage.id]

        def moved(done: int, of: int) -> None:
            report(Progress(done, of, None, None, (time.monotonic() - started) / done * (of - done)))

        said = ask(teacher, stage.task, settings, self.data(stage.task), self.device, moved)
        for split, logits in said.logits.items():
            save_logits(logits, artifacts / logits_file(split))
        for note in said.notes:
            self.say(f"{stage.id}: {note}")
        return {"metrics": said.metrics}

    def _soft(self, stage: Stage) -> list[Logits]:
        """What each teacher of a student says of the train rows, in the order of `stage.teachers`.

        Raises ProjectError for a file that does not fit.
        """
        files: dict[str, Logits] = {}
        if any(one.file is not None for one in stage.teachers):
            said = soft_labels(self.files, stage.task, self.data(stage.task))
            files = dict(zip(self.files.tasks[stage.task].soft_files, said, strict=True))
        return [self._says(one.stage) if one.stage is not None else files[str(one.file)] for one in stage.teachers]

    def _says(self, id: str) -> Logits:
        """What the teacher of a finished stage says of the train rows."""
        if self.graph.stages[id].kind is StageKind.TEACH:
            return load_logits(self._entry(id).folder / logits_file(TRAIN))
        return self.taught(id)

    def _branch(self, id: str, encoder: Any = None) -> Any:
        from trunkline.model.branch import load_branch

        return load_branch(self._entry(id).folder / BRANCH, encoder or self.trunk.encoder).to(self.device)

    def taught(self, id: str, split: str = TRAIN) -> Logits:
        """Logits of a model of the task's own for the rows of a split. They are kept beside the trunk states: each of
        its students asks for them.
        """
        kept = self.store.states / f"said-{self.graph.keys[id]}{'' if split == TRAIN else f'-{split}'}"
        file = logits_file(TRAIN)
        if not kept.exists():
            scratch = scratch_folder(kept)
            save_logits(self._asked(id, split), scratch / file)
            publish_folder(scratch, kept)
        return load_logits(kept / file)

    def _asked(self, id: str, split: str) -> Logits:
        from trunkline.model.encoders import Encoder
        from trunkline.training.candidates import logits_of
        from trunkline.training.material import FIT

        stage = self.graph.stages[id]
        shop, full = self._over(stage), stage.kind is StageKind.FULL
        encoder = Encoder.load(self._entry(id).folder / ENCODER).to(self.device) if full else None
        material = shop.material(stage.task)
        pool, rows = (FIT, material.data.train) if split == TRAIN else material.splits()[split]
        return logits_of(material, shop._branch(id, encoder), encoder, rows, pool)

    def _keep(self, trained: Trained, artifacts: Path) -> dict[str, Any]:
        from trunkline.model.branch import save_branch

        save_branch(trained.branch, artifacts / BRANCH)
        if trained.encoder is not None:
            trained.encoder.save(artifacts / ENCODER)
        spec = trained.branch.spec
        return {
            "metrics": trained.metrics,
            "branch": {
                name: getattr(spec, name) for name in ("fork", "layers", "reading", "pooling", "latents", "crossing")
            },
            "calibration": None if trained.calibration is None else asdict(trained.calibration),
            **went(trained.outcome),
        }


def went(outcome: Outcome) -> dict[str, Any]:
    """How training went, as a stage's result says it."""
    return {"steps": outcome.steps, "best_step": outcome.best_step, "history": outcome.history}
