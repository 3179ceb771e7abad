"""int8 ranges from texts: what linear layers read of them, and the rounding that changes their outputs least.

Activations of encoders have a few channels that are far larger than all others, so that one range for all wastes most
of its steps on them. As in SmoothQuant (Xiao et al. 2023, section 4), a power of each channel's reach moves from the
activation into the weights. Which power, and how much of the tail is cut, is tried for every layer on a sample of
tokens. A trunk's ranges depend on the texts given; a branch's on its own texts and the trunk in float32, never on
other branches. Knows modules and inputs; nothing of files or engines.

Notation: B rows, T tokens, H width of a layer's input, n sampled tokens, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.engine import rewrite
from trunkline.engine.base import Input, ItemError, fault
from trunkline.engine.batching import texts_of, tokenize
from trunkline.engine.ranges import STEPS, Range, branch_linears, integer_weights, trunk_linears
from trunkline.model.branch import Branch, BranchSpec
from trunkline.model.tokens import TokenBatch, TokenRow
from trunkline.model.trunk import Trunk

Floats = NDArray[np.float32]

SAMPLE = 2048
"""Tokens that a layer's range is made from."""
_TRIED = 8
"""Of that many sampled tokens one stands in the products that are compared; all of them make the reach of a channel."""
_ROWS = 16
_POWERS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
_TAILS = (0.0, 1e-5, 1e-4, 1e-3)
_LEAST = 1e-5  # of a channel's reach: one that is always 0 scales nothing


@torch.no_grad()
def trunk_ranges(trunk: Trunk, texts: Sequence[tuple[BranchSpec, Sequence[Input]]]) -> dict[str, Range]:
    """Ranges of every trunk layer, from inputs as the tasks of these branches read them."""
    encoder = trunk.encoder
    rows = [row for spec, items in texts for read in _read(trunk, spec, items) for row in read]
    batches = _batches(trunk, sorted(rows, key=len))
    chosen = _chosen([batch.mask for batch in batches])
    states = [encoder.embed(batch.ids, batch.types, batch.mask) for batch in batches]
    ranges: dict[str, Range] = {}
    for index, layer in enumerate(encoder.layers):
        linears = trunk_linears(layer, index)
        with _watched(linears) as seen:
            for number, batch in enumerate(batches):
                seen.chosen = chosen[number]
                context = encoder.context(batch.mask, states[number].dtype)
                states[number] = encoder.run(layer, index, states[number], context)
        ranges |= _fitted(linears, seen)
    return ranges


@torch.no_grad()
def branch_ranges(trunk: Trunk, branch: Branch, items: Sequence[Input]) -> dict[str, Range]:
    """Ranges of a branch's layers that run for every token, from inputs of its own; empty where it has none."""
    spec = branch.spec
    linears = branch_linears(branch, rewrite.cheapest(branch, trunk.encoder)[0])
    if not linears:
        return {}
    reads = sorted(_read(trunk, spec, items), key=lambda rows: max(map(len, rows)))
    slots = [_batches(trunk, rows) for rows in zip(*reads, strict=True)]  # per slot, the same inputs side by side
    batches = list(zip(*slots, strict=True))
    chosen = _chosen([torch.cat([batch.mask for batch in batch_of], dim=1) for batch_of in batches])
    with _watched(linears) as seen:
        for batch_of, sample in zip(batches, chosen, strict=True):
            states = [trunk.states(batch, [spec.fork])[spec.fork] for batch in batch_of]
            seen.chosen = sample
            branch(trunk.encoder, states, [batch.mask for batch in batch_of])
    return _fitted(linears, seen)


def _read(trunk: Trunk, spec: BranchSpec, items: Sequence[Input]) -> list[tuple[TokenRow, ...]]:
    """The token rows of each input that the task can read, one per slot."""
    slots = spec.reading.slots
    readable = [item for item in items if fault(item, slots) is None]
    reader = trunk.encoder.reader
    columns = [
        tokenize(reader, [texts_of(item, slot) for item in readable], spec.max_tokens, offsets=False) for slot in slots
    ]
    rows = zip(*columns, strict=True)
    return [tuple(row for row in read if isinstance(row, TokenRow)) for read in rows if _whole(read)]


def _whole(read: Sequence[TokenRow | ItemError]) -> bool:
    return all(isinstance(row, TokenRow) for row in read)


def _batches(trunk: Trunk, rows: Sequence[TokenRow]) -> list[TokenBatch]:
    return [trunk.encoder.collate(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]


def _chosen(masks: Sequence[Tensor]) -> list[Tensor]:
    """At most `SAMPLE` of all real tokens, as a mask (B, T) per batch."""
    share = min(1.0, SAMPLE / max(1, sum(int(mask.sum()) for mask in masks)))
    generator = torch.Generator().manual_seed(0)
    return [mask.bool() & (torch.rand(mask.shape, generator=generator) < share) for mask in masks]


class _Seen:
    """The inputs that linear layers read at the chosen tokens (B, T) of a batch."""

    def __init__(self) -> None:
        self.chosen = torch.zeros(0, 0, dtype=torch.bool)
        self.inputs: dict[str, list[Tensor]] = {}

    def note(self, name: str, states: Tensor) -> None:
        """One call of a layer; one that reads no tokens, as of a table of positions, is left aside."""
        if states.shape[:2] == self.chosen.shape:
            self.inputs.setdefault(name, []).append(states[self.chosen])  # (n, H)


@contextmanager
def _watched(linears: Mapping[str, nn.Linear]) -> Iterator[_Seen]:
    seen = _Seen()
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: seen.note(name, args[0]))
        for name, linear in linears.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _fitted(linears: Mapping[str, nn.Linear], seen: _Seen) -> dict[str, Range]:
    """One range per layer; layers that read the same, as queries, keys and values do, share theirs."""
    alike: dict[bytes, list[str]] = {}
    inputs = {name: torch.cat(parts).numpy() for name, parts in seen.inputs.items()}
    for name, values in inputs.items():
        alike.setdefault(values.tobytes(), []).append(name)
    ranges: dict[str, Range] = {}
    for names in alike.values():
        weights = [linears[name].weight.detach().numpy() for name in names]
        ranges |= dict.fromkeys(names, fit(inputs[names[0]], weights))
    return ranges


def fit(inputs: Floats, weights: Sequence[Floats]) -> Range:
    """The range of inputs (n, H) that changes their products with weights (C, H) least, by relative squared error."""
    reach = np.maximum(np.abs(inputs).max(0), _LEAST)  # (H,)
    weight = np.maximum(np.max([np.abs(values).max(0) for values in weights], axis=0), _LEAST)  # (H,)
    tried = inputs[::_TRIED]
    exact = [tried @ values.T for values in weights]

    def error(found: Range) -> float:
        read = rounded(tried, found)
        total = 0.0
        for values, expected in zip(weights, exact, strict=True):
            integers, steps = integer_weights(values * found.scale)
            off = read @ (integers * steps).T - expected
            total += float(np.square(off).sum()) / max(float(np.square(expected).sum()), _LEAST)
        return total

    scales = []
    for power in _POWERS:
        scale = reach**power / weight ** (1 - power) if power else np.ones_like(reach)
        scales.append((scale / np.exp(np.log(scale).mean())).astype(np.float32))
    smoothed = min((_range(inputs, scale, 0.0) for scale in scales), key=error)
    return min((_range(inputs, smoothed.scale, tail) for tail in _TAILS), key=error)


def _range(inputs: Floats, scale: Floats, tail: float) -> Range:
    """From the `tail` quantile of the scaled inputs to that from above, moved so that 0 is one of the steps."""
    scaled = inputs / scale
    ends = np.quantile(scaled, [tail, 1 - tail]) if tail else (scaled.min(), scaled.max())
    low, high = (float(end) for end in ends)
    low, high = min(low, 0.0), max(high, 0.0, low + _LEAST)
    step = (high - low) / STEPS
    zero = round(-low / step)
    return Range(-zero * step, (STEPS - zero) * step, scale)


def rounded(inputs: Floats, found: Range) -> Floats:
    """What integer products read of inputs (n, H), in units of `scale`."""
    step = (found.high - found.low) / STEPS
    values: Floats = np.rint(np.clip(inputs / found.scale, found.low, found.high) / step) * np.float32(step)
    return values
