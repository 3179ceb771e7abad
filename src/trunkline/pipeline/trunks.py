"""The trunks of a project: adapt its encoder to its tasks, say which there are, move the project to another.

    trunks/NAME/    an encoder like any other: config.json, model.safetensors, tokenizer.json
                    trunk.json: what it was made from, and each task's metric on `valid` as its heads left it

A bundle is bound to one trunk, so that a move trains every task again; that is done and shown before anything is
released, and then all of it is, or nothing. Knows stages and results, nothing of training.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.atomic import clear_leftovers, publish_folder, remove_folder, scratch_folder, write_json, write_text
from trunkline.errors import Problem, ProjectError, StoreError, UsageError, unknown
from trunkline.model.source import resolve
from trunkline.pipeline.execute import ENCODER
from trunkline.pipeline.progress import Show, Silent
from trunkline.pipeline.stages import Graph, StageKind, readings
from trunkline.pipeline.store import key_of
from trunkline.project.config import TASK_NAME
from trunkline.project.files import PROJECT_FILE

if TYPE_CHECKING:
    from trunkline.pipeline.project import Change, Project, RunResult

FOLDER = "trunks"
ABOUT = "trunk.json"
ADAPT_VERSION = 1
_ENCODER_LINE = re.compile(r"^encoder[ \t]*=[ \t]*(?:\"[^\"\n]*\"|'[^'\n]*')", re.MULTILINE)
_REVISION_LINE = re.compile(r"^revision[ \t]*=.*\n?", re.MULTILINE)


@dataclass(frozen=True)
class AdaptedTrunk:
    """A trunk in `trunks/NAME`. `valid` has, by task, its metric there; `base` names the encoder that was adapted."""

    name: str
    fingerprint: str
    base: str
    base_fingerprint: str
    created: str
    tasks: tuple[str, ...]
    valid: dict[str, float]
    settings: dict[str, Any]


class Trunks:
    """The trunks in a project's folder."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.folder = project.root / FOLDER

    def all(self) -> list[AdaptedTrunk]:
        """Those that `adapt` made, by name; folders that hold something else are left out."""
        found = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            try:
                about = json.loads((path / ABOUT).read_text())
                found.append(AdaptedTrunk(path.name, **{**about, "tasks": tuple(about["tasks"])}))
            except (OSError, ValueError, TypeError, KeyError):
                continue
        return found

    def adapt(self, name: str, *, without: Sequence[str] = (), show: Show | None = None) -> AdaptedTrunk:
        """Train the project's encoder on its tasks together, as `[adapt]` in project.toml says, and keep it as
        `trunks/NAME`.

        Stages that it needs and that are not done run first; a killed run resumes. `without` leaves tasks out. Raises
        UsageError for a name that is taken or cannot be one, ProjectError for settings that do not fit.
        """
        show = show or Silent()
        if not TASK_NAME.fullmatch(name):
            raise UsageError(f"'{name}' cannot name a trunk: a-z, 0-9, _ and -, the first a letter or digit")
        if (self.folder / name).exists():
            raise UsageError(
                f"{self.folder / name} exists already; trunks are not overwritten, since bundles name them"
            )
        tasks = self._tasks(without)
        project = self.project
        with project.store.writing():
            fields, needs = self._fields(project.graph, tasks)
            workshop = project.train(needs, show=show)
            key = key_of(["adapt", ADAPT_VERSION, fields])
            show.begin(f"adapt {name}", 1, 1, f"{len(tasks)} tasks")
            entry = workshop.adapt(key, fields, show.advance)
            mean = sum(entry.result["valid"].values()) / len(tasks)
            show.done(f"adapt {name}", f"mean on valid {mean:.3f}", entry.result["seconds"])
            trunk = self._publish(name, entry.folder / ENCODER, fields, entry.result)
            remove_folder(entry.folder)  # all that matters of it is in trunks/ now
            return trunk

    def use(
        self, name: str, agree: Callable[[Sequence[Change]], bool], *, show: Show | None = None
    ) -> RunResult | None:
        """Move the project to `trunks/NAME`, or to any encoder that project.toml could name.

        Everything is trained and chosen over it first. `agree` then sees what changes for each task on `valid`: if it
        says yes, project.toml names the trunk and the release goes live with all tasks; if no, nothing has changed but
        the store, and None comes back. Raises EncoderError for no such encoder, UsageError where project.toml must be
        edited by hand.
        """
        encoder = f"{FOLDER}/{name}" if (self.folder / name).is_dir() else name
        files = self.project.files
        path = self.project.root / PROJECT_FILE
        text = with_encoder(path.read_text(encoding="utf-8"), encoder)
        settings = files.settings.model_copy(update={"encoder": encoder, "revision": None})
        moved = self.project.over(replace(files, settings=settings))
        agreed = False

        def decide(changes: Sequence[Change]) -> bool:
            nonlocal agreed
            agreed = agree(changes)
            if agreed:
                write_text(path, text)
            return agreed

        result = moved.run(reselect=True, show=show, agree=decide)
        return result if agreed else None

    def _tasks(self, without: Sequence[str]) -> list[str]:
        known = self.project.tasks
        asked = self.project.files.settings.adapt
        for task in without:
            if task not in known:
                raise UsageError(unknown("task", task, known))
        strange = [task for task in asked.tasks if task not in known]
        deep = [depth for depth in asked.depths if depth > self.project.source.depth]
        problems = [
            Problem(PROJECT_FILE, "adapt.tasks", "no such task", found=task, allowed=", ".join(known))
            for task in strange
        ] + [
            Problem(
                PROJECT_FILE,
                "adapt.depths",
                "deeper than the encoder",
                found=str(depth),
                allowed=f"1 to {self.project.source.depth}",
            )
            for depth in deep
        ]
        if problems:
            raise ProjectError(problems)
        tasks = [task for task in asked.tasks or known if task not in without]
        if not tasks:
            raise UsageError("no task is left to adapt the trunk to")
        return sorted(tasks)

    def _fields(self, graph: Graph, tasks: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
        """All that the adapted encoder depends on, and the ids of the stages that must be done before."""
        files = self.project.files
        asked = files.settings.adapt
        needs: set[str] = set()
        given = {}
        for task in tasks:
            settings = files.tasks[task]
            prepare = f"{task}/{StageKind.PREPARE}"
            full = graph.of(task, StageKind.FULL)[0]
            taught = [full.id] if asked.teachers == "full" else []
            needs |= {prepare, *taught}
            given[task] = {
                "reading": readings(settings, full.fields["reading"] != "single")[0],
                "teacher": taught[0] if taught else None,
                "metric": settings.primary_metric,
                "max_tokens": settings.max_tokens,
                "pooling": settings.tune.pooling,
                "needs": [graph.keys[id] for id in (prepare, *taught)],
            }
        fields = {
            "encoder": self.project.source.fingerprint,
            "tasks": given,
            "depths": sorted(set(asked.depths) | {max(asked.depths, default=self.project.source.depth)}),
            "settings": asked.model_dump(mode="json", exclude={"tasks", "depths"}),
            "precision": files.settings.precision,
            "seed": files.settings.seed,
        }
        return fields, needs

    def _publish(self, name: str, encoder: Path, fields: dict[str, Any], result: dict[str, Any]) -> AdaptedTrunk:
        self.folder.mkdir(exist_ok=True)
        clear_leftovers(self.folder)
        scratch = scratch_folder(self.folder / name)
        shutil.copytree(encoder, scratch, dirs_exist_ok=True)
        source = self.project.source
        trunk = AdaptedTrunk(
            name=name,
            fingerprint=resolve(str(scratch), None, self.project.root).fingerprint,
            base=source.name,
            base_fingerprint=source.fingerprint,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tasks=tuple(fields["tasks"]),
            valid=result["valid"],
            settings={**fields["settings"], "depths": fields["depths"], "seed": fields["seed"]},
        )
        about = asdict(trunk)
        del about["name"]
        write_json(scratch / ABOUT, about)
        if not publish_folder(scratch, self.folder / name):
            raise StoreError(f"{self.folder / name} was made by another process in the meantime")
        return trunk


def with_encoder(text: str, encoder: str) -> str:
    """project.toml with another encoder, the rest of it as it stands. Raises UsageError where that takes a hand."""
    head = re.split(r"(?m)^(?=[ \t]*\[)", text, maxsplit=1)[0]
    rest = text[len(head) :]
    line = f'encoder = "{encoder}"'
    head = _REVISION_LINE.sub("", head)
    head = _ENCODER_LINE.sub(lambda _: line, head, count=1) if _ENCODER_LINE.search(head) else f"{line}\n{head}"
    written = head + rest
    try:
        before, after = tomllib.loads(text), tomllib.loads(written)
    except tomllib.TOMLDecodeError:
        after = before = {}
    before.pop("revision", None)
    if after != {**before, "encoder": encoder} or not after:
        raise UsageError(f"{PROJECT_FILE} cannot be edited safely: write `{line}` there, and run `trunkline run`")
    return written
