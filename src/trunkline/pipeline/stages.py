"""What a stage of a project is, and how stages follow from each other.

A stage's key is the hash of its kind's version, the fields that it reads and the keys of the stages that it needs:
never source text, comments or fields that it does not read. Knows hashes; which stages there are is told by `grid`.

    prepare ─► full                                    (the baseline, and a teacher)
            ├► teach                                   what a foreign teacher says of the train rows
            └► tune (L) ─► distill (L, l)              trunk states at the fork are a cache below these, no stage
                   │   └► pretrain (L, l) ─► distill   where a task asks for two stages
                   └──────────┴─► scope ─┐             of the candidate that is selected, where a task asks
                              └─► exits ─┴► speeds
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from trunkline.model.source import Source
from trunkline.pipeline.store import key_of
from trunkline.pipeline.ways import (
    Teacher,
)


class StageKind(StrEnum):
    """The kinds of stages that belong to a task."""

    PREPARE = "prepare"
    """Read, check and split the task's data."""
    FULL = "full"
    """Fine-tune a whole encoder: the baseline, and a teacher."""
    TEACH = "teach"
    """Ask a foreign teacher about the train rows."""
    TUNE = "tune"
    """Fine-tune the top L layers over frozen trunk states."""
    PRETRAIN = "pretrain"
    """Have a student learn what teachers said of unlabelled texts."""
    DISTILL = "distill"
    """Distil tuned layers into the l of a student."""
    SCOPE = "scope"
    """Find what tells texts that are unlike those of a finished branch."""
    EXITS = "exits"
    """Train exits wherever a finished branch may have them."""
    SPEEDS = "speeds"
    """Choose among them by measured time, and find out what speeds come to."""


VERSIONS = {
    StageKind.PREPARE: 1,
    StageKind.FULL: 2,
    StageKind.TEACH: 2,
    StageKind.TUNE: 3,
    StageKind.PRETRAIN: 1,
    StageKind.DISTILL: 3,
    StageKind.SCOPE: 1,
    StageKind.EXITS: 5,
    StageKind.SPEEDS: 1,
}
"""Raised when a stage would give another result from the same fields; another draw of the same dropout is none."""

FINISHING = (StageKind.SCOPE, StageKind.EXITS, StageKind.SPEEDS)
"""What a selected branch goes through, in this order, where its task asks for it."""


@dataclass(frozen=True)
class Stage:
    """One stage: `fields` is all that it reads apart from the results of `needs` (ids of other stages).

    `teachers` of a student say where what each of them says is found: the id of a stage, or the path of a file. A full
    model may be that of another `trunk` than the project's own.
    """

    id: str
    kind: StageKind
    task: str
    fields: dict[str, Any]
    needs: tuple[str, ...] = ()
    teachers: tuple[Teacher, ...] = ()
    trunk: Source | None = None


@dataclass(frozen=True)
class Graph:
    """The stages of a project's tasks, every stage after those it needs.

    Those that finish a branch are apart from `stages`: every candidate of a task that asks for them has some, and only
    those of selected candidates are ever run.
    """

    stages: dict[str, Stage]
    finishing: dict[str, Stage] = field(default_factory=dict)

    @cached_property
    def all(self) -> dict[str, Stage]:
        """Both, by id."""
        return {**self.stages, **self.finishing}

    @cached_property
    def keys(self) -> dict[str, str]:
        """Stage id -> key."""
        keys: dict[str, str] = {}
        for stage in self.all.values():
            keys[stage.id] = key_of(
                [stage.kind, VERSIONS[stage.kind], stage.fields, [keys[need] for need in stage.needs]]
            )
        return keys

    def of(self, task: str, *kinds: StageKind) -> list[Stage]:
        """The stages of a task but for those that finish a branch, of these kinds or of all."""
        return [stage for stage in self.stages.values() if stage.task == task and (not kinds or stage.kind in kinds)]

    def full(self, task: str) -> list[Stage]:
        """The stages that fine-tune all of the project's own trunk for a task: its baselines."""
        return [stage for stage in self.of(task, StageKind.FULL) if stage.trunk is None]

    def finishing_of(self, branch: str) -> list[Stage]:
        """What the candidate of this key goes through once it is selected, in order; nothing if its task asks for none.

        The branch file of the last is the one that is merged.
        """
        found: list[Stage] = []
        reached = {branch}
        for stage in self.finishing.values():
            if not reached.isdisjoint(self.keys[need] for need in stage.needs):
                found.append(stage)
                reached.add(self.keys[stage.id])
        return found

    @property
    def tasks(self) -> list[str]:
        return sorted({stage.task for stage in self.stages.values()})
