"""The client against a server that does as a test says: what is sent, tried again, raised and written."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tutelage.client import Client, Job
from tutelage.errors import BusyError, ForbiddenError, RefusedError, ServerError, UnreachableError

TOLD = {
    "content-type": "application/gzip",
    "x-request-id": "0123456789abcdef",
    "x-tutelage-model": "liver",
    "x-tutelage-specialist": "abc",
    "x-tutelage-volumes-ml": '{"liver": 1.5, "spleen": 0.0}',
    "x-tutelage-review": '["spleen"]',
    "x-tutelage-seconds": '{"network": 0.5}',
}


@dataclass
class Said:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """One answer; of `cut` only the first bytes are sent."""

    status: int = 200
    body: bytes = b"mask"
    headers: dict[str, str] = field(default_factory=lambda: dict(TOLD))
    cut: int | None = None


def problem(status: int, kind: str, detail: str, **headers: str) -> Reply:
    told = {"type": f"urn:tutelage:{kind}", "title": kind, "status": status, "detail": detail}
    told |= {"request_id": "fedcba9876543210"}
    return Reply(status, json.dumps(told).encode(), {"content-type": "application/problem+json", **headers})


def answer(content: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"content-type": "application/json"})


@dataclass
class Server:
    """Gives the replies that a test has laid out, the last one again and again."""

    url: str
    replies: list[Reply]
    said: list[Said]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            told.said.append(Said(self.command, self.path, headers, body))
            reply = told.replies.pop(0) if len(told.replies) > 1 else told.replies[0]
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        def do_GET(self) -> None:
            self.headers["content-length"] = "0"
            self.do_POST()

        do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Server(f"http://127.0.0.1:{listening.server_port}", [Reply()], [])
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield told
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "Mueller_Hans.nii.gz"
    path.write_bytes(b"voxels" * 100_000)
    return path


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make pauses pass at once, and keep how long they were."""
    kept: list[float] = []
    monkeypatch.setattr("tutelage.client.time.sleep", kept.append)
    return kept


# --- what is sent and written ---------------------------------------------------------------


def test_a_scan_is_sent_whole_and_the_answer_is_a_file(server: Server, scan: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with Client(server.url + "/", "secret") as client:
        answer = client.segment(
            scan, tmp_path / "new" / "mask.nii.gz", model="liver", progress=lambda *told: seen.append(told)
        )
    (said,) = server.said
    assert said.body == scan.read_bytes()
    assert said.path == "/v1/segment?model=liver"
    assert said.headers["authorization"] == "Bearer secret"
    assert said.headers["accept"] == "application/gzip"
    assert (tmp_path / "new" / "mask.nii.gz").read_bytes() == b"mask"
    assert answer.volumes_ml == {"liver": 1.5, "spleen": 0.0}
    assert (answer.model, answer.specialist, answer.needs_review) == ("liver", "abc", ("spleen",))
    assert answer.seconds == {"network": 0.5}
    assert answer.request_id == "0123456789abcdef"
    sent = [done for stage, done, total in seen if stage == "sending" and total == 600_000]
    assert sent == sorted(sent)
    assert len(sent) > 1
    assert sent[-1] == 600_000
    assert seen[-1] == ("receiving", 4, 4)


def test_what_a_scan_is_called_stays_here(server: Server, scan: Path, tmp_path: Path) -> None:
    with Client(server.url) as client:
        client.segment(scan, tmp_path / "mask.nii.gz")
        client.segment(scan.rename(tmp_path / "Müller 1.5.ZIP"), tmp_path / "mask.nii.gz")
    told = [f"{said.path} {said.headers}" for said in server.said]
    assert [said.headers["x-file-name"] for said in server.said] == ["scan.nii.gz", "scan.zip"]
    assert not [text for text in told if "ller" in text]


def test_without_a_token_none_is_sent(server: Server, scan: Path, tmp_path: Path) -> None:
    server.replies = [Reply(headers=TOLD | {"content-type": "application/dicom"})]
    with Client(server.url) as client:
        client.segment(scan, tmp_path / "mask.nii.gz", accept="dicom-seg")
    assert "authorization" not in server.said[0].headers
    assert server.said[0].headers["accept"] == "application/dicom"


def test_an_answer_that_breaks_off_leaves_the_old_file_and_is_asked_for_again(
    server: Server, scan: Path, tmp_path: Path, pauses: list[float]
) -> None:
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"old")
    server.replies = [Reply(body=b"x" * 1000, cut=10)]
    with Client(server.url) as client, pytest.raises(UnreachableError):
        client.segment(scan, out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Mueller_Hans.nii.gz", "mask.nii.gz"]
    server.replies = [Reply(body=b"x" * 1000, cut=10), Reply()]
    with Client(server.url) as client:
        client.segment(scan, out)
    assert out.read_bytes() == b"mask"


def test_a_scan_that_is_not_there_is_told_before_anybody_is_asked(server: Server, tmp_path: Path) -> None:
    with Client(server.url) as client, pytest.raises(RefusedError, match=r"scan\.nii cannot be read"):
        client.segment(tmp_path / "scan.nii", tmp_path / "mask.nii.gz")
    assert server.said == []


# --- what is tried again --------------------------------------------------------------------


def test_a_full_server_is_asked_again_when_it_said(
    server: Server, scan: Path, tmp_path: Path, pauses: list[float]
) -> None:
    full = problem(503, "busy", "come back", **{"retry-after": "7"})
    server.replies = [full, full, Reply()]
    with Client(server.url) as client:
        client.segment(scan, tmp_path / "mask.nii.gz")
    assert pauses == [7.0, 7.0]
    assert [said.body for said in server.said] == [scan.read_bytes()] * 3


def test_patience_ends(server: Server, scan: Path, tmp_path: Path, pauses: list[float]) -> None:
    server.replies = [problem(503, "busy", "40 requests are worked on", **{"retry-after": "7"})]
    with (
        Client(server.url, patience_s=6) as client,
        pytest.raises(BusyError, match="40 requests are worked on") as raised,
    ):
        client.segment(scan, tmp_path / "mask.nii.gz")
    assert pauses == []
    assert (raised.value.status, raised.value.kind) == (503, "busy")
    assert raised.value.request_id == "fedcba9876543210"
    assert not (tmp_path / "mask.nii.gz").exists()


def test_proxies_that_say_no_more_than_a_number_are_asked_again_a_few_times(
    server: Server, scan: Path, tmp_path: Path, pauses: list[float]
) -> None:
    died = Reply(500, b"Internal Server Error", {"content-type": "text/plain"})
    server.replies = [died, died, Reply()]
    with Client(server.url) as client:
        client.segment(scan, tmp_path / "mask.nii.gz")
        server.replies, before = [died], len(server.said)
        with pytest.raises(ServerError, match="Internal Server Error"):
            client.segment(scan, tmp_path / "mask.nii.gz")
    assert len(server.said) - before == 5


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "unreadable-scan", RefusedError),
        (404, "unknown-model", RefusedError),
        (413, "too-large", RefusedError),
        (401, "unauthorized", ForbiddenError),
        (403, "forbidden", ForbiddenError),
        (500, "failed", ServerError),
        (504, "timed-out", ServerError),
    ],
)
def test_what_would_be_the_same_again_is_not_asked_again(
    server: Server,
    scan: Path,
    tmp_path: Path,
    pauses: list[float],
    status: int,
    kind: str,
    error: type[ServerError],
) -> None:
    server.replies = [problem(status, kind, "found 3, expected 4")]
    with Client(server.url) as client, pytest.raises(error, match="found 3, expected 4") as raised:
        client.segment(scan, tmp_path / "mask.nii.gz")
    assert type(raised.value) is error
    assert (raised.value.status, raised.value.kind) == (status, kind)
    assert len(server.said) == 1
    assert pauses == []


def test_a_server_that_never_was_there_is_told_at_once(
    dead_port: int, scan: Path, tmp_path: Path, pauses: list[float]
) -> None:
    with (
        Client(f"http://127.0.0.1:{dead_port}") as client,
        pytest.raises(UnreachableError, match=f"127.0.0.1:{dead_port} does not answer"),
    ):
        client.segment(scan, tmp_path / "mask.nii.gz")
    assert pauses == []


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000", "ftp://host", "http://", "http://me:secret@host"),
        *("http://[::1", "http://host:abc", "http://xn--/", "http://host\r", "http://me:secret@[::1"),
    ],
)
def test_addresses_that_are_none_are_refused_and_passwords_not_repeated(url: str) -> None:
    with pytest.raises(RefusedError) as raised:
        Client(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("token", ["tutelage_SECRET\r", "SECRET SECRET", "SECRETÄ", "SECRET\n"])
def test_a_token_that_is_none_is_refused_before_anybody_is_asked_and_not_repeated(token: str) -> None:
    with pytest.raises(RefusedError, match="the token holds") as raised:
        Client("http://127.0.0.1:8000", token)
    assert "SECRET" not in str(raised.value)


PAGE = Reply(body=b"<html>log in</html>", headers={"content-type": "text/html; charset=utf-8"})
MASK_OF_NOBODY = Reply(headers={"content-type": "application/gzip"})


@pytest.mark.parametrize("reply", [PAGE, MASK_OF_NOBODY], ids=["a portal's page", "another server's file"])
def test_what_no_server_of_ours_answers_is_no_mask(
    server: Server, scan: Path, tmp_path: Path, reply: Reply
) -> None:
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"old")
    server.replies = [reply]
    with Client(server.url) as client, pytest.raises(ServerError, match="which is not what a server of"):
        client.segment(scan, out)
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    "reply", [PAGE, answer({"other": 1}), Reply(body=b"[1]")], ids=["page", "other", "list"]
)
def test_what_no_server_of_ours_tells_is_an_error_of_the_server(
    server: Server, scan: Path, reply: Reply
) -> None:
    server.replies = [reply]
    with Client(server.url) as client:
        for ask in (client.models, lambda: client.submit(scan), lambda: client.state(Job("7", "/v1/jobs/7"))):
            with pytest.raises(ServerError, match="is it the address of one"):
                ask()


def test_a_problem_that_is_cut_off_is_told_by_its_status(server: Server) -> None:
    server.replies = [Reply(404, b'{"detail": "no', {"content-type": "application/problem+json"})]
    with Client(server.url) as client, pytest.raises(RefusedError) as raised:
        client.models()
    assert raised.value.status == 404


# --- jobs and models ------------------------------------------------------------------------


def test_a_job_is_waited_for_and_its_result_written(
    server: Server, scan: Path, tmp_path: Path, pauses: list[float]
) -> None:
    href = "/v1/jobs/7"
    server.replies = [
        answer({"id": "7", "state": "queued", "href": href}, 202),
        answer({"id": "7", "state": "queued", "share": 0.0}),
        answer({"id": "7", "state": "running", "share": 0.25}),
        answer({"id": "7", "state": "done", "share": 1.0, "result": f"{href}/result"}),
        Reply(),
        answer({"id": "7"}),
    ]
    seen: list[tuple[str, int, int]] = []
    with Client(server.url) as client:
        job = client.submit(scan, model="liver")
        client.wait(job, tmp_path / "mask.nii.gz", progress=lambda *told: seen.append(told))
        client.cancel(job)
    assert job == Job("7", href)
    assert [(said.method, said.path) for said in server.said] == [
        ("POST", "/v1/jobs?model=liver"),
        *[("GET", href)] * 3,
        ("GET", f"{href}/result"),
        ("DELETE", href),
    ]
    assert ("working", 250, 1000) in seen
    assert (tmp_path / "mask.nii.gz").read_bytes() == b"mask"


def test_a_job_that_failed_raises_what_its_problem_says(server: Server, tmp_path: Path) -> None:
    told = {"type": "urn:tutelage:unreadable-scan", "status": 400, "detail": "it is cut off"}
    server.replies = [answer({"id": "7", "state": "failed", "share": 0.5, "problem": told})]
    with Client(server.url) as client, pytest.raises(RefusedError, match="it is cut off") as raised:
        client.wait(Job("7", "/v1/jobs/7"), tmp_path / "mask.nii.gz")
    assert raised.value.kind == "unreadable-scan"


def test_models_are_listed(server: Server) -> None:
    server.replies = [answer({"models": [{"name": "liver"}]})]
    with Client(server.url) as client:
        assert client.models() == [{"name": "liver"}]


# --- the command ----------------------------------------------------------------------------

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.files
def test_predict_by_a_server_writes_what_predict_here_would(
    call: Call, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from tutelage.archive import formats
    from tutelage.geometry import Grid

    grid = Grid.from_spacing((4, 6, 8), (2.0, 1.0, 1.0))
    mask_DHW = np.zeros(grid.shape, np.uint8)
    mask_DHW[1, 2:4, 3:5] = 1
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        formats.write_image(str(scans / name), np.ones(grid.shape, np.float32), grid)
    (scans / "series.zip").write_bytes(b"PK")
    server.replies = [
        Reply(body=formats.image_bytes(mask_DHW, grid, ".nii.gz")),
        problem(400, "unreadable-scan", "it is cut off"),
        Reply(body=formats.image_bytes(mask_DHW, grid, ".nii.gz")),
    ]
    monkeypatch.setenv("TUTELAGE_TOKEN", "secret")
    out = tmp_path / "out"
    code, told, err = call("predict", "-i", scans, "-o", out, "--url", server.url, "--json")
    assert code == 3
    assert "2 masks written, 1 scans failed" in err
    assert "b.nii.gz: it is cut off" in err
    result = json.loads(told)
    assert [one["mask"] is None for one in result["predictions"]] == [False, True, False]
    described = json.loads((out / "a.json").read_text())
    assert described["structures"] == [
        {"structure": "liver", "value": 1, "voxels": 4, "volume_ml": 0.008},
        {"structure": "spleen", "value": 2, "voxels": 0, "volume_ml": 0.0},
    ]
    assert described["image_digest"] == formats.read_image(str(scans / "a.nii.gz")).digest
    assert described["specialist"] == "abc"
    assert (out / "series.nii.gz").exists()
    assert {said.headers["authorization"] for said in server.said} == {"Bearer secret"}


@pytest.mark.files
def test_a_token_comes_from_a_file_and_a_server_that_refuses_it_ends_the_command(
    call: Call, server: Server, tmp_path: Path
) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"scan")
    token = tmp_path / "token"
    token.write_text("secret\n")
    server.replies = [problem(401, "unauthorized", "found an unknown token")]
    told = ("predict", "-i", tmp_path, "-o", tmp_path / "out", "--url", server.url, "--token-file")
    code, out, err = call(*told, token)
    assert (code, len(server.said)) == (2, 1)
    assert server.said[0].headers["authorization"] == "Bearer secret"
    assert "found an unknown token" in err
    assert "secret" not in out + err
    token.write_text("two words")
    assert "holds 2 words, expected one token" in call(*told, token)[2]


@pytest.mark.files
def test_a_token_of_the_environment_may_end_with_its_line(
    server: Server, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"scan")
    monkeypatch.setenv("TUTELAGE_TOKEN", "secret\r\n")
    server.replies = [problem(401, "unauthorized", "found an unknown token")]
    call("predict", "-i", tmp_path / "a.nii.gz", "-o", tmp_path / "mask.nii.gz", "--url", server.url)
    assert [said.headers["authorization"] for said in server.said] == ["Bearer secret"]


def test_a_token_without_a_server_is_a_mistake(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"scan")
    code, _, err = call("predict", "-i", tmp_path, "-o", tmp_path / "out", "--token-file", tmp_path / "t")
    assert code == 2
    assert "--token-file is for a server" in err


@pytest.mark.process
def test_the_client_loads_neither_torch_nor_ray_nor_numpy() -> None:
    told = "import sys, tutelage.client; print({'torch', 'ray', 'numpy', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
