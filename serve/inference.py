"""The Open Inference Protocol V2: the same scans and masks, asked as inference servers are.

A scan is one tensor of bytes: `scan` holds the file, in JSON as base64 or raw behind the JSON (the
protocol's binary extension), `uri` names it. Answers are tensors of bytes too: `mask`, a NIfTI, and
`report`, JSON. Voxels never travel as numbers. What is not the protocol's is left to `orders`.
"""

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from serve.answers import Kind
from serve.logs import notes_of
from serve.orders import Desk, Done, Order, check_version
from serve.problems import GUARDED, ProblemError, documented
from serve.tensors import LENGTH, SIZE, InferRequest, Parameters, taken_in
from tutelage import __version__

_KINDS: Final[Mapping[Literal["mask", "report"], Kind]] = {"mask": "nifti", "report": "json"}

_NAMED = (*GUARDED, "unknown-model")


class OutputTensor(BaseModel):
    """A tensor of the answer."""

    name: Literal["mask", "report"]
    datatype: Literal["BYTES"]
    shape: list[int]
    parameters: Parameters | None = None
    data: list[str] | None = None


class InferResponse(BaseModel):
    """An answer."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class Server(BaseModel):
    """Who serves."""

    name: str
    version: str
    extensions: list[str]


class Alive(BaseModel):
    """Whether the process answers."""

    live: bool


class Ready(BaseModel):
    """Whether scans can be sent."""

    ready: bool


class Tensor(BaseModel):
    """A tensor that a model takes or gives."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ModelReady(BaseModel):
    """Whether a model can be asked."""

    name: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Served:
    """A model that an address names."""

    name: str
    version: str | None
    """Which is served; None where none was accepted yet."""

    asked: str
    """Which version the address names; empty for whichever is served."""


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": LENGTH,
            "in": "header",
            "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
            "description": "Bytes of JSON at the start of the body; raw bytes follow.",
        }
    ],
}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    **documented(
        *_NAMED,
        *("malformed", "unreadable-scan", "too-large", "unknown-format", "invalid-parameters", "busy"),
        *("full", "forbidden-address", "unknown-file", "timed-out"),
    ),
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
}


def open_router(desk: Desk) -> APIRouter:
    """Return the addresses that need no token: they tell whether it lives."""
    router = APIRouter(prefix="/v2/health", tags=["open inference protocol"])

    @router.get("/live", response_model=Alive, responses=documented())
    async def live() -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    @router.get("/ready", response_model=Ready, responses=documented("not-ready"))
    async def ready() -> Response:
        """Say whether scans can be sent."""
        _check_ready(desk)
        return JSONResponse({"ready": True})

    return router


def router(desk: Desk) -> APIRouter:
    """Return the other addresses of the protocol."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    # Of memory alone, and so of no thread that many wait for.
    async def current(model: str) -> Served:
        return _served(desk, model, "")

    async def exact(model: str, version: str) -> Served:
        return _served(desk, model, version)

    @router.get("", response_model=Server, responses=documented(*GUARDED))
    async def server() -> Response:
        """Say who serves."""
        told = {"name": "tutelage", "version": __version__, "extensions": ["binary_tensor_data"]}
        return JSONResponse(told)

    _of_model(router, desk, "/models/{model}", current)
    _of_model(router, desk, "/models/{model}/versions/{version}", exact)
    return router


def _of_model(router: APIRouter, desk: Desk, path: str, chosen: Callable[..., Awaitable["Served"]]) -> None:
    @router.get(path, response_model=ModelMetadata, responses=documented(*_NAMED, "not-ready"))
    async def metadata(found: Annotated[Served, Depends(chosen)]) -> Response:
        """Say what a model takes and gives."""
        tensors = [{"name": name, "datatype": "BYTES", "shape": [1]} for name in ("scan", "uri", *_KINDS)]
        told = {"name": found.name, "versions": [_accepted(found)], "platform": "tutelage"}
        return JSONResponse({**told, "inputs": tensors[:2], "outputs": tensors[2:]})

    @router.get(f"{path}/ready", response_model=ModelReady, responses=documented(*_NAMED, "not-ready"))
    async def ready(found: Annotated[Served, Depends(chosen)]) -> Response:
        """Say whether a model can be asked."""
        _check_ready(desk)
        _accepted(found)
        return JSONResponse({"name": found.name, "ready": True})

    @router.post(f"{path}/infer", response_model=InferResponse, openapi_extra=_BODY, responses=_ANSWERS)
    async def infer(request: Request, found: Annotated[Served, Depends(chosen)]) -> Response:
        """Segment a scan."""
        with desk.door() as deadline:
            asked, upload = await taken_in(desk, request, deadline)
            wanted = [one.name for one in asked.outputs]
            kinds = tuple(kind for name, kind in _KINDS.items() if name in wanted or not wanted)
            request_id = notes_of(request.scope).request_id
            order = Order(upload, found.name, kinds, request_id, version=found.asked)
            done = await desk.answer(request, order, deadline)
        return _sent(asked, done)


def _served(desk: Desk, model: str, asked: str) -> Served:
    """Return the model that an address names; loads nothing, since nobody counts who waits here.

    Of one that was never accepted no version is known yet: who infers learns it once that loaded it.

    Raises:
        UnknownModelError: none of that name, or not in that version, is served.
    """
    desk.check_model(model)
    version = next(one["version"] for one in desk.models.describe() if one["name"] == model)
    if version is not None:
        check_version(model, str(version), asked)
    return Served(model, None if version is None else str(version), asked)


def _accepted(found: Served) -> str:
    """Return which version is served.

    Raises:
        ProblemError: none was accepted yet.
    """
    if found.version is None:
        raise ProblemError(
            f"the model {found.name} is not loaded yet, or was refused, which /v1/models says; ask again in "
            "a moment, or send it a scan",
            "not-ready",
        )
    return found.version


def _check_ready(desk: Desk) -> None:
    if not desk.models.ready:
        raise ProblemError("the default model is not loaded yet; ask again in a moment", "not-ready")


# --- what is answered -----------------------------------------------------------------------


def _sent(asked: InferRequest, done: Done) -> Response:
    """Return tensors: raw behind the JSON where that is asked for, else in it."""
    everything = asked.parameters.get("binary_data_output") is True
    raw_by_name = {one.name: one.parameters.get("binary_data", everything) is True for one in asked.outputs}
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for name, kind in _KINDS.items():
        if kind not in done.answers:
            continue
        body = done.answers[kind].body
        tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [1]}
        if raw_by_name.get(name, everything):
            behind += [SIZE.pack(len(body)), body]
            tensor["parameters"] = {"binary_data_size": SIZE.size + len(body)}
        else:
            tensor |= _in_json(name, body)
        outputs.append(tensor)
    told = {"model_name": done.model, "model_version": done.version, "id": asked.id, "outputs": outputs}
    answer = next(iter(done.answers.values()))
    headers = {key: value for key, value in answer.headers.items() if key.startswith("x-tutelage-")}
    if not behind:
        return JSONResponse(told, headers=headers)
    head = json.dumps(told).encode()
    headers[LENGTH] = str(len(head))
    return Response(b"".join((head, *behind)), headers=headers, media_type="application/octet-stream")


def _in_json(name: str, body: bytes) -> dict[str, Any]:
    if name == "report":
        return {"data": [body.decode()]}
    return {"data": [base64.b64encode(body).decode()], "parameters": {"content_type": "base64"}}
