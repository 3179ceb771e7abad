"""The native wire: answers of many tasks for many texts in one request, what is served, and health.

An input that cannot be read, or that one task cannot read, fails alone: its place holds `{"error": …}`. The types here
say what goes over the wire; requests are checked by them, responses are built by hand and tested against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, FailFast, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from trunkline.engine.base import ItemError
from trunkline.project.speed import SpeedPoint
from trunkline.project.tasks import Answer, Kind, to_dict
from trunkline.serving.dials import KeepByTask, SpeedByTask
from trunkline.serving.http import read, reply
from trunkline.serving.openapi import ErrorResponse, responses, takes
from trunkline.serving.replies import ModelInfo, Reply, TaskInfo

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service

_INPUT = {
    "title": "Input",
    "anyOf": [
        {"type": "string", "description": "A text."},
        {
            "type": "array",
            "description": "A text and a second one.",
            "items": {"type": "string"},
            "minItems": 2,
            "maxItems": 2,
        },
        {
            "type": "object",
            "description": "A text, with a second one for tasks that read pairs, and the words to tag.",
            "properties": {
                "text": {"type": "string"},
                "text_pair": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "words": {
                    "description": "[start, end] characters of each word of `text`; its own split by default.",
                    "anyOf": [
                        {
                            "type": "array",
                            "items": {
                                "type": "array",
                                "items": {"type": "integer", "minimum": 0},
                                "minItems": 2,
                                "maxItems": 2,
                            },
                        },
                        {"type": "null"},
                    ],
                },
            },
            "required": ["text"],
            "additionalProperties": False,
        },
    ],
}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PredictRequest(_Wire):
    """Texts, and the tasks asked of each."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["wake me at seven"]},
                {"inputs": [{"text": "wake me at seven", "text_pair": "set an alarm"}], "deadline_ms": 250},
                {"inputs": ["wake me at seven"], "keep": 0.98},
            ]
        }
    )

    inputs: Annotated[list[Annotated[Any, WithJsonSchema(_INPUT)]], Field(min_length=1)]
    tasks: Annotated[
        list[str] | None, FailFast(), Field(min_length=1, description="Names of tasks; all that are loaded by default.")
    ] = None
    deadline_ms: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Milliseconds after which an answer is of no use any more."),
    ] = None
    speed: SpeedByTask = None
    keep: KeepByTask = None


class EntitySpan(_Wire):
    """One entity: `text` is characters `start` to `end` of the input."""

    label: str
    start: int
    end: int
    text: str
    score: float


class TaskAnswer(_Wire):
    """What a task says about one input. Classification and relevance give a label, its score and all scores; multilabel
    gives labels and scores, regression a score, tagging spans, words and tags. What a kind does not give is left out.
    Where the text left and how uncertain that was is there for tasks that were run at a speed above 0, and scope for
    tasks that flag texts unlike those they were trained on.
    """

    label: str | SkipJsonSchema[None] = None
    labels: list[str] | SkipJsonSchema[None] = None
    score: float | SkipJsonSchema[None] = None
    scores: dict[str, float] | SkipJsonSchema[None] = None
    spans: list[EntitySpan] | SkipJsonSchema[None] = None
    words: list[str] | SkipJsonSchema[None] = None
    tags: list[str] | SkipJsonSchema[None] = None
    exit_layer: Annotated[
        int | SkipJsonSchema[None], Field(description="Layers that were run, the trunk's and the task's own.")
    ] = None
    uncertainty: Annotated[
        float | SkipJsonSchema[None], Field(description="Of the exit or head that answered, from 0 to 1.")
    ] = None
    out_of_scope: Annotated[
        bool | SkipJsonSchema[None], Field(description="Whether the text is unlike those the task was trained on.")
    ] = None
    scope: Annotated[
        float | SkipJsonSchema[None],
        Field(
            description="How far the text is beyond the limit of what is in scope, in standard deviations; below it "
            "where negative."
        ),
    ] = None
    branch: Annotated[str, Field(description="The version of the branch that answered.")]


class NoAnswer(_Wire):
    """Why this task has no answer for this input."""

    error: str


class StageTimes(_Wire):
    """Milliseconds: waiting for a batch, each stage of it, and all from request to answer."""

    queue: float
    tokenise: float
    trunk: float
    branches: float
    total: float


class PredictResponse(_Wire):
    """Answers by task for each input, in the order given, all by one bundle."""

    results: list[dict[str, TaskAnswer | NoAnswer]]
    model: str
    bundle: Annotated[str, Field(description="The id of the bundle that answered.")]
    layers: Annotated[int, Field(description="Trunk layers that were run.")]
    speeds: Annotated[
        dict[str, float],
        Field(
            description="The speed that each task was run at, where a speed or keep was asked for. Else that of the "
            "tasks whose speed the server raised, as it does under load where it was given a floor."
        ),
    ]
    timings: StageTimes


class ServedTask(_Wire):
    """One task that is served: it reads the trunk at `fork` and has `layers` of its own, `depth` in all."""

    name: str
    kind: Kind
    labels: list[str]
    positive: str | None
    pair: Annotated[bool, Field(description="Whether it needs a text_pair.")]
    max_tokens: int
    fork: int
    layers: int
    depth: int
    branch: Annotated[str, Field(description="Its version: it changes when the task's branch does, and only then.")]
    loaded: bool
    exits: Annotated[list[int], Field(description="Layers after which a text may leave, where a speed is asked for.")]
    speeds: Annotated[list[SpeedPoint], Field(description="What speeds came to on `valid`; none without exits.")]
    false_alarms: Annotated[
        float | None,
        Field(description="Share of texts in scope that are flagged as out of it; null for a task that flags none."),
    ]


class ServedTasks(_Wire):
    """The tasks that are served."""

    tasks: list[ServedTask]


class ServedModel(_Wire):
    """What is served, and by what: a trunk of `depth` layers of `width`."""

    name: str
    bundle: str
    family: str
    depth: int
    width: int
    engine: str
    dtype: str
    device: str
    tasks: list[ServedTask]


class Live(_Wire):
    """Whether the server runs."""

    live: bool


class Ready(_Wire):
    """Whether the server answers: a forward pass succeeded recently."""

    ready: bool


def router(service: Service) -> APIRouter:
    """The routes for what this service serves."""
    routes = APIRouter(tags=["Native"])

    @routes.post(
        "/v1/predict",
        responses=responses(PredictResponse, ErrorResponse, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=takes(PredictRequest),
    )
    async def predict(request: Request) -> Response:
        """Answer tasks for texts and pairs of texts, in one pass through the trunk."""
        asked = await read(request, PredictRequest)
        found = await service.predict(
            asked.inputs, asked.tasks, deadline_ms=asked.deadline_ms, speed=asked.speed, keep=asked.keep
        )
        return reply(_results(found))

    @routes.get("/v1/tasks", responses=responses(ServedTasks, ErrorResponse, 401, 500, 503))
    async def tasks() -> Response:
        """The tasks that are served."""
        return reply({"tasks": _tasks(service.model)})

    @routes.get("/v1/model", responses=responses(ServedModel, ErrorResponse, 401, 500, 503))
    async def model() -> Response:
        """The bundle that is served, its trunk and its tasks."""
        return reply(described(service.model))

    @routes.get("/health/live", responses=responses(Live, Live, 503))
    async def live() -> Response:
        """Whether the server runs. Never needs a key."""
        return reply({"live": service.live}, 200 if service.live else 503)

    @routes.get("/health/ready", responses=responses(Ready, Ready, 503))
    async def ready() -> Response:
        """Whether the server answers now: a forward pass succeeded recently. Never needs a key."""
        return reply({"ready": service.ready}, 200 if service.ready else 503)

    return routes


def described(model: ModelInfo) -> dict[str, Any]:
    """A model ready for JSON, as `ServedModel` has it."""
    return {**vars(model), "tasks": _tasks(model)}


def _tasks(model: ModelInfo) -> list[dict[str, Any]]:
    return [_task(task) for task in model.tasks.values()]


def _task(task: TaskInfo) -> dict[str, Any]:
    return {**vars(task), "depth": task.depth, "speeds": [point.model_dump() for point in task.speeds]}


def _results(found: Reply) -> dict[str, Any]:
    branches = {name: task.branch for name, task in found.model.tasks.items()}
    return {
        "results": [{name: _result(answer, branches[name]) for name, answer in row.items()} for row in found.answers],
        "model": found.model.name,
        "bundle": found.model.bundle,
        "layers": found.layers,
        "speeds": found.speeds,
        "timings": {stage: round(value, 3) for stage, value in asdict(found.timings).items()},
    }


def _result(answer: Answer | ItemError, branch: str) -> Mapping[str, Any]:
    return answer.to_dict() if isinstance(answer, ItemError) else {**to_dict(answer), "branch": branch}
