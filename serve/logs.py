"""One line of JSON about every request, and where unexpected failures happened. Never whose scan it was.

A line holds what this file names and nothing else: no file names, query strings, headers or words
of the body, and of an exception its type and the places in the code, since its message may quote them.
"""

import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import problems

_KEY = "tutelage.notes"

_REQUEST_ID = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{15,63}")
"""UUIDs and trace ids; nobody's name can be written with these."""

_FRAMES = 12
"""Places in the code that are told of a failure, from where it happened outwards."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(slots=True)
class Notes:
    """What is known about one request while it is answered."""

    request_id: str
    method: str = ""
    route: str = "unmatched"
    """Template of its address, never the address."""
    status: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    total_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    model: str = ""
    digest: str = ""
    token: str = ""
    """Name of the token that was shown."""
    problem: str = ""
    """Kind of the failure it was answered with."""


class Requests:
    """Around the whole application: gives every request an id, answers what was not caught, and tells."""

    def __init__(self, app: ASGIApp, observe: Callable[[Notes], None]) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and tell about it when it is over."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        notes = Notes(_request_id(scope), scope["method"] if scope["method"] in _METHODS else "other")
        scope[_KEY] = notes
        wire = _Wire(notes, receive, send)
        began = time.monotonic()
        try:
            await self._answered(scope, wire, notes)
        except BaseException:
            notes.status = notes.status or problems.GONE
            raise
        finally:
            notes.total_s = time.monotonic() - began
            notes.route = _route(scope)
            tell(_line(notes))
            self.observe(notes)

    async def _answered(self, scope: Scope, wire: "_Wire", notes: Notes) -> None:
        try:
            await self.app(scope, wire.receive, wire.send)
        except Exception as error:  # whatever went wrong, the caller gets an answer in the same form
            notes.problem = problems.kind_of(error)
            if not problems.expected(error):
                tell_failure(error, notes.request_id)
            if notes.status:
                # Half an answer is out: only a broken connection still tells that it is not whole.
                raise
            protocol = scope["path"].startswith("/v2")
            answer = problems.answered(error, notes.request_id, protocol)
            await answer(scope, wire.receive, wire.send)


class _Wire:
    """Counts what comes and goes."""

    def __init__(self, notes: Notes, receive: Receive, send: Send) -> None:
        self.notes, self._receive, self._send = notes, receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        self.notes.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.notes.status = message["status"]
            own = {b"x-request-id": self.notes.request_id.encode(), b"x-content-type-options": b"nosniff"}
            others = [(name, value) for name, value in message.get("headers", ()) if name not in own]
            message = {**message, "headers": [*others, *own.items()]}
        self.notes.bytes_out += len(message.get("body", b""))
        await self._send(message)


def notes_of(scope: Scope) -> Notes:
    """Return what is known about a request that is being answered."""
    notes: Notes = scope[_KEY]
    return notes


def tell(values: dict[str, Any]) -> None:
    """Write one line to stderr, whole: threads and processes write there at the same time."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


def tell_job(notes: Notes, state: str) -> None:
    """Write how a job ended, under the id of the request that began it."""
    line = _line(notes)
    kept = ("request_id", "seconds", "model", "digest", "problem")
    tell({"event": "job", "state": state, **{key: line[key] for key in kept}})


def tell_failure(error: BaseException, request_id: str) -> None:
    """Write where something went wrong unexpectedly; its message may quote a header, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    tell({"event": "failure", "request_id": request_id, "error": type(error).__name__, "where": where})


def _line(notes: Notes) -> dict[str, Any]:
    return {
        "event": "request",
        "request_id": notes.request_id,
        "method": notes.method,
        "route": notes.route,
        "status": notes.status,
        "problem": notes.problem,
        "total_s": round(notes.total_s, 4),
        "seconds": {stage: round(seconds, 4) for stage, seconds in notes.seconds.items()},
        "bytes_in": notes.bytes_in,
        "bytes_out": notes.bytes_out,
        "model": notes.model,
        "digest": notes.digest,
        "token": notes.token,
    }


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "") or "unmatched"
