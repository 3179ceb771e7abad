"""What a run would do, and why: the graph of stages against the store and the last run.

Knows stages and keys. Runs nothing, imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.atomic import write_json
from trunkline.pipeline.stages import FINISHING, Graph, Stage
from trunkline.pipeline.store import Store

FILE = "plan.json"
_AT_COMMIT = re.compile(r"(hub:.+)@(.+)(#.+)")
_CONTENTS = {"encoder": "another encoder", "shards": "other pretrain.shards", "unlabelled": "other data.unlabelled"}
"""Fields that identify content, which says nothing to a reader, with what is said where they differ."""


@dataclass(frozen=True)
class Step:
    """A stage that is not done. `why` reads after the stage's name; `resumes` where a killed run left a checkpoint."""

    stage: Stage
    key: str
    why: str
    resumes: bool


def steps(graph: Graph, store: Store, among: Iterable[Stage] | None = None) -> list[Step]:
    """The stages still to be run, in order, each with its reason: of these, or of all that finish no branch."""
    before = _recorded(store)
    found = []
    pending: set[str] = set()
    for stage in graph.stages.values() if among is None else among:
        key = graph.keys[stage.id]
        if key in store:
            continue
        why = _why(stage, graph, before, pending)
        pending.add(stage.id)
        found.append(Step(stage, key, why, store.resumable(key)))
    return found


def record(graph: Graph, store: Store, tasks: Sequence[str], others: Collection[str]) -> None:
    """Remember what the stages of these tasks were made of, so that the next plan can say what changed; what is known
    of `others` stays, and of stages that finish a branch what it was until they are done again.
    """
    write_json(
        store.folder / FILE,
        {
            id: old
            for id, old in _recorded(store).items()
            if old["task"] in others or (old["task"] in tasks and old["kind"] in FINISHING)
        }
        | {
            id: {"task": stage.task, "kind": stage.kind.value, "key": graph.keys[id], "fields": stage.fields}
            for id, stage in graph.all.items()
            if stage.task in tasks and (id in graph.stages or graph.keys[id] in store)
        },
    )


def _recorded(store: Store) -> dict[str, Any]:
    try:
        read = json.loads((store.folder / FILE).read_text())
    except (OSError, ValueError):
        return {}  # only reasons are lost
    return read if isinstance(read, dict) else {}


def _why(stage: Stage, graph: Graph, before: dict[str, Any], pending: set[str]) -> str:
    if not any(old["task"] == stage.task for old in before.values()):
        return "new task" if before else "first run"
    old = before.get(stage.id)
    if old is None:
        # A renamed stage: of the stages that are gone, the one that differs least tells what changed.
        gone = [
            o for id, o in before.items() if id not in graph.all and (o["task"], o["kind"]) == (stage.task, stage.kind)
        ]
        changes = sorted((list(_changes(o["fields"], stage.fields)) for o in gone), key=len)
        if changes and changes[0]:
            return ", ".join(changes[0])
        return "its branch was chosen" if stage.kind in FINISHING else "not asked for before"
    if changed := list(_changes(old["fields"], stage.fields)):
        return ", ".join(changed)
    if old["key"] == graph.keys[stage.id]:
        return "not finished"
    moved = [need for need in stage.needs if need in pending]
    return f"follows {', '.join(moved)}" if moved else "a stage that it needs changed"


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """ "layers 3 -> 2" for every field that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        if path.startswith("files."):
            yield f"{path.removeprefix('files.')} data changed"
        elif path in _CONTENTS:
            yield _CONTENTS[path]
        elif path.startswith("sources.") and (commits := _commits(old, new)):
            yield f"{path.removeprefix('sources.')} data changed on the hub, {commits}"
        else:
            yield f"{path} {_short(old)} -> {_short(new)}"


def _commits(old: Any, new: Any) -> str:
    """ "4f2a91c -> 0be71d3" for two names of one set of the hub, else nothing."""
    named = [_AT_COMMIT.fullmatch(str(source)) for source in (old, new)]
    before, after = (match and match.groups() for match in named)
    if before is None or after is None or (before[0], before[2]) != (after[0], after[2]):
        return ""
    return f"{before[1][:7]} -> {after[1][:7]}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
