"""How failures are told: which one is of which kind and status, in the form of RFC 9457.

What is not the caller's fault is told by its kind alone; the log says where it happened.
It knows no addresses.
"""

import errno
import json
import math
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, Field
from starlette.responses import Response

from serve.answers import NotAcceptableError
from serve.models import UnknownModelError
from serve.uploads import TooLargeError, UnknownFormatError
from tutelage.errors import (
    ArchiveError,
    BusyError,
    MissingExtraError,
    StoppedError,
    TrackingError,
    TrainingError,
    TutelageError,
    WorkspaceError,
)

MEDIA_TYPE = "application/problem+json"

GONE = 499
"""Status in log and metrics of a request whose client left; nobody receives it."""

_RETRY_AFTER_S = 5
"""When to come back where nobody knows better."""


_KILLED = ". Where the copy that worked on it was killed, Ray's proxy says 500 in plain text; send it again."
"""Said beside our own 500."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of the table."""

    status: int
    title: str


KINDS: Final[dict[str, Kind]] = {
    "unreadable-scan": Kind(400, "The scan cannot be read"),
    "malformed": Kind(400, "The request cannot be understood"),
    "unauthorized": Kind(401, "A token is needed"),
    "forbidden": Kind(403, "The token does not allow this"),
    "forbidden-address": Kind(403, "Files there may not be asked for"),
    "not-found": Kind(404, "There is nothing at this address"),
    "unknown-model": Kind(404, "No such model is served"),
    "unknown-job": Kind(404, "There is no such job"),
    "unknown-file": Kind(404, "There is no such file"),
    "method-not-allowed": Kind(405, "This address is asked in another way"),
    "not-acceptable": Kind(406, "The answer cannot be had in that form"),
    "not-finished": Kind(409, "The job has no result yet"),
    "job-failed": Kind(409, "The job failed"),
    "result-gone": Kind(410, "The result is gone in that form"),
    "too-large": Kind(413, "The scan is too large"),
    "unknown-format": Kind(415, "The scan is of no known kind"),
    "misdirected": Kind(421, "The server is open to its own machine alone"),
    "invalid-parameters": Kind(422, "Parameters are wrong"),
    "gone": Kind(GONE, "The client left"),
    "failed": Kind(500, "Segmenting failed"),
    "busy": Kind(503, "The server is busy"),
    "full": Kind(503, "The server's disk is full"),
    "not-served": Kind(503, "The model cannot be served"),
    "not-ready": Kind(503, "The server is not ready"),
    "timed-out": Kind(504, "Segmenting took too long"),
}
"""By the end of their `type`, urn:tutelage:KIND."""

_ERRORS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (TooLargeError, "too-large"),
    (UnknownFormatError, "unknown-format"),
    (MissingExtraError, "unknown-format"),
    (NotAcceptableError, "not-acceptable"),
    (UnknownModelError, "unknown-model"),
    (BusyError, "busy"),
    (StoppedError, "gone"),
    (ArchiveError, "unreadable-scan"),
    (MemoryError, "busy"),
    (TrainingError, "not-served"),
    (TrackingError, "not-served"),
    (WorkspaceError, "not-served"),
)
"""The first that fits."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError: the disk, or what this user may have of it, is used up."""

GUARDED: Final = ("unauthorized", "forbidden", "misdirected")
"""How who asks is refused, wherever not everybody may."""

_OURS: Final = {
    "busy": "memory ran out, expected enough for every scan in work; send it again later",
    "full": "the disk for uploads and results is full, expected room for this scan; send it again later",
    "not-served": "the model cannot be served now; /v1/models says whether it was refused, the log says more",
}
"""What is told of failures whose own words are for whoever runs the server, as they name folders."""


class ProblemError(TutelageError):
    """A request is answered with a problem of this kind."""

    def __init__(self, detail: str, kind: str = "malformed", retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.retry_after_s = retry_after_s


class Problem(BaseModel):
    """A failure, as RFC 9457 tells it."""

    type: str = Field(pattern="^urn:tutelage:[a-z-]+$", description="Which kind of failure, for programs.")
    title: str = Field(description="The same for people.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What was found, what was expected, what to do.")
    request_id: str = Field(description="Under which the log of the server says more.")
    error: str | None = Field(
        default=None, description="The detail again where the Open Inference Protocol wants it."
    )


def kind_of(error: BaseException) -> str:
    """Return which line of the table an exception is."""
    if isinstance(error, ProblemError):
        return error.kind
    if isinstance(error, OSError) and error.errno in _FULL:
        return "full"
    return next((kind for cls, kind in _ERRORS if isinstance(error, cls)), "failed")


def expected(error: BaseException) -> bool:
    """Whether its message was written for the caller."""
    return isinstance(error, TutelageError) and kind_of(error) not in ("failed", "not-served")


def told(error: BaseException, request_id: str) -> dict[str, Any]:
    """Return a failure as the values of a Problem."""
    kind = kind_of(error)
    if expected(error):
        detail = str(error)
    else:
        unknown = f"{type(error).__name__}; the log of the server says where, under this request's id"
        detail = _OURS.get(kind, unknown)
    found = KINDS[kind]
    return {
        "type": f"urn:tutelage:{kind}",
        "title": found.title,
        "status": found.status,
        "detail": detail,
        "request_id": request_id,
    }


def answered(error: BaseException, request_id: str, protocol: bool = False) -> Response:
    """Return the answer to a request that failed; `protocol` adds what the Open Inference Protocol wants."""
    content = told(error, request_id)
    if protocol:
        content["error"] = content["detail"]
    return Response(json.dumps(content), content["status"], headers(error), MEDIA_TYPE)


def headers(error: BaseException) -> dict[str, str]:
    """Return the headers that go with a failure."""
    status = KINDS[kind_of(error)].status
    if status == 401:
        return {"www-authenticate": 'Bearer realm="tutelage"'}
    after_s = getattr(error, "retry_after_s", None)
    if status == 503 or after_s is not None:
        return {"retry-after": str(math.ceil(after_s or _RETRY_AFTER_S))}
    return {}


def documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of these failures; 500 can always happen.

    It is also what Ray's proxy says where a copy was killed while it answered: nobody is left who could tell.
    """
    by_status: dict[int | str, list[str]] = {}
    for kind in (*kinds, "failed"):
        by_status.setdefault(KINDS[kind].status, []).append(kind)
    found: dict[int | str, dict[str, Any]] = {
        status: {
            "description": "; ".join(f"{KINDS[kind].title} (`{kind}`)" for kind in several),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, several in by_status.items()
    }
    found[500]["description"] += _KILLED
    found[500]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return found
