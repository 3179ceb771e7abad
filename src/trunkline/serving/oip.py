"""The Open Inference Protocol, version 2, over REST: routes under `/v2`.

Public clients of the protocol work unchanged, with tensors in JSON or as bytes, packed or not. Beside the protocol
itself: the extensions `binary_tensor_data`, `classification`, `model_configuration`, `model_repository` (load and
unload are tasks'; loading the bundle takes over the live release) and `statistics`. `oip_models` says which models
there are and what they give, `oip_request` how a request is read. A request's `timeout` (microseconds) is its deadline;
its `speed` and `keep` are for all tasks, and those of an output for its task; outputs say which speed was used. Other
parameters, which speak of order and sequences, are ignored, as no request has to do with another. An error is
`{"error": "…"}`; what is wrong in a request is a 400. Errors are never packed: clients of this protocol read them as
they come.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from trunkline.engine.base import Input
from trunkline.serving import oip_schema as schema
from trunkline.serving.errors import Invalid
from trunkline.serving.http import dump, reply
from trunkline.serving.oip_models import Model, Output, all_models, check_rows, find_model
from trunkline.serving.oip_request import HEADER, InferRequest, Wanted, check_control, read_index, read_request
from trunkline.serving.oip_statistics import Statistics
from trunkline.serving.replies import Reply

if TYPE_CHECKING:  # importing it for real starts the machinery of workers
    from trunkline.serving.service import Service

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")

_NOT_READY = "no forward pass succeeded recently, or no worker is alive"
_PACKED_FROM = 1024  # bytes; a smaller response gains nothing from being packed
_WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's word for the format


def router(service: Service) -> APIRouter:
    """The routes for what this service serves."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    statistics = Statistics()
    service.subscribe(statistics.observe)

    def model_of(request: Request) -> Model:
        return find_model(service.model, request.path_params["name"], request.path_params.get("version"))

    @routes.get("", responses=schema.answers(schema.SERVER, 401))
    async def server() -> Response:
        """Name, version and extensions of the server."""
        return reply({"name": "trunkline", "version": version("trunkline"), "extensions": EXTENSIONS})

    @routes.get("/health/live", responses=schema.answers(schema.LIVE, 503))
    async def live() -> Response:
        """Whether the server runs."""
        return _health("live", service.live, "the server is not alive")

    @routes.get("/health/ready", responses=schema.answers(schema.READY, 503))
    async def ready() -> Response:
        """Whether requests are answered: a forward pass succeeded recently."""
        return _health("ready", service.ready, _NOT_READY)

    @routes.get("/models/stats", responses=schema.answers(schema.STATISTICS, 401, 503))
    async def all_statistics() -> Response:
        """Counts and times of every model since it is served."""
        return reply(statistics.of(all_models(service.model)))

    async def metadata(request: Request) -> Response:
        """Inputs, outputs and version of a model: the bundle, or a task."""
        return reply(model_of(request).metadata())

    async def config(request: Request) -> Response:
        """Inputs and outputs of a model in the words of Triton's model configuration."""
        return reply(model_of(request).config())

    async def model_ready(request: Request) -> Response:
        """Whether a model answers requests."""
        model = model_of(request)
        reason = _NOT_READY if model.loaded else f"model '{model.name}' is not loaded"
        return _health("ready", service.ready and model.loaded, reason, name=model.name)

    async def model_statistics(request: Request) -> Response:
        """Counts and times of one model since it is served."""
        return reply(statistics.of([model_of(request)]))

    async def infer(request: Request) -> Response:
        """Answers for N texts or pairs; the outputs asked for decide which tasks run."""
        return await _infer(service, request, request.path_params["name"], request.path_params.get("version"))

    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        about = {"parameters": schema.path_parameters(path)}
        for suffix, endpoint, given in (
            ("", metadata, schema.MODEL),
            ("/config", config, schema.CONFIG),
            ("/ready", model_ready, schema.MODEL_READY),
            ("/stats", model_statistics, schema.STATISTICS),
        ):
            responses = schema.answers(given, 401, 404, 503)
            routes.add_api_route(f"{path}{suffix}", endpoint, responses=responses, openapi_extra=about)
        about = schema.infer(path)
        routes.add_api_route(
            f"{path}/infer", infer, methods=["POST"], responses=schema.INFER_ANSWERS, openapi_extra=about
        )

    @routes.post(
        "/repository/index",
        responses=schema.answers(schema.INDEX, 400, 401, 503),
        openapi_extra=schema.body(schema.INDEX_REQUEST),
    )
    async def index(request: Request) -> Response:
        """Every model, its version and whether it is loaded."""
        only_ready = read_index(await request.body())
        models = [model for model in all_models(service.model) if model.loaded or not only_ready]
        return reply([_index_entry(model) for model in models])

    async def load(request: Request) -> Response:
        """Load a task again, or take over the live release of the project whose bundle this is."""
        check_control(await request.body())
        task = model_of(request).task
        if task is None:
            await service.swap()
        else:
            await service.load(task)
        return reply({})

    async def unload(request: Request) -> Response:
        """Unload a task: it is refused until it is loaded again."""
        check_control(await request.body())
        model = model_of(request)
        if model.task is None:
            raise Invalid(f"'{model.name}' is the bundle, which cannot be unloaded; its tasks can")
        await service.unload(model.task)
        return reply({})

    for path, endpoint in (("/repository/models/{name}/load", load), ("/repository/models/{name}/unload", unload)):
        about = schema.body(schema.CONTROL_REQUEST) | {"parameters": schema.path_parameters(path)}
        responses = schema.answers(schema.NOTHING, 400, 401, 404, 503)
        routes.add_api_route(path, endpoint, methods=["POST"], responses=responses, openapi_extra=about)

    return routes


async def _infer(service: Service, request: Request, name: str, version: str | None) -> Response:
    model = find_model(service.model, name, version)
    body = await request.body()
    asked = read_request(body, request.headers.get(HEADER), model.inputs, items=service.limits.items)
    chosen = model.choose(asked.outputs, asked.binary, paired="text_pair" in asked.inputs)
    tasks = list(dict.fromkeys(output.task.name for output, _ in chosen))
    speeds, keeps = _dials(asked, chosen)
    found = await service.predict(
        _rows(asked.inputs), tasks, deadline_ms=asked.deadline_ms, speed=speeds or None, keep=keeps or None
    )
    # The bundle may have been swapped since: what its outputs are is for the one that answered to say.
    model = find_model(found.model, name, version)
    chosen = [(model.output(want.name), want) for _, want in chosen]
    check_rows([output for output, _ in chosen], found.answers)
    response = _response(model, asked, chosen, found)
    return _packed(response, request.headers.get("accept-encoding", ""))


def _rows(inputs: Mapping[str, list[str]]) -> list[Input]:
    texts = inputs["text"]
    if "text_pair" not in inputs:
        return [Input(text) for text in texts]
    return [Input(text, pair) for text, pair in zip(texts, inputs["text_pair"], strict=True)]


def _dials(asked: InferRequest, chosen: Sequence[tuple[Output, Wanted]]) -> tuple[dict[str, float], dict[str, float]]:
    """Speeds and keeps by task. Raises Invalid where outputs of one task ask for different ones."""
    own: dict[str, tuple[float | None, float | None]] = {}
    for output, want in chosen:
        if want.speed is None and want.keep is None:
            continue
        if own.setdefault(output.task.name, (want.speed, want.keep)) != (want.speed, want.keep):
            raise Invalid(f"the outputs of task '{output.task.name}' ask for different speeds: it is run once for all")
    found = {output.task.name: own.get(output.task.name, (asked.speed, asked.keep)) for output, _ in chosen}
    speeds = {task: speed for task, (speed, _) in found.items() if speed is not None}
    return speeds, {task: keep for task, (_, keep) in found.items() if keep is not None}


def _response(model: Model, asked: InferRequest, chosen: Sequence[tuple[Output, Wanted]], found: Reply) -> Response:
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output, want in chosen:
        tensor = output.tensor([answer[output.task.name] for answer in found.answers], want.classes)
        described = tensor.described()
        parameters: dict[str, Any] = {}
        if output.task.name in found.speeds:
            parameters["speed"] = found.speeds[output.task.name]
        if want.binary:
            tail.append(tensor.to_binary())
            parameters["binary_data_size"] = len(tail[-1])
        else:
            described["data"] = tensor.to_json()
        outputs.append({**described, "parameters": parameters} if parameters else described)
    echoed = {} if asked.id is None else {"id": asked.id}
    head = dump({"model_name": model.name, "model_version": model.version, **echoed, "outputs": outputs})
    if not tail:
        return Response(head, media_type="application/json")
    headers = {HEADER: str(len(head))}
    return Response(b"".join([head, *tail]), headers=headers, media_type="application/octet-stream")


def _packed(response: Response, accepted: str) -> Response:
    """The response packed as the client accepts it, where that pays."""
    response.headers["Vary"] = "Accept-Encoding"
    accepts = _encodings(accepted)
    for encoding, window in _WINDOWS.items():
        if encoding in accepts and len(response.body) >= _PACKED_FROM:
            packer = zlib.compressobj(zlib.Z_BEST_SPEED, wbits=window)
            response.body = packer.compress(response.body) + packer.flush()
            response.headers["Content-Encoding"] = encoding
            response.headers["Content-Length"] = str(len(response.body))
            break
    return response


def _encodings(accepted: str) -> set[str]:
    """The names in an Accept-Encoding header that are not ruled out by a weight of 0."""
    offers = [offer.replace(" ", "").partition(";q=") for offer in accepted.lower().split(",")]
    return {name for name, _, weight in offers if not weight or weight.strip("0.")}


def _index_entry(model: Model) -> dict[str, Any]:
    state, reason = ("READY", "") if model.loaded else ("UNAVAILABLE", "unloaded")
    return {"name": model.name, "version": model.version, "state": state, "reason": reason}


def _health(what: str, well: bool, reason: str, **more: str) -> Response:
    return reply({**more, what: True}) if well else reply({**more, what: False, "error": reason}, 503)
