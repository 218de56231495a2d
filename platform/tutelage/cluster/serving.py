"""Serving specialists with Ray Serve: starts it, waits for it, and takes it down again.

What is served is the checkout's serve/ folder, which lies beside the package and is no
part of it; here it is found and its address handed to the workers, with the folder in which
the copies of this server keep what they are working on and what they have counted.
"""

import contextlib
import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tutelage
from tutelage.cluster import front
from tutelage.cluster.session import session
from tutelage.cluster.settings import ClusterSettings, ServingSettings
from tutelage.errors import SettingsError, WorkspaceError

_APPLICATION = "tutelage"
_SCRATCH = "tutelage-serve-"
_FRONT = "tut-"
"""Short, since sockets lie in it, whose paths may not be long."""

_MEMORY = {
    # Large tensors in huge pages, where the kernel gives them to those who ask. Without, a process that
    # has lived for a while looks through the same network in 42 to 74 ms, with it in 42 to 44.
    "THP_MEM_ALLOC_ENABLE": "1",
    # The C library, where it is GNU's, keeps what all threads free in one heap, and gives nothing below
    # 256 MiB back: else each of many threads keeps a heap of its own, and requests wait for new pages.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}
"""How a copy has memory, unless whoever starts the server says otherwise."""

_FREED_S = 10.0
"""For which a port is waited for at most."""


@dataclass(frozen=True, slots=True)
class ServeJob:
    """What is served, and where."""

    sources: Mapping[str, str]
    """Name of a model -> a workspace, a specialist's folder, or models:/name@alias; the first answers
    whoever names none."""
    host: str
    port: int
    settings: ServingSettings
    tracking_uri: str | None = None
    """MLflow of models:/ addresses."""
    homes: Mapping[str, str] = field(default_factory=dict)
    """Name of a model from a registry -> the workspace that knows its stored case and its anatomy."""


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
    # Of a Ray that is started here: its workers are people's servers, no work for the background.
    os.environ.setdefault("RAY_worker_niceness", "0")
    lasting = _lasting(settings)
    with _fronted(job, lasting), session(settings), _scratch(_SCRATCH) as scratch:
        from ray import serve

        _refuse_second()
        for logger in ("ray.serve", "ray.serve.controller"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        module: Any = importlib.import_module("serve.app")
        app = module.build(
            dict(job.sources), job.settings.model_dump(), _actor(root, scratch, job), dict(job.homes)
        )
        serve.start(
            http_options={
                "host": job.host,
                "port": job.port,
                "request_timeout_s": _wall_s(job.settings),
            },
            logging_config={"enable_access_log": False},
        )
        try:
            try:
                serve.run(app, name=_APPLICATION, route_prefix="/")
            except RuntimeError as error:
                raise WorkspaceError(
                    f"Ray Serve could not start {', '.join(job.sources.values())}: "
                    f"{_cause(serve.status(), error)}"
                ) from error
            yield f"http://{job.host}:{job.port}"
        finally:
            serve.delete(_APPLICATION)  # finishes what is in flight
            if lasting:
                serve.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Have an event that Ctrl-C and SIGTERM set.

    Enter it from the main thread once everything has started, which sets handlers of its own, and before
    anybody is told so: whoever waits for that may tell us to end in the same moment.
    """
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lasting(settings: ClusterSettings) -> bool:
    """Whether Ray goes on when we are done. Imports none: a session says first how it is to start."""
    ray = sys.modules.get("ray")
    return settings.address != "local" or (ray is not None and ray.is_initialized())


def _refuse_second() -> None:
    """Refuse a Ray that serves already: there is one proxy, with the address that it was started with.

    Raises:
        WorkspaceError: somebody serves on it.
    """
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise WorkspaceError(
        "Ray Serve runs on this Ray already, with an address of its own; add an application to it with "
        "`serve deploy` (serve/app.py says how), or set cluster.address=local"
    )


def _wall_s(settings: ServingSettings) -> float:
    """When the proxy gives a request up: long after its copy, which waits, works and says why it ended."""
    return 2 * settings.timeout_s + 60


@contextmanager
def _fronted(job: ServeJob, lasting: bool) -> Iterator[None]:
    """Have HAProxy in front of a server whose Ray is started here; another Ray's owner has decided."""
    if lasting:
        yield
        return
    with _scratch(_FRONT) as folder:
        if front.available(folder):
            with front.standing(folder, _wall_s(job.settings)):
                yield
            _freed(job.host, job.port)
        else:
            yield


def _freed(host: str, port: int) -> None:
    """Wait until nobody listens: HAProxy ends a moment after Ray, and whoever ended us may start us again."""
    end = time.monotonic() + _FREED_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return
        time.sleep(0.02)


@contextmanager
def _scratch(prefix: str) -> Iterator[Path]:
    """Have a folder for this server, and remove what servers that were killed have left."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*-*"):
        if not _alive(left.name.removeprefix(prefix).split("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    """Whether a process has this number; one that cannot be asked counts as alive."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True


def _actor(root: Path, scratch: Path, job: ServeJob) -> dict[str, Any]:
    """What one copy occupies, and where it finds our code."""
    roots = [str(root), str(root / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(roots),
        "TUTELAGE_SPOOL": str(scratch / "spool"),
        "PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics"),
        **{name: os.environ.get(name, value) for name, value in _MEMORY.items()},
    }
    with contextlib.suppress(KeyError):
        environment["MLFLOW_TRACKING_URI"] = job.tracking_uri or os.environ["MLFLOW_TRACKING_URI"]
    return {
        "num_cpus": job.settings.cpus,
        "num_gpus": job.settings.gpus,
        "runtime_env": {"env_vars": environment},
    }


def _cause(status: Any, error: BaseException) -> str:
    """The last line that a failing copy told, which names its exception; Serve's own words name no cause."""
    applications = status.applications.values()
    told = [copy.message for application in applications for copy in application.deployments.values()]
    lines = [line for line in "\n".join(told).splitlines() if line.strip()]
    return lines[-1].strip() if lines else str(error)
