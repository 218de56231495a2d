"""Questions of the Open Inference Protocol: what their JSON says, and where in the body the scan is.

JSON is held in memory, so it may not be long; raw bytes behind it, the protocol's binary extension,
are passed on as they come. An element of a tensor of bytes has its length before it. What is not
in this form is refused with what was found; whatever a scan is, it is not looked at here.
"""

import asyncio
import base64
import binascii
import struct
from collections.abc import AsyncIterator
from math import prod
from typing import Final, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect

from serve import addresses
from serve.orders import Desk, announced_bytes
from serve.problems import ProblemError
from serve.uploads import TooLargeError, Upload, basename, received
from serve.working import Deadline
from tutelage.errors import StoppedError

LENGTH = "Inference-Header-Content-Length"

_MAX_JSON = 16 * 10**6
"""Bytes of a request's JSON, which is held in memory: larger scans are sent raw behind it."""

_MAX_URI = 4096
_PIECE = 2**20
"""Letters of base64 that are decoded at a time; they come in fours."""

SIZE = struct.Struct("<I")
"""Length before the bytes of an element."""

Parameters = dict[str, str | int | float | bool]


class _Told(BaseModel):
    """What is read from strangers: nothing is converted, what is not known is not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")


class InputTensor(_Told):
    """The scan, or where it is."""

    name: Literal["scan", "uri"]
    datatype: Literal["BYTES"]
    shape: list[int] = Field(min_length=1, max_length=2, description="[1] or [1, 1].")
    parameters: Parameters = Field(default={}, description="binary_data_size: bytes behind the JSON.")
    data: list[str] | None = Field(default=None, max_length=1, description="Base64, or the address.")


class WantedOutput(_Told):
    """A tensor that is wanted."""

    name: Literal["mask", "report"]
    parameters: Parameters = Field(default={}, description="binary_data: raw behind the JSON.")


class InferRequest(_Told):
    """A question."""

    id: str = Field(default="", max_length=200)
    parameters: Parameters = Field(default={}, description="name: of the file; binary_data_output.")
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[WantedOutput] = Field(default=[], max_length=2)


SCHEMAS: Final = (InferRequest, InputTensor, WantedOutput)
"""What the OpenAPI document has to be told of, since bodies are read here."""


async def taken_in(desk: Desk, request: Request, deadline: Deadline) -> tuple[InferRequest, Upload]:
    """Take a question in, and the scan that it holds or names."""
    try:
        async with asyncio.timeout(deadline.left_s()):
            head, rest = await _head(request)
            asked = await run_in_threadpool(_parsed, head)
            source = asked.inputs[0]
            name = _name(asked)
            if source.name == "uri":
                uri = _text(source) if rest is None else await _raw_text(rest, source)
                return asked, await _named(desk, uri, name)
            if rest is None:
                return asked, await desk.receive(request, name, deadline, _decoded(_text(source)))
            size, scan = await _element(rest, source)
            upload = await desk.receive(request, name, deadline, scan)
    except TimeoutError:
        raise deadline.error() from None
    except ClientDisconnect:
        raise StoppedError("the client left before its question was whole") from None
    if upload.size != size:
        upload.close()
        raise ProblemError(f"the tensor announces {size} bytes, found {upload.size} behind it; correct one")
    return asked, upload


async def _head(request: Request) -> tuple[bytes, AsyncIterator[bytes] | None]:
    """Return the JSON of a body, and what comes behind it if something may."""
    given = request.headers.get(LENGTH)
    if given is None:
        if (announced_bytes(request) or 0) > _MAX_JSON:
            raise _too_long()
        return await _whole(request.stream()), None
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise ProblemError(
            f"found {given[:20]!r} in {LENGTH}, expected a number of bytes; correct the header"
        )
    size = int(given)
    if size > _MAX_JSON:
        raise _too_long()
    return await _taken(request.stream(), size)


async def _whole(stream: AsyncIterator[bytes]) -> bytes:
    held = bytearray()
    async for part in stream:
        held += part
        if len(held) > _MAX_JSON:
            raise _too_long()
    return bytes(held)


async def _taken(stream: AsyncIterator[bytes], size: int) -> tuple[bytes, AsyncIterator[bytes]]:
    """Return so many bytes from the start of a stream, and the rest of it."""
    held = bytearray()
    while len(held) < size:
        part = await anext(stream, None)
        if part is None:
            raise ProblemError(f"the body ended after {len(held)} of {size} bytes; send it again")
        held += part

    async def rest() -> AsyncIterator[bytes]:
        yield bytes(held[size:])
        async for part in stream:
            yield part

    return bytes(held[:size]), rest()


def _parsed(head: bytes) -> InferRequest:
    try:
        asked = InferRequest.model_validate_json(head)
    except ValidationError as error:
        listed = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10])
        raise ProblemError(
            f"the JSON of the request is none of the protocol's: {'; '.join(listed)}; /docs shows its form"
        ) from None
    if prod(asked.inputs[0].shape) != 1:
        raise ProblemError(f"the tensor has shape {asked.inputs[0].shape}, expected [1]: one scan at a time")
    return asked


def _name(asked: InferRequest) -> str:
    name = asked.inputs[0].parameters.get("name", asked.parameters.get("name", ""))
    return name if isinstance(name, str) else ""


def _text(tensor: InputTensor) -> str:
    if not tensor.data:
        raise ProblemError(
            f"the tensor {tensor.name} holds no data, expected one text; send it there, or raw behind the "
            f"JSON with {LENGTH}"
        )
    return tensor.data[0]


async def _element(rest: AsyncIterator[bytes], tensor: InputTensor) -> tuple[int, AsyncIterator[bytes]]:
    """Return how long the one element of a raw tensor is, and its bytes."""
    whole = tensor.parameters.get("binary_data_size")
    if tensor.data is not None or not isinstance(whole, int):
        raise ProblemError(
            f"the tensor {tensor.name} has no binary_data_size among its parameters, or data besides; send "
            "raw bytes behind the JSON, or base64 in it"
        )
    prefix, scan = await _taken(rest, SIZE.size)
    size = int(SIZE.unpack(prefix)[0])
    if size + SIZE.size != whole:
        raise ProblemError(
            f"binary_data_size is {whole}, but the element announces {size} bytes, and its length takes "
            f"{SIZE.size}; correct one of them"
        )
    return size, scan


async def _raw_text(rest: AsyncIterator[bytes], tensor: InputTensor) -> str:
    size, scan = await _element(rest, tensor)
    if size > _MAX_URI:
        raise ProblemError(f"the address has {size} bytes, expected at most {_MAX_URI}; shorten it")
    text, _ = await _taken(scan, size)
    return text.decode(errors="replace")


async def _decoded(text: str) -> AsyncIterator[bytes]:
    """Yield the bytes that base64 stands for."""
    for start in range(0, len(text), _PIECE):
        try:
            yield base64.b64decode(text[start : start + _PIECE], validate=True)
        except (binascii.Error, ValueError):
            raise ProblemError(
                "the data of the scan is no base64; encode the file, or send it raw behind the JSON"
            ) from None


async def _named(desk: Desk, uri: str, name: str) -> Upload:
    """Return a scan that lies below one of the folders that are open to requests."""
    most = int(desk.settings.max_mb * 1e6)
    if addresses.local(uri):
        upload = await run_in_threadpool(addresses.opened, uri, desk.settings.roots, most)
        upload.name = basename(name) or upload.name
        return upload
    parts = iterate_in_threadpool(addresses.parts_of(uri, desk.settings.roots, most))
    return await received(parts, None, name or addresses.name_of(uri), desk.settings)


def _too_long() -> TooLargeError:
    return TooLargeError(
        f"the JSON of the request has more than {_MAX_JSON / 1e6:g} MB, expected less; send the scan raw "
        f"behind it with {LENGTH}"
    )
