"""Serving a specialist with Ray Serve: starts it, waits for it, and takes it down again.

What is served is the checkout's serve/ folder, which lies beside the package and is no
part of it; here it is found and its address handed to the workers.
"""

import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tutelage
from tutelage.cluster.session import session
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import SettingsError, WorkspaceError

_APPLICATION = "tutelage"


@dataclass(frozen=True, slots=True)
class ServeJob:
    """What is served, and where."""

    specialist: str
    """Folder of the specialist."""
    host: str
    port: int
    replicas: int
    max_bytes: int
    """Largest upload."""
    max_voxels: int


def checkout() -> Path:
    """Return the folder that holds serve/ and platform/.

    Raises:
        SettingsError: the package was installed without it.
    """
    root = Path(tutelage.__file__).parents[2]
    if not (root / "serve" / "app.py").is_file():
        raise SettingsError(
            f"{root / 'serve'} holds no app.py; serving works from a checkout: clone the repository, "
            "`make setup`, and call its .venv/bin/tutelage"
        )
    return root


def check_port(host: str, port: int) -> None:
    """Refuse a taken port before anything is started.

    Raises:
        SettingsError: nobody can listen there.
    """
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port or --host"
        ) from None


@contextmanager
def served(job: ServeJob, settings: ClusterSettings) -> Iterator[str]:
    """Have the application up, and yield its address."""
    root = checkout()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    with session(settings):
        from ray import serve

        for logger in ("ray.serve", "ray.serve.controller"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        module: Any = importlib.import_module("serve.app")
        app = module.build(
            job.specialist, job.max_voxels, job.max_bytes, job.replicas, _actor(root, settings)
        )
        serve.start(http_options={"host": job.host, "port": job.port})
        try:
            try:
                serve.run(app, name=_APPLICATION, route_prefix="/")
            except RuntimeError as error:
                raise WorkspaceError(
                    f"Ray Serve could not start {job.specialist}: {_cause(serve.status(), error)}"
                ) from error
            yield f"http://{job.host}:{job.port}"
        finally:
            # Finishes what is in flight. On a Ray that others share, their applications stay.
            serve.delete(_APPLICATION)


def wait() -> None:
    """Return on Ctrl-C or SIGTERM. Call from the main thread after everything has started."""
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        stopped.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _actor(root: Path, settings: ClusterSettings) -> dict[str, Any]:
    """What one copy occupies, and where it finds our code."""
    roots = [str(root), str(root / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "num_cpus": settings.cpus_per_actor,
        "num_gpus": settings.gpus_per_actor,
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(roots)}},
    }


def _cause(status: Any, error: BaseException) -> str:
    """The last line that a failing copy told, which names its exception; Serve's own words name no cause."""
    applications = status.applications.values()
    told = [copy.message for application in applications for copy in application.deployments.values()]
    lines = [line for line in "\n".join(told).splitlines() if line.strip()]
    return lines[-1].strip() if lines else str(error)
