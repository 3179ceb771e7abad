"""Measured cost of the parts of a merged model on this machine: the trunk to each depth, and branches apart from it.

All parts are timed in turn, round after round, so that a busy moment falls on all of them; the medians are kept. Random
tokens serve: time does not depend on weights. Knows shapes and engines, nothing of tasks.

Notation: B rows, T tokens of a text, H width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from trunkline.engine.backend import Backend, Call
from trunkline.engine.cache import Cache
from trunkline.engine.choose import Choice
from trunkline.engine.load import Loader
from trunkline.engine.planned import PlannedEngine
from trunkline.model.branch import Branch, BranchSpec, Reading, new_branch
from trunkline.model.encoders import Encoder
from trunkline.model.exits import ExitSpec, Form
from trunkline.model.heads import Pooling
from trunkline.model.tokens import TokenBatch
from trunkline.model.trunk import Trunk
from trunkline.project.speed import SpeedPoint
from trunkline.project.tasks import Kind

Job = Callable[[], list[float]]
"""Runs one part and gives the seconds to each of its marks."""

ALIKE = 4
"""Equal branches that run at once, as it does at a fork: several small ones may go side by side."""


@dataclass(frozen=True)
class Shape:
    """A branch's shape, as far as time goes."""

    fork: int
    layers: int
    reading: str
    pooling: str
    latents: int = 0
    crossing: int = 1
    exit: str = ""
    """The form of an exit, where that alone is meant: between own layers where there are any, else in the trunk."""
    end: bool = False
    """Whether its last layer and head alone are meant, as where the layers before run one by one."""

    @property
    def part(self) -> int | None:
        """The part of the branch that is timed, as a backend calls it; None for all of it."""
        if self.end:
            return self.fork + self.layers
        return self.exits[0].depth if self.exit else None

    @property
    def exits(self) -> tuple[ExitSpec, ...]:
        """The exits of the branch: the one that is timed, as those in the trunk cost alike and so do those between own
        layers, or one before its end.
        """
        if self.end or (self.exit and self.layers):
            return (ExitSpec(depth=self.fork + 1, form=Form(self.exit or Form.LINEAR)),)
        return (ExitSpec(depth=1, form=Form(self.exit)),) if self.exit else ()

    @property
    def id(self) -> str:
        if self.exit:
            return f"{self.reading}/{self.pooling}/exit-{self.exit}{'-own' if self.layers else ''}"
        latents = f"-m{self.latents}-x{self.crossing}" if self.latents else ""
        end = "-end" if self.end else ""
        return f"{self.reading}/{self.pooling}/f{self.fork}-l{self.layers}{latents}{end}"


def measure(
    trunk: Trunk, choice: Choice, shapes: Iterable[Shape], *, batch: int, tokens: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Median milliseconds on the CPU engine of this choice.

    The reference request is `batch` inputs with texts of `tokens` tokens; a pair read jointly is one sequence of twice
    as many, as far as the encoder has positions. Returns {"trunk": {slot: [after embeddings, after 1 layer, …]},
    "branch": {shape id: [ms]}}.
    """
    joint = min(2 * tokens, trunk.encoder.reader.max_positions)
    sizes = {"text": tokens, "pair": tokens, "joint": joint}
    shapes = list(shapes)
    used = {slot for shape in shapes for slot in Reading(shape.reading).slots}
    branches = {shape.id: _branch(trunk, shape, joint) for shape in shapes}
    engine = _engine(trunk, choice, branches)
    jobs: dict[tuple[str, object], Job] = {}
    for length in sorted({sizes[slot] for slot in used}):
        given = _batch(trunk.encoder, batch, length)
        jobs["trunk", length] = _trunk(engine.backend, given, trunk.depth)
    for shape in shapes:
        read = [_batch(trunk.encoder, batch, sizes[slot]) for slot in Reading(shape.reading).slots]
        jobs["branch", shape.id] = _branch_alike(engine.backend, shape, read)
    times: dict[tuple[str, object], list[list[float]]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()  # the first run of a shape also allocates
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(job())
    medians = {
        name: [1000 * statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()
    }
    return {
        "trunk": {slot: _rising(medians["trunk", sizes[slot]]) for slot in sizes if slot in used},
        "branch": {shape.id: medians["branch", shape.id] for shape in shapes},
    }


def _branch(trunk: Trunk, shape: Shape, max_tokens: int) -> Branch:
    spec = BranchSpec(
        task="timing",
        kind=Kind.TAGGING if shape.pooling == Pooling.TOKENS else Kind.CLASSIFICATION,
        labels=("a", "b"),
        metric="",
        fork=shape.fork,
        layers=shape.layers,
        reading=Reading(shape.reading),
        pooling=Pooling(shape.pooling),
        latents=shape.latents,
        crossing=shape.crossing,
        exits=shape.exits,
        speeds=(SpeedPoint(speed=0, quality=1, layers=0, time=1),) if shape.exits else (),
        max_tokens=max_tokens,
        width=trunk.width,
        outputs=2,
        trunk=trunk.fingerprint,
    )
    return new_branch(spec, trunk.encoder).eval()


def _batch(encoder: Encoder, rows: int, tokens: int) -> TokenBatch:
    ids = torch.randint(0, encoder.model.get_input_embeddings().num_embeddings, (rows, tokens))
    return TokenBatch(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))


def _engine(trunk: Trunk, choice: Choice, branches: Mapping[str, Branch]) -> PlannedEngine:
    """The engine with every branch as often as it is run at once."""
    sources = {id: (id, partial(branches.__getitem__, id)) for id in branches}
    return Loader(trunk, choice).engine(
        {_name(id, copy): source for id, source in sources.items() for copy in range(ALIKE)}
    )


def _name(id: str, copy: int) -> str:
    return f"{id} {copy}"


def _trunk(backend: Backend, given: TokenBatch, depth: int) -> Job:
    ids, types, mask = given.ids.numpy(), given.types.numpy(), given.mask.numpy()

    def run() -> list[float]:
        start = time.perf_counter()
        states = backend.embed(ids, types, mask)
        marks = [time.perf_counter() - start]
        for index in range(depth):
            states = backend.layer(index, states, mask)
            marks.append(time.perf_counter() - start)
        return marks

    return run


def _branch_alike(backend: Backend, shape: Shape, read: Sequence[TokenBatch]) -> Job:
    masks = tuple(given.mask.numpy() for given in read)
    states = tuple(
        backend.gather(
            [(backend.embed(given.ids.numpy(), given.types.numpy(), mask), np.arange(len(mask)))], *mask.shape
        )
        for given, mask in zip(read, masks, strict=True)
    )
    # The exits of one task stand at depths of their own, and layers run one by one for one task at a time.
    calls = [Call(_name(shape.id, copy), states, masks) for copy in range(ALIKE)]
    if shape.part is not None:
        calls = [replace(calls[0], part=shape.part)]

    def run() -> list[float]:
        start = time.perf_counter()
        backend.branches(calls)
        return [(time.perf_counter() - start) / len(calls)]

    return run


def _rising(times: Sequence[float]) -> list[float]:
    """Times to each depth, none less than the one before (noise apart, they cannot be)."""
    rising: list[float] = []
    for value in times:
        rising.append(max(value, rising[-1] if rising else 0.0))
    return rising


def uncached(engine: PlannedEngine) -> PlannedEngine:
    """The same engine without trunk states of texts that it knows: a repeated request costs what a first one does."""
    return PlannedEngine(engine.reader, engine.backend, cache=Cache(0))


def with_last_layer(branch: Branch, encoder: Encoder) -> Branch:
    """A full model's branch, its encoder's last layer made part of it where the head reads [CLS] alone: the same model,
    of which an engine need not compute that layer for the other rows.
    """
    if branch.spec.pooling is not Pooling.CLS or branch.spec.fork < encoder.depth:
        return branch
    whole = new_branch(branch.spec.model_copy(update={"fork": encoder.depth - 1, "layers": 1}), encoder)
    whole.norm, whole.head = branch.norm, branch.head
    return whole.eval()


def compare(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each job, all run in turn, round after round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}
