"""Where MLflow is looked for, and how its absence is told."""

import re
import time
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
    started = time.monotonic()
    told = f"no MLflow answers at {re.escape(scheme)}://127.0.0.1:{dead_port}"
    with pytest.raises(TrackingError, match=f"{told}.* start it, correct tracking.uri"):
        connect(settings, Place.of(tmp_path))
    assert re.match(told, silence(settings, Place.of(tmp_path)) or "")
    assert time.monotonic() - started < 5


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
