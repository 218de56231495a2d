"""An S3-compatible store that writes down who asked for what: moto's server, and a line for every request.

    python tests/cluster/store.py HOST PORT BUCKET LOG

Who asked is the key that a request is signed with, which is any word, and the address that it came from. It
makes the bucket itself, and does not know what is kept in it.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import Client

_KEY = re.compile(r"Credential=([^/]+)/")

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def noting(application: Application, log: Path) -> Application:
    """Return an application that notes what it is asked: key, address, verb and path."""

    def noted(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        key = _KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
        words = (
            key[1] if key else "-", environ["REMOTE_ADDR"], environ["REQUEST_METHOD"], environ["PATH_INFO"],
        )  # fmt: skip
        answer = application(environ, start)
        with log.open("a") as stream:  # a line at a time is written whole, whichever thread does it
            stream.write(" ".join(words) + "\n")
        return answer

    return noted


def main(host: str, port: str, bucket: str, log: str) -> None:
    """Serve until killed."""
    application = DomainDispatcherApplication(create_backend_app)
    Client(application).put(f"/{bucket}", base_url=f"http://{host}:{port}")
    run_simple(host, int(port), noting(application, Path(log)), threaded=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
