"""Load on a running server, from a process of its own: `python benchmarks/load.py URL --tasks a,b --clients 8`.

Closed loop (`--clients`): each client asks, waits for its answer, and asks again. Open loop (`--rate`): requests are
due at random (Poisson) instants whether or not earlier ones were answered, and a latency counts from the instant the
request was *due*, so that a server which stalls cannot hide it. Either way one request carries `--rows` texts and is
complete when every text has the answer of every task; every reply is read and checked.

Targets: Trunkline's `/v1/predict`, where one HTTP request asks all tasks; or Infinity's `/classify`, which has one
model for one task, asked one after another (`--infinity in-turn`) or all at once on connections of their own.

It needs the standard library only, and speaks the little of HTTP/1.1 that these servers answer with over plain asyncio
streams, so that it costs the machine little: against a server that answers at once, 35 microseconds of CPU for a
request of one text and 0.2 ms for one of 32 texts, each with the answers of 8 tasks; so about 28,000 and 4,800 of them
a second are the most that it could send from a core of its own. `generator` in the result says what a run cost, and
`--cores` keeps it off the server's cores. It knows nothing of how the server works.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BODIES = 512  # different requests, sent in turn
LONGEST_WAIT = 1.0  # seconds that a refused client waits at most before it asks again
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*([0-9.]+)[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
# Each is one token of the vocabularies of BERT, so that a text of n words has n + 2 tokens.
_WORDS = """
the of and in to was he is as for on with that it his by at from her she you had an were but be this are not my they one
which or have him me first all also their has up who out been when after there into new two its time would no what about
said we over then other so more can if like back them only some could where just during before do made school through
than now years most world may between down well three year while will later city under around did such being used state
people part know against your many second university both national these don known off way until how even get head war
since then day each long work high life still game old great name last house season group right left great place water
"""

Check = Callable[[Any], str | None]
"""What a parsed reply lacks, None where it is complete."""


@dataclass(frozen=True)
class Call:
    """One HTTP request, ready to be written, and what its reply must have."""

    raw: bytes
    check: Check


@dataclass(frozen=True)
class Target:
    """How a list of texts becomes HTTP requests, and whether those go out at once or one after another."""

    name: str
    answers: tuple[str, ...]  # tasks, or models
    at_once: bool
    calls: Callable[[Sequence[dict[str, str]]], tuple[Call, ...]]


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

    clients: int | None
    rate: float | None
    rows: int
    seconds: float
    warmup: float
    timeout: float
    connections: int
    seed: int


class Refused(Exception):
    """A reply that is no answer: its status as text, or "answer" for a 200 that is incomplete."""

    def __init__(self, outcome: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


class Connection:
    """One kept connection to the server; opened when it is first needed, and again after it was closed."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0
        self.resent = 0

    async def ask(self, raw: bytes) -> tuple[int, bytes, float]:
        """Send a request; its status, body and Retry-After. Raises OSError or EOFError where the connection fails."""
        kept = self.streams is not None and not self.streams[0].at_eof()
        try:
            return await self._ask(raw)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # A server may close an idle connection as we write: any client then asks once more on a new one.
            if kept and not getattr(error, "partial", b""):
                self.resent += 1
                return await self._ask(raw)
            raise

    async def _ask(self, raw: bytes) -> tuple[int, bytes, float]:
        if self.streams is None or self.streams[0].at_eof():
            self.close()
            self.streams = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
            self.opened += 1
        reader, writer = self.streams
        try:
            writer.write(raw)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None:
                raise ConnectionError("the reply has no Content-Length")
            body = await reader.readexactly(int(length[1]))
        except BaseException:  # cancelled too: what is left on this connection belongs to nobody
            self.close()
            raise
        if _CLOSE.search(head):
            self.close()
        retry_after = _RETRY_AFTER.search(head)
        return int(head[9:12]), body, float(retry_after[1]) if retry_after else 0.0

    def close(self) -> None:
        """Forget the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


@dataclass
class Pool:
    """At most `limit` connections; the one used last is used next. Waiting for one counts into a request's latency."""

    host: str
    port: int
    limit: int

    def __post_init__(self) -> None:
        self.all: list[Connection] = []
        self.free: list[Connection] = []
        self.places = asyncio.Semaphore(self.limit)

    async def ask(self, call: Call) -> None:
        """Send one HTTP request and check its reply. Raises Refused, OSError or EOFError."""
        async with self.places:
            connection = self._take()
            try:
                status, body, retry_after = await connection.ask(call.raw)
            finally:
                self.free.append(connection)
        if status != 200:
            raise Refused(str(status), body[:300].decode(errors="replace"), retry_after)
        try:
            lacking = call.check(json.loads(body))
        except (ValueError, LookupError, TypeError) as error:
            raise Refused("answer", f"not the reply expected: {error!r}") from None
        if lacking is not None:
            raise Refused("answer", lacking)

    def _take(self) -> Connection:
        if not self.free:
            self.all.append(Connection(self.host, self.port))
            self.free.append(self.all[-1])
        return self.free.pop()


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


def http(url: str, path: str, content: Any, key: str | None) -> bytes:
    """A POST of JSON as it goes over the wire."""
    place = urlsplit(url)
    body = json.dumps(content).encode()
    head = [
        f"POST {place.path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {place.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def trunkline(url: str, tasks: Sequence[str], key: str | None) -> Target:
    """All tasks by one HTTP request to Trunkline's native wire."""

    def calls(texts: Sequence[dict[str, str]]) -> tuple[Call, ...]:
        def check(reply: Any) -> str | None:
            found = reply["results"]
            if len(found) != len(texts):
                return f"{len(found)} results for {len(texts)} texts"
            for result in found:
                for task in tasks:
                    if "error" in result[task]:
                        return f"task {task}: {result[task]['error']}"
            return None

        return (Call(http(url, "/v1/predict", {"inputs": list(texts), "tasks": list(tasks)}, key), check),)

    return Target("trunkline", tuple(tasks), at_once=False, calls=calls)


def infinity(url: str, models: Sequence[str], at_once: bool, key: str | None) -> Target:
    """One HTTP request for each of Infinity's models, one model for a task."""

    def calls(texts: Sequence[dict[str, str]]) -> tuple[Call, ...]:
        def check(reply: Any) -> str | None:
            scored = sum(1 for scores in reply["data"] if scores)
            return None if scored == len(texts) else f"{scored} answers for {len(texts)} texts"

        plain = [text["text"] for text in texts]
        contents = ({"model": model, "input": plain} for model in models)
        return tuple(Call(http(url, "/classify", content, key), check) for content in contents)

    return Target("infinity", tuple(models), at_once, calls)


def made_texts(tokens: int, count: int, chance: random.Random) -> list[dict[str, str]]:
    """Texts of common words, `tokens` tokens long in BERT's vocabularies with [CLS] and [SEP]."""
    words = sorted(set(_WORDS.split()))
    return [{"text": " ".join(chance.choices(words, k=max(tokens - 2, 1)))} for _ in range(count)]


def read_texts(path: Path) -> list[dict[str, str]]:
    """The `text` (and `text_pair`, where there is one) of every line of a jsonl file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{name: row[name] for name in ("text", "text_pair") if row.get(name)} for row in rows]


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


async def measure(url: str, target: Target, texts: Sequence[dict[str, str]], load: Load) -> dict[str, Any]:
    """Run a load against a target and return the result's object. `texts` are drawn from at random."""
    chance = random.Random(load.seed)
    bodies = [target.calls(chance.choices(texts, k=load.rows)) for _ in range(BODIES)]
    place = urlsplit(url)
    if place.scheme != "http" or place.hostname is None:
        raise SystemExit(f"{url} is not a URL that starts with http://")
    closed = (load.clients or 1) * (len(target.answers) if target.at_once else 1)
    pool = Pool(place.hostname, place.port or 80, load.connections if load.rate is not None else closed)
    generator = Generator(target, pool, bodies, load)
    await generator.run()
    for connection in pool.all:
        connection.close()
    return result(generator)


def main() -> None:
    """Read the options, run the load, print or write the result."""
    options = _parser().parse_args()
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    key = options.key_file.read_text(encoding="utf-8").strip() if options.key_file else None
    if options.models:
        target = infinity(options.url, options.models, options.infinity == "at-once", key)
    else:
        target = trunkline(options.url, options.tasks, key)
    if options.texts:
        texts = read_texts(options.texts)
    else:
        texts = made_texts(options.tokens, BODIES * options.rows, random.Random(options.seed))
    if options.models and any("text_pair" in text for text in texts):
        raise SystemExit(f"{options.texts} holds pairs, and Infinity's /classify reads single texts")
    load = Load(**{name: getattr(options, name) for name in Load.__dataclass_fields__})
    command = " ".join(["python benchmarks/load.py", *sys.argv[1:]])
    text = json.dumps({"command": command, **asyncio.run(measure(options.url, target, texts, load))}, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server, http only")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", type=_names, help="Trunkline: tasks that every text is asked, a,b,c")
    what.add_argument("--models", type=_names, help="Infinity: served model names, one for each task, a,b,c")
    parser.add_argument("--infinity", choices=["in-turn", "at-once"], default="at-once", help="how to ask its models")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--clients", type=int, help="closed loop: clients that each wait for their answer")
    how.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--rows", type=int, default=1, help="texts in a request")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds of the same load before it")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a request counts as failed")
    parser.add_argument("--connections", type=int, default=256, help="open loop: most connections")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--texts", type=Path, help="jsonl file with text and perhaps text_pair")
    texts.add_argument("--tokens", type=int, help="make texts of this many tokens instead")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--cores", type=_numbers, help="run on these cores only, 0,1 (Linux)")
    parser.add_argument("--key-file", type=Path, help="file with the bearer key")
    parser.add_argument("--out", type=Path, help="write the result here instead of to stdout")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> set[int]:
    return {int(core) for core in text.split(",")}


if __name__ == "__main__":
    main()
