"""The trunks of a project: adapt its encoder to its tasks, say which there are, move the project to another.

    trunks/NAME/    an encoder like any other: config.json, model.safetensors, tokenizer.json
                    trunk.json: what it was made from, and each task's metric on `valid` as its heads left it

A bundle is bound to one trunk, so that a move trains every task again; that is done and shown before anything is
released, and then all of it is, or nothing. Knows stages and results, nothing of training.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.atomic import clear_leftovers, publish_folder, remove_folder, scratch_folder, write_bytes, write_json
from trunkline.bundle.manifest import read_manifest
from trunkline.errors import BundleError, EncoderError, Problem, ProjectError, StoreError, UsageError, unknown
from trunkline.model.source import MINILM, TRUNKS, fingerprint, hash_files
from trunkline.pipeline.adapted import ABOUT, AdaptedTrunk, adapted_trunk, adapted_trunks, encoder_named
from trunkline.pipeline.adapting import adapt
from trunkline.pipeline.execute import ENCODER
from trunkline.pipeline.grid import readings
from trunkline.pipeline.progress import Show, Silent
from trunkline.pipeline.stages import Graph, StageKind
from trunkline.pipeline.store import key_of
from trunkline.project.config import TASK_NAME, load_files
from trunkline.project.files import PROJECT_FILE
from trunkline.project.readers import read_texts
from trunkline.project.sources import HUB

if TYPE_CHECKING:
    from trunkline.pipeline.project import Change, Project, RunResult

ADAPT_VERSION = 1
_ENCODER_LINE = re.compile(r"^[ \t]*encoder[ \t]*=[ \t]*(?:\"[^\"\r\n]*\"|'[^'\r\n]*')", re.MULTILINE)
_REVISION_LINE = re.compile(r"^[ \t]*revision[ \t]*=.*\n?", re.MULTILINE)


class Trunks:
    """The trunks in a project's folder."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.folder = project.root / TRUNKS

    def all(self) -> list[AdaptedTrunk]:
        """Those that `adapt` made, by name; folders that hold something else are left out."""
        return adapted_trunks(self.project.root)

    def adapt(self, name: str, *, without: Sequence[str] = (), show: Show | None = None) -> AdaptedTrunk:
        """Train the project's encoder on its tasks together, as `[adapt]` in project.toml says, and keep it as
        `trunks/NAME`.

        Stages that it needs and that are not done run first; a killed run resumes. `without` leaves tasks out, whose
        data need not be there. Raises UsageError for a name that is taken or cannot be one, ProjectError for settings
        that do not fit.
        """
        show = show or Silent()
        if not TASK_NAME.fullmatch(name) or name == MINILM:
            raise UsageError(
                f"'{name}' cannot name a trunk: a-z, 0-9, _ and -, the first a letter or digit, and not {MINILM}"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file, and trunks are kept in a folder of that name")
        if (self.folder / name).exists():
            raise UsageError(
                f"{self.folder / name} exists already; trunks are not overwritten, since bundles name them"
            )
        tasks = self._tasks(without)
        project = self.project
        with project.store.writing():
            graph = project.graph_for(tasks)
            fields, needs = self._fields(graph, tasks, self._judged(graph, tasks, show))
            workshop = project.train(needs, show=show)
            key = key_of([fields])
            project.store.note_adapting(key)
            show.begin(f"adapt {name}", 1, 1, f"{len(tasks)} tasks")
            entry = adapt(workshop, key, fields, show.advance)
            mean = sum(entry.result["valid"].values()) / len(tasks)
            show.done(f"adapt {name}", f"mean on valid {mean:.3f}", entry.result["seconds"])
            trunk = self._publish(name, entry.folder / ENCODER, fields, entry.result)
            remove_folder(entry.folder)  # all that matters of it is in trunks/ now
            project.store.note_adapting(None)
            return trunk

    def live(self) -> str | None:
        """Fingerprint of the trunk that the live release stands on; None without one that can be read."""
        release = self.project.releases.live()
        try:
            return None if release is None else read_manifest(self.project.releases.folder(release)).trunk.fingerprint
        except BundleError:
            return None

    def use(
        self,
        name: str,
        agree: Callable[[Sequence[Change]], bool],
        *,
        revision: str | None = None,
        show: Show | None = None,
    ) -> RunResult | None:
        """Move the project to `trunks/NAME`, or to any encoder that project.toml could name, at `revision`.

        Everything is trained and chosen over it first. `agree` then sees what changes for each task on `valid`: if it
        says yes, branches are finished, merged and proved, project.toml names the trunk and at once the release goes
        live with all tasks; if no, or where that fails before the release is live, the project stays as it was, and
        what was trained is kept. Raises EncoderError for no such encoder, UsageError where project.toml was changed
        meanwhile or must be edited by hand.
        """
        show = show or Silent()
        project = self.project
        encoder, adapted_at = encoder_named(project.root, name)
        revision = revision if revision is not None else adapted_at
        path = (project.root / PROJECT_FILE).resolve()
        with_encoder(path.read_bytes(), encoder, revision)  # better now than when all is trained
        settings = project.files.settings.model_copy(update={"encoder": encoder, "revision": revision})
        moved = project.over(replace(project.files, settings=settings))
        if (ours := encoder.removeprefix(f"{TRUNKS}/")) != encoder:
            self._check(ours, moved, show)
        live = project.releases.live()
        before: bytes | None = None  # of project.toml, once it is written

        def move() -> None:
            nonlocal before
            if load_files(project.root) != project.files:
                raise UsageError(
                    "the project's files changed while its tasks were trained, so nothing was released; say "
                    f"`trunk use {name}` again, which repeats no training that still fits"
                )
            now = path.read_bytes()
            write_bytes(path, with_encoder(now, encoder, revision))
            before = now

        try:
            result = moved.run(reselect=True, show=show, agree=agree, going_live=move)
        except BaseException:
            if before is not None and project.releases.live() == live:
                write_bytes(path, before)
            raise
        return result if before is not None else None

    def _check(self, name: str, moved: Project, show: Show) -> None:
        """Refuse a trunk that is not what was adapted; say whose rows it may have been trained on."""
        about = adapted_trunk(self.project.root, name)
        if about is None:
            return
        if moved.source.fingerprint != about.fingerprint:
            raise EncoderError(
                f"{self.folder / name} is not what was adapted: its files have fingerprint "
                f"{moved.source.fingerprint[:16]}, {ABOUT} says {about.fingerprint[:16]}"
            )
        prepared = {task: moved.graph.keys.get(f"{task}/{StageKind.PREPARE}") for task in about.data}
        other = [task for task, key in about.data.items() if task in moved.tasks and prepared[task] != key]
        if other:
            show.say(
                f"since {name} was adapted, the data or the splits of {', '.join(other)} have changed: rows that they "
                "are now judged on may be among those that it was trained on"
            )

    def _tasks(self, without: Sequence[str]) -> list[str]:
        known = self.project.tasks
        asked = self.project.files.settings.adapt
        for task in without:
            if task not in known:
                raise UsageError(unknown("task", task, known))
        strange = [task for task in asked.tasks if task not in known]
        whole = self.project.source.depth
        depth = asked.depth(whole)
        problems = [
            Problem(PROJECT_FILE, "adapt.tasks", "no such task", found=task, allowed=", ".join(known))
            for task in strange
        ]
        for key, numbers, most, wrong in (
            ("adapt.layers", asked.layers or (), whole, "no such layer of the encoder"),
            ("adapt.depths", asked.depths, depth, f"deeper than the {'light trunk' if asked.layers else 'encoder'}"),
        ):
            problems += [
                Problem(PROJECT_FILE, key, wrong, found=str(number), allowed=f"1 to {most}")
                for number in numbers
                if number > most
            ]
        if asked.unlabelled and not asked.masked:
            allowed = "a share of the steps above 0, or no adapt.unlabelled"
            problems.append(Problem(PROJECT_FILE, "adapt.masked", "nothing reads adapt.unlabelled", "0", allowed))
        for file in asked.unlabelled if asked.masked else ():
            if file.startswith(HUB):
                problems.append(Problem(PROJECT_FILE, "adapt.unlabelled", "not a file", file, "a path"))
                continue
            problems += read_texts(self.project.root, file, (PROJECT_FILE, "adapt.unlabelled"))[1]
        if problems:
            raise ProjectError(problems)
        tasks = [task for task in asked.tasks or known if task not in without]
        if not tasks:
            raise UsageError("no task is left to adapt the trunk to")
        return sorted(tasks)

    def _judged(self, graph: Graph, tasks: Sequence[str], show: Show) -> list[str]:
        """Tasks that are left out and yet judged over the new trunk: those whose data can be read."""
        found = []
        for task in (task for task in self.project.tasks if task not in tasks):
            try:
                if task in graph.tasks:  # else a file of it is missing
                    self.project.train([f"{task}/{StageKind.PREPARE}"], show=show)
                    found.append(task)
                    continue
            except ProjectError:
                pass
            show.say(f"{task}: its data cannot be read, so that texts which it is judged on are not kept out")
        return found

    def _fields(self, graph: Graph, tasks: Sequence[str], judged: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
        """All that the adapted encoder depends on, and the ids of the stages that must be done before."""
        files = self.project.files
        asked = files.settings.adapt
        needs: set[str] = set()
        given = {}
        for task in tasks:
            settings = files.tasks[task]
            prepare = f"{task}/{StageKind.PREPARE}"
            full = graph.full(task)[0]
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
        unasked = set() if asked.masked else {"masked", "unlabelled"}
        depth = asked.depth(self.project.source.depth)
        fields: dict[str, Any] = {
            "adapt": ADAPT_VERSION,
            "encoder": self.project.source.fingerprint,
            "tasks": given,
            **({"layers": asked.layers} if asked.layers else {}),
            "depths": sorted(set(asked.depths) | {max(asked.depths, default=depth)}),
            "settings": asked.model_dump(mode="json", exclude={"tasks", "layers", "depths", *unasked}),
            "precision": files.settings.precision,
            "seed": files.settings.seed,
        }
        if asked.masked and asked.unlabelled:
            paths = [self.project.root / name for name in asked.unlabelled]
            fields["unlabelled"] = list(hash_files(paths, self.project.store.hashes).values())
        if judged:
            fields["judged"] = {task: graph.keys[f"{task}/{StageKind.PREPARE}"] for task in judged}
        return fields, needs

    def _publish(self, name: str, encoder: Path, fields: dict[str, Any], result: dict[str, Any]) -> AdaptedTrunk:
        self.folder.mkdir(exist_ok=True)
        clear_leftovers(self.folder)
        scratch = scratch_folder(self.folder / name)
        shutil.copytree(encoder, scratch, dirs_exist_ok=True)
        source = self.project.source
        asked: dict[str, Any] = {name: fields[name] for name in ("layers", "depths", "seed") if name in fields}
        trunk = AdaptedTrunk(
            name=name,
            fingerprint=fingerprint(scratch, None),
            base=source.name,
            base_revision=self.project.files.settings.revision,
            base_fingerprint=source.fingerprint,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tasks=tuple(fields["tasks"]),
            valid=result["valid"],
            data={task: given["needs"][0] for task, given in fields["tasks"].items()},
            settings={**fields["settings"], **asked},
            seconds=result["seconds"],
        )
        write_json(scratch / ABOUT, trunk.model_dump(mode="json"))
        if not publish_folder(scratch, self.folder / name):
            raise StoreError(f"{self.folder / name} was made by another process in the meantime")
        return trunk


def with_encoder(file: bytes, encoder: str, revision: str | None = None) -> bytes:
    """project.toml with another encoder, the rest of it as it stands. Raises UsageError where that takes a hand."""
    mark = b"\xef\xbb\xbf" if file.startswith(b"\xef\xbb\xbf") else b""
    text = file[len(mark) :].decode()
    end = "\r\n" if "\r\n" in text else "\n"
    head = re.split(r"(?m)^(?=[ \t]*\[)", text, maxsplit=1)[0]
    rest = text[len(head) :]
    lines = f'encoder = "{encoder}"' + (f'{end}revision = "{revision}"' if revision is not None else "")
    head = _REVISION_LINE.sub("", head)
    head = _ENCODER_LINE.sub(lambda _: lines, head, count=1) if _ENCODER_LINE.search(head) else f"{lines}{end}{head}"
    written = head + rest
    wanted = {"encoder": encoder} | ({} if revision is None else {"revision": revision})
    try:
        before, after = (tomllib.loads(toml.replace("\r\n", "\n")) for toml in (text, written))
    except tomllib.TOMLDecodeError:
        before = after = {}
    before.pop("revision", None)
    if not after or after != {**before, **wanted}:
        raise UsageError(
            f"{PROJECT_FILE} names its encoder in a way that cannot be edited safely: write it as a line of its own, "
            '`encoder = "…"`, above all tables'
        )
    return mark + written.encode()
