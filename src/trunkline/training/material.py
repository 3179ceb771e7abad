"""A task's rows as a branch reads them: token rows per slot, targets as tensors, trunk states from the cache.

Joins project data, the encoder's tokenizer and the state cache. Knows nothing of losses, schedules or stages.

Notation: B rows, T tokens, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trunkline.errors import Problem, ProjectError
from trunkline.model.branch import BranchSpec, Reading, first_subwords, word_logits
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.model.tokens import TokenBatch, TokenRow, collate
from trunkline.model.trunk import Trunk
from trunkline.project.config import TaskSettings
from trunkline.project.data import Rows, TaskData
from trunkline.project.metrics import evaluate
from trunkline.project.tasks import Kind, encode_targets, output_width
from trunkline.training.loop import BatchRows, by_length
from trunkline.training.losses import IGNORE
from trunkline.training.states import GRANULE, TOKENS_PER_PASS, SlotTexts, StateCache, States

FIT = "fit"
"""The pool of rows that train and valid are indices into."""
UNLABELLED = "unlabelled"
"""The pool of rows without a target, where there are any."""

Logits = np.ndarray | list[np.ndarray]
"""(rows, C), or for tagging one (words, C) per row."""


class Examples:
    """Rows of one split under one reading."""

    def __init__(
        self, kind: Kind, labels: tuple[str, ...], rows: Rows, reading: Reading, encoder: Encoder, max_tokens: int
    ) -> None:
        self.kind = kind
        self.rows = rows
        self.outside = labels.index("O") if kind is Kind.TAGGING else 0
        tokens = {slot: token_rows(slot, rows.texts, rows.pairs, encoder, max_tokens) for slot in reading.slots}
        self.slots = {slot: SlotTexts.of(token_rows) for slot, token_rows in tokens.items()}
        self.lengths = np.sum([[len(row) for row in token_rows] for token_rows in tokens.values()], axis=0)  # (rows,)
        self._labels = labels
        self.firsts = (
            [first_subwords(row, words) for row, words in zip(tokens[reading.slots[0]], rows.words or (), strict=True)]
            if kind is Kind.TAGGING
            else []
        )

    @cached_property
    def targets(self) -> Any:
        """What the rows are trained towards, by row; none of rows without a label may be asked for."""
        return encode_targets(self.kind, self._labels, self.rows)

    def target_batch(self, rows: BatchRows, width: int) -> Tensor:
        """Targets of these rows: (B,), (B, C) for multilabel, or (B, width) with IGNORE where no word starts for
        tagging.
        """
        if self.kind is not Kind.TAGGING:
            return torch.from_numpy(np.asarray(self.targets)[np.asarray(rows)])
        batch = torch.full((len(rows), width), IGNORE, dtype=torch.int64)
        for i, row in enumerate(rows):
            for first, target in zip(self.firsts[row], self.targets[row], strict=True):
                if first is not None:
                    batch[i, first] = int(target)
        return batch

    def counted(self, rows: BatchRows, width: int) -> Tensor:
        """Where a prediction counts: (B,) ones, or for tagging (B, width) with True where a word starts."""
        if self.kind is not Kind.TAGGING:
            return torch.ones(len(rows))
        return word_starts([self.firsts[row] for row in rows], width)

    def token_batches(self, rows: BatchRows, encoder: Encoder) -> list[TokenBatch]:
        """One padded batch per slot."""
        return [
            collate([texts.rows[i] for i in texts.index[np.asarray(rows)]], encoder.reader.pad_id, multiple=GRANULE)
            for texts in self.slots.values()
        ]

    def predict(self, forward: Callable[[BatchRows], Tensor], rows: np.ndarray) -> Logits:
        """Logits of these rows in their order, in batches of similar length, without gradient."""
        [logits] = self.predict_all(lambda batch: [forward(batch)], rows)
        return logits

    def predict_all(self, forward: Callable[[BatchRows], Sequence[Tensor]], rows: np.ndarray) -> list[Logits]:
        """As `predict`, of each of those that `forward` gives logits of."""
        found: dict[int, list[np.ndarray]] = {}
        with torch.no_grad():
            for picks in by_length(self.lengths[rows], TOKENS_PER_PASS):
                batch = rows[picks]
                outputs = [logits.float().cpu().numpy() for logits in forward(batch)]
                for row, *values in zip(batch, *outputs, strict=True):
                    found[int(row)] = [self._words(int(row), each) for each in values]
        ordered = zip(*(found[int(row)] for row in rows), strict=True)
        return [list(each) if self.kind is Kind.TAGGING else np.stack(each) for each in ordered]

    def _words(self, row: int, logits: np.ndarray) -> np.ndarray:
        return word_logits(logits, self.firsts[row], self.outside) if self.firsts else logits

    def read_words(self, rows: np.ndarray) -> list[np.ndarray]:
        """Tagging: which words of each of these rows truncation left, (words,) each."""
        return [np.asarray([first is not None for first in self.firsts[row]], dtype=bool) for row in rows]

    def judged(self, logits: Logits, rows: np.ndarray) -> tuple[Logits, Any]:
        """Logits of these rows and their targets, to judge confidence by: of tagging, of the words that were read."""
        if self.kind is not Kind.TAGGING:
            return logits, np.asarray(self.targets)[rows]
        read = self.read_words(rows)
        return (
            [values[kept] for values, kept in zip(logits, read, strict=True)],
            [self.targets[row][kept] for row, kept in zip(rows, read, strict=True)],
        )


@dataclass
class TaskMaterial:
    """Everything that training a candidate of one task reads. Examples are tokenised once per (split, reading)."""

    name: str
    settings: TaskSettings
    data: TaskData
    trunk: Trunk
    cache: StateCache
    precision: torch.dtype = torch.float32
    say: Callable[[str], None] = lambda _: None
    unlabelled: Rows | None = None
    _examples: dict[tuple[str, Reading], Examples] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return self.settings.kind

    @property
    def metric(self) -> str:
        return self.settings.primary_metric

    def splits(self) -> dict[str, tuple[str, np.ndarray]]:
        """Name -> (pool, row numbers) of the splits that are scored: valid, then the reported ones."""
        reported = {name: (name, np.arange(len(rows))) for name, rows in self.data.reported.items()}
        return {"valid": (FIT, self.data.valid), **reported}

    def rows(self, pool: str) -> Rows:
        """The rows of `pool`: "fit", "dev", "test", or "unlabelled" where the material has some."""
        if pool == UNLABELLED and self.unlabelled is not None:
            return self.unlabelled
        return self.data.fit if pool == FIT else self.data.reported[pool]

    def examples(self, pool: str, reading: Reading) -> Examples:
        """The rows of `pool` as `reading` sees them."""
        key = (pool, reading)
        if key not in self._examples:
            self._examples[key] = Examples(
                self.kind, self.data.labels, self.rows(pool), reading, self.trunk.encoder, self.settings.max_tokens
            )
        return self._examples[key]

    def states(self, pool: str, reading: Reading, fork: int) -> tuple[States, ...]:
        """States of every slot of `reading` at `fork`; all forks of the task's grid are computed together."""
        forks = {fork, *(self.trunk.depth - layers for layers in self.settings.tune.layers)}
        return tuple(found[fork] for found in self.states_at(pool, reading, forks))

    def states_at(
        self, pool: str, reading: Reading, forks: Collection[int], trunk: Trunk | None = None
    ) -> tuple[dict[int, States], ...]:
        """States of every slot of `reading` at each of `forks`, of the task's trunk or of this one: what is missing is
        computed in one pass of it.
        """
        slots, trunk = self.examples(pool, reading).slots.values(), trunk or self.trunk
        return tuple(self.cache.states(trunk, texts, forks, precision=self.precision, say=self.say) for texts in slots)

    def spec(self, reading: Reading, fork: int, layers: int) -> BranchSpec:
        """The spec of a branch of this task."""
        values = (
            np.asarray([self.data.fit.targets[i] for i in self.data.train], dtype=float)
            if self.kind is Kind.REGRESSION
            else None
        )
        pooling = Pooling.TOKENS if self.kind is Kind.TAGGING else Pooling(self.settings.tune.pooling)
        return BranchSpec(
            task=self.name,
            kind=self.kind,
            labels=self.data.labels,
            positive=self.data.positive,
            metric=self.metric,
            fork=fork,
            layers=layers,
            reading=reading,
            pooling=Pooling.PAIR if reading is Reading.SEPARATE else pooling,
            max_tokens=self.settings.max_tokens,
            width=self.trunk.width,
            outputs=output_width(self.kind, self.data.labels),
            mean=0.0 if values is None else float(values.mean()),
            std=1.0 if values is None else float(max(values.std(), 1e-6)),
            trunk=self.trunk.fingerprint,
        )

    def metrics(self, rows: Rows, logits: Logits) -> dict[str, float]:
        """All metrics of the task's kind. Raises ProjectError where these rows do not carry the one asked for."""
        found = evaluate(self.kind, self.data.labels, self.data.positive, rows, logits)
        if self.metric not in found:
            raise ProjectError(
                [
                    Problem(
                        f"tasks/{self.name}.toml",
                        "metric",
                        f"cannot be computed on a split of {len(rows)} rows (no query there has both labels)",
                        found=self.metric,
                        allowed=", ".join(sorted(found)),
                    )
                ]
            )
        return found


def word_starts(firsts: Sequence[Sequence[int | None]], width: int) -> Tensor:
    """(B, width), True where a word starts: `firsts` are the places of each row's words, None of those cut away."""
    batch = torch.zeros((len(firsts), width), dtype=torch.bool)
    for row, places in enumerate(firsts):
        batch[row, [place for place in places if place is not None]] = True
    return batch


def token_rows(
    slot: str, texts: Sequence[str], pairs: Sequence[str] | None, encoder: Encoder, max_tokens: int
) -> list[TokenRow]:
    """What the encoder reads of inputs in one slot of a reading: "text", "pair" or "joint"."""
    if slot == "text":
        return encoder.tokenize(texts, max_tokens=max_tokens)
    if slot == "pair":
        return encoder.tokenize(pairs or [], max_tokens=max_tokens)
    return encoder.tokenize(texts, pairs, max_tokens=max_tokens)
