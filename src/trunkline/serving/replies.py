"""What the service says: the model it serves, replies, and the events that telemetry is made of.

Plain data that both processes know. Milliseconds in replies and events, as the wires show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trunkline.engine.base import ItemError, Work
from trunkline.project.speed import SpeedPoint
from trunkline.project.tasks import Answer, Kind

CANCELLED = 499
"""The status of a request whose client did not wait."""


@dataclass(frozen=True)
class TaskInfo:
    """One task: what it answers, what its branch is, and whether it is loaded.

    `pair` says that it reads `text_pair` too; `branch` is the first 16 hex digits of the branch's hash. `exits` are the
    depths at which a text may leave, and `speeds` what speeds came to when they were measured; none without exits.
    `false_alarms` is the rate at which texts in scope are flagged as out of it; None for a task that flags none.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    positive: str | None
    pair: bool
    max_tokens: int
    fork: int
    layers: int
    branch: str
    loaded: bool = True
    exits: tuple[int, ...] = ()
    speeds: tuple[SpeedPoint, ...] = ()
    false_alarms: float | None = None

    @property
    def depth(self) -> int:
        """Layers from the embeddings to its head, the trunk's and its own."""
        return self.fork + self.layers


@dataclass(frozen=True)
class ModelInfo:
    """A bundle as it is served: `bundle` is its id, `tasks` are sorted by name, `engine` is "torch" or "openvino"."""

    name: str
    bundle: str
    tasks: Mapping[str, TaskInfo]
    family: str
    depth: int
    width: int
    engine: str
    dtype: str
    device: str


@dataclass(frozen=True)
class Timings:
    """Milliseconds of a request: `queue` until the engine began on its first row, `total` until the answer.

    The others are sums over the batches that held its rows; other requests shared them.
    """

    queue: float
    tokenise: float
    trunk: float
    branches: float
    total: float


@dataclass(frozen=True)
class Reply:
    """Answers per input in the order given, task -> answer; `model` answered all of them.

    `layers` is how many trunk layers the deepest of them took. `speeds` are those used: of every task where the request
    asked for any, else of those that load has raised.
    """

    answers: list[dict[str, Answer | ItemError]]
    model: ModelInfo
    timings: Timings
    layers: int
    speeds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """Where the inputs of a request left a task: the speed, and how many answers came after how many layers."""

    speed: float
    layers: Mapping[int, int]


@dataclass(frozen=True)
class Finished:
    """A request was answered or refused: `status` is HTTP's, `tasks` is empty where it made no sense.

    `queue` and `total` in milliseconds; a request that never reached the engine spent all of its time in the queue.
    `exits` are the tasks that were answered at a speed above 0, as `Left` says.
    """

    status: int
    tasks: tuple[str, ...]
    rows: int
    queue: float
    total: float
    layers: int
    exits: Mapping[str, Left] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The worker ran a batch of `rows` from `requests`; `seconds` are the engine's."""

    bundle: str
    rows: int
    requests: int
    seconds: float
    work: Work


@dataclass(frozen=True)
class WorkerStopped:
    """The worker died or was killed, and another is being started; `reason` is for the log."""

    reason: str


@dataclass(frozen=True)
class Swapped:
    """Another model serves from now on: a new bundle, or the same with a task loaded or unloaded."""

    old: ModelInfo
    new: ModelInfo


Event = Finished | Batch | WorkerStopped | Swapped
