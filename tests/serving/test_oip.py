"""The Open Inference Protocol over the app: what models give, how tensors travel, and what is refused."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving.fakes import MODEL, FakeService, made_up
from starlette.testclient import TestClient

from trunkline.engine import Input
from trunkline.project.tasks import Answer
from trunkline.serving.app import Settings, create_app
from trunkline.serving.errors import (
    DeadlineExceeded,
    Invalid,
    NotFound,
    Overloaded,
    Refusal,
    TooLarge,
    Unavailable,
)
from trunkline.serving.keys import Keys
from trunkline.serving.limits import Limits
from trunkline.serving.oip_tensors import Tensor, texts_from_binary
from trunkline.serving.replies import Reply

KEY = {"Authorization": "Bearer secret"}
HEADER = "Inference-Header-Content-Length"
TEXTS = ["wake me at seven", "play some music", "東京 wird kälter"]
PAIRS = ["set an alarm", "silence please", "is it cold?"]


class Wire:
    """A client of the app over a fake service."""

    def __init__(self, service: FakeService, client: TestClient) -> None:
        self.service = service
        self.client = client

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"/v2{path}")

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/v2{path}", content=content, headers=named)

    def infer(self, model: str, body: Any, **headers: str) -> httpx.Response:
        return self.post(f"/models/{model}/infer", body, **headers)

    def outputs(self, model: str, body: Any) -> dict[str, dict[str, Any]]:
        """Outputs by name of a request that succeeds."""
        response = self.infer(model, body)
        assert response.status_code == 200, response.text
        return {output["name"]: output for output in response.json()["outputs"]}


def new_wire() -> Wire:
    service = FakeService(limits=Limits(items=64))
    return Wire(service, TestClient(create_app(service, Settings(keys=Keys(admin="secret")))))


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = new_wire()
    with made.client:
        yield made


@pytest.fixture(scope="module")
def steady() -> Iterator[Wire]:
    """One for all tests that change nothing in the service."""
    made = new_wire()
    with made.client:
        yield made


def tensor(name: str, texts: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": list(texts), **more}


def asking(*outputs: str, texts: Sequence[str] = TEXTS, pairs: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    inputs = [tensor("text", texts), *([tensor("text_pair", pairs)] if pairs else [])]
    return {"inputs": inputs, "outputs": [{"name": name} for name in outputs], **more}


def packed(texts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def binary(tail: bytes, *, rows: int = 1, size: int | None = None, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A body with one binary input, and the header that it needs."""
    parameters = {"binary_data_size": len(tail) if size is None else size}
    head = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [rows], "parameters": parameters}], **more}
    data = json.dumps(head).encode()
    return data + tail, {HEADER: str(len(data))}


def expected(task: str, texts: Sequence[str] = TEXTS, pairs: Sequence[str] = PAIRS) -> list[Answer]:
    found = [made_up(MODEL.tasks[task], Input(*row)) for row in zip(texts, pairs, strict=True)]
    assert all(isinstance(answer, Answer) for answer in found)
    return found  # type: ignore[return-value]


# What models there are and what they give


def test_the_bundle_and_every_task_are_models(wire: Wire) -> None:
    listed = wire.post("/repository/index").json()
    assert [(entry["name"], entry["version"]) for entry in listed] == [
        ("support", "ab" * 8),
        *((name, task.branch) for name, task in MODEL.tasks.items()),
    ]
    for entry in listed:
        described = wire.get(f"/models/{entry['name']}/versions/{entry['version']}").json()
        assert described == wire.get(f"/models/{entry['name']}").json()
        assert described["versions"] == [entry["version"]]
        assert wire.get(f"/models/{entry['name']}/ready").json() == {"name": entry["name"], "ready": True}


def test_metadata_names_inputs_outputs_shapes_and_labels(wire: Wire) -> None:
    bundle = wire.get("/models/support").json()
    assert bundle["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1]},
        {"name": "text_pair", "datatype": "BYTES", "shape": [-1], "parameters": {"optional": True}},
    ]
    same = wire.get("/models/same").json()
    assert same["inputs"][1]["parameters"] == {"optional": False}
    about = {"task": "same", "kind": "relevance", "labels": ["no", "yes"], "positive": "yes"}
    assert same["outputs"] == [
        {"name": "same", "datatype": "BYTES", "shape": [-1], "parameters": about},
        {"name": "same.scores", "datatype": "FP32", "shape": [-1, 2], "parameters": about},
        {"name": "same.error", "datatype": "BYTES", "shape": [-1], "parameters": about},
    ]
    assert [tensor["name"] for tensor in wire.get("/models/intent").json()["inputs"]] == ["text"]
    urgency = wire.get("/models/urgency").json()["outputs"]
    assert [(output["name"], output["datatype"]) for output in urgency] == [
        ("urgency", "FP32"),
        ("urgency.error", "BYTES"),
    ]


def test_every_output_is_as_its_metadata_says(wire: Wire) -> None:
    described = wire.get("/models/support").json()["outputs"]
    found = wire.outputs("support", asking(*(output["name"] for output in described), pairs=PAIRS))
    for output in described:
        tensor = found[output["name"]]
        assert tensor["datatype"] == output["datatype"]
        assert tensor["shape"] == [3, *output["shape"][1:]]
        assert len(tensor["data"]) == np.prod(tensor["shape"])


def test_outputs_say_what_the_tasks_answer(wire: Wire) -> None:
    names = ["intent", "intent.scores", "same", "same.scores", "slots", "tone", "tone.scores", "urgency"]
    found = wire.outputs("support", asking(*names, pairs=PAIRS))
    assert list(found) == names
    for task in ("intent", "same"):
        assert found[task]["data"] == [answer.label for answer in expected(task)]
    for task in ("intent", "same", "tone"):
        flat = [score for answer in expected(task) for score in answer.scores.values()]
        assert found[f"{task}.scores"]["data"] == pytest.approx(flat, abs=1e-6)
    assert [json.loads(row) for row in found["tone"]["data"]] == [answer.labels for answer in expected("tone")]
    assert found["urgency"]["data"] == pytest.approx([answer.score for answer in expected("urgency")])
    spans = [json.loads(row) for row in found["slots"]["data"]]
    assert any(spans)
    for text, row in zip(TEXTS, spans, strict=True):
        assert all(text[span["start"] : span["end"]] == span["text"] for span in row)


def test_the_outputs_asked_for_choose_the_tasks_that_run(wire: Wire) -> None:
    wire.outputs("support", asking("urgency", "intent.scores", "intent"))
    (inputs, tasks, _) = wire.service.asked.pop()
    assert tasks == ["urgency", "intent"]
    assert inputs == [Input(text) for text in TEXTS]
    wire.outputs("same", asking(pairs=PAIRS))
    (inputs, tasks, _) = wire.service.asked.pop()
    assert tasks == ["same"]
    assert inputs == [Input(*row) for row in zip(TEXTS, PAIRS, strict=True)]


def test_without_names_every_loaded_task_that_reads_the_inputs_answers_but_no_errors(wire: Wire) -> None:
    wire.post("/repository/models/tone/unload", **KEY)
    assert list(wire.outputs("support", asking())) == ["intent", "intent.scores", "slots", "urgency"]
    paired = wire.outputs("support", asking(pairs=PAIRS))
    assert list(paired)[:4] == ["follows", "follows.scores", "intent", "intent.scores"]
    assert "same" in paired


def test_a_task_answers_the_same_alone_as_in_the_bundle(wire: Wire) -> None:
    alone = wire.outputs("intent", asking("intent", "intent.scores"))
    assert alone == wire.outputs("support", asking("intent", "intent.scores"))


def test_where_a_task_has_the_bundles_name_the_name_means_the_bundle(wire: Wire) -> None:
    wire.service._model = replace(MODEL, name="intent")
    assert wire.get("/models/intent").json()["versions"] == ["ab" * 8]
    assert [entry["name"] for entry in wire.post("/repository/index").json()].count("intent") == 1
    assert list(wire.outputs("intent", asking("intent", "tone"))) == ["intent", "tone"]


def test_classification_gives_the_best_labels_with_score_and_index(wire: Wire) -> None:
    body = asking() | {"outputs": [{"name": "intent.scores", "parameters": {"classification": 2}}]}
    best = wire.outputs("intent", body)["intent.scores"]
    assert (best["datatype"], best["shape"]) == ("BYTES", [3, 2])
    for row, answer in enumerate(expected("intent")):
        first, second = (text.split(":") for text in best["data"][2 * row : 2 * row + 2])
        assert first[2] == answer.label
        assert float(first[0]) == pytest.approx(answer.score, abs=1e-6)
        assert float(first[0]) >= float(second[0])
        assert MODEL.tasks["intent"].labels[int(second[1])] == second[2]
    body["outputs"][0]["parameters"]["classification"] = 100
    assert wire.outputs("intent", body)["intent.scores"]["shape"] == [3, 3]


def test_the_id_comes_back_and_the_timeout_is_the_deadline(wire: Wire) -> None:
    response = wire.infer("intent", asking(id="a\ud800b", parameters={"timeout": 250_000, "priority": 1, "mine": "x"}))
    assert response.json()["id"] == "a\ud800b"
    assert wire.service.asked.pop()[2] == 250.0
    assert "id" not in wire.infer("intent", asking(parameters={"timeout": 0})).json()
    assert wire.service.asked.pop()[2] is None


def test_speeds_of_the_request_are_for_all_tasks_and_those_of_an_output_for_its_own(wire: Wire) -> None:
    plain = wire.outputs("support", asking("intent", "tone"))
    assert [set(output) for output in plain.values()] == [{"name", "datatype", "shape", "data"}] * 2
    fast = wire.outputs("support", asking("intent", "tone", parameters={"speed": 0.5}))
    assert [output.pop("parameters") for output in fast.values()] == [
        {"speed": 0.5},
        {"speed": 0.0},
    ]  # tone has no exits
    assert fast == plain
    body = asking("intent", "intent.scores", "tone", parameters={"speed": 0.5})
    body["outputs"][1]["parameters"] = {"keep": 0.95}
    kept = wire.outputs("support", body)
    assert [output["parameters"]["speed"] for output in kept.values()] == [0.4, 0.4, 0.0]
    speeds = [{"intent": 0.5, "tone": 0.5}, {"tone": 0.5}]
    assert wire.service.dialled == [(None, None), (speeds[0], None), (speeds[1], {"intent": 0.95})]
    body["outputs"][0]["parameters"] = {"binary_data": True}
    head = wire.infer("support", body)
    [binary, *_] = json.loads(head.content[: int(head.headers[HEADER])])["outputs"]
    assert set(binary["parameters"]) == {"speed", "binary_data_size"}


@pytest.mark.parametrize(
    ("parameters", "output", "message"),
    [
        ({"speed": 2}, {}, "parameter 'speed' is a number from 0 to 1; found 2"),
        ({"keep": "0.9"}, {}, "parameter 'keep' is a number from 0 to 1; found \"0.9\""),
        ({"speed": {"intent": 0.5}}, {}, "parameter 'speed' is a number from 0 to 1; found an object of 1"),
        ({"speed": 0.5, "keep": 0.9}, {}, "not for both (task 'intent')"),
        ({}, {"speed": 0.5, "keep": 0.9}, "not for both (task 'intent')"),
        ({}, {"speed": True}, "output 'intent': speed is a number from 0 to 1; found true"),
    ],
)
def test_a_speed_that_is_none_is_refused(
    wire: Wire, parameters: dict[str, Any], output: dict[str, Any], message: str
) -> None:
    body = asking("intent", parameters=parameters)
    body["outputs"][0]["parameters"] = output
    response = wire.infer("support", body)
    assert (response.status_code, message in response.json()["error"]) == (400, True), response.text


def test_outputs_of_a_task_cannot_ask_for_different_speeds(wire: Wire) -> None:
    body = asking("intent", "intent.scores", "tone")
    for output, speed in zip(body["outputs"], (0.5, 0.6, 0.7), strict=True):
        output["parameters"] = {"speed": speed}
    response = wire.infer("support", body)
    assert response.status_code == 400
    assert response.json()["error"].startswith("the outputs of task 'intent' ask for different speeds")


# Rows that a task cannot read


def test_a_row_that_a_task_cannot_read_fails_the_request_by_name(wire: Wire) -> None:
    response = wire.infer("support", asking("urgency", "intent", texts=["fine", " "]))
    assert response.status_code == 400
    assert response.json()["error"].startswith("row 1: task 'urgency' cannot read it: text is empty")
    assert "'urgency.error'" in response.json()["error"]


def test_with_its_error_asked_for_such_a_row_fails_alone(wire: Wire) -> None:
    names = [
        "intent",
        "intent.scores",
        "intent.error",
        "tone",
        "tone.error",
        "urgency",
        "urgency.error",
        "slots",
        "slots.error",
    ]
    found = wire.outputs("support", asking(*names, texts=["fine", "", "good \ud800"]))
    (fine,) = expected("intent", ["fine"], [""])
    assert found["intent"]["data"] == [fine.label, "", ""]
    assert found["intent.scores"]["data"][:3] == pytest.approx(list(fine.scores.values()), abs=1e-6)
    assert found["intent.scores"]["data"][3:] == [None] * 6
    assert found["intent.error"]["data"][:2] == ["", "text is empty"]
    assert "surrogate" in found["intent.error"]["data"][2]
    assert found["urgency"]["data"][1:] == [None, None]
    assert found["tone"]["data"][1:] == found["slots"]["data"][1:] == ["", ""]
    body = asking("intent.scores", texts=["fine", ""], parameters={"binary_data_output": True})
    body["outputs"] += [{"name": "intent.error", "parameters": {"binary_data": False}}]
    scores, error = read_outputs(wire.infer("intent", body))
    assert np.isnan(scores["values"][1]).all()
    assert error["values"] == ["", "text is empty"]


def test_the_error_of_one_task_excuses_no_other(wire: Wire) -> None:
    response = wire.infer("support", asking("intent.error", "tone", texts=[""]))
    assert response.status_code == 400
    assert "'tone'" in response.json()["error"]


# How tensors travel


def read_outputs(response: httpx.Response) -> list[dict[str, Any]]:
    """Outputs with their `values`, wherever these are."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER, len(response.content)))
    outputs: list[dict[str, Any]] = json.loads(response.content[:length])["outputs"]
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            output["values"] = output["data"]
            continue
        piece, length = response.content[length : length + size], length + size
        if output["datatype"] == "FP32":
            output["values"] = np.frombuffer(piece, "<f4").reshape(output["shape"])
        else:
            output["values"] = texts_from_binary(output["name"], output["shape"][0], memoryview(piece))
    assert length == len(response.content)
    return outputs


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1))
def test_texts_survive_their_bytes(texts: list[str]) -> None:
    tensor = Tensor("out", (len(texts),), texts)
    assert tensor.datatype == "BYTES"
    assert texts_from_binary("out", len(texts), memoryview(tensor.to_binary())) == texts
    assert tensor.to_json() == texts


@given(st.lists(st.floats(width=32), min_size=1))
def test_numbers_survive_their_bytes_and_json(values: list[float]) -> None:
    tensor = Tensor("out", (len(values),), np.asarray(values, np.float32))
    assert tensor.datatype == "FP32"
    np.testing.assert_array_equal(np.frombuffer(tensor.to_binary(), "<f4"), tensor.values)
    for given_, found in zip(values, tensor.to_json(), strict=True):
        assert found == (given_ if np.isfinite(given_) else None)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1, max_size=5), st.booleans())
def test_flat_nested_and_binary_inputs_are_the_same_texts(wire: Wire, texts: list[str], pairs: bool) -> None:
    column = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1]}
    # Errors are asked for: the texts may be empty.
    wanted = {"outputs": [{"name": "intent.error"}, *([{"name": "same.error"}] if pairs else [])]}
    second = [tensor("text_pair", texts[::-1])] if pairs else []
    raw = packed([text.encode() for text in texts])
    size = {"parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [*second, {**column, **size}], **wanted}).encode()
    for body, length in (
        (json.dumps({"inputs": [tensor("text", texts), *second], **wanted}).encode(), None),
        (json.dumps({"inputs": [{**column, "data": texts}, *second], **wanted}).encode(), None),
        (json.dumps({"inputs": [{**column, "data": [[text] for text in texts]}, *second], **wanted}).encode(), None),
        (head + raw, str(len(head))),
    ):
        response = wire.infer("support", body, **({HEADER: length} if length else {}))
        assert response.status_code == 200, response.text
        inputs = wire.service.asked.pop()[0]
        assert inputs == [Input(text, texts[-1 - row] if pairs else None) for row, text in enumerate(texts)]


def test_outputs_travel_as_bytes_where_asked_and_as_json_elsewhere(wire: Wire) -> None:
    body = asking("intent", "intent.scores", "tone.scores", parameters={"binary_data_output": True})
    body["outputs"][1]["parameters"] = {"binary_data": False}
    response = wire.infer("support", body)
    assert response.headers["content-type"] == "application/octet-stream"
    labels, scores, tones = read_outputs(response)
    assert labels["values"] == [answer.label for answer in expected("intent")]
    assert "data" not in labels
    assert scores["data"] == pytest.approx(
        [s for answer in expected("intent") for s in answer.scores.values()], abs=1e-6
    )
    np.testing.assert_allclose(tones["values"], [list(a.scores.values()) for a in expected("tone")], atol=1e-6)
    assert HEADER not in wire.infer("support", asking("intent")).headers


def test_a_body_without_json_is_the_one_text_of_a_model_with_one_input(wire: Wire) -> None:
    response = wire.infer("intent", "wake me at seven, 東京".encode(), **{HEADER: "0"})
    label, _ = read_outputs(response)
    assert wire.service.asked.pop()[0] == [Input("wake me at seven, 東京")]
    assert label["values"] == [made_up(MODEL.tasks["intent"], Input("wake me at seven, 東京")).label]
    refused = wire.infer("support", b"wake me at seven", **{HEADER: "0"})
    assert refused.status_code == 400
    assert "one input" in refused.json()["error"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_requests_and_responses(wire: Wire, encoding: str, pack: Any) -> None:
    raw = packed([text.encode() for text in TEXTS * 20])
    body, header = binary(raw, rows=60, parameters={"binary_data_output": True})
    plain = wire.infer("support", body, **header)
    headers = {**header, "Content_Encoding": encoding, "Accept_Encoding": encoding}
    response = wire.infer("support", pack(body), **headers)
    assert response.headers["content-encoding"] == encoding
    assert response.content == plain.content
    assert response.headers[HEADER] == plain.headers[HEADER]
    assert "content-encoding" not in wire.infer("support", body, **header, Accept_Encoding=f"{encoding};q=0").headers


def test_errors_are_never_packed(wire: Wire) -> None:
    """Clients of the protocol unpack answers only."""
    wire.service.refusal = Overloaded("busy " * 1000, 1.0)
    assert "content-encoding" not in wire.infer("intent", asking(), Accept_Encoding="gzip").headers


# What is refused

RAW = packed([b"wake me"])


def one(**changes: Any) -> dict[str, Any]:
    """A request of one input, changed."""
    return {"inputs": [{**tensor("text", ["wake me"]), **changes}]}


def wanting(*outputs: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor("text", ["wake me"])], "outputs": list(outputs), **more}


HOSTILE: dict[str, tuple[Any, str]] = {
    "no body": (b"", "not JSON"),
    "half a body": (b'{"inputs": [', "not JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "not UTF-8"),
    "NaN": (b'{"inputs": NaN}', "NaN"),
    "a number of 5,000 digits": (b'{"inputs": [' + b"9" * 5000 + b"]}", "too long"),
    "deep arrays": (b"[" * 100_000 + b"]" * 100_000, "too deep"),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "too deep"),
    "an array": ([], "a request must be an object; found an array of 0"),
    "a key twice": (b'{"inputs": [], "inputs": []}', "twice"),
    "no inputs": ({}, "input 'text' is missing (inputs: text, text_pair)"),
    "empty inputs": ({"inputs": []}, "input 'text' is missing"),
    "inputs that are an object": ({"inputs": {}}, "inputs must be an array; found an object"),
    "an input that is a text": ({"inputs": ["wake me"]}, "inputs[0] must be an object"),
    "an input without a name": (one(name=None), "inputs[0]: name must be a string; found null"),
    "an unknown input": (one(name="txt"), "unknown input 'txt' (did you mean 'text'? inputs: text, text_pair)"),
    "an endless name": (one(name="x" * 500_000), "unknown input 'xxx"),
    "an input twice": ({"inputs": [tensor("text", ["a"])] * 2}, "input 'text' is given twice"),
    "a pair alone": ({"inputs": [tensor("text_pair", ["a"])]}, "input 'text' is missing"),
    "the wrong type": (one(datatype="FP32"), 'datatype must be "BYTES"; found "FP32"'),
    "no type": (one(datatype=None), "found null"),
    "no shape": (one(shape=None), "shape must be [N] or [N, 1] with N at least 1; found null"),
    "an empty shape": (one(shape=[]), "shape must be"),
    "no rows": (one(shape=[0], data=[]), "found [0]"),
    "fewer than no rows": (one(shape=[-1]), "found [-1]"),
    "two columns": (one(shape=[1, 2], data=["a", "b"]), "found [1, 2]"),
    "three dimensions": (one(shape=[1, 1, 1]), "found [1, 1, 1]"),
    "a million dimensions": (one(shape=[1] * 200_000), "found an array of 200000"),
    "a shape of truths": (one(shape=[True]), "found [true]"),
    "a shape of fractions": (one(shape=[1.0]), "found [1.0]"),
    "a shape of shapes": (one(shape=[[1]]), "found [an array of 1]"),
    "a huge shape": (one(shape=[10**30]), "found [a very large number]"),
    "fewer elements than rows": (one(shape=[3]), "data has 1 element, its shape 3 elements"),
    "more elements than rows": (one(data=["a", "b"]), "data has 2 elements, its shape 1 element"),
    "a number as text": (one(data=[7]), "row 0: must be a string; found 7"),
    "null as text": (one(data=[None]), "row 0: must be a string; found null"),
    "nested in a flat shape": (one(data=[["a"]]), "found an array of 1"),
    "nested too deep": (one(shape=[1, 1], data=[[["a"]]]), "found an array of 1"),
    "nested twice in one row": (one(shape=[1, 1], data=[["a", "b"]]), "found an array of 2"),
    "data that is a text": (one(data="wake me"), "data must be an array of strings"),
    "no data": (one(data=None), "give either data or parameters.binary_data_size"),
    "data and bytes": (one(parameters={"binary_data_size": 0}), "give either data or"),
    "parameters that are an array": (one(parameters=[1]), "parameters must be an object"),
    "bytes without a header": (one(data=None, parameters={"binary_data_size": 11}), "within the 0 bytes"),
    "shared memory": (one(data=None, parameters={"shared_memory_region": "r"}), "shared memory is not supported"),
    "rows that differ": (
        {"inputs": [tensor("text", ["a", "b"]), tensor("text_pair", ["c"])]},
        "inputs differ in rows: text 2, text_pair 1",
    ),
    "a pair task without a pair": (wanting({"name": "same"}), "input 'text_pair' is missing: it is read by same"),
    "outputs that are an object": (wanting() | {"outputs": {}}, "outputs must be an array; found an object of 0"),
    "an output that is a text": (wanting("intent"), "outputs[0] must be an object"),
    "an output without a name": (wanting({}), "outputs[0]: name must be a string"),
    "an unknown output": (wanting({"name": "intnt"}), "unknown output 'intnt' (did you mean 'intent'?"),
    "scores of a number": (wanting({"name": "urgency.scores"}), "unknown output 'urgency.scores'"),
    "an output twice": (wanting({"name": "intent"}, {"name": "intent"}), "output 'intent' is asked for twice"),
    "binary as a number": (wanting({"name": "intent", "parameters": {"binary_data": 1}}), "must be true or false"),
    "no classes": (wanting({"name": "intent.scores", "parameters": {"classification": 0}}), "number of classes"),
    "classes of a label": (wanting({"name": "intent", "parameters": {"classification": 1}}), "outputs of scores"),
    "an id that is a number": (wanting(id=7), "id must be a string; found 7"),
    "parameters that are a text": (wanting(parameters="x"), "parameters must be an object"),
    "binary outputs as a text": (wanting(parameters={"binary_data_output": "yes"}), "must be true or false"),
    "a timeout before now": (wanting(parameters={"timeout": -1}), "'timeout' must be a whole number of microseconds"),
    "a timeout that is a text": (wanting(parameters={"timeout": "5"}), 'found "5"'),
    "bytes that are not UTF-8": (binary(packed([b"a", b"\xff\xfe"]), rows=2), "row 1: not UTF-8 at byte 0"),
    "a length beyond the body": (binary(struct.pack("<I", 999) + b"a"), "row 0: 999 bytes announced, 1 left"),
    "the longest length": (binary(struct.pack("<I", 2**32 - 1) + b"a"), "4294967295 bytes announced, 1 left"),
    "half a length": (binary(RAW + b"\x01\x00", rows=2), "end after 1 element, its shape has 2"),
    "fewer bytes than lengths": (binary(RAW, rows=60), "11 bytes cannot hold 60 elements"),
    "bytes behind the last text": (binary(RAW + b"abcd"), "4 bytes follow the last of 1 element"),
    "bytes behind the last input": (binary(RAW + b"abcd", size=len(RAW)), "4 bytes follow the last input"),
    "a size beyond the body": (binary(RAW, size=12), "within the 11 bytes left behind the JSON; found 12"),
    "a size before the body": (binary(RAW, size=-1), "found -1"),
    "an endless size": (binary(RAW, size=10**40), "found a very large number"),
    "a size that is a fraction": (binary(RAW, size=11.0), "found 11.0"),  # type: ignore[arg-type]
    "a size that is a truth": (binary(RAW, size=True), "found true"),
    "a header beyond the body": ((b"{}", {HEADER: "3"}), f"{HEADER} is 3, but the body has 2 bytes"),
    "a header below nothing": ((b"{}", {HEADER: "-1"}), 'must be a number of bytes; found "-1"'),
    "a header that is a word": ((b"{}", {HEADER: "all"}), 'found "all"'),
    "a header of 1,000 digits": ((b"{}", {HEADER: "9" * 1000}), "must be a number of bytes"),
    "a header that cuts the JSON": ((b'{"inputs": []}', {HEADER: "5"}), "not JSON"),
    "a packed body that is not": ((b"{}", {"Content-Encoding": "gzip"}), "gzip"),
    "a packed body cut short": ((gzip.compress(b"{}" * 999)[:-9], {"Content-Encoding": "gzip"}), "cut short"),
    "raw bytes for two inputs": ((b"wake me", {HEADER: "0"}), "needs a model with one input"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_request_that_is_wrong_is_a_400_that_says_why(steady: Wire, case: str) -> None:
    body, message = HOSTILE[case]
    content, headers = body if isinstance(body, tuple) else (body, {})
    before = len(steady.service.asked)
    response = steady.infer("support", content, **headers)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]
    assert len(response.content) < 1000
    assert len(steady.service.asked) == before


@settings(max_examples=150)
@given(st.data())
def test_no_bytes_make_the_server_fail(steady: Wire, data: st.DataObject) -> None:
    """A good request in bytes, cut, changed or lengthened at random, with any length of JSON."""
    good, header = binary(packed([text.encode() for text in TEXTS]), rows=3)
    body = bytearray(good)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(body) - 1)))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    length = data.draw(st.sampled_from([header[HEADER], "0", str(len(body))]) | st.integers(0, len(body)).map(str))
    model = data.draw(st.sampled_from(["support", "intent"]))
    assert steady.infer(model, bytes(body), **{HEADER: length}).status_code in (200, 400, 413)


def test_too_many_rows_are_refused_before_they_are_read(wire: Wire) -> None:
    body, headers = binary(b"", rows=65)
    for response in (wire.infer("intent", asking(texts=["a"] * 65)), wire.infer("intent", body, **headers)):
        assert response.status_code == 413
        assert response.json() == {"error": "input 'text' has 65 rows; a request holds at most 64"}


@pytest.mark.parametrize(
    ("refusal", "status", "retry"),
    [
        (Invalid("no"), 400, None),
        (NotFound("no"), 404, None),
        (TooLarge("no"), 413, None),
        (Overloaded("no", 2.0), 429, "2"),
        (Unavailable("no", 1.0), 503, "1"),
        (DeadlineExceeded("no"), 504, None),
    ],
)
def test_refusals_of_the_service_have_the_protocols_shape(
    wire: Wire, refusal: Refusal, status: int, retry: str | None
) -> None:
    wire.service.refusal = refusal
    response = wire.infer("intent", asking())
    assert (response.status_code, response.json()) == (status, {"error": "no"})
    assert response.headers.get("retry-after") == retry


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2/modles", 404),
        ("GET", "/v2/models/support/versions", 404),
        ("GET", "/v2/models/intnt", 404),
        ("GET", "/v2/models/intent/versions/1", 404),
        ("POST", "/v2/models/intent/versions/1/infer", 404),
        ("POST", "/v2/models/nothing/infer", 404),
        ("GET", "/v2/models/intent/infer", 405),
        ("DELETE", "/v2/models/intent", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
        ("BREW", "/v2", 405),
    ],
)
def test_unknown_paths_and_methods_have_the_protocols_shape(steady: Wire, method: str, path: str, status: int) -> None:
    response = steady.client.request(method, path, content=b"{}" if method == "POST" else None)
    assert response.status_code == status
    assert list(response.json()) == ["error"]


def test_an_unknown_model_or_version_names_those_that_there_are(wire: Wire) -> None:
    assert "did you mean 'intent'? models: follows, intent" in wire.get("/models/intnt").json()["error"]
    assert wire.get("/models/intent/versions/1").json() == {
        "error": f"model 'intent': unknown version '1' (versions: {'1a' * 8})"
    }


def test_a_version_that_a_swap_overtakes_does_not_answer_in_the_others_name(wire: Wire) -> None:
    """The version is checked against the bundle that answered."""
    predict = wire.service.predict

    async def overtaken(*args: Any, **more: Any) -> Reply:
        await wire.service.swap()
        return await predict(*args, **more)

    wire.service.predict = overtaken  # type: ignore[method-assign]
    response = wire.post(f"/models/support/versions/{'ab' * 8}/infer", asking("intent"))
    assert response.status_code == 404
    response = wire.post("/models/support/infer", asking("intent"))
    assert response.json()["model_version"] == "cd" * 8


# Health, repository and statistics


def test_the_server_names_itself_and_its_extensions(wire: Wire) -> None:
    described = wire.get("").json()
    assert described["name"] == "trunkline"
    assert "binary_tensor_data" in described["extensions"]


def test_health_is_json_and_tells_the_truth(wire: Wire) -> None:
    assert wire.get("/health/live").json() == {"live": True}
    assert wire.get("/health/ready").json() == {"ready": True}
    wire.service.ready = wire.service.live = False
    for path, key in (("/health/live", "live"), ("/health/ready", "ready"), ("/models/intent/ready", "ready")):
        response = wire.get(path)
        assert response.status_code == 503
        assert response.json()[key] is False
        assert response.json()["error"]


def test_before_the_first_bundle_all_is_unavailable(wire: Wire) -> None:
    wire.service._model = None
    for response in (wire.infer("intent", asking()), wire.get("/models/intent"), wire.get("/models/stats")):
        assert response.status_code == 503
        assert list(response.json()) == ["error"]


def test_tasks_are_unloaded_and_loaded_by_name(wire: Wire) -> None:
    assert wire.post("/repository/models/intent/unload", {}, **KEY).status_code == 200
    assert wire.get("/models/intent/ready").status_code == 503
    assert wire.infer("intent", asking()).status_code == 503
    assert wire.infer("support", asking("intent")).status_code == 503
    listed = {entry["name"]: entry for entry in wire.post("/repository/index", {}).json()}
    assert (listed["intent"]["state"], listed["intent"]["reason"]) == ("UNAVAILABLE", "unloaded")
    assert "intent" not in [entry["name"] for entry in wire.post("/repository/index", {"ready": True}).json()]
    assert wire.post("/repository/index", {"ready": "yes"}).status_code == 400
    assert wire.post("/repository/models/intent/load", **KEY).status_code == 200
    assert wire.get("/models/intent/ready").status_code == 200
    assert wire.service.calls[-2:] == [("unload", "intent"), ("load", "intent")]


def test_loading_the_bundle_takes_over_the_live_release(wire: Wire) -> None:
    assert wire.post("/repository/models/support/load", **KEY).status_code == 200
    assert wire.get("/models/support").json()["versions"] == ["cd" * 8]
    assert wire.service.calls[-1] == ("swap", None)
    refused = wire.post("/repository/models/support/unload", **KEY)
    assert refused.status_code == 400
    assert "its tasks can" in refused.json()["error"]


@pytest.mark.parametrize("what", ["load", "unload"])
def test_loading_needs_the_admin_key_and_a_model(wire: Wire, what: str) -> None:
    refused = wire.post(f"/repository/models/intent/{what}")
    assert refused.status_code == 401
    assert list(refused.json()) == ["error"]
    assert wire.post(f"/repository/models/intnt/{what}", **KEY).status_code == 404
    assert wire.post(f"/repository/models/intent/{what}", [], **KEY).status_code == 400
    assert wire.service.calls == []


def test_statistics_count_requests_rows_and_batches_of_the_version_that_is_served(wire: Wire) -> None:
    wire.infer("support", asking("intent", "urgency"))
    wire.infer("intent", asking(texts=["one"]))
    wire.service.refusal = Overloaded("busy", 1.0)
    wire.infer("intent", asking())
    wire.service.refusal = None

    def stats(path: str) -> dict[str, Any]:
        (found,) = wire.get(path).json()["model_stats"]
        return dict(found)

    bundle = stats("/models/support/stats")
    assert (bundle["inference_count"], bundle["execution_count"]) == (4, 2)
    assert bundle["inference_stats"]["success"]["count"] == 2
    assert bundle["inference_stats"]["fail"]["count"] == 1
    assert bundle["inference_stats"]["queue"] == {"count": 2, "ns": 1_000_000}
    assert bundle["inference_stats"]["compute_infer"] == {"count": 2, "ns": 6_000_000}
    assert [batch["batch_size"] for batch in bundle["batch_stats"]] == [1, 3]
    assert bundle["last_inference"] > 1_600_000_000_000
    urgency = stats(f"/models/urgency/versions/{'5e' * 8}/stats")
    assert (urgency["inference_count"], urgency["execution_count"]) == (3, 1)
    assert stats("/models/tone/stats")["inference_count"] == 0
    assert len(wire.get("/models/stats").json()["model_stats"]) == 7
    wire.post("/repository/models/support/load", **KEY)
    assert stats("/models/support/stats")["inference_count"] == 0
    assert stats("/models/urgency/stats")["inference_count"] == 3


def test_the_routes_are_in_the_openapi_document(wire: Wire) -> None:
    paths = wire.client.get("/openapi.json").json()["paths"]
    infer = paths["/v2/models/{name}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert {"200", "400", "404", "413", "429", "503", "504"} <= set(infer["responses"])
    assert "422" not in infer["responses"]
