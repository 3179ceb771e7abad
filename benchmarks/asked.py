"""Branches asked through the engine that serves them: what they answer, how good that is, and requests to time them by.

Knows engines and rows; nothing of how branches came about, nor of what they are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.base import Engine, Input, Job, Output
from trunkline.engine.choose import Choice
from trunkline.engine.load import Loader
from trunkline.engine.timing import uncached
from trunkline.model.branch import Branch, BranchSpec
from trunkline.model.trunk import Trunk
from trunkline.project.metrics import evaluate
from trunkline.project.rows import Rows
from trunkline.project.speed import Dial
from trunkline.project.tasks import Kind

FULL = Dial()


def engine_of(trunk: Trunk, choice: Choice, branches: Mapping[str, Branch]) -> Engine:
    """The engine that was chosen for this CPU, by task; it remembers no states."""
    sources = {task: (task, partial(branches.__getitem__, task)) for task in branches}
    return uncached(Loader(trunk, choice).engine(sources))


def jobs(engine: Engine, inputs: Sequence[Input], tasks: Sequence[str], dial: Dial = FULL) -> list[Job]:
    """All of these tasks asked of each input, at a dial."""
    speeds = tuple((task, dial.of(engine.specs[task].speeds)) for task in tasks)
    return [Job(item, tuple(tasks), tuple(pair for pair in speeds if pair[1] > 0)) for item in inputs]


def outputs(engine: Engine, inputs: Sequence[Input], task: str, dial: Dial = FULL) -> list[Output]:
    """What one task says of these inputs."""
    found, _ = engine.run(jobs(engine, inputs, [task], dial), batch_size=32)
    said = [one[task] for one in found]
    assert all(isinstance(one, Output) for one in said)
    return said


def calibrated(spec: BranchSpec, said: Sequence[Output]) -> NDArray[Any] | list[NDArray[Any]]:
    """Logits as their confidence is shown: (n, C), or (words, C) each for tagging."""
    logits = [spec.calibrated(one.logits, one.depth) for one in said]
    return logits if spec.kind is Kind.TAGGING else np.stack(logits)


def score(spec: BranchSpec, metric: str, rows: Rows, logits: NDArray[Any] | list[NDArray[Any]]) -> float:
    """The metric of these logits on the rows that they are of."""
    return evaluate(spec.kind, spec.labels, spec.positive, rows, logits)[metric]


def requests(inputs: Sequence[Input], batch: int, count: int) -> list[list[Input]]:
    """So many requests of `batch` inputs, drawn from these, the same every time."""
    picks = np.random.default_rng(0).permutation(len(inputs))[: count * batch]
    return [[inputs[i] for i in picks[start : start + batch]] for start in range(0, len(picks), batch)]
