"""Requests of the Open Inference Protocol, read from the bodies of HTTP requests.

A body of inference is JSON, JSON followed by the bytes of tensors (the binary tensor extension: a header gives the
length of the JSON), or nothing but one text (that header is 0). Knows the names of a model's inputs and nothing else
about models. Raises Invalid for whatever it cannot read, and says where. Keys and parameters that it does not know are
ignored, as the protocol has it; `null` stands for a key that is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.errors import unknown
from trunkline.serving.dials import given
from trunkline.serving.errors import Invalid, TooLarge
from trunkline.serving.http import parse, shown
from trunkline.serving.oip_tensors import rows_of, text_from_bytes, texts_from_binary, texts_from_json

HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Wanted:
    """An output asked for: as bytes or as JSON, how many classes of the classification extension (0: none), and its
    task's speed or keep, where they are not those of the request.
    """

    name: str
    binary: bool
    classes: int = 0
    speed: float | None = None
    keep: float | None = None


@dataclass(frozen=True)
class InferRequest:
    """`inputs` are the texts by name, N each. `outputs` is empty where none are named; `binary` is for those."""

    id: str | None
    inputs: Mapping[str, list[str]]
    outputs: tuple[Wanted, ...]
    binary: bool
    deadline_ms: float | None = None
    speed: float | None = None
    keep: float | None = None


def read_request(body: bytes, json_length: str | None, known: Sequence[str], *, items: int) -> InferRequest:
    """Read a body of at most `items` rows, else TooLarge.

    `json_length` is the value of the `HEADER` as sent, `known` are the names of the model's inputs.
    """
    length = len(body) if json_length is None else _json_length(json_length, len(body))
    if json_length is not None and length == 0:
        return _raw(body, known)
    request = _request(body[:length])
    parameters = _object("parameters", request.get("parameters"))
    binary = _boolean("parameter 'binary_data_output'", parameters.get("binary_data_output"), False)
    return InferRequest(
        id=_text("id", request.get("id")) if request.get("id") is not None else None,
        inputs=_inputs(request.get("inputs"), memoryview(body)[length:], known, items),
        outputs=_outputs(request.get("outputs"), binary),
        binary=binary,
        deadline_ms=_deadline(parameters.get("timeout")),
        speed=given("parameter 'speed'", parameters.get("speed")),
        keep=given("parameter 'keep'", parameters.get("keep")),
    )


def read_index(body: bytes) -> bool:
    """Whether a request for the repository's index, which may be empty, asks only for what is ready."""
    request = _request(body) if body else {}
    return _boolean("ready", request.get("ready"), False)


def check_control(body: bytes) -> None:
    """Check the body of a request to load or unload, which may be empty; none of its parameters matters here."""
    request = _request(body) if body else {}
    _object("parameters", request.get("parameters"))


def _request(body: bytes) -> dict[str, Any]:
    value = parse(body)
    if not isinstance(value, dict):
        raise Invalid(f"a request must be an object; found {shown(value)}")
    return value


def _json_length(value: str, size: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise Invalid(f"{HEADER} must be a number of bytes; found {shown(value)}")
    if int(value) > size:
        raise Invalid(f"{HEADER} is {value}, but the body has {size} bytes")
    return int(value)


def _raw(body: bytes, known: Sequence[str]) -> InferRequest:
    if len(known) != 1:
        raise Invalid(f"a body without JSON needs a model with one input; this one has {', '.join(known)}")
    text = text_from_bytes(known[0], 0, memoryview(body))
    return InferRequest(id=None, inputs={known[0]: [text]}, outputs=(), binary=True)


def _inputs(tensors: Any, tail: memoryview, known: Sequence[str], items: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    position = 0
    for place, tensor in enumerate(_array("inputs", tensors)):
        where = f"inputs[{place}]"
        tensor = _object(where, tensor)
        name = _text(f"{where}: name", tensor.get("name"))
        if name not in known:
            raise Invalid(unknown("input", name, known))
        if name in found:
            raise Invalid(f"input '{name}' is given twice")
        if tensor.get("datatype") != "BYTES":
            raise Invalid(f"input '{name}': datatype must be \"BYTES\"; found {shown(tensor.get('datatype'))}")
        rows = rows_of(name, tensor.get("shape"))
        if rows > items:
            raise TooLarge(f"input '{name}' has {rows:,} rows; a request holds at most {items:,}")
        parameters = _tensor_parameters(f"input '{name}'", tensor)
        size, data = parameters.get("binary_data_size"), tensor.get("data")
        if (size is None) == (data is None):
            raise Invalid(f"input '{name}': give either data or parameters.binary_data_size")
        if size is None:
            found[name] = texts_from_json(name, rows, tensor["shape"], data)
            continue
        left = len(tail) - position
        if type(size) is not int or not 0 <= size <= left:
            raise Invalid(
                f"input '{name}': binary_data_size must be within the {left} bytes left behind the JSON; "
                f"found {shown(size)} (the header {HEADER} says where the JSON ends)"
            )
        found[name] = texts_from_binary(name, rows, tail[position : position + size])
        position += size
    if position < len(tail):
        raise Invalid(f"{len(tail) - position} bytes follow the last input")
    missing = known[0]
    if missing not in found:
        raise Invalid(f"input '{missing}' is missing (inputs: {', '.join(known)})")
    if len({len(texts) for texts in found.values()}) > 1:
        raise Invalid(f"inputs differ in rows: {', '.join(f'{name} {len(texts)}' for name, texts in found.items())}")
    return found


def _outputs(tensors: Any, binary: bool) -> tuple[Wanted, ...]:
    found: dict[str, Wanted] = {}
    for place, tensor in enumerate(_array("outputs", tensors)):
        where = f"outputs[{place}]"
        tensor = _object(where, tensor)
        name = _text(f"{where}: name", tensor.get("name"))
        where = f"output '{name[:80]}'"
        if name in found:
            raise Invalid(f"{where} is asked for twice")
        parameters = _tensor_parameters(where, tensor)
        classes = parameters.get("classification")
        if classes is not None and (type(classes) is not int or classes < 1):
            raise Invalid(f"{where}: classification must be a number of classes; found {shown(classes)}")
        as_bytes = _boolean(f"{where}: binary_data", parameters.get("binary_data"), binary)
        speed, keep = (given(f"{where}: {key}", parameters.get(key)) for key in ("speed", "keep"))
        found[name] = Wanted(name, as_bytes, classes or 0, speed, keep)
    return tuple(found.values())


def _tensor_parameters(where: str, tensor: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _object(f"{where}: parameters", tensor.get("parameters"))
    if parameters.get("shared_memory_region") is not None:
        raise Invalid(f"{where}: shared memory is not supported; send the data in the request")
    return parameters


def _deadline(microseconds: Any) -> float | None:
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) is not int or not 0 < microseconds < 2**63:
        raise Invalid(f"parameter 'timeout' must be a whole number of microseconds; found {shown(microseconds)}")
    return microseconds / 1000


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid(f"{where} must be a string; found {shown(value)}")
    return value


def _boolean(where: str, value: Any, default: bool) -> bool:
    if value is not None and not isinstance(value, bool):
        raise Invalid(f"{where} must be true or false; found {shown(value)}")
    return default if value is None else value


def _array(where: str, value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise Invalid(f"{where} must be an array; found {shown(value)}")
    return value or []


def _object(where: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise Invalid(f"{where} must be an object; found {shown(value)}")
    return value or {}
