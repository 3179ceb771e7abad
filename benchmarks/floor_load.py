"""A load whose answers are known, from a process of its own, for `floor.py`: one JSON object on stdin, one on stdout.

The first has the server's `url`, the file `requests`, `parts` of {"at": seconds, "load": the fields of
`bench.load.Load`}, which may overlap, and perhaps `asked`, which goes into every request, and `cores` to stay on. A
line of `requests` is an object with a `task`, its `depth`, `texts` and their gold `labels`. The second has when the
load began by `time.perf_counter()`, and in seconds from then what became of each request and what each reply said.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trunkline.bench.load import Generator, Load, Target
from trunkline.bench.wire import Call, Pool, http


def main() -> None:
    """Run one load."""
    given = json.load(sys.stdin)
    if given.get("cores"):
        os.sched_setaffinity(0, given["cores"])
    print(json.dumps(asyncio.run(run(given))))


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """All parts of a load, each from its own second on."""
    lines = [json.loads(line) for line in Path(given["requests"]).read_text().splitlines()]
    replies: list[dict[str, Any]] = []

    def calls(numbers: Sequence[int]) -> tuple[Call, ...]:
        return tuple(call(given["url"], number, lines[number], given.get("asked", {}), replies) for number in numbers)

    target = Target("trunkline", tuple(dict.fromkeys(line["task"] for line in lines)), False, calls)
    bodies = [calls([number]) for number in range(len(lines))]
    loads = [Load(**part["load"]) for part in given["parts"]]
    place = urlsplit(given["url"])
    pool = Pool(place.hostname, place.port, max(load.connections for load in loads))
    began, cpu = time.perf_counter(), time.process_time()

    async def sent(at: float, load: Load) -> Generator:
        await asyncio.sleep(max(began + at - time.perf_counter(), 0.0))
        generator = Generator(target, pool, bodies, load)
        await generator.run()
        return generator

    made = await asyncio.gather(
        *(sent(part["at"], load) for part, load in zip(given["parts"], loads, strict=True)),
    )
    took = time.perf_counter() - began
    for connection in pool.all:
        connection.close()
    return {
        "began": began,
        "cpu_share": (time.process_time() - cpu) / took,
        "examples": {outcome: text for one in made for outcome, text in one.examples.items()},
        "requests": [
            {"due": one.due - began, "done": one.done - began, "outcome": one.outcome}
            for generator in made
            for one in generator.requests
        ],
        "replies": [{**reply, "done": reply["done"] - began} for reply in replies],
    }


def call(url: str, number: int, line: dict[str, Any], asked: dict[str, Any], replies: list[dict[str, Any]]) -> Call:
    """A request; what a complete reply to it says goes into `replies`."""
    task = line["task"]

    def check(found: Any) -> str | None:
        results = [one[task] for one in found["results"]]
        if len(results) != len(line["texts"]):
            return f"{len(results)} results for {len(line['texts'])} texts"
        for result in results:
            if "error" in result:
                return f"task {task}: {result['error']}"
        depths = [result.get("exit_layer", line["depth"]) / line["depth"] for result in results]
        replies.append(
            {
                "done": time.perf_counter(),
                "number": number,
                "task": task,
                "correct": sum(one["label"] == gold for one, gold in zip(results, line["labels"], strict=True)),
                "speed": found["speeds"].get(task, 0.0),
                "depth": statistics.mean(depths),
            }
        )
        return None

    return Call(http(url, "/v1/predict", {"inputs": line["texts"], "tasks": [task], **asked}), check)


if __name__ == "__main__":
    main()
