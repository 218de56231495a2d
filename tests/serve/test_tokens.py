"""Who may ask: no token, a wrong one, one for something else, and files that change meanwhile."""

import hmac
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tutelage.cluster import tokens as made_tokens
from tutelage.errors import SettingsError

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from serve.tokens import Tokens

pytestmark = pytest.mark.torch

OPEN = ["/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/"]
PREDICT = [
    ("POST", "/v1/segment"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/0123456789abcdef0123456789abcdef"),
    ("GET", "/v1/jobs/0123456789abcdef0123456789abcdef/result"),
    ("DELETE", "/v1/jobs/0123456789abcdef0123456789abcdef"),
    ("GET", "/v1/models"),
    ("GET", "/v2"),
    ("GET", "/v2/models/bright"),
    ("GET", "/v2/models/bright/versions/7/ready"),
    ("POST", "/v2/models/bright/infer"),
]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    from tests.serve.serving import token_file

    return token_file(tmp_path, ward="predict", night="predict", root="admin")[1]


@pytest.fixture
def tokens(tmp_path: Path, secrets: dict[str, str]) -> "Tokens":
    from serve.tokens import Tokens

    return Tokens(tmp_path / "tokens")


@pytest.fixture
def client(tokens: "Tokens", tmp_path: Path) -> "Iterator[TestClient]":
    from starlette.testclient import TestClient

    from tests.serve.serving import application

    with TestClient(application(tokens=tokens, page=tmp_path / "no page")) as client:
        yield client


def status(client: "TestClient", method: str, path: str, secret: str | None = None) -> int:
    from tests.serve.serving import bearer

    headers = {} if secret is None else bearer(secret)
    return int(client.request(method, path, headers=headers, content=b"").status_code)


@pytest.mark.parametrize("path", OPEN)
def test_what_tells_that_it_lives_needs_no_token(client: "TestClient", path: str) -> None:
    assert status(client, "GET", path) == 200


@pytest.mark.parametrize(("method", "path"), [*PREDICT, ("GET", "/metrics")])
def test_no_token_and_a_wrong_token_are_told_to_show_one(
    client: "TestClient", method: str, path: str, secrets: dict[str, str]
) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {secrets['ward']}"}):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["type"] == "urn:tutelage:unauthorized"


@pytest.mark.parametrize(("method", "path"), PREDICT)
def test_a_token_to_predict_opens_what_predicts(
    client: "TestClient", method: str, path: str, secrets: dict[str, str]
) -> None:
    assert status(client, method, path, secrets["ward"]) not in (401, 403)
    assert status(client, method, path, secrets["root"]) not in (401, 403)


def test_measurements_are_for_admins(client: "TestClient", secrets: dict[str, str]) -> None:
    from tests.serve.serving import bearer

    answer = client.get("/metrics", headers=bearer(secrets["ward"]))
    assert answer.status_code == 403
    assert "ward" in answer.json()["detail"]
    assert status(client, "GET", "/metrics", secrets["root"]) == 200


def test_a_body_is_not_read_for_strangers(tokens: "Tokens") -> None:
    from urllib.parse import urlsplit

    from tests.serve.serving import application, listening

    with listening(application(tokens=tokens)) as address:
        host, port = urlsplit(address).netloc.split(":")
        with socket.create_connection((host, int(port)), 10) as wire:
            wire.sendall(b"POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
            assert wire.recv(100).startswith(b"HTTP/1.1 401")  # nothing of the body was sent


def test_every_line_is_compared_in_constant_time(
    tokens: "Tokens", secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    monkeypatch.setattr("serve.tokens.hmac.compare_digest", compare)
    for secret in (secrets["ward"], "wrong"):
        compared.clear()
        tokens.who(secret)
        assert len(compared) == 3


def test_a_token_that_is_added_or_removed_counts_from_the_next_request_on(
    client: "TestClient", tmp_path: Path, secrets: dict[str, str]
) -> None:
    file = tmp_path / "tokens"
    there = made_tokens.read(file)
    secret, token = made_tokens.made("later", ["predict"])
    assert status(client, "GET", "/v1/models", secret) == 401
    made_tokens.write(file, [*there, token])
    assert status(client, "GET", "/v1/models", secret) == 200
    made_tokens.write(file, there)
    assert status(client, "GET", "/v1/models", secret) == 401
    assert status(client, "GET", "/v1/models", secrets["ward"]) == 200


@pytest.mark.parametrize("spoiled", ["gone", "damaged", "writable"])
def test_a_file_that_has_become_unusable_lets_nobody_in(
    client: "TestClient", tmp_path: Path, secrets: dict[str, str], spoiled: str
) -> None:
    file = tmp_path / "tokens"
    before = file.read_text()
    if spoiled == "gone":
        file.unlink()
    elif spoiled == "damaged":
        file.write_text("ward predict")
    else:
        file.chmod(0o666)
    assert status(client, "GET", "/v1/models", secrets["ward"]) == 401
    file.write_text(before)
    file.chmod(0o600)
    assert status(client, "GET", "/v1/models", secrets["ward"]) == 200


def test_a_file_that_others_read_is_told_about_and_one_that_others_write_is_refused(
    tmp_path: Path, secrets: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    from serve.tokens import Tokens

    os.chmod(tmp_path / "tokens", 0o644)
    with caplog.at_level(logging.WARNING):
        Tokens(tmp_path / "tokens")
    assert "chmod 600" in caplog.text
    os.chmod(tmp_path / "tokens", 0o664)
    with pytest.raises(SettingsError, match="chmod 600"):
        Tokens(tmp_path / "tokens")


def test_a_job_is_seen_by_the_token_that_made_it_and_by_admins(
    client: "TestClient", tmp_path: Path, secrets: dict[str, str]
) -> None:
    from tests.serve.serving import bearer, scan

    made = client.post("/v1/jobs", content=scan(tmp_path), headers=bearer(secrets["ward"]))
    href = made.json()["href"]
    assert status(client, "GET", href, secrets["ward"]) == 200
    assert status(client, "GET", href, secrets["night"]) == 404
    assert status(client, "GET", f"{href}/result", secrets["night"]) == 404
    assert status(client, "DELETE", href, secrets["night"]) == 404
    assert status(client, "GET", href, secrets["root"]) == 200
    assert status(client, "DELETE", href, secrets["ward"]) == 204


def test_a_later_token_of_the_same_name_does_not_see_an_earlier_ones_jobs(
    client: "TestClient", tmp_path: Path, secrets: dict[str, str]
) -> None:
    from tests.serve.serving import bearer, scan

    href = client.post("/v1/jobs", content=scan(tmp_path), headers=bearer(secrets["ward"])).json()["href"]
    secret, token = made_tokens.made("ward", ["predict"])
    made_tokens.write(tmp_path / "tokens", [token])
    assert status(client, "GET", href, secret) == 404
