"""Load on a running Trunkline server, one load after another: what it serves, what is asked, what came back.

Knows the server by its URL alone, over plain HTTP.
"""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trunkline.bench.load import BODIES, Load, measure, trunkline
from trunkline.bench.texts import made_texts
from trunkline.engine.base import Input
from trunkline.errors import TrunklineError, UsageError, unknown

if TYPE_CHECKING:
    from trunkline.project.speed import DialValue

REFUSED = ("429", "503")
"""Statuses that say "later": the server is full, or not ready."""
_WAIT = 30.0


@dataclass(frozen=True)
class Serving:
    """A server that answers: what it says of itself, and the tasks that are asked of it."""

    url: str
    key: str | None
    model: dict[str, Any]
    tasks: tuple[str, ...]

    @property
    def pairs(self) -> bool:
        """Whether any of the tasks reads pairs."""
        return any(task["pair"] for task in self.model["tasks"] if task["name"] in self.tasks)


def reach(url: str, key: str | None, tasks: Sequence[str] | None) -> Serving:
    """The server at a URL, with these tasks or all that are loaded.

    Raises UsageError for a URL that is not plain HTTP or a task that it has not, TrunklineError where it does not
    answer.
    """
    place = urlsplit(url)
    if place.scheme != "http" or place.hostname is None:
        raise UsageError(f"{url} is not a URL that starts with http://")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url.rstrip("/") + "/v1/model", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_WAIT) as reply:
            model = json.load(reply)
        known = [task["name"] for task in model["tasks"] if task["loaded"]]
    except (OSError, HTTPException) as error:  # a refusal by the server is an OSError too
        raise TrunklineError(f"{url} does not answer: {error}") from None
    except (ValueError, LookupError, TypeError):
        raise TrunklineError(f"{url} answers, but not as a Trunkline server does") from None
    for name in tasks or ():
        if name not in known:
            raise UsageError(unknown("task", name, known))
    return Serving(url, key, model, tuple(tasks or known))


def texts_for(serving: Serving, tokens: int, rows: int) -> list[Input]:
    """Enough texts of so many tokens for requests of `rows` texts each; pairs where a task reads pairs."""
    return made_texts(tokens, BODIES * rows, random.Random(13), pairs=serving.pairs)


def run(
    serving: Serving, texts: Sequence[Input], loads: Iterable[Load], dial: Mapping[str, DialValue]
) -> Iterator[dict[str, Any]]:
    """The result of each load, as it is found; see `load.result`. `dial` is a `speed`, a `keep`, or both by task."""
    target = trunkline(serving.url, serving.tasks, serving.key, **dial)
    for load in loads:
        yield asyncio.run(measure(serving.url, target, texts, load))


def refused(result: Mapping[str, Any]) -> int:
    """Requests that the server refused, so as to be asked later."""
    return sum(int(result["errors"].get(status, 0)) for status in REFUSED)


def failed(result: Mapping[str, Any]) -> int:
    """Requests that had no answer for any other reason."""
    return sum(map(int, result["errors"].values())) - refused(result)


def loop_of(result: Mapping[str, Any]) -> str:
    """The load in words."""
    loop = result["loop"]
    if "rate" in loop:
        return f"{loop['rate']:g} a second"
    return f"{loop['clients']} client{'s' if loop['clients'] > 1 else ''}"
