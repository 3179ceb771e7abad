"""Probe inputs: what a merged model is proved on, stored in the bundle with the logits of every task.

Three proofs, each for one task: it answers at least one probe; its merged logits are those of the branch alone on the
trunk (promise 1, to `TOLERANCE`); and a branch that was in another bundle gives the same bits as there (promise 2).
This module compares results; it does not load or run models, but for `alone`, which is handed both modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from trunkline.engine.base import Input, ItemError, Logits, fault
from trunkline.errors import BundleError, ProbeError
from trunkline.project.tasks import Kind

if TYPE_CHECKING:
    from trunkline.model.branch import Branch
    from trunkline.model.trunk import Trunk

TOLERANCE = 1e-5
INT8_TOLERANCE = 0.5
"""How far logits in int8 may be from the stored ones, in units of `deviation`: a branch that fits is nearer."""

Result = Logits | ItemError


class ProbeInput(BaseModel):
    """One probe: a text or a pair, and the (start, end) characters of its words where they are not its own split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    text_pair: str | None = None
    words: tuple[tuple[int, int], ...] | None = None


class Probes(BaseModel):
    """The content of probes.json; `logits` holds per task one entry per input, None where the task cannot read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    tolerance: float = TOLERANCE
    inputs: tuple[ProbeInput, ...]
    logits: dict[str, tuple[list[float] | list[list[float]] | None, ...]]

    @classmethod
    def read(cls, path: Path) -> Probes:
        """Raises BundleError where the file is not what `made` gives."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleError(f"{path} cannot be read as probes: {error}") from None

    @classmethod
    def made(cls, inputs: Sequence[Input], logits: Mapping[str, Sequence[Result]]) -> Probes:
        """Probes from inputs and the merged model's logits, kept exactly."""
        return cls(
            inputs=tuple(ProbeInput(text=item.text, text_pair=item.text_pair, words=item.words) for item in inputs),
            logits={
                task: tuple(None if isinstance(found, ItemError) else found.tolist() for found in results)
                for task, results in sorted(logits.items())
            },
        )

    def items(self) -> list[Input]:
        """The inputs as an engine takes them."""
        return [Input(probe.text, probe.text_pair, probe.words) for probe in self.inputs]

    def logits_of(self, task: str) -> list[Result]:
        """The stored logits of a task. Raises BundleError where there are none."""
        if task not in self.logits or len(self.logits[task]) != len(self.inputs):
            raise BundleError(f"the probes hold no logits of task '{task}'")
        return [
            ItemError("not read by this task") if found is None else np.asarray(found, dtype=np.float32)
            for found in self.logits[task]
        ]


def alone(trunk: Trunk, branch: Branch, inputs: Sequence[Input]) -> list[Result]:
    """A task's own stand-alone model, the plain way: each input by itself, unpadded, through trunk and branch."""
    import torch

    from trunkline.engine.batching import read_group
    from trunkline.model.branch import first_subwords, word_logits

    spec = branch.spec
    results: list[Result] = []
    for item in inputs:
        reason = fault(item, spec.reading.slots, words=spec.kind is Kind.TAGGING)
        groups = [read_group(trunk.encoder.reader, [item], [0], slot, spec.max_tokens) for slot in spec.reading.slots]
        reason = reason or next((group.faults[0] for group in groups if group.faults), None)
        if reason is not None:
            results.append(reason)
            continue
        with torch.inference_mode():
            reads = [trunk.encoder.collate(group.rows) for group in groups]
            states = [trunk.states(tokens, [spec.fork])[spec.fork] for tokens in reads]  # (1, T, H) each
            values = branch(trunk.encoder, states, [tokens.mask for tokens in reads])[0].numpy()  # (C,) or (T, C)
        if spec.kind is Kind.TAGGING:
            values = word_logits(values, first_subwords(groups[0].tokens[0], item.spans()), spec.outside)
        results.append(values)
    return results


def deviation(expected: Sequence[Result], found: Sequence[Result]) -> float:
    """The largest difference of two lists of logits, in units of the largest expected logit where that is above 1.

    Infinite where one has logits and the other has none, where shapes differ, or where a number is not finite.
    """
    scale, largest = 1.0, 0.0
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, ItemError) or isinstance(other, ItemError):
            if type(one) is not type(other):
                return math.inf
        elif one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
            return math.inf
        elif one.size:
            scale = max(scale, float(np.abs(one).max()))
            largest = max(largest, float(np.abs(one - other).max()))
    return largest / scale


def prove_equal_to_single(task: str, single: Sequence[Result], merged: Sequence[Result]) -> None:
    """Promise 1 for one task. Raises ProbeError."""
    if all(isinstance(found, ItemError) for found in merged):
        reasons = sorted({found.message for found in merged if isinstance(found, ItemError)}) or ["there are no probes"]
        raise ProbeError(task, f"it answers none of the {len(merged)} probe inputs ({'; '.join(reasons)})")
    difference = deviation(single, merged)
    if not difference <= TOLERANCE:
        raise ProbeError(
            task, f"merged and stand-alone logits differ by {difference:.1e}, more than {TOLERANCE:.0e} (promise 1)"
        )


def prove_untouched(task: str, before: Sequence[Result], after: Sequence[Result]) -> None:
    """Promise 2 for one task whose branch file did not change. Raises ProbeError."""
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        same = type(old) is type(new)
        if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
            same = old.shape == new.shape and old.tobytes() == new.tobytes()
        if not same:
            raise ProbeError(task, f"its branch did not change, yet its logits on probe {position} did (promise 2)")
