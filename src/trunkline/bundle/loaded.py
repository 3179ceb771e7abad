"""A bundle in memory: checked, loaded and ready to answer.

Loading reads safetensors and JSON whose hashes the manifest names, and nothing else. How answers are computed is the
engine's matter. torch is imported when a bundle is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.bundle.manifest import TRUNK, Manifest, bundle_id, verify
from trunkline.bundle.probes import Probes, deviation
from trunkline.engine.base import BATCH_SIZE, Engine, Input, ItemError, Logits, predict
from trunkline.errors import BundleError, EncoderError
from trunkline.project.tasks import Answer

if TYPE_CHECKING:
    from trunkline.model.branch import BranchSpec


class Bundle:
    """A merged model: one trunk and a branch per task. `id` names its content."""

    def __init__(self, folder: Path, id: str, manifest: Manifest, engine: Engine) -> None:
        self.folder = folder
        self.id = id
        self.manifest = manifest
        self.engine = engine

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu") -> Bundle:
        """Check the bundle in the folder `path` and load it. Raises BundleError where it is not whole or unchanged."""
        folder = Path(path)
        manifest = verify(folder)
        files = {task: folder / entry.file for task, entry in manifest.branches.items()}
        engine = load_engine(folder / TRUNK, manifest.trunk.fingerprint, files, device=device)
        return cls(folder, bundle_id(folder), manifest, engine)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it answers, sorted."""
        return tuple(sorted(self.manifest.branches))

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """What the branch of each task is."""
        return self.engine.specs

    def predict(
        self, inputs: Iterable[object], tasks: Iterable[str] | None = None, batch_size: int = BATCH_SIZE
    ) -> list[dict[str, Answer | ItemError]]:
        """Answers per input, in the order given: {task: Answer}, or ItemError for an input that a task cannot read.

        An input is a text, a pair (text, text_pair), or {"text": …, "text_pair": …}. All tasks are asked by default.
        Raises UsageError for an unknown task.
        """
        return predict(self.engine, inputs, tasks, batch_size=batch_size)

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


def load_engine(trunk: Path, fingerprint: str, branches: Mapping[str, Path], *, device: str = "cpu") -> Engine:
    """The reference engine over an encoder's folder and branch files by task. Raises BundleError for a misfit."""
    from trunkline.engine.torch import TorchEngine
    from trunkline.model.branch import load_branch
    from trunkline.model.encoders import Encoder
    from trunkline.model.trunk import Trunk

    try:
        encoder = Encoder.load(trunk)
    except EncoderError as error:
        raise BundleError(f"the trunk cannot be loaded: {error}") from error
    loaded = {}
    for task, path in sorted(branches.items()):
        loaded[task] = load_branch(path, encoder)
        if loaded[task].spec.task != task:
            raise BundleError(f"{path} holds the branch of task '{loaded[task].spec.task}', not of '{task}'")
    return TorchEngine(Trunk(encoder, fingerprint), loaded, device=device)
