"""The reference engine: PyTorch in float32, on the CPU or a GPU.

Every batch of inputs is read once per slot: one padded batch of token rows, through the trunk as deep as the deepest
fork that a requested task needs, each layer once. Branches then run one after another on the states at their forks.
It knows modules in memory; nothing of files, bundles or training.

Notation: B rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trunkline.engine.base import BATCH_SIZE, Input, ItemError, Job, Logits, Work, fault, known_tasks
from trunkline.engine.batching import Group, Ids, batches, read_group
from trunkline.model.branch import Branch, BranchSpec, check_trunk, first_subwords, word_logits
from trunkline.model.trunk import Trunk
from trunkline.project.tasks import Kind

Place = tuple[str, int]  # a slot and a limit on its tokens


@dataclass(frozen=True)
class _Read:
    """A group with what the trunk made of it."""

    group: Group
    states: dict[int, Tensor]  # fork -> (B, T, H)
    mask: Tensor  # (B, T)


class TorchEngine:
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
        results: dict[str, dict[int, Logits | ItemError]] = {name: {} for name in names}
        with torch.inference_mode():
            for batch in batches(inputs, batch_size):
                places = self._read(inputs, batch, names)
                for name in names:
                    results[name].update(self._run(self.branches[name], inputs, batch, places))
        return {name: [found[i] for i in range(len(inputs))] for name, found in results.items()}

    def run(self, jobs: Sequence[Job]) -> tuple[list[dict[str, Logits | ItemError]], Work]:
        """Per job, one result per task asked of it. The plain way: jobs with equal tasks together, nothing timed."""
        results: list[dict[str, Logits | ItemError]] = [{} for _ in jobs]
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, job in enumerate(jobs):
            alike.setdefault(job.tasks, []).append(i)
        for tasks, members in alike.items():
            for name, found in self.logits([jobs[i].item for i in members], tasks).items():
                for i, result in zip(members, found, strict=True):
                    results[i][name] = result
        return results, Work(rows=len(jobs))

    def _read(
        self, inputs: Sequence[Input | ItemError], batch: Sequence[int], names: Sequence[str]
    ) -> dict[Place, _Read]:
        """Pass each group that the tasks need through the trunk, equal ones together."""
        forks: dict[Place, set[int]] = {}
        for name in names:
            spec = self.branches[name].spec
            for place in _places(spec):
                forks.setdefault(place, set()).add(spec.fork)
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
        self, branch: Branch, inputs: Sequence[Input | ItemError], batch: Sequence[int], places: Mapping[Place, _Read]
    ) -> dict[int, Logits | ItemError]:
        """One branch over one batch: input -> its logits, or why there are none."""
        spec = branch.spec
        reads = [places[place] for place in _places(spec)]
        results: dict[int, Logits | ItemError] = {}
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
            logits = branch(self.trunk.encoder, [read.states[spec.fork]], [read.mask])  # (B, …)
            rows = [read.group.row_of[i] for i in readable]
        else:
            # Both texts of an input side by side: every input that has both, whichever task asks.
            both = [i for i in batch if all(i in read.group.row_of for read in reads)]
            picks = [torch.tensor([read.group.row_of[i] for i in both], device=self.device) for read in reads]
            logits = branch(
                self.trunk.encoder,
                [read.states[spec.fork].index_select(0, pick) for read, pick in zip(reads, picks, strict=True)],
                [read.mask.index_select(0, pick) for read, pick in zip(reads, picks, strict=True)],
            )  # (B, …)
            rows = [both.index(i) for i in readable]
        values = logits.float().cpu().numpy()
        for i, row in zip(readable, rows, strict=True):
            results[i] = _result(spec, values[row], inputs[i], reads[0].group, i)
        return results


def _places(spec: BranchSpec) -> list[Place]:
    return [(slot, spec.max_tokens) for slot in spec.reading.slots]


def _result(spec: BranchSpec, values: Logits, item: Input | ItemError, group: Group, i: int) -> Logits | ItemError:
    if spec.kind is Kind.TAGGING and isinstance(item, Input):
        values = word_logits(values, first_subwords(group.tokens[i], item.spans()), spec.outside)  # (words, C)
    if not np.isfinite(values).all():
        return ItemError("the model's output for this input is not a number")
    return values.copy()
