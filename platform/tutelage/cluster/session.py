"""Starting or joining Ray, and telling its workers where our code is.

It decides how a Ray that is started here differs from Ray's defaults; one that is joined is its owner's, who
also says whether it wants a token. It does not know what Ray is wanted for.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import SettingsError, WorkspaceError

_LOGICAL_CPUS = 6
"""Ray's own actors want cores too; with only the real two of a laptop they would wait for each other."""

_MODE = "RAY_AUTH_MODE"


@contextlib.contextmanager
def session(settings: ClusterSettings) -> Iterator[None]:
    """Have a Ray to work on; one that was running before stays, one started here stops."""
    quiet()
    import ray
    from ray.exceptions import AuthenticationError, RayError

    if ray.is_initialized():
        yield
        return
    source = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        _initialize(settings, environment)
    except AuthenticationError as error:
        raise SettingsError(
            f"the Ray at {settings.address!r} wants a token, or another one; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN to the cluster's, or put that into ~/.ray/auth_token"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise WorkspaceError(
            f"no Ray at {settings.address!r}: {error}; start one with `ray start --head`, "
            "or set cluster.address=local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _initialize(settings: ClusterSettings, environment: dict[str, str]) -> None:
    import ray

    with _hushed():
        if settings.address == "local":
            with _asking_for_no_token():
                ray.init(
                    address="local",
                    num_cpus=max(_LOGICAL_CPUS, os.cpu_count() or 1),
                    include_dashboard=False,
                    object_store_memory=settings.object_store_mb * 2**20,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": environment},
                )
        else:
            package = str(Path(__file__).parents[1])
            ray.init(
                address=settings.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"py_modules": [package]},
            )


@contextlib.contextmanager
def _asking_for_no_token() -> Iterator[None]:
    """Start a Ray without tokens, unless a person wants them: it would leave a secret in the home folder.

    Only while it starts, when its processes inherit this: a cluster that is joined later has its own word.
    """
    with variables({} if _MODE in os.environ else {_MODE: "disabled"}):
        yield


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Have these variables, which processes inherit, and the former ones afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Hold back what Ray's C++ side writes to standard error; show it if something goes wrong."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def quiet() -> None:
    """Ray reads these when it is first imported: loopback only, no telemetry, no bars of its own."""
    defaults = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_BACKEND_LOG_LEVEL": "fatal",  # a Ray started here; its warnings are not about our work
        "RAY_worker_niceness": "0",  # as the command itself; at Ray's 15 any other program would starve it
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for logger in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(logger).setLevel(logging.ERROR)
