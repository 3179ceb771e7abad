"""Tensors of the Open Inference Protocol: texts out of a request, answers into a response.

A tensor travels in JSON (`data`) or as bytes behind the JSON (the binary tensor extension: little-endian, each BYTES
element led by its length in 4 bytes). Inputs are texts, shape [N] or [N, 1]. Every length is checked before it is used,
and the work is linear in the size of the request. Knows neither HTTP nor what the texts and numbers mean.

Notation: N rows, C labels.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.serving.errors import Invalid
from trunkline.serving.http import shown

_LENGTH = struct.Struct("<I")


def rows_of(name: str, shape: object) -> int:
    """N, from the shape of an input. Raises Invalid unless it is [N] or [N, 1] with at least one row."""
    sizes = shape if isinstance(shape, list) else []
    whole = all(type(size) is int for size in sizes)
    if whole and len(sizes) in (1, 2) and sizes[1:] in ([], [1]) and 0 < sizes[0] < 2**63:
        return int(sizes[0])
    found = f"[{', '.join(map(shown, sizes))}]" if 0 < len(sizes) < 5 else shown(shape)
    raise Invalid(f"input '{name}': shape must be [N] or [N, 1] with N at least 1; found {found}")


def texts_from_json(name: str, rows: int, shape: Sequence[int], data: object) -> list[str]:
    """N texts from `data`, flat or nested as its shape is. Raises Invalid for anything else."""
    if not isinstance(data, list):
        raise Invalid(f"input '{name}': data must be an array of strings; found {shown(data)}")
    if len(data) != rows:
        raise Invalid(f"input '{name}': data has {_elements(len(data))}, its shape {_elements(rows)}")
    nested = len(shape) == 2 and isinstance(data[0], list)
    texts: list[str] = []
    for row, value in enumerate(data):
        if nested and isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str):
            raise Invalid(f"input '{name}', row {row}: must be a string; found {shown(value)}")
        texts.append(value)
    return texts


def texts_from_binary(name: str, rows: int, data: memoryview) -> list[str]:
    """N texts from their bytes. Raises Invalid where the lengths do not add up or a text is not UTF-8."""
    if len(data) < rows * _LENGTH.size:
        raise Invalid(f"input '{name}': {len(data)} bytes cannot hold {_elements(rows)} of BYTES")
    texts: list[str] = []
    position = 0
    for row in range(rows):
        start = position + _LENGTH.size
        if start > len(data):
            raise Invalid(f"input '{name}': its bytes end after {_elements(row)}, its shape has {rows}")
        (length,) = _LENGTH.unpack_from(data, position)
        position = start + length
        if position > len(data):
            raise Invalid(f"input '{name}', row {row}: {length} bytes announced, {len(data) - start} left")
        texts.append(text_from_bytes(name, row, data[start:position]))
    if position < len(data):
        raise Invalid(f"input '{name}': {len(data) - position} bytes follow the last of {_elements(rows)}")
    return texts


def text_from_bytes(name: str, row: int, data: memoryview) -> str:
    """One text. Raises Invalid where it is not UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"input '{name}', row {row}: not UTF-8 at byte {error.start}: {error.reason}") from error


@dataclass(frozen=True)
class Tensor:
    """An output: `values` are N texts (datatype BYTES), or FP32 of shape (N,) or (N, C), NaN where there is none."""

    name: str
    shape: tuple[int, ...]
    values: Sequence[str] | NDArray[np.float32]

    @property
    def datatype(self) -> str:
        """The protocol's word for the type of an element."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    def described(self) -> dict[str, Any]:
        """Name, type and shape."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def to_json(self) -> list[Any]:
        """The elements, flat; null for NaN, which JSON cannot hold."""
        if not isinstance(self.values, np.ndarray):
            return list(self.values)
        return [value if math.isfinite(value) else None for value in self.values.ravel().tolist()]

    def to_binary(self) -> bytes:
        """The elements as bytes."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype("<f4").tobytes()
        return b"".join(_with_length(value) for value in self.values)


def _with_length(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


def _elements(count: int) -> str:
    return "1 element" if count == 1 else f"{count} elements"
