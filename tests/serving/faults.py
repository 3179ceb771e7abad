"""An engine that does as a text says, for tests of what happens around it: wait, raise, or end the whole process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trunkline.bundle.loaded import Bundle
from trunkline.engine.base import BATCH_SIZE, Engine, Input, ItemError, Job, Logits, Work
from trunkline.model.branch import BranchSpec
from trunkline.serving.loading import Loading

HOLD = "hold"
"""A batch with this text waits as long as the gate, a file, is there."""
RAISE = "raise"
"""A batch with this text raises."""
DIE = "die"
"""A batch with this text ends the worker."""


@dataclass(frozen=True, kw_only=True)
class Faulty(Loading):
    """Loads the reference engine with these faults."""

    gate: Path
    engine: str = "torch"
    device: str = "cpu"

    def load(self, folder: Path, without: frozenset[str], previous: Bundle | None) -> Bundle:
        bundle = super().load(folder, without, previous)
        bundle.engine = _Engine(bundle.engine, self.gate)
        return bundle


@dataclass(frozen=True, kw_only=True)
class Noted(Loading):
    """Loads, and notes the arithmetic that was asked for, a line each time."""

    notes: Path

    def load(self, folder: Path, without: frozenset[str], previous: Bundle | None) -> Bundle:
        with self.notes.open("a") as file:
            file.write(f"{self.dtype}\n")
        return super().load(folder, without, previous)


class _Engine:
    def __init__(self, engine: Engine, gate: Path) -> None:
        self.engine = engine
        self.gate = gate

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        return self.engine.specs

    def logits(
        self, inputs: Sequence[Input | ItemError], tasks: Iterable[str], *, batch_size: int = BATCH_SIZE
    ) -> dict[str, list[Logits | ItemError]]:
        return self.engine.logits(inputs, tasks, batch_size=batch_size)

    def run(self, jobs: Sequence[Job]) -> tuple[list[dict[str, Logits | ItemError]], Work]:
        texts = {job.item.text for job in jobs if isinstance(job.item, Input)}
        while HOLD in texts and self.gate.exists():
            time.sleep(0.002)
        if DIE in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if RAISE in texts:
            raise RuntimeError(f"a message that quotes the text: {RAISE}")
        return self.engine.run(jobs)
