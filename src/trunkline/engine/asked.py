"""What the jobs of a run ask of the trunk: each distinct row of tokens once, and who reads it, where, how fast.

Texts of pairs that are read separately are looked up in a cache of states that outlives the run. Knows jobs, tokens and
what branches read; computes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.backend import States
from trunkline.engine.base import NOT_A_NUMBER, Input, ItemError, Job, Logits, Output, Work, fault
from trunkline.engine.batching import Ids, texts_of, tokenize
from trunkline.engine.cache import Cache
from trunkline.model.branch import BranchSpec, first_subwords, word_logits
from trunkline.model.reader import TextReader
from trunkline.model.tokens import TokenRow
from trunkline.project.tasks import Kind

Floats = NDArray[np.float32]
Place = tuple[str, int]  # a slot and a limit on its tokens
Texts = tuple[str, str | None]  # a text, or both of a pair in one sequence
StateCache = Cache[tuple[Ids, int], States]  # (token row, fork) -> its states
Results = list[dict[str, Output | ItemError]]


class Ask(NamedTuple):
    """A task that is asked of a row, and the speed; tagging at a speed also where the row's words start."""

    task: str
    speed: float
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manner:
    """How a task reads an input; tasks of one manner share its token rows."""

    slots: tuple[str, ...]
    limit: int
    words: bool

    @classmethod
    def of(cls, spec: BranchSpec) -> Manner:
        """That of a branch."""
        return cls(spec.reading.slots, spec.max_tokens, spec.kind is Kind.TAGGING)

    @property
    def places(self) -> list[Place]:
        """Where it reads."""
        return [(slot, self.limit) for slot in self.slots]


@dataclass
class Row:
    """A distinct row of tokens and who needs it."""

    ids: Ids
    tokens: TokenRow
    asked: dict[Ask, list[int]] = field(default_factory=dict)  # by those that read it alone -> jobs
    kept: set[int] = field(default_factory=set)  # forks at which pairs need it
    depth: int = 0


Pairs = dict[tuple[Ids, Ids], dict[str, list[int]]]  # both texts' rows -> task -> jobs


class Asked:
    """The rows of these jobs: `rows` by slot, `pairs` by (fork, limit); `results` has what is known of them so far."""

    def __init__(
        self, jobs: Sequence[Job], specs: Mapping[str, BranchSpec], reader: TextReader, cache: StateCache
    ) -> None:
        started = time.perf_counter()
        self.jobs = jobs
        self.results: Results = [{} for _ in jobs]
        self.rows: dict[str, dict[Ids, Row]] = {}
        self.pairs: dict[tuple[int, int], Pairs] = {}
        self.kept: dict[tuple[str, Ids, int], States] = {}  # (slot, row, fork)
        self.own: dict[tuple[int, str], TokenRow] = {}  # tagging: the job's own tokens, with its own offsets
        self.work = Work()
        self._specs = specs
        self._cache = cache
        self._off = {name: Ask(name, 0.0) for name in specs}
        self._read(reader)
        self.work += Work(tokenise=time.perf_counter() - started)

    def keep(self, slot: str, ids: Ids, fork: int, states: States) -> None:
        """Keep the states of one row for the pairs that it is part of, and for later runs."""
        self.kept[slot, ids, fork] = states
        self._cache.put((ids, fork), states)

    def answer(
        self,
        task: str,
        jobs: Sequence[Sequence[int]],
        logits: Logits,
        depth: int,
        unsure: Sequence[float | None] = (),
        scope: Floats | None = None,
    ) -> None:
        """Note what a task's branch gave after `depth` layers for n rows, each of some jobs: logits (n, C), or of
        subwords (n, T, C), where they were asked at a speed, how unsure it was, and its scope (n,), if it has one.
        """
        tagged = self._specs[task].kind is Kind.TAGGING
        finite = not tagged and bool(np.isfinite(logits).all())  # at once: row by row takes far longer
        for place, asking in enumerate(jobs):
            for i in asking:
                found = self._words(task, i, logits[place]) if tagged else logits[place]
                sound = finite or bool(np.isfinite(found).all())
                uncertainty = unsure[place] if unsure else None
                strange = None if scope is None else float(scope[place])
                sound = sound and (strange is None or math.isfinite(strange))
                self.results[i][task] = Output(found, depth, uncertainty, strange) if sound else NOT_A_NUMBER

    def _words(self, task: str, i: int, logits: Logits) -> Logits:
        """Logits (words, C) of a job from those of its row's subwords, (T, C)."""
        item = self.jobs[i].item
        assert isinstance(item, Input)
        return word_logits(logits, first_subwords(self.own[i, task], item.spans()), self._specs[task].outside)

    def _read(self, reader: TextReader) -> None:
        manners = {name: Manner.of(spec) for name, spec in self._specs.items()}
        readable: list[tuple[int, Input, dict[Manner, list[str]]]] = []  # job, input, its tasks by manner
        wanted: dict[Place, dict[Texts, None]] = {}
        tagged: set[Place] = set()
        for i, job in enumerate(self.jobs):
            alike: dict[Manner, list[str]] = {}
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
        rows = {place: _tokenized(reader, list(texts), place[1], place in tagged) for place, texts in wanted.items()}
        for i, item, alike in readable:
            for manner, names in alike.items():
                self._ask(i, manner, names, [rows[place][texts_of(item, place[0])] for place in manner.places])

    def _ask(
        self, i: int, manner: Manner, names: Sequence[str], rows: Sequence[tuple[Ids, TokenRow] | ItemError]
    ) -> None:
        """Note who reads what: tasks of one manner, for one job."""
        read: list[tuple[Ids, TokenRow]] = []
        for row in rows:
            if isinstance(row, ItemError):
                self.results[i].update(dict.fromkeys(names, row))
                return
            read.append(row)
        if len(read) == 2:
            self._ask_pair(i, manner.limit, names, *read)
            return
        [(ids, tokens)] = read
        found = self.rows.setdefault(manner.slots[0], {}).setdefault(ids, Row(ids, tokens))
        for name in names:
            if manner.words:
                self.own[i, name] = tokens
            ask = self._off[name] if not self.jobs[i].speeds else self._at_speed(name, i, tokens)
            found.asked.setdefault(ask, []).append(i)
            found.depth = max(found.depth, self._specs[name].fork)

    def _at_speed(self, name: str, i: int, tokens: TokenRow) -> Ask:
        spec, job = self._specs[name], self.jobs[i]
        speed = job.speed_of(name)
        if not speed or not spec.exits:
            return self._off[name]
        firsts: list[int | None] = []
        if spec.kind is Kind.TAGGING and isinstance(job.item, Input):
            firsts = first_subwords(tokens, job.item.spans())
        return Ask(name, speed, tuple(first for first in firsts if first is not None))

    def _ask_pair(
        self, i: int, limit: int, names: Sequence[str], first: tuple[Ids, TokenRow], second: tuple[Ids, TokenRow]
    ) -> None:
        for name in names:
            fork = self._specs[name].fork
            waiting = self.pairs.setdefault((fork, limit), {}).setdefault((first[0], second[0]), {})
            waiting.setdefault(name, []).append(i)
            self._need("text", *first, fork)
            self._need("pair", *second, fork)

    def _need(self, slot: str, ids: Ids, tokens: TokenRow, fork: int) -> None:
        """A text of a pair: from the cache, or through the trunk to the fork."""
        if (slot, ids, fork) in self.kept:
            return
        kept = self._cache.get((ids, fork))
        if kept is not None:
            self.kept[slot, ids, fork] = kept
            self.work += Work(hits=1)
            return
        found = self.rows.setdefault(slot, {}).setdefault(ids, Row(ids, tokens))
        if fork not in found.kept:
            self.work += Work(misses=1)
        found.kept.add(fork)
        found.depth = max(found.depth, fork)


def ids_of(row: TokenRow) -> Ids:
    """All that the trunk sees of a row."""
    return tuple(row.ids), tuple(row.types)


def _tokenized(
    reader: TextReader, texts: Sequence[Texts], max_tokens: int, offsets: bool
) -> dict[Texts, tuple[Ids, TokenRow] | ItemError]:
    found = tokenize(reader, texts, max_tokens, offsets=offsets)
    return {
        given: row if isinstance(row, ItemError) else (ids_of(row), row)
        for given, row in zip(texts, found, strict=True)
    }
