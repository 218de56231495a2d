"""The page at `/`: files that `make web` built, or how to build them. Knows no scans and no network.

Nothing outside the built folder can be asked for: it is flat, and a name with anything but
letters, digits, dots, dashes and underscores is none of its files. Scripts are named by
their content and kept by browsers; what names them is asked for anew each time, so a page
that is built while this serves is seen at once.
"""

import re
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

INDEX = "index.html"
LICENCES = "licences.txt"
ASSETS = "assets"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""What the built folder may hold, and what browsers are told that it is."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # the viewer's letters come as a picture inside its script
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may load and whom it may ask: this server, and nobody else."""

HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

ASK_AGAIN = "no-cache"
FOR_EVER = "public, max-age=31536000, immutable"

UNBUILT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>tutelage</title>
<main>
<h1>The server is up; its page is not built</h1>
<p>With Node 18 or newer, in the repository:</p>
<pre>make web</pre>
<p>Then load this page again. The interface works without it:</p>
<pre>curl --data-binary @scan.nii.gz "http://HOST:PORT/v1/segment?name=scan.nii.gz" -o mask.nii.gz</pre>
<p>What else can be asked: <a href="docs">docs</a>.</p>
</main>
</html>
"""
"""Told with 200: the server does what it is for, and load balancers ask `/` whether it lives."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def mount(app: FastAPI, built: Path) -> None:
    """Serve the page that was built into a folder, or say how to build it."""

    async def index(request: Request) -> Response:
        page = _file(built, INDEX, ASK_AGAIN)
        return page or HTMLResponse(UNBUILT, headers={**HEADERS, "cache-control": "no-store"})

    async def licences(request: Request) -> Response:
        return _file(built, LICENCES, ASK_AGAIN) or _missing()

    async def asset(request: Request) -> Response:
        return _file(built / ASSETS, request.path_params["name"], FOR_EVER) or _missing()

    app.add_route("/", index, include_in_schema=False)
    app.add_route(f"/{LICENCES}", licences, include_in_schema=False)
    app.add_route(f"/{ASSETS}/{{name}}", asset, include_in_schema=False)


def _file(folder: Path, name: str, caching: str) -> Response | None:
    """Return a file of a folder itself, or None if it is none, or of no kind that a page is made of."""
    path = folder / name
    known = TYPES.get(path.suffix)
    # The name first: one that is too long for a file is an error of the disk's.
    if not known or not _NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
        return None
    return FileResponse(path, media_type=known, headers={**HEADERS, "cache-control": caching})


def _missing() -> Response:
    return PlainTextResponse("there is no such file; load the page again", 404, headers=HEADERS)
