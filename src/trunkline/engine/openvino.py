"""The CPU backend: every trunk layer and every branch is an OpenVINO model of its own.

A layer by itself is what makes isolation hold to the bit: nothing is fused across layers or branches, so what a bundle
holds besides cannot change what one of them computes. A chain of layers costs what one model of the whole trunk does
(benchmarks/engine.py), because states pass between them in the type that they are computed in.

Branches in a cheap form (see `rewrite`) are too small to share among cores: each runs on one, as many at once as there
are cores. All others take all cores, one after another.

Notation: R rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.engine import rewrite
from trunkline.engine.backend import Call, Mask, ScopeAt
from trunkline.engine.backend import Part as Name
from trunkline.engine.base import Logits
from trunkline.engine.convert import Converter
from trunkline.engine.int8 import round_linears
from trunkline.engine.ranges import Ranges, branch_linears, own_linears, trunk_linears
from trunkline.engine.runtime import ov
from trunkline.machine import asked_threads, usable_cores
from trunkline.model.branch import Branch, BranchSpec, check_trunk
from trunkline.model.encoders import Encoder
from trunkline.model.exits import ExitSpec
from trunkline.model.trunk import Trunk

Compiled = Any  # openvino.CompiledModel
States = Any  # openvino.Tensor, or a numpy array of a kept row: float32, or the 16 bits of bfloat16

TYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Piece:
    """Something compiled that gives logits, or a scope's distances; `small`: one core is enough for it."""

    compiled: Compiled
    small: bool


@dataclass(frozen=True)
class Part:
    """A compiled branch, which backends may share: each makes requests of its own.

    `pieces` are by `Call.part`; `own` are its own layers but the last, where there are exits between them.
    """

    spec: BranchSpec
    form: str
    pieces: Mapping[Name, Piece]
    own: tuple[Compiled, ...]


class OpenVinoBackend:
    """A compiled trunk and compiled branches on the CPU, run by one thread at a time. `layers` begins with the
    embeddings.
    """

    def __init__(
        self,
        encoder: Encoder,
        parts: Mapping[str, Part],
        layers: Sequence[Compiled],
        *,
        dtype: str,
        threads: int,
    ) -> None:
        self.encoder = encoder
        self.parts = dict(sorted(parts.items()))
        self.specs = {task: part.spec for task, part in self.parts.items()}
        self.dtype = dtype
        self.threads = threads
        self._layers = [compiled.create_infer_request() for compiled in layers]
        self._pieces = {
            (task, name): (piece.compiled.create_infer_request(), piece.small)
            for task, part in self.parts.items()
            for name, piece in part.pieces.items()
        }
        self._own = {task: [one.create_infer_request() for one in part.own] for task, part in self.parts.items()}
        self._pool = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="branch")

    def embed(self, ids: NDArray[np.int64], types: NDArray[np.int64], mask: Mask) -> States:
        """The states before the first layer, of (R, T) token ids and types."""
        return self._states(self._layers[0], [ov.Tensor(ids), ov.Tensor(types), ov.Tensor(mask)], mask)

    def layer(self, index: int, states: States, mask: Mask) -> States:
        """The states after trunk layer `index`."""
        return self._states(self._layers[index + 1], [states, ov.Tensor(mask)], mask)

    def own_layer(self, task: str, index: int, states: States, mask: Mask) -> States:
        """The states after own layer `index` of a branch."""
        return self._states(self._own[task][index], [states, ov.Tensor(mask)], mask)

    def _states(self, request: Any, inputs: Sequence[Any], mask: Mask) -> States:
        """What a request makes of its inputs, in memory of its own: the next batch goes through the same request."""
        made = ov.Tensor(TYPES[self.dtype], ov.Shape((*mask.shape, self.encoder.width)))
        request.set_output_tensor(0, made)
        _infer(request, inputs)
        return made

    def branches(self, calls: Sequence[Call]) -> list[Logits]:
        """Logits (R, C) or (R, T, C) of each call, float32."""
        found: dict[int, Logits] = {}
        small: dict[tuple[str, Name], list[int]] = {}  # a piece runs one call at a time
        for i, call in enumerate(calls):
            if self._pieces[call.task, call.part][1]:
                small.setdefault((call.task, call.part), []).append(i)
        waiting = iter(small.values())

        def work() -> None:
            for alike in waiting:  # shared: each is taken once
                for i in alike:
                    found[i] = self._branch(calls[i])

        helpers = [self._pool.submit(work) for _ in range(min(self.threads, len(small)) - 1)]
        try:
            work()  # this thread as well: to wake another takes longer than a small branch
        finally:
            wait(helpers)  # also where one fails: the next run must not meet a branch at work
        for helper in helpers:
            helper.result()
        return [found[i] if i in found else self._branch(call) for i, call in enumerate(calls)]

    def _branch(self, call: Call) -> Logits:
        masks = [ov.Tensor(mask) for mask in call.masks]
        logits: Logits = _infer(self._pieces[call.task, call.part][0], [*call.states, *masks]).data.copy()
        return logits

    def gather(self, taken: Sequence[tuple[States, NDArray[np.int64]]], rows: int, tokens: int) -> States:
        """A copy, as one batch (rows, tokens, H), of these rows of each of these states, zeros elsewhere."""
        gathered = np.zeros((rows, tokens, self.encoder.width), dtype=_bits(taken[0][0]).dtype)
        start = 0
        for states, picks in taken:
            part = _bits(states)[picks, :tokens]
            gathered[start : start + len(picks), : part.shape[1]] = part
            start += len(picks)
        return self._tensor(gathered)

    def keep(self, states: States, row: int, length: int) -> States:
        """A copy of one row's first `length` states, (length, H)."""
        return _bits(states)[row, :length].copy()

    def join(self, kept: Sequence[States], rows: int, tokens: int) -> States:
        """Kept rows as one batch (rows, tokens, H), zeros elsewhere."""
        joined = np.zeros((rows, tokens, self.encoder.width), dtype=kept[0].dtype)
        for row, states in zip(joined, kept, strict=False):
            row[: len(states)] = states
        return self._tensor(joined)

    def _tensor(self, array: NDArray[Any]) -> States:
        return ov.Tensor(array, ov.Shape(array.shape), TYPES[self.dtype])


class Builder:
    """Compiles the parts of backends over one trunk, in one dtype; keeps what it has converted for later branches.

    Layers that have `ranges`, the trunk's here and a branch's in `part`, multiply in int8; the rest is in `dtype`.
    """

    def __init__(
        self, trunk: Trunk, *, dtype: str, threads: int | None = None, ranges: Ranges = MappingProxyType({})
    ) -> None:
        self.fingerprint = trunk.fingerprint
        self.encoder = trunk.encoder
        self.dtype = dtype
        self.threads = threads or asked_threads() or usable_cores()
        self.ranges = ranges
        self._core = ov.Core()
        self._converter = Converter(trunk.encoder, TYPES[dtype])
        self._layers: list[Compiled] = []

    def backend(self, parts: Mapping[str, Part]) -> OpenVinoBackend:
        """A backend of these parts over the trunk, which is compiled once."""
        if not self._layers:
            self._layers = self._trunk()
        return OpenVinoBackend(self.encoder, parts, self._layers, dtype=self.dtype, threads=self.threads)

    def part(self, branch: Branch, ranges: Ranges = MappingProxyType({})) -> Part:
        """Compile a branch in its cheapest form.

        Raises BundleError for a branch that was made for another trunk, or ranges for another branch.
        """
        check_trunk(branch.spec, self.fingerprint)
        spec = branch.spec
        form, whole = self._whole(branch, lambda form: branch_linears(branch, form), ranges)
        pieces: dict[Name, Piece] = {None: whole}
        for one in spec.exits:
            like, module = _graph_of_exit(spec, one), rewrite.exit_alone(branch, one.depth)
            pieces[one.depth] = self._compiled(self._piece(like, module, slots=1), small=one.depth <= spec.fork)
        if spec.scope is not None:
            for place in spec.scope.depths:
                like = ("scope", place.directions, spec.scope.classes, len(spec.reading.slots))
                model = self._piece(like, rewrite.scope_alone(branch, place.depth), slots=len(spec.reading.slots))
                pieces[ScopeAt(place.depth)] = Piece(self._compile(model, 1, dtype="float32"), small=True)
        own: tuple[Compiled, ...] = ()
        if spec.own_exits:
            linears = [own_linears(branch, place) for place in range(spec.layers)]
            own = tuple(
                self._layer(layer, index, linears[index - spec.fork], ranges)
                for index, layer in enumerate(branch.layers[:-1], spec.fork)
            )
            pieces[spec.depth] = self._whole(
                branch.end(), lambda form: linears[-1] if form == "plain" else {}, ranges, alone=True
            )[1]
        return Part(spec, form, pieces, own)

    def _whole(
        self, branch: Branch, linears: Callable[[str], dict[str, nn.Linear]], ranges: Ranges, *, alone: bool = False
    ) -> tuple[str, Piece]:
        """A branch in its cheapest form, whose name is given, too; `linears` are those of a form that have ranges. One
        that runs `alone`, with no others beside it, takes all cores, however small it is.
        """
        spec = branch.spec
        form, module = rewrite.cheapest(branch, self.encoder)
        model = self._piece((form, *_graph(spec)), module, slots=len(spec.reading.slots))
        round_linears(model, linears(form), ranges)
        return form, self._compiled(model, small=_small(spec, form) and not alone)

    def _compiled(self, model: Any, *, small: bool) -> Piece:
        return Piece(self._compile(model, 1 if small else self.threads), small)

    def _piece(self, structure: tuple[object, ...], module: nn.Module, *, slots: int) -> Any:
        """The model of something that gives logits from the states of so many texts."""
        width = self.encoder.width
        example = (*[torch.randn(2, 6, width) for _ in range(slots)], *[_ones(2, 6) for _ in range(slots)])
        return self._converter.convert(structure, module, example, states_out=False)

    def sample(self, rows: int, tokens: int) -> Callable[[], object]:
        """One trunk layer on random states, to be timed."""
        index = self.encoder.depth - 1
        request = self._trunk_layer(index).create_infer_request()
        states = np.random.default_rng(0).standard_normal((rows, tokens, self.encoder.width), dtype=np.float32)
        given = ov.Tensor(TYPES[self.dtype], ov.Shape(states.shape))
        _bits(given)[:] = states if self.dtype == "float32" else states.view(np.uint32) >> 16
        mask = ov.Tensor(np.ones((rows, tokens), dtype=np.bool_))
        return lambda: _infer(request, [given, mask])

    def _trunk(self) -> list[Compiled]:
        ids = torch.ones(2, 6, dtype=torch.int64)
        embed = self._converter.convert("embed", _Embed(self.encoder), (ids, ids, _ones(2, 6)), states_out=True)
        return [self._compile(embed, self.threads), *map(self._trunk_layer, range(self.encoder.depth))]

    def _trunk_layer(self, index: int) -> Compiled:
        layer = self.encoder.layers[index]
        return self._layer(layer, index, trunk_linears(layer, index), self.ranges)

    def _layer(self, layer: nn.Module, index: int, linears: dict[str, nn.Linear], ranges: Ranges) -> Compiled:
        """A layer in the place of the encoder's at `index`: its own, or a branch's."""
        # Layers of one family differ in little besides weights: the first in a convolution, some in their window.
        structure = ("layer", index == 0, getattr(layer, "attention_type", None))
        example = (torch.randn(2, 6, self.encoder.width), _ones(2, 6))
        model = self._converter.convert(structure, _Layer(self.encoder, layer, index), example, states_out=True)
        round_linears(model, linears, ranges)
        return self._compile(model, self.threads)

    def _compile(self, model: Any, threads: int, *, dtype: str | None = None) -> Compiled:
        return self._core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[dtype or self.dtype],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
            },
        )


class _Embed(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = [encoder]

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        return self._encoder[0].embed(ids, types, mask)


class _Layer(nn.Module):
    def __init__(self, encoder: Encoder, layer: nn.Module, index: int) -> None:
        super().__init__()
        self._encoder = [encoder]
        self.index = index
        self.layer = layer

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        encoder = self._encoder[0]
        return encoder.run(self.layer, self.index, states, encoder.context(mask, states.dtype))


_NOT_IN_GRAPH = {
    *("task", "labels", "positive", "metric", "max_tokens", "temperature", "trunk"),
    *("exits", "rule", "speeds", "scope"),
}


def _graph(spec: BranchSpec) -> list[object]:
    """All of a spec that a graph depends on: no names, no limits, nothing of what comes before or after."""
    return list(spec.model_dump(exclude=_NOT_IN_GRAPH).values())


def _graph_of_exit(spec: BranchSpec, one: ExitSpec) -> tuple[object, ...]:
    """All that the graph of one of its exits depends on, besides the encoder."""
    return "exit", one.form, spec.kind, spec.outputs, spec.mean, spec.std


def _small(spec: BranchSpec, form: str) -> bool:
    return form != "plain" and (spec.layers <= 1 or spec.latents > 0)


def _ones(rows: int, tokens: int) -> Tensor:
    return torch.ones(rows, tokens, dtype=torch.bool)


def _infer(request: Any, inputs: Sequence[Any]) -> Any:
    for position, tensor in enumerate(inputs):
        request.set_input_tensor(position, tensor)
    request.infer(share_outputs=True)  # else every output is copied, though nobody reads the copy
    return request.get_output_tensor(0)


def _bits(states: Any) -> NDArray[Any]:
    """A view of a tensor's elements: numpy has no bfloat16, and to move them none is needed."""
    array: NDArray[Any] = states.data
    return array.view(np.uint16) if array.dtype == np.float16 else array
