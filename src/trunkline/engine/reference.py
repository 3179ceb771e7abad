"""The reference engine: PyTorch in float32, on the CPU or a GPU, the plain way.

Merges are proved on it, and other engines are held against it. It saves nothing, and the shapes of its batches depend
on nothing that a bundle holds besides.

Every batch of inputs is read once per slot: one padded batch of token rows, through the trunk as deep as the deepest
fork that a requested task needs, each layer once. Branches then run one after another on the states at their forks.
It knows modules in memory; nothing of files, bundles or training.

Notation: B rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.base import (
    BATCH_SIZE,
    NOT_A_NUMBER,
    Input,
    ItemError,
    Job,
    Logits,
    Output,
    Work,
    fault,
    known_tasks,
    logits_of,
)
from trunkline.engine.batching import Group, Ids, batches, read_group
from trunkline.model.branch import Branch, BranchSpec, check_trunk, first_subwords, scope_depths, word_logits
from trunkline.model.trunk import Trunk
from trunkline.project.speed import Trail
from trunkline.project.tasks import Kind

Place = tuple[str, int]  # a slot and a limit on its tokens


@dataclass(frozen=True)
class _Read:
    """A group with what the trunk made of it."""

    group: Group
    states: dict[int, Tensor]  # fork -> (B, T, H)
    mask: Tensor  # (B, T)


class ReferenceEngine:
    """Runs a trunk and the branches that read it. Holds no state of its own, so threads may share it.

    Raises BundleError for a branch that was made for another trunk.
    """

    def __init__(self, trunk: Trunk, branches: Mapping[str, Branch], *, device: torch.device | str = "cpu") -> None:
        for branch in branches.values():
            check_trunk(branch.spec, trunk.fingerprint)
        self.device = torch.device(device)
        self.trunk = trunk.to(self.device)
        self.branches = {
            name: branch.to(self.device).eval().requires_grad_(False) for name, branch in sorted(branches.items())
        }

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """The task names that it answers, and what each branch is."""
        return {name: branch.spec for name, branch in self.branches.items()}

    def logits(
        self, inputs: Sequence[Input | ItemError], tasks: Iterable[str], *, batch_size: int = BATCH_SIZE
    ) -> dict[str, list[Logits | ItemError]]:
        """Per task, one result per input in the order given: (C,), or (words, C) for tagging, float32.

        Regression comes in the unit of the task's data. Raises UsageError for an unknown task.
        """
        names = known_tasks(self.specs, tasks)
        found = self._outputs(inputs, names, {}, batch_size)
        return {name: [logits_of(output) for output in outputs] for name, outputs in found.items()}

    def run(
        self, jobs: Sequence[Job], *, batch_size: int | None = None
    ) -> tuple[list[dict[str, Output | ItemError]], Work]:
        """Per job, one result per task asked of it. The plain way: jobs with equal tasks and speeds together, nothing
        timed, and every exit computed for every row: nothing is saved, but this is what others are held against.
        """
        size = BATCH_SIZE if batch_size is None else batch_size
        results: list[dict[str, Output | ItemError]] = [{} for _ in jobs]
        alike: dict[tuple[tuple[str, ...], tuple[tuple[str, float], ...]], list[int]] = {}
        for i, job in enumerate(jobs):
            alike.setdefault((job.tasks, job.speeds), []).append(i)
        for (tasks, speeds), members in alike.items():
            items, names = [jobs[i].item for i in members], known_tasks(self.specs, tasks)
            for name, outputs in self._outputs(items, names, dict(speeds), size).items():
                for i, output in zip(members, outputs, strict=True):
                    results[i][name] = output
        return results, Work(rows=len(jobs))

    def forget(self) -> None:
        """Nothing: no run leaves anything behind."""

    def _outputs(
        self,
        inputs: Sequence[Input | ItemError],
        names: Sequence[str],
        speeds: Mapping[str, float],
        batch_size: int,
    ) -> dict[str, list[Output | ItemError]]:
        results: dict[str, dict[int, Output | ItemError]] = {name: {} for name in names}
        speeds = {name: speed for name, speed in speeds.items() if speed > 0 and self.branches[name].spec.exits}
        with torch.inference_mode():
            for batch in batches(inputs, batch_size):
                places = self._read(inputs, batch, names, speeds)
                for name in names:
                    results[name].update(self._run(self.branches[name], inputs, batch, places, speeds.get(name, 0.0)))
        return {name: [found[i] for i in range(len(inputs))] for name, found in results.items()}

    def _read(
        self,
        inputs: Sequence[Input | ItemError],
        batch: Sequence[int],
        names: Sequence[str],
        early: Collection[str],
    ) -> dict[Place, _Read]:
        """Pass each group that the tasks need through the trunk, equal ones once; tasks in `early` need their exits."""
        forks: dict[Place, set[int]] = {}
        for name in names:
            spec = self.branches[name].spec
            for place in _places(spec):
                forks.setdefault(place, set()).add(spec.fork)
                if name in early:
                    forks[place].update(one.depth for one in spec.exits if one.depth < spec.fork)
        groups = {place: read_group(self.trunk.encoder.reader, inputs, batch, *place) for place in forks}
        # Two limits that cut nothing here make equal batches, which are read once, as deep as either needs.
        passes: dict[tuple[str, tuple[Ids, ...]], set[int]] = {}
        for place, group in groups.items():
            if group.rows:
                passes.setdefault((place[0], group.ids), set()).update(forks[place])
        done: dict[tuple[str, tuple[Ids, ...]], tuple[dict[int, Tensor], Tensor]] = {}
        found: dict[Place, _Read] = {}
        for place, group in groups.items():
            key = (place[0], group.ids)
            if group.rows and key not in done:
                tokens = self.trunk.encoder.collate(group.rows).to(self.device)
                done[key] = self.trunk.states(tokens, passes[key]), tokens.mask
            states, mask = done.get(key, ({}, torch.empty(0)))
            found[place] = _Read(group, states, mask)
        return found

    def _run(
        self,
        branch: Branch,
        inputs: Sequence[Input | ItemError],
        batch: Sequence[int],
        places: Mapping[Place, _Read],
        speed: float,
    ) -> dict[int, Output | ItemError]:
        """One branch over one batch: input -> its output, or why there is none."""
        spec = branch.spec
        reads = [places[place] for place in _places(spec)]
        results: dict[int, Output | ItemError] = {}
        readable = []
        for i in batch:
            reason = fault(inputs[i], spec.reading.slots, words=spec.kind is Kind.TAGGING)
            reason = reason or next((read.group.faults[i] for read in reads if i in read.group.faults), None)
            if reason is None:
                readable.append(i)
            else:
                results[i] = reason
        if not readable:
            return results
        if len(reads) == 1:
            # All rows of the group, also those that only other tasks can use: the shape must not depend on this task.
            [read] = reads
            states, masks = [read.states[spec.fork]], [read.mask]
            rows = [read.group.row_of[i] for i in readable]
        else:
            # Both texts of an input side by side: every input that has both, whichever task asks.
            both = [i for i in batch if all(i in read.group.row_of for read in reads)]
            picks = [torch.tensor([read.group.row_of[i] for i in both], device=self.device) for read in reads]
            states = [read.states[spec.fork].index_select(0, pick) for read, pick in zip(reads, picks, strict=True)]
            masks = [read.mask.index_select(0, pick) for read, pick in zip(reads, picks, strict=True)]
            rows = [both.index(i) for i in readable]
        found = {spec.depth: branch(self.trunk.encoder, states, masks)}  # (B, …)
        if speed:
            found = {**self._exits(branch, reads[0], speed), **found}
        values = {depth: logits.float().cpu().numpy() for depth, logits in found.items()}
        strange: dict[int, NDArray[np.float32]] = {}  # (B,) by depth
        if spec.scope is not None:
            for depth in scope_depths(spec) if speed else [spec.fork]:
                there = states if depth == spec.fork else [reads[0].states[depth]]
                strange[depth] = branch.strangeness(depth, there, masks)[:, 0].cpu().numpy()
        firsts = [_firsts(spec, inputs[i], reads[0].group, i) for i in readable]
        left = _left(spec, values, strange, rows, firsts, speed)
        for i, row, (depth, unsure) in zip(readable, rows, left, strict=True):
            scope = float(strange[min(depth, spec.fork)][row]) if strange else None
            results[i] = _result(spec, values[depth][row], inputs[i], reads[0].group, i, depth, unsure, scope)
        return results

    def _exits(self, branch: Branch, read: _Read, speed: float) -> dict[int, Tensor]:
        """Logits of every exit at which a row of this speed may leave, (B, …), by depth."""
        spec = branch.spec
        asked = sorted(spec.exits_at(speed))
        states = dict(read.states)
        if any(depth > spec.fork for depth in asked):
            own = branch.own_states(self.trunk.encoder, states[spec.fork], read.mask)
            states |= dict(enumerate(own, spec.fork + 1))
        return {depth: branch.at_exit(depth, states[depth], read.mask) for depth in asked}


def _left(
    spec: BranchSpec,
    values: Mapping[int, Logits],
    strange: Mapping[int, NDArray[np.float32]],
    rows: Sequence[int],
    firsts: Sequence[Sequence[int]],
    speed: float,
) -> list[tuple[int, float | None]]:
    """Per row, the depth at which it leaves, which is no exit where it is out of scope, and the uncertainty there."""
    if not speed:
        return [(spec.depth, None)] * len(rows)
    trail = Trail(spec.kind, spec.rule, rows=len(rows), std=spec.std)
    found: dict[int, tuple[int, float]] = {}
    for depth, logits in values.items():
        words = None
        if spec.kind is Kind.TAGGING:
            words = np.zeros((len(rows), logits.shape[1]), dtype=bool)
            for row, first in zip(words, firsts, strict=True):
                row[list(first)] = True
        shown = spec.calibrated(logits[rows], depth)
        stays = strange[min(depth, spec.fork)][rows] > 0 if strange else np.zeros(len(rows), dtype=bool)
        for place, unsure in enumerate(trail.uncertainty(shown, np.arange(len(rows)), words)):
            if place not in found and ((unsure < speed and not stays[place]) or depth == spec.depth):
                found[place] = depth, float(unsure)
    return [found[place] for place in range(len(rows))]


def _places(spec: BranchSpec) -> list[Place]:
    return [(slot, spec.max_tokens) for slot in spec.reading.slots]


def _firsts(spec: BranchSpec, item: Input | ItemError, group: Group, i: int) -> list[int]:
    """Tagging: where the words of an input start."""
    if spec.kind is not Kind.TAGGING or isinstance(item, ItemError):
        return []
    return [first for first in first_subwords(group.tokens[i], item.spans()) if first is not None]


def _result(
    spec: BranchSpec,
    values: Logits,
    item: Input | ItemError,
    group: Group,
    i: int,
    depth: int,
    uncertainty: float | None,
    scope: float | None,
) -> Output | ItemError:
    if spec.kind is Kind.TAGGING and isinstance(item, Input):
        values = word_logits(values, first_subwords(group.tokens[i], item.spans()), spec.outside)  # (words, C)
    if not np.isfinite(values).all() or not np.isfinite(0.0 if scope is None else scope):
        return NOT_A_NUMBER
    return Output(values.copy(), depth, uncertainty, scope)
