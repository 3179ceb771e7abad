"""What every engine takes and gives, and how logits become answers.

An engine gets a list of inputs and the names of tasks, and gives one result per input and task: logits, or an
`ItemError` for an input that this task cannot read, which never touches the results of the others. This module knows
no tensors and no encoder; how the logits are computed is the engine's own matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import UsageError, unknown
from trunkline.project.tasks import Answer, Kind, answer, split_words

if TYPE_CHECKING:  # importing these for real costs torch and pydantic
    from trunkline.model.branch import BranchSpec
    from trunkline.project.speed import Dial

BATCH_SIZE = 32

Logits = NDArray[np.float32]  # (C,), or (words, C) for tagging
_KEYS = ("text", "text_pair", "words")


@dataclass(frozen=True)
class Input:
    """A text or a pair; `words` are the (start, end) characters of the words to tag, by default its own split."""

    text: str
    text_pair: str | None = None
    words: tuple[tuple[int, int], ...] | None = None

    def spans(self) -> list[tuple[int, int]]:
        """Characters of the words to tag."""
        return split_words(self.text) if self.words is None else list(self.words)


@dataclass(frozen=True)
class ItemError:
    """Why one input has no answer from one task."""

    message: str

    def to_dict(self) -> dict[str, str]:
        """Ready for JSON."""
        return {"error": self.message}


NOT_A_NUMBER = ItemError("the model's output for this input is not a number")


@dataclass(frozen=True)
class Job:
    """One input and the tasks that are asked of it, those that stand in `speeds` at that speed, all others at 0."""

    item: Input | ItemError
    tasks: tuple[str, ...]
    speeds: tuple[tuple[str, float], ...] = ()

    def speed_of(self, task: str) -> float:
        """The speed at which a task is asked."""
        return next((speed for name, speed in self.speeds if name == task), 0.0)


class Output(NamedTuple):
    """What a task's branch gave for one input, after `depth` layers, the trunk's and its own.

    `uncertainty`, in [0, 1], is that of the exit or head that answered; None at speed 0. `scope`, of a branch that has
    one, says how far the input is beyond what it knows: above 0 it is out of scope (see `model.scope`).
    """

    logits: Logits
    depth: int
    uncertainty: float | None = None
    scope: float | None = None


def logits_of(found: Output | ItemError) -> Logits | ItemError:
    """The logits of a result, where it has any."""
    return found if isinstance(found, ItemError) else found.logits


@dataclass(frozen=True)
class Work:
    """What runs took, as sums, so that runs add up. Times in seconds; `tokens` and `padded` are tokens through the
    trunk without and with padding, `layers` trunk layers summed over rows, `hits` rows whose states were cached.
    """

    tokenise: float = 0.0
    trunk: float = 0.0
    branches: float = 0.0
    rows: int = 0
    tokens: int = 0
    padded: int = 0
    layers: int = 0
    hits: int = 0
    misses: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


class Engine(Protocol):
    """Computes logits of tasks for inputs.

    At a given shape of batch the logits of a task are the same bits whatever other tasks the engine holds or is asked
    for.
    """

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        """The task names that it answers, and what each branch is."""
        ...

    def logits(
        self, inputs: Sequence[Input | ItemError], tasks: Iterable[str], *, batch_size: int = BATCH_SIZE
    ) -> dict[str, list[Logits | ItemError]]:
        """Per task, one result per input in the order given. Raises UsageError for an unknown task."""
        ...

    def run(
        self, jobs: Sequence[Job], *, batch_size: int | None = None
    ) -> tuple[list[dict[str, Output | ItemError]], Work]:
        """Per job, one result per task asked of it; all jobs share what passes of the trunk they can, at most
        `batch_size` rows in one.

        Raises UsageError for an unknown task.
        """
        ...

    def forget(self) -> None:
        """Drop what earlier runs left behind: the same calls after it give the same bits."""
        ...


def as_input(item: object) -> Input | ItemError:
    """Read one input: a text, (text, text_pair), {"text": …, "text_pair": …} or an `Input`."""
    match item:
        case Input() | ItemError():
            return item
        case str():
            return Input(item)
        case Mapping():
            for key in item:
                if key not in _KEYS:
                    return ItemError(unknown("key", str(key), _KEYS))
            if "text" not in item:
                return ItemError("the input has no text")
            return _typed(item["text"], item.get("text_pair"), item.get("words"))
        case (text, text_pair):
            return _typed(text, text_pair, None)
    return ItemError(f"an input is a text, a pair of texts or an object with a text; found {type(item).__name__}")


def _typed(text: Any, text_pair: Any, words: Any) -> Input | ItemError:
    for name, value in (("text", text), ("text_pair", text_pair)):
        if not isinstance(value, str) and not (value is None and name == "text_pair"):
            return ItemError(f"{name} must be a string; found {type(value).__name__}")
    if words is None:
        return Input(text, text_pair)
    try:
        return Input(text, text_pair, tuple((int(start), int(end)) for start, end in words))
    except (TypeError, ValueError, OverflowError):
        return ItemError("words must be a list of [start, end] character positions")


def fault(item: Input | ItemError, slots: Sequence[str], *, words: bool = False) -> ItemError | None:
    """Why a task that reads these slots ("text", "pair", "joint"), and `words` if it tags, cannot read this input."""
    if isinstance(item, ItemError):
        return item
    texts: list[tuple[str, str | None]] = [("text", item.text)]
    if "pair" in slots or "joint" in slots:
        texts.append(("text_pair", item.text_pair))
    for name, text in texts:
        if text is None:
            return ItemError(f"{name} is missing: this task reads pairs")
        if not text.strip():
            return ItemError(f"{name} is empty")
        if not _is_unicode(text):
            return ItemError(f"{name} is not valid Unicode: it holds half of a surrogate pair")
    if words and item.words is not None and not _in_order(item.words, len(item.text)):
        return ItemError(f"words must be non-empty, in order and within the {len(item.text)} characters of the text")
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_order(words: Iterable[tuple[int, int]], length: int) -> bool:
    last = 0
    for start, end in words:
        if not last <= start < end <= length:
            return False
        last = end
    return True


def known_tasks(specs: Mapping[str, object], tasks: Iterable[str] | None) -> list[str]:
    """The tasks asked for, each once, or all of them. Raises UsageError for an unknown one."""
    if isinstance(tasks, str):
        raise UsageError(f"tasks is a list of names; write ['{tasks}']")
    names = list(specs) if tasks is None else list(dict.fromkeys(tasks))
    for name in names:
        if name not in specs:
            raise UsageError(unknown("task", name, specs))
    return names


def predict(
    engine: Engine,
    inputs: Iterable[object],
    tasks: Iterable[str] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    speed: Any = None,
    keep: Any = None,
) -> list[dict[str, Answer | ItemError]]:
    """Answers of the tasks (all by default) for each input in the order given; see `as_input` for what an input is,
    and `project.speed.dials` for `speed` and `keep`.

    Raises UsageError for an unknown task or speed. An input that a task cannot read gets an `ItemError` for that task
    alone.
    """
    from trunkline.project.speed import dials

    if isinstance(inputs, str | Mapping):
        raise UsageError("inputs is a list of texts; write [text] for a single one")
    names = tuple(known_tasks(engine.specs, tasks))
    speeds = speeds_of(engine.specs, dials(names, speed, keep))
    jobs = [Job(as_input(item), names, speeds) for item in inputs]
    return answers(engine, jobs, engine.run(jobs, batch_size=batch_size)[0])


def speeds_of(specs: Mapping[str, BranchSpec], asked: Mapping[str, Dial]) -> tuple[tuple[str, float], ...]:
    """What a `Job` is given for these dials: the tasks at a speed above 0."""
    found = ((task, dial.of(specs[task].speeds)) for task, dial in asked.items())
    return tuple((task, speed) for task, speed in found if speed > 0)


def answers(
    engine: Engine, jobs: Sequence[Job], found: Sequence[Mapping[str, Output | ItemError]]
) -> list[dict[str, Answer | ItemError]]:
    """Answers from the results of `Engine.run` on these jobs."""
    specs = engine.specs
    return [
        {name: _answer(specs[name], job.item, output) for name, output in results.items()}
        for job, results in zip(jobs, found, strict=True)
    ]


def _answer(spec: BranchSpec, item: Input | ItemError, output: Output | ItemError) -> Answer | ItemError:
    if isinstance(item, ItemError):
        return item
    if isinstance(output, ItemError):
        return output
    words = item.spans() if spec.kind is Kind.TAGGING else None
    made = answer(spec.kind, spec.labels, spec.positive, spec.calibrated(output.logits, output.depth), item.text, words)
    if output.scope is not None:
        made = replace(made, out_of_scope=output.scope > 0, scope=output.scope)
    if output.uncertainty is None:
        return made
    return replace(made, exit_layer=output.depth, uncertainty=output.uncertainty)
