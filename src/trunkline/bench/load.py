"""Load on a running server: what is sent when, and what came back.

Closed loop: each client asks, waits for its answer, and asks again. Open loop: requests are due at random (Poisson)
instants whether or not earlier ones were answered, and a latency counts from the instant the request was *due*, so that
a server which stalls cannot hide it. Either way one request carries so many texts and is complete when every text has
the answer of every task; every reply is read and checked.

It costs the machine little: against a server that answers at once, 35 microseconds of CPU for a request of one text and
0.2 ms for one of 32 texts, each with the answers of 8 tasks; so about 28,000 and 4,800 of them a second are the most
that it could send from a core of its own. `generator` in the result says what a run cost. It knows nothing of how the
server works.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trunkline.bench.wire import Call, Pool, Refused, http
from trunkline.engine.base import Input
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.project.speed import DialValue

BODIES = 512  # different requests, sent in turn
LONGEST_WAIT = 1.0  # seconds that a refused client waits at most before it asks again


@dataclass(frozen=True)
class Target:
    """How a list of texts becomes HTTP requests, and whether those go out at once or one after another."""

    name: str
    answers: tuple[str, ...]  # tasks, or models
    at_once: bool
    calls: Callable[[Sequence[Input]], tuple[Call, ...]]


@dataclass(frozen=True)
class Request:
    """One request of the load, however many HTTP requests it took. Times in seconds, all by one clock."""

    due: float
    sent: float
    done: float
    outcome: str  # "ok", a status, "timeout", "connection" or "answer"


@dataclass(frozen=True)
class Load:
    """What to send: how many clients in a closed loop or requests a second in an open one, and for how long."""

    clients: int | None = None
    rate: float | None = None
    rows: int = 1
    seconds: float = 10.0
    warmup: float = 2.0
    timeout: float = 30.0
    connections: int = 256
    seed: int = 13


class Generator:
    """Sends a load and keeps what became of each request."""

    def __init__(self, target: Target, pool: Pool, bodies: Sequence[tuple[Call, ...]], load: Load) -> None:
        self.target = target
        self.pool = pool
        self.bodies: Iterator[tuple[Call, ...]] = itertools.cycle(bodies)
        self.load = load
        self.begin = time.perf_counter() + load.warmup
        self.end = self.begin + load.seconds
        self.requests: list[Request] = []
        self.examples: dict[str, str] = {}
        self.cpu = 0.0

    async def run(self) -> None:
        """Send until the time is over, then wait for what is under way."""
        metering = asyncio.create_task(self._meter())
        if self.load.rate is None:
            await asyncio.gather(*(self._client() for _ in range(self.load.clients or 1)))
        else:
            await self._arrivals(self.load.rate)
        await metering

    async def _client(self) -> None:
        while (now := time.perf_counter()) < self.end:
            pause = await self._request(now)
            if pause:
                await asyncio.sleep(min(pause, LONGEST_WAIT))

    async def _arrivals(self, rate: float) -> None:
        chance = random.Random(self.load.seed)
        under_way: set[asyncio.Task[float]] = set()
        due = time.perf_counter()
        while (due := due + chance.expovariate(rate)) < self.end:
            delay = due - time.perf_counter()
            # Even where it is late: the replies must be read between one arrival and the next.
            await asyncio.sleep(max(delay, 0.0))
            task = asyncio.create_task(self._request(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)

    async def _request(self, due: float) -> float:
        """One request of the load; returns how long a client should wait before its next one."""
        calls = next(self.bodies)
        sent = time.perf_counter()
        outcome, pause = "ok", 0.0
        try:
            async with asyncio.timeout(self.load.timeout):
                if self.target.at_once:
                    async with asyncio.TaskGroup() as group:
                        for call in calls:
                            group.create_task(self.pool.ask(call))
                else:
                    for call in calls:
                        await self.pool.ask(call)
        except* TimeoutError:
            outcome = self._failed("timeout", f"no answer in {self.load.timeout:g} s")
        except* Refused as refused:
            first = next(_leaves(refused))
            outcome, pause = self._failed(first.outcome, str(first)), first.retry_after
        except* (OSError, EOFError) as failed:
            outcome, pause = self._failed("connection", repr(next(_leaves(failed)))), 0.05
        self.requests.append(Request(due, sent, time.perf_counter(), outcome))
        return pause

    def _failed(self, outcome: str, message: str) -> str:
        self.examples.setdefault(outcome, message)
        return outcome

    async def _meter(self) -> None:
        await asyncio.sleep(max(self.begin - time.perf_counter(), 0.0))
        before = time.process_time()
        await asyncio.sleep(max(self.end - time.perf_counter(), 0.0))
        self.cpu = time.process_time() - before


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[Any]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def trunkline(url: str, tasks: Sequence[str], key: str | None = None, **dial: DialValue) -> Target:
    """All tasks by one HTTP request to Trunkline's native wire; `dial` is a `speed`, a `keep`, or both by task."""

    def calls(texts: Sequence[Input]) -> tuple[Call, ...]:
        def check(reply: Any) -> str | None:
            found = reply["results"]
            if len(found) != len(texts):
                return f"{len(found)} results for {len(texts)} texts"
            for result in found:
                for task in tasks:
                    if "error" in result[task]:
                        return f"task {task}: {result[task]['error']}"
            return None

        body = {"inputs": [fields(text) for text in texts], "tasks": tasks, **dial}
        return (Call(http(url, "/v1/predict", body, key), check),)

    return Target("trunkline", tuple(tasks), at_once=False, calls=calls)


def fields(text: Input) -> dict[str, str]:
    """An input as the native wire has it."""
    pair = {} if text.text_pair is None else {"text_pair": text.text_pair}
    return {"text": text.text, **pair}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles by nearest rank, p100 the largest; nothing where there are no values."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {"mean": sum(ordered) / len(ordered)}
    for tenths in (500, 900, 950, 990, 999, 1000):  # whole numbers: 0.999 * 1000 is a little more than 999
        found[f"p{tenths / 10:g}"] = ordered[-(-tenths * len(ordered) // 1000) - 1]
    return {name: round(value, 3) for name, value in found.items()}


def result(done: Generator) -> dict[str, Any]:
    """The result: what was sent, and what came back within the measured time.

    Throughput counts what was answered within it; latencies and errors are those of requests due within it.
    """
    load, seconds = done.load, done.load.seconds
    due = [request for request in done.requests if done.begin <= request.due < done.end]
    ok = [request for request in done.requests if request.outcome == "ok"]
    each = Counter(int(request.done - done.begin) for request in ok if done.begin <= request.done < done.end)
    answered = each.total()
    loop = {"clients": load.clients, "rate": load.rate, "connections": done.pool.limit}
    return {
        "target": done.target.name,
        "answers": list(done.target.answers),
        "loop": {name: value for name, value in loop.items() if value is not None},
        "rows": load.rows,
        "seconds": seconds,
        "warmup": load.warmup,
        "requests": len(due),
        "errors": dict(Counter(request.outcome for request in due if request.outcome != "ok")),
        "examples": done.examples,
        "requests_per_second": round(answered / seconds, 2),
        "texts_per_second": round(answered * load.rows / seconds, 2),
        "texts_each_second": [each[second] * load.rows for second in range(math.ceil(seconds))],
        "latency_ms": percentiles([1000 * (request.done - request.due) for request in due if request.outcome == "ok"]),
        "sent_late_ms": percentiles([1000 * (request.sent - request.due) for request in due]),
        "generator": {
            "cpu_seconds": round(done.cpu, 3),
            "cpu_share": round(done.cpu / seconds, 4),
            "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "connections_opened": sum(connection.opened for connection in done.pool.all),
            "resent_on_a_closed_connection": sum(connection.resent for connection in done.pool.all),
        },
    }


async def measure(url: str, target: Target, texts: Sequence[Input], load: Load) -> dict[str, Any]:
    """Run a load against a target and return the result's object. `texts` are drawn from at random.

    Raises UsageError for a URL that is not one of plain HTTP.
    """
    place = urlsplit(url)
    if place.scheme != "http" or place.hostname is None:
        raise UsageError(f"{url} is not a URL that starts with http://")
    chance = random.Random(load.seed)
    bodies = [target.calls(chance.choices(texts, k=load.rows)) for _ in range(BODIES)]
    closed = (load.clients or 1) * (len(target.answers) if target.at_once else 1)
    pool = Pool(place.hostname, place.port or 80, load.connections if load.rate is not None else closed)
    generator = Generator(target, pool, bodies, load)
    await generator.run()
    for connection in pool.all:
        connection.close()
    return result(generator)
