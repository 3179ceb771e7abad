"""Speeds with a real worker: what is asked for, what load makes of it, and what a swap does to it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from branches import INPUTS, branch_files, load_trunk, random_branch, tiny_source
from serving.faults import HOLD, Faulty

from trunkline.bundle import Bundle
from trunkline.bundle.merge import merge
from trunkline.engine import ItemError
from trunkline.engine.planned import PlannedEngine
from trunkline.errors import BundleError
from trunkline.model.branch import save_branch
from trunkline.project.speed import SpeedPoint, fastest
from trunkline.project.speed import dials as dials_of
from trunkline.project.tasks import Answer
from trunkline.serving.errors import DeadlineExceeded, Invalid, Overloaded, Refusal
from trunkline.serving.limits import Limits
from trunkline.serving.link import NAME
from trunkline.serving.loading import prove
from trunkline.serving.replies import Batch, Event, Finished, Reply
from trunkline.serving.service import Service

EXITS = [{"depth": depth, "form": "linear"} for depth in (1, 2, 3)]
POINTS = [
    {"speed": 0.0, "quality": 0.9, "layers": 4.0, "time": 1.0, "exits": []},
    {"speed": 0.4, "quality": 0.89, "layers": 3.0, "time": 0.8},
    {"speed": 0.8, "quality": 0.6, "layers": 2.0, "time": 0.5},
]
OTHERS = [POINTS[0], {"speed": 0.6, "quality": 0.88, "layers": 3.0, "time": 0.7}]
SORTS: dict[str, dict[str, Any]] = {
    "intent": {"fork": 3, "layers": 1, "exits": EXITS, "speeds": POINTS},
    "own": {"fork": 1, "layers": 3, "exits": EXITS, "speeds": POINTS},
    "plain": {"fork": 2, "layers": 1},
}
TEXTS = ["wake me at seven", "play some music", "will it rain today or not"]
LIMITS = Limits(queue_rows=64, batch_rows=16, floor=0.95, deadline_ms=300_000)
PATIENT = 60_000.0  # milliseconds: a restart on a busy machine


@dataclass
class Served:
    """A running service with a floor, the gate of its engine, and what both bundles are."""

    service: Service
    gate: Path
    first: Path
    second: Path
    events: list[Event] = field(default_factory=list)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Batches with HOLD wait until the end of the block."""
        self.gate.touch()
        try:
            yield
        finally:
            self.gate.unlink()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as made:
        yield made


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`second` has another branch for "intent", whose speeds come to something else."""
    folder = tmp_path_factory.mktemp("speeds")
    source = tiny_source(folder / "encoder")
    trunk = load_trunk(source)
    files = branch_files(folder / "branches", trunk, SORTS)
    first = merge(source, files, INPUTS, folder / "bundles", name="speeds")
    other = random_branch(trunk, "intent", seed=9, **{**SORTS["intent"], "speeds": OTHERS})
    save_branch(other, folder / "intent.safetensors")
    files["intent"] = folder / "intent.safetensors"
    second = merge(source, files, INPUTS, folder / "bundles", first, name="speeds")
    gate = folder / "gate"
    service = Service(first, limits=LIMITS, loading=Faulty(gate=gate))
    made = Served(service, gate, first, second)
    service.subscribe(made.events.append)
    runner.run(service.start())
    yield made
    runner.run(service.drain())


@pytest.fixture
def served(shared: Served, runner: asyncio.Runner) -> Served:
    """With the first bundle."""

    async def fresh() -> None:
        await until(lambda: shared.service.ready)
        await shared.service.swap(shared.first)
        shared.events.clear()

    runner.run(fresh())
    return shared


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


def left(answer: Answer | ItemError) -> int | None:
    assert isinstance(answer, Answer)
    return answer.exit_layer


def test_a_task_says_where_texts_may_leave_it_and_what_speeds_come_to(served: Served) -> None:
    tasks = served.service.model.tasks
    assert (tasks["intent"].depth, tasks["intent"].exits) == (4, (1, 2, 3))
    assert tasks["intent"].speeds == tuple(map(SpeedPoint.model_validate, POINTS))
    assert (tasks["plain"].depth, tasks["plain"].exits, tasks["plain"].speeds) == (3, (), ())


def test_a_bundle_is_proved_by_the_way_past_all_exits_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
    bundle = Bundle.load(served.first, engine="openvino")
    prove(bundle, bundle.tasks)
    assert isinstance(bundle.engine, PlannedEngine)
    backend: Any = bundle.engine.backend
    monkeypatch.setattr(backend, "own_layer", lambda *asked: asked[2])  # a layer that does nothing
    with pytest.raises(BundleError, match=r"task 'own' is off by .* on its stored probes"):
        prove(bundle, bundle.tasks)


def test_answers_are_those_of_the_bundle_at_the_speed_and_say_which_it_was(
    served: Served, runner: asyncio.Runner
) -> None:
    bundle = Bundle.load(served.first)

    async def run() -> None:
        for dial in ({}, {"speed": 1.0}, {"speed": {"own": 0.9}}, {"keep": 0.95}, {"keep": {"intent": 0.1}}):
            reply = await served.service.predict(TEXTS, **dial)
            expected = bundle.predict(TEXTS, **dial)
            assert [[left(row[task]) for task in SORTS] for row in reply.answers] == [
                [left(row[task]) for task in SORTS] for row in expected
            ]
        assert reply.speeds == {"intent": 0.8, "own": 0.0, "plain": 0.0}
        assert (await served.service.predict(TEXTS)).speeds == {}
        assert (await served.service.predict(TEXTS, ["own"], keep=0.95)).speeds == {"own": 0.4}

    runner.run(run())


def test_a_reply_counts_the_trunk_layers_that_its_answers_needed(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        async def layers(*tasks: str, **dial: Any) -> int:
            return (await served.service.predict(TEXTS, list(tasks), **dial)).layers

        assert await layers("intent") == 3
        assert await layers("intent", speed=1.0) == 1
        assert await layers("intent", speed=1e-9) == 3  # to the head
        assert await layers("intent", "plain", speed=1.0) == 2
        assert await layers("own", speed=1.0) == 1
        assert (await served.service.predict([""], ["intent"], speed=1.0)).layers == 0

    runner.run(run())


def test_where_texts_left_is_told_to_those_who_count(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        await served.service.predict([*TEXTS, ""], ["intent", "plain"], speed=1.0)
        await served.service.predict(TEXTS)
        fast, plain = served.of(Finished)
        assert {task: (one.speed, dict(one.layers)) for task, one in fast.exits.items()} == {"intent": (1.0, {1: 3})}
        assert plain.exits == {}

    runner.run(run())


@pytest.mark.parametrize(
    ("dial", "message"),
    [
        ({"speed": 1.5}, "speed is a number from 0 to 1; found 1.5"),
        ({"keep": {"intnt": 0.9}}, "keep, of the tasks that are asked: unknown task 'intnt' .did you mean 'intent'"),
        ({"speed": 0.5, "keep": 0.9}, "not for both"),
    ],
)
def test_what_no_dial_has_is_refused(
    served: Served, runner: asyncio.Runner, dial: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        runner.run(served.service.predict(TEXTS, **dial))
    assert [event.status for event in served.of(Finished)] == [422]


def test_load_raises_speeds_to_the_floor_and_no_further_and_its_end_ends_that(
    served: Served, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        service = served.service
        with served.held():
            engine = asyncio.create_task(service.predict([HOLD], ["intent"]))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not service.waiting
            asked = [{"speed": 0.8}, {"keep": 0.999}, {"speed": 0.1}] + [{}] * 57
            waiting = [asyncio.create_task(service.predict(["no"], ["intent", "plain"], **dial)) for dial in asked]
            await until(lambda: service.waiting == 60 - LIMITS.batch_rows)
            assert service.level == 1
        replies: list[Reply] = await asyncio.gather(*waiting)
        assert (await engine).speeds == {}
        fast = [reply.speeds["intent"] for reply in replies[:3]]
        assert fast == [0.8, 0.4, 0.4]  # at least what was asked for
        assert replies[0].speeds["plain"] == 0
        raised = [reply.speeds for reply in replies[3:]]
        assert raised == [{"intent": 0.4}] * 45 + [{}] * 12  # the last batch leaves nothing behind that waits
        assert left(replies[3].answers[0]["intent"]) is not None
        assert left(replies[-1].answers[0]["intent"]) is None
        assert service.level == 0
        assert (await service.predict(["no"], ["intent"])).speeds == {}
        assert [event.rows for event in served.of(Batch)] == [1, 16, 16, 16, 12, 1]

    runner.run(run())


async def hasty(service: Service, served: Served) -> Refusal:
    """What becomes of a request without time behind a queue at which no more speed can be given."""
    with served.held():
        engine = asyncio.create_task(service.predict([HOLD], ["intent"]))
        for _ in range(5):
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(service.predict(["no"], ["intent"])) for _ in range(60)]
        await until(lambda: service.waiting == 60 - LIMITS.batch_rows)
        assert service.level == 1
        with pytest.raises(Refusal) as caught:
            await service.predict(["no time"], ["intent"], deadline_ms=0.01)
    await asyncio.gather(engine, *waiting)
    return caught.value


def test_the_pace_of_full_depth_refuses_nothing_that_more_speed_may_answer_in_time(
    served: Served, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        service = Service(served.first, limits=LIMITS, loading=Faulty(gate=served.gate))
        await service.start()
        await service.predict(["no"] * LIMITS.batch_rows, ["intent"])  # tells the pace of full depth
        assert isinstance(await hasty(service, served), DeadlineExceeded)  # it was let in
        assert isinstance(await hasty(service, served), Overloaded)  # by what the first batches at the floor took
        await service.swap(served.second)
        assert isinstance(await hasty(service, served), DeadlineExceeded)  # of this bundle nothing is known
        await service.drain()

    runner.run(run())


def test_batches_that_were_settled_below_the_floor_do_not_tell_the_pace_there(
    served: Served, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        service = Service(served.first, limits=LIMITS, loading=Faulty(gate=served.gate))
        batches: list[Any] = []
        service.subscribe(batches.append)
        await service.start()
        with served.held():
            engine = asyncio.create_task(service.predict([HOLD], ["intent"]))
            for _ in range(5):
                await asyncio.sleep(0)
            large = asyncio.create_task(service.predict(["no"] * 2 * LIMITS.batch_rows, ["intent"]))
            await until(lambda: service.waiting == LIMITS.batch_rows)
            assert 0 < service.level < 1  # at which its second half will run, too
            soon = asyncio.create_task(service.predict(["soon"], ["intent"], deadline_ms=2_000))
            await asyncio.sleep(1.2)  # most of its time
        await asyncio.gather(engine, large, soon)
        assert [batch.rows for batch in batches if isinstance(batch, Batch)] == [1, 16, 16, 1]
        assert isinstance(await hasty(service, served), DeadlineExceeded)
        await service.drain()

    runner.run(run())


def test_what_waits_for_much_of_its_own_deadline_raises_speeds_as_a_long_queue_does(
    served: Served, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        service, loop = served.service, asyncio.get_running_loop()
        with served.held():
            engine = asyncio.create_task(service.predict([HOLD], ["intent"]))
            for _ in range(5):
                await asyncio.sleep(0)
            waiting = [asyncio.create_task(service.predict(["no"], ["intent"], deadline_ms=8000)) for _ in range(20)]
            await until(lambda: service.waiting == 20 - LIMITS.batch_rows)  # few, as the queue may hold so many more
            asked = loop.time()
            await until(lambda: loop.time() - asked > 2.5)
            assert service.level == 0
        replies: list[Reply] = await asyncio.gather(*waiting)
        assert [reply.speeds for reply in replies] == [{}] * LIMITS.batch_rows + [{"intent": 0.4}] * 4
        assert (await engine).speeds == {}
        assert (service.level, (await service.predict(["no"], ["intent"])).speeds) == (0, {})

    runner.run(run())


def test_swaps_under_load_leave_every_reply_at_speeds_of_the_bundle_that_answered(
    served: Served, runner: asyncio.Runner
) -> None:
    bundles = {folder.name: Bundle.load(folder) for folder in (served.first, served.second)}
    dials: list[dict[str, Any]] = [{}, {"speed": 0.2}, {"keep": {"own": 0.5}, "speed": {"intent": 0.7}}, {"keep": 0.99}]
    assert LIMITS.floor is not None

    def check(dial: dict[str, Any], reply: Reply) -> bool:
        """Whether load raised a speed."""
        bundle = bundles[reply.model.bundle]
        asked = {task: one.of(reply.model.tasks[task].speeds) for task, one in dials_of(list(SORTS), **dial).items()}
        most = {task: fastest(info.speeds, LIMITS.floor or 1) for task, info in reply.model.tasks.items() if info.exits}
        for task, speed in reply.speeds.items():
            assert asked[task] <= speed <= max(asked[task], most.get(task, 0.0))
        assert set(reply.speeds) == set(SORTS) if dial else set(reply.speeds) <= set(most)
        expected = bundle.predict(TEXTS, speed=dict(reply.speeds))
        assert [[left(row[task]) for task in SORTS] for row in reply.answers] == [
            [left(row[task]) for task in SORTS] for row in expected
        ]
        return any(speed > asked[task] for task, speed in reply.speeds.items())

    async def run() -> None:
        async def client(first: int) -> list[bool]:
            turn = dials[first:] + dials[:first]
            return [check(dial, await served.service.predict(TEXTS, **dial)) for dial in turn]

        clients = [asyncio.create_task(client(number % len(dials))) for number in range(20)]
        for folder in (served.second, served.first, served.second):
            await served.service.swap(folder)
        raised = [one for found in await asyncio.gather(*clients) for one in found]
        assert any(raised)
        assert not all(raised)
        assert served.service.level == 0

    runner.run(run())


def test_a_request_that_moves_to_another_bundle_runs_at_the_speed_that_keeps_as_much_there(
    served: Served, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        service = served.service
        with served.held():
            inputs = ["no"] * LIMITS.batch_rows + [HOLD]  # the first batch is answered, the second waits
            moved = asyncio.create_task(service.predict(inputs, ["intent"], keep=0.95, deadline_ms=PATIENT))
            await until(lambda: bool(served.of(Batch)))
            await service.swap(served.second)
            [pid] = [child.pid for child in multiprocessing.active_children() if child.name == NAME]
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        reply = await moved
        assert (reply.model.bundle, reply.speeds) == (served.second.name, {"intent": 0.6})
        expected = Bundle.load(served.second).predict(inputs, ["intent"], keep=0.95)
        assert [left(row["intent"]) for row in reply.answers] == [left(row["intent"]) for row in expected]

    runner.run(run())
