"""By which name a server without tokens may be asked: a page that was turned to this machine may not."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytestmark = pytest.mark.torch

FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1:8000@evil.example",
    "10.0.0.7:8000",
    "0.0.0.0:8000",
    "[::2]",
    "[::ffff:10.0.0.7]",
    "",
]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))


@pytest.fixture
def client(tmp_path: Path) -> "TestClient":
    from starlette.testclient import TestClient

    from tests.serve.serving import application

    return TestClient(application(page=tmp_path / "no page"))


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("POST", "/v1/segment"),
        ("POST", "/v2/models/bright/infer"),
    ],
)
def test_an_open_server_is_asked_by_a_loopback_name_alone(
    client: "TestClient", host: str, method: str, path: str
) -> None:
    answer = client.request(method, path, headers={"host": host}, content=b"never read")
    assert (answer.status_code, answer.json()["type"]) == (421, "urn:tutelage:misdirected")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "serving.tokens" in answer.json()["detail"]
    assert "evil" not in answer.text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "127.8.9.1", "[::1]", "[::1]:8000"]
)
def test_loopback_names_are_answered(client: "TestClient", host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_two_names_are_none(client: "TestClient") -> None:
    hosts = [("host", "localhost"), ("host", "evil.example")]
    assert client.get("/v1/models", headers=hosts).status_code == 421


@pytest.mark.parametrize("path", ["/health", "/v2/health/live", "/v2/health/ready"])
def test_whether_it_lives_is_told_by_any_name(client: "TestClient", path: str) -> None:
    assert client.get(path, headers={"host": "10.0.0.7:8000"}).status_code == 200


def test_a_server_with_tokens_is_asked_by_any_name(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from serve.tokens import Tokens
    from tests.serve.serving import application, bearer, token_file

    file, secrets = token_file(tmp_path, ward="predict")
    with TestClient(application(tokens=Tokens(file)), headers=bearer(secrets["ward"])) as client:
        assert client.get("/v1/models", headers={"host": "segment.hospital.example"}).status_code == 200
