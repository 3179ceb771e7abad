"""The native wire over a service that answers without a model: shapes, errors, request ids, logs, clients that go."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")

from serving.fakes import MODEL, SPEEDS, TASKS, FakeService
from starlette.testclient import TestClient
from starlette.types import Message

from trunkline.serving import errors, logs
from trunkline.serving.app import Settings, create_app
from trunkline.serving.keys import Keys
from trunkline.serving.limits import Limits

TEXT = "wake me at seven"


@pytest.fixture
def service() -> FakeService:
    return FakeService(limits=Limits(body_bytes=4096))


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as made:
        yield made


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What has been logged by the server so far, one object a line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logs.LOG.addHandler(handler)
    logs.LOG.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logs.LOG.removeHandler(handler)
    logs.LOG.setLevel(logging.NOTSET)


def ask(client: TestClient, *inputs: object, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/predict", json={"inputs": list(inputs), **more})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_every_kind_of_task_answers_with_what_it_has_and_its_branch(client: TestClient) -> None:
    found = ask(client, {"text": TEXT, "text_pair": "set an alarm"})
    [row] = found["results"]
    assert {task: set(answer) for task, answer in row.items()} == {
        "follows": {"label", "score", "scores", "branch"},
        "intent": {"label", "score", "scores", "branch"},
        "same": {"label", "score", "scores", "branch"},
        "slots": {"spans", "words", "tags", "branch"},
        "tone": {"labels", "scores", "branch"},
        "urgency": {"score", "out_of_scope", "scope", "branch"},
    }
    assert {task: answer["branch"] for task, answer in row.items()} == {name: TASKS[name].branch for name in TASKS}
    assert set(row["intent"]["scores"]) == {"alarm", "music", "weather"}
    assert row["intent"]["score"] == max(row["intent"]["scores"].values())
    for span in row["slots"]["spans"]:
        assert TEXT[span["start"] : span["end"]] == span["text"]


def test_a_reply_names_its_bundle_its_layers_and_its_times(client: TestClient) -> None:
    found = ask(client, TEXT, tasks=["tone"])
    assert list(found["results"][0]) == ["tone"]
    assert found["model"] == "support"
    assert found["bundle"] == MODEL.bundle
    assert found["layers"] == 1
    assert found["timings"] == {"queue": 0.5, "tokenise": 1.0, "trunk": 2.0, "branches": 1.0, "total": 4.5}


def test_an_input_is_a_text_a_pair_or_an_object(client: TestClient) -> None:
    pair = {"text": "a", "text_pair": "b"}
    found = ask(client, "a", ["a", "b"], pair, {"text": "a", "text_pair": None}, tasks=["same", "intent"])["results"]
    assert found[1] == found[2]
    assert found[0] == found[3]
    assert found[0]["same"] == {"error": "text_pair is missing: this task reads pairs"}
    assert found[0]["intent"] == found[1]["intent"]


def test_words_to_tag_may_be_given(client: TestClient) -> None:
    [row] = ask(client, {"text": TEXT, "words": [[0, 7], [11, 16]]}, tasks=["slots"])["results"]
    assert row["slots"]["words"] == ["wake me", "seven"]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (5, "found int"),
        (None, "found NoneType"),
        ({}, "no text"),
        ({"text": 5}, "text must be a string"),
        ({"text": "a", "txet_pair": "b"}, "did you mean 'text_pair'"),
        ("", "text is empty"),
        ("\ud800 half", "half of a surrogate pair"),
        (["a", "b", "c"], "found list"),
        ({"text": "a", "words": "all"}, "words must be a list"),
    ],
)
def test_a_bad_input_fails_alone(client: TestClient, item: object, reason: str) -> None:
    body = json.dumps({"inputs": [TEXT, item, TEXT], "tasks": ["intent"]})
    before, bad, after = client.post("/v1/predict", content=body).json()["results"]
    assert list(bad["intent"]) == ["error"]
    assert reason in bad["intent"]["error"]
    assert before == after
    assert before["intent"]["label"]


def test_an_answer_may_hold_any_text(client: TestClient) -> None:
    text = "東京 \u0000 \U0001f600 e\u0301 <b>&amp;"
    [row] = ask(client, {"text": text, "words": [[0, len(text)]]}, tasks=["slots"])["results"]
    assert row["slots"]["words"] == [text]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"inputs": [TEXT], "task": ["tone"]},
            "unknown key 'task' (did you mean 'tasks'? keys: deadline_ms, inputs, keep, speed, tasks)",
        ),
        ({"inputs": [TEXT], "speed": 1.5}, "speed is a number from 0 to 1; found 1.5"),
        ({"inputs": [TEXT], "speed": "fast"}, 'speed is a number from 0 to 1; found "fast"'),
        ({"inputs": [TEXT], "speed": True}, "speed is a number from 0 to 1; found true"),
        ({"inputs": [TEXT], "keep": ["tone"]}, "keep is a number from 0 to 1; found an array of 1"),
        ({"inputs": [TEXT], "keep": {"tone": -0.1}}, "keep is a number from 0 to 1; found -0.1"),
        ({"inputs": [TEXT], "keep": {"tone": None}}, "keep is a number from 0 to 1; found null"),
        (
            {"inputs": [TEXT], "tasks": ["intent"], "keep": {"intnt": 0.9}},
            "keep, of the tasks that are asked: unknown task 'intnt' (did you mean 'intent'? tasks: intent)",
        ),
        (
            {"inputs": [TEXT], "tasks": ["intent"], "speed": 0.5, "keep": {"intent": 0.9}},
            "ask for a speed or for a keep, not for both (task 'intent')",
        ),
        ({"tasks": ["tone"]}, "inputs: Field required"),
        ({"inputs": TEXT}, 'inputs: Input should be a valid list; found "wake me at seven"'),
        ({"inputs": []}, "inputs: List should have at least 1 item after validation, not 0; found an array of 0"),
        ({"inputs": [TEXT], "tasks": "tone"}, 'tasks: Input should be a valid list; found "tone"'),
        ({"inputs": [TEXT], "tasks": ["tone", 7]}, "tasks[1]: Input should be a valid string; found 7"),
        ({"inputs": [TEXT], "deadline_ms": "5"}, 'deadline_ms: Input should be a valid number; found "5"'),
        ({"inputs": [TEXT], "deadline_ms": 0}, "deadline_ms: Input should be greater than 0; found 0"),
        ({"inputs": [TEXT], "deadline_ms": True}, "deadline_ms: Input should be a valid number; found true"),
        ([TEXT], "the body must be an object with inputs, tasks, deadline_ms, speed, keep; found an array of 1"),
    ],
)
def test_what_is_wrong_in_a_request_is_said(client: TestClient, body: object, message: str) -> None:
    response = client.post("/v1/predict", json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["message"]) == ("invalid", message)
    assert error["request_id"] == response.headers["x-request-id"]


def test_an_unknown_task_is_answered_with_the_known_ones(client: TestClient) -> None:
    response = client.post("/v1/predict", json={"inputs": [TEXT], "tasks": ["intnt"]})
    assert response.status_code == 404
    assert response.json()["error"]["message"].startswith("unknown task 'intnt' (did you mean 'intent'? tasks: follows")


@pytest.mark.parametrize(
    ("refusal", "status", "code", "after"),
    [
        (errors.Invalid("no"), 422, "invalid", None),
        (errors.TooLarge("at most 5 inputs"), 413, "too_large", None),
        (errors.Overloaded("full", 0.2), 429, "overloaded", "1"),
        (errors.Unavailable("no worker", 2.3), 503, "unavailable", "3"),
        (errors.DeadlineExceeded("late"), 504, "deadline_exceeded", None),
    ],
)
def test_a_refusal_has_its_status_its_code_and_when_to_come_back(
    service: FakeService, client: TestClient, refusal: errors.Refusal, status: int, code: str, after: str | None
) -> None:
    service.refusal = refusal
    response = client.post("/v1/predict", json={"inputs": [TEXT]})
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["message"] == refusal.message
    assert response.headers.get("retry-after") == after


def test_a_deadline_reaches_the_service(service: FakeService, client: TestClient) -> None:
    ask(client, TEXT, deadline_ms=12.5)
    assert service.asked == [([TEXT], None, 12.5)]


def test_a_speed_reaches_the_service_and_the_answer_says_where_its_text_left(
    service: FakeService, client: TestClient
) -> None:
    plain = ask(client, TEXT, tasks=["intent", "tone"])
    assert plain["speeds"] == {}
    assert "exit_layer" not in plain["results"][0]["intent"]
    fast = ask(client, TEXT, tasks=["intent", "tone"], speed=1)
    assert fast["speeds"] == {"intent": 1.0, "tone": 0.0}
    assert fast["results"][0]["intent"]["exit_layer"] == 1
    assert 0 <= fast["results"][0]["intent"]["uncertainty"] <= 1
    assert fast["results"][0]["tone"] == plain["results"][0]["tone"]
    kept = ask(client, TEXT, tasks=["intent", "tone"], keep={"intent": 0.95}, speed=None)
    assert kept["speeds"] == {"intent": 0.4, "tone": 0.0}
    assert service.dialled == [(None, None), (1.0, None), (None, {"intent": 0.95})]


def test_a_task_that_flags_texts_says_of_each_whether_it_is_out_of_scope(client: TestClient) -> None:
    said = ask(client, "wake me at seven", "who was that?", tasks=["intent", "urgency"])["results"]
    assert [(row["urgency"]["out_of_scope"], row["urgency"]["scope"]) for row in said] == [(False, -0.5), (True, 0.5)]
    assert not {"out_of_scope", "scope"} & said[0]["intent"].keys()
    assert client.get("/v1/tasks").json()["tasks"][-1]["false_alarms"] == 0.05


def test_tasks_and_model_say_what_is_served(client: TestClient) -> None:
    tasks = client.get("/v1/tasks").json()["tasks"]
    assert [task["name"] for task in tasks] == sorted(TASKS)
    assert tasks[1] == {
        "name": "intent",
        "kind": "classification",
        "labels": ["alarm", "music", "weather"],
        "positive": None,
        "pair": False,
        "max_tokens": 64,
        "fork": 2,
        "layers": 1,
        "depth": 3,
        "branch": "1a" * 8,
        "loaded": True,
        "exits": [1, 2],
        "speeds": [point.model_dump() for point in SPEEDS],
        "false_alarms": None,
    }
    assert (tasks[4]["exits"], tasks[4]["speeds"]) == ([], [])
    model = client.get("/v1/model").json()
    assert model.pop("tasks") == tasks
    assert model == {
        "name": "support",
        "bundle": MODEL.bundle,
        "family": "bert",
        "depth": 4,
        "width": 32,
        "engine": "torch",
        "dtype": "float32",
        "device": "cpu",
    }


def test_health_tells_the_truth(service: FakeService, client: TestClient) -> None:
    for path, key in (("/health/live", "live"), ("/health/ready", "ready")):
        assert (client.get(path).status_code, client.get(path).json()) == (200, {key: True})
    service.ready = False
    assert (client.get("/health/ready").status_code, client.get("/health/ready").json()) == (503, {"ready": False})
    assert client.get("/health/live").status_code == 200
    service.live = False
    assert (client.get("/health/live").status_code, client.get("/health/live").json()) == (503, {"live": False})


def test_before_a_bundle_is_loaded_everything_else_is_unavailable() -> None:
    with TestClient(create_app(FakeService(model=None))) as client:
        for response in (
            client.get("/v1/model"),
            client.get("/v1/tasks"),
            client.get("/tasks/intent/info"),
            client.post("/v1/predict", json={"inputs": [TEXT]}),
        ):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
        assert client.get("/metrics").status_code == 200


def test_a_sane_request_id_comes_back_and_another_is_replaced(client: TestClient) -> None:
    assert client.get("/v1/model", headers={"X-Request-Id": "abc-1.2_Z"}).headers["x-request-id"] == "abc-1.2_Z"
    for odd in ("", "a b", "x" * 129, 'a"b', "é"):
        made = client.get("/v1/model", headers={"X-Request-Id": odd.encode("latin-1")}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", made)


def test_unknown_paths_and_methods_are_refused_in_the_same_shape(client: TestClient) -> None:
    assert client.get("/v1/predct").json()["error"]["code"] == "not_found"
    wrong = client.get("/v1/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "GET is not allowed here; allowed: POST"
    assert client.get("/v1/model/").status_code == 404  # not a redirect


def test_an_unexpected_failure_shows_nothing_and_is_logged_under_the_request_id(
    service: FakeService, client: TestClient, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError(TEXT)

    monkeypatch.setattr(service, "predict", broken)
    response = client.post("/v1/predict", json={"inputs": [TEXT]}, headers={"X-Request-Id": "find-me"})
    assert response.status_code == 500
    assert response.json() == {
        "error": {
            "code": "internal",
            "message": "the server failed; its log says more under request id find-me",
            "request_id": "find-me",
        }
    }
    failed, request = lines()
    assert (failed["event"], failed["error"], failed["request_id"]) == ("request failed", "KeyError", "find-me")
    assert any("broken" in frame for frame in failed["trace"])
    assert (request["event"], request["status"], request["level"]) == ("request", 500, "error")
    assert TEXT not in json.dumps(lines())
    assert client.get("/v1/model").status_code == 200


def test_a_request_is_logged_with_what_it_took_and_never_with_what_it_said(
    client: TestClient, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    ask(client, TEXT, TEXT, tasks=["tone", "intent"])
    client.get("/v1/secret?key=secret", headers={"Authorization": "Bearer secret"})
    answered, unknown = lines()
    assert answered.pop("ms") >= 0
    assert answered.pop("time").endswith("+00:00")
    assert re.fullmatch("[0-9a-f]{16}", answered.pop("request_id"))
    assert answered == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "route": "/v1/predict",
        "status": 200,
        "rows": 2,
        "tasks": ["tone", "intent"],
    }
    assert (unknown["route"], unknown["status"], unknown["rows"]) == (None, 404, 0)
    assert TEXT not in json.dumps(lines())
    assert "secret" not in json.dumps(lines())


def test_an_exception_from_elsewhere_is_logged_without_its_message() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    elsewhere = logging.getLogger("elsewhere")
    elsewhere.addHandler(handler)
    try:
        raise ValueError(TEXT)
    except ValueError:
        elsewhere.exception("it broke")
    finally:
        elsewhere.removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["error"], line["logger"]) == ("it broke", "ValueError", "elsewhere")
    assert TEXT not in stream.getvalue()


@pytest.mark.parametrize("wbits", [31, 15])
def test_a_packed_body_is_unpacked(client: TestClient, wbits: int) -> None:
    packer = zlib.compressobj(wbits=wbits)
    body = packer.compress(json.dumps({"inputs": [TEXT], "tasks": ["tone"]}).encode()) + packer.flush()
    encoding = {31: "gzip", 15: "deflate"}[wbits]
    response = client.post("/v1/predict", content=body, headers={"Content-Encoding": encoding})
    assert response.status_code == 200
    assert response.json()["results"] == ask(client, TEXT, tasks=["tone"])["results"]


def test_a_client_that_goes_ends_its_work(service: FakeService) -> None:
    service.seconds = 60.0
    body = json.dumps({"inputs": [TEXT]}).encode()
    sent: list[Message] = []

    async def run() -> None:
        asked = asyncio.Event()

        async def receive() -> Message:
            if not asked.is_set():
                asked.set()
                return {"type": "http.request", "body": body, "more_body": False}
            while not service.asked:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await asyncio.wait_for(create_app(service)(scope("POST", "/v1/predict"), receive, send), 10)

    asyncio.run(run())
    assert service.asked == [([TEXT], None, None)]
    assert service.cancelled == 1
    assert sent == []


def test_a_client_that_goes_while_it_sends_is_dropped(service: FakeService) -> None:
    arriving: Iterator[Message] = iter(
        [{"type": "http.request", "body": b'{"inp', "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(arriving)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(create_app(service)(scope("POST", "/v1/predict"), receive, send))
    assert (service.asked, sent) == ([], [])


def test_the_api_key_guards_everything_but_probes_and_the_playground(service: FakeService) -> None:
    with TestClient(create_app(service, Settings(keys=Keys(api="schlüssel")))) as client:
        right = {"Authorization": "bEaReR schlüssel".encode()}
        for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/", "/ui/app.js"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/model", "/v1/tasks", "/metrics", "/openapi.json", "/v2", "/tasks/intent/info", "/nothing"):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers=right).status_code in (200, 404), path
        for wrong in (
            b"Bearer schlussel",
            b"Bearer ",
            b"schl\xc3\xbcssel",
            b"Basic schl\xc3\xbcssel",
            b"Bearer \xff\xfe",
            b"",
        ):
            assert client.get("/v1/model", headers={"Authorization": wrong}).status_code == 401
        twice = [("Authorization", right["Authorization"]), ("Authorization", b"Bearer x")]
        assert client.get("/v1/model", headers=twice).status_code == 401


def test_no_key_shows_in_what_settings_print() -> None:
    assert "secret" not in repr(Settings(keys=Keys(api="secret-api", admin="secret-admin")))


def scope(method: str, path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }
