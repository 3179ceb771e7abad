"""Measured cost of the parts of a merged model on this machine: the trunk to each depth, and branches apart from it.

All parts are timed in turn, round after round, so that a busy moment falls on all of them; the medians are kept. Random
tokens serve: time does not depend on weights. Knows shapes, nothing of tasks.

Notation: B rows, T tokens of a text, H width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from trunkline.model.branch import BranchSpec, Reading, new_branch
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.model.tokens import TokenBatch
from trunkline.project.tasks import Kind


@dataclass(frozen=True)
class Shape:
    """A branch's shape, as far as time goes."""

    fork: int
    layers: int
    reading: str
    pooling: str

    @property
    def id(self) -> str:
        return f"{self.reading}/{self.pooling}/f{self.fork}-l{self.layers}"


def measure(
    encoder: Encoder, shapes: Iterable[Shape], *, batch: int, tokens: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Median milliseconds in float32 on the torch engine.

    The reference request is `batch` inputs with texts of `tokens` tokens; a pair read jointly is one sequence of twice
    as many, as far as the encoder has positions. Returns {"trunk": {slot: [after embeddings, after 1 layer, …]},
    "branch": {shape id: [ms]}}.
    """
    joint = min(2 * tokens, encoder.reader.max_positions)
    sizes = {"text": tokens, "pair": tokens, "joint": joint}
    shapes = list(shapes)
    used = {slot for shape in shapes for slot in Reading(shape.reading).slots}
    lengths = sorted({sizes[slot] for slot in used})
    jobs: dict[tuple[str, object], Callable[[], list[float]]] = {}
    for length in lengths:
        jobs["trunk", length] = _trunk_job(encoder, batch, length)
    for shape in shapes:
        jobs["branch", shape.id] = _branch_job(encoder, shape, batch, tokens, joint)
    times: dict[tuple[str, object], list[list[float]]] = {name: [] for name in jobs}
    with torch.inference_mode():
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


def _trunk_job(encoder: Encoder, batch: int, tokens: int) -> Callable[[], list[float]]:
    ids = torch.randint(0, encoder.model.get_input_embeddings().num_embeddings, (batch, tokens))
    tokens_batch = TokenBatch(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))

    def run() -> list[float]:
        start = time.perf_counter()
        states = encoder.embed(tokens_batch.ids, tokens_batch.types, tokens_batch.mask)
        context = encoder.context(tokens_batch.mask, states.dtype)
        marks = [time.perf_counter() - start]
        for index, layer in enumerate(encoder.layers):
            states = encoder.run(layer, index, states, context)
            marks.append(time.perf_counter() - start)
        return marks

    return run


def _branch_job(encoder: Encoder, shape: Shape, batch: int, tokens: int, joint: int) -> Callable[[], list[float]]:
    reading = Reading(shape.reading)
    spec = BranchSpec(
        task="timing",
        kind=Kind.TAGGING if shape.pooling == Pooling.TOKENS else Kind.CLASSIFICATION,
        labels=("a", "b"),
        metric="",
        fork=shape.fork,
        layers=shape.layers,
        reading=reading,
        pooling=Pooling(shape.pooling),
        max_tokens=joint,
        width=encoder.width,
        outputs=2,
        trunk="",
    )
    branch = new_branch(spec, encoder).eval()
    length = joint if reading is Reading.JOINT else tokens
    states = [torch.randn(batch, length, encoder.width) for _ in reading.slots]
    masks = [torch.ones(batch, length, dtype=torch.bool) for _ in reading.slots]

    def run() -> list[float]:
        start = time.perf_counter()
        branch(encoder, states, masks)
        return [time.perf_counter() - start]

    return run


def _rising(times: Sequence[float]) -> list[float]:
    """Times to each depth, none less than the one before (noise apart, they cannot be)."""
    rising: list[float] = []
    for value in times:
        rising.append(max(value, rising[-1] if rising else 0.0))
    return rising


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
