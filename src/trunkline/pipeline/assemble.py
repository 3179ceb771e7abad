"""From finished candidates to a live release: measure costs, select, merge, prove, publish, evaluate.

Knows the results of stages, never how they were trained. A task that is released keeps its branch until its own stages
or the budget change, so that adding or removing one task never moves another (promise 2). `reselect` lifts that. Of a
task that asks for a scope or exits, the file that is merged is that of its chosen candidate with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.bundle.manifest import read_manifest, verify
from trunkline.bundle.release import Release, Releases
from trunkline.errors import BundleError, UsageError
from trunkline.model.source import Source
from trunkline.pipeline.costs import Measured, full_shapes, measure, shape_of
from trunkline.pipeline.execute import BRANCH
from trunkline.pipeline.select import Budget, Candidate, Choice, choose, paper_rule
from trunkline.pipeline.selections import Selection, Selections
from trunkline.pipeline.stages import Graph, Stage, StageKind
from trunkline.pipeline.store import Entry, Store, key_of
from trunkline.project.config import ProjectFiles
from trunkline.project.data import Rows, TaskData

if TYPE_CHECKING:
    from trunkline.engine.base import Input

EVALUATE_VERSION = 1
PROBES_PER_TASK = 3
_SEED = re.compile(r"/s\d+$")


@dataclass(frozen=True)
class Options:
    """All candidates with their costs, and the baselines to hold them against.

    A candidate stands for all seeds of one configuration: `quality` is their mean, `best` the entry of the seed that is
    best on `valid`.
    """

    candidates: list[Candidate]
    best: dict[str, Entry]
    full_quality: dict[str, float]
    full_ms: dict[str, float]
    full: dict[str, list[Entry]]
    measured: Measured


class Assembly:
    """Turns a project's finished stages into its live release."""

    def __init__(
        self, files: ProjectFiles, source: Source, graph: Graph, store: Store, say: Callable[[str], None]
    ) -> None:
        self.files, self.source, self.graph, self.store, self.say = files, source, graph, store, say
        self.releases = Releases(store.folder)
        self.selections = Selections(store.selections)

    def finished(self, asked: Sequence[str]) -> list[str]:
        """Tasks with every stage in the store: those asked for, and others that are live just as their files say."""
        live = self.live_selection()
        return [
            task
            for task in self.graph.tasks
            if self._done(self.graph.of(task)) and (task in asked or (live is not None and self._as_filed(task, live)))
        ]

    def _unchanged(self, task: str, live: Selection) -> bool:
        return live.candidates_key.get(task) == self.candidates_key(task)

    def _as_filed(self, task: str, live: Selection) -> bool:
        """Whether a task is live with the candidates, the scope and the exits that its file asks for."""
        if not self._unchanged(task, live):
            return False
        key = self._finished(live.branch[task])
        return live.exits.get(task) == key and (key is None or key in self.store)

    def _finished(self, branch: str) -> str | None:
        """The key of the last stage that finishes the candidate of this key, if there is any."""
        stages = self.graph.finishing_of(branch)
        return self.graph.keys[stages[-1].id] if stages else None

    def finishing(self, branches: Iterable[str]) -> list[Stage]:
        """What it takes to finish the candidates of these keys, by what their tasks ask for. Where the last stage is
        done, that is the scope alone, of which a report tells, whatever became of the others.
        """
        chains = map(self.graph.finishing_of, branches)
        return [
            stage for chain in chains for stage in chain if stage.kind is StageKind.SCOPE or not self._done(chain[-1:])
        ]

    def _done(self, stages: Iterable[Stage]) -> bool:
        return all(self.graph.keys[stage.id] in self.store for stage in stages)

    def follow(self, tasks: Sequence[str], kind: StageKind) -> list[str]:
        """Those of these tasks whose chosen branch gets a scope or exits (`kind`), or may get another, by what their
        files ask for now.
        """
        live = self.live_selection()
        asking = {stage.task for stage in self.graph.finishing.values() if stage.kind is kind}.intersection(tasks)
        if live is None or live.budget_key != self._budget_key():
            return sorted(asking)
        return sorted(task for task in asking if not self._as_filed(task, live))

    def wish(self, tasks: Sequence[str], budget_key: str) -> str:
        """Identifies what the project's files ask for, as far as these tasks go."""
        stages = {stage.id: self.graph.keys[stage.id] for stage in self.graph.all.values() if stage.task in tasks}
        settings = self.files.settings
        shown = [settings.name, settings.search.marginal_gain, settings.cost.model_dump(mode="json")]
        return key_of([stages, budget_key, shown, self.source.fingerprint])

    def _budget_key(self) -> str:
        return key_of(self.files.settings.budget.model_dump(mode="json"))

    def live_selection(self) -> Selection | None:
        """The selection of the live release, if it is known."""
        live = self.releases.live()
        return None if live is None else self.selections.of(live)

    def up_to_date(self) -> bool:
        """Whether the live release is what the files ask for, and its bundle whole."""
        live = self.live_selection()
        if live is None or live.wish != self.wish(self.graph.tasks, self._budget_key()):
            return False
        return self._whole(self.releases.live()) is not None

    def _whole(self, release: Release | None) -> Path | None:
        """The bundle of a release, None where there is none or it is damaged."""
        if release is None:
            return None
        try:
            verify(self.releases.folder(release))
        except BundleError as error:
            self.say(f"release {release.id} is damaged and is made anew: {error}")
            return None
        return self.releases.folder(release)

    def check_trunk(self, asked: Sequence[str]) -> None:
        """Refuse to train some tasks for another trunk than the one that the others are released on."""
        live = self.releases.live()
        kept = [task for task in live.tasks if task in self.files.tasks and task not in asked] if live else []
        if live is None or not kept:
            return
        if read_manifest(self.releases.folder(live)).trunk.fingerprint != self.source.fingerprint:
            raise UsageError(
                f"the encoder is not that of release {live.id}, so all its tasks must be trained again, "
                f"also {', '.join(kept)}: trunkline run"
            )

    def options(self, tasks: Sequence[str]) -> Options:
        """The candidates of these tasks, all of whose stages are done."""
        searched = [s for task in tasks for s in self.graph.of(task, StageKind.TUNE, StageKind.DISTILL)]
        full = {task: self.graph.full(task) for task in tasks}
        wholes = [self._entry(stage) for stages in full.values() for stage in stages]
        shapes = {shape_of(entry.result["branch"]) for entry in [*map(self._entry, searched), *wholes]}
        shapes |= {shape for entry in wholes for shape in full_shapes(entry.result["branch"])}
        measured = measure(self.source, self.files.settings.cost, self.store, shapes, self.say)
        candidates, best = [], {}
        for id, stages in over_seeds(searched).items():
            entries = [self._entry(stage) for stage in stages]
            scores = [self._valid(stages[0].task, entry) for entry in entries]
            branch = entries[0].result["branch"]
            candidates.append(
                Candidate(
                    id=id,
                    task=stages[0].task,
                    fork=branch["fork"],
                    layers=branch["layers"],
                    reading=branch["reading"],
                    quality=float(np.mean(scores)),
                    ms=measured.branch[shape_of(branch)],
                )
            )
            best[id] = entries[int(np.argmax(scores))]
        full_entries = {task: self._strongest(task, stages) for task, stages in full.items()}
        baselines = {task: entries[0].result["branch"] for task, entries in full_entries.items()}
        return Options(
            candidates,
            best,
            {task: float(np.mean([self._valid(task, e) for e in entries])) for task, entries in full_entries.items()},
            {task: measured.full(b["reading"], b["pooling"], self.source.depth) for task, b in baselines.items()},
            full_entries,
            measured,
        )

    def _strongest(self, task: str, stages: Sequence[Stage]) -> list[Entry]:
        """The full models, one for each seed, of the way to train them that is best on `valid`."""
        ways = [[self._entry(stage) for stage in found] for found in over_seeds(stages).values()]
        return max(ways, key=lambda entries: float(np.mean([self._valid(task, entry) for entry in entries])))

    def _entry(self, stage: Stage) -> Entry:
        return self.store.get(self.graph.keys[stage.id])

    def metric(self, task: str) -> str:
        """The metric that a task is selected by."""
        return self.files.tasks[task].primary_metric

    def _valid(self, task: str, entry: Entry) -> float:
        return float(entry.result["metrics"]["valid"][self.metric(task)])

    def budget(self, options: Options, pinned: Mapping[str, str]) -> Budget:
        """The project's budget in the units of `choose`."""
        asked = self.files.settings.budget
        if asked.max_cost is not None:
            return Budget(max_ms=asked.max_cost * sum(options.full_ms.values()), pinned=pinned)
        return Budget(
            min_quality=asked.min_relative_quality * float(np.mean(list(options.full_quality.values()))), pinned=pinned
        )

    def candidates_key(self, task: str) -> str:
        """Identifies the candidates that a task had to choose from."""
        return key_of(sorted(self.graph.keys[s.id] for s in self.graph.of(task)))

    def pins(self, options: Options, asked: Sequence[str], *, reselect: bool) -> dict[str, str]:
        """Released tasks that keep their branch: those not asked for, and those whose candidates and budget did not
        change.
        """
        live = self.live_selection()
        if live is None:
            return {}
        anew = reselect or live.budget_key != self._budget_key()
        known = {candidate.id for candidate in options.candidates}
        return {
            task: live.chosen[task]
            for task in options.full_quality
            if not (anew and task in asked)
            and self._unchanged(task, live)
            and live.chosen.get(task) in known
            and options.best[live.chosen[task]].key == live.branch[task]
        }

    def select(
        self, options: Options, asked: Sequence[str], *, reselect: bool = False
    ) -> tuple[Choice, dict[str, str]]:
        """The best set for the budget, with released tasks kept where they are, and which those are."""
        pinned = self.pins(options, asked, reselect=reselect)
        choice = choose(options.candidates, options.measured.trunk, self.budget(options, pinned))
        if choice is None:
            raise AssertionError("every task has candidates")
        return choice, pinned

    def kept(self, pinned: Collection[str], chosen: Mapping[str, str]) -> list[str]:
        """Those of the pinned tasks that keep their branch file too, of the chosen candidates (task -> key)."""
        live = self.live_selection()
        before = {} if live is None else live.exits
        return [task for task in pinned if before.get(task) == self._finished(chosen[task])]

    def by_depth(self, options: Options) -> list[tuple[int, Choice | None]]:
        """The best set for each depth of the trunk, nothing pinned."""
        budget = self.budget(options, {})
        forks = sorted({candidate.fork for candidate in options.candidates})
        return [(depth, choose(options.candidates, options.measured.trunk, budget, depth=depth)) for depth in forks]

    def by_paper(self, options: Options) -> dict[str, Candidate]:
        """What Wei et al.'s marginal-gain rule takes."""
        return paper_rule(options.candidates, self.files.settings.search.marginal_gain)

    def release(
        self, asked: Sequence[str], options: Options, choice: Choice, note: str, going_live: Callable[[], None]
    ) -> Release:
        """Merge the chosen branches, with the scope and exits that their tasks ask for, which are done, and those of
        live tasks that wait for a run of their own; prove them, call `going_live`, go live.
        """
        from trunkline.bundle.merge import merge

        chosen = {task: options.best[c.id] for task, c in choice.candidates.items()}
        finished = {task: key for task, entry in chosen.items() if (key := self._finished(entry.key)) is not None}
        final = chosen | {task: self.store.get(key) for task, key in finished.items()}
        branches = {task: entry.folder / BRANCH for task, entry in final.items()}
        live = self.releases.live()
        before = None if live is None else self.selections.of(live)
        others = self.files.tasks.keys() - chosen
        waiting = set() if before is None else before.branch.keys() & others
        budget_key = self._budget_key()
        if before is not None and not chosen.keys() | waiting <= set(asked):
            budget_key = before.budget_key  # some kept their branch under it; a run of all will choose anew
        selection = Selection(
            wish=self.wish(sorted(chosen), budget_key),
            candidates_key={task: self.candidates_key(task) for task in chosen},
            budget_key=budget_key,
            chosen={task: c.id for task, c in choice.candidates.items()},
            branch={task: entry.key for task, entry in chosen.items()},
            prepared={task: self.graph.keys[f"{task}/prepare"] for task in chosen},
            met=choice.met,
            exits=finished,
        )
        if before is not None:
            for task in waiting:
                # From the store, not from the live bundle: that one may be damaged.
                branches[task] = self.store.get(before.file_of(task)).folder / BRANCH
                selection.take(task, before)
        self.store.bundles.mkdir(parents=True, exist_ok=True)
        previous = self._whole(live)
        name = self.files.settings.name or self.files.root.name
        bundle = merge(self.source, branches, self.probes(selection.prepared), self.store.bundles, previous, name=name)
        self.selections.keep(bundle.name, selection)
        self._say_int8(live, bundle)
        going_live()
        return self.releases.publish(bundle, note)

    def _say_int8(self, live: Release | None, bundle: Path) -> None:
        """Name the tasks that servers in int8 would miss, where the live release has int8."""
        try:
            before = None if live is None else read_manifest(self.releases.folder(live)).int8
        except BundleError:
            return  # it is damaged, which was said
        if before is None:
            return
        after = read_manifest(bundle)
        missing = after.branches.keys() - (after.int8.tasks.keys() if after.int8 is not None else set())
        if missing:
            tasks = ", ".join(sorted(missing))
            self.say(f"not in int8 yet: {tasks}; servers in int8 refuse the release until: trunkline quantize")

    def probes(self, prepared: Mapping[str, str]) -> list[Input]:
        """A few held-out inputs of every task."""
        probes: dict[Input, None] = {}
        for _, key in sorted(prepared.items()):
            data = self.data(key)
            for item in inputs_of(data.fit.take(data.valid[:PROBES_PER_TASK])):
                probes[item] = None
        return list(probes)

    def data(self, key: str) -> TaskData:
        """Prepared data by the key of its stage."""
        return TaskData.load(self.store.get(key).folder / "data")

    def evaluate(self, release: Release, tasks: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
        """task -> split -> metrics of the merged model on the reported splits, through the engine; each kept in the
        store.
        """
        selection = self.selections.of(release)
        if selection is None:
            return {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        bundle: Any = None
        for task in sorted(selection.prepared):
            if tasks is not None and task not in tasks:
                continue
            fields = {
                "branch": release.tasks[task],
                "data": selection.prepared[task],
                "encoder": self.source.fingerprint,
            }
            key = key_of(["evaluate", EVALUATE_VERSION, fields])
            if key not in self.store:
                if bundle is None:
                    from trunkline.bundle.loaded import Bundle

                    bundle = Bundle.load(self.releases.folder(release))
                scores = self._score(bundle, task, selection)
                self.store.put(key, fields, lambda _a, _w, scores=scores: {"metrics": scores})  # type: ignore[misc]
            found[task] = self.store.get(key).result["metrics"]
        return found

    def _score(self, bundle: Any, task: str, selection: Selection) -> dict[str, dict[str, float]]:
        from trunkline.engine.base import ItemError
        from trunkline.project.metrics import evaluate

        data = self.data(selection.prepared[task])
        spec = bundle.specs[task]
        scores = {}
        for split, rows in data.reported.items():
            logits = bundle.logits(inputs_of(rows), [task], batch_size=64)[task]
            faults = [item.message for item in logits if isinstance(item, ItemError)]
            if faults:
                raise BundleError(f"task '{task}' cannot be evaluated on {split}: {faults[0]} ({len(faults)} rows)")
            values = logits if spec.kind == "tagging" else np.stack(logits)
            scores[split] = evaluate(spec.kind, spec.labels, spec.positive, rows, values)
        return scores


def inputs_of(rows: Rows) -> list[Input]:
    """Rows as an engine takes them."""
    from trunkline.engine.base import Input

    pairs: Sequence[str | None] = rows.pairs or [None] * len(rows)
    words = [None] * len(rows) if rows.words is None else [tuple(map(tuple, spans)) for spans in rows.words]
    return [Input(text, pair, spans) for text, pair, spans in zip(rows.texts, pairs, words, strict=True)]  # type: ignore[arg-type]


def over_seeds(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """The stages that differ in nothing but their seed, by what they have in common."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(_SEED.sub("", stage.id), []).append(stage)
    return groups
