"""The segmenter on Ray Serve: how many copies, on what, and how many requests may wait.

    tutelage serve configs/quickstart.yaml            # this machine

or, on a cluster whose nodes see the specialist's folder (see `serve --help` for its own file format):

    TUTELAGE_SPECIALIST=s3://bucket/runs/x/rounds/r01/specialist serve run serve.app:app
"""

import os

from ray import serve
from starlette.types import ASGIApp

from serve.routes import application
from serve.segmenter import Segmenter

_ONGOING = 8
"""Uploads that one copy receives at a time; it segments one after another."""

_QUEUED = 32
"""Requests that may wait for a copy before the next are told 503: each can hold a whole volume."""

_PATIENCE_S = 120.0
"""A volume in flight is finished before its copy is taken down."""


class Segmenting:
    """One copy of the specialist behind the routes."""

    def __init__(self, folder: str, max_voxels: int, max_bytes: int) -> None:
        self.segmenter = Segmenter(folder, max_voxels)
        self.max_bytes = max_bytes

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return application(self.segmenter, self.max_bytes)


DEPLOYMENT: serve.Deployment = serve.deployment(
    name="segmenting",
    max_ongoing_requests=_ONGOING,
    max_queued_requests=_QUEUED,
    graceful_shutdown_timeout_s=_PATIENCE_S,
    graceful_shutdown_wait_loop_s=0.5,
    max_constructor_retry_count=2,
)(serve.ingress()(Segmenting))


def build(
    folder: str,
    max_voxels: int = 2**29,
    max_bytes: int = 512 * 10**6,
    replicas: int = 1,
    actor: dict[str, object] | None = None,
) -> serve.Application:
    """Return the application for a specialist's folder; `actor` is what each copy occupies."""
    deployment = DEPLOYMENT.options(num_replicas=replicas, ray_actor_options=actor or {"num_cpus": 1})
    return deployment.bind(folder, max_voxels, max_bytes)


def app(arguments: dict[str, str]) -> serve.Application:
    """Build from the arguments of Serve's own configuration file, or from TUTELAGE_SPECIALIST."""
    folder = arguments.get("specialist") or os.environ.get("TUTELAGE_SPECIALIST", "")
    if not folder:
        raise ValueError("no specialist named; pass the argument `specialist` or set TUTELAGE_SPECIALIST")
    return build(folder)
