"""The serving core with real workers: right answers, one bundle each, under load, faults and swaps."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from branches import ALL_SORTS, INPUTS
from serving.conftest import Bundles
from serving.faults import DIE, HOLD, RAISE, Faulty, Noted

from trunkline.atomic import in_use, write_json
from trunkline.bundle import Bundle, Releases
from trunkline.bundle.manifest import file_hash
from trunkline.engine import ItemError
from trunkline.project.tasks import Answer
from trunkline.serving.errors import (
    DeadlineExceeded,
    Invalid,
    NotFound,
    Overloaded,
    Refusal,
    TooLarge,
    Unavailable,
)
from trunkline.serving.limits import Limits
from trunkline.serving.link import NAME
from trunkline.serving.loading import Loading
from trunkline.serving.replies import Batch, Event, Finished, Reply, Swapped, WorkerStopped
from trunkline.serving.service import Service
from trunkline.serving.worker import main

TEXTS = ["wake me at seven", "play some music", "no", "will it rain today or not", "find a table for two"]
LIMITS = Limits(
    items=80,
    characters=2000,
    queue_rows=64,
    queue_tokens=1500,
    batch_rows=16,
    batch_tokens=400,
    batch_age_ms=500.0,
    ready_seconds=3.0,
    worker_timeout=8.0,  # a batch on a busy machine
)
PATIENT = 60_000.0  # milliseconds: a restart on a busy machine


class Served:
    """A running service, the gate of its engine, and the events since `events` was last cleared."""

    def __init__(self, service: Service, gate: Path) -> None:
        self.service = service
        self.gate = gate
        self.events: list[Event] = []
        service.subscribe(self.events.append)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @asynccontextmanager
    async def held(self) -> AsyncIterator[asyncio.Task[Reply]]:
        """The engine busy with one row until the block ends."""
        self.gate.touch()
        task = asyncio.create_task(self.service.predict([HOLD], ["intent"]))
        await turns()
        assert not self.service.waiting
        try:
            yield task
        finally:
            self.gate.unlink()
            await asyncio.wait([task])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The loop that the server runs on; the tests with a service of their own are on asyncio's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as made:
        yield made


@pytest.fixture(scope="module")
def shared(bundles: Bundles, runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    gate = tmp_path_factory.mktemp("gate") / "gate"
    service = runner.run(started(bundles.first, gate))
    yield Served(service, gate)
    runner.run(service.drain())


async def started(bundle: Path, gate: Path) -> Service:
    service = Service(bundle, limits=LIMITS, loading=Faulty(gate=gate))
    await service.start()
    return service


@pytest.fixture
def served(shared: Served, bundles: Bundles, runner: asyncio.Runner) -> Served:
    """The shared service with the first bundle, wholly loaded."""

    async def fresh() -> None:
        await until(lambda: shared.service.ready)
        await shared.service.swap(bundles.first)
        for name, task in shared.service.model.tasks.items():
            if not task.loaded:
                await shared.service.load(name)
        await shared.service.predict(["settled"], ["tone"])  # after what a test before left with the worker
        await turns()
        shared.events.clear()

    runner.run(fresh())
    return shared


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that the service does by itself."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


async def turns() -> None:
    """Let all that is ready in the loop run."""
    for _ in range(5):
        await asyncio.sleep(0)


def workers() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children() if child.name == NAME}


def alike(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> bool:
    """Answers that are equal up to the rounding of another batch's shape."""
    return [list(row) for row in found] == [list(row) for row in expected] and all(
        _alike(one[task], other[task]) for one, other in zip(found, expected, strict=True) for task in one
    )


def _alike(one: Answer | ItemError, other: Answer | ItemError) -> bool:
    if isinstance(one, ItemError) or isinstance(other, ItemError):
        return one == other
    numbers = [
        [answer.score or 0.0, *answer.scores.values(), *(span.score for span in answer.spans or ())]
        for answer in (one, other)
    ]
    texts = [
        (
            answer.label,
            answer.labels,
            answer.words,
            answer.tags,
            [(span.start, span.end) for span in answer.spans or ()],
        )
        for answer in (one, other)
    ]
    return texts[0] == texts[1] and numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_the_front_never_imports_torch() -> None:
    code = "import sys, trunkline.serving.service; print({'torch', 'transformers', 'openvino'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_concurrent_requests_get_the_answers_of_the_bundle(
    served: Served, bundles: Bundles, runner: asyncio.Runner
) -> None:
    bundle = Bundle.load(bundles.first)
    items: list[object] = [*INPUTS, *TEXTS, "", {"txt": "no such key"}, "half a pair \ud83d", ("a b", None)]
    asks = [
        ([items[(start + i) % len(items)] for i in range(1 + start % 4)], tasks)
        for start, tasks in zip(range(12), itertools.cycle([None, ["slots", "same"], ["tone"]]))
    ]

    async def run() -> None:
        replies = await asyncio.gather(*(served.service.predict(inputs, tasks) for inputs, tasks in asks))
        for (inputs, tasks), reply in zip(asks, replies, strict=True):
            assert alike(reply.answers, bundle.predict(inputs, tasks))
            assert reply.model.bundle == bundle.id == bundles.first.name
            assert reply.timings.total >= reply.timings.queue > 0

    runner.run(run())


def test_the_model_says_what_each_task_is(served: Served, bundles: Bundles) -> None:
    model = served.service.model
    manifest = Bundle.load(bundles.first).manifest
    assert (model.name, model.bundle, model.family) == ("served", bundles.first.name, "bert")
    assert (model.engine, model.dtype, model.device) == ("torch", "float32", "cpu")
    assert list(model.tasks) == sorted(ALL_SORTS)
    for name, task in model.tasks.items():
        assert (task.kind, task.fork, task.layers) == tuple(ALL_SORTS[name][key] for key in ("kind", "fork", "layers"))
        assert task.pair is ("reading" in ALL_SORTS[name])
        assert task.branch == manifest.branches[name].sha256[:16]
        assert task.loaded


def test_requests_that_wait_go_to_the_worker_together(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        async with served.held():
            waiting = [asyncio.create_task(served.service.predict([text], ["tone"])) for text in TEXTS]
            await until(lambda: served.service.waiting == len(TEXTS))
        replies = await asyncio.gather(*waiting)
        assert [event.rows for event in served.of(Batch)] == [1, len(TEXTS)]
        assert served.of(Batch)[1].requests == len(TEXTS)
        assert all(reply.timings.queue > 0 for reply in replies)

    runner.run(run())


def test_a_request_above_a_batch_is_split_and_put_together(
    served: Served, bundles: Bundles, runner: asyncio.Runner
) -> None:
    inputs = [f"{text} {number}" for text in TEXTS for number in range(6)]

    async def run() -> None:
        reply = await served.service.predict(inputs, ["intent", "slots"])
        assert alike(reply.answers, Bundle.load(bundles.first).predict(inputs, ["intent", "slots"]))
        assert [event.rows for event in served.of(Batch)] == [16, 14]
        long = " ".join(["music"] * 300)  # by itself above the budget of tokens, were it not cut
        assert len((await served.service.predict([long] * 3, ["short", "intent"])).answers) == 3

    runner.run(run())


def test_what_can_never_fit_or_makes_no_sense_is_refused_with_the_limit(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        async def refused(kind: type[Refusal], message: str, *args: Any, **options: Any) -> None:
            with pytest.raises(kind, match=message):
                await served.service.predict(*args, **options)

        await refused(TooLarge, r"81 inputs in one request; the limit is 80 \(items\)", ["a"] * 81)
        await refused(TooLarge, r"65 inputs in one request; the limit is 64 \(queue_rows\)", ["a"] * 65)
        await refused(TooLarge, r"2,001 characters in a text of input 1; the limit is 2,000", ["a", "a" * 2001])
        await refused(TooLarge, r"1,7\d\d tokens in one request; the limit is 1,500", ["play music " * 25] * 28)
        await refused(NotFound, r"unknown task 'intnt' \(did you mean 'intent'", ["a"], ["intnt"])
        await refused(Invalid, "there are no inputs", [])
        await refused(Invalid, r"write \[text\]", "a")
        await refused(Invalid, r"write \['intent'\]", ["a"], "intent")
        await refused(Invalid, "no task is asked for", ["a"], [])
        await refused(Invalid, "more than 0; found nan", ["a"], deadline_ms=float("nan"))
        assert [event.status for event in served.of(Finished)] == [413, 413, 413, 413, 404, 422, 422, 422, 422, 422]
        assert not served.of(Batch)

    runner.run(run())


def test_a_full_queue_refuses_says_when_to_come_back_and_recovers(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        async with served.held():
            waiting = [asyncio.create_task(served.service.predict(["play"] * 16, ["tone"]))]
            await turns()
            assert not served.service.waiting  # a large batch goes out behind the one that is held
            waiting += [asyncio.create_task(served.service.predict([text] * 16, ["tone"])) for text in TEXTS[1:]]
            await turns()
            with pytest.raises(Overloaded, match="64 rows") as caught:
                await served.service.predict(["one more"], ["tone"])
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after < 60
        assert [len(reply.answers) for reply in await asyncio.gather(*waiting)] == [16] * 5
        assert len((await served.service.predict(["one more"], ["tone"])).answers) == 1

    runner.run(run())


def test_what_would_wait_until_it_is_too_late_is_refused_at_once(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        await served.service.predict(["play"] * LIMITS.batch_rows, ["tone"])  # tells the pace
        async with served.held():
            waiting = [asyncio.create_task(served.service.predict(["play"] * 16, ["tone"])) for _ in range(3)]
            await until(lambda: served.service.waiting == 32)  # a batch goes out behind the one that is held
            with pytest.raises(Overloaded, match="of work waits, and an answer is of use within 0") as caught:
                await served.service.predict(["no time"], ["tone"], deadline_ms=0.01)
            assert caught.value.retry_after is not None
            assert caught.value.retry_after > 0
            patient = asyncio.create_task(served.service.predict(["time"], ["tone"], deadline_ms=PATIENT))
            await until(lambda: served.service.waiting == 33)
        assert [len(reply.answers) for reply in await asyncio.gather(*waiting, patient)] == [16, 16, 16, 1]
        with pytest.raises(DeadlineExceeded):  # nothing waits before it: it is tried
            await served.service.predict(["no time"], ["tone"], deadline_ms=0.01)

    runner.run(run())


def test_late_work_is_dropped_unrun_and_cancelled_work_frees_its_place(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        async with served.held() as held:
            late = asyncio.create_task(served.service.predict(["late"], ["tone"], deadline_ms=30))
            gone = asyncio.create_task(served.service.predict(["gone"] * 3, ["tone"]))
            await until(lambda: served.service.waiting == 4 or late.done())
            with pytest.raises(DeadlineExceeded, match="30 ms"):
                await late
            assert served.service.waiting == 3
            gone.cancel()
            await asyncio.wait([gone])
            assert served.service.waiting == 0
            held.cancel()  # its row runs already
            await asyncio.wait([held])
        assert len((await served.service.predict(["next"], ["tone"])).answers) == 1
        assert [event.rows for event in served.of(Batch)] == [1, 1]
        assert [event.status for event in served.of(Finished)] == [504, 499, 499, 200]

    runner.run(run())


def test_old_rows_go_before_rows_of_a_better_length(served: Served, runner: asyncio.Runner) -> None:
    async def run() -> None:
        order: list[int] = []

        async def ask(text: str) -> None:
            await served.service.predict([text], ["tone"])
            order.append(len(text))

        long, short = "music " * 30, "no"
        async with served.held():
            asks = [asyncio.create_task(ask(short))]
            await turns()
            asks += [asyncio.create_task(ask(long + "x" * number)) for number in range(2)]
            await turns()
            asks += [asyncio.create_task(ask(short)) for _ in range(15)]
            await until(lambda: served.service.waiting == 2)  # those of a length went first, as a whole batch
        await asyncio.gather(*asks)
        assert order == [2] * 16 + [180, 181]
        order.clear()
        async with served.held():
            asks = [asyncio.create_task(ask(long + "x" * number)) for number in range(2)]
            await turns()
            passed = time.monotonic() + LIMITS.batch_age_ms / 1000
            await until(lambda: time.monotonic() > passed)
            asks += [asyncio.create_task(ask(short)) for _ in range(16)]
            await turns()
        await asyncio.gather(*asks)
        assert order[:2] == [180, 181]

    runner.run(run())


def test_only_the_culprit_fails_when_the_engine_raises(
    served: Served, bundles: Bundles, runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        before = workers()
        bad, good = await asyncio.gather(
            served.service.predict(["play", RAISE], ["intent"]), served.service.predict(TEXTS, ["slots"])
        )
        assert alike(good.answers, Bundle.load(bundles.first).predict(TEXTS, ["slots"]))
        assert isinstance(bad.answers[0]["intent"], Answer)
        assert bad.answers[1] == {"intent": ItemError("the engine failed on this input")}
        assert workers() == before

    with caplog.at_level(logging.INFO):
        runner.run(run())
    assert "a batch of 7 rows failed and is run row by row: RuntimeError in" in caplog.text
    assert "quotes the text" not in caplog.text


def test_every_reply_under_swaps_is_of_one_bundle_and_right_for_it(
    served: Served, bundles: Bundles, runner: asyncio.Runner
) -> None:
    expected = {path.name: Bundle.load(path).predict(TEXTS) for path in (bundles.first, bundles.second)}
    assert not alike(*expected.values())

    async def run() -> None:
        seen: list[str] = []
        stop = False

        async def client() -> None:
            while not stop:
                reply = await served.service.predict(TEXTS * 4)  # more than a batch
                assert alike(reply.answers, expected[reply.model.bundle] * 4)
                seen.append(reply.model.bundle)

        clients = [asyncio.create_task(client()) for _ in range(2)]
        for bundle in (bundles.second, bundles.first, bundles.second):
            count = len(seen)
            await until(lambda count=count: len(seen) > count + 2)  # type: ignore[misc]
            assert (await served.service.swap(bundle)).bundle == bundle.name
            marked = [path.name for path in (bundles.first, bundles.second) if in_use(path)]
            assert marked == [bundle.name]  # what the next worker would need, and no other
        count = len(seen)
        await until(lambda: len(seen) > count + 2)
        stop = True
        await asyncio.gather(*clients)
        assert set(seen) == set(expected)
        assert {event.status for event in served.of(Finished)} == {200}
        assert [(event.old.bundle, event.new.bundle) for event in served.of(Swapped)] == [
            (bundles.first.name, bundles.second.name),
            (bundles.second.name, bundles.first.name),
            (bundles.first.name, bundles.second.name),
        ]

    runner.run(run())


def test_a_broken_bundle_leaves_the_old_one_serving(
    served: Served, bundles: Bundles, runner: asyncio.Runner, tmp_path: Path
) -> None:
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    shutil.copytree(bundles.second, damaged)
    branch = next((damaged / "branches").glob("intent-*"))
    branch.write_bytes(branch.read_bytes()[:-1] + b"\x00")
    shutil.copytree(bundles.second, other)
    refuted(other)

    async def run() -> None:
        for folder, reason in (
            (damaged, "is damaged"),
            (other, "task 'intent' is off by .* on its stored probes"),
            (tmp_path, "is not a bundle"),
        ):
            with pytest.raises(Invalid, match=reason):
                await served.service.swap(folder)
            assert (await served.service.predict(["play"])).model.bundle == bundles.first.name
        with pytest.raises(Invalid, match="not started from a project"):
            await served.service.swap()
        assert not served.of(Swapped)

    runner.run(run())


def refuted(folder: Path) -> None:
    """Make a whole bundle whose stored answers are not what it answers."""
    probes = json.loads((folder / "probes.json").read_text())
    probes["logits"]["intent"][0][0] += 1.0
    write_json(folder / "probes.json", probes)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["probes"]["sha256"] = file_hash(folder / "probes.json")
    write_json(folder / "manifest.json", manifest)


def test_an_unloaded_task_is_refused_and_comes_back_from_disk(
    served: Served, bundles: Bundles, runner: asyncio.Runner, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundles.first, copy)
    branch = next((copy / "branches").glob("intent-*"))
    whole = branch.read_bytes()

    async def run() -> None:
        service = served.service
        await service.swap(copy)
        before = (await service.predict(TEXTS)).answers
        async with served.held() as held:
            await service.unload("intent")  # while a request for it runs
        assert isinstance((await held).answers[0]["intent"], Answer)
        await service.unload("intent")
        assert not service.model.tasks["intent"].loaded
        with pytest.raises(Unavailable, match="task 'intent' is unloaded"):
            await service.predict(TEXTS, ["tone", "intent"])
        left = (await service.predict(TEXTS)).answers
        assert alike(left, [{task: found for task, found in row.items() if task != "intent"} for row in before])
        branch.write_bytes(whole[:-1] + b"\x00")
        with pytest.raises(Invalid, match="is damaged"):
            await service.load("intent")
        branch.write_bytes(whole)
        await service.load("intent")
        assert alike((await service.predict(TEXTS)).answers, before)
        with pytest.raises(NotFound, match="did you mean 'intent'"):
            await service.unload("intnt")

    runner.run(run())


def test_workers_that_die_under_load_cost_no_request_but_the_one_that_kills(
    served: Served, bundles: Bundles, runner: asyncio.Runner
) -> None:
    expected = Bundle.load(bundles.first).predict(TEXTS, ["intent"])

    async def run() -> None:
        service = served.service
        stop = False

        async def client() -> None:
            while not stop:
                reply = await service.predict(TEXTS, ["intent"], deadline_ms=PATIENT)
                assert alike(reply.answers, expected)

        await service.unload("urgency")
        clients = [asyncio.create_task(client()) for _ in range(4)]
        await until(lambda: len(served.of(Finished)) > 8)
        deadly = asyncio.create_task(service.predict([DIE], ["intent"], deadline_ms=PATIENT))
        for death in (1, 2):  # by itself in the worker the second time
            await until(lambda death=death: len(served.of(WorkerStopped)) == death)  # type: ignore[misc]
            assert service.live
            assert not service.ready
            with pytest.raises(Unavailable, match="being started again") as caught:
                await service.predict(["play"])
            assert caught.value.retry_after is not None
            assert caught.value.retry_after > 0
            await until(lambda: service.ready)
        with pytest.raises(Unavailable, match="stopped twice"):
            await deadly
        stop = True
        await asyncio.gather(*clients)
        assert sorted(event.status for event in served.of(Finished) if event.status != 200) == [503] * 3
        assert served.of(WorkerStopped) == [WorkerStopped("it ended by itself, signal 9")] * 2
        assert not service.model.tasks["urgency"].loaded

    runner.run(run())


def test_a_stuck_worker_is_replaced(served: Served, bundles: Bundles, runner: asyncio.Runner) -> None:
    async def run() -> None:
        [pid] = workers()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        reply = await served.service.predict(TEXTS, ["intent"], deadline_ms=PATIENT)
        assert served.of(WorkerStopped) == [WorkerStopped("it gave no answer for 8 seconds")]
        assert alike(reply.answers, Bundle.load(bundles.first).predict(TEXTS, ["intent"]))

    runner.run(run())


def test_a_worker_computes_as_the_one_before_it_did(bundles: Bundles, tmp_path: Path) -> None:
    notes = tmp_path / "notes"

    async def run() -> None:
        before = workers()
        service = Service(bundles.first, limits=LIMITS, loading=Noted(engine="torch", notes=notes))
        await service.start()
        [pid] = workers() - before
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not service.ready)
        await until(lambda: service.ready)
        await service.drain()

    asyncio.run(run())
    assert notes.read_text().split() == ["auto", "float32"]  # chosen, and not chosen again


def test_the_live_release_is_served_until_drained(bundles: Bundles, tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    for bundle in (bundles.first, bundles.second):
        shutil.copytree(bundle, tmp_path / "bundles" / bundle.name)
    releases.publish(tmp_path / "bundles" / bundles.first.name)

    async def run() -> None:
        service = Service(releases=releases, limits=LIMITS, loading=Faulty(gate=tmp_path / "gate"))
        with pytest.raises(Unavailable, match="no bundle is loaded yet"):
            await service.predict(["play"])
        assert not service.live
        await service.start()
        served = Served(service, tmp_path / "gate")
        assert service.model.bundle == bundles.first.name
        releases.publish(tmp_path / "bundles" / bundles.second.name)
        assert (await service.swap()).bundle == service.model.bundle == bundles.second.name
        async with served.held() as held:
            waiting = [asyncio.create_task(service.predict([text], ["tone"])) for text in TEXTS]
            await turns()
            drain = asyncio.create_task(service.drain())
            await turns()
            assert service.live
            assert not service.ready
            with pytest.raises(Unavailable, match="shutting down"):
                await service.predict(["play"])
        await drain
        assert [len(reply.answers) for reply in await asyncio.gather(held, *waiting)] == [1] * (1 + len(TEXTS))
        assert not service.live

    asyncio.run(run())


def test_a_worker_ends_with_its_front() -> None:
    ours, theirs = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(target=main, args=(theirs, Loading()))
    process.start()
    theirs.close()
    ours.close()
    process.join(60)
    assert process.exitcode == 0
    process.close()


def test_a_bundle_that_cannot_be_served_fails_the_start(bundles: Bundles, tmp_path: Path) -> None:
    shutil.copytree(bundles.first, tmp_path / "broken")
    (tmp_path / "broken" / "probes.json").unlink()

    async def run() -> None:
        with pytest.raises(Invalid, match=r"is incomplete: probes.json missing"):
            await started(tmp_path / "broken", tmp_path / "gate")

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_cycles_of_unloading_and_loading_keep_memory_flat(served: Served, runner: asyncio.Runner) -> None:
    def resident() -> float:
        [pid] = workers()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def cycles(count: int) -> None:
        for _ in range(count):
            await served.service.unload("intent")
            await served.service.load("intent")
            await served.service.predict(TEXTS)

    async def run() -> None:
        await cycles(100)
        before = resident()
        await cycles(1000)
        assert resident() < before + 8

    runner.run(run())
