"""The HTTP of the segmenter: addresses, limits, and how failures are told. Knows no Ray.

    POST /v1/segment    a scan as the body; the mask comes back on the same grid
    GET  /v1/models     who answers, and what its label values mean
    GET  /health        200 once the specialist is loaded
    GET  /docs          all of this, to try out

Failures are application/problem+json (RFC 9457): 400 unreadable, 413 too large, 415 of no
known kind, 500 ours.
"""

import asyncio
import json
import logging
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Header, Query, Request, Response

from serve.segmenter import Segmenter, UnknownFormatError, volumes
from tutelage import __version__
from tutelage.errors import ArchiveError, TutelageError

_log = logging.getLogger(__name__)

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    "responses": {
        "200": {
            "description": "A compressed NIfTI mask on the scan's own grid.",
            "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
}

_TITLES = {
    400: ("unreadable-scan", "The scan cannot be read"),
    413: ("too-large", "The scan is too large"),
    415: ("unknown-format", "The scan is of no known kind"),
    500: ("failed", "Segmenting failed"),
}


class TooLargeError(TutelageError):
    """An upload is larger than is allowed."""


def application(segmenter: Segmenter, max_bytes: int) -> FastAPI:
    """Return the web application around a segmenter."""
    app = FastAPI(title="tutelage", version=__version__, summary="Segments scans with a trained specialist.")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "specialist": segmenter.predictor.digest}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"models": [segmenter.describe()]}

    @app.post("/v1/segment", openapi_extra=_BODY, response_class=Response)
    async def segment(
        request: Request,
        name: Annotated[str, Query(description="File name; its suffix tells the format.")] = "",
        x_file_name: Annotated[str, Header(description="The same as a header.")] = "",
    ) -> Response:
        try:
            data = await received(request, max_bytes)
            # In a thread, so that /health keeps answering meanwhile.
            done = await asyncio.to_thread(segmenter, data, name or x_file_name)
        except Exception as error:  # whatever went wrong, the caller gets an answer in the same form
            return problem(error)
        return Response(
            done.mask,
            media_type="application/gzip",
            headers={
                "content-disposition": f"attachment; filename*=UTF-8''{quote(done.name)}",
                "x-tutelage-specialist": segmenter.predictor.digest,
                "x-tutelage-volumes-ml": json.dumps(volumes(done.found)),
            },
        )

    return app


async def received(request: Request, max_bytes: int) -> bytes:
    """Return the body, and stop reading as soon as it is too large."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else 0
    parts: list[bytes] = []
    if size <= max_bytes:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                break
            parts.append(part)
    if size > max_bytes:
        raise TooLargeError(
            f"the upload has {size / 1e6:.1f} MB or more, at most {max_bytes / 1e6:.1f} MB are accepted; "
            "compress it, or start `tutelage serve` with a larger --max-mb"
        )
    if not parts or not size:
        raise ArchiveError(
            "the upload is empty, expected a scan as the body; with curl use --data-binary @scan.nii.gz"
        )
    return b"".join(parts)


def problem(error: Exception) -> Response:
    """Return a failure as RFC 9457 says it; what is not the caller's fault is logged, not told."""
    status = _status(error)
    kind, title = _TITLES[status]
    detail = str(error)
    if status == 500:
        _log.error("segmenting failed", exc_info=error)
        detail = f"{type(error).__name__}; the log of the server says more"
    content = {"type": f"urn:tutelage:{kind}", "title": title, "status": status, "detail": detail}
    return Response(json.dumps(content), status, media_type="application/problem+json")


def _status(error: Exception) -> int:
    if isinstance(error, TooLargeError):
        return 413
    if isinstance(error, UnknownFormatError):
        return 415
    return 400 if isinstance(error, ArchiveError) else 500
