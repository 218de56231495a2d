"""The HTTP around the models, without Ray: addresses, limits, time, and how failures are told."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.geometry import Grid

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytestmark = pytest.mark.torch

GRID = Grid.from_spacing((10, 24, 20), (18.0, 9.0, 9.0))
MAX_BYTES = 100_000


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))


@pytest.fixture(scope="module")
def client(tiny_specialist: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TestClient]":
    from starlette.testclient import TestClient

    from serve.models import Models
    from serve.routes import application
    from tutelage.cluster.settings import ServingSettings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_SPOOL", str(tmp_path_factory.mktemp("spool")))
        settings = ServingSettings(max_mb=MAX_BYTES / 1e6, max_voxels=2**15)
        models = Models({"tiny": str(tiny_specialist)}, settings)
        with TestClient(application(models, settings, None, None), base_url="http://localhost") as client:
            yield client


@pytest.fixture
def scan(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, GRID.shape).astype(np.uint8)
    formats.write_image(str(tmp_path / "a.nii.gz"), noise, GRID)
    return (tmp_path / "a.nii.gz").read_bytes()


def test_a_scan_comes_back_as_a_mask_on_its_own_grid(
    client: "TestClient", scan: bytes, tmp_path: Path
) -> None:
    answer = client.post("/v1/segment", content=scan, params={"name": "päckchen.nii.gz"})
    assert answer.status_code == 200
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    assert formats.header(str(tmp_path / "mask.nii.gz")).grid.difference(GRID) is None
    assert answer.headers["content-disposition"].endswith("p%C3%A4ckchen.nii.gz")
    assert list(json.loads(answer.headers["x-tutelage-volumes-ml"])) == ["liver", "spleen"]
    assert answer.headers["x-tutelage-specialist"] == client.get("/health").json()["specialist"]
    assert {"receive", "queue", "read", "network"} <= json.loads(answer.headers["x-tutelage-seconds"]).keys()


def test_the_same_scan_is_answered_in_the_form_that_is_accepted(client: "TestClient", scan: bytes) -> None:
    told = client.post("/v1/segment", content=scan, headers={"accept": "application/json"}).json()
    assert [one["structure"] for one in told["structures"]] == ["liver", "spleen"]
    refused = client.post("/v1/segment", content=scan, headers={"accept": "application/dicom"})
    assert (refused.status_code, refused.json()["type"]) == (406, "urn:tutelage:not-acceptable")
    refused = client.post("/v1/segment", content=b"never read", headers={"accept": "image/png"})
    assert refused.status_code == 406


def test_label_values_can_be_looked_up(client: "TestClient") -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["name"] == "tiny"
    assert model["structures"] == [
        {"value": 1, "structure": "liver"},
        {"value": 2, "structure": "spleen"},
    ]


@pytest.mark.parametrize(
    ("content", "name", "status", "kind"),
    [
        (b"", "", 400, "unreadable-scan"),
        (b"\x1f\x8b and then nothing of use", "", 400, "unreadable-scan"),
        (b"hello", "", 415, "unknown-format"),
        (b"hello", "a.docx", 415, "unknown-format"),
        (b"x" * (MAX_BYTES + 1), "a.nii", 413, "too-large"),
        (b"x", "a" * 1001, 422, "invalid-parameters"),
    ],
    ids=["empty", "damaged", "unknown", "unknown by name", "too large", "long name"],
)
def test_failures_are_told_as_problems(
    client: "TestClient", content: bytes, name: str, status: int, kind: str
) -> None:
    answer = client.post("/v1/segment", content=content, params={"name": name})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:tutelage:{kind}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/v1/segment", 405, "method-not-allowed"),
        ("PATCH", "/health", 405, "method-not-allowed"),
        ("POST", "/v1/segment?model=nobody", 404, "unknown-model"),
        ("POST", "/v1/jobs?model=nobody", 404, "unknown-model"),
    ],
)
def test_wrong_addresses_are_told_as_problems_too(
    client: "TestClient", method: str, path: str, status: int, kind: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:tutelage:{kind}"
    assert ("allow" in answer.headers) == (status == 405)


def test_a_form_is_told_to_send_the_scan_itself(client: "TestClient", scan: bytes) -> None:
    answer = client.post("/v1/segment", files={"file": ("a.nii.gz", scan)})
    assert answer.status_code == 415
    assert "--data-binary" in answer.json()["detail"]


def test_an_upload_of_unknown_length_is_stopped_where_it_becomes_too_large() -> None:
    from tests.serve.serving import application, listening

    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):
            sent += 1
            yield b"x" * 10_000

    with listening(application(max_mb=MAX_BYTES / 1e6)) as address:
        try:
            assert httpx.post(f"{address}/v1/segment", content=endless()).status_code == 413
        except httpx.TransportError:
            assert sent < 2000  # the connection was closed on whoever goes on sending


def test_a_scan_with_too_many_voxels_says_so(client: "TestClient", tmp_path: Path) -> None:
    formats.write_image(
        str(tmp_path / "big.nii.gz"),
        np.zeros((40, 40, 40), np.uint8),
        Grid.from_spacing((40, 40, 40), (1, 1, 1)),
    )
    answer = client.post("/v1/segment", content=(tmp_path / "big.nii.gz").read_bytes())
    assert answer.status_code == 400
    assert "64000 voxels" in answer.json()["detail"]


def test_a_request_keeps_its_id_if_it_is_one(client: "TestClient") -> None:
    given = "0123456789abcdef0123456789abcdef"
    assert client.get("/health", headers={"x-request-id": given}).headers["x-request-id"] == given
    for other in ("Mueller-Hans-1951", "short", "a" * 65, "0123456789abcdef\t"):
        told = client.get("/health", headers={"x-request-id": other}).headers["x-request-id"]
        assert told != other
        assert len(told) == 32


def test_what_goes_wrong_unexpectedly_is_told_by_its_kind_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import Above, Shown, application, scan

    segmenter = Above(error=KeyError("Mueller^Hans"))
    with TestClient(application(Shown(segmenter)), base_url="http://localhost") as client:
        answer = client.post("/v1/segment", content=scan(tmp_path))
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:tutelage:failed")
        assert "Mueller" not in answer.text
        segmenter.error = MemoryError()
        answer = client.post("/v1/segment", content=scan(tmp_path))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        segmenter.error = None
        assert client.post("/v1/segment", content=scan(tmp_path)).status_code == 200
    failures = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"failure"' in line]
    assert [one["error"] for one in failures] == ["KeyError", "MemoryError"]
    assert "Mueller" not in json.dumps(failures)


def test_a_model_that_cannot_be_loaded_is_told_without_where_it_lies(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import application, scan

    with TestClient(application(), base_url="http://localhost") as client:
        answer = client.post("/v1/segment?model=broken", content=scan(tmp_path))
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tutelage:not-served")
    assert "secret" not in answer.text
    assert "retry-after" in answer.headers


def test_work_that_takes_too_long_is_told_and_ends(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import Above, Shown, application, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    with TestClient(application(Shown(slow), timeout_s=0.5), base_url="http://localhost") as client:
        began = time.monotonic()
        answer = client.post("/v1/segment", content=scan(tmp_path))
        assert time.monotonic() - began < 5
        assert (answer.status_code, answer.json()["type"]) == (504, "urn:tutelage:timed-out")
        until(lambda: slow.working == 0)
        seen = slow.windows_seen
        time.sleep(0.1)
        assert slow.windows_seen == seen
        slow.windows = 1
        assert client.post("/v1/segment", content=scan(tmp_path)).status_code == 200


def test_work_ends_when_its_client_leaves(tmp_path: Path) -> None:
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    app = application(Shown(slow), ongoing=1)
    with listening(app) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/segment", content=scan(tmp_path), timeout=0.7)
        until(lambda: slow.working == 0)
        assert 0 < slow.windows_seen < 1000
        until(lambda: app.state.desk.crew.turns.inside == 0)
        slow.windows = 1
        assert httpx.post(f"{address}/v1/segment", content=scan(tmp_path)).status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_scan_leaves_nothing_behind(tmp_path: Path) -> None:
    from tests.serve.serving import application, listening, until

    app = application()
    with listening(app) as address:
        host, port = str(urlsplit(address).netloc).split(":")
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(
                b"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
                + b"x" * 5000
            )
            until(lambda: app.state.desk.crew.turns.inside == 1)
        until(lambda: app.state.desk.crew.turns.inside == 0)
        assert httpx.get(f"{address}/health").status_code == 200


def test_only_so_many_work_and_wait_and_the_next_are_told_when_to_come_back(tmp_path: Path) -> None:
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    app = application(Shown(slow), ongoing=2, queued=2)
    content = scan(tmp_path)
    with listening(app) as address:
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(httpx.post(f"{address}/v1/segment", content=content, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        turns = app.state.desk.crew.turns
        try:
            until(lambda: (turns.working, turns.waiting) == (2, 2))
            refused = httpx.post(f"{address}/v1/segment", content=content)
            assert httpx.get(f"{address}/health").status_code == 200
        finally:
            slow.hurry.set()
        for thread in threads:
            thread.join(60)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:tutelage:busy")
    assert int(refused.headers["retry-after"]) > 0
    assert statuses == [200] * 4
    assert slow.most == 2


def test_the_documentation_loads_nothing_from_elsewhere(client: "TestClient") -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page.text
