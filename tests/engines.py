"""One set of branches on every engine, random jobs for them, and when two engines say the same of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from trunkline.engine import Input, ItemError
from trunkline.engine.base import Engine, Job, Logits, Output
from trunkline.engine.choose import Choice
from trunkline.engine.load import Loader
from trunkline.engine.planned import PlannedEngine
from trunkline.engine.reference import ReferenceEngine
from trunkline.engine.timing import uncached
from trunkline.model.branch import Branch
from trunkline.model.trunk import Trunk

ENGINES = ("reference", "openvino", "torch")
"""The one that others are held against first."""

_ROUNDING = 1e-3
"""How far an uncertainty, or a distance to a scope's limit, may be from another engine's."""
_WORDS = ["play", "some", "music", "will", "it", "rain", "?", "today", "wake", "me", "at", "seven", " "]
_SPEEDS = [0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0]


def engines_of(trunk: Trunk, branches: Mapping[str, Branch], names: Sequence[str] = ENGINES) -> dict[str, Engine]:
    """These branches in float32 on each of these engines."""
    sources = {task: (task, lambda task=task: branches[task]) for task in branches}

    def engine(name: str) -> Engine:
        if name == "reference":
            return ReferenceEngine(trunk, branches)
        return Loader(trunk, Choice(name, "float32", "cpu", "a test")).engine(sources)

    return {name: engine(name) for name in names}


def fresh(engine: Engine) -> Engine:
    """The same engine, which remembers no states."""
    return uncached(engine) if isinstance(engine, PlannedEngine) else engine


def batches(tasks: Sequence[str]) -> st.SearchStrategy[list[Job]]:
    """Jobs of one batch: texts and pairs, some of no words, each with tasks and a speed for any of them."""
    texts = st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join)
    speeds = st.dictionaries(st.sampled_from(tasks), st.sampled_from(_SPEEDS)).map(lambda found: tuple(found.items()))
    asked = st.lists(st.sampled_from(tasks), unique=True, min_size=1).map(tuple)
    return st.lists(st.builds(Job, st.builds(Input, texts, st.one_of(st.none(), texts)), asked, speeds), max_size=10)


def assert_rows_equal_themselves_alone(
    reference: Engine, engine: Engine, jobs: Sequence[Job], batch_size: int | None = None
) -> None:
    """Promise 5: what an engine makes of rows in one batch is what the reference engine makes of each by itself."""
    found, _ = engine.run(jobs, batch_size=batch_size)
    for job, results in zip(jobs, found, strict=True):
        [expected], _ = reference.run([job])
        for task in job.tasks:
            assert agree(expected[task], results[task], job.speed_of(task)), (job, task)


def agree(expected: Output | ItemError, found: Output | ItemError, speed: float) -> bool:
    """Equal to rounding, or left at another exit since one was as unsure as the speed or as strange as the limit."""
    if isinstance(expected, ItemError) or isinstance(found, ItemError):
        return expected == found
    if expected.depth == found.depth:
        return (
            close(expected.logits, found.logits)
            and _near(expected.uncertainty, found.uncertainty)
            and _near(expected.scope, found.scope)
        )
    first = min(expected, found, key=lambda output: output.depth)
    at_the_limit = first.scope is not None and abs(first.scope) < _ROUNDING
    return at_the_limit or (first.uncertainty is not None and speed - first.uncertainty < _ROUNDING)


def close(one: Logits, other: Logits) -> bool:
    """Whether logits are of one shape and no further apart than 1e-4 of the largest, or of 1."""
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0) <= 1e-4 * max(1, np.abs(one).max()))


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) < _ROUNDING * max(1, abs(one))
