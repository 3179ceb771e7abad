"""Linear layers of an OpenVINO model in 8-bit integers: weights per output channel, inputs by their calibrated range.

The runtime sees a rounding of the input and integer weights, and multiplies integers; all else of the model (norms,
sums, attention's own products) stays in the float type that it is compiled for. Knows graphs and ranges; nothing of
how ranges are found or kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trunkline.engine.ranges import STEPS, Range, Ranges, integer_weights
from trunkline.engine.runtime import ops
from trunkline.errors import BundleError

Model = Any  # an openvino.Model
Output = Any  # an output of one of its operations


def round_linears(model: Model, linears: Mapping[str, nn.Linear], ranges: Ranges) -> None:
    """Make the products of those layers that have a range integer ones, in place.

    Raises BundleError where a range does not fit its layer, or the model has no product with a layer's weight.
    """
    missing = linears.keys() & ranges.keys()
    if not missing:
        return
    names = {linears[name].weight.detach().numpy().tobytes(): name for name in missing}
    rounded: dict[tuple[str, int, bytes], Output] = {}  # by input and range: layers that read the same round it once
    for product in [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]:
        weight = product.input(1).get_source_output().get_node()
        if weight.get_type_name() != "Constant" or not product.get_transpose_b():
            continue
        name = names.get(weight.data.tobytes())
        source = product.input(0).get_source_output()
        # DeBERTa's layers also project its table of positions, whose numbers of rows are fixed: nothing to gain there.
        if name is None or source.get_partial_shape()[1].is_static:
            continue
        found = ranges[name]
        if found.scale.shape != (linears[name].in_features,):
            raise BundleError(f"the int8 range of '{name}' is of another width than the layer")
        key = (source.get_node().get_friendly_name(), source.get_index(), _bytes(found))
        if key not in rounded:
            rounded[key] = _rounded(source, found)
        product.input(0).replace_source_output(rounded[key])
        product.input(1).replace_source_output(_integers(weight.data, found))
        missing -= {name}
    if missing:
        raise BundleError(f"OpenVINO's model has no product for int8 of {', '.join(sorted(missing))}")
    model.validate_nodes_and_infer_types()


def _bytes(found: Range) -> bytes:
    return np.array([found.low, found.high], np.float32).tobytes() + found.scale.tobytes()


def _rounded(source: Output, found: Range) -> Output:
    if (found.scale != 1).any():
        source = ops.multiply(source, ops.constant((1 / found.scale).reshape(1, 1, -1))).output(0)
    low, high = ops.constant(np.float32(found.low)), ops.constant(np.float32(found.high))
    return ops.fake_quantize(source, low, high, low, high, STEPS + 1).output(0)


def _integers(weight: NDArray[np.float32], found: Range) -> Output:
    values, steps = integer_weights(weight * found.scale)
    return ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(steps)).output(0)
