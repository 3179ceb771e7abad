"""A folder to a bundle that is fit to serve: checked, loaded, proved on its stored probes, and described.

Runs in the worker. How an engine is chosen and what it takes over from another is `Bundle.load`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from trunkline.bundle.loaded import Bundle
from trunkline.bundle.manifest import read_manifest
from trunkline.bundle.probes import INT8_TOLERANCE, deviation
from trunkline.engine.base import ItemError, Job, logits_of
from trunkline.engine.choose import INT8
from trunkline.errors import BundleError
from trunkline.serving.replies import ModelInfo, TaskInfo

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, INT8: INT8_TOLERANCE}
"""How far logits on the probes may be from the stored ones, per dtype, in units of `probes.deviation`.

Wide enough for another machine's arithmetic; weights that are not what they were are further off.
"""
NEARLY_OFF = 1e-9
"""A speed at which exits are run and hardly any row leaves."""


@dataclass(frozen=True)
class Loading:
    """How bundles are loaded: the arguments of `Bundle.load` that an operator chooses."""

    engine: str = "auto"
    dtype: str = "auto"
    device: str = "auto"

    def load(self, folder: Path, without: frozenset[str], previous: Bundle | None) -> Bundle:
        """The bundle in `folder` but for some tasks. Raises BundleError, or UsageError for what is not installed."""
        tasks = [task for task in read_manifest(folder).branches if task not in without]
        return Bundle.load(
            folder, engine=self.engine, dtype=self.dtype, device=self.device, tasks=tasks, previous=previous
        )


def prove(bundle: Bundle, tasks: Iterable[str]) -> None:
    """Check that these tasks give the stored answers on the probes, those with exits also by the way past them; this
    also warms the engine up.

    Raises BundleError for the first that does not.
    """
    names = tuple(tasks)
    _prove(bundle, names, ())
    early = tuple(task for task in names if bundle.specs[task].exits)
    _prove(bundle, early, tuple((task, NEARLY_OFF) for task in early))


def _prove(bundle: Bundle, names: tuple[str, ...], speeds: tuple[tuple[str, float], ...]) -> None:
    if not names:
        return
    probes = bundle.probes()
    found, _ = bundle.engine.run([Job(item, names, speeds) for item in probes.items()])
    limit = TOLERANCE[bundle.loader.choice.dtype]
    for task in names:
        given, stored = [results[task] for results in found], probes.logits_of(task)
        # What left all the same was given by an exit, whose answers are not stored.
        stays = [isinstance(one, ItemError) or one.depth == bundle.specs[task].depth for one in given]
        off = deviation(list(compress(stored, stays)), [logits_of(one) for one in compress(given, stays)])
        if not off <= limit:
            how = "gives no finite logits" if math.isinf(off) else f"is off by {off:.1e}, more than {limit:.0e},"
            raise BundleError(f"task '{task}' {how} on its stored probes")


def quality(bundle: Bundle) -> list[str]:
    """What int8 changes of each task that is loaded in it, a line each; none in floats."""
    if bundle.manifest.int8 is None or bundle.loader.choice.dtype != INT8:
        return []
    return [f"{task} in int8: {bundle.manifest.int8.tasks[task].quality}" for task in bundle.tasks]


def smallest(bundle: Bundle) -> Job | None:
    """The cheapest batch that is sure to run: one task on a probe that it reads, None where no task is loaded."""
    probes = bundle.probes()
    for task in sorted(bundle.tasks, key=lambda task: bundle.specs[task].fork + bundle.specs[task].layers):
        for item, found in zip(probes.items(), probes.logits_of(task), strict=True):
            if not isinstance(found, ItemError):
                return Job(item, (task,))
    return None


def describe(bundle: Bundle) -> ModelInfo:
    """What clients may know of a bundle, the tasks that are not loaded included."""
    from trunkline.model.branch import Reading, read_spec

    tasks = {}
    for name, entry in sorted(bundle.manifest.branches.items()):
        loaded = name in bundle.specs
        spec = bundle.specs[name] if loaded else read_spec(bundle.folder / entry.file)
        tasks[name] = TaskInfo(
            name=name,
            kind=spec.kind,
            labels=spec.labels,
            positive=spec.positive,
            pair=spec.reading is not Reading.SINGLE,
            max_tokens=spec.max_tokens,
            fork=spec.fork,
            layers=spec.layers,
            branch=entry.sha256[:16],
            loaded=loaded,
            exits=tuple(one.depth for one in spec.exits),
            speeds=spec.speeds,
            false_alarms=None if spec.scope is None else spec.scope.false_alarms,
        )
    trunk, choice = bundle.manifest.trunk, bundle.loader.choice
    return ModelInfo(
        name=bundle.manifest.name,
        bundle=bundle.id,
        tasks=tasks,
        family=trunk.family,
        depth=trunk.depth,
        width=trunk.width,
        engine=choice.engine,
        dtype=choice.dtype,
        device=choice.device,
    )
