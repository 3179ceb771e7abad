"""`trunkline quantize`: the live release made fit for int8, and what that changes. No torch before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from trunkline.bundle.manifest import VALID, Int8Entry, read_manifest
from trunkline.console import err, out, print_json, root_of
from trunkline.errors import BundleError, MissingExtra
from trunkline.options import AsJson
from trunkline.tables import cells, table


def quantize(
    context: typer.Context,
    recalibrate: Annotated[
        bool, typer.Option(help="Calibrate the trunk anew too, which moves the int8 answers of every task.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the live release able to run in int8 (`--dtype int8`), and measure what that changes of each task."""
    try:
        import trunkline.engine.runtime  # noqa: F401 - all of it is run on OpenVINO
    except ImportError:
        raise MissingExtra("openvino", "trunkline quantize") from None
    from trunkline.pipeline.progress import Terminal
    from trunkline.pipeline.project import Project
    from trunkline.pipeline.quantize import quantize as run

    project = Project.load(root_of(context))
    before = project.released()
    with Terminal(err) as show:
        release = run(project, recalibrate=recalibrate, show=show)
    int8 = measured(project.releases.folder(release))
    if as_json:
        return print_json({"release": release.id, "int8": as_data(int8)})
    if int8 is not None:
        out.print(as_table(int8))
    state = "was measured in int8 before" if release == before else "is live; serve it with --dtype int8"
    return out.print(f"\nrelease {release.id} {state}", markup=False)


def measured(folder: Path) -> Int8Entry | None:
    """What a bundle has for int8; None also where the bundle cannot be read."""
    try:
        return read_manifest(folder).int8
    except BundleError:
        return None


def as_data(int8: Int8Entry | None) -> dict[str, Any] | None:
    """What int8 changes, ready for JSON."""
    if int8 is None:
        return None
    tasks = {task: found.quality.model_dump(mode="json") for task, found in sorted(int8.tasks.items())}
    return {"against": int8.dtype, "tasks": tasks}


def as_table(int8: Int8Entry) -> Table:
    """What int8 changes, one row per task and split; ranges were calibrated on rows of "valid", and have seen it."""
    made = table("task", "metric", "split", f"> {int8.dtype}", "> int8", "> change")
    for task, found in sorted(int8.tasks.items()):
        for split, change in found.quality.splits.items():
            where = f"{split} (seen)" if split == VALID else split
            moved = f"{change.int8 - change.floats:+.4f}"
            values = f"{change.floats:.4f}", f"{change.int8:.4f}", moved
            made.add_row(*cells(task, found.quality.metric, where, *values))
    return made
