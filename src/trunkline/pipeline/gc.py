"""Free what neither the project's files nor a release need.

Knows which stages, states, bundles and selections are referenced; removes the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline.atomic import in_use, remove_folder
from trunkline.bundle.release import Releases
from trunkline.pipeline.assemble import Assembly
from trunkline.pipeline.stages import Graph
from trunkline.pipeline.store import Store


@dataclass(frozen=True)
class Freed:
    """Something that was, or would be, removed."""

    path: Path
    size: int
    what: str


def collect(graph: Graph, store: Store, assembly: Assembly, *, keep: int, dry: bool = False) -> list[Freed]:
    """Remove stages that no task file asks for and no release uses, all cached trunk states, checkpoints of stages that
    are no longer asked for, and releases but the newest `keep` and the live one; bundles that a server on this machine
    serves stay. The caller holds the store.
    """
    releases = Releases(store.folder)
    if not dry:
        releases.forget(keep)
    newest = {release.id for release in releases.list()[-max(1, keep) :]}
    live = releases.live()
    kept = [r for r in releases.list() if r.id in newest or (live is not None and r.id == live.id)]
    found = list(_unneeded(graph, store, assembly, {releases.folder(r) for r in kept}, kept))
    if not dry:
        for item in found:
            remove_folder(item.path) if item.path.is_dir() else item.path.unlink()
    return found


def _unneeded(graph: Graph, store: Store, assembly: Assembly, bundles: set[Path], kept: list) -> Iterator[Freed]:  # type: ignore[type-arg]
    wanted = {*graph.keys.values(), store.adapting()}
    for release in kept:
        selection = assembly.selections.of(release)
        if selection is not None:
            wanted |= {*selection.branch.values(), *selection.exits.values(), *selection.prepared.values()}
    for folder in _entries(store.stages):
        if folder.name not in wanted and _weighs(store, folder.name):
            yield _freed(folder, "stage")
    for folder in _entries(store.work):
        if folder.name not in wanted or folder.name in store:
            yield _freed(folder, "checkpoint")
    for folder in _entries(store.states):
        yield _freed(folder, "trunk states")
    served = {folder for folder in _entries(store.bundles) if folder.is_dir() and in_use(folder)}
    names = {bundle.name for bundle in bundles | served}
    for folder in _entries(store.bundles):
        if folder.is_dir() and folder.name not in names:
            yield _freed(folder, "bundle")
    for file in _entries(store.selections):
        if file.stem not in names:
            yield _freed(file, "selection")


def _weighs(store: Store, key: str) -> bool:
    """Whether an entry is a stage: measurements and evaluations are small and kept."""
    return not {"files", "schedule", "scope", "adapt", "teacher", "rule"}.isdisjoint(store.get(key).fields)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _freed(path: Path, what: str) -> Freed:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Freed(path, sum(file.stat().st_size for file in files), what)
