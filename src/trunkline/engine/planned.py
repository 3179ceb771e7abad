"""The execution plan of the fast engines: what is read once, in which shapes, how deep, and which branches run where.

All jobs of a run go through the trunk together: equal token rows once, cut into few shapes, layer by layer, as deep as
a row of the batch still needs. At each fork the branches that somebody asked for run on the rows that asked. Pairs that
are read separately are joined when both of their texts have been read, from a bounded cache that outlives the run. The
arithmetic is a backend's.

Isolation: a batch holds rows of one slot, in the order of their length, and a backend computes each layer and each
branch by itself. So the bits of an answer depend on the shapes of its batches, and these on the texts, not on what
other tasks there are or are asked of them. Two things move rows to other shapes: a task that cuts a text shorter than
another does, since that is a row more, and texts of pairs that come from the cache, since those are rows less.

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
from trunkline.model.branch import BranchSpec, first_subwords, word_logits
from trunkline.model.reader import TextReader
from trunkline.model.tokens import TokenRow
from trunkline.project.tasks import Kind

States = Any  # a batch of states (R, T, H) in the backend's own form
Mask = NDArray[np.bool_]
Place = tuple[str, int]  # a slot and a limit on its tokens
Texts = tuple[str, str | None]  # a text, or both of a pair in one sequence
StateCache = Cache[tuple[Ids, int], States]  # (token row, fork) -> its states

PASS_TOKENS = 4096
CACHE_BYTES = 256 * 1024 * 1024
AT_ONCE = 1024
"""Jobs that are read and held at once: what a run needs in memory does not grow with its jobs."""


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


@dataclass(frozen=True)
class _Manner:
    """How a task reads an input; tasks of one manner share its token rows."""

    slots: tuple[str, ...]
    limit: int
    words: bool

    @classmethod
    def of(cls, spec: BranchSpec) -> _Manner:
        return cls(spec.reading.slots, spec.max_tokens, spec.kind is Kind.TAGGING)

    @property
    def places(self) -> list[Place]:
        return [(slot, self.limit) for slot in self.slots]


@dataclass
class _Row:
    """A distinct row of tokens and who needs it."""

    ids: Ids
    tokens: TokenRow
    asked: dict[str, list[int]] = field(default_factory=dict)  # task that reads it alone -> jobs
    kept: set[int] = field(default_factory=set)  # forks at which pairs need it
    depth: int = 0


_Asked = dict[str, list[int]]  # task -> jobs
_Pairs = dict[tuple[Ids, Ids], _Asked]


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
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
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
        results: list[dict[str, Logits | ItemError]] = []
        work = Work()
        for start in range(0, len(jobs), AT_ONCE):
            with self._turn:
                run = _Run(self.backend, self.reader, self._cache, jobs[start : start + AT_ONCE])
                run.read()
                run.trunk(self.pass_tokens, max_rows)
                run.join(self.pass_tokens, max_rows)
            results += (
                {name: found[name] for name in job.tasks} for job, found in zip(run.jobs, run.results, strict=True)
            )
            work += run.work
        return results, work


class _Run:
    """One run, from jobs to results."""

    def __init__(self, backend: Backend, reader: TextReader, cache: StateCache, jobs: Sequence[Job]) -> None:
        self.backend = backend
        self.reader = reader
        self.specs = backend.specs
        self.cache = cache
        self.jobs = jobs
        self.results: list[dict[str, Logits | ItemError]] = [{} for _ in jobs]
        self.work = Work()
        self._rows: dict[str, dict[Ids, _Row]] = {}  # slot -> its distinct rows
        self._own: dict[tuple[int, str], TokenRow] = {}  # tagging: the job's own tokens, with its own offsets
        self._pairs: dict[tuple[int, int], _Pairs] = {}  # (fork, limit) -> the pairs that tasks read there
        self._kept: dict[tuple[str, Ids, int], States] = {}  # (slot, row, fork)

    def read(self) -> None:
        """Token rows of all jobs, equal ones once, each with the tasks that read it."""
        started = time.perf_counter()
        manners = {name: _Manner.of(spec) for name, spec in self.specs.items()}
        readable: list[tuple[int, Input, dict[_Manner, list[str]]]] = []  # job, input, its tasks by manner
        wanted: dict[Place, dict[Texts, None]] = {}
        tagged: set[Place] = set()
        for i, job in enumerate(self.jobs):
            alike: dict[_Manner, list[str]] = {}
            for name in job.tasks:
                alike.setdefault(manners[name], []).append(name)
            for manner in list(alike):
                reason = fault(job.item, manner.slots, words=manner.words)
                if reason is not None:
                    self.results[i].update(dict.fromkeys(alike.pop(manner), reason))
                elif isinstance(job.item, Input):
                    for place in manner.places:
                        wanted.setdefault(place, {})[texts_of(job.item, place[0])] = None
                    if manner.words:
                        tagged.update(manner.places)
            if alike and isinstance(job.item, Input):
                readable.append((i, job.item, alike))
        rows = {place: self._tokenize(list(texts), place[1], place in tagged) for place, texts in wanted.items()}
        for i, item, alike in readable:
            for manner, names in alike.items():
                self._ask(i, manner, names, [rows[place][texts_of(item, place[0])] for place in manner.places])
        self.work = replace(self.work, tokenise=time.perf_counter() - started)

    def _tokenize(
        self, texts: Sequence[Texts], max_tokens: int, offsets: bool
    ) -> dict[Texts, tuple[Ids, TokenRow] | ItemError]:
        found = tokenize(self.reader, texts, max_tokens, offsets=offsets)
        return {
            given: row if isinstance(row, ItemError) else (ids_of(row), row)
            for given, row in zip(texts, found, strict=True)
        }

    def _ask(
        self, i: int, manner: _Manner, names: Sequence[str], rows: Sequence[tuple[Ids, TokenRow] | ItemError]
    ) -> None:
        """Note who reads what: tasks of one manner, for one job."""
        read: list[tuple[Ids, TokenRow]] = []
        for row in rows:
            if isinstance(row, ItemError):
                self.results[i].update(dict.fromkeys(names, row))
                return
            read.append(row)
        if len(read) == 2:
            (a, first), (b, second) = read
            for fork, tasks in _by_fork(names, self.specs).items():
                waiting = self._pairs.setdefault((fork, manner.limit), {}).setdefault((a, b), {})
                for name in tasks:
                    waiting.setdefault(name, []).append(i)
                self._need("text", a, first, fork)
                self._need("pair", b, second, fork)
            return
        [(ids, tokens)] = read
        found = self._rows.setdefault(manner.slots[0], {}).setdefault(ids, _Row(ids, tokens))
        for name in names:
            found.asked.setdefault(name, []).append(i)
            found.depth = max(found.depth, self.specs[name].fork)
            if manner.words:
                self._own[i, name] = tokens

    def _need(self, slot: str, ids: Ids, tokens: TokenRow, fork: int) -> None:
        """A text of a pair: from the cache, or through the trunk to the fork."""
        if (slot, ids, fork) in self._kept:
            return
        kept = self.cache.get((ids, fork))
        if kept is not None:
            self._kept[slot, ids, fork] = kept
            self.work += Work(hits=1)
            return
        found = self._rows.setdefault(slot, {}).setdefault(ids, _Row(ids, tokens))
        if fork not in found.kept:
            self.work += Work(misses=1)
        found.kept.add(fork)
        found.depth = max(found.depth, fork)

    def trunk(self, pass_tokens: int, max_rows: int | None) -> None:
        """Every row through the trunk, with the branches that read it alone."""
        limit = {} if max_rows is None else {"max_rows": max_rows}
        for slot, distinct in self._rows.items():
            rows = list(distinct.values())
            lengths = [len(row.tokens) for row in rows]
            for batch in cut(lengths, max_tokens=pass_tokens, longest=self.reader.max_positions, **limit):
                self._pass(slot, [rows[i] for i in batch.members], batch)

    def _pass(self, slot: str, rows: Sequence[_Row], batch: Cut) -> None:
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
                    kept = self.backend.keep(states, position, len(row.tokens))
                    self._kept[slot, row.ids, fork] = kept
                    self.cache.put((row.ids, fork), kept)
        self.work += Work(
            trunk=time.perf_counter() - started - spent,
            branches=spent,
            rows=len(rows),
            tokens=int(mask.sum()) - (batch.rows - len(rows)),
            padded=mask.size,
            layers=depth * len(rows),
        )

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
        self._run(calls, {name: [rows[i].asked[name] for i in positions] for name, positions in asked.items()})

    def join(self, pass_tokens: int, max_rows: int | None) -> None:
        """The branches that read two texts separately, on pairs of kept rows."""
        started = time.perf_counter()
        for (fork, _), waiting in self._pairs.items():
            pairs = list(waiting.items())
            # Both sides are padded to their longest, so that the longer side decides what stands together.
            lengths = [2 * max(len(a[0]), len(b[0])) for (a, b), _ in pairs]
            limit = {} if max_rows is None else {"max_rows": max_rows}
            for batch in cut(lengths, max_tokens=pass_tokens, **limit):
                self._join([pairs[i] for i in batch.members], fork, batch.rows)
        self.work += Work(branches=time.perf_counter() - started)

    def _join(self, pairs: Sequence[tuple[tuple[Ids, Ids], _Asked]], fork: int, rows: int) -> None:
        states, masks = [], []
        for side, slot in enumerate(("text", "pair")):
            texts = [pair[side] for pair, _ in pairs]
            lengths = [len(ids) for ids, _ in texts]
            tokens = tokens_for(max(lengths))
            states.append(self.backend.join([self._kept[slot, text, fork] for text in texts], rows, tokens))
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
        self._run(calls, {name: [pairs[i][1][name] for i in positions] for name, positions in asked.items()})

    def _run(self, calls: Sequence[Call], jobs: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Run branches and hand out their logits: `jobs` has, per task and row, the jobs that asked."""
        for call, values in zip(calls, self.backend.branches(calls), strict=True):
            if len(values) != len(call.masks[0]):
                raise RuntimeError(f"branch '{call.task}' gave {len(values)} rows for {len(call.masks[0])}")
            for logits, askers in zip(values, jobs[call.task], strict=False):  # filler rows stay behind
                for i in askers:
                    self.results[i][call.task] = self._result(call.task, logits, i)

    def _result(self, name: str, values: Logits, i: int) -> Logits | ItemError:
        spec, item = self.specs[name], self.jobs[i].item
        if spec.kind is Kind.TAGGING and isinstance(item, Input):
            values = word_logits(values, first_subwords(self._own[i, name], item.spans()), spec.outside)  # (words, C)
        if not np.isfinite(values).all():
            return ItemError("the model's output for this input is not a number")
        return values.copy()


def _by_fork(names: Sequence[str], specs: Mapping[str, BranchSpec]) -> dict[int, list[str]]:
    forks: dict[int, list[str]] = {}
    for name in names:
        forks.setdefault(specs[name].fork, []).append(name)
    return forks


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
