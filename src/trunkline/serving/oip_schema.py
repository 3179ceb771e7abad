"""What OpenAPI says about the routes of the Open Inference Protocol.

The routes read bodies of JSON and bytes by hand, so that their shapes are written here and not derived from types.
"""

from __future__ import annotations

import re
from typing import Any

from trunkline.serving.openapi import MEANINGS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def _object(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_ERROR = _object("error", error=_TEXT)
_PARAMETERS: Schema = {"type": "object"}
_DESCRIBED = {
    "name": _TEXT,
    "datatype": {"type": "string", "enum": ["BYTES", "FP32"]},
    "shape": _array({"type": "integer", "minimum": -1}),
    "parameters": _PARAMETERS,
}
_DURATION = _object("count ns", count=_COUNT, ns=_COUNT)
_DURATIONS = "success fail queue compute_input compute_infer compute_output cache_hit cache_miss"

SERVER = _object("name version extensions", name=_TEXT, version=_TEXT, extensions=_array(_TEXT))
LIVE = _object("live", live=_FLAG)
READY = _object("ready", ready=_FLAG)
MODEL_READY = _object("name ready", name=_TEXT, ready=_FLAG)
MODEL = _object(
    "name versions platform inputs outputs",
    name=_TEXT,
    versions=_array(_TEXT),
    platform=_TEXT,
    inputs=_array(_object("name datatype shape", **_DESCRIBED)),
    outputs=_array(_object("name datatype shape", **_DESCRIBED)),
)
_TENSOR_CONFIG = {
    "name": _TEXT,
    "data_type": {"type": "string", "enum": ["TYPE_STRING", "TYPE_FP32"]},
    "dims": _array({"type": "integer", "minimum": -1}),
}
CONFIG = _object(
    "name platform max_batch_size input output",
    name=_TEXT,
    platform=_TEXT,
    version_policy=_PARAMETERS,
    max_batch_size=_COUNT,
    input=_array(_object("name data_type dims optional", **_TENSOR_CONFIG, optional=_FLAG)),
    output=_array(_object("name data_type dims", **_TENSOR_CONFIG)),
)
INDEX = _array(_object("name version state reason", name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT))
STATISTICS = _object(
    "model_stats",
    model_stats=_array(
        _object(
            "name version last_inference inference_count execution_count inference_stats batch_stats",
            name=_TEXT,
            version=_TEXT,
            last_inference=_COUNT,
            inference_count=_COUNT,
            execution_count=_COUNT,
            inference_stats=_object(_DURATIONS, **dict.fromkeys(_DURATIONS.split(), _DURATION)),
            batch_stats=_array(_PARAMETERS),
        )
    ),
)

INDEX_REQUEST = _object("", ready=_optional(_FLAG))
CONTROL_REQUEST = _object("", parameters=_optional(_PARAMETERS))
NOTHING = _object("")
_INPUT = _object(
    "name datatype shape",
    name={"type": "string", "enum": ["text", "text_pair"]},
    datatype={"type": "string", "enum": ["BYTES"]},
    shape={"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer", "minimum": 1}},
    parameters=_optional(_object("", binary_data_size=_optional(_COUNT))),
    data=_optional(_array({"anyOf": [_TEXT, {**_array(_TEXT), "minItems": 1, "maxItems": 1}]})),
)
_OUTPUT = _object(
    "name",
    name=_TEXT,
    parameters=_optional(
        _object(
            "",
            binary_data=_optional(_FLAG),
            classification=_optional({"type": "integer", "minimum": 1}),
            speed=_optional({**_SHARE, "description": "For this output's task."}),
            keep=_optional({**_SHARE, "description": "For this output's task, in place of a speed."}),
        )
    ),
)
_REQUEST = _object(
    "inputs",
    id=_optional(_TEXT),
    parameters=_optional(
        _object(
            "",
            binary_data_output=_optional(_FLAG),
            timeout=_optional({**_COUNT, "description": "Microseconds; 0 for none."}),
            speed=_optional({**_SHARE, "description": "0 is off, and the default."}),
            keep=_optional({**_SHARE, "description": "The fraction of quality to keep, in place of a speed."}),
        )
    ),
    inputs={**_array(_INPUT), "minItems": 1},
    outputs=_optional(_array(_OUTPUT)),
)
_EXAMPLE = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["wake me at seven", "play some music"]}],
    "outputs": [{"name": "intent"}, {"name": "intent.scores"}],
}
_RESPONSE = _object(
    "model_name model_version outputs",
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    outputs=_array(_object("name datatype shape", **_DESCRIBED, data=_array({}))),
)
_BYTES: Schema = {"schema": {"type": "string", "format": "binary"}}


def answers(schema: Schema, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses`: what comes with 200, and the errors."""
    found: dict[int | str, dict[str, Any]] = {200: {"description": MEANINGS[200], "content": _json(schema)}}
    for status in statuses:
        # What is a 422 on the other wires is a 400 here.
        found[status] = {"description": MEANINGS[422 if status == 400 else status], "content": _json(_ERROR)}
    return found


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


INFER_ANSWERS = answers(_RESPONSE, 400, 401, 404, 408, 413, 415, 429, 503, 504)
INFER_ANSWERS[200]["content"]["application/octet-stream"] = _BYTES
"""FastAPI's `responses` for inference."""


def infer(path: str) -> dict[str, Any]:
    """FastAPI's `openapi_extra` for inference at a path."""
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "schema": _COUNT,
        "description": "Bytes of JSON, where bytes of tensors follow; 0 for a body that is one text.",
    }
    content = {"application/json": {"schema": _REQUEST, "example": _EXAMPLE}, "application/octet-stream": _BYTES}
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [*path_parameters(path), header],
    }


def body(schema: Schema) -> dict[str, Any]:
    """FastAPI's `openapi_extra` for a body that may be left out."""
    return {"requestBody": {"required": False, "content": _json(schema)}}


def path_parameters(path: str) -> list[dict[str, Any]]:
    """OpenAPI's parameters for the names in braces of a path."""
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
