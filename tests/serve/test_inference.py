"""The Open Inference Protocol: tensors of bytes in JSON and behind it, and files that are named."""

import asyncio
import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytestmark = pytest.mark.torch

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/bright/infer"


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path / "spool"))


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir()
    return folder


@pytest.fixture
def client(opened: Path) -> "Iterator[TestClient]":
    from starlette.testclient import TestClient

    from tests.serve.serving import application

    with TestClient(application(roots=(str(opened),), max_mb=1.0), base_url="http://localhost") as client:
        yield client


def asked(data: str | None = None, name: str = "scan", **more: Any) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [1]}
    if data is not None:
        tensor["data"] = [data]
    return {"inputs": [tensor], **more}


def raw(
    scan: bytes, outputs: list[dict[str, Any]] | None = None, lie: int = 0
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers with a scan behind the JSON."""
    question = asked(outputs=outputs or [])
    question["inputs"][0]["parameters"] = {"binary_data_size": 4 + len(scan) + lie}
    head = json.dumps(question).encode()
    return head + struct.pack("<I", len(scan) + lie) + scan, {LENGTH: str(len(head))}


def test_a_model_tells_what_it_takes_and_gives(client: "TestClient") -> None:
    told = client.get("/v2/models/bright").json()
    assert (told["name"], told["versions"]) == ("bright", ["7"])
    assert [one["name"] for one in told["inputs"]] == ["scan", "uri"]
    assert [one["name"] for one in told["outputs"]] == ["mask", "report"]
    assert all(one["datatype"] == "BYTES" for one in told["inputs"] + told["outputs"])
    assert client.get("/v2/models/bright/versions/7").json() == told
    assert client.get("/v2/models/bright/versions/7/ready").json() == {"name": "bright", "ready": True}
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("path", ["/v2/models/nobody", "/v2/models/bright/versions/8", "/v2/models/x/ready"])
def test_what_is_not_served_is_not_found(client: "TestClient", path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"] == answer.json()["detail"]


def test_it_is_ready_only_when_the_default_model_is(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import Shown, application

    models = Shown()
    with TestClient(application(models), base_url="http://localhost") as client:
        for path in ("/v2/health/ready", "/v2/models/bright/ready", "/health"):
            models.ready = True
            assert client.get(path).status_code == 200
            models.ready = False
            assert client.get(path).status_code == 503
        assert client.get("/v2/health/live").json() == {"live": True}


class Unasked:
    """Models of which one was never asked for: its version is known once it was loaded."""

    ready = True
    names = ("bright", "lung")

    def __init__(self) -> None:
        from tests.serve.serving import Above

        self.one = Above()
        self.loads = 0

    def get(self, name: str = "") -> Any:
        self.loads += name == "lung"
        return self.one

    def describe(self) -> list[dict[str, Any]]:
        one: dict[str, Any] = {"specialist": None, "structures": [], "since": None, "refused": None}
        return [{"name": "bright", "version": "7", **one}, {"name": "lung", "version": None, **one}]


def test_to_ask_whether_a_model_is_ready_loads_it_not_and_to_infer_does(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import application, scan

    models = Unasked()
    with TestClient(application(models), base_url="http://localhost") as client:
        for path in ("", "/ready", "/versions/7", "/versions/8/ready"):
            told = client.get(f"/v2/models/lung{path}")
            assert (told.status_code, told.json()["type"]) == (503, "urn:tutelage:not-ready")
        assert models.loads == 0
        question = asked(base64.b64encode(scan(tmp_path)).decode())
        for version, status in (("", 200), ("/versions/7", 200), ("/versions/8", 404)):
            assert client.post(f"/v2/models/lung{version}/infer", json=question).status_code == status
        assert models.loads == 3


def test_to_ask_how_it_is_waits_for_none_of_the_threads_that_all_share() -> None:
    import anyio.to_thread
    import httpx

    from tests.serve.serving import application

    app = application()

    async def statuses() -> list[int]:
        shared = anyio.to_thread.current_default_thread_limiter()
        shared.total_tokens = 1
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
            shared,
            asyncio.timeout(10),
        ):
            paths = ("/health", "/v2/health/ready", "/v2/models/bright", "/v2/models/bright/versions/7/ready")
            return [(await client.get(path)).status_code for path in paths]

    assert asyncio.run(statuses()) == [200] * 4


def test_base64_in_and_base64_out(client: "TestClient", tmp_path: Path) -> None:
    from tests.serve.serving import scan

    content = scan(tmp_path)
    answer = client.post(INFER, json=asked(base64.b64encode(content).decode(), id="a-1"))
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("bright", "7", "a-1")
    mask, report = told["outputs"]
    assert base64.b64decode(mask["data"][0]) == client.post("/v1/segment", content=content).content
    assert json.loads(report["data"][0])["structures"][0]["structure"] == "bright"
    assert answer.headers["x-tutelage-specialist"]


def test_raw_bytes_in_and_raw_bytes_out(client: "TestClient", tmp_path: Path) -> None:
    from tests.serve.serving import scan

    content = scan(tmp_path)
    body, headers = raw(content, [{"name": "mask", "parameters": {"binary_data": True}}, {"name": "report"}])
    answer = client.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    told = json.loads(answer.content[:length])
    mask, report = told["outputs"]
    behind = answer.content[length:]
    assert len(behind) == mask["parameters"]["binary_data_size"]
    assert struct.unpack("<I", behind[:4])[0] == len(behind) - 4
    assert behind[4:] == client.post("/v1/segment", content=content).content
    assert json.loads(report["data"][0])["needs_review"] is False


def test_a_raw_scan_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from serve import uploads
    from tests.serve.serving import application

    pieces: list[int] = []
    real = uploads.received

    async def received(stream: Any, *arguments: Any) -> Any:
        async def watched() -> Any:
            async for piece in stream:
                pieces.append(len(piece))
                yield piece

        return await real(watched(), *arguments)

    monkeypatch.setattr(uploads, "received", received)
    body, headers = raw(b"x" * 3_000_000)

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    from tests.serve.serving import listening

    with listening(application()) as address:
        import httpx

        answer = httpx.post(f"{address}{INFER}", content=parts(), headers=headers)
    assert answer.status_code == 415
    assert sum(pieces) == 3_000_000
    assert max(pieces) < 1_000_000


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{}", {}, 400),
        (b"not json", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"inputs": [NaN]}', {}, 400),
        (json.dumps(asked("no base64!")).encode(), {}, 400),
        (json.dumps(asked()).encode(), {}, 400),
        (json.dumps({"inputs": [{**asked("")["inputs"][0], "shape": [2]}]}).encode(), {}, 400),
        (json.dumps({"inputs": [{**asked("")["inputs"][0], "datatype": "FP32"}]}).encode(), {}, 400),
        (json.dumps({"inputs": asked("")["inputs"] * 2}).encode(), {}, 400),
        (json.dumps(asked(base64.b64encode(b"hello").decode())).encode(), {}, 415),
        (b"{}", {LENGTH: "-1"}, 400),
        (b"{}", {LENGTH: "3"}, 400),
        (b"{}", {LENGTH: "999999999"}, 413),
        (b"{}", {LENGTH: "²"}, 400),
        (raw(b"hello", lie=1)[0], raw(b"hello", lie=1)[1], 400),
        (raw(b"hello", lie=-1)[0], raw(b"hello", lie=-1)[1], 400),
        (raw(b"x" * 1_100_000)[0], raw(b"x" * 1_100_000)[1], 413),
        (json.dumps(asked("x" * 16_000_000)).encode(), {}, 413),
    ],
)
def test_what_is_no_question_of_the_protocol_is_told_so(
    client: "TestClient", body: bytes, headers: dict[str, str], status: int
) -> None:
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    answer = client.post(INFER, content=body, headers=sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"]


# --- files that are named -------------------------------------------------------------------


def named(client: "TestClient", uri: str) -> int:
    return int(client.post(INFER, json=asked(uri, "uri")).status_code)


def test_a_file_below_an_open_folder_is_read_where_it_lies(client: "TestClient", opened: Path) -> None:
    from tests.serve.serving import scan

    (opened / "deep er").mkdir()
    content = scan(opened / "deep er")
    answer = client.post(INFER, json=asked(f"file://{opened}/deep%20er/a.nii.gz", "uri"))
    assert answer.status_code == 200, answer.text
    mask = base64.b64decode(answer.json()["outputs"][0]["data"][0])
    assert mask == client.post("/v1/segment", content=content).content


def test_a_name_of_any_length_comes_back_as_one_of_a_file(client: "TestClient", opened: Path) -> None:
    (opened / "a.nii.gz").write_bytes(b"no scan")
    told = asked(f"file://{opened}/a.nii.gz", "uri")
    told["inputs"][0]["parameters"] = {"name": f"/far/away/{'x' * 100_000}.nii.gz"}
    answer = client.post(INFER, json=told)
    assert answer.status_code == 400
    assert len(answer.content) < 2000
    assert "away" not in answer.text


def test_an_address_can_come_raw_too(client: "TestClient", opened: Path) -> None:
    from tests.serve.serving import scan

    scan(opened)
    body, headers = raw(f"file://{opened}/a.nii.gz".encode())
    head = json.loads(body[: int(headers[LENGTH])])
    head["inputs"][0]["name"] = "uri"
    told = json.dumps(head).encode()
    answer = client.post(INFER, content=told + body[int(headers[LENGTH]) :], headers={LENGTH: str(len(told))})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1/a.nii.gz",
        "https://example.org/a.nii.gz",
        "ftp://example.org/a",
        "gs://bucket/a.nii.gz",
        "hdfs://name/a",
        "a.nii.gz",
        "file://elsewhere.example/{opened}/a.nii.gz",
        "file://{opened}/%00",
        "file://[/a.nii.gz",
        "file:///etc/passwd",
        "file:///etc/no-such-file",
        "file://{opened}/../secret.nii.gz",
        "file://{opened}/%2e%2e/secret.nii.gz",
        "file://{opened}2/a.nii.gz",
        "file://{opened}/link.nii.gz",
        "file://{opened}/folder/secret.nii.gz",
        "file://{opened}/loop",
        "file://{opened}/pipe",
        "file://{opened}",
        "file:///proc/self/environ",
        "file://{opened}/a\0b",
        "s3://bucket/a.nii.gz",
        "s3://bucket/a.nii.gz?endpoint_override=http://127.0.0.1:1",
        "x" * 5000,
    ],
)
def test_nothing_else_can_be_named(client: "TestClient", opened: Path, tmp_path: Path, uri: str) -> None:
    from tests.serve.serving import scan

    (tmp_path / "secret.nii.gz").write_bytes(scan(tmp_path))
    (tmp_path / "open2").mkdir()
    scan(tmp_path / "open2")
    (opened / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (opened / "folder").symlink_to(tmp_path)
    (opened / "loop").symlink_to(opened / "loop")
    os.mkfifo(opened / "pipe")
    assert named(client, uri.replace("{opened}", str(opened))) == 403


def test_a_file_that_is_not_there_is_told_only_below_open_folders(client: "TestClient", opened: Path) -> None:
    assert named(client, f"file://{opened}/none.nii.gz") == 404
    (opened / "big.nii").write_bytes(b"\0" * 1_100_000)
    assert named(client, f"file://{opened}/big.nii") == 413


def test_without_open_folders_nothing_can_be_named(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import application, scan

    scan(tmp_path)
    with TestClient(application(), base_url="http://localhost") as client:
        assert named(client, f"file://{tmp_path}/a.nii.gz") == 403


def test_a_link_that_changes_after_it_was_looked_at_leads_nowhere(
    opened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import addresses
    from serve.problems import ProblemError

    (opened / "folder").mkdir()
    (opened / "folder" / "a.nii").write_bytes(b"open")
    (tmp_path / "a.nii").write_bytes(b"secret")
    real = os.open

    def swapped(path: Any, flags: int, *more: Any) -> int:
        (opened / "folder").rename(opened / "before")
        (opened / "folder").symlink_to(tmp_path)
        return real(path, flags, *more)

    monkeypatch.setattr("serve.addresses.os.open", swapped)
    with pytest.raises(ProblemError) as refused:
        addresses.opened(f"file://{opened}/folder/a.nii", (str(opened),), 10**6)
    assert refused.value.kind == "forbidden-address"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/scans/../secret",
        "s3://bucket/scans//a",
        "s3://bucket/scans2/a",
        "s3://bucket/scans/a?endpoint_override=x",
        "s3://bucket/scans/a%2fb",
        "s3://key:word@bucket/scans/a",
        "s3://bucket/scans",
    ],
)
def test_odd_addresses_of_stores_are_refused_unasked(uri: str) -> None:
    from serve import addresses
    from serve.problems import ProblemError

    with pytest.raises(ProblemError) as refused:
        list(addresses.parts_of(uri, ("s3://bucket/scans/",), 10**6))
    assert refused.value.kind == "forbidden-address"
