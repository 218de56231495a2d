"""Which MLflow to speak to, and how its failures are told.

It decides where the database and the artifacts of a workspace lie and finds out at the
start whether a server answers. An address that can never work is an error, a server that is
silent now is news. A password in an address is for MLflow alone: neither a message nor a record
repeats it. It knows nothing about campaigns or specialists. MLflow's own defaults (a
database in the working directory, minutes of asking again, usage statistics sent home) are
never relied on: every call carries the address.
"""

import contextlib
import logging
import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import yaml

from tutelage.errors import TrackingError
from tutelage.storage import Place
from tutelage.tracking.settings import TrackingSettings

_TIMEOUT_S = 10.0
_SQLITE = "sqlite:///"

_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases that MLflow speaks to directly, and where they listen unless told."""

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow would try 7 times, 120 s each; it reads these at every request. Who has set them is obeyed."""

_SECRET = re.compile(r"(?<=://)[^\s/].*@", re.DOTALL)
"""User and password in a text. A password may hold any sign, also @ and /, and so it ends with the last @:
an address with an @ further on loses more than it must. A file's address begins with a third slash."""

_SERVER_USER = re.compile(r"(?<=://)[^/?#]*@")
"""User and password as requests will read a server's address."""

_DATABASE_USER = re.compile(r"(?<=://)[^:/]*(:[^@]*)?@")
"""User and password as SQLAlchemy will read a database's address."""


@dataclass(frozen=True)
class Store:
    """An MLflow that answers."""

    uri: str
    artifacts: str | None
    """Folder for new experiments' artifacts; None leaves it to the server."""

    @cached_property
    def client(self) -> Any:
        """MLflow's client of this store."""
        return load_mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def fetch(self, uri: str, into: Path) -> Path:
        """Copy artifacts into a folder and return where they are."""
        fetched = load_mlflow().artifacts.download_artifacts(
            artifact_uri=uri, dst_path=str(into), tracking_uri=self.uri, registry_uri=self.uri
        )
        return Path(fetched)


def load_mlflow() -> Any:
    """Import MLflow quietly: no usage statistics, no lines about tables it makes or requests it repeats."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_UV_AUTO_DETECT": "false",  # else a model gets what project lies in the working directory
        **_PATIENCE,
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def connect(settings: TrackingSettings, workspace: Place) -> Store:
    """Return the store that settings name, or the workspace's own.

    Raises:
        TrackingError: it does not answer, or there is no place for it.
    """
    uri = store_uri(settings, workspace)
    _check(uri)
    in_database = uri.startswith(_SQLITE) or _port(uri) is not None
    store = Store(uri, str(workspace / "mlartifacts") if in_database else None)
    with asking(f"MLflow at {shown(uri)}"):
        # The first call makes or migrates a database's tables, and shows whether a server lets us in.
        store.client.search_experiments(max_results=1)
    return store


def silence(settings: TrackingSettings, workspace: Place) -> str | None:
    """Return why MLflow cannot answer now, or None; takes seconds at most and imports no MLflow.

    Raises:
        TrackingError: the address can never work.
    """
    if not settings.enabled:
        return None
    uri = store_uri(settings, workspace)
    _refuse_mistakes(uri)
    return _silence(uri)


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
    """Return what to type, or which page to open, to look at the record.

    It lands in terminals, pages and MLflow itself: who follows it puts in a password of their own.
    """
    uri = shown(store_uri(settings, workspace))
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
        first = without_passwords((str(error).strip() or type(error).__name__).splitlines()[0])
        raise TrackingError(
            f"{what}: {first}; check tracking.uri, or set tracking.enabled to false"
        ) from error


def shown(uri: str) -> str:
    """Return an address fit for a message or a log: without a password."""
    if "://" in uri or uri.startswith("/"):
        return without_passwords(uri)
    _, at, host = uri.rpartition("@")  # somebody forgot the scheme, or a slash of it
    return f"***@{host}" if at else uri


def without_passwords(text: str) -> str:
    """Return a text that may repeat addresses, as MLflow's own messages do, without their passwords."""
    return _SECRET.sub("***@", text)


def fit_to_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a campaign's settings, nested as they are in YAML, without the password in `tracking.uri`."""
    tracking = settings.get("tracking")
    if not isinstance(tracking, Mapping) or not isinstance(tracking.get("uri"), str):
        return dict(settings)
    return {**settings, "tracking": {**tracking, "uri": shown(tracking["uri"])}}


def yaml_fit_to_record(written: str) -> str:
    """Return a YAML file of settings without the password; as it is where it holds none."""
    settings = yaml.safe_load(written)
    if not isinstance(settings, Mapping) or (fit := fit_to_record(settings)) == settings:
        return written
    return str(yaml.safe_dump(fit, sort_keys=False))


def _check(uri: str) -> None:
    """Fail in seconds: MLflow itself would retry for minutes."""
    _refuse_mistakes(uri)
    if reason := _silence(uri):
        raise TrackingError(f"{reason}; start it, correct tracking.uri, or set tracking.enabled to false")


def _refuse_mistakes(uri: str) -> None:
    if uri.startswith(_SQLITE):
        folder = Path(uri.removeprefix(_SQLITE)).parent
        if not folder.is_dir():
            raise TrackingError(f"tracking.uri is {uri}, but there is no folder {folder}; make it first")
    elif not (uri.startswith("databricks") or ((_is_server(uri) or _port(uri)) and _has_host(uri))):
        raise TrackingError(
            f"tracking.uri is {shown(uri)}, expected a server (http://host:5000) or a database "
            "(sqlite:////folder/mlflow.db, postgresql://host/name), with / and @ in a password as %2F and "
            "%40; MLflow no longer keeps records in plain folders"
        )


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _port(uri: str) -> int | None:
    """Where a database listens by itself; None of what is no such database."""
    scheme, sign, _ = uri.partition("://")
    return _DATABASES.get(scheme.partition("+")[0]) if sign else None


def _bare(uri: str) -> str:
    """Return an address without user and password, read as MLflow will read it."""
    return (_SERVER_USER if _is_server(uri) else _DATABASE_USER).sub("", uri, count=1)


def _has_host(uri: str) -> bool:
    """Whether an address leads anywhere. Where a password is not quoted, a part of it passes for the host."""
    try:
        parts = urlsplit(_bare(uri))
        return bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:  # the port is no number, or an address in brackets is none
        return False


def _silence(uri: str) -> str | None:
    bare = _bare(uri)  # urllib would take a user for a part of the host
    try:
        if _is_server(uri):
            urlopen(f"{bare.rstrip('/')}/health", timeout=_TIMEOUT_S).close()
        elif port := _port(uri):
            parts = urlsplit(bare)
            socket.create_connection((parts.hostname or "", parts.port or port), _TIMEOUT_S).close()
    except HTTPError:
        return None  # Something answers; whether it is MLflow and lets us in, the first call will tell.
    except (InvalidURL, ValueError):  # these quote what they cannot read, which may be of a password
        return f"no MLflow answers at {shown(uri)} (it is no address)"
    except (URLError, HTTPException, OSError) as error:
        return f"no MLflow answers at {shown(uri)} ({getattr(error, 'reason', error)})"
    return None
