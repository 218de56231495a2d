"""Where MLflow is looked for, and how its absence is told."""

import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tutelage.errors import TrackingError
from tutelage.storage import Place
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.store import asking, connect, shown, silence, store_uri, ui_command


def test_a_workspace_has_its_own_database(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "runs" / "first")
    assert store_uri(TrackingSettings(), place) == f"sqlite:///{tmp_path}/runs/first/mlflow.db"
    assert ui_command(TrackingSettings(), place).startswith("mlflow ui --backend-store-uri sqlite:///")
    assert ui_command(TrackingSettings(uri="http://host:5000"), place) == "http://host:5000"


def test_a_remote_workspace_needs_a_server() -> None:
    with pytest.raises(TrackingError, match=r"set tracking\.uri to an MLflow server"):
        store_uri(TrackingSettings(), Place.of("s3://bucket/runs"))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("mlruns", "no longer keeps records in plain folders"),
        ("file:///tmp/mlruns", "no longer keeps records in plain folders"),
        ("sqlite:////nowhere/at/all/mlflow.db", "there is no folder /nowhere/at/all"),
        ("htp://host:5000", r"expected a server \(http://host:5000\) or a database"),
        ("http://", r"expected a server"),
        ("postgres://host/name", r"expected a server .* postgresql://host/name"),
    ],
    ids=["folder", "file address", "database in no folder", "scheme", "no host", "almost a database"],
)
def test_an_address_that_cannot_work_is_refused(uri: str, told: str, tmp_path: Path) -> None:
    for ask in (connect, silence):
        with pytest.raises(TrackingError, match=told):
            ask(TrackingSettings(uri=uri), Place.of(tmp_path))


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_down_is_told_within_seconds(scheme: str, dead_port: int, tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"{scheme}://127.0.0.1:{dead_port}")
    started = time.monotonic()  # MLflow by itself would try for minutes
    told = f"no MLflow answers at {re.escape(scheme)}://127.0.0.1:{dead_port}"
    with pytest.raises(TrackingError, match=f"{told}.* start it, correct tracking.uri"):
        connect(settings, Place.of(tmp_path))
    assert re.match(told, silence(settings, Place.of(tmp_path)) or "")
    assert time.monotonic() - started < 30


class Healthy(BaseHTTPRequestHandler):
    """Says that it is there."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def test_a_server_that_knows_its_users_is_found(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        settings = TrackingSettings(uri=f"http://me:secret@127.0.0.1:{server.server_port}")
        assert silence(settings, Place.of(tmp_path)) is None


def test_who_answers_in_another_language_is_no_mlflow(tmp_path: Path) -> None:
    def answer() -> None:
        with listening.accept()[0] as caller:
            caller.recv(1000)
            caller.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, daemon=True).start()
        settings = TrackingSettings(uri=f"http://me:secret@127.0.0.1:{listening.getsockname()[1]}")
        told = silence(settings, Place.of(tmp_path))
    assert told is not None
    assert re.match(r"no MLflow answers at http://\*\*\*@127\.0\.0\.1:\d+ \(SSH", told)


def test_nobody_asks_for_a_server_where_nothing_is_recorded(dead_port: int, tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"http://127.0.0.1:{dead_port}", enabled=False)
    assert silence(settings, Place.of(tmp_path)) is None


def test_a_failure_is_told_in_one_line_with_what_to_do() -> None:
    with pytest.raises(TrackingError) as caught, asking("MLflow could not log"):
        raise OSError("disk full\nmany more lines")
    assert str(caught.value).startswith("MLflow could not log: disk full; check tracking.uri")


def test_passwords_are_not_shown() -> None:
    assert shown("https://me:secret@host:5000/x") == "https://***@host:5000/x"
    assert shown("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"


@pytest.mark.slow
def test_a_damaged_database_is_told_as_ours(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(TrackingError, match="not a database"):
        connect(TrackingSettings(), Place.of(tmp_path))
