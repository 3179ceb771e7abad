"""From the live release to one that can also run in int8: calibrate on `valid`, measure, prove, publish.

The trunk is calibrated once, on rows of all tasks; later releases carry its ranges on, so that a task that comes later
is measured with them and moves no other. A branch's ranges come from its own task's rows. Knows rows and releases; how
ranges are found and bundles are built is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trunkline.atomic import write_json
from trunkline.bundle.manifest import TRUNK, VALID, Change, Quality, read_manifest
from trunkline.bundle.release import Release
from trunkline.errors import BundleError, StoreError
from trunkline.pipeline.assemble import Assembly, inputs_of
from trunkline.pipeline.progress import Show, Silent
from trunkline.pipeline.project import Project
from trunkline.pipeline.stages import Graph
from trunkline.project.data import Rows, TaskData

if TYPE_CHECKING:
    from trunkline.bundle import Bundle
    from trunkline.engine.base import Input

TRUNK_ROWS = 256
"""Rows that the trunk is calibrated on, of all tasks together."""
BRANCH_ROWS = 128
_LEAST = 8  # of each task


def quantize(project: Project, *, recalibrate: bool = False, show: Show | None = None) -> Release:
    """Make the live release one that can run in int8, and return it; one that can already stays as it is.

    Only tasks that were not measured yet are calibrated and measured, with the ranges that the trunk has. `recalibrate`
    makes those of the trunk anew too, which moves every task. Raises StoreError where nothing is released, ProbeError
    naming a task that int8 is not fit for; then the live release stays.
    """
    show = show or Silent()
    live = project.released()
    folder = project.releases.folder(live)
    with project.store.writing():
        before = read_manifest(folder).int8
        known = {} if before is None or recalibrate else before.tasks
        todo = [task for task in sorted(live.tasks) if task not in known]
        if not todo:
            return live
        assembly = Assembly(project.files, project.source, Graph({}), project.store, show.say)
        selection = assembly.selections.of(live)
        if selection is None:
            raise StoreError(f"it is not known what release {live.id} was trained on: trunkline run")
        data = {task: assembly.data(selection.prepared[task]) for task in sorted(live.tasks)}
        bundle = _built(project, folder, data, todo, anew=before is None or recalibrate, show=show)
        write_json(project.store.selections / f"{bundle.name}.json", vars(selection))
        release = project.releases.publish(bundle, f"int8 of {', '.join(todo)}")
        _keep_report(project, live, release)
    return release


def _built(
    project: Project, folder: Path, data: Mapping[str, TaskData], todo: Sequence[str], *, anew: bool, show: Show
) -> Path:
    from trunkline.bundle.loaded import load_task, load_trunk
    from trunkline.bundle.quantized import quantize as build
    from trunkline.engine.calibrate import branch_ranges, trunk_ranges
    from trunkline.engine.choose import INT8, choose

    manifest = read_manifest(folder)
    trunk = load_trunk(folder / TRUNK, manifest.trunk.fingerprint)
    choose(trunk, "openvino", INT8, device="cpu")  # what cannot run here is refused before anything is calibrated
    branches = {task: load_task(folder / entry.file, task, trunk) for task, entry in manifest.branches.items()}
    ranges = None
    if anew:
        share = max(_LEAST, TRUNK_ROWS // len(data))
        show.say(f"calibrating the trunk on rows of valid: {', '.join(data)}")
        dtype = choose(trunk, "openvino", device="cpu").dtype
        ranges = dtype, trunk_ranges(trunk, [(branches[task].spec, _inputs(data[task], share)) for task in data])
    found = {}
    for task in todo:
        show.say(f"calibrating {task} on rows of its valid")
        found[task] = branch_ranges(trunk, branches[task], _inputs(data[task], BRANCH_ROWS))

    def measure(bundle: Bundle) -> dict[str, Quality]:
        return _measured(bundle, folder, {task: data[task] for task in todo}, show)

    return build(folder, ranges, found, measure, project.store.bundles)


def _inputs(data: TaskData, count: int) -> list[Input]:
    """Rows of `valid`, spread over all of it."""
    picks = np.linspace(0, len(data.valid) - 1, min(count, len(data.valid))).round().astype(np.int64)
    return inputs_of(data.fit.take(data.valid[picks]))


def _measured(bundle: Bundle, folder: Path, data: Mapping[str, TaskData], show: Show) -> dict[str, Quality]:
    """Each task's metric on `valid` and on the reported split, in int8 and in the float type that goes with it."""
    from trunkline.bundle import Bundle

    dtype = bundle.loader.choice.floats
    floats = Bundle.load(folder, engine="openvino", dtype=dtype, tasks=data)
    found = {}
    for task, rows in data.items():
        show.say(f"measuring {task} in {dtype} and in int8")
        spec = bundle.specs[task]
        splits = {VALID: rows.fit.take(rows.valid), rows.main_split: rows.reported[rows.main_split]}
        changes = {
            split: Change(floats=_scored(floats, task, taken), int8=_scored(bundle, task, taken))
            for split, taken in splits.items()
        }
        found[task] = Quality(metric=spec.metric, splits=changes)
    return found


def _scored(bundle: Bundle, task: str, rows: Rows) -> float:
    from trunkline.engine.base import ItemError
    from trunkline.project.metrics import evaluate

    spec = bundle.specs[task]
    logits = bundle.logits(inputs_of(rows), [task])[task]
    values = [found for found in logits if not isinstance(found, ItemError)]
    if len(values) < len(logits):
        fault = next(found.message for found in logits if isinstance(found, ItemError))
        raise BundleError(f"task '{task}' cannot be measured: {fault} ({len(logits) - len(values)} rows)")
    return evaluate(spec.kind, spec.labels, spec.positive, rows, values)[spec.metric]


def _keep_report(project: Project, live: Release, release: Release) -> None:
    """The last report, where it is about the release that this one is made from, is about this one too."""
    try:
        report = project.report()
    except StoreError:
        return
    if report.get("release", {}).get("id") == live.id:
        report["release"] = {"id": release.id, "bundle": release.bundle}
        write_json(project.report_file, report)
        project.write_page(report)
