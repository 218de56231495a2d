"""The HTTP of the segmenter: addresses, limits, and how failures are told. Knows no Ray.

    POST   /v1/segment            a scan as the body; the mask comes back on the same grid
    POST   /v1/jobs               the same without waiting
    GET    /v1/jobs/ID[/result]   how far it is, what came of it; DELETE ends and forgets it
    GET    /v1/models             who answers, and what its label values mean
           /v2/...                the Open Inference Protocol, in `inference`
    GET    /health, /metrics, /docs, /openapi.json

Failures are application/problem+json (RFC 9457), by the table in `problems`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from serve import answers, document, inference, meters, problems, tensors
from serve import page as pages
from serve.answers import Answer
from serve.hosts import Loopback
from serve.jobs import Job, Jobs
from serve.logs import Requests, notes_of
from serve.models import Models
from serve.orders import Desk, Order, nameless
from serve.problems import GUARDED, ProblemError, documented
from serve.tokens import Tokens
from tutelage import __version__
from tutelage.cluster.settings import ServingSettings

_BEARER = HTTPBearer(auto_error=False, description="As `tutelage tokens add` showed it.")

_SCAN_PROBLEMS = (
    "unreadable-scan",
    "unknown-model",
    "too-large",
    "unknown-format",
    "invalid-parameters",
    "busy",
    "full",
)

Model = Annotated[str, Query(max_length=200, description="Which model; default: the first that is served.")]
Name = Annotated[str, Query(max_length=1000, description="File name; its suffix tells the format.")]
FileName = Annotated[str, Header(alias="X-File-Name", max_length=1000, description="The same as `name`.")]


class Health(BaseModel):
    """Whether scans can be sent."""

    status: Literal["ok"]
    specialist: str = Field(description="Digest of the default model.")


class ModelList(BaseModel):
    """Who answers."""

    models: list[dict[str, Any]] = Field(description="The default model first; label values by structure.")


class JobState(BaseModel):
    """How far a job is."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    share: float = Field(ge=0, le=1, description="How much of it is done.")
    href: str = Field(description="Where to ask again.")
    result: str | None = Field(description="Where the result is, once there is one.")
    problem: dict[str, Any] | None = Field(description="Why it failed.")


def application(
    models: Models, settings: ServingSettings, tokens: Tokens | None, page: Path | None
) -> FastAPI:
    """Return the web application around models. Without tokens everybody on this machine may ask."""
    desk = Desk(models, settings, Jobs(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await desk.close()

    app = FastAPI(
        title="tutelage",
        version=__version__,
        summary="Segments scans with trained specialists.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.desk = desk
    if tokens is None:
        app.add_middleware(Loopback)
    app.add_middleware(Requests, observe=desk.meters.observe)
    app.add_exception_handler(HTTPException, _unmatched)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.include_router(_open(desk))
    app.include_router(_scans(desk), dependencies=_guard(tokens, "predict"))
    app.include_router(_measured(desk), dependencies=_guard(tokens, "admin"))
    app.include_router(inference.open_router(desk))
    app.include_router(inference.router(desk), dependencies=_guard(tokens, "predict"))
    document.install(app, tensors.SCHEMAS)
    if page is not None:
        pages.mount(app, page)
    return app


def _guard(tokens: Tokens | None, scope: str) -> list[Any]:
    """Return what stands before addresses that need a token; it is asked before a body is read."""
    if tokens is None:
        return []

    async def admitted(
        request: Request, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        token = tokens.admitted(shown.credentials if shown else "", scope)
        notes_of(request.scope).token = token.name
        request.state.token = token

    return [Depends(admitted)]


# --- addresses that need no token -----------------------------------------------------------


def _open(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/health", responses=documented("not-ready"), response_model=Health)
    async def health() -> Response:  # of memory alone, so that no thread that waits for a store holds it up
        """Say whether scans can be sent."""
        if not desk.models.ready:
            raise ProblemError("the default model is not loaded yet; ask again in a moment", "not-ready")
        return JSONResponse({"status": "ok", "specialist": desk.models.describe()[0]["specialist"]})

    return router


def _measured(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**documented(*GUARDED), 200: {"content": {"text/plain": {}}}},
    )
    def metrics() -> Response:
        """Tell measurements as Prometheus reads them."""
        desk.follow()
        return Response(desk.meters.text(), headers={"content-type": meters.MEDIA_TYPE})

    return router


# --- scans ----------------------------------------------------------------------------------


def _scans(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["scans"])
    _segment(router, desk)
    _jobs(router, desk)

    @router.get("/v1/models", response_model=ModelList, responses=documented(*GUARDED))
    def models() -> Response:
        """Say who answers, and what the label values mean."""
        return JSONResponse({"models": desk.models.describe()})

    return router


def _segment(router: APIRouter, desk: Desk) -> None:
    @router.post(
        "/v1/segment",
        response_class=Response,
        openapi_extra=document.SCAN_BODY,
        responses={
            **documented(*GUARDED, "not-acceptable", "timed-out", *_SCAN_PROBLEMS),
            200: document.ANSWER,
        },
    )
    async def segment(request: Request, model: Model = "", name: Name = "", file: FileName = "") -> Response:
        """Segment a scan: NIfTI, NRRD, or a zip of one DICOM series."""
        with desk.door() as deadline:
            kind = answers.kind_of(request.headers.get("accept", ""))
            desk.check_model(model)
            upload = await desk.receive(request, name or file, deadline)
            order = Order(upload, model, (kind,), notes_of(request.scope).request_id)
            done = await desk.answer(request, order, deadline)
        return _sent(done.answers[kind])


def _jobs(router: APIRouter, desk: Desk) -> None:
    known = (*GUARDED, "unknown-job", "invalid-parameters")

    @router.post(
        "/v1/jobs",
        status_code=202,
        response_model=JobState,
        openapi_extra=document.SCAN_BODY,
        responses={
            **documented(*GUARDED, "timed-out", *_SCAN_PROBLEMS),
            202: {"description": "It waits for its turn.", "headers": document.LOCATION},
        },
    )
    async def begin(request: Request, model: Model = "", name: Name = "", file: FileName = "") -> Response:
        """Have a scan segmented without waiting for it."""
        with desk.door() as deadline:
            desk.check_model(model)
            job = desk.jobs.begin(_owner(request))
            try:
                upload = await desk.receive(request, nameless(name or file), deadline)
            except BaseException:
                desk.cancel(job.id)
                raise
            order = Order(upload, model, tuple(answers.MEDIA), notes_of(request.scope).request_id)
            desk.start(job, order)
        told = _told(job)
        return JSONResponse(told, 202, headers={"location": told["href"]})

    @router.get("/v1/jobs/{id}", response_model=JobState, responses=documented(*known))
    def state(request: Request, id: str) -> Response:
        """Say how far a job is."""
        return JSONResponse(_told(_visible(desk, request, id)))

    @router.get(
        "/v1/jobs/{id}/result",
        response_class=Response,
        responses={
            **documented(*known, "not-acceptable", "not-finished", "job-failed", "result-gone"),
            200: document.ANSWER,
        },
        openapi_extra=document.ACCEPTS,
    )
    def result(request: Request, id: str) -> Response:
        """Return what came of a job."""
        kind = answers.kind_of(request.headers.get("accept", ""))
        job = _visible(desk, request, id)
        if job.state == "failed":
            raise ProblemError(f"it failed: {(job.problem or {}).get('detail', '')}", "job-failed")
        if job.state != "done":
            raise ProblemError(
                f"the job is {job.state}, expected done; ask /v1/jobs/{job.id} until it is", "not-finished", 1
            )
        answer = desk.jobs.result(job, kind)
        if answer is None:
            raise answers.NotAcceptableError(
                f"the result is there as {', '.join(answers.MEDIA[kind][0] for kind in job.kinds)}, found "
                f"that {answers.MEDIA[kind][0]} is asked for; accept one of those"
            )
        return _sent(answer)

    @router.delete("/v1/jobs/{id}", status_code=204, response_class=Response, responses=documented(*known))
    async def remove(request: Request, id: str) -> Response:
        """End a job wherever it runs, and forget it with its result."""
        desk.cancel(_visible(desk, request, id).id)
        return Response(status_code=204)


def _visible(desk: Desk, request: Request, name: str) -> Job:
    """Return a job if whoever asks may see it; otherwise there is none, for all that is told."""
    job = desk.jobs.get(name)
    token = getattr(request.state, "token", None)
    everything = token is None or "admin" in token.scopes
    if job is None or not (everything or job.owner == _owner(request)):
        raise ProblemError(
            "there is no such job, or not any more: results are kept for "
            f"{desk.settings.keep_s:g} seconds; send the scan again",
            "unknown-job",
        )
    return job


def _owner(request: Request) -> str:
    """Return what tells one token from another, also from a later one of the same name."""
    token = getattr(request.state, "token", None)
    return "" if token is None else str(token.sha256[:16])


def _told(job: Job) -> dict[str, Any]:
    href = f"/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "state": job.state,
        "share": job.share,
        "href": href,
        "result": f"{href}/result" if job.state == "done" else None,
        "problem": None if job.problem is None else dict(job.problem),
    }


def _sent(answer: Answer) -> Response:
    return Response(answer.body, media_type=answer.media_type, headers=answer.headers)


# --- what the framework refuses --------------------------------------------------------------


async def _unmatched(request: Request, error: Exception) -> Response:
    """Tell of an address that is none, or is asked in another way."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = dict(error.headers or {}).get("Allow", "")
        found = notes_of(request.scope).method
        refused = ProblemError(
            f"found {found}, expected {allowed or 'another method'}; /docs lists them", "method-not-allowed"
        )
    elif error.status_code == 404:
        refused = ProblemError("nothing is at this address; /docs lists those that there are", "not-found")
    else:
        refused = ProblemError(str(error.detail), "malformed")
    return _refused(request, refused, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    """Tell which parameters are wrong, without their values."""
    assert isinstance(error, RequestValidationError)
    listed = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return _refused(request, ProblemError("; ".join(listed), "invalid-parameters"), {})


def _refused(request: Request, error: ProblemError, headers: dict[str, str]) -> Response:
    notes = notes_of(request.scope)
    notes.problem = error.kind
    answer = problems.answered(error, notes.request_id, request.url.path.startswith("/v2"))
    answer.headers.update(headers)
    return answer
