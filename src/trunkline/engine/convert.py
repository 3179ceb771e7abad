"""PyTorch modules to OpenVINO models, by one conversion for all modules of one structure.

Tracing a module takes seconds, and the branches of a bundle differ in weights only. So a copy with marked weights is
converted once; the marks tell which constant of the graph is which parameter, and each further module of the structure
gets a clone with its own weights. A graph may have folded weights together, so the first clone of every structure is
compared with its module; where they differ, each module of that structure is converted, and compared, by itself.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.engine.runtime import PrePostProcessor, TorchScriptPythonDecoder, ops, ov
from trunkline.errors import BundleError

Model = Any  # an openvino.Model; the package is only partly typed

EQUAL = 1e-4
"""Most that float32 outputs may differ from the module's, in units of the largest, where that is above 1."""
_TYPES = {torch.float32: ov.Type.f32, torch.int64: ov.Type.i64, torch.bool: ov.Type.boolean}


@dataclass(frozen=True)
class _Constant:
    """Where a parameter stands in a graph: the constant's name, its shape there, and what of the parameter it holds."""

    name: str
    shape: tuple[int, ...]
    part: str


@dataclass(frozen=True)
class _Template:
    model: Model
    constants: Mapping[str, Sequence[_Constant]]  # parameter -> the constants that hold it


class Converter:
    """Makes OpenVINO models of modules that share one `encoder`.

    Inputs are the module's, with any number of rows and tokens; float ones, which are states, have element type
    `states`, and so has the output where it is states too.
    """

    def __init__(self, encoder: nn.Module, states: ov.Type) -> None:
        self.encoder = encoder
        self.states = states
        self._templates: dict[Hashable, _Template | None] = {}

    def convert(self, structure: Hashable, module: nn.Module, example: Sequence[Tensor], *, states_out: bool) -> Model:
        """The model of `module`. Modules of equal `structure` differ in nothing but weights.

        Raises BundleError where the model does not compute what the module does.
        """
        if structure not in self._templates:
            # The encoder is no part of the module, though the module refers to it.
            marked = copy.deepcopy(module, {id(self.encoder): self.encoder})
            _mark(marked)
            template = _matched(_trace(marked, example), marked)
            whole = all(template.constants.values())  # else a weight was folded into something else, and stays marked
            good = whole and _equal(_filled(template, module), module, example)
            self._templates[structure] = template if good else None
        found = self._templates[structure]
        if found is not None:
            return self._typed(_filled(found, module), example, states_out)
        model = _trace(module, example)
        if not _equal(model, module, example):
            raise BundleError(f"OpenVINO computes something else than PyTorch for {structure}")
        return self._typed(model, example, states_out)

    def _typed(self, model: Model, example: Sequence[Tensor], states_out: bool) -> Model:
        if self.states == ov.Type.f32:
            return model
        steps = PrePostProcessor(model)
        for position, tensor in enumerate(example):
            if tensor.dtype == torch.float32:
                steps.input(position).tensor().set_element_type(self.states)
        if states_out:
            steps.output(0).tensor().set_element_type(self.states)
        return steps.build()


def _trace(module: nn.Module, example: Sequence[Tensor]) -> Model:
    shapes = [([-1, -1, *tensor.shape[2:]], _TYPES[tensor.dtype]) for tensor in example]
    inputs = tuple(example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how OpenVINO traces, and what a trace fixes, is checked by its numbers
        # Not traced a second time to compare both: `_equal` compares the model with the module, on another shape.
        traced = TorchScriptPythonDecoder(module.eval(), example_input=inputs, trace_kwargs={"check_trace": False})
        return ov.convert_model(traced, example_input=inputs, input=shapes)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}


def _mark(module: nn.Module) -> None:
    """Give every weight values of its own."""
    generator = torch.Generator().manual_seed(0)
    for tensor in _weights(module).values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def _matched(model: Model, marked: nn.Module) -> _Template:
    constants: dict[bytes, list[tuple[str, tuple[int, ...]]]] = {}
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.f32:
            constants.setdefault(op.data.tobytes(), []).append((op.get_friendly_name(), tuple(op.data.shape)))
    found: dict[str, list[_Constant]] = {}
    for name, tensor in _weights(marked).items():
        found[name] = [
            _Constant(*place, part)
            for part, values in _parts(tensor.numpy()).items()
            for place in constants.get(values.tobytes(), ())
        ]
    return _Template(model, found)


def _parts(values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What a graph may hold of a parameter: all of it, all of it transposed, or rows by themselves (of few)."""
    found = {"whole": values}
    if values.ndim == 2 and min(values.shape) > 1:
        found["transposed"] = np.ascontiguousarray(values.T)
        found |= {f"row {i}": row for i, row in enumerate(values)} if len(values) <= 2 else {}
    return found


def _filled(template: _Template, module: nn.Module) -> Model:
    model = template.model.clone()
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    for name, tensor in _weights(module).items():
        parts = _parts(tensor.numpy()) if template.constants[name] else {}
        for place in template.constants[name]:
            new = ops.constant(parts[place.part].reshape(place.shape))
            constants[place.name].output(0).replace(new.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _equal(model: Model, module: nn.Module, example: Sequence[Tensor]) -> bool:
    """Whether the model computes what the module does, on another shape than that of the example."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for tensor in example:
        shape = (tensor.shape[0] + 1, tensor.shape[1] + 3, *tensor.shape[2:])
        if tensor.dtype == torch.float32:
            inputs.append(torch.randn(shape, generator=generator))
        elif tensor.dtype == torch.bool:
            inputs.append(torch.arange(shape[1])[None, :] < torch.arange(shape[1], shape[1] - shape[0], -1)[:, None])
        else:
            inputs.append(torch.randint(2, 9, shape, generator=generator) if not inputs else torch.zeros(shape).long())
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([tensor.numpy() for tensor in inputs])[0]
    with torch.no_grad():
        expected = module(*inputs).numpy()
    mask = inputs[-1].numpy()
    if expected.ndim == 3 and expected.shape[:2] == mask.shape:  # what stands at padding means nothing
        found, expected = found[mask], expected[mask]
    return bool(np.abs(found - expected).max() <= EQUAL * max(1.0, np.abs(expected).max()))
