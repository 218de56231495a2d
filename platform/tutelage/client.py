"""Asks a server that `tutelage serve` started, from Python; needs neither torch nor Ray.

    from tutelage.client import Client

    with Client("https://segment.example", token=os.environ["TUTELAGE_TOKEN"]) as client:
        answer = client.segment("scan.nii.gz", "mask.nii.gz")
        print(answer.volumes_ml, answer.needs_review)

Scans go out and masks come in piece by piece; neither is ever whole in memory, and a file has its name
only once it is whole. It decides what is tried again: a server that is full or away for a moment, for
as long as `patience_s`; never what the server refused.
"""

import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from tutelage.errors import BusyError, RefusedError, ServerError, UnreachableError
from tutelage.replies import media, problem, refusal, request_id, stranger, told_in

Accept = Literal["nifti", "dicom-seg", "json"]
"""What to answer with."""

Progress = Callable[[str, int, int], None]
"""Called with `sending` or `receiving`, bytes so far, and bytes in all (0 if nobody knows); with `working`,
thousandths of a job."""

MEDIA: dict[Accept, str] = {
    "nifti": "application/gzip",
    "dicom-seg": "application/dicom",
    "json": "application/json",
}

T = TypeVar("T")

_PART = 2**18
"""Bytes sent at a time."""

_LOST = 5
"""Tries that may end without an answer, as when the process that worked on it died."""

_SPECIALIST = "x-tutelage-specialist"
"""The header that says who answered."""

_TOKEN = re.compile(r"[!-~]+")
"""What a header takes; an end of a line, as mounted secrets have, is refused far from here and shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A file that a server made."""

    path: Path
    media_type: str
    request_id: str
    model: str
    specialist: str
    """Digest of the specialist that answered."""
    volumes_ml: Mapping[str, float]
    """By structure, in the order of their label values."""
    needs_review: tuple[str, ...]
    """Structures that somebody should look at."""
    seconds: Mapping[str, float]
    """What the server spent, by stage."""


@dataclass(frozen=True, slots=True)
class Job:
    """Work that a server does on its own time."""

    id: str
    href: str


class Client:
    """One server. May be used from several threads."""

    def __init__(
        self, url: str, token: str | None = None, *, patience_s: float = 120.0, timeout_s: float = 900.0
    ) -> None:
        """Remember where to ask; `timeout_s` is how long an answer may take.

        Raises:
            RefusedError: that is no address, or one that holds a password; or that is no token.
        """
        self.url = _address(url)
        self.patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.url, headers=_bearer(token), timeout=httpx.Timeout(timeout_s, connect=10.0)
        )
        self._met = False

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- questions -------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """Return what is served: name, version, structures, scores."""
        return list(told_in(self._asked("GET", "/v1/models"), "models"))

    def segment(
        self,
        path: str | Path,
        out: str | Path,
        *,
        accept: Accept = "nifti",
        model: str = "",
        progress: Progress | None = None,
    ) -> Answer:
        """Send a scan, wait, and write the answer to `out`.

        Raises:
            RefusedError: the scan cannot be read, is too large, or no such model is served.
            ForbiddenError: the token is missing, unknown, or not for this.
            BusyError: the server stayed full.
            UnreachableError: there is no server.
            ServerError: it failed.
        """
        path, out, progress = Path(path), Path(out), progress or _silent
        asked = {"accept": MEDIA[accept]}

        def once() -> Answer:
            with self._sent("POST", "/v1/segment", path, model, asked, progress) as response:
                return _received(response, out, accept, progress)

        return self._patiently(once)

    def submit(self, path: str | Path, *, model: str = "", progress: Progress | None = None) -> Job:
        """Send a scan that the server segments on its own time; its result is had with `wait`."""
        path, progress = Path(path), progress or _silent

        def once() -> Job:
            with self._sent("POST", "/v1/jobs", path, model, {}, progress) as response:
                response.read()
                return Job(str(told_in(response, "id")), str(told_in(response, "href")))

        return self._patiently(once)

    def state(self, job: Job) -> dict[str, Any]:
        """Return how far a job is: `state`, `share`, and `problem` of one that failed."""
        response = self._asked("GET", job.href)
        told_in(response, "state")
        return dict(response.json())

    def wait(
        self,
        job: Job,
        out: str | Path,
        *,
        accept: Accept = "nifti",
        progress: Progress | None = None,
        every_s: float = 1.0,
    ) -> Answer:
        """Wait until a job is done, and write its result to `out`.

        Raises:
            ServerError: it failed or was ended, or as `segment` says.
        """
        out, progress = Path(out), progress or _silent
        while (told := self.state(job))["state"] in ("queued", "running"):
            progress("working", round(1000 * float(told.get("share") or 0)), 1000)
            time.sleep(every_s)
        if told["state"] != "done":
            raise problem(told.get("problem") or {"detail": f"the job is {told['state']}"}, 0)

        def once() -> Answer:
            href = str(told.get("result") or f"{job.href}/result")
            request = self._http.build_request("GET", href, headers={"accept": MEDIA[accept]})
            with self._answered(request) as response:
                return _received(response, out, accept, progress)

        return self._patiently(once)

    def cancel(self, job: Job) -> None:
        """End a job and forget its result."""
        self._asked("DELETE", job.href)

    # --- how -------------------------------------------------------------------------------

    def _asked(self, method: str, address: str) -> httpx.Response:
        def once() -> httpx.Response:
            with self._answered(self._http.build_request(method, address)) as response:
                response.read()
                return response

        return self._patiently(once)

    @contextmanager
    def _sent(
        self,
        method: str,
        address: str,
        path: Path,
        model: str,
        headers: dict[str, str],
        progress: Progress,
    ) -> Iterator[httpx.Response]:
        """Send a file and yield the answer, of which only the head is there."""
        try:
            size = path.stat().st_size
        except OSError as error:
            raise RefusedError(f"{path} cannot be read ({error.strerror}); name a scan") from None
        headers = headers | {"content-length": str(size), "content-type": "application/octet-stream"}
        request = self._http.build_request(
            method,
            address,
            params={"model": model} if model else {},
            headers=headers | {"x-file-name": _nameless(path)},
            content=_parts(path, size, progress),
        )
        with self._answered(request) as response:
            yield response

    @contextmanager
    def _answered(self, request: httpx.Request) -> Iterator[httpx.Response]:
        response = self._http.send(request, stream=True)
        try:
            self._met = True
            if not response.is_success:
                response.read()
                raise refusal(response)
            yield response
        finally:
            response.close()

    def _patiently(self, once: Callable[[], T]) -> T:
        """Try until it is done or refused, or patience is over."""
        began, attempt, lost = time.monotonic(), 0, 0
        while True:
            try:
                return once()
            except ServerError as error:
                trouble = error
            except httpx.TransportError as error:
                trouble = self._unanswered(error)
            # Whoever takes a server down again and again has a scan that does so.
            lost += not isinstance(trouble, BusyError)
            pause_s = max(trouble.retry_after_s, random.uniform(0.5, 1.0) * min(0.5 * 2**attempt, 10.0))
            late = time.monotonic() + pause_s - began > self.patience_s
            if late or not trouble.again or lost >= _LOST:
                raise trouble
            time.sleep(pause_s)
            attempt += 1

    def _unanswered(self, error: httpx.TransportError) -> ServerError:
        """Return the error for no answer; a server that was there once is expected back."""
        told = f"{self.url} does not answer ({error or type(error).__name__}); is it the address of a server?"
        trouble = UnreachableError(told)
        nobody = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        trouble.again = self._met if nobody else not isinstance(error, httpx.ReadTimeout)
        return trouble


def _bearer(token: str | None) -> dict[str, str]:
    """Return the header that shows a token; one that is none is not repeated where it could be read."""
    if not token:
        return {}
    if not _TOKEN.fullmatch(token):
        raise RefusedError(
            "the token holds blanks, ends of lines or letters that no token has; "
            "give what `tutelage tokens` showed"
        )
    return {"authorization": f"Bearer {token}"}


def _address(url: str) -> str:
    parts = _taken_apart(url)
    if parts is None or parts.scheme not in ("http", "https"):
        shown = "what was given" if "@" in url else repr(url)
        raise RefusedError(f"{shown} is no address of a server, expected for example http://127.0.0.1:8000")
    if parts.userinfo:
        raise RefusedError("the address holds a user or a password; take them out and give a token")
    return url.rstrip("/")


def _taken_apart(url: str) -> httpx.URL | None:
    """Return the parts of an address that names a host, or None."""
    try:
        parts = httpx.URL(url)
        return parts if "://" in url and parts.host else None
    except (httpx.InvalidURL, UnicodeError):  # the latter when a host's name is looked at
        return None


def _nameless(path: Path) -> str:
    """Return a name of the same kind: what a file is called may say whose it is."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    kind = "".join(suffixes if suffixes[-1:] in ([".gz"], [".bz2"]) else suffixes[-1:])
    return f"scan{kind}" if kind.isascii() else "scan"


def _parts(path: Path, size: int, progress: Progress) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while part := file.read(min(_PART, size - done)):
            yield part
            done += len(part)
            progress("sending", done, size)
    if done < size:
        raise RefusedError(f"{path} became shorter while it was sent; send it again when it is whole")


def _received(response: httpx.Response, out: Path, accept: Accept, progress: Progress) -> Answer:
    """Write the body under another name, and give it its own once it is whole."""
    headers = response.headers
    if media(response) != MEDIA[accept] or _SPECIALIST not in headers:
        raise stranger(response)
    total, done = int(headers.get("content-length", 0)), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as file:
            for data in response.iter_bytes():
                done += file.write(data)
                progress("receiving", done, total)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return Answer(
        path=out,
        media_type=headers.get("content-type", ""),
        request_id=request_id(response),
        model=headers.get("x-tutelage-model", ""),
        specialist=headers[_SPECIALIST],
        volumes_ml=_json(headers.get("x-tutelage-volumes-ml"), {}),
        needs_review=tuple(_json(headers.get("x-tutelage-review"), [])),
        seconds=_json(headers.get("x-tutelage-seconds"), {}),
    )


def _json(text: str | None, default: Any) -> Any:
    return default if text is None else json.loads(text)


def _silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
