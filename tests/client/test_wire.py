"""The client and the server's native wire agree: both ends are the real ones, on a real socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import pytest
from serving.fakes import MODEL, FakeService

from trunkline.client import AsyncClient, Client, ServerError
from trunkline.serving.errors import DeadlineExceeded, Overloaded, TooLarge, Unavailable
from trunkline.serving.native import described

INPUTS = ["wake me at 7", ("wake me", "set an alarm"), {"text": "größe \ud83d"}, {"text": "a", "txt": "b"}, 7, " "]


def test_the_client_answers_what_the_service_answers(served: tuple[str, FakeService]) -> None:
    url, service = served
    with Client(url) as client:
        reply = client.predict(INPUTS)
    expected = asyncio.run(FakeService().predict(INPUTS))
    assert reply.answers == expected.answers
    assert (reply.model, reply.bundle, reply.layers) == (MODEL.name, MODEL.bundle, expected.layers)
    assert reply.branches == {name: task.branch for name, task in MODEL.tasks.items()}
    assert asdict(reply.timings) == asdict(expected.timings)
    assert service.asked[0][2] is None


def test_the_client_describes_the_model_as_the_service_does(served: tuple[str, FakeService]) -> None:
    with Client(served[0]) as client:
        found = asdict(client.model())
        assert as_json({**found, "tasks": list(found["tasks"].values())}) == as_json(described(MODEL))
        assert client.tasks() == client.model().tasks
        assert client.ready() is True
        served[1].ready = False
        assert client.ready() is False


def as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_the_client_asks_for_a_speed_as_the_service_understands_it(served: tuple[str, FakeService]) -> None:
    url, service = served
    with Client(url) as client:
        fast = client.predict(INPUTS, ["intent", "tone"], speed=1)
        kept = client.predict(INPUTS, ["intent"], keep={"intent": 0.95})
    expected = asyncio.run(FakeService().predict(INPUTS, ["intent", "tone"], speed=1))
    assert fast.answers == expected.answers
    assert fast.answers[0]["intent"].exit_layer == 1  # type: ignore[union-attr]
    assert (fast.speeds, kept.speeds) == ({"intent": 1.0, "tone": 0.0}, {"intent": 0.4})
    assert service.dialled == [(1.0, None), (None, {"intent": 0.95})]


def test_a_flag_of_out_of_scope_arrives(served: tuple[str, FakeService]) -> None:
    with Client(served[0]) as client:
        found, tasks = client.predict(["who was that?"], ["urgency", "intent"]), client.tasks()
    assert (found.answers[0]["urgency"].out_of_scope, found.answers[0]["urgency"].scope) == (True, 0.5)  # type: ignore[union-attr]
    assert found.answers[0]["intent"].out_of_scope is None  # type: ignore[union-attr]
    assert (tasks["urgency"].false_alarms, tasks["intent"].false_alarms) == (0.05, None)


@pytest.mark.parametrize(
    "refusal",
    [Overloaded("the queue is full", 60.0), Unavailable("unloaded"), TooLarge("at most 3"), DeadlineExceeded("late")],
)
def test_a_refusal_of_the_service_is_a_server_error_of_the_client(
    served: tuple[str, FakeService], refusal: Overloaded | Unavailable | TooLarge | DeadlineExceeded
) -> None:
    url, service = served
    service.refusal = refusal
    with Client(url) as client, pytest.raises(ServerError) as raised:
        client.predict(["a"])
    error = raised.value
    assert (error.status, error.message, error.retry_after) == (refusal.status, refusal.message, refusal.retry_after)
    assert error.code
    assert error.request_id
    assert len(service.asked) == 1


def test_a_cancelled_call_frees_its_place_in_the_server(served: tuple[str, FakeService]) -> None:
    url, service = served
    service.seconds = 30.0

    async def impatient() -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.predict(["a"])
            for _ in range(200):
                if service.cancelled:
                    break
                await asyncio.sleep(0.01)

    asyncio.run(impatient())
    assert service.cancelled == 1
