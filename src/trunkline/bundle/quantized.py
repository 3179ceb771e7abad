"""A bundle that can also run in int8: the same bundle with ranges beside its weights and what was measured with them.

Like a merge, it is built in a scratch folder, loaded from there, proved on the stored probes, and renamed into place;
whatever goes wrong before that, nothing remains. Trunk and branches are the very files of the bundle that it is made
from. Knows files and proofs; how ranges are found and quality is measured is decided elsewhere.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from trunkline.atomic import clear_leftovers, exclusive, scratch_folder
from trunkline.bundle.loaded import Bundle
from trunkline.bundle.manifest import (
    INT8,
    TRUNK,
    FileEntry,
    Int8Entry,
    Manifest,
    Quality,
    TaskInt8,
    file_hash,
    ranges_path,
    verify,
)
from trunkline.bundle.merge import LOCK, place, publish
from trunkline.bundle.probes import INT8_TOLERANCE
from trunkline.engine.ranges import Ranges, write_ranges
from trunkline.errors import ProbeError


def quantize(
    folder: Path,
    trunk: tuple[str, Ranges] | None,
    branches: Mapping[str, Ranges],
    measure: Callable[[Bundle], Mapping[str, Quality]],
    out: Path,
    *,
    wait: float = 600.0,
) -> Path:
    """Build the bundle in `folder` anew with ranges, in the folder `out`, and return its path, `out/<id>`.

    `trunk` is the float type of what is no integer, with the ranges of the trunk; None keeps what the bundle has, with
    all tasks measured so.
    `branches` are the tasks to measure, with the ranges of each (none where no layer of it runs for every token).
    `measure` gets the new bundle in int8, and gives the quality of each of these. Raises ProbeError naming a task whose
    logits in int8 are not near the stored ones, StoreError where another merge still works in `out` after `wait`
    seconds; then nothing remains.
    """
    with exclusive(out / LOCK, wait=wait):
        clear_leftovers(out)
        scratch = scratch_folder(out / "bundle")
        try:
            before = verify(folder)
            kept = before.int8 if trunk is None else None
            plain = before.model_copy(update={"int8": kept})
            for file in plain.files():
                (scratch / file).parent.mkdir(exist_ok=True)
                place(folder / file, scratch / file, folder / file)
            (scratch / INT8).mkdir(exist_ok=True)
            if trunk is not None:
                kept = Int8Entry(dtype=trunk[0], trunk=_written(scratch, TRUNK, trunk[1]), tasks={})
            if kept is None:
                raise ValueError(f"{folder} has no ranges of its trunk to keep")
            unmeasured = {
                task: TaskInt8(
                    ranges=_written(scratch, task, ranges) if ranges else None,
                    quality=Quality(metric="", splits={}),
                )
                for task, ranges in sorted(branches.items())
            }
            _with(before, kept, unmeasured).write(scratch)
            _with(before, kept, _measured(scratch, unmeasured, measure)).write(scratch)
            verify(scratch)
            return publish(scratch, out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _with(manifest: Manifest, kept: Int8Entry, tasks: Mapping[str, TaskInt8]) -> Manifest:
    return manifest.model_copy(update={"int8": kept.model_copy(update={"tasks": {**kept.tasks, **tasks}})})


def _written(scratch: Path, name: str, ranges: Ranges) -> FileEntry:
    staged = scratch / INT8 / f"{name}.safetensors"
    write_ranges(ranges, staged)
    sha256 = file_hash(staged)
    staged.rename(scratch / ranges_path(name, sha256))
    return FileEntry(file=ranges_path(name, sha256), sha256=sha256)


def _measured(
    scratch: Path, tasks: Mapping[str, TaskInt8], measure: Callable[[Bundle], Mapping[str, Quality]]
) -> dict[str, TaskInt8]:
    """The tasks with the quality of the bundle in the scratch folder, run in int8; all in it are proved on its probes,
    which a task that came since has changed.
    """
    manifest = verify(scratch)
    bundle = Bundle.load(scratch, dtype="int8", tasks=manifest.int8.tasks if manifest.int8 else ())
    for task, off in bundle.deviations().items():
        if not off <= INT8_TOLERANCE:
            how = "gives no finite logits" if math.isinf(off) else f"is off by {off:.1e}"
            raise ProbeError(task, f"in int8 it {how} on the stored probes; {INT8_TOLERANCE} at most can be")
    found = measure(bundle)
    return {task: entry.model_copy(update={"quality": found[task]}) for task, entry in tasks.items()}
