"""A load from a process of its own, for `server.py`: one JSON object on stdin, the result's on stdout.

The object has the server's `url`, the file `texts`, `load` (the fields of `bench.load.Load`), perhaps `cores` to stay
on, and either `tasks`, for Trunkline, or `models`, for Infinity's `/classify`, with `at_once`: whether its models, one
for each task, are asked on connections of their own or one after another. The generator is that of `trunkline bench
--url`; what is Infinity's alone is here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trunkline.bench.load import Load, Target, measure, trunkline
from trunkline.bench.texts import read_texts
from trunkline.bench.wire import Call, http
from trunkline.engine.base import Input


def main() -> None:
    """Run one load."""
    given = json.load(sys.stdin)
    if given.get("cores"):
        os.sched_setaffinity(0, given["cores"])
    url = given["url"]
    target = infinity(url, given["models"], given["at_once"]) if "models" in given else trunkline(url, given["tasks"])
    print(json.dumps(asyncio.run(measure(url, target, read_texts(Path(given["texts"])), Load(**given["load"])))))


def infinity(url: str, models: Sequence[str], at_once: bool) -> Target:
    """One HTTP request for each of Infinity's models, one model for a task."""

    def calls(texts: Sequence[Input]) -> tuple[Call, ...]:
        def check(reply: Any) -> str | None:
            scored = sum(1 for scores in reply["data"] if scores)
            return None if scored == len(texts) else f"{scored} answers for {len(texts)} texts"

        plain = [text.text for text in texts]
        contents = ({"model": model, "input": plain} for model in models)
        return tuple(Call(http(url, "/classify", content), check) for content in contents)

    return Target("infinity", tuple(models), at_once, calls)


if __name__ == "__main__":
    main()
