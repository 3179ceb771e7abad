"""What the tasks of a bundle cost on this machine: 1, 2, 4, ... of them in one pass, against separate full models.

With speeds, the pass at these stands beside that at full depth.

A task's separate model has all layers of the same trunk, reads as the task does, and runs on the same engine in the
same arithmetic. Its weights are the trunk's, as time does not depend on them. Nothing is taken from the cache of known
texts, on either side, so that every run reads its texts anew. Knows engines; nothing of files or the terminal.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.bench.texts import made_texts, single_tokens
from trunkline.bench.turns import Times, in_turn
from trunkline.bundle.loaded import Bundle
from trunkline.engine.base import Engine, Input, ItemError, Job
from trunkline.engine.timing import uncached, with_last_layer
from trunkline.errors import UsageError
from trunkline.model.branch import BranchSpec, Reading, new_branch

BATCHES = 8
"""Different batches that are run in turn, where texts are made or there are enough of them."""

_Shape = tuple[Reading, str, int]
"""What the time of a full model depends on: reading, pooling, limit on tokens."""


@dataclass(frozen=True)
class Asked:
    """What to measure: `tasks` in the order in which they are added, and texts of a batch.

    `lengths` are tokens of made texts, unless there are `texts`. `speeds` are those of tasks whose texts may leave at
    exits, by task, as `Job` has them.
    """

    tasks: tuple[str, ...]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    texts: tuple[Input, ...] = ()
    seconds: float = 5.0
    speeds: tuple[tuple[str, float], ...] = ()

    def cells(self) -> list[tuple[int, int | None]]:
        """Every batch with every length; None where texts are as long as they are."""
        return list(itertools.product(self.batches, (None,) if self.texts else self.lengths))


def counts(most: int) -> list[int]:
    """1, 2, 4, ... and all."""
    doubled = itertools.takewhile(lambda count: count < most, (2**power for power in itertools.count()))
    return [*doubled, most]


def longest(bundle: Bundle, tasks: Iterable[str]) -> int:
    """Tokens that the task among these that reads most reads."""
    return max(bundle.specs[name].max_tokens for name in tasks)


def measure(bundle: Bundle, asked: Asked) -> Iterator[list[dict[str, Any]]]:
    """The rows of each cell, as they are found: one for each number of tasks and system, which is "trunkline",
    "exits" where speeds are asked for, or "separate".

    `ms` is the median of a batch, `low` and `high` the middle half. `ratio_to_one_pass` is to the pass of one separate
    model, their mean where the tasks read differently. Raises UsageError for texts that a task cannot read.
    """
    merged = uncached(bundle.engine)
    shapes = {name: _shape(bundle.specs[name]) for name in asked.tasks}
    full = {shape: _full(bundle, bundle.specs[name]) for name, shape in shapes.items()}
    steps = {count: asked.tasks[:count] for count in counts(len(asked.tasks))}
    choice = bundle.loader.choice
    for batch, length in asked.cells():
        batches = _batches(bundle, asked, batch, length)
        for items in batches:
            _check(merged, items, asked.tasks)
        runs: dict[tuple[str, int] | _Shape, Callable[[], object]] = {
            ("trunkline", count): _run(merged, batches, names) for count, names in steps.items()
        }
        if asked.speeds:
            runs |= {("exits", count): _run(merged, batches, names, asked.speeds) for count, names in steps.items()}
        runs |= {shape: _run(engine, batches, tuple(engine.specs)) for shape, engine in full.items()}
        times = in_turn(runs, asked.seconds, warm=max(2, len(batches)))
        rows = []
        for count, names in steps.items():
            separate = sum((times[shapes[name]] for name in names[1:]), start=times[shapes[names[0]]])
            passes = {system: times[system, count] for system in ("trunkline", "exits") if (system, count) in times}
            for system, found in (*passes.items(), ("separate", separate)):
                rows.append(
                    {
                        "tasks": count,
                        "batch": batch,
                        "tokens": _tokens(bundle, asked.tasks, batches) if length is None else length,
                        "system": system,
                        "backend": choice.engine,
                        "dtype": choice.dtype,
                        **row_of(found, separate.ms / count),
                    }
                )
        yield rows


def row_of(found: Times, one_pass: float) -> dict[str, Any]:
    """The part of a row that was measured."""
    return {
        "ms": round(found.ms, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
        "rounds": found.rounds,
        "ratio_to_one_pass": round(found.ms / one_pass, 4),
    }


def _shape(spec: BranchSpec) -> _Shape:
    return spec.reading, spec.pooling, spec.max_tokens


def _full(bundle: Bundle, spec: BranchSpec) -> Engine:
    """A full model that reads as this task does: all of the trunk, and a head, in the form that is cheapest here."""
    trunk = bundle.loader.trunk
    whole = spec.model_copy(update={"fork": trunk.depth, "layers": 0})
    name = f"full model of {spec.task}"
    return uncached(
        bundle.loader.engine(
            {name: (name, lambda: with_last_layer(new_branch(whole, trunk.encoder).eval(), trunk.encoder))}
        )
    )


def _batches(bundle: Bundle, asked: Asked, batch: int, length: int | None) -> list[list[Input]]:
    """Batches of texts, each another."""
    chance = random.Random(batch)
    if length is not None:
        pairs = any(bundle.specs[name].reading is not Reading.SINGLE for name in asked.tasks)
        words = single_tokens(bundle.loader.trunk.encoder.reader)
        return [made_texts(length, batch, chance, pairs=pairs, words=words) for _ in range(BATCHES)]
    texts = chance.sample(asked.texts, len(asked.texts))
    texts = list(itertools.islice(itertools.cycle(texts), max(batch, min(len(texts), BATCHES * batch))))
    return [texts[start : start + batch] for start in range(0, len(texts) - batch + 1, batch)]


def _check(engine: Engine, batch: Sequence[Input], tasks: tuple[str, ...]) -> None:
    """A text without an answer takes no time: better none are measured."""
    found, _ = engine.run([Job(item, tasks) for item in batch])
    for item, answers in zip(batch, found, strict=True):
        for task, answer in answers.items():
            if isinstance(answer, ItemError):
                raise UsageError(f"task '{task}' cannot read {item.text[:40]!r}: {answer.message}")


def _run(
    engine: Engine,
    batches: Sequence[Sequence[Input]],
    tasks: tuple[str, ...],
    speeds: Sequence[tuple[str, float]] = (),
) -> Callable[[], object]:
    """A run of the next batch."""
    mine = tuple((task, speed) for task, speed in speeds if task in tasks)
    jobs = itertools.cycle([[Job(item, tasks, mine) for item in batch] for batch in batches])
    return lambda: engine.run(next(jobs))


def _tokens(bundle: Bundle, tasks: Iterable[str], batches: Iterable[Sequence[Input]]) -> float:
    """Mean tokens of a text, as the task among these that reads most sees it."""
    reader = bundle.loader.trunk.encoder.reader
    texts = [item.text for batch in batches for item in batch]
    rows = reader.tokenize(texts, max_tokens=longest(bundle, tasks), offsets=False)
    return round(statistics.mean(len(row.ids) for row in rows), 1)
