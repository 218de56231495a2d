"""Which MLflow to speak to, and how its failures are told.

It decides where the database and the artifacts of a workspace lie and finds out at the
start whether a server answers. It knows nothing about campaigns or specialists. MLflow's
own defaults (a database in the working directory, usage statistics sent home) are never
relied on: every call carries the address.
"""

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from tutelage.errors import TrackingError
from tutelage.storage import Place
from tutelage.tracking.settings import TrackingSettings

_TIMEOUT_S = 10.0
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Store:
    """An MLflow that answers."""

    uri: str
    artifacts: str | None
    """Folder for new experiments' artifacts; None leaves it to the server."""

    @cached_property
    def client(self) -> Any:
        """MLflow's client of this store."""
        return _mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def fetch(self, uri: str, into: Path) -> Path:
        """Copy artifacts into a folder and return where they are."""
        fetched = _mlflow().artifacts.download_artifacts(
            artifact_uri=uri, dst_path=str(into), tracking_uri=self.uri, registry_uri=self.uri
        )
        return Path(fetched)


def connect(settings: TrackingSettings, workspace: Place) -> Store:
    """Return the store that settings name, or the workspace's own.

    Raises:
        TrackingError: it does not answer, or there is no place for it.
    """
    uri = store_uri(settings, workspace)
    _check(uri)
    local = workspace.local
    in_database = uri.startswith("sqlite")
    store = Store(uri, str(local / "mlartifacts") if local and in_database else None)
    with asking(f"MLflow at {shown(uri)}"):
        # The first call makes or migrates a database's tables, and shows whether a server lets us in.
        store.client.search_experiments(max_results=1)
    return store


def reachable(settings: TrackingSettings, workspace: Place) -> None:
    """Raise TrackingError if MLflow cannot answer; takes seconds at most and imports no MLflow."""
    if settings.enabled:
        _check(store_uri(settings, workspace))


def store_uri(settings: TrackingSettings, workspace: Place) -> str:
    """Return MLflow's address; a workspace's own database is made when it is first used."""
    if settings.uri is not None:
        return settings.uri
    if workspace.local is None:
        raise TrackingError(
            f"workspace {workspace} is remote, where MLflow's database cannot lie; "
            "set tracking.uri to an MLflow server, or tracking.enabled to false"
        )
    workspace.make_folder()
    return f"{_SQLITE}{workspace.local / 'mlflow.db'}"


def ui_command(settings: TrackingSettings, workspace: Place) -> str:
    """Return what to type, or which page to open, to look at the record."""
    uri = store_uri(settings, workspace)
    if uri.startswith("http"):
        return uri
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Tell any failure of MLflow as ours: it lets through errors of requests, SQLAlchemy and the disk."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackingError(
            f"{what}: {first}; check tracking.uri, or set tracking.enabled to false"
        ) from error


def shown(uri: str) -> str:
    """Return an address fit for a message or a log: without a password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return uri.replace(parts.netloc, "***@" + parts.netloc.rpartition("@")[2], 1)


def _check(uri: str) -> None:
    """Fail in seconds: MLflow itself would retry for minutes."""
    if uri.startswith(_SQLITE):
        folder = Path(uri.removeprefix(_SQLITE)).parent
        if not folder.is_dir():
            raise TrackingError(f"tracking.uri is {uri}, but there is no folder {folder}; make it first")
    elif uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith("file:") or ("://" not in uri and uri != "databricks"):
        raise TrackingError(
            f"tracking.uri is {shown(uri)}, expected a server (http://host:5000) or a database "
            "(sqlite:////folder/mlflow.db); MLflow no longer keeps records in plain folders"
        )


def _check_server(uri: str) -> None:
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S):
            return
    except HTTPError:
        return  # Something answers; whether it is MLflow and lets us in, the first call will tell.
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"no MLflow answers at {shown(uri)} ({reason}); start it, correct tracking.uri, "
            "or set tracking.enabled to false"
        ) from None


def _mlflow() -> Any:
    """Import MLflow quietly: no usage statistics, no lines about tables it makes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
