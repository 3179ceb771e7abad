"""A bundle in memory: checked, loaded and ready to answer.

Loading reads safetensors and JSON whose hashes the manifest names, and nothing else. How answers are computed is the
engine's matter. torch is imported when a bundle is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.bundle.manifest import TRUNK, Int8Entry, Manifest, bundle_id, read_manifest, verify
from trunkline.bundle.probes import Probes, deviation
from trunkline.engine.base import BATCH_SIZE, Input, ItemError, Logits, known_tasks, predict, speeds_of
from trunkline.engine.choose import INT8
from trunkline.errors import BundleError, EncoderError
from trunkline.project.speed import dials
from trunkline.project.tasks import Answer

if TYPE_CHECKING:
    from trunkline.engine.choose import Choice
    from trunkline.engine.load import Loader
    from trunkline.engine.planned import PlannedEngine
    from trunkline.model.branch import Branch, BranchSpec
    from trunkline.model.trunk import Trunk


class Bundle:
    """A merged model: one trunk and a branch per task. `id` names its content."""

    def __init__(self, folder: Path, id: str, manifest: Manifest, loader: Loader, engine: PlannedEngine) -> None:
        self.folder = folder
        self.id = id
        self.manifest = manifest
        self.loader = loader
        self.engine = engine

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        engine: str | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        tasks: Collection[str] | None = None,
        previous: Bundle | None = None,
        cache_bytes: int | None = None,
    ) -> Bundle:
        """Check the bundle in the folder `path` and load it, all of it or only `tasks`.

        `engine` is "torch" (the default; on a CPU in float32), "openvino" (faster on a CPU, once it has started; the
        default in int8) or "auto"; `dtype` and `device` may be left to it too. Over the same trunk, a `previous` bundle
        lends its engine, whatever these say, and its branches: what is in memory is not read again. States of known
        texts of pairs take at most `cache_bytes` (256 MiB) of memory, on engines that keep any. Raises BundleError
        where the bundle is not whole or unchanged, or was not measured in int8 and that is asked for; UsageError for an
        unknown task, engine, dtype or device.
        """
        from trunkline.engine.choose import choose
        from trunkline.engine.load import Loader
        from trunkline.engine.planned import CACHE_BYTES
        from trunkline.engine.ranges import read_ranges

        folder = Path(path)
        kept = None
        if previous is not None and _identity(read_manifest(folder), previous.loader.choice) == previous.identity:
            kept = previous  # the trunk in memory is the one in the folder
        manifest = verify(folder, trusted={} if kept is None else kept.loaded_files())
        names = known_tasks(manifest.branches, tasks)
        int8 = None
        if (dtype if kept is None else kept.loader.choice.dtype) == INT8:
            int8 = _int8(folder, manifest, names)
        if kept is not None:
            loader = kept.loader
        else:
            most = CACHE_BYTES if cache_bytes is None else cache_bytes
            trunk = load_trunk(folder / TRUNK, manifest.trunk.fingerprint)
            if int8 is None:
                loader = Loader(trunk, choose(trunk, engine or "torch", dtype, device), cache_bytes=most)
            else:
                choice = choose(trunk, engine or "openvino", dtype, device, rest=int8.dtype)
                loader = Loader(trunk, choice, read_ranges(folder / int8.trunk.file), cache_bytes=most)
        sources, ranges = {}, {}
        for task in sorted(names):
            entry = manifest.branches[task]
            sources[task] = entry.sha256, partial(load_task, folder / entry.file, task, loader.trunk)
            found = None if int8 is None else int8.tasks[task].ranges
            if found is not None:
                ranges[task] = found.sha256, partial(read_ranges, folder / found.file)
        return cls(folder, bundle_id(folder), manifest, loader, loader.engine(sources, ranges))

    @property
    def identity(self) -> tuple[str, dict[str, str], str | None]:
        """What tells one trunk from another: fingerprint, files by sha256, and in int8 its ranges and float type."""
        return _identity(self.manifest, self.loader.choice)

    def loaded_files(self) -> dict[str, str]:
        """The files whose content is in memory: path in the bundle -> sha256."""
        branches = {entry.file: entry.sha256 for task, entry in self.manifest.branches.items() if task in self.specs}
        return {**self.manifest.trunk.files, **branches}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it answers, sorted."""
        return tuple(sorted(self.engine.specs))

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """What the branch of each task is."""
        return self.engine.specs

    def predict(
        self,
        inputs: Iterable[object],
        tasks: Iterable[str] | None = None,
        batch_size: int = BATCH_SIZE,
        *,
        speed: float | Mapping[str, float] | None = None,
        keep: float | Mapping[str, float] | None = None,
    ) -> list[dict[str, Answer | ItemError]]:
        """Answers per input, in the order given: {task: Answer}, or ItemError for an input that a task cannot read.

        An input is a text, a pair (text, text_pair), or {"text": …, "text_pair": …}. All tasks are asked by default.
        `speed`, from 0 (the default, off) to 1, lets texts leave at a task's exits; `keep` asks for the fastest speed
        that keeps this fraction of the task's quality on `valid`. Either is one number, or numbers by task. Raises
        UsageError for an unknown task or a number that is none.
        """
        return predict(self.engine, inputs, tasks, batch_size=batch_size, speed=speed, keep=keep)

    def speeds(
        self,
        tasks: Iterable[str] | None = None,
        *,
        speed: float | Mapping[str, float] | None = None,
        keep: float | Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """The speed that `predict` runs each task at when asked for these: what a `keep` stands for, and 0 where the
        task has no exits. Raises UsageError as `predict` does.
        """
        names = known_tasks(self.specs, tasks)
        found = dict(speeds_of(self.specs, dials(names, speed, keep)))
        return {task: found.get(task, 0.0) for task in names}

    def logits(
        self, inputs: Sequence[Input | ItemError], tasks: Iterable[str] | None = None, batch_size: int = BATCH_SIZE
    ) -> dict[str, list[Logits | ItemError]]:
        """What the answers are made of: per task and input (C,), or (words, C) for tagging."""
        return self.engine.logits(inputs, self.tasks if tasks is None else tasks, batch_size=batch_size)

    def probes(self) -> Probes:
        """The inputs that the merge was proved on, with every task's logits there."""
        return Probes.read(self.folder / self.manifest.probes.file)

    def deviations(self) -> dict[str, float]:
        """Per task, how far this machine's logits on the probes are from the stored ones (see `probes.deviation`)."""
        probes = self.probes()
        found = self.logits(probes.items())
        return {task: deviation(probes.logits_of(task), found[task]) for task in self.tasks}


def _identity(manifest: Manifest, choice: Choice) -> tuple[str, dict[str, str], str | None]:
    int8 = manifest.int8 if choice.dtype == INT8 else None
    return (
        manifest.trunk.fingerprint,
        manifest.trunk.files,
        None if int8 is None else f"{int8.trunk.sha256} {int8.dtype}",
    )


def _int8(folder: Path, manifest: Manifest, tasks: Iterable[str]) -> Int8Entry:
    """What the bundle has for int8. Raises BundleError where any of these tasks was not measured in it."""
    measured = {} if manifest.int8 is None else manifest.int8.tasks
    missing = [task for task in tasks if task not in measured]
    if manifest.int8 is None or missing:
        what = "the bundle was" if manifest.int8 is None else f"{', '.join(missing)} was"
        raise BundleError(f"{folder}: {what} never measured in int8: `trunkline quantize` makes a release that is")
    return manifest.int8


def load_trunk(folder: Path, fingerprint: str) -> Trunk:
    """The trunk in a bundle's folder. Raises BundleError where it cannot be loaded."""
    from trunkline.model.encoders import Encoder
    from trunkline.model.trunk import Trunk

    try:
        return Trunk(Encoder.load(folder), fingerprint)
    except EncoderError as error:
        raise BundleError(f"the trunk cannot be loaded: {error}") from error


def load_task(path: Path, task: str, trunk: Trunk) -> Branch:
    """The branch of a task from its file. Raises BundleError where it belongs to another task or trunk."""
    from trunkline.model.branch import load_branch

    branch = load_branch(path, trunk.encoder)
    if branch.spec.task != task:
        raise BundleError(f"{path} holds the branch of task '{branch.spec.task}', not of '{task}'")
    return branch
