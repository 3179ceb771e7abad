"""The execution plan of the fast engines: what is read once, in which shapes, how deep, and which branches run where.

All jobs of a run go through the trunk together: equal token rows once, cut into few shapes, layer by layer, as deep as
a row of the batch still needs. At each fork the branches that somebody asked for run on the rows that asked. Pairs that
are read separately are joined when both of their texts have been read, from a bounded cache that outlives the run. The
arithmetic is a backend's.

Isolation: a batch holds rows of one slot, in the order of their length, and a backend computes each layer and each
branch by itself. So the bits of an answer do not depend on what other tasks there are, or are asked of the same texts.
(A text that one task cuts shorter than another is a row more, and may move others to another shape.)

Notation: R rows of a batch, T tokens, H width, C outputs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.base import BATCH_SIZE, Input, ItemError, Job, Logits, Work, fault, known_tasks
from trunkline.engine.batching import Ids, texts_of, tokenize
from trunkline.engine.cache import Cache
from trunkline.engine.shapes import Cut, cut, rows_for, tokens_for
from trunkline.model.branch import BranchSpec, Reading, first_subwords, word_logits
from trunkline.model.reader import TextReader
from trunkline.model.tokens import TokenRow
from trunkline.project.tasks import Kind

States = Any  # a batch of states (R, T, H) in the backend's own form
Mask = NDArray[np.bool_]
Place = tuple[str, int]  # a slot and a limit on its tokens

PASS_TOKENS = 4096


@dataclass(frozen=True)
class Call:
    """One branch on one batch: states and masks of the one or two texts that it reads."""

    task: str
    states: tuple[States, ...]
    masks: tuple[Mask, ...]


class Backend(Protocol):
    """Computes layers and branches. States stay valid until the same layer runs again."""

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """The branches that it can run, by task."""
        ...

    def embed(self, ids: NDArray[np.int64], types: NDArray[np.int64], mask: Mask) -> States:
        """The states before the first layer, of (R, T) token ids and types."""
        ...

    def layer(self, index: int, states: States, mask: Mask) -> States:
        """The states after trunk layer `index`."""
        ...

    def branches(self, calls: Sequence[Call]) -> list[Logits]:
        """Logits (R, C) or (R, T, C) of each call, float32."""
        ...

    def take(self, states: States, rows: NDArray[np.int64]) -> States:
        """A copy of these rows."""
        ...

    def keep(self, states: States, row: int, length: int) -> States:
        """A copy of one row's first `length` states, (length, H), to be joined later."""
        ...

    def join(self, kept: Sequence[States], rows: int, tokens: int) -> States:
        """Kept rows as one batch (rows, tokens, H), zeros elsewhere."""
        ...

    def size(self, kept: States) -> int:
        """Bytes of a kept row."""
        ...


@dataclass
class _Row:
    """A distinct row of tokens and who needs it."""

    tokens: TokenRow
    asked: dict[str, list[int]] = field(default_factory=dict)  # task that reads it alone -> jobs
    kept: set[int] = field(default_factory=set)  # forks at which pairs need it
    depth: int = 0


@dataclass
class _Pairs:
    """Pairs that tasks of one fork and one limit read separately, and who asked."""

    fork: int
    pairs: dict[tuple[Ids, Ids], dict[str, list[int]]] = field(default_factory=dict)  # -> task -> jobs


class PlannedEngine:
    """Runs jobs on a backend. Threads may share it: runs take turns.

    `pass_tokens` bounds the tokens of one batch, `cache_bytes` the trunk states that are kept of texts of pairs.
    """

    def __init__(
        self,
        reader: TextReader,
        backend: Backend,
        *,
        pass_tokens: int = PASS_TOKENS,
        cache_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self.reader = reader
        self.backend = backend
        self.pass_tokens = pass_tokens
        self._cache: Cache[tuple[Ids, int], States] = Cache(cache_bytes, backend.size)
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
        found, _ = self._run([Job(item, names) for item in inputs], max_rows=batch_size)
        return {name: [results[name] for results in found] for name in names}

    def run(self, jobs: Sequence[Job]) -> tuple[list[dict[str, Logits | ItemError]], Work]:
        """Per job, one result per task asked of it, and what it took. Raises UsageError for an unknown task."""
        for tasks in {job.tasks for job in jobs}:
            known_tasks(self.specs, tasks)
        return self._run(jobs)

    def _run(
        self, jobs: Sequence[Job], max_rows: int | None = None
    ) -> tuple[list[dict[str, Logits | ItemError]], Work]:
        with self._turn:
            run = _Run(self.backend, self.reader, self._cache, jobs)
            run.read()
            run.trunk(self.pass_tokens, max_rows)
            run.join(self.pass_tokens, max_rows)
            return run.results, run.work


class _Run:
    """One run, from jobs to results."""

    def __init__(
        self, backend: Backend, reader: TextReader, cache: Cache[tuple[Ids, int], States], jobs: Sequence[Job]
    ) -> None:
        self.backend = backend
        self.reader = reader
        self.specs = backend.specs
        self.cache = cache
        self.jobs = jobs
        self.results: list[dict[str, Logits | ItemError]] = [{} for _ in jobs]
        self.work = Work()
        self._rows: dict[str, dict[Ids, _Row]] = {}  # slot -> its distinct rows
        self._own: dict[tuple[int, str], TokenRow] = {}  # tagging: the job's own tokens, with its own offsets
        self._pairs: dict[Place, _Pairs] = {}
        self._kept: dict[tuple[Ids, int], States] = {}

    def read(self) -> None:
        """Token rows of all jobs, equal ones once, each with the tasks that read it."""
        started = time.perf_counter()
        wanted: dict[Place, dict[tuple[str, str | None], None]] = {}
        asked: list[tuple[int, str]] = []
        for i, job in enumerate(self.jobs):
            for name in job.tasks:
                spec = self.specs[name]
                reason = fault(job.item, spec.reading.slots, words=spec.kind is Kind.TAGGING)
                if reason is not None:
                    self.results[i][name] = reason
                elif isinstance(job.item, Input):
                    asked.append((i, name))
                    for place in places(spec):
                        wanted.setdefault(place, {})[texts_of(job.item, place[0])] = None
        tokens = {
            place: dict(zip(texts, tokenize(self.reader, list(texts), place[1]), strict=True))
            for place, texts in wanted.items()
        }
        for i, name in asked:
            item = self.jobs[i].item
            assert isinstance(item, Input)
            rows = [tokens[place][texts_of(item, place[0])] for place in places(self.specs[name])]
            self._ask(i, name, rows)
        self.work = replace(self.work, tokenise=time.perf_counter() - started)

    def _ask(self, i: int, name: str, rows: Sequence[TokenRow | ItemError]) -> None:
        spec = self.specs[name]
        read: list[TokenRow] = []
        for row in rows:
            if isinstance(row, ItemError):
                self.results[i][name] = row
                return
            read.append(row)
        if spec.reading is Reading.SEPARATE:
            pair = (ids_of(read[0]), ids_of(read[1]))
            place = (str(spec.fork), spec.max_tokens)
            waiting = self._pairs.setdefault(place, _Pairs(spec.fork))
            waiting.pairs.setdefault(pair, {}).setdefault(name, []).append(i)
            for slot, ids, row in zip(spec.reading.slots, pair, read, strict=True):
                self._need(slot, ids, row, spec.fork)
            return
        alone = self._rows.setdefault(spec.reading.slots[0], {})
        found = alone.setdefault(ids_of(read[0]), _Row(read[0]))
        found.asked.setdefault(name, []).append(i)
        found.depth = max(found.depth, spec.fork)
        if spec.kind is Kind.TAGGING:
            self._own[i, name] = read[0]

    def _need(self, slot: str, ids: Ids, row: TokenRow, fork: int) -> None:
        """A text of a pair: from the cache, or through the trunk to the fork."""
        twins = [rows[ids] for rows in self._rows.values() if ids in rows]
        if (ids, fork) in self._kept or any(fork in twin.kept for twin in twins):
            return
        kept = self.cache.get((ids, fork))
        if kept is not None:
            self._kept[ids, fork] = kept
            self.work += Work(hits=1)
            return
        self.work += Work(misses=1)
        found = twins[0] if twins else self._rows.setdefault(slot, {}).setdefault(ids, _Row(row))
        found.kept.add(fork)
        found.depth = max(found.depth, fork)

    def trunk(self, pass_tokens: int, max_rows: int | None) -> None:
        """Every row through the trunk, with the branches that read it alone."""
        limit = {} if max_rows is None else {"max_rows": max_rows}
        for slot in self._rows.values():
            rows = list(slot.values())
            lengths = [len(row.tokens) for row in rows]
            for batch in cut(lengths, max_tokens=pass_tokens, longest=self.reader.max_positions, **limit):
                self._pass([rows[i] for i in batch.members], batch)

    def _pass(self, rows: Sequence[_Row], batch: Cut) -> None:
        started = time.perf_counter()
        depth = max(row.depth for row in rows)
        spent = 0.0
        ids, types, mask = _padded([row.tokens for row in rows], batch, self.reader.pad_id)
        states = self.backend.embed(ids, types, mask)
        stops: dict[int, dict[str, list[int]]] = {}  # fork -> task -> positions of the rows that it reads
        for position, row in enumerate(rows):
            for name in row.asked:
                stops.setdefault(self.specs[name].fork, {}).setdefault(name, []).append(position)
        for fork in range(depth + 1):
            if fork:
                states = self.backend.layer(fork - 1, states, mask)
            if fork in stops:
                branching = time.perf_counter()
                self._fork(rows, stops[fork], states, mask)
                spent += time.perf_counter() - branching
            for position, row in enumerate(rows):
                if fork in row.kept:
                    self._store(row, fork, self.backend.keep(states, position, len(row.tokens)))
        self.work += Work(
            trunk=time.perf_counter() - started - spent,
            branches=spent,
            rows=len(rows),
            tokens=int(mask.sum()) - (batch.rows - len(rows)),
            padded=mask.size,
            layers=depth * len(rows),
        )

    def _store(self, row: _Row, fork: int, kept: States) -> None:
        key = (ids_of(row.tokens), fork)
        self._kept[key] = kept
        self.cache.put(key, kept)

    def _fork(self, rows: Sequence[_Row], asked: Mapping[str, list[int]], states: States, mask: Mask) -> None:
        """The branches at one fork, each on the rows that ask for it."""
        taken: dict[tuple[int, ...], tuple[States, Mask]] = {tuple(range(len(rows))): (states, mask)}
        calls = []
        for name, positions in asked.items():
            key = tuple(positions)
            if key not in taken:
                picks = np.zeros(rows_for(len(key)), dtype=np.int64)
                picks[: len(key)] = key
                taken[key] = self.backend.take(states, picks), mask[picks]
            calls.append(Call(name, (taken[key][0],), (taken[key][1],)))
        for call, values in zip(calls, self.backend.branches(calls), strict=True):
            for logits, position in zip(values, asked[call.task], strict=False):  # filler rows stay behind
                for i in rows[position].asked[call.task]:
                    self.results[i][call.task] = self._result(call.task, logits, i)

    def join(self, pass_tokens: int, max_rows: int | None) -> None:
        """The branches that read two texts separately, on pairs of kept rows."""
        started = time.perf_counter()
        for waiting in self._pairs.values():
            pairs = list(waiting.pairs.items())
            lengths = [len(a[0]) + len(b[0]) for (a, b), _ in pairs]
            limit = {} if max_rows is None else {"max_rows": max_rows}
            for batch in cut(lengths, max_tokens=pass_tokens, **limit):
                self._join([pairs[i] for i in batch.members], waiting.fork, batch.rows)
        self.work += Work(branches=time.perf_counter() - started)

    def _join(self, pairs: Sequence[tuple[tuple[Ids, Ids], dict[str, list[int]]]], fork: int, rows: int) -> None:
        states, masks = [], []
        for side in (0, 1):
            texts = [pair[side] for pair, _ in pairs]
            lengths = [len(ids) for ids, _ in texts]
            tokens = tokens_for(max(lengths))
            states.append(self.backend.join([self._kept[text, fork] for text in texts], rows, tokens))
            masks.append(_mask(lengths, rows, tokens))
        asked: dict[str, list[int]] = {}
        for position, (_, names) in enumerate(pairs):
            for name in names:
                asked.setdefault(name, []).append(position)
        calls = []
        for name, positions in asked.items():
            if len(positions) == len(pairs):
                calls.append(Call(name, tuple(states), tuple(masks)))
            else:
                picks = np.zeros(rows_for(len(positions)), dtype=np.int64)
                picks[: len(positions)] = positions
                taken = tuple(self.backend.take(side, picks) for side in states)
                calls.append(Call(name, taken, tuple(mask[picks] for mask in masks)))
        for call, values in zip(calls, self.backend.branches(calls), strict=True):
            for logits, position in zip(values, asked[call.task], strict=False):
                for i in pairs[position][1][call.task]:
                    self.results[i][call.task] = self._result(call.task, logits, i)

    def _result(self, name: str, values: Logits, i: int) -> Logits | ItemError:
        spec, item = self.specs[name], self.jobs[i].item
        if spec.kind is Kind.TAGGING and isinstance(item, Input):
            values = word_logits(values, first_subwords(self._own[i, name], item.spans()), spec.outside)  # (words, C)
        if not np.isfinite(values).all():
            return ItemError("the model's output for this input is not a number")
        return values.copy()


def places(spec: BranchSpec) -> list[Place]:
    """What the trunk must read for a branch."""
    return [(slot, spec.max_tokens) for slot in spec.reading.slots]


def ids_of(row: TokenRow) -> Ids:
    """All that the trunk sees of a row."""
    return tuple(row.ids), tuple(row.types)


def _mask(lengths: Sequence[int], rows: int, tokens: int) -> Mask:
    """(rows, tokens), True at tokens; a filler row has one, so that its attention has something to look at."""
    full = np.ones(rows, dtype=np.int64)
    full[: len(lengths)] = lengths
    mask: Mask = np.arange(tokens)[None, :] < full[:, None]
    return mask


def _padded(rows: Sequence[TokenRow], batch: Cut, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask]:
    ids = np.full((batch.rows, batch.tokens), pad_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row.ids
        types[position, : len(row)] = row.types
    return ids, types, _mask([len(row) for row in rows], batch.rows, batch.tokens)
