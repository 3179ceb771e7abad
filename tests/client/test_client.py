"""The client and its async twin against a server on a real socket: every test runs with both."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from email.utils import formatdate
from typing import Any

import pytest
from client.fake import REPLY, drop, hang, refuse, say, serving, trickle

from trunkline.client import (
    Answer,
    AsyncClient,
    BadReply,
    Client,
    ClientError,
    Input,
    ItemError,
    ServerError,
    Span,
    SpeedPoint,
    Timings,
    Unreachable,
)
from trunkline.errors import TrunklineError, UsageError

Use = Callable[..., Any]
TASK = {
    "name": "intent", "kind": "classification", "labels": ["alarm", "music"], "positive": None, "pair": False,
    "max_tokens": 128, "fork": 4, "layers": 1, "depth": 5, "branch": "b" * 16, "loaded": True,
    "exits": [2, 4],
    "speeds": [
        {"speed": 0.0, "quality": 0.9, "error": 0.01, "layers": 5.0, "time": 1.0, "exits": []},
        {"speed": 0.5, "quality": 0.8, "error": 0.01, "layers": 3.0, "time": 0.6},
    ],
}  # fmt: skip
MODEL = {
    "name": "assistant", "bundle": "a" * 16, "family": "bert", "depth": 6, "width": 384, "engine": "openvino",
    "dtype": "bf16", "device": "cpu", "tasks": [TASK],
}  # fmt: skip


@pytest.fixture(params=["sync", "async"])
def use(request: pytest.FixtureRequest) -> Use:
    """`use(url, "predict", …)`: one call on a fresh client; `use(url, [("predict", …), …])`: several on the same."""

    def calls(
        url: str, *call: Any, timeout: float = 5.0, retry: bool = True, key: str | None = None, **named: Any
    ) -> Any:
        several = call[0] if isinstance(call[0], list) else [call]
        options: dict[str, Any] = {"timeout": timeout, "retry": retry, "key": key}
        if request.param == "sync":
            with Client(url, **options) as client:
                found = [getattr(client, name)(*given, **named) for name, *given in several]
        else:

            async def all_of_them() -> list[Any]:
                async with AsyncClient(url, **options) as client:
                    return [await getattr(client, name)(*given, **named) for name, *given in several]

            found = asyncio.run(all_of_them())
        return found if isinstance(call[0], list) else found[0]

    return calls


def test_answers_come_typed_with_what_gave_them(use: Use) -> None:
    with serving(say(REPLY)) as server:
        reply = use(server.url, "predict", ["weck mich um siebn"], ["intent", "slots", "urgency", "same"])
    assert reply.answers == [
        {
            "intent": Answer(label="alarm", score=0.9, scores={"alarm": 0.9, "music": 0.1}),
            "slots": Answer(
                spans=[Span("time", 11, 16, "siebn", 0.8)],
                words=["weck", "mich", "um", "siebn"],
                tags=["O", "O", "O", "B-time"],
            ),
            "urgency": Answer(score=0.25),
            "same": ItemError("text_pair is missing: this task reads pairs"),
        }
    ]
    assert (reply.model, reply.bundle, reply.layers) == ("assistant", "a" * 16, 6)
    assert reply.branches == {"intent": "b" * 16, "slots": "c" * 16, "urgency": "d" * 16}
    assert reply.timings == Timings(queue=0.1, tokenise=0.2, trunk=3.0, branches=1.0, total=4.4)
    with pytest.raises(FrozenInstanceError):
        reply.layers = 7
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/predict")
    assert asked.body == {"inputs": ["weck mich um siebn"], "tasks": ["intent", "slots", "urgency", "same"]}
    assert asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers


def test_every_form_of_input_goes_out_in_one_request_and_what_is_none_is_left_to_the_server(use: Use) -> None:
    inputs = ["a", ("a", "b"), {"text": "a", "text_pair": "b"}, Input("a b", words=((0, 1), (2, 3))), 7]
    with serving(say({**REPLY, "results": REPLY["results"] * 5})) as server:  # type: ignore[operator]
        use(server.url, "predict", inputs)
    pair = {"text": "a", "text_pair": "b"}
    assert server.asked[0].body == {"inputs": ["a", pair, pair, {"text": "a b", "words": [[0, 1], [2, 3]]}, 7]}


def test_a_speed_goes_out_as_given_and_where_texts_left_comes_back(use: Use) -> None:
    answer = {"label": "alarm", "score": 0.9, "exit_layer": 2, "uncertainty": 0.125, "branch": "b" * 16}
    content = {**REPLY, "results": [{"intent": answer}], "speeds": {"intent": 0.4}}
    with serving(say(content)) as server:
        reply = use(server.url, "predict", ["weck mich"], speed={"intent": 0.4})
        use(server.url, "predict", ["weck mich"], keep=0.98)
        use(server.url, "predict", ["weck mich"])
    assert reply.answers[0]["intent"] == Answer(label="alarm", score=0.9, exit_layer=2, uncertainty=0.125)
    assert reply.speeds == {"intent": 0.4}
    dialled = [{key: asked.body[key] for key in asked.body if key != "inputs"} for asked in server.asked]
    assert dialled == [{"speed": {"intent": 0.4}}, {"keep": 0.98}, {}]


def test_any_text_comes_back_as_it_went_out_half_a_surrogate_pair_too(use: Use) -> None:
    text = "grüße 你好 👩‍👩‍👧 \u0000 \ud83d"
    results = [{"intent": {"label": text, "score": 1.0, "scores": {text: 1.0}, "branch": "b"}}]
    with serving(say({**REPLY, "results": results})) as server:
        reply = use(server.url, "predict", [text])
    assert server.asked[0].body["inputs"] == [text]
    assert reply.answers[0]["intent"].label == text


def test_what_is_served_comes_typed_and_a_newer_servers_fields_are_passed_over(use: Use) -> None:
    task = {**TASK, "owner": "someone"}
    with serving(say({"tasks": [task]}), say({**MODEL, "tasks": [task], "uptime": 7})) as server:
        tasks, model = use(server.url, [("tasks",), ("model",)])
    assert [asked.path for asked in server.asked] == ["/v1/tasks", "/v1/model"]
    assert tasks == model.tasks
    assert (tasks["intent"].labels, tasks["intent"].kind, tasks["intent"].fork) == (
        ("alarm", "music"),
        "classification",
        4,
    )
    assert (tasks["intent"].depth, tasks["intent"].exits) == (5, (2, 4))
    assert tasks["intent"].speeds == (
        SpeedPoint(speed=0.0, quality=0.9, error=0.01, layers=5.0, time=1.0, exits=()),
        SpeedPoint(speed=0.5, quality=0.8, error=0.01, layers=3.0, time=0.6),  # of a bundle made before there were any
    )
    assert (model.name, model.bundle, model.engine, model.depth) == ("assistant", "a" * 16, "openvino", 6)


def test_ready_tells_a_server_that_answers_from_one_that_does_not(use: Use) -> None:
    with serving(say({"ready": True}), say({"ready": False}, 503)) as server:
        assert use(server.url, [("ready",), ("ready",)]) == [True, False]
    assert [asked.path for asked in server.asked] == ["/health/ready"] * 2
    assert use(server.url, "ready") is False  # it has gone
    with serving(refuse(500, "internal")) as server, pytest.raises(ServerError):
        use(server.url, "ready")


def test_the_key_is_sent_and_never_shown(use: Use) -> None:
    with serving(say(REPLY)) as server:
        use(server.url, "predict", ["a"], key="s3cret\n")
    assert server.asked[0].headers["authorization"] == "Bearer s3cret"
    client = Client("http://user:s3cret@example.org/path/", key="s3cret")
    assert repr(client) == "Client('http://example.org/path')"
    client.close()


def test_calls_of_one_client_share_a_connection(use: Use) -> None:
    with serving(say(REPLY)) as server:
        use(server.url, [("predict", ["a"])] * 3)
    assert len({asked.port for asked in server.asked}) == 1


def test_a_refused_request_is_sent_again_when_the_server_says(use: Use) -> None:
    with serving(refuse(429, "overloaded", Retry_After="0.2"), say(REPLY)) as server:
        assert use(server.url, "predict", ["a"]).layers == 6
    first, second = server.asked
    assert first.body == second.body
    assert second.at - first.at >= 0.2


def test_a_server_that_stays_away_is_asked_until_the_time_is_over(use: Use) -> None:
    start = time.monotonic()
    with (
        serving(refuse(503, "unavailable", "no worker", Retry_After="0.1")) as server,
        pytest.raises(ServerError, match=r"503 unavailable: no worker \(request r-1\)") as raised,
    ):
        use(server.url, "predict", ["a"], timeout=0.6)
    assert time.monotonic() - start < 3
    assert 2 <= len(server.asked) <= 6
    error = raised.value
    assert (error.status, error.code, error.request_id, error.retry_after) == (503, "unavailable", "r-1", 0.1)


@pytest.mark.parametrize("retry_after", ["60", formatdate(time.time() + 86_400, usegmt=True)], ids=["seconds", "date"])
def test_a_wait_that_is_longer_than_the_time_left_is_not_begun(use: Use, retry_after: str) -> None:
    start = time.monotonic()
    with serving(refuse(503, "unavailable", Retry_After=retry_after)) as server, pytest.raises(ServerError):
        use(server.url, "predict", ["a"])
    assert len(server.asked) == 1
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "code"), [(401, "unauthorised"), (404, "not_found"), (413, "too_large"), (422, "invalid")]
)
def test_what_would_be_refused_again_is_not_sent_again_nor_split(use: Use, status: int, code: str) -> None:
    with serving(refuse(status, code, "at most 2 inputs")) as server, pytest.raises(ServerError) as raised:
        use(server.url, "predict", ["a", "b", "c"])
    assert len(server.asked) == 1
    assert (raised.value.status, raised.value.code, raised.value.message) == (status, code, "at most 2 inputs")


def test_a_503_without_a_time_is_final_from_the_server_and_passing_from_a_proxy(use: Use) -> None:
    with serving(refuse(503, "unavailable", "task 'intent' is unloaded")) as server, pytest.raises(ServerError):
        use(server.url, "predict", ["a"])
    assert len(server.asked) == 1
    with serving(say(b"<h1>no healthy upstream</h1>", 503), say(REPLY)) as server:
        assert use(server.url, "predict", ["a"]).layers == 6


def test_a_proxys_error_keeps_its_status_and_its_words(use: Use) -> None:
    with serving(say(b"<h1>Bad Gateway</h1>", 502, X_Request_Id="p-9")) as server, pytest.raises(ServerError) as raised:
        use(server.url, "predict", ["a"])
    assert (raised.value.status, raised.value.code, raised.value.request_id) == (502, "", "p-9")
    assert str(raised.value) == "502: <h1>Bad Gateway</h1> (request p-9)"


def test_each_try_sends_what_is_left_of_the_deadline_and_none_follows_it(use: Use) -> None:
    with serving(refuse(429, "overloaded", Retry_After="0.4")) as server, pytest.raises(ServerError):
        use(server.url, "predict", ["a"], deadline_ms=1600.0)
    left = [asked.body["deadline_ms"] for asked in server.asked]
    assert 2 <= len(left) <= 5
    assert left == sorted(left, reverse=True)
    assert 1400 < left[0] <= 1600
    assert left[1] < 1200


def test_a_deadline_that_passed_in_the_server_is_its_answer(use: Use) -> None:
    with serving(refuse(504, "deadline_exceeded")) as server, pytest.raises(ServerError) as raised:
        use(server.url, "predict", ["a"], deadline_ms=5.0)
    assert (raised.value.status, len(server.asked)) == (504, 1)


def test_a_dropped_connection_is_tried_again(use: Use) -> None:
    with serving(drop, drop, say(REPLY)) as server:
        assert use(server.url, "predict", ["a"]).layers == 6
    assert len(server.asked) == 3


def test_a_connection_that_always_drops_is_given_up_after_five_more_tries(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.client.calls.FIRST_PAUSE", 0.001)
    with serving(drop) as server, pytest.raises(Unreachable, match=server.url):
        use(server.url, "predict", ["a"])
    assert len(server.asked) == 6


@pytest.mark.parametrize("step", [refuse(429, "overloaded", Retry_After="0"), drop])
def test_without_retry_nothing_is_tried_again(use: Use, step: Any) -> None:
    with serving(step) as server, pytest.raises(ClientError):
        use(server.url, "predict", ["a"], retry=False)
    assert len(server.asked) == 1


@pytest.mark.parametrize("step", [hang, trickle])
def test_a_silent_or_endless_server_costs_no_more_than_the_time_allowed(use: Use, step: Any) -> None:
    start = time.monotonic()
    with serving(step) as server, pytest.raises(Unreachable, match=r"within 0\.3 s"):
        use(server.url, "predict", ["a"], timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 3


def test_nobody_there_is_unreachable(use: Use) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(Unreachable, match=url):
            use(url, "predict", ["a"], retry=False)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"results": [', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "native wire"),
        (b'"well"', "native wire"),
        (json.dumps({**REPLY, "results": []}).encode(), "0 results for 1 inputs"),
        (json.dumps({**REPLY, "results": [{"intent": 7}]}).encode(), "native wire"),
        (json.dumps({**REPLY, "timings": {}}).encode(), "native wire"),
        (json.dumps({**REPLY, "speeds": 0.5}).encode(), "native wire"),
    ],
)
def test_a_reply_that_is_none_is_a_bad_reply_and_not_asked_for_again(use: Use, body: bytes, reason: str) -> None:
    with serving(say(body)) as server, pytest.raises(BadReply, match=reason):
        use(server.url, "predict", ["a"])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        (("a",), {}, r"write \[text\]"),
        (({"text": "a"},), {}, r"write \[text\]"),
        ((["a"], "intent"), {}, r"write \['intent'\]"),
        ((["a", float("nan")],), {}, "JSON"),
        (([{"text": object()}],), {}, "JSON"),
        ((["a"],), {"deadline_ms": 0}, "more than 0"),
        ((["a"],), {"speed": float("nan")}, "JSON"),
    ],
)
def test_what_can_never_be_sent_is_said_before_anything_is(use: Use, given: Any, named: Any, message: str) -> None:
    with serving(say(REPLY)) as server, pytest.raises(UsageError, match=message):
        use(server.url, "predict", *given, **named)
    assert server.asked == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "options",
    [
        {"url": "127.0.0.1:8080"},
        {"url": "ftp://host"},
        {"url": "http://"},
        {"key": " "},
        {"key": "a\nb"},
        {"timeout": 0},
    ],
)
def test_a_client_that_could_never_work_is_not_made(kind: type, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        kind(**options)


def test_every_error_of_the_client_is_one_of_trunklines() -> None:
    for kind in (ServerError, Unreachable, BadReply):
        assert issubclass(kind, ClientError)
    assert issubclass(ClientError, TrunklineError)


def test_importing_the_client_loads_neither_models_nor_servers() -> None:
    heavy = {
        "torch",
        "transformers",
        "tokenizers",
        "openvino",
        "pydantic",
        "fastapi",
        "starlette",
        "uvicorn",
        "sklearn",
    }
    code = f"import sys, trunkline.client; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
