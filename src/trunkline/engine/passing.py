"""Rows through the trunk, layer by layer: branches at their forks, exits on the way.

At an exit those rows leave that it is sure enough of; of a task that has a scope, those alone that are within it there,
so that the others are answered by the head. A row whose tasks have all answered, and that no pair waits for,
is carried no further: when so many are gone that the rest fits into less, the rest is cut into batches anew, across
those in which it stood. At speed 0 nothing of this happens, and every row is carried as deep as the deepest needs.

Notation: R rows of a batch, T tokens, n rows that a task is asked of, C outputs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.asked import Ask, Asked, Row
from trunkline.engine.backend import Backend, Call, Mask, Part, ScopeAt, States
from trunkline.engine.base import Logits, Work
from trunkline.engine.shapes import Cut, cost, rows_for
from trunkline.model.branch import BranchSpec
from trunkline.project.speed import Trail
from trunkline.project.tasks import Kind

Numbers = NDArray[np.int64]
Cutter = Callable[[Sequence[int]], list[Cut]]
"""Lengths of rows -> the batches that they are cut into."""

_WORTHWHILE = 0.95
"""Rows are cut anew where that leaves at most so much to compute in a layer: to move them costs a little."""


@dataclass
class _Batch:
    """Rows of a pass that go together: their numbers, and their states with filler rows at the end."""

    rows: Numbers
    states: States
    mask: Mask


class _Carried:
    """Rows of a pass at some depth, each in one of the batches; `lengths` are those of all rows of the pass."""

    def __init__(self, backend: Backend, lengths: Numbers, cutter: Cutter, batches: Sequence[_Batch]) -> None:
        self._backend = backend
        self._lengths = lengths
        self._cutter = cutter
        self.batches = batches
        self.count = sum(len(batch.rows) for batch in batches)
        self._place = np.zeros(len(lengths), dtype=np.int64)
        self._batch = np.full(len(lengths), -1)
        for number, batch in enumerate(batches):
            self._place[batch.rows] = np.arange(len(batch.rows))
            self._batch[batch.rows] = number

    def of(self, rows: Numbers) -> Iterator[tuple[_Batch, Numbers, Numbers]]:
        """Where these rows stand: a batch, which of them are in it, and their places there."""
        if len(self.batches) == 1 and len(rows):
            yield self.batches[0], np.arange(len(rows)), self._place[rows]
            return
        batches = self._batch[rows]
        for number, batch in enumerate(self.batches):
            found = np.flatnonzero(batches == number)
            if len(found):
                yield batch, found, self._place[rows[found]]

    def part(self, rows: Numbers) -> _Carried:
        """These rows alone, those of a batch as one of an allowed number of rows."""
        parts = []
        for batch, found, places in self.of(rows):
            if len(found) == len(batch.rows):
                parts.append(batch)
            else:
                shape = rows_for(len(found)), batch.mask.shape[1]
                parts.append(self._gathered(rows[found], [(batch.states, places)], *shape))
        return _Carried(self._backend, self._lengths, self._cutter, parts)

    def shrunk(self, rows: Numbers) -> _Carried:
        """These rows alone, if there are any, cut anew where that leaves less to compute."""
        if not len(rows) or (len(rows) == self.count and len(self.batches) == 1):
            return self
        now = cost(batch.mask.shape for batch in self.batches)
        if self._lengths[rows].sum() > _WORTHWHILE * now:
            return self
        cuts = self._cutter(self._lengths[rows].tolist())
        if cost((one.rows, one.tokens) for one in cuts) > _WORTHWHILE * now:
            return self
        batches = []
        for one in cuts:
            moved = rows[one.members]
            found = [(batch, moved[picks], places) for batch, picks, places in self.of(moved)]
            order = np.concatenate([numbers for _, numbers, _ in found])
            taken = [(batch.states, places) for batch, _, places in found]
            batches.append(self._gathered(order, taken, one.rows, one.tokens))
        return _Carried(self._backend, self._lengths, self._cutter, batches)

    def through(self, layer: Callable[[States, Mask], States]) -> _Carried:
        """The same rows after a layer."""
        after = copy.copy(self)
        after.batches = [_Batch(batch.rows, layer(batch.states, batch.mask), batch.mask) for batch in self.batches]
        return after

    def _gathered(self, numbers: Numbers, taken: Sequence[tuple[States, Numbers]], rows: int, tokens: int) -> _Batch:
        mask = mask_of(self._lengths[numbers], rows, tokens)
        return _Batch(numbers, self._backend.gather(taken, rows, tokens), mask)


class _Asking:
    """One task in a pass, asked n times: of a row as often as there are speeds for it, speed 0 among them; `jobs` by
    ask. T is that of the widest batch.
    """

    def __init__(self, task: str, spec: BranchSpec, asks: Sequence[tuple[int, Ask, list[int]]], tokens: int) -> None:
        self.task = task
        self.spec = spec
        self.rows: Numbers = np.asarray([row for row, _, _ in asks])  # (n,), rising
        self._once = len({row for row, _, _ in asks}) == len(asks)
        self.jobs = [jobs for _, _, jobs in asks]
        self.waiting = np.ones(len(asks), dtype=bool)
        self._speeds = np.asarray([ask.speed for _, ask, _ in asks])  # (n,)
        self._early = self._speeds > 0
        self._may_leave = np.zeros((len(asks), spec.depth), dtype=bool)  # (n, depth)
        self.stops = {spec.fork}  # depths at which something of it is read
        speeds = {ask.speed for _, ask, _ in asks if ask.speed}
        for speed in speeds:
            exits = sorted(spec.exits_at(speed))
            self._may_leave[np.ix_(self._speeds == speed, exits)] = True
            self.stops.update(exits)
        self.dialled = bool(speeds)
        self.scope = None if spec.scope is None else np.zeros(len(asks), dtype=np.float32)  # (n,) where last taken
        if self.dialled:
            self._trail = Trail(spec.kind, spec.rule, rows=len(asks), std=spec.std)
        self._words: NDArray[np.bool_] | None = None  # (n, T)
        if self.dialled and spec.kind is Kind.TAGGING:
            self._words = np.zeros((len(asks), tokens), dtype=bool)
            for words, (_, ask, _) in zip(self._words, asks, strict=True):
                words[list(ask.words)] = True

    def rows_of(self, asks: Numbers) -> Numbers:
        """The rows of these asks, which rise, each row once."""
        rows = self.rows[asks]
        return rows if self._once else np.unique(rows)

    def leaving(self, depth: int) -> Numbers:
        """Those that wait and may leave at this depth."""
        return np.flatnonzero(self.waiting & self._may_leave[:, depth]) if depth < self.spec.depth else np.arange(0)

    def leaving_own(self) -> Numbers:
        """Those that wait and may leave between the branch's own layers."""
        return np.flatnonzero(self.waiting & self._may_leave[:, self.spec.fork + 1 :].any(1))

    def judged(self, depth: int) -> Numbers:
        """Those whose scope is taken at this depth: at exits in the trunk, those that may leave there."""
        if self.scope is not None and depth == self.spec.fork:
            return np.flatnonzero(self.waiting)
        return self.leaving(depth) if self.scope is not None and depth < self.spec.fork else np.arange(0)

    def at_exit(self, logits: Logits, asks: Numbers, depth: int) -> tuple[NDArray[np.bool_], list[float]]:
        """Whether the exit at a depth is sure enough of these, (n,), from their logits, and how unsure it is of those
        that leave.
        """
        unsure = self._uncertainty(logits, asks, depth)
        leave: NDArray[np.bool_] = unsure < self._speeds[asks]
        if self.scope is not None:
            leave &= ~(self.scope[asks] > 0)
        return leave, unsure[leave].tolist()

    def at_end(self, logits: Logits, asks: Numbers) -> list[float | None]:
        """How unsure the head is of those of these that were asked at a speed, from their logits."""
        early = self._early[asks]
        if not early.any():
            return [None] * len(asks)
        known = iter(self._uncertainty(logits[early], asks[early], self.spec.depth).tolist())
        return [next(known) if one else None for one in early]

    def _uncertainty(self, logits: Logits, asks: Numbers, depth: int) -> NDArray[np.float64]:
        logits = self.spec.calibrated(logits, depth)
        if self._words is None:
            return self._trail.uncertainty(logits, asks)
        padded = np.zeros((len(asks), self._words.shape[1], logits.shape[2]), dtype=logits.dtype)
        padded[:, : logits.shape[1]] = logits
        return self._trail.uncertainty(padded, asks, self._words[asks])


_Reader = tuple[_Asking, Numbers, _Batch, Numbers]  # some of its asks, the batch of their rows, their places there


def _readers(asking: _Asking, asks: Numbers, carried: _Carried) -> Iterator[_Reader]:
    """Who reads which batch for these asks."""
    for batch, found, places in carried.of(asking.rows[asks]):
        yield asking, asks[found], batch, places


class Pass:
    """Batches on their way, side by side. `Pass(…).run()` leaves results and kept states in `asked`, and adds to its
    work. `cuts` are of `rows`; rows that go on after others left are cut by `cutter`.
    """

    def __init__(
        self,
        backend: Backend,
        asked: Asked,
        slot: str,
        rows: Sequence[Row],
        cuts: Sequence[Cut],
        cutter: Cutter,
        pad_id: int,
    ) -> None:
        self._started = time.perf_counter()
        self._branching = 0.0
        self.backend = backend
        self.asked = asked
        self.slot = slot
        self.rows = [rows[i] for batch in cuts for i in batch.members]
        lengths = np.asarray([len(row.tokens) for row in self.rows])
        batches: list[_Batch] = []
        start, padded = 0, 0
        for batch in cuts:
            numbers = np.arange(start, start + len(batch.members))
            ids, types, mask = _padded([self.rows[number] for number in numbers], batch, pad_id)
            batches.append(_Batch(numbers, backend.embed(ids, types, mask), mask))
            start, padded = start + len(numbers), padded + mask.size
        self._work = Work(rows=len(self.rows), tokens=int(lengths.sum()), padded=padded)
        self._carried = _Carried(backend, lengths, cutter, batches)
        self._parts: dict[bytes, _Carried] = {}
        found: dict[str, list[tuple[int, Ask, list[int]]]] = {}
        for number, row in enumerate(self.rows):
            for ask, jobs in row.asked.items():
                found.setdefault(ask.task, []).append((number, ask, jobs))
        longest = max(batch.tokens for batch in cuts)
        self._asking = [_Asking(task, backend.specs[task], asks, longest) for task, asks in found.items()]
        self._dialled = [asking for asking in self._asking if asking.dialled]
        self._kept = np.asarray([max(row.kept, default=0) for row in self.rows])
        self._keeping = {depth for row in self.rows for depth in row.kept}
        self._stops = self._keeping.union(*(asking.stops for asking in self._asking))

    def run(self) -> None:
        """Every row as deep as it is needed."""
        depth, layers = 0, 0
        deepest = max(row.depth for row in self.rows)
        while True:
            if depth in self._stops:  # elsewhere nobody reads, leaves or is done
                self._stop(depth)
                if self._dialled:
                    deepest = self._shrink(depth)
            if deepest <= depth:
                break
            self._carried = self._carried.through(partial(self.backend.layer, depth))
            layers += self._carried.count
            depth += 1
        spent = time.perf_counter() - self._started - self._branching
        self.asked.work += self._work + Work(trunk=spent, branches=self._branching, layers=layers)

    def _shrink(self, depth: int) -> int:
        """How deep any row must still go; those that must go on do so alone where that leaves less to compute."""
        depths = self._kept.copy()
        for asking in self._asking:
            if asking.spec.fork > depth:
                np.maximum.at(depths, asking.rows[asking.waiting], asking.spec.fork)
        self._carried = self._carried.shrunk(np.flatnonzero(depths > depth))
        return int(depths.max(initial=0))

    def _stop(self, depth: int) -> None:
        """All that reads the states of this depth."""
        started = time.perf_counter()
        self._parts = {}
        self._scopes(depth)
        if self._dialled:
            self._exits(depth)
        self._forks(depth)
        self._branching += time.perf_counter() - started
        for batch in self._carried.batches if depth in self._keeping else ():
            for place, number in enumerate(batch.rows):
                row = self.rows[number]
                if depth in row.kept:
                    self.asked.keep(self.slot, row.ids, depth, self.backend.keep(batch.states, place, len(row.tokens)))

    def _scopes(self, depth: int) -> None:
        """The scopes at this depth: of those that an exit or a branch reads here."""
        readers: list[_Reader] = []
        for asking in self._asking:
            asks = asking.judged(depth)
            if len(asks):
                rows = asking.rows_of(asks)
                readers += _readers(asking, asks, self._part(rows) if depth == asking.spec.fork else self._about(rows))
        for (asking, asks, _, places), values in zip(readers, self._call(readers, ScopeAt(depth)), strict=True):
            if asking.scope is not None:
                asking.scope[asks] = values[places, 0]

    def _exits(self, depth: int) -> None:
        """The exits at this depth: who is sure leaves."""
        readers: list[_Reader] = []
        for asking in self._dialled:
            asks = asking.leaving(depth) if depth <= asking.spec.fork else np.arange(0)
            if len(asks):
                readers += _readers(asking, asks, self._about(asking.rows_of(asks)))
        self._leave(readers, self._call(readers, depth), depth)

    def _about(self, rows: Numbers) -> _Carried:
        """These rows, and maybe others: for what is so cheap that to pick its rows may cost more."""
        return self._carried if 2 * len(rows) > self._carried.count else self._part(rows)

    def _part(self, rows: Numbers) -> _Carried:
        key = rows.tobytes()
        if key not in self._parts:
            self._parts[key] = self._carried.part(rows)
        return self._parts[key]

    def _leave(self, readers: Sequence[_Reader], said: Sequence[Logits], depth: int) -> None:
        """Those leave of whom an exit is sure, from what it said of each batch."""
        found: dict[_Asking, list[tuple[Numbers, Logits]]] = {}
        for (asking, asks, _, places), values in zip(readers, said, strict=True):
            found.setdefault(asking, []).append((asks, values[places]))
        for asking, parts in found.items():  # of all batches at once: what follows takes as long for many as for few
            numbers = np.concatenate([asks for asks, _ in parts])
            logits = _joined([values for _, values in parts])
            leave, unsure = asking.at_exit(logits, numbers, depth)
            self._answer(asking, numbers[leave], logits[leave], depth, unsure)

    def _forks(self, depth: int) -> None:
        """The branches at this fork, each on the rows that wait for it; through its own exits where there are any."""
        readers: list[_Reader] = []
        for asking in self._asking:
            if asking.spec.fork == depth:
                self._own(asking)
                asks = np.flatnonzero(asking.waiting)
                readers += _readers(asking, asks, self._part(asking.rows_of(asks)))
        self._end(readers, None)

    def _own(self, asking: _Asking) -> None:
        """A branch layer by layer, for those that may leave between its own layers."""
        spec, asks = asking.spec, asking.leaving_own()
        if not len(asks):
            return
        carried = self._part(asking.rows_of(asks))
        for index in range(spec.layers - 1):
            carried = carried.shrunk(asking.rows_of(asks))
            carried = carried.through(partial(self.backend.own_layer, asking.task, index))
            depth = spec.fork + index + 1
            readers = list(_readers(asking, asking.leaving(depth), carried))
            self._leave(readers, self._call(readers, depth), depth)
            asks = asks[asking.waiting[asks]]
            if not len(asks):
                return
        self._end(list(_readers(asking, asks, carried.part(asking.rows_of(asks)))), spec.depth)

    def _end(self, readers: Sequence[_Reader], part: Part) -> None:
        for (asking, asks, _, places), values in zip(readers, self._call(readers, part), strict=True):
            logits = values[places]
            self._answer(asking, asks, logits, asking.spec.depth, asking.at_end(logits, asks))

    def _call(self, readers: Sequence[_Reader], part: Part) -> list[Logits]:
        calls = [Call(asking.task, (batch.states,), (batch.mask,), part) for asking, _, batch, _ in readers]
        return run_calls(self.backend, calls)

    def _answer(
        self, asking: _Asking, asks: Numbers, logits: Logits, depth: int, unsure: Sequence[float | None]
    ) -> None:
        if not len(asks):
            return
        asking.waiting[asks] = False
        jobs = [asking.jobs[ask] for ask in asks.tolist()]
        scope = None if asking.scope is None else asking.scope[asks]
        self.asked.answer(asking.task, jobs, logits, depth, unsure, scope)


def _joined(parts: Sequence[Logits]) -> Logits:
    """Logits (n, …) of several batches as one; those of tokens are padded to the most tokens."""
    if parts[0].ndim == 3:
        tokens = max(part.shape[1] for part in parts)
        parts = [np.pad(part, ((0, 0), (0, tokens - part.shape[1]), (0, 0))) for part in parts]
    return np.concatenate(parts)


def run_calls(backend: Backend, calls: Sequence[Call]) -> list[Logits]:
    """Logits of each call. Raises RuntimeError where a branch does not give one for each row."""
    if not calls:
        return []
    found = backend.branches(calls)
    for call, values in zip(calls, found, strict=True):
        if len(values) != len(call.masks[0]):
            raise RuntimeError(f"branch '{call.task}' gave {len(values)} rows for {len(call.masks[0])}")
    return found


def mask_of(lengths: Sequence[int] | Numbers, rows: int, tokens: int) -> Mask:
    """(rows, tokens), True at tokens; a filler row has one, so that its attention has something to look at."""
    full = np.ones(rows, dtype=np.int64)
    full[: len(lengths)] = lengths
    mask: Mask = np.arange(tokens)[None, :] < full[:, None]
    return mask


def _padded(rows: Sequence[Row], batch: Cut, pad_id: int) -> tuple[Numbers, Numbers, Mask]:
    ids = np.full((batch.rows, batch.tokens), pad_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for position, row in enumerate(rows):
        ids[position, : len(row.tokens)] = row.tokens.ids
        types[position, : len(row.tokens)] = row.tokens.types
    return ids, types, mask_of([len(row.tokens) for row in rows], batch.rows, batch.tokens)
