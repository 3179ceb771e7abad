"""Merge: one trunk and one branch file per task become a bundle, proved on probe inputs before it exists.

The bundle is built in a scratch folder, loaded from there, proved, and renamed into place; whatever goes wrong before
that, nothing remains. Knows files and proofs; which branches are merged, and whether the result goes live, is decided
elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trunkline.atomic import clear_leftovers, exclusive, publish_folder, scratch_folder, staging_path, write_json
from trunkline.bundle.loaded import load_task, load_trunk
from trunkline.bundle.manifest import (
    BRANCHES,
    INT8,
    PROBES,
    TRUNK,
    FileEntry,
    Int8Entry,
    Manifest,
    TrunkEntry,
    branch_path,
    bundle_id,
    file_hash,
    read_manifest,
    verify,
)
from trunkline.bundle.probes import TOLERANCE, Probes, alone, deviation, prove_equal_to_single, prove_untouched
from trunkline.engine.base import Engine, Input, ItemError, Logits
from trunkline.errors import BundleError
from trunkline.model.source import Source, files, resolve

LOCK = "merge.lock"


@dataclass(frozen=True)
class _Built:
    """A bundle's folder, finished or not, with its manifest."""

    folder: Path
    manifest: Manifest

    def probes(self) -> Probes:
        """The inputs that it was proved on, with every task's logits there."""
        return Probes.read(self.folder / self.manifest.probes.file)

    def reference(self) -> Engine:
        """All of it on the reference engine, whose batches have the same shape whatever else a bundle holds."""
        from trunkline.engine.reference import ReferenceEngine

        trunk = load_trunk(self.folder / TRUNK, self.manifest.trunk.fingerprint)
        branches = self.manifest.branches.items()
        return ReferenceEngine(
            trunk, {task: load_task(self.folder / entry.file, task, trunk) for task, entry in branches}
        )


def merge(
    source: Source,
    branch_files: Mapping[str, Path],
    probes: Sequence[Input],
    out: Path,
    previous: Path | None = None,
    *,
    name: str,
    wait: float = 600.0,
) -> Path:
    """Build the bundle of these branches in the folder `out` and return its path, `out/<id>`.

    `source` is the encoder that the branches were trained on, `name` the project's. Promise 1 is proved for every
    task on `probes`, and promise 2, for every branch that is also in the bundle `previous`, on its probes too. Raises
    ProbeError naming the task that fails, BundleError where files do not fit, StoreError where another merge still
    works in `out` after `wait` seconds; then nothing remains.
    """
    if not branch_files:
        raise BundleError("a bundle needs at least one branch; none was given")
    before = None if previous is None else _Built(previous, verify(previous))
    with exclusive(out / LOCK, wait=wait):
        clear_leftovers(out)
        scratch = scratch_folder(out / "bundle")
        try:
            manifest = _gather(source, branch_files, scratch, previous, name)
            probed = _prove(source, branch_files, list(probes), _Built(scratch, manifest), before)
            write_json(scratch / PROBES, probed.model_dump(mode="json"))
            manifest = manifest.model_copy(
                update={"probes": FileEntry(file=PROBES, sha256=file_hash(scratch / PROBES))}
            )
            manifest.write(scratch)
            verify(scratch)
            return publish(scratch, out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _gather(
    source: Source, branch_files: Mapping[str, Path], scratch: Path, previous: Path | None, name: str
) -> Manifest:
    """Put trunk and branches into the scratch folder; the manifest's entry for the probes is still empty."""
    (scratch / TRUNK).mkdir()
    (scratch / BRANCHES).mkdir()
    for path in files(source.path):
        place(path, scratch / TRUNK / path.name, previous and previous / TRUNK / path.name)
    found = resolve(str((scratch / TRUNK).resolve()), None, scratch)
    if found.fingerprint != source.fingerprint:
        raise BundleError(f"the encoder in {source.path} changed since its branches were trained on it")
    branches = {}
    for task, path in sorted(branch_files.items()):
        if not path.is_file():
            raise BundleError(f"the branch file of task '{task}' is not there: {path}")
        sha256 = file_hash(path)
        relative = branch_path(task, sha256)
        place(path, scratch / relative, previous and previous / relative)
        branches[task] = FileEntry(file=relative, sha256=sha256)
    manifest = Manifest(
        name=name,
        trunk=TrunkEntry(
            fingerprint=source.fingerprint,
            source=source.name,
            family=source.family,
            depth=source.depth,
            width=source.width,
            files={f"{TRUNK}/{path.name}": file_hash(path) for path in sorted((scratch / TRUNK).iterdir())},
        ),
        branches=branches,
        probes=FileEntry(file=PROBES, sha256="0" * 64),
    )
    return manifest if previous is None else manifest.model_copy(update={"int8": _kept(manifest, scratch, previous)})


def _kept(manifest: Manifest, scratch: Path, previous: Path) -> Int8Entry | None:
    """What the bundle keeps of an earlier one's int8: all that was made for its trunk and for branches that stayed."""
    before = read_manifest(previous)
    if before.int8 is None or before.trunk.files != manifest.trunk.files:
        return None
    old, new = before.hashes(), manifest.hashes()
    tasks = {task: entry for task, entry in before.int8.tasks.items() if task in new and old[task] == new[task]}
    kept = before.int8.model_copy(update={"tasks": tasks})
    (scratch / INT8).mkdir()
    for file in kept.files():
        place(previous / file, scratch / file, previous / file)
    return kept


def place(path: Path, destination: Path, twin: Path | None) -> None:
    """Put a copy of `path` at `destination`: another name for the same file in an earlier bundle, if it is there.

    Only files of a bundle are shared that way: they never change, while the originals are the user's.
    """
    if twin is not None and twin.is_file() and file_hash(twin) == file_hash(path):
        try:
            os.link(twin, destination)
            return
        except OSError:  # a file system without hard links, or too many of them
            pass
    shutil.copyfile(path, destination)


def _prove(
    source: Source, branch_files: Mapping[str, Path], probes: list[Input], built: _Built, before: _Built | None
) -> Probes:
    """The proofs of promises 1 and 2; returns the probes with the merged model's logits, as the bundle has them."""
    engine = built.reference()
    merged = engine.logits(probes, branch_files)
    if before is not None:
        _prove_isolation(before, built.manifest, engine, probes)
    del engine
    _prove_single(source, branch_files, probes, merged)
    made = Probes.made(probes, merged)
    return _unless_rounding(made, built.manifest, before)


def _unless_rounding(made: Probes, manifest: Manifest, before: _Built | None) -> Probes:
    """The probes of an earlier bundle of the very same parts: logits that this run rounds in another way, as with
    another number of threads, do not make it another bundle.
    """
    if before is None or (before.manifest.trunk, before.manifest.branches) != (manifest.trunk, manifest.branches):
        return made
    kept = before.probes()
    alike = kept.inputs == made.inputs and all(
        deviation(kept.logits_of(task), made.logits_of(task)) <= TOLERANCE for task in manifest.branches
    )
    return kept if alike else made


def _prove_isolation(before: _Built, manifest: Manifest, engine: Engine, probes: list[Input]) -> None:
    """Promise 2: branches that stayed give the same bits in the earlier bundle and in this one."""
    old, new = before.manifest.hashes(), manifest.hashes()
    stayed = [task for task in new if old.get(task) == new[task]]
    if not stayed:
        return
    inputs = probes + [item for item in before.probes().items() if item not in probes]
    was, now = before.reference().logits(inputs, old), engine.logits(inputs, new)
    for task in stayed:
        prove_untouched(task, was[task], now[task])


def _prove_single(
    source: Source,
    branch_files: Mapping[str, Path],
    probes: list[Input],
    merged: Mapping[str, Sequence[Logits | ItemError]],
) -> None:
    """Promise 1: each branch alone, from the files it was given as, on the encoder where it was trained."""
    from trunkline.model.branch import load_branch
    from trunkline.model.encoders import Encoder
    from trunkline.model.trunk import Trunk

    trunk = Trunk(Encoder.load(source.path), source.fingerprint)
    for task, path in sorted(branch_files.items()):
        prove_equal_to_single(task, alone(trunk, load_branch(path, trunk.encoder), probes), merged[task])


def publish(scratch: Path, out: Path) -> Path:
    """Rename the finished bundle to its id; an equal one that is already there stays, a damaged one makes way."""
    destination = out / bundle_id(scratch)
    if destination.exists():
        try:
            verify(destination)
        except BundleError:
            destination.rename(staging_path(destination))
    publish_folder(scratch, destination)
    clear_leftovers(out)
    return destination
