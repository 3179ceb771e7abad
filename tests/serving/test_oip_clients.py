"""Public clients of the Open Inference Protocol, unchanged, against a server on a socket.

It serves a tiny bundle for real. Where the service must be in a bad way, a fake stands in for it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")
pytest.importorskip("uvicorn", reason="the server's tests need the extra serve")
pytest.importorskip("tritonclient.http", reason="it is one of the clients: pip install 'tritonclient[http]'")
pytest.importorskip("kserve", reason="it is one of the clients: pip install kserve")

import httpx
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from serving.conftest import Bundles
from serving.fakes import FakeService
from tritonclient.utils import InferenceServerException

from trunkline.bundle import Bundle
from trunkline.project.tasks import Answer
from trunkline.serving.app import Settings, create_app
from trunkline.serving.errors import Overloaded
from trunkline.serving.keys import Keys
from trunkline.serving.loading import Loading
from trunkline.serving.run import http_server
from trunkline.serving.service import Service

KEY = {"Authorization": "Bearer secret"}
TEXTS = ["wake me at seven", "play some music", "東京 wird kälter"]
PAIRS = ["set an alarm", "silence please", "is it cold?"]
NEAR = {"atol": 1e-5, "rtol": 0}  # batches of other shapes round otherwise


class Server:
    """The app over a service, on a socket and in a thread of its own."""

    def __init__(self, service: Service | FakeService) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(service, Settings(keys=Keys(admin="secret")))  # type: ignore[arg-type]
        self._uvicorn = http_server(app, service.limits)
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(service, listening, started)))
        self._thread.start()
        started.result()

    async def _run(self, service: Service | FakeService, listening: socket.socket, started: Future[None]) -> None:
        try:
            await service.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._uvicorn.serve(sockets=[listening])
        await service.drain()

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def bundle(bundles: Bundles) -> Bundle:
    return Bundle.load(bundles.first)


@pytest.fixture(scope="module")
def server(bundles: Bundles) -> Iterator[Server]:
    running = Server(Service(bundles.first, loading=Loading(engine="torch", dtype="float32", device="cpu")))
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as made:
        yield made


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def faked(fake: FakeService) -> Iterator[Server]:
    """A server over the fake."""
    running = Server(fake)
    yield running
    running.stop()


class Expected:
    """What the bundle itself says to the texts and pairs of a test."""

    def __init__(self, bundle: Bundle, texts: Sequence[str] = TEXTS, pairs: Sequence[str] = PAIRS) -> None:
        self._rows = bundle.predict(list(zip(texts, pairs, strict=True)))

    def of(self, task: str) -> list[Answer]:
        found = [row[task] for row in self._rows]
        assert all(isinstance(answer, Answer) for answer in found)
        return found  # type: ignore[return-value]

    def labels(self, task: str) -> list[str | None]:
        return [answer.label for answer in self.of(task)]

    def scores(self, task: str) -> list[list[float]]:
        return [list(answer.scores.values()) for answer in self.of(task)]


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> Expected:
    return Expected(bundle)


def triton_input(name: str, texts: Sequence[str], *, binary: bool = True, column: bool = False) -> triton.InferInput:
    values = np.array([text.encode() for text in texts], dtype=np.object_)
    values = values.reshape(-1, 1) if column else values
    return triton.InferInput(name, list(values.shape), "BYTES").set_data_from_numpy(values, binary_data=binary)


def texts_of(values: np.ndarray) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]


# tritonclient


def test_triton_finds_the_server_and_its_models(client: triton.InferenceServerClient, bundle: Bundle) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("served")
    assert client.is_model_ready("served", bundle.id)
    assert not client.is_model_ready("intnt")
    assert not client.is_model_ready("intent", "1")
    assert client.get_server_metadata()["name"] == "trunkline"
    described = client.get_model_metadata("intent")
    assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert client.get_model_metadata("intent", described["versions"][0]) == described


def test_triton_finds_in_the_configuration_of_a_model_what_its_metadata_says(
    client: triton.InferenceServerClient,
) -> None:
    for name, optional in (("served", [False, True]), ("same", [False, False]), ("intent", [False])):
        config, about = client.get_model_config(name), client.get_model_metadata(name)
        assert client.get_model_config(name, about["versions"][0]) == config
        assert (config["name"], config["platform"], config["max_batch_size"]) == (name, about["platform"], 0)
        for given, described in ((config["input"], about["inputs"]), (config["output"], about["outputs"])):
            assert [(tensor["name"], tensor["dims"]) for tensor in given] == [
                (tensor["name"], tensor["shape"]) for tensor in described
            ]
        assert [tensor["optional"] for tensor in config["input"]] == optional
    assert {tensor["name"]: tensor["data_type"] for tensor in client.get_model_config("intent")["output"]} == {
        "intent": "TYPE_STRING",
        "intent.scores": "TYPE_FP32",
        "intent.error": "TYPE_STRING",
    }
    with pytest.raises(InferenceServerException, match="did you mean 'intent'"):
        client.get_model_config("intnt")


def test_triton_sees_a_server_that_is_not_ready(fake: FakeService, faked: Server) -> None:
    with triton.InferenceServerClient(faked.address) as client:
        assert client.is_server_ready()
        fake.ready = False
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("intent")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_triton_infers_in_bytes_and_json_packed_and_plain(
    client: triton.InferenceServerClient, expected: Expected, binary: bool, column: bool, packing: str | None
) -> None:
    names = ("intent", "intent.scores", "same", "tone", "tone.scores", "urgency", "slots")
    result = client.infer(
        "served",
        [
            triton_input("text", TEXTS * 8, binary=binary, column=column),
            triton_input("text_pair", PAIRS * 8, binary=not binary, column=column),
        ],
        outputs=[triton.InferRequestedOutput(name, binary_data=binary) for name in names],
        request_id="7",
        timeout=20_000_000,
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
    )
    assert result.get_response()["id"] == "7"
    assert texts_of(result.as_numpy("intent")) == expected.labels("intent") * 8
    assert texts_of(result.as_numpy("same")) == expected.labels("same") * 8
    for task in ("intent", "tone"):
        scores = result.as_numpy(f"{task}.scores")
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected.scores(task) * 8, **NEAR)
    np.testing.assert_allclose(
        result.as_numpy("urgency"), [answer.score for answer in expected.of("urgency")] * 8, **NEAR
    )
    tones = [json.loads(row) for row in texts_of(result.as_numpy("tone"))]
    assert tones == [answer.labels for answer in expected.of("tone")] * 8
    spans = [json.loads(row) for row in texts_of(result.as_numpy("slots"))]
    assert any(spans)
    for text, found, answer in zip(TEXTS * 8, spans, expected.of("slots") * 8, strict=True):
        assert [span["text"] for span in found] == [span.text for span in answer.spans or ()]
        assert all(text[span["start"] : span["end"]] == span["text"] for span in found)


def test_triton_gets_all_outputs_of_a_task_by_default(client: triton.InferenceServerClient, expected: Expected) -> None:
    version = client.get_model_metadata("intent")["versions"][0]
    result = client.infer("intent", [triton_input("text", TEXTS)], model_version=version)
    assert result.get_response()["model_version"] == version
    assert [output["name"] for output in result.get_response()["outputs"]] == ["intent", "intent.scores"]
    assert texts_of(result.as_numpy("intent")) == expected.labels("intent")


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_errors_of_rows_as_an_output(client: triton.InferenceServerClient, binary: bool) -> None:
    names = ("intent", "intent.scores", "intent.error")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer("intent", [triton_input("text", ["play", ""])], outputs=outputs)
    assert texts_of(result.as_numpy("intent.error")) == ["", "text is empty"]
    assert texts_of(result.as_numpy("intent"))[1] == ""
    assert np.isnan(result.as_numpy("intent.scores")).tolist() == [[False] * 3, [True] * 3]


def test_triton_gets_classes(client: triton.InferenceServerClient, expected: Expected) -> None:
    wanted = triton.InferRequestedOutput("intent.scores", class_count=2)
    classes = client.infer("intent", [triton_input("text", TEXTS)], outputs=[wanted]).as_numpy("intent.scores")
    assert classes.shape == (3, 2)
    assert [row[0].decode().split(":")[2] for row in classes] == expected.labels("intent")


@pytest.mark.parametrize("binary", [True, False])
def test_triton_asks_for_a_speed_and_is_told_which_was_used(fake: FakeService, faked: Server, binary: bool) -> None:
    with triton.InferenceServerClient(faked.address) as client:
        names = ("intent", "intent.scores")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        result = client.infer("support", [triton_input("text", TEXTS)], outputs=outputs, parameters={"keep": 0.95})
    assert fake.dialled == [(None, {"intent": 0.95})]
    assert [output["parameters"]["speed"] for output in result.get_response()["outputs"]] == [0.4, 0.4]
    assert (len(result.as_numpy("intent")), result.as_numpy("intent.scores").shape) == (3, (3, 3))


def test_triton_infers_at_once_and_collects_later(client: triton.InferenceServerClient, bundle: Bundle) -> None:
    batches = [[f"text {number}", *TEXTS] for number in range(8)]
    pending = [client.async_infer("intent", [triton_input("text", batch)]) for batch in batches]
    for batch, request in zip(batches, pending, strict=True):
        scores = request.get_result(timeout=30).as_numpy("intent.scores")
        np.testing.assert_allclose(scores, Expected(bundle, batch, batch).scores("intent"), **NEAR)


def test_triton_reads_our_errors(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="unknown input 'txt'") as wrong:
        client.infer("intent", [triton_input("txt", TEXTS)], response_compression_algorithm="gzip")
    assert wrong.value.status() == "400"
    with pytest.raises(InferenceServerException, match=r"row 1: task '\w+' cannot read it: text is empty"):
        client.infer("served", [triton_input("text", ["play", ""])])
    with pytest.raises(InferenceServerException, match="unknown model 'intnt'") as missing:
        client.infer("intnt", [triton_input("text", TEXTS)])
    assert missing.value.status() == "404"
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        client.infer("intent", [triton.InferInput("text", [1], "BYTES").set_shared_memory("region", 16)])
    with pytest.raises(InferenceServerException, match="there is nothing at this path"):
        client.get_trace_settings("intent")


def test_triton_hears_that_the_queue_is_full(fake: FakeService, faked: Server) -> None:
    fake.refusal = Overloaded("the queue is full", 1.0)
    with triton.InferenceServerClient(faked.address) as client:
        with pytest.raises(InferenceServerException, match="the queue is full") as busy:
            client.infer("intent", [triton_input("text", TEXTS)])
        assert busy.value.status() == "429"


def test_triton_keeps_the_repository(client: triton.InferenceServerClient, bundle: Bundle, expected: Expected) -> None:
    def state(name: str) -> str:
        listed = {entry["name"]: entry for entry in client.get_model_repository_index()}
        assert set(listed) == {"served", *bundle.tasks}
        return str(listed[name]["state"])

    with pytest.raises(InferenceServerException, match="401"):
        client.unload_model("short")
    client.unload_model("short", headers=KEY)
    assert state("short") == "UNAVAILABLE"
    assert not client.is_model_ready("short")
    with pytest.raises(InferenceServerException, match="503"):
        client.infer("short", [triton_input("text", TEXTS)])
    assert client.is_model_ready("served")
    client.load_model("short", headers=KEY)
    assert state("short") == "READY"
    assert texts_of(client.infer("short", [triton_input("text", TEXTS)]).as_numpy("short")) == expected.labels("short")
    with pytest.raises(InferenceServerException, match="404"):
        client.load_model("shrt", headers=KEY)


def test_triton_reads_statistics(client: triton.InferenceServerClient, bundle: Bundle) -> None:
    def counted(name: str, version: str = "") -> dict[str, Any]:
        (found,) = client.get_inference_statistics(name, version)["model_stats"]
        return dict(found)

    before, whole = counted("urgency"), counted("served")
    client.infer("urgency", [triton_input("text", TEXTS)])
    after = counted("urgency", client.get_model_metadata("urgency")["versions"][0])
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert counted("served", bundle.id)["execution_count"] == whole["execution_count"] + 1
    assert len(client.get_inference_statistics()["model_stats"]) == 1 + len(bundle.tasks)


# kserve


def kserve_request(binary: bool, *outputs: str) -> InferRequest:
    inputs = []
    for name, texts in (("text", TEXTS), ("text_pair", PAIRS)):
        made = InferInput(name, [len(texts)], "BYTES")
        made.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_), binary_data=binary)
        inputs.append(made)
    parameters = {"binary_data_output": binary}
    wanted = [RequestedOutput(name, {"binary_data": binary}) for name in outputs]
    return InferRequest("served", inputs, "8", parameters=parameters, request_outputs=wanted)


def test_kserve_finds_the_server_and_infers(server: Server, bundle: Bundle, expected: Expected) -> None:
    async def talk() -> None:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        url = f"http://{server.address}"
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "served")
        assert not await client.is_model_ready(url, "intnt")
        for binary in (True, False):
            found = await client.infer(url, kserve_request(binary, "intent", "intent.scores", "same"), "served")
            assert found.id == "8"
            labels, scores, same = found.outputs
            assert texts_of(labels.as_numpy()) == expected.labels("intent")
            assert texts_of(same.as_numpy()) == expected.labels("same")
            np.testing.assert_allclose(scores.as_numpy(), expected.scores("intent"), **NEAR)
            everything = await client.infer(url, kserve_request(binary), "served")
            assert {output.name for output in everything.outputs} >= set(bundle.tasks)
        with pytest.raises(httpx.HTTPStatusError, match="unknown model 'intnt'"):
            await client.infer(url, kserve_request(False), "intnt")
        await client.close()

    asyncio.run(talk())


def test_kserve_sees_a_server_that_is_not_ready(fake: FakeService, faked: Server) -> None:
    async def talk() -> None:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        with pytest.raises(httpx.HTTPStatusError, match="no forward pass"):
            await client.is_server_ready(f"http://{faked.address}")
        assert not await client.is_model_ready(f"http://{faked.address}", "intent")
        await client.close()

    fake.ready = False
    asyncio.run(talk())


# Plain HTTP, as one would with curl


def test_json_as_curl_sends_it(server: Server, expected: Expected) -> None:
    body = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["wake me at seven"]}]}'
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl says of -d
    response = httpx.post(f"http://{server.address}/v2/models/intent/infer", content=body, headers=headers)
    assert response.headers["content-type"] == "application/json"
    label, scores = response.json()["outputs"]
    assert label == {"name": "intent", "datatype": "BYTES", "shape": [1], "data": expected.labels("intent")[:1]}
    assert scores["shape"] == [1, 3]
    assert scores["data"] == pytest.approx(expected.scores("intent")[0], abs=1e-5)


def test_a_body_in_chunks(server: Server) -> None:
    body = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["wake me"]}]})
    pieces = (character.encode() for character in body)
    response = httpx.post(f"http://{server.address}/v2/models/intent/infer", content=pieces)
    assert response.status_code == 200
