"""Scorers of shards: what a teacher says of texts, and what a merged model answers.

A `Work` is what a process needs to make a scorer: small, and the same wherever it is sent. Knows models and answers;
nothing of files. torch is imported when a scorer is loaded.

Notation: C labels of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trunkline.engine.base import NOT_A_NUMBER, Input, ItemError, Job, Logits, answers, fault, speeds_of
from trunkline.pipeline.asking import Model, Question, voice
from trunkline.pipeline.shards import Item, Moved, Scored, Scorer
from trunkline.project.relabel import Relabel
from trunkline.project.tasks import Kind, to_dict

if TYPE_CHECKING:
    import pyarrow

    from trunkline.model.branch import BranchSpec
    from trunkline.project.speed import DialValue

WINDOW = 4096
"""Rows that are tokenised and held at once: a shard is scored in so many at a time, whoever scores it."""
FAULTS = "faults"
"""Counts rows without an answer."""
ASKED, READ = "asked", "read"
"""Count texts that tasks asked the trunk for, and texts that the trunk read: others were known."""


class Work(Protocol):
    """What is to be done to the rows of a job, ready to be sent to another process."""

    @property
    def threads(self) -> int:
        """Threads that each process computes with."""
        ...

    @property
    def device(self) -> str:
        """Where each process computes: a name of torch."""
        ...

    @property
    def fields(self) -> dict[str, Any]:
        """Whatever the answers depend on besides the rows, ready for JSON."""
        ...

    def load(self) -> Scorer:
        """A scorer, in this process."""
        ...


@dataclass(frozen=True)
class TeacherWork:
    """A teacher asked about texts, or pairs: logits by label, or a score of regression, as `file:` teachers have them.

    `content` identifies the teacher.
    """

    model: Model
    content: str
    how: Relabel
    question: Question
    pairs: bool
    threads: int

    @property
    def device(self) -> str:
        """Where the teacher computes."""
        return self.question.device

    @property
    def fields(self) -> dict[str, Any]:
        """Whatever the logits depend on besides the rows."""
        question = self.question
        return {
            "what": "teach",
            "teacher": self.content,
            "relabel": [list(self.how.sources), self.how.positive],
            "kind": question.kind.value,
            "labels": list(question.labels),
            "max_tokens": question.max_tokens,
            "pairs": self.pairs,
            "device": question.device,
            "threads": self.threads,
            "versions": _versions("torch", "transformers", "tokenizers"),
        }

    def load(self) -> Scorer:
        """Load the teacher."""
        asked = voice(self.model, self.how, self.question)
        slots = ["joint"] if self.pairs else ["text"]

        def score(items: Sequence[Item], moved: Moved) -> Scored:
            rows: list[dict[str, Any]] = []
            for start in range(0, len(items), WINDOW):
                window = items[start : start + WINDOW]
                found: list[Logits | ItemError | None] = [fault(item, slots) for item in window]
                readable = [i for i, reason in enumerate(found) if reason is None]
                said = asked.logits([self._input(window[i]) for i in readable], lambda done, of: None)
                for i, logits in zip(readable, said, strict=True):
                    found[i] = logits
                rows += map(self._row, found)
                moved(len(window))
            return Scored(_table(rows, self._schema()), {FAULTS: sum(row["error"] is not None for row in rows)})

        return score

    def _input(self, item: Item) -> Input:
        assert isinstance(item, Input)  # what is none has a fault
        return item if self.pairs else Input(item.text, None, item.words)

    def _row(self, found: Logits | ItemError | None) -> dict[str, Any]:
        assert found is not None
        if not isinstance(found, ItemError) and not np.isfinite(found).all():
            found = NOT_A_NUMBER
        if isinstance(found, ItemError):
            return {self._column: None, "error": found.message}
        values: Any = found.tolist()
        if self.question.kind is Kind.REGRESSION:
            return {self._column: values[0], "error": None}
        if self.question.kind is Kind.TAGGING:
            return {self._column: [self._named(word) for word in values], "error": None}
        return {self._column: self._named(values), "error": None}

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.question.labels, values, strict=True))

    @property
    def _column(self) -> str:
        return "score" if self.question.kind is Kind.REGRESSION else "logits"

    def _schema(self) -> pyarrow.Schema:
        import pyarrow

        kind, said = self.question.kind, pyarrow.float32()
        if kind is not Kind.REGRESSION:
            said = pyarrow.struct([(label, pyarrow.float32()) for label in self.question.labels])
        if kind is Kind.TAGGING:
            said = pyarrow.list_(said)
        return pyarrow.schema([(self._column, said), ("error", pyarrow.string())])


@dataclass(frozen=True)
class PredictWork:
    """Tasks of a bundle asked: for each row a struct of answers, with the fields that `predict` writes as JSON.

    Equal texts of a shard are put side by side, so that those of pairs that are read separately pass the trunk once.
    """

    bundle: Path
    id: str
    tasks: tuple[str, ...]
    engine: str
    dtype: str
    speed: DialValue | None
    keep: DialValue | None
    batch_size: int
    cache_bytes: int
    threads: int
    device: str

    @property
    def fields(self) -> dict[str, Any]:
        """Whatever the answers depend on besides the rows."""
        names = ("tasks", "engine", "dtype", "speed", "keep", "batch_size", "cache_bytes", "threads")
        versions = _versions("torch", "tokenizers", *(["openvino"] if self.engine == "openvino" else []))
        asked = {name: getattr(self, name) for name in names}
        return {"what": "predict", "bundle": self.id, **asked, "versions": versions}

    def load(self) -> Scorer:
        """Load the bundle."""
        from trunkline.bundle import Bundle
        from trunkline.project.speed import dials

        bundle = Bundle.load(
            self.bundle, engine=self.engine, dtype=self.dtype, tasks=self.tasks, cache_bytes=self.cache_bytes
        )
        engine, specs = bundle.engine, bundle.specs
        speeds = speeds_of(specs, dials(self.tasks, self.speed, self.keep))
        places = {(slot, specs[task].max_tokens) for task in self.tasks for slot in specs[task].reading.slots}

        def score(items: Sequence[Item], moved: Moved) -> Scored:
            engine.forget()
            order = sorted(range(len(items)), key=lambda i: _texts(items[i]))
            rows: list[dict[str, Any]] = [{} for _ in items]
            read, faults = 0, 0
            for start in range(0, len(order), WINDOW):
                window = order[start : start + WINDOW]
                jobs = [Job(items[i], self.tasks, speeds) for i in window]
                found, work = engine.run(jobs, batch_size=self.batch_size)
                read += work.rows
                for i, answer in zip(window, answers(engine, jobs, found), strict=True):
                    told = {
                        task: one.to_dict() if isinstance(one, ItemError) else to_dict(one)
                        for task, one in answer.items()
                    }
                    faults += any("error" in one for one in told.values())
                    rows[i] = {"answers": told}
                moved(len(window))
            counts = {FAULTS: faults, ASKED: len(items) * len(places), READ: read}
            return Scored(_table(rows, _answers_schema({task: specs[task] for task in self.tasks})), counts)

        return score


def _texts(item: Item) -> tuple[str, str]:
    """What rows of a shard are put in order by: passages first, which are longer and so dearer than queries."""
    return ("", "") if isinstance(item, ItemError) else (item.text_pair or "", item.text)


def _answers_schema(specs: Mapping[str, BranchSpec]) -> pyarrow.Schema:
    import pyarrow

    return pyarrow.schema(
        [("answers", pyarrow.struct([(task, pyarrow.struct(list(_fields(spec)))) for task, spec in specs.items()]))]
    )


def _fields(spec: BranchSpec) -> Iterator[tuple[str, Any]]:
    """The fields of an answer of a task, as `to_dict` gives them, and why there is none."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    scores = pyarrow.struct([(label, number) for label in spec.labels])
    match spec.kind:
        case Kind.CLASSIFICATION | Kind.RELEVANCE:
            yield from (("label", text), ("score", number), ("scores", scores))
        case Kind.MULTILABEL:
            yield from (("labels", pyarrow.list_(text)), ("scores", scores))
        case Kind.REGRESSION:
            yield "score", number
        case Kind.TAGGING:
            places = [("start", pyarrow.int64()), ("end", pyarrow.int64())]
            span = pyarrow.struct([("label", text), *places, ("text", text), ("score", number)])
            yield from (("spans", pyarrow.list_(span)), ("words", pyarrow.list_(text)), ("tags", pyarrow.list_(text)))
    if spec.exits:
        yield from (("exit_layer", pyarrow.int64()), ("uncertainty", number))
    if spec.scope is not None:
        yield from (("out_of_scope", pyarrow.bool_()), ("scope", number))
    yield "error", text


def _table(rows: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow

    return pyarrow.Table.from_pylist(rows, schema=schema)


def _versions(*packages: str) -> dict[str, str]:
    """Versions that last digits, or bytes of a file, may depend on."""
    return {name: version(name) for name in ("trunkline", "pyarrow", *packages)}
