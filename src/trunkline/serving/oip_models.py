"""The models of the Open Inference Protocol: what a bundle and its tasks are called, take and give.

The bundle is a model under its own name, and every task is one more; where a task has the bundle's name, that name
means the bundle. A model's version is what names its content: the bundle's id, or the hash of the task's branch. The
outputs of a task are called the same in both:

    {task}         BYTES [N]     classification, relevance: the label
                   BYTES [N]     multilabel: the labels that apply, a JSON array
                   FP32 [N]      regression: the number, in the unit of the training scores
                   BYTES [N]     tagging: a JSON array of spans, each with label, start, end, text and score; start and
                                 end count characters
    {task}.scores  FP32 [N, C]   classification, relevance, multilabel: probabilities; the metadata has the labels
    {task}.error   BYTES [N]     why the task cannot read a row, "" where it can

A request that names no output gets all but the errors of every loaded task that reads the inputs given. The protocol
has no error for a single row: a row that a task cannot read fails the request, unless the task's error is among the
outputs; then the row has "" or NaN in the others. Knows neither HTTP nor how tensors travel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from trunkline.engine.base import ItemError
from trunkline.errors import unknown
from trunkline.project.tasks import Answer, Kind
from trunkline.serving.errors import Invalid, NotFound, Unavailable
from trunkline.serving.oip_request import Wanted
from trunkline.serving.oip_tensors import Tensor
from trunkline.serving.replies import ModelInfo, TaskInfo

Result = Answer | ItemError


class Part(StrEnum):
    """What an output says about a row."""

    ANSWER = ""
    SCORES = ".scores"
    ERROR = ".error"


_SCORED = (Kind.CLASSIFICATION, Kind.RELEVANCE, Kind.MULTILABEL)


@dataclass(frozen=True)
class Output:
    """One part of a task's answers, as a tensor."""

    task: TaskInfo
    part: Part

    @property
    def name(self) -> str:
        """As the protocol names it."""
        return f"{self.task.name}{self.part}"

    def described(self) -> dict[str, Any]:
        """For the metadata; a dimension of -1 is free."""
        numbers = self.part is Part.SCORES or (self.part is Part.ANSWER and self.task.kind is Kind.REGRESSION)
        parameters: dict[str, Any] = {"task": self.task.name, "kind": str(self.task.kind)}
        if self.task.labels:
            parameters["labels"] = list(self.task.labels)
        if self.task.positive is not None:
            parameters["positive"] = self.task.positive
        return {
            "name": self.name,
            "datatype": "FP32" if numbers else "BYTES",
            "shape": [-1, len(self.task.labels)] if self.part is Part.SCORES else [-1],
            "parameters": parameters,
        }

    def tensor(self, rows: Sequence[Result], classes: int = 0) -> Tensor:
        """The tensor over N rows; of the best `classes` labels as "score:index:label", where that is not 0."""
        if self.part is Part.ERROR:
            return self._texts([row.message if isinstance(row, ItemError) else "" for row in rows])
        if self.part is Part.SCORES:
            return self._best(rows, classes) if classes else self._scores(rows)
        if self.task.kind is Kind.REGRESSION:
            return self._numbers([np.nan if isinstance(row, ItemError) else row.score for row in rows], (len(rows),))
        return self._texts([_worded(row) for row in rows])

    def _scores(self, rows: Sequence[Result]) -> Tensor:
        labels = self.task.labels
        values = [np.nan if isinstance(row, ItemError) else row.scores[label] for row in rows for label in labels]
        return self._numbers(values, (len(rows), len(labels)))

    def _best(self, rows: Sequence[Result], classes: int) -> Tensor:
        labels = self.task.labels
        places = {label: place for place, label in enumerate(labels)}
        kept = min(classes, len(labels))
        texts: list[str] = []
        for row in rows:
            if isinstance(row, ItemError):
                texts += [""] * kept
                continue
            best = sorted(labels, key=row.scores.__getitem__, reverse=True)[:kept]
            texts += [f"{row.scores[label]:f}:{places[label]}:{label}" for label in best]
        return Tensor(self.name, (len(rows), kept), texts)

    def _texts(self, values: list[str]) -> Tensor:
        return Tensor(self.name, (len(values),), values)

    def _numbers(self, values: Sequence[float | None], shape: tuple[int, ...]) -> Tensor:
        return Tensor(self.name, shape, np.asarray(values, dtype=np.float32).reshape(shape))


def _worded(row: Result) -> str:
    if isinstance(row, ItemError):
        return ""
    if row.label is not None:
        return row.label
    value = row.labels if row.labels is not None else [asdict(span) for span in row.spans or ()]
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Model:
    """A bundle or one of its tasks, by the name and version that a client asks for; `task` is None for the bundle."""

    name: str
    task: str | None
    version: str
    platform: str
    tasks: Mapping[str, TaskInfo]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs."""
        return ("text", "text_pair") if any(task.pair for task in self.tasks.values()) else ("text",)

    @property
    def loaded(self) -> bool:
        """Whether any of it can answer."""
        return any(task.loaded for task in self.tasks.values())

    def outputs(self) -> dict[str, Output]:
        """Everything it gives, by name."""
        found = [Output(task, part) for task in self.tasks.values() for part in _parts(task.kind)]
        return {output.name: output for output in found}

    def metadata(self) -> dict[str, Any]:
        """As the protocol describes a model."""
        optional = not all(task.pair for task in self.tasks.values())
        inputs: list[dict[str, Any]] = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in self.inputs]
        for pair in inputs[1:]:
            pair["parameters"] = {"optional": optional}
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": self.platform,
            "inputs": inputs,
            "outputs": [output.described() for output in self.outputs().values()],
        }

    def config(self) -> dict[str, Any]:
        """As Triton's model configuration has it: the metadata in other words.

        `max_batch_size` is 0, as there the dimension of a batch would stand outside of `dims`; here N is the first.
        """
        about = self.metadata()
        inputs = [
            {**_configured(tensor), "optional": tensor.get("parameters", {}).get("optional", False)}
            for tensor in about["inputs"]
        ]
        return {
            "name": self.name,
            "platform": self.platform,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": inputs,
            "output": [_configured(tensor) for tensor in about["outputs"]],
        }

    def output(self, name: str) -> Output:
        """The output of this name. Raises Invalid, naming those that there are."""
        for part in Part:
            task = self.tasks.get(name.removesuffix(part))
            if task is not None and name == f"{task.name}{part}" and part in _parts(task.kind):
                return Output(task, part)
        raise Invalid(unknown("output", name, self.outputs()))

    def choose(self, wanted: Sequence[Wanted], binary: bool, *, paired: bool) -> list[tuple[Output, Wanted]]:
        """The outputs asked for; where none are named, those of all loaded tasks that can read the inputs given.

        `paired` is whether `text_pair` is among these. Raises Invalid for an output that does not exist or cannot be.
        """
        if wanted:
            chosen = [(self.output(want.name), want) for want in wanted]
        else:
            loaded = [task for task in self.tasks.values() if task.loaded]
            if not loaded:
                raise Unavailable(f"model '{self.name}' is not loaded")
            readable = [task for task in loaded if paired or not task.pair] or loaded
            outputs = [Output(task, part) for task in readable for part in _parts(task.kind) if part is not Part.ERROR]
            chosen = [(output, Wanted(output.name, binary)) for output in outputs]
        pairs = sorted({output.task.name for output, _ in chosen if output.task.pair})
        if pairs and not paired:
            raise Invalid(f"input 'text_pair' is missing: it is read by {', '.join(pairs)}")
        for output, want in chosen:
            if want.classes and output.part is not Part.SCORES:
                raise Invalid(f"output '{want.name}': classification is for outputs of scores, named '{{task}}.scores'")
        return chosen


def _configured(tensor: Mapping[str, Any]) -> dict[str, Any]:
    data_type = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}[tensor["datatype"]]
    return {"name": tensor["name"], "data_type": data_type, "dims": tensor["shape"]}


def _parts(kind: Kind) -> tuple[Part, ...]:
    return (Part.ANSWER, Part.SCORES, Part.ERROR) if kind in _SCORED else (Part.ANSWER, Part.ERROR)


def find_model(info: ModelInfo, name: str, version: str | None = None) -> Model:
    """The model of this name, and version if one is given. Raises NotFound, naming those that there are."""
    platform = f"trunkline_{info.engine}"
    if name == info.name:
        model = Model(name, None, info.bundle, platform, info.tasks)
    elif name in info.tasks:
        model = Model(name, name, info.tasks[name].branch, platform, {name: info.tasks[name]})
    else:
        raise NotFound(unknown("model", name, {info.name, *info.tasks}))
    if version is not None and version != model.version:
        raise NotFound(f"model '{name}': " + unknown("version", version, [model.version]))
    return model


def all_models(info: ModelInfo) -> list[Model]:
    """The bundle and its tasks."""
    return [find_model(info, name) for name in dict.fromkeys((info.name, *info.tasks))]


def check_rows(chosen: Iterable[Output], answers: Sequence[Mapping[str, Result]]) -> None:
    """Raise Invalid for the first row that a task cannot read and whose error was not asked for."""
    outputs = list(chosen)
    told = {output.task.name for output in outputs if output.part is Part.ERROR}
    strict = list(dict.fromkeys(output.task.name for output in outputs if output.task.name not in told))
    for row, answer in enumerate(answers):
        for task in strict:
            result = answer[task]
            if isinstance(result, ItemError):
                raise Invalid(
                    f"row {row}: task '{task}' cannot read it: {result.message} "
                    f"(ask for the output '{task}{Part.ERROR}' too, and the other rows are answered)"
                )
