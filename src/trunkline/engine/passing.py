"""One batch of rows through the trunk, layer by layer: branches at their forks, exits on the way.

At an exit those rows leave that it is sure enough of. A row whose tasks have all answered, and that no pair waits for,
is carried no further: when so many are gone that a smaller shape holds the rest, the rest goes on in that shape. At
speed 0 nothing of this happens, and every row is carried as deep as the deepest needs.

Notation: R rows of a batch, T tokens, n rows that a task is asked of, C outputs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.asked import Ask, Asked, Row
from trunkline.engine.backend import Backend, Call, Mask, States
from trunkline.engine.base import Logits, Work
from trunkline.engine.shapes import Cut, rows_for
from trunkline.model.branch import BranchSpec
from trunkline.project.speed import Trail
from trunkline.project.tasks import Kind

Numbers = NDArray[np.int64]


@dataclass
class _Held:
    """Rows of the batch that are carried on: their numbers, and their states with filler rows at the end."""

    rows: Numbers
    states: States
    mask: Mask

    def places(self, rows: Numbers) -> Numbers:
        """Where these rows stand in the batch."""
        return np.searchsorted(self.rows, rows)

    def part(self, backend: Backend, rows: Numbers) -> _Held:
        """These rows alone, as a batch of an allowed shape."""
        if len(rows) == len(self.rows):
            return self
        picks = np.zeros(rows_for(len(rows)), dtype=np.int64)
        picks[: len(rows)] = self.places(rows)
        return _Held(rows, backend.take(self.states, picks), self.mask[picks])

    def shrunk(self, backend: Backend, rows: Numbers) -> _Held:
        """These rows alone, if there are any and that makes a smaller shape."""
        return self.part(backend, rows) if len(rows) and rows_for(len(rows)) < len(self.mask) else self


_Asks = Sequence[tuple[int, Ask, list[int]]]  # row, how it is asked, jobs


class _Asking:
    """One task in a batch: the rows that it is asked of, by rising number, and the jobs of each."""

    def __init__(self, task: str, spec: BranchSpec, asks: _Asks) -> None:
        self.task = task
        self.spec = spec
        self.places = [place for place, _, _ in asks]
        self.jobs = [jobs for _, _, jobs in asks]


class _Dialled(_Asking):
    """One that is asked n times at speeds, some of which may be 0: a row as often as there are speeds for it."""

    def __init__(self, task: str, spec: BranchSpec, asks: _Asks, tokens: int) -> None:
        super().__init__(task, spec, asks)
        self.rows: Numbers = np.asarray(self.places)  # (n,)
        self.speeds = np.asarray([ask.speed for _, ask, _ in asks])  # (n,)
        self.waiting = np.ones(len(asks), dtype=bool)
        self._trail = Trail(spec.kind, spec.rule, rows=len(asks), std=spec.std)
        self._words: NDArray[np.bool_] | None = None  # (n, T)
        if spec.kind is Kind.TAGGING:
            self._words = np.zeros((len(asks), tokens), dtype=bool)
            for words, (_, ask, _) in zip(self._words, asks, strict=True):
                words[list(ask.words)] = True

    def has_exit(self, depth: int) -> bool:
        """Whether a row may leave at this depth."""
        return any(one.depth == depth for one in self.spec.exits)

    def at_speed(self) -> Numbers:
        """Those that wait and may leave early."""
        return np.flatnonzero(self.waiting & (self.speeds > 0))

    def uncertainty(self, logits: Logits, asks: Numbers, depth: int) -> NDArray[np.float64]:
        """How unsure the exit or head at a depth is of these, (n,), from their logits."""
        words = None if self._words is None else self._words[asks, : logits.shape[1]]
        return self._trail.uncertainty(self.spec.calibrated(logits, depth), asks, words)


class Pass:
    """A batch on its way. `Pass(…).run()` leaves results and kept states in `asked`, and adds to its work."""

    def __init__(self, backend: Backend, asked: Asked, slot: str, rows: Sequence[Row], batch: Cut, pad_id: int) -> None:
        self._started = time.perf_counter()
        self._branching = 0.0
        self.backend = backend
        self.asked = asked
        self.slot = slot
        self.rows = rows
        ids, types, mask = _padded(rows, batch, pad_id)
        self._work = Work(rows=len(rows), tokens=int(mask.sum()) - (batch.rows - len(rows)), padded=mask.size)
        self._held = _Held(np.arange(len(rows)), backend.embed(ids, types, mask), mask)
        self._parts: dict[tuple[int, ...], _Held] = {}
        found: dict[str, list[tuple[int, Ask, list[int]]]] = {}
        dialled: set[str] = set()
        for place, row in enumerate(rows):
            for ask, jobs in row.asked.items():
                found.setdefault(ask.task, []).append((place, ask, jobs))
                if ask.speed:
                    dialled.add(ask.task)
        specs = backend.specs
        self._plain = [_Asking(task, specs[task], asks) for task, asks in found.items() if task not in dialled]
        self._dialled = [_Dialled(task, specs[task], found[task], mask.shape[1]) for task in found if task in dialled]
        self._kept = np.asarray([max(row.kept, default=0) for row in rows])

    def run(self) -> None:
        """Every row as deep as it is needed."""
        depth, layers = 0, 0
        deepest = max(row.depth for row in self.rows)
        while True:
            self._stop(depth)
            if self._dialled:
                deepest = self._shrink(depth)
            if deepest <= depth:
                break
            held = self._held
            held.states = self.backend.layer(depth, held.states, held.mask)
            layers += len(held.rows)
            depth += 1
        spent = time.perf_counter() - self._started - self._branching
        self.asked.work += self._work + Work(trunk=spent, branches=self._branching, layers=layers)

    def _shrink(self, depth: int) -> int:
        """How deep any row must still go; those that must go on do so alone where that makes a smaller shape."""
        depths = self._kept.copy()
        for plain in self._plain:
            if plain.spec.fork > depth:
                depths[plain.places] = np.maximum(depths[plain.places], plain.spec.fork)
        for asking in self._dialled:
            np.maximum.at(depths, asking.rows[asking.waiting], asking.spec.fork)
        self._held = self._held.shrunk(self.backend, np.flatnonzero(depths > depth))
        return int(depths.max(initial=0))

    def _stop(self, depth: int) -> None:
        """All that reads the states of this depth."""
        started = time.perf_counter()
        self._parts = {}
        if self._dialled:
            self._exits(depth)
        self._forks(depth)
        self._branching += time.perf_counter() - started
        for place, row in enumerate(self._held.rows):
            if depth in self.rows[row].kept:
                ids, length = self.rows[row].ids, len(self.rows[row].tokens)
                self.asked.keep(self.slot, ids, depth, self.backend.keep(self._held.states, place, length))

    def _exits(self, depth: int) -> None:
        """The exits at this depth: who is sure leaves."""
        tried = []
        for asking in self._dialled:
            asks = asking.at_speed()
            if len(asks) and depth <= asking.spec.fork and asking.has_exit(depth):
                rows = np.unique(asking.rows[asks])
                # An exit is cheap: to pick its rows costs more than to read some in vain.
                held = self._held if 2 * len(rows) > len(self._held.rows) else self._part(rows.tolist())
                tried.append((asking, asks, held))
        self._try(tried, depth)

    def _part(self, rows: list[int]) -> _Held:
        key = tuple(rows)
        if key not in self._parts:
            self._parts[key] = self._held.part(self.backend, np.asarray(rows))
        return self._parts[key]

    def _try(self, tried: Sequence[tuple[_Dialled, Numbers, _Held]], depth: int) -> None:
        calls = [Call(asking.task, (held.states,), (held.mask,), depth) for asking, _, held in tried]
        for (asking, asks, held), values in zip(tried, run_calls(self.backend, calls), strict=True):
            logits = values[held.places(asking.rows[asks])]
            unsure = asking.uncertainty(logits, asks, depth)
            leave = unsure < asking.speeds[asks]
            self._answer(asking, asks[leave], logits[leave], depth, unsure[leave].tolist())

    def _forks(self, depth: int) -> None:
        """The branches at this fork, each on the rows that wait for it; through its own exits where there are any."""
        plain = [(asking, self._part(asking.places)) for asking in self._plain if asking.spec.fork == depth]
        dialled = []
        for asking in self._dialled:
            if asking.spec.fork == depth:
                if asking.spec.own_exits:
                    self._own(asking)
                asks = np.flatnonzero(asking.waiting)
                if len(asks):
                    dialled.append((asking, asks, self._part(np.unique(asking.rows[asks]).tolist())))
        helds = [*((one.task, held) for one, held in plain), *((one.task, held) for one, _, held in dialled)]
        found = run_calls(self.backend, [Call(task, (held.states,), (held.mask,)) for task, held in helds])
        for (one, _), values in zip(plain, found, strict=False):
            self.asked.answer(one.task, one.jobs, values, depth + one.spec.layers)
        for (asking, asks, held), values in zip(dialled, found[len(plain) :], strict=True):
            self._end(asking, asks, values[held.places(asking.rows[asks])])

    def _own(self, asking: _Dialled) -> None:
        """A branch with exits between its own layers, for those at a speed."""
        spec, asks = asking.spec, asking.at_speed()
        if not len(asks):
            return
        held = self._part(np.unique(asking.rows[asks]).tolist())
        for index in range(spec.layers - 1):
            held = _Held(held.rows, self.backend.own_layer(asking.task, index, held.states, held.mask), held.mask)
            if asking.has_exit(spec.fork + index + 1):
                self._try([(asking, asks, held)], spec.fork + index + 1)
                asks = asking.at_speed()
                if not len(asks):
                    return
                held = held.shrunk(self.backend, np.unique(asking.rows[asks]))
        [values] = run_calls(self.backend, [Call(asking.task, (held.states,), (held.mask,), spec.depth)])
        self._end(asking, asks, values[held.places(asking.rows[asks])])

    def _end(self, asking: _Dialled, asks: Numbers, logits: Logits) -> None:
        """What the head says; of those that were asked at a speed, with how unsure it is."""
        early = asking.speeds[asks] > 0
        known = iter(asking.uncertainty(logits[early], asks[early], asking.spec.depth).tolist())
        self._answer(asking, asks, logits, asking.spec.depth, [next(known) if one else None for one in early])

    def _answer(
        self, asking: _Dialled, asks: Numbers, logits: Logits, depth: int, unsure: Sequence[float | None]
    ) -> None:
        asking.waiting[asks] = False
        self.asked.answer(asking.task, [asking.jobs[ask] for ask in asks.tolist()], logits, depth, unsure)


def run_calls(backend: Backend, calls: Sequence[Call]) -> list[Logits]:
    """Logits of each call. Raises RuntimeError where a branch does not give one for each row."""
    found = backend.branches(calls)
    for call, values in zip(calls, found, strict=True):
        if len(values) != len(call.masks[0]):
            raise RuntimeError(f"branch '{call.task}' gave {len(values)} rows for {len(call.masks[0])}")
    return found


def mask_of(lengths: Sequence[int], rows: int, tokens: int) -> Mask:
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
