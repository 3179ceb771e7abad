"""What int8 needs to know of each linear layer, and its file: how the layer's input is rounded to 256 steps.

One file holds the ranges of the trunk, and one those of each branch that has any: both travel with what they were
calibrated for. Knows which layers have ranges, and plain numbers in safetensors; nothing of graphs, nor of how ranges
are found.

Notation: H width of a layer's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from trunkline.atomic import write_bytes
from trunkline.errors import BundleError
from trunkline.model.branch import Branch

STEPS = 255
"""The largest of the 8-bit values that an input is rounded to."""
_LARGEST = 127  # of a weight, either way


@dataclass(frozen=True)
class Range:
    """An input x is divided by `scale` (H,), which its weights take on, cut to [low, high] and rounded. `low` <= 0 <=
    `high`, and 0 is one of the steps.
    """

    low: float
    high: float
    scale: NDArray[np.float32]


Ranges = Mapping[str, Range]
"""By the layer's name: "3.output.dense" in the trunk, "layers.0.output.dense" in a branch."""


def write_ranges(ranges: Ranges, path: Path) -> None:
    """Write ranges to one file; equal ranges give equal bytes."""
    tensors = {f"{name}.scale": found.scale for name, found in ranges.items()}
    tensors |= {f"{name}.range": np.array([found.low, found.high], np.float32) for name, found in ranges.items()}
    write_bytes(path, save(tensors))


def read_ranges(path: Path) -> dict[str, Range]:
    """Read what `write_ranges` wrote. Raises BundleError."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read as int8 ranges: {error}") from error
    found = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        scale, ends = tensors.get(f"{name}.scale"), tensors.get(f"{name}.range")
        if scale is None or ends is None or scale.ndim != 1 or ends.shape != (2,):
            raise BundleError(f"{path} holds no whole range of '{name}'")
        low, high = float(ends[0]), float(ends[1])
        if not (np.isfinite(scale).all() and (scale > 0).all() and -np.inf < low <= 0 <= high < np.inf and low < high):
            raise BundleError(f"{path}: the range of '{name}' is none: {low} to {high}")
        found[name] = Range(low, high, scale.astype(np.float32))
    return found


def integer_weights(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights (C, H) as integers and the step of each output channel, (C, 1)."""
    steps = np.maximum(np.abs(weight).max(1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(_LARGEST)
    return np.rint(weight / steps).astype(np.int8), steps


def trunk_linears(layer: nn.Module, index: int) -> dict[str, nn.Linear]:
    """The linear layers of trunk layer `index`, by the names that their ranges have."""
    return {f"{index}.{name}": part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}


def own_linears(branch: Branch, own: int) -> dict[str, nn.Linear]:
    """The linear layers of a branch's own layer `own`, likewise."""
    named = branch.layers[own].named_modules()
    return {f"layers.{own}.{name}": part for name, part in named if isinstance(part, nn.Linear)}


def branch_linears(branch: Branch, form: str) -> dict[str, nn.Linear]:
    """Those of a branch's own layers that run for every token; in a cheap form (see `rewrite`) the last does not, and
    of latents none does.
    """
    if branch.spec.latents:
        return {}
    whole = range(len(branch.layers) - (form != "plain"))
    return {name: part for own in whole for name, part in own_linears(branch, own).items()}
