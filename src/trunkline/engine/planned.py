"""The execution plan of the fast engines: what is read once, in which shapes, how deep, and which branches run where.

All jobs of a run go through the trunk together: equal token rows once, cut into few shapes, layer by layer, as deep as
a row of the batch still needs (see `passing`). Pairs that are read separately are joined when both of their texts have
been read, from a bounded cache that outlives the run. The arithmetic is a backend's.

Isolation: a batch holds rows of one slot, in the order of their length, and a backend computes each layer and each
branch by itself. So the bits of an answer depend on the shapes of its batches, and these on the texts, not on what
other tasks there are or are asked of them. Three things move rows to other shapes: a task that cuts a text shorter than
another does, since that is a row more, texts of pairs that come from the cache, since those are rows less, and rows
that leave at an exit, since those that are left are cut anew.

Notation: R rows of a batch, T tokens, H width, C outputs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from trunkline.engine.asked import Asked, Pairs, Row, StateCache
from trunkline.engine.backend import Backend, Call, ScopeAt
from trunkline.engine.base import BATCH_SIZE, Input, ItemError, Job, Logits, Output, Work, known_tasks, logits_of
from trunkline.engine.cache import Cache
from trunkline.engine.passing import Pass, mask_of, run_calls
from trunkline.engine.shapes import ROWS, Cut, cut, rows_for, tokens_for
from trunkline.model.branch import BranchSpec
from trunkline.model.reader import TextReader

PASS_TOKENS = 4096
SIDE_BY_SIDE = 8 * PASS_TOKENS
"""Most tokens of batches that go side by side, so that rows that are left of them can go on together."""
CACHE_BYTES = 256 * 1024 * 1024
AT_ONCE = 1024
"""Jobs that are read and held at once: what a run needs in memory does not grow with its jobs."""


class PlannedEngine:
    """Runs jobs on a backend. Threads may share it: runs take turns.

    `cache` keeps trunk states of texts of pairs, `pass_tokens` bounds the tokens of one batch.
    """

    def __init__(
        self,
        reader: TextReader,
        backend: Backend,
        *,
        cache: StateCache | None = None,
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        self.reader = reader
        self.backend = backend
        self.pass_tokens = pass_tokens
        self._cache: StateCache = Cache(CACHE_BYTES) if cache is None else cache
        self._turn = threading.Lock()

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """The task names that it answers, and what each branch is."""
        return self.backend.specs

    def logits(
        self, inputs: Sequence[Input | ItemError], tasks: Iterable[str], *, batch_size: int = BATCH_SIZE
    ) -> dict[str, list[Logits | ItemError]]:
        """Per task, one result per input in the order given; at most `batch_size` rows in one pass."""
        names = tuple(known_tasks(self.specs, tasks))
        found, _ = self.run([Job(item, names) for item in inputs], batch_size=batch_size)
        return {name: [logits_of(results[name]) for results in found] for name in names}

    def run(
        self, jobs: Sequence[Job], *, batch_size: int | None = None
    ) -> tuple[list[dict[str, Output | ItemError]], Work]:
        """Per job, one result per task asked of it, and what it took; at most `batch_size` rows in one pass. Raises
        UsageError for an unknown task.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        for tasks in {job.tasks for job in jobs}:
            known_tasks(self.specs, tasks)
        max_rows = ROWS[-1] if batch_size is None else batch_size
        results: list[dict[str, Output | ItemError]] = []
        work = Work()
        for start in range(0, len(jobs), AT_ONCE):
            with self._turn:
                asked = Asked(jobs[start : start + AT_ONCE], self.specs, self.reader, self._cache)
                self._trunk(asked, max_rows)
                self._join(asked, max_rows)
            results += (
                {name: found[name] for name in job.tasks} for job, found in zip(asked.jobs, asked.results, strict=True)
            )
            work += asked.work
        return results, work

    def forget(self) -> None:
        """Drop the states of texts that earlier runs read, whose batches had other shapes."""
        self._cache.clear()

    def _trunk(self, asked: Asked, max_rows: int) -> None:
        """Every row through the trunk, with the branches that read it alone."""
        cutter = partial(cut, max_tokens=self.pass_tokens, longest=self.reader.max_positions, max_rows=max_rows)
        for slot, distinct in asked.rows.items():
            rows = list(distinct.values())
            for cuts in _together(rows, cutter([len(row.tokens) for row in rows])):
                Pass(self.backend, asked, slot, rows, cuts, cutter, self.reader.pad_id).run()

    def _join(self, asked: Asked, max_rows: int) -> None:
        """The branches that read two texts separately, on pairs of kept rows."""
        started = time.perf_counter()
        for (fork, _), waiting in asked.pairs.items():
            pairs = list(waiting.items())
            # Both sides are padded to their longest, so that the longer side decides what stands together.
            lengths = [2 * max(len(a[0]), len(b[0])) for (a, b), _ in pairs]
            for batch in cut(lengths, max_tokens=self.pass_tokens, max_rows=max_rows):
                self._pairs(asked, dict(pairs[i] for i in batch.members), fork, batch.rows)
        asked.work += Work(branches=time.perf_counter() - started)

    def _pairs(self, asked: Asked, pairs: Pairs, fork: int, rows: int) -> None:
        states, masks, sides = [], [], []
        for side, slot in enumerate(("text", "pair")):
            texts = [pair[side] for pair in pairs]
            lengths = np.asarray([len(ids) for ids, _ in texts])
            tokens = tokens_for(int(lengths.max()))
            states.append(self.backend.join([asked.kept[slot, text, fork] for text in texts], rows, tokens))
            masks.append(mask_of(lengths, rows, tokens))
            sides.append(lengths)
        waiting: dict[str, list[tuple[int, list[int]]]] = {}  # task -> (position, jobs)
        for position, tasks in enumerate(pairs.values()):
            for task, jobs in tasks.items():
                waiting.setdefault(task, []).append((position, jobs))
        calls = []
        for task, asks in waiting.items():
            if len(asks) == len(pairs):
                calls.append(Call(task, tuple(states), tuple(masks)))
            else:
                picks = np.asarray([position for position, _ in asks])
                fewer = rows_for(len(asks))
                shapes = [(fewer, mask.shape[1]) for mask in masks]
                calls.append(
                    Call(
                        task,
                        tuple(self.backend.gather([(a, picks)], *b) for a, b in zip(states, shapes, strict=True)),
                        tuple(mask_of(a[picks], *b) for a, b in zip(sides, shapes, strict=True)),
                    )
                )
        scopes = [replace(call, part=ScopeAt(fork)) for call in calls if self.specs[call.task].scope is not None]
        found = run_calls(self.backend, [*calls, *scopes])
        strange = {call.task: values[:, 0] for call, values in zip(scopes, found[len(calls) :], strict=True)}
        for (task, asks), values in zip(waiting.items(), found, strict=False):
            depth, scope = self.specs[task].depth, strange.get(task)
            asked.answer(task, [jobs for _, jobs in asks], values[: len(asks)], depth, scope=scope)


def _together(rows: Sequence[Row], cuts: Sequence[Cut]) -> Iterator[list[Cut]]:
    """The batches that go side by side: those of which rows may leave early, as far as memory goes; others alone."""
    together: list[Cut] = []
    for one in cuts:
        if not any(ask.speed for row in one.members for ask in rows[row].asked):
            yield [one]
        elif together and sum(each.rows * each.tokens for each in (*together, one)) > SIDE_BY_SIDE:
            yield together
            together = [one]
        else:
            together.append(one)
    if together:
        yield together
