"""Every task as a model of its own, in the shape of Text Embeddings Inference: predict, rerank and info.

Clients of that server work with a task's address as theirs. The shape has no place for the error of one input, so that
one which the task cannot read fails its request; nor for tagging; nor for the speed that was used, which is in a
header. Texts are always cut at the task's length, and scores are probabilities: logits are given only where they follow
exactly, as log-odds of a relevance.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from trunkline.engine.base import Input, ItemError
from trunkline.errors import unknown
from trunkline.project.tasks import Answer, Kind
from trunkline.serving.dials import Keep, Speed
from trunkline.serving.errors import Invalid, NotFound
from trunkline.serving.http import read, reply, shown
from trunkline.serving.openapi import TaskErrorResponse, responses, takes
from trunkline.serving.replies import Reply, TaskInfo

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service

_TEXT = {"type": "string"}
_INPUTS = {
    "anyOf": [
        {**_TEXT, "description": "One text."},
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2, "description": "One text, or one pair."},
        {
            "type": "array",
            "items": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2},
            "minItems": 1,
            "description": "A batch of [text] and [text, text_pair].",
        },
    ]
}

_SPEED = "X-Trunkline-Speed"
_LEAST = 5e-324  # stands for a probability that is too small for a float


def _only_true(value: object) -> object:
    if value is False:
        raise ValueError("texts are always cut at the task's max_input_length; send true, or nothing")
    return value


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Request(_Wire):
    truncate: Annotated[
        Literal[True] | None,
        BeforeValidator(_only_true),
        Field(description="Texts are always cut at the task's `max_input_length`."),
    ] = None
    truncation_direction: Literal["Right", "right"] = "Right"
    raw_scores: bool = False
    speed: Speed = None
    keep: Keep = None


class PredictTask(_Request):
    """Texts or pairs for one task."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": "wake me at seven"}, {"inputs": [["wake me at seven"], ["rain"]]}]}
    )

    inputs: Annotated[Any, WithJsonSchema(_INPUTS)]


class Prediction(_Wire):
    """One label and its score."""

    score: float
    label: str


class RerankTexts(_Request):
    """A query, and texts to be put in the order in which they answer it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "wake me", "texts": ["play a song", "set an alarm"]}]}
    )

    query: str
    texts: Annotated[list[str], FailFast(), Field(min_length=1)]
    return_text: bool = False


class Rank(_Wire):
    """The place of a text in the request, and its score."""

    index: int
    text: str | SkipJsonSchema[None] = None
    score: float


class Labels(_Wire):
    """The labels of a task by number, and their numbers."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class TaskType(_Wire):
    """What sort of model a task is: relevance can rerank, all else classifies."""

    classifier: Labels | SkipJsonSchema[None] = None
    reranker: Labels | SkipJsonSchema[None] = None


class Info(_Wire):
    """A task as a model; `model_sha` is the version of its branch."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: TaskType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str


def router(service: Service) -> APIRouter:
    """The routes for what this service serves."""
    routes = APIRouter(prefix="/tasks/{task}", tags=["Tasks"])
    refusals = (401, 404, 408, 413, 415, 422, 429, 500, 503, 504)

    @routes.post(
        "/predict",
        responses=responses(list[Prediction] | list[list[Prediction]], TaskErrorResponse, *refusals),
        openapi_extra=takes(PredictTask),
    )
    async def predict(request: Request, task: str) -> Response:
        """Labels with their scores, the best first; a list of these for a batch."""
        asked = await read(request, PredictTask)
        about = _task(service, task)
        if about.kind is Kind.TAGGING:
            raise Invalid(f"task '{task}' tags words, which this route has no shape for: ask /v1/predict")
        if asked.raw_scores and about.kind is not Kind.REGRESSION:
            raise Invalid(f"raw_scores: task '{task}' gives probabilities only")
        inputs, batched = _inputs(asked.inputs, about)
        done = await _ask(service, task, inputs, asked)
        found = [_predictions(task, answer) for answer in _answers(done, task, "inputs" if batched else None)]
        return reply(found if batched else found[0], headers=_speed(done, task))

    @routes.post(
        "/rerank", responses=responses(list[Rank], TaskErrorResponse, *refusals), openapi_extra=takes(RerankTexts)
    )
    async def rerank(request: Request, task: str) -> Response:
        """The texts in the order of their relevance to the query; `raw_scores` are log-odds."""
        asked = await read(request, RerankTexts)
        about = _task(service, task)
        if about.kind is not Kind.RELEVANCE:
            others = [name for name, other in service.model.tasks.items() if other.kind is Kind.RELEVANCE]
            raise Invalid(f"task '{task}' does not judge relevance (those that do: {', '.join(others) or 'none'})")
        done = await _ask(service, task, [Input(asked.query, text) for text in asked.texts], asked)
        answers = _answers(done, task, "texts")
        scores = [_log_odds(about, answer) if asked.raw_scores else answer.score or 0.0 for answer in answers]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        texts = asked.texts if asked.return_text else None
        return reply([_rank(index, scores[index], texts) for index in order], headers=_speed(done, task))

    @routes.get("/info", responses=responses(Info, TaskErrorResponse, 401, 404, 500, 503))
    async def info(task: str) -> Response:
        """The task as a model."""
        return reply(_info(service, _task(service, task)))

    return routes


def _task(service: Service, name: str) -> TaskInfo:
    tasks = service.model.tasks
    if name not in tasks:
        raise NotFound(unknown("task", shown(name)[1:-1], tasks))
    return tasks[name]


def _inputs(given: Any, task: TaskInfo) -> tuple[list[Input], bool]:
    """The inputs, and whether they came as a batch."""
    if isinstance(given, str):
        return [Input(given)], False
    if not isinstance(given, list) or not given:
        raise Invalid(f"inputs: give a text, a pair [text, text_pair] or a batch [[text], …]; found {shown(given)}")
    if isinstance(given[0], str):
        if len(given) > 1 and not task.pair:
            raise Invalid(
                f"inputs: a list of strings is one pair, and task '{task.name}' reads single texts; "
                f"write a batch of texts as [[text], [text]]"
            )
        return [_one(given, "inputs")], False
    return [_one(item, f"inputs[{place}]") for place, item in enumerate(given)], True


def _one(item: Any, where: str) -> Input:
    match item:
        case [str(text)]:
            return Input(text)
        case [str(text), str(text_pair)]:
            return Input(text, text_pair)
    raise Invalid(f"{where}: must be [text] or [text, text_pair]; found {shown(item)}")


async def _ask(service: Service, task: str, inputs: list[Input], asked: _Request) -> Reply:
    return await service.predict(inputs, [task], speed=asked.speed, keep=asked.keep)


def _speed(found: Reply, task: str) -> dict[str, str]:
    """The header with the speed that was used, where one was asked for or load raised it."""
    return {_SPEED: f"{found.speeds[task]:g}"} if task in found.speeds else {}


def _answers(found: Reply, task: str, where: str | None) -> list[Answer]:
    answers: list[Answer] = []
    for place, row in enumerate(found.answers):
        answer = row[task]
        if isinstance(answer, ItemError):
            raise Invalid(f"{where}[{place}]: {answer.message}" if where else answer.message)
        answers.append(answer)
    return answers


def _predictions(task: str, answer: Answer) -> list[dict[str, Any]]:
    scores = answer.scores or {task: answer.score or 0.0}
    return [{"score": score, "label": label} for label, score in sorted(scores.items(), key=lambda item: -item[1])]


def _log_odds(task: TaskInfo, answer: Answer) -> float:
    """The relevant label's logit less the other's: probabilities keep no more of the two than that."""
    positive = task.labels[1] if task.positive is None else task.positive
    yes = answer.scores[positive]
    no = math.fsum(score for label, score in answer.scores.items() if label != positive)
    return math.log(max(yes, _LEAST)) - math.log(max(no, _LEAST))


def _rank(index: int, score: float, texts: list[str] | None) -> dict[str, Any]:
    return {"index": index, **({"text": texts[index]} if texts else {}), "score": score}


def _info(service: Service, task: TaskInfo) -> dict[str, Any]:
    model, limits = service.model, service.limits
    names = task.labels or (task.name,)
    labels = {
        "id2label": {str(number): label for number, label in enumerate(names)},
        "label2id": {label: number for number, label in enumerate(names)},
    }
    return {
        "model_id": f"{model.name}/{task.name}",
        "model_sha": task.branch,
        "model_dtype": model.dtype,
        "model_type": {"reranker" if task.kind is Kind.RELEVANCE else "classifier": labels},
        "max_concurrent_requests": limits.queue_rows,
        "max_input_length": task.max_tokens,
        "max_batch_tokens": limits.batch_tokens,
        "max_batch_requests": limits.batch_rows,
        "max_client_batch_size": limits.items,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": version("trunkline"),
    }
