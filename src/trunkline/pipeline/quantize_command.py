"""`trunkline quantize`: the live release made fit for int8, and what that changes. No torch before it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trunkline.bundle.manifest import VALID, Int8Entry, read_manifest
from trunkline.console import root_of
from trunkline.errors import BundleError, MissingExtra


def quantize(
    context: typer.Context,
    recalibrate: Annotated[
        bool, typer.Option(help="Calibrate the trunk anew too, which moves the int8 answers of every task.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
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
    with Terminal(Console(stderr=True, highlight=False)) as show:
        release = run(project, recalibrate=recalibrate, show=show)
    int8 = measured(project.releases.folder(release))
    if as_json:
        print(json.dumps({"release": release.id, "int8": as_data(int8)}, ensure_ascii=False, indent=2))
        return
    out = Console(highlight=False)
    if int8 is not None:
        out.print(as_table(int8))
    state = "was measured in int8 before" if release == before else "is live; serve it with --dtype int8"
    out.print(f"\nrelease {release.id} {state}", markup=False)


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
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("task", "metric", "split"):
        table.add_column(name, no_wrap=name == "task")
    for name in (int8.dtype, "int8", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, found in sorted(int8.tasks.items()):
        for split, change in found.quality.splits.items():
            where = f"{split} (seen)" if split == VALID else split
            moved = f"{change.int8 - change.floats:+.4f}"
            cells = (task, found.quality.metric, where, f"{change.floats:.4f}", f"{change.int8:.4f}", moved)
            table.add_row(*map(Text, cells))
    return table
