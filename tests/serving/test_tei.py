"""Tasks in the shape of Text Embeddings Inference: what its clients send, and what they get."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")

from serving.fakes import FakeService
from starlette.testclient import TestClient

from trunkline.engine.base import ItemError
from trunkline.project.tasks import Kind, answer
from trunkline.serving.app import create_app
from trunkline.serving.errors import Overloaded, Refusal, TooLarge, Unavailable
from trunkline.serving.replies import Reply

TEXT = "wake me at seven"


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as made:
        yield made


def post(client: TestClient, path: str, **body: Any) -> httpx.Response:
    return client.post(f"/tasks/{path}", json=body)


def test_one_text_gives_its_labels_the_best_first(client: TestClient) -> None:
    found = post(client, "intent/predict", inputs=TEXT).json()
    assert {prediction["label"] for prediction in found} == {"alarm", "music", "weather"}
    assert [set(prediction) for prediction in found] == [{"label", "score"}] * 3
    scores = [prediction["score"] for prediction in found]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    native = client.post("/v1/predict", json={"inputs": [TEXT], "tasks": ["intent"]}).json()["results"][0]["intent"]
    assert {prediction["label"]: prediction["score"] for prediction in found} == native["scores"]


def test_a_batch_gives_a_list_for_each(client: TestClient) -> None:
    one = post(client, "intent/predict", inputs=[TEXT]).json()
    batch = post(client, "intent/predict", inputs=[[TEXT], ["it rains"]]).json()
    assert batch == [one, post(client, "intent/predict", inputs="it rains").json()]
    assert post(client, "intent/predict", inputs=[[TEXT]]).json() == [one]


def test_a_list_of_two_strings_is_one_pair_as_there(service: FakeService, client: TestClient) -> None:
    pair = post(client, "follows/predict", inputs=[TEXT, "set an alarm"]).json()
    assert [set(prediction) for prediction in pair] == [{"label", "score"}] * 2
    assert post(client, "follows/predict", inputs=[[TEXT, "set an alarm"]]).json() == [pair]
    refused = post(client, "intent/predict", inputs=[TEXT, "it rains"])
    assert refused.status_code == 422
    assert "write a batch of texts as [[text], [text]]" in refused.json()["error"]


def test_labels_that_do_not_exclude_each_other_and_numbers_have_their_scores(client: TestClient) -> None:
    tone = post(client, "tone/predict", inputs=TEXT).json()
    assert {prediction["label"] for prediction in tone} == {"angry", "happy", "polite", "sad"}
    [urgency] = post(client, "urgency/predict", inputs=TEXT, raw_scores=True).json()
    assert urgency["label"] == "urgency"
    native = client.post("/v1/predict", json={"inputs": [TEXT], "tasks": ["urgency"]}).json()["results"][0]
    assert urgency["score"] == native["urgency"]["score"]


def test_rerank_sorts_by_relevance(client: TestClient) -> None:
    texts = [f"text number {number}" for number in range(9)]
    ranks = post(client, "same/rerank", query=TEXT, texts=texts).json()
    assert sorted(rank["index"] for rank in ranks) == list(range(9))
    assert [set(rank) for rank in ranks] == [{"index", "score"}] * 9
    scores = [rank["score"] for rank in ranks]
    assert scores == sorted(scores, reverse=True)
    pairs = [{"text": TEXT, "text_pair": text} for text in texts]
    native = client.post("/v1/predict", json={"inputs": pairs, "tasks": ["same"]}).json()["results"]
    assert scores == [native[rank["index"]]["same"]["scores"]["yes"] for rank in ranks]


def test_rerank_returns_texts_where_asked(client: TestClient) -> None:
    ranks = post(client, "same/rerank", query=TEXT, texts=["a", "b"], return_text=True, truncate=True).json()
    assert [rank["text"] for rank in ranks] == ["ab"[rank["index"]] for rank in ranks]


@pytest.mark.parametrize("logits", [(0.25, -1.5), (20.0, -20.0), (-400.0, 400.0)])
def test_raw_scores_of_a_relevance_are_its_log_odds(
    service: FakeService, client: TestClient, monkeypatch: pytest.MonkeyPatch, logits: tuple[float, float]
) -> None:
    plain = service.predict

    async def fixed(*args: Any, **more: Any) -> Reply:
        reply = await plain(*args, **more)
        found = answer(Kind.RELEVANCE, ("no", "yes"), "yes", np.asarray(logits))
        reply.answers[:] = [{"same": found}]
        return reply

    monkeypatch.setattr(service, "predict", fixed)
    [rank] = post(client, "same/rerank", query=TEXT, texts=["a"], raw_scores=True).json()
    assert rank["score"] == pytest.approx(max(-745, min(745, logits[1] - logits[0])), rel=1e-3)
    assert math.isfinite(rank["score"])


def test_a_speed_may_be_asked_for_and_a_header_says_which_was_used(service: FakeService, client: TestClient) -> None:
    plain = post(client, "intent/predict", inputs=TEXT)
    assert "x-trunkline-speed" not in plain.headers
    kept = post(client, "intent/predict", inputs=TEXT, keep=0.95)
    assert (kept.json(), kept.headers["x-trunkline-speed"]) == (plain.json(), "0.4")
    ranked = post(client, "same/rerank", query=TEXT, texts=["a", "b"], speed=0.5)
    assert ranked.headers["x-trunkline-speed"] == "0"  # it has no exits
    assert service.dialled == [(None, None), (None, 0.95), (0.5, None)]


def test_info_describes_a_task_as_a_model(service: FakeService, client: TestClient) -> None:
    info = client.get("/tasks/intent/info").json()
    assert info["model_id"] == "support/intent"
    assert info["model_sha"] == "1a" * 8
    assert info["model_dtype"] == "float32"
    assert info["max_input_length"] == 64
    assert info["max_client_batch_size"] == service.limits.items
    assert info["model_type"] == {
        "classifier": {
            "id2label": {"0": "alarm", "1": "music", "2": "weather"},
            "label2id": {"alarm": 0, "music": 1, "weather": 2},
        }
    }
    assert list(client.get("/tasks/same/info").json()["model_type"]) == ["reranker"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("intent/predict", {"inputs": TEXT, "truncate": False}, "texts are always cut at the task's max_input_length"),
        ("intent/predict", {"inputs": TEXT, "truncation_direction": "Left"}, "truncation_direction: Input should be"),
        ("intent/predict", {"inputs": TEXT, "raw_scores": True}, "gives probabilities only"),
        ("intent/predict", {"inputs": TEXT, "top_k": 1}, "unknown key 'top_k'"),
        ("intent/predict", {"inputs": TEXT, "speed": 2}, "speed is a number from 0 to 1; found 2"),
        (
            "intent/predict",
            {"inputs": TEXT, "speed": {"intent": 0.5}},
            "speed is a number from 0 to 1; found an object",
        ),
        ("intent/predict", {"inputs": TEXT, "speed": 0.5, "keep": 0.9}, "not for both"),
        ("same/rerank", {"query": TEXT, "texts": ["a"], "keep": "most"}, "keep is a number from 0 to 1"),
        ("intent/predict", {"inputs": []}, "inputs: give a text, a pair [text, text_pair] or a batch"),
        ("intent/predict", {"inputs": {"text": TEXT}}, "found an object of 1"),
        (
            "intent/predict",
            {"inputs": [[TEXT], []]},
            "inputs[1]: must be [text] or [text, text_pair]; found an array of 0",
        ),
        ("intent/predict", {"inputs": [[TEXT], TEXT]}, "inputs[1]: must be [text]"),
        (
            "follows/predict",
            {"inputs": ["a", "b", "c"]},
            "inputs: must be [text] or [text, text_pair]; found an array of 3",
        ),
        ("follows/predict", {"inputs": TEXT}, "text_pair is missing: this task reads pairs"),
        ("intent/predict", {"inputs": [[TEXT], [""]]}, "inputs[1]: text is empty"),
        ("slots/predict", {"inputs": TEXT}, "ask /v1/predict"),
        ("intent/rerank", {"query": TEXT, "texts": ["a"]}, "does not judge relevance (those that do: same)"),
        ("same/rerank", {"query": TEXT, "texts": []}, "texts: List should have at least 1 item"),
        ("same/rerank", {"query": TEXT, "texts": ["a", " "]}, "texts[1]: text_pair is empty"),
        ("same/rerank", {"texts": ["a"]}, "query: Field required"),
    ],
)
def test_what_the_shape_has_no_place_for_is_refused(
    client: TestClient, path: str, body: dict[str, Any], message: str
) -> None:
    response = client.post(f"/tasks/{path}", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"error", "error_type"}
    assert message in response.json()["error"]
    assert response.json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (Overloaded("full", 1.0), 429, "Overloaded"),
        (TooLarge("at most 4 inputs"), 413, "Validation"),
        (Unavailable("no worker", 1.0), 503, "Unhealthy"),
    ],
)
def test_refusals_come_in_that_shape(
    service: FakeService, client: TestClient, refusal: Refusal, status: int, kind: str
) -> None:
    service.refusal = refusal
    response = post(client, "intent/predict", inputs=TEXT)
    assert response.status_code == status
    assert response.json() == {"error": refusal.message, "error_type": kind}


def test_an_unknown_task_is_not_found(client: TestClient) -> None:
    for response in (post(client, "intnt/predict", inputs=TEXT), client.get("/tasks/intnt/info")):
        assert response.status_code == 404
        assert response.json()["error"].startswith("unknown task 'intnt' (did you mean 'intent'?")
    assert client.get("/tasks/intent/predict").status_code == 405
    assert set(client.get("/tasks/intent/predict").json()) == {"error", "error_type"}


def test_a_failure_of_the_engine_on_one_input_fails_the_request(
    service: FakeService, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = service.predict

    async def failing(*args: Any, **more: Any) -> Reply:
        reply = await plain(*args, **more)
        reply.answers[1]["intent"] = ItemError("the engine failed on this input")
        return reply

    monkeypatch.setattr(service, "predict", failing)
    response = post(client, "intent/predict", inputs=[["a"], ["b"]])
    assert (response.status_code, response.json()["error"]) == (422, "inputs[1]: the engine failed on this input")
