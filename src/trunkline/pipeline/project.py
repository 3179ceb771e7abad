"""A project: its files, its store, and the run from one to a live release. The Python face of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.atomic import clear_leftovers, write_json, write_text
from trunkline.bundle.release import Release, Releases
from trunkline.errors import Problem, ProjectError, StoreError, TrunklineError, UsageError, unknown
from trunkline.model.source import Source, resolve
from trunkline.pipeline import plan as planning
from trunkline.pipeline.assemble import Assembly, Options
from trunkline.pipeline.costs import forget
from trunkline.pipeline.ensemble import ensemble
from trunkline.pipeline.execute import Workshop
from trunkline.pipeline.gc import Freed, collect
from trunkline.pipeline.grid import graph
from trunkline.pipeline.plan import Step
from trunkline.pipeline.progress import Show, Silent, summary
from trunkline.pipeline.select import Candidate, Choice
from trunkline.pipeline.stages import Graph, StageKind
from trunkline.pipeline.store import Store
from trunkline.pipeline.task_files import TaskFiles
from trunkline.pipeline.trunks import Trunks
from trunkline.project.config import ProjectFiles, TaskSettings, load_files
from trunkline.project.sources import Commits

if TYPE_CHECKING:
    from trunkline.bundle import Bundle

PAGE = "report.html"
REPORT = "report.json"


@dataclass(frozen=True)
class RunResult:
    """What a run did: the release that is live after it, how many stages ran, and the report's data."""

    release: Release | None
    ran: int
    report: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a run would do: stages in order, whether merge and release follow, and for which tasks exits, or a scope, of
    the branch that will be chosen.
    """

    steps: list[Step]
    done: int
    merges: bool
    removed: tuple[str, ...]
    exits: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What a release would change for a task: its metric on `valid` as it is live, None where it is not, and then, None
    where the project has it no more and the release would not either.
    """

    task: str
    metric: str
    before: float | None
    after: float | None


Agree = Callable[[Sequence[Change]], bool]
"""Sees what a release would change, before it is made, and says whether to go on."""


class Project:
    """The project in the folder `root`. Make one with `Project.load`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.releases = Releases(self.store.folder)

    @classmethod
    def load(cls, path: Path | str = ".") -> Project:
        """Read project.toml and tasks/*.toml. Raises ProjectError with every problem of every file."""
        project = cls(Path(path))
        _ = project.files
        return project

    @cached_property
    def files(self) -> ProjectFiles:
        """project.toml and tasks/*.toml; read when first asked for: a release is served whatever state they are in."""
        return load_files(self.root)

    def over(self, files: ProjectFiles) -> Project:
        """This project as if its files were these."""
        other = Project(self.root)
        other.__dict__["files"] = files
        return other

    @cached_property
    def trunks(self) -> Trunks:
        """The trunks that were made from the project's encoder."""
        return Trunks(self)

    @cached_property
    def source(self) -> Source:
        """The encoder, found and identified. Raises EncoderError."""
        settings = self.files.settings
        return resolve(settings.encoder, settings.revision, self.root, self.store.hashes)

    @cached_property
    def graph(self) -> Graph:
        """Every stage of every task. Raises ProjectError where data are missing or the grid does not fit."""
        return self._graph(self.tasks)

    def _graph(self, needed: Sequence[str]) -> Graph:
        """Every stage of the tasks `needed`, and of others as far as their data are there."""
        problems: list[Problem] = []
        tasks: dict[str, TaskFiles] = {}
        commits: Commits = {}
        for name, settings in self.files.tasks.items():
            try:
                tasks[name] = TaskFiles.of(self.root, name, settings, self.store.hashes, commits)
            except TrunklineError as error:
                if name not in needed:
                    continue
                if not isinstance(error, ProjectError):
                    raise
                problems += error.problems
        if problems:
            raise ProjectError(problems)
        return graph(self.files, self.source, tasks)

    def graph_for(self, names: Sequence[str]) -> Graph:
        """Every stage of these tasks, and of others as far as their data are there."""
        return self.graph if set(names) == set(self.tasks) else self._graph(names)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, sorted."""
        return sorted(self.files.tasks)

    def check(self) -> dict[str, dict[str, Any]]:
        """Read and check all files and all data: task -> kind, rows per split, labels, notes. Raises ProjectError."""
        from trunkline.pipeline.checking import check

        return check(self.root)

    def plan(self, tasks: Sequence[str] | None = None) -> Plan:
        """What `run` would do. Reads no data rows and imports no torch. Raises ProjectError where data that it needs
        are missing: those of `tasks`, by default of all.
        """
        names = self._named(tasks)
        graph = self.graph_for(names)
        steps = [step for step in planning.steps(graph, self.store) if step.stage.task in names]
        live = self.releases.live()
        removed = tuple(sorted(set(live.tasks) - set(self.tasks))) if live else ()
        done = sum(graph.keys[stage.id] in self.store for stage in graph.stages.values())
        assembly = self._assembly(graph, Silent())
        current = live is not None and assembly.up_to_date() and self._reported(live, assembly)
        exits, scope = (tuple(assembly.follow(names, kind)) for kind in (StageKind.EXITS, StageKind.SCOPE))
        return Plan(steps, done, bool(steps) or not current, removed, exits, scope)

    def run(
        self,
        tasks: Sequence[str] | None = None,
        *,
        reselect: bool = False,
        remeasure: bool = False,
        show: Show | None = None,
        agree: Agree | None = None,
        going_live: Callable[[], None] = lambda: None,
    ) -> RunResult:
        """Do every stage that is not done, then select, finish the chosen branches with the scope and exits that are
        asked for, merge, prove, release and report.

        With `tasks`, only theirs; other tasks stay as they were released, and their data need not be there. A released
        task keeps its branch while its own stages and the budget are unchanged; `reselect` chooses anew for all.
        Costs are measured once; `remeasure` does it again, as after a run on a machine that was busy. `agree` is asked
        before a release is made, where one is given, and can leave it at what is live. `going_live` is called when all
        that may fail is done, right before the release goes live.
        """
        show = show or Silent()
        names = self._named(tasks)
        with self.store.writing():
            graph = self.graph_for(names)
            assembly = self._assembly(graph, show)
            assembly.check_trunk(names)
            for task in sorted(set(self.tasks) - set(graph.tasks)):
                show.say(f"{task}: its data are not here, so nothing of it is run or chosen")
            steps = [step for step in planning.steps(graph, self.store) if step.stage.task in names]
            workshop = self._workshop(graph, show)
            self._train(workshop, steps, show)
            if remeasure:
                forget(self.store, names)
            record = partial(planning.record, graph, self.store, names, set(self.tasks) - set(names))
            if agree is None:
                record()
            else:
                agree = _and_then(agree, record)  # what was refused is no reason for later stages
            release, report, finishing = self._assemble(
                assembly, workshop, show, names, agree, going_live, reselect=reselect, anew=reselect or remeasure
            )
            if finishing:
                record()
            return RunResult(release, len(steps) + finishing, report)

    def train(self, stages: Collection[str], *, show: Show | None = None) -> Workshop:
        """Do those of `stages`, by id, that are not done, and what they need; nothing is selected or released.

        Returns what they share. Raises UsageError for an unknown stage.
        """
        show = show or Silent()
        with self.store.writing():
            graph = self.graph_for(sorted({self._known(id.partition("/")[0], self.tasks) for id in stages}))
            wanted = {self._known(id, graph.all, "stage") for id in stages}
            for stage in reversed(graph.all.values()):
                wanted |= set(stage.needs) if stage.id in wanted else set()
            workshop = self._workshop(graph, show)
            asked = [stage for stage in graph.all.values() if stage.id in wanted]
            self._train(workshop, planning.steps(graph, self.store, asked), show)
            return workshop

    def _workshop(self, graph: Graph, show: Show) -> Workshop:
        return Workshop(self.files, self.source, graph, self.store, show.say)

    def _train(self, workshop: Workshop, steps: Sequence[Step], show: Show) -> None:
        workshop.check([step.stage for step in steps])
        for number, step in enumerate(steps, 1):
            show.begin(step.stage.id, number, len(steps), f"{step.why}; resumes" if step.resumes else step.why)
            started = time.monotonic()
            entry = workshop.run(step.stage, show.advance)
            metric = self.files.tasks[step.stage.task].primary_metric
            show.done(step.stage.id, summary(step.stage.kind, entry.result, metric), time.monotonic() - started)

    def _assemble(
        self,
        assembly: Assembly,
        workshop: Workshop,
        show: Show,
        names: list[str],
        agree: Agree | None,
        going_live: Callable[[], None],
        *,
        reselect: bool,
        anew: bool,
    ) -> tuple[Release | None, dict[str, Any], int]:
        """The release, its report, and how many stages were run for it that finish a branch."""
        from trunkline.pipeline.results import make_report

        live = self.releases.live()
        if live is not None and not anew and assembly.up_to_date() and self._reported(live, assembly):
            return live, self.report(), 0
        done = assembly.finished(names)
        if not done:
            return live, {}, 0
        options = assembly.options(done)
        choice, pinned = assembly.select(options, names, reselect=reselect)
        if agree is not None and not agree(self._changes(assembly, options, choice)):
            return live, {}, 0
        chosen = {task: options.best[c.id].key for task, c in choice.candidates.items()}
        steps = planning.steps(assembly.graph, self.store, assembly.finishing(chosen.values()))
        self._train(workshop, steps, show)
        kept = assembly.kept(pinned, chosen)
        note = _note(live, choice.candidates, kept, self.tasks)
        release = assembly.release(names, options, choice, note, going_live)
        report = make_report(assembly, options, release, show.say, partial(ensemble, workshop))
        write_json(self.report_file, report)
        self.write_page(report)
        return release, report, len(steps)

    def _changes(self, assembly: Assembly, options: Options, choice: Choice) -> list[Change]:
        selection, live = assembly.live_selection(), self.releases.live()
        changes = []
        for task, candidate in sorted(choice.candidates.items()):
            metric, before = assembly.metric(task), None
            if selection is not None and task in selection.branch:
                with suppress(StoreError):  # it is gone from the store, and only the comparison is lost
                    before = self.store.get(selection.branch[task]).result["metrics"]["valid"].get(metric)
            after = options.best[candidate.id].result["metrics"]["valid"][metric]
            changes.append(Change(task, metric, before, after))
        gone = set() if live is None else set(live.tasks) - set(self.tasks)
        return changes + [Change(task, "", None, None) for task in sorted(gone)]

    def _reported(self, release: Release, assembly: Assembly) -> bool:
        """Whether the last report is about this release: not after a rollback, nor where a kill came before it."""
        selection = assembly.selections.of(release)
        try:
            report = self.report()
            return selection is not None and (report["release"]["id"], report["wish"]) == (release.id, selection.wish)
        except (StoreError, KeyError, TypeError):
            return False

    def write_page(self, report: dict[str, Any]) -> Path:
        """Write the report's page to report.html in the project's folder."""
        from trunkline.report import render

        clear_leftovers(self.root, PAGE)
        write_text(self.root / PAGE, render(report))
        return self.root / PAGE

    def _assembly(self, graph: Graph, show: Show) -> Assembly:
        return Assembly(self.files, self.source, graph, self.store, show.say)

    @property
    def report_file(self) -> Path:
        """The data of the last report."""
        return self.store.folder / REPORT

    def report(self) -> dict[str, Any]:
        """The data of the last run's report. Raises StoreError before the first run."""
        import json

        try:
            found: dict[str, Any] = json.loads(self.report_file.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.root} has no report yet: trunkline run") from error
        return found

    def evaluate(
        self, tasks: Sequence[str] | None = None, *, release: str | None = None
    ) -> dict[str, dict[str, dict[str, float]]]:
        """task -> reported split -> metrics of the live (or named) release, through its engine."""
        found = self.released(release)
        names = None if tasks is None else [self._known(task, found.tasks) for task in tasks]
        with self.store.writing():
            return self._assembly(Graph({}), Silent()).evaluate(found, names)  # what is released needs no stages

    def bundle(self, release: str | None = None, *, engine: str | None = None, dtype: str = "auto") -> Bundle:
        """The live (or named) release's merged model, loaded; see `Bundle.load` for engine and dtype.

        Raises StoreError before the first release.
        """
        from trunkline.bundle import Bundle

        return Bundle.load(self.releases.folder(self.released(release)), engine=engine, dtype=dtype)

    def rollback(self, to: str | None = None) -> Release:
        """Make an earlier release live again, by default the one before."""
        with self.store.writing():
            return self.releases.rollback(to)

    def gc(self, *, keep: int = 5, dry: bool = False) -> list[Freed]:
        """Free what neither the task files nor the newest `keep` releases and the live one need."""
        with self.store.writing():
            return collect(self.graph, self.store, self._assembly(self.graph, Silent()), keep=keep, dry=dry)

    def task(self, name: str) -> TaskSettings:
        """A task's settings. Raises UsageError for an unknown name."""
        return self.files.tasks[self._known(name, self.tasks)]

    def released(self, release: str | None = None) -> Release:
        """The live (or named) release. Raises StoreError before the first."""
        found = self.releases.live() if release is None else self.releases.get(release)
        if found is None:
            raise StoreError(f"{self.root} has no release yet: trunkline run")
        return found

    def _named(self, tasks: Sequence[str] | None) -> list[str]:
        return self.tasks if not tasks else [self._known(task, self.tasks) for task in tasks]

    @staticmethod
    def _known(name: str, known: Any, what: str = "task") -> str:
        if name not in known:
            raise UsageError(unknown(what, name, known))
        return name


def _and_then(agree: Agree, do: Callable[[], None]) -> Agree:
    """The same answer, and `do` where it is yes."""

    def decide(changes: Sequence[Change]) -> bool:
        agreed = agree(changes)
        if agreed:
            do()
        return agreed

    return decide


def _note(live: Release | None, chosen: Mapping[str, Candidate], kept: Collection[str], tasks: list[str]) -> str:
    """What a release is about, for its history."""
    new = sorted(set(chosen) - set(kept))
    gone = sorted(set(live.tasks) - set(tasks)) if live else []
    parts = [", ".join(new), f"without {', '.join(gone)}" if gone else ""]
    return "; ".join(part for part in parts if part) or "nothing changed"
