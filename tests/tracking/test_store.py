"""Where MLflow is looked for, and how its absence is told."""

import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from tutelage.errors import TrackingError
from tutelage.storage import Place
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.store import (
    Store,
    asking,
    connect,
    fit_to_record,
    shown,
    silence,
    store_uri,
    ui_command,
    yaml_fit_to_record,
)


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
        ("http://host:five", r"tracking.uri is http://host:five, expected a server"),
        ("http://[host", r"tracking.uri is http://\[host, expected a server"),
    ],
    ids=[
        "folder",
        "file address",
        "database in no folder",
        "scheme",
        "no host",
        "almost a database",
        "port",
        "brackets",
    ],
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


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("https://me:secret@host:5000/x", "https://***@host:5000/x"),
        ("http://me@corp.org:secret@host", "http://***@host"),
        ("http://secret@host", "http://***@host"),
        *((f"postgresql://me:sec{sign}ret@host/m", "postgresql://***@host/m") for sign in "/#?@[: "),
        ("me:secret@host:5000", "***@host:5000"),
        ("http:/me:secret@host:5000", "***@host:5000"),
        ("http://host:5000", "http://host:5000"),
        ("http://[host", "http://[host"),
        ("sqlite:////tmp/me@host/mlflow.db", "sqlite:////tmp/me@host/mlflow.db"),
        ("/tmp/me@host", "/tmp/me@host"),
        ("mlruns", "mlruns"),
    ],
)
def test_passwords_are_not_shown(uri: str, told: str) -> None:
    assert shown(uri) == told


def test_a_password_that_mlflow_repeats_is_not_told(dead_port: int) -> None:
    uri = f"http://me:hunter2@127.0.0.1:{dead_port}"
    with pytest.raises(TrackingError) as caught, asking("MLflow could not log"):
        raise OSError(f"API request to {uri}/api/2.0 failed with {uri!r}: refused")
    told = f"MLflow could not log: API request to http://***@127.0.0.1:{dead_port}': refused; check"
    assert str(caught.value).startswith(told)


@pytest.mark.slow
def test_what_mlflow_itself_says_of_an_address_is_told_without_its_password(
    dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"API request to http://\*\*\*@127") as caught, asking("MLflow"):
        Store(f"http://me:hunter2@127.0.0.1:{dead_port}", None).client.search_experiments(max_results=1)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://me:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://me:hunter2@db/m", "mlflow ui --backend-store-uri 'postgresql://***@db/m'"),
    ],
)
def test_what_to_type_holds_no_password(uri: str, told: str, tmp_path: Path) -> None:
    assert ui_command(TrackingSettings(uri=uri), Place.of(tmp_path)) == told


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hun/ter2@127.0.0.1:1",
        "http://me:hun#ter2@127.0.0.1:1",
        "http://me:hun?ter2@127.0.0.1:1",
        "htp://me:hun/ter2@127.0.0.1:1",
        "me:hunter2@127.0.0.1:1",
        "postgresql://me:hun@ter2@127.0.0.1:1/m",
        "postgresql://me:hun/ter2@127.0.0.1:five/m",
    ],
)
def test_an_address_that_cannot_work_is_refused_without_its_password(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri is .*\*\*\*@127.*%2F and %40") as caught:
        silence(TrackingSettings(uri=uri), Place.of(tmp_path))
    assert not re.search("hun|ter2|five'", str(caught.value))


@pytest.mark.parametrize("sign", "/#?")
def test_a_database_is_looked_for_behind_any_password(sign: str, dead_port: int, tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"postgresql://me:hun{sign}ter2@127.0.0.1:{dead_port}/m")
    told = silence(settings, Place.of(tmp_path)) or ""
    assert told.startswith(f"no MLflow answers at postgresql://***@127.0.0.1:{dead_port}/m ([Errno")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        uri = f"postgresql://me:hun{sign}ter2@127.0.0.1:{listening.getsockname()[1]}/m"
        assert silence(TrackingSettings(uri=uri), Place.of(tmp_path)) is None


def test_a_reason_that_quotes_an_address_is_not_told(tmp_path: Path) -> None:
    uri = "http://me:1/hun ter2@127.0.0.1:1"  # read as a host, a port and a path with a space in it
    told = silence(TrackingSettings(uri=uri), Place.of(tmp_path))
    assert told == "no MLflow answers at http://***@127.0.0.1:1 (it is no address)"


def test_settings_are_recorded_without_the_password() -> None:
    settings = {"name": "torso", "tracking": {"enabled": True, "uri": "http://me:pässwort@host"}, "rounds": 2}
    fit = {"name": "torso", "tracking": {"enabled": True, "uri": "http://***@host"}, "rounds": 2}
    assert fit_to_record(settings) == fit
    assert settings["tracking"] == {"enabled": True, "uri": "http://me:pässwort@host"}
    assert yaml.safe_load(yaml_fit_to_record(yaml.safe_dump(settings))) == fit


@pytest.mark.parametrize("written", ["", "- 1", "tracking:", "a: 1 # why", "tracking: {uri: 'http://host'}"])
def test_settings_without_a_password_are_recorded_as_they_are(written: str) -> None:
    assert yaml_fit_to_record(written) == written


@pytest.mark.slow
def test_a_damaged_database_is_told_as_ours(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(TrackingError, match="not a database"):
        connect(TrackingSettings(), Place.of(tmp_path))
