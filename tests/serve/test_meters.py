"""What is measured and what is logged: enough to run a server by, and nothing about patients."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytestmark = pytest.mark.torch

SECRET = "Mueller-Hans-19510203"


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
def client(tmp_path: Path) -> "Iterator[TestClient]":
    from starlette.testclient import TestClient

    from tests.serve.serving import application

    with TestClient(application(), base_url="http://localhost") as client:
        yield client


def measured(client: "TestClient") -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    text = client.get("/metrics").text
    return {
        f"{one.name}{json.dumps(one.labels)}" if one.labels else one.name: one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_requests_stages_windows_and_refusals_are_counted(client: "TestClient", tmp_path: Path) -> None:
    from tests.serve.serving import scan

    content = scan(tmp_path)
    for _ in range(3):
        client.post("/v1/segment", content=content)
    client.post("/v1/segment", content=b"hello")
    found = measured(client)
    route = '"method": "POST", "route": "/v1/segment"'
    assert found[f'tutelage_requests_total{{{route}, "status": "200"}}'] == 3
    assert found[f'tutelage_requests_total{{{route}, "status": "415"}}'] == 1
    assert found['tutelage_refusals_total{"kind": "unknown-format"}'] == 1
    for stage in ("receive", "queue", "read", "network", "answer"):
        assert found[f'tutelage_stage_duration_seconds_count{{"stage": "{stage}"}}'] >= 3
    assert found['tutelage_windows_total{"model": "bright"}'] == 3
    assert found['tutelage_batches_total{"model": "bright"}'] == 3
    assert found["tutelage_received_bytes_total"] == 3 * len(content) + len(b"hello")
    assert found["tutelage_scans_in_flight"] == 0
    assert found["tutelage_scans_waiting"] == 0


def test_the_queue_and_jobs_are_measured_while_they_are_there(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import Above, Shown, application, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    with TestClient(application(Shown(slow), ongoing=1), base_url="http://localhost") as client:
        content = scan(tmp_path)
        for _ in range(2):
            client.post("/v1/jobs", content=content)
        until(lambda: slow.working == 1)
        found = measured(client)
        assert found["tutelage_scans_in_flight"] == 1
        assert found["tutelage_scans_waiting"] == 1
        assert found['tutelage_jobs{"state": "running"}'] == 1
        assert found['tutelage_jobs{"state": "queued"}'] == 1
        slow.hurry.set()
        until(lambda: measured(client).get('tutelage_jobs_finished_total{"state": "done"}') == 2)
        assert measured(client)['tutelage_jobs{"state": "running"}'] == 0


def test_models_that_come_and_that_are_refused_are_counted(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from tests.serve.serving import Shown, application

    models = Shown()
    with TestClient(application(models), base_url="http://localhost") as client:
        assert 'tutelage_model_swaps_total{"model": "bright"}' not in measured(client)
        models.since = "2026-01-02T00:00:00+00:00"
        models.refused = {"digest": "x", "reason": "bad", "when": "2026-01-03T00:00:00+00:00"}
        for _ in range(2):
            found = measured(client)
            assert found['tutelage_model_swaps_total{"model": "bright"}'] == 1
            assert found['tutelage_model_refusals_total{"model": "bright"}'] == 1


def test_names_tell_their_units_and_labels_stay_few(client: "TestClient", tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    from tests.serve.serving import scan

    for index in range(20):
        client.get(f"/v1/jobs/{index:032x}")
        client.get(f"/nowhere/{index}")
        client.get(f"/v2/models/model-{index}")
        client.request(f"METHOD{index}", "/health")
        client.post(f"/v1/segment?model=m{index}&name={SECRET}", content=scan(tmp_path))
    text = client.get("/metrics").text
    assert SECRET not in text
    for family in text_string_to_metric_families(text):
        series = {tuple(sorted(one.labels.items())) for one in family.samples if "le" not in one.labels}
        assert len(series) <= 12, family.name
        assert family.name.startswith("tutelage_")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


@pytest.mark.process
def test_copies_on_a_node_add_up_and_killed_ones_are_taken_out(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom types import SimpleNamespace\nfrom serve.logs import Notes\n"
        "from serve.meters import Meters\nmeters = Meters()\n"
        "meters.observe(Notes('0' * 32, 'GET', '/health', 200))\n"
        "meters.follow(SimpleNamespace(working=1, waiting=2), {'running': 1})\n"
        "sys.stdout.write(meters.text().decode())\nsys.stdout.flush()\nos.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    (tmp_path / "sums").mkdir()
    more = {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "platform")]),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "sums"),
    }
    texts = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    counts = [re.findall(r"tutelage_requests_total{.*} (\S+)", text) for text in texts]
    assert counts == [["1.0"], ["2.0"]]
    waiting = [re.findall(r"^tutelage_scans_waiting (\S+)", text, re.MULTILINE) for text in texts]
    assert waiting == [["2.0"], ["2.0"]]


# --- logs -----------------------------------------------------------------------------------


def test_every_request_is_one_line(
    client: "TestClient", tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.serve.serving import DIGEST, scan

    capfd.readouterr()
    content = scan(tmp_path)
    answer = client.post("/v1/segment", content=content)
    client.get("/nowhere")
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert first["request_id"] == answer.headers["x-request-id"]
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/segment", 200)
    assert (first["bytes_in"], first["bytes_out"]) == (len(content), len(answer.content))
    assert (first["model"], first["digest"]) == ("bright", DIGEST)
    assert {"receive", "queue", "read", "network", "answer"} <= first["seconds"].keys()
    assert (second["route"], second["status"], second["problem"]) == ("unmatched", 404, "not-found")


def test_nothing_about_a_patient_is_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from starlette.testclient import TestClient

    from serve.tokens import Tokens
    from tests.serve.serving import Above, Shown, application, bearer, scan, token_file, until

    file, secrets = token_file(tmp_path, ward="predict")
    content = scan(tmp_path)
    segmenter = Above()
    app = application(Shown(segmenter), Tokens(file), roots=(str(tmp_path),))
    headers = {
        **bearer(secrets["ward"]),
        "x-file-name": f"{SECRET}.nii.gz",
        "x-request-id": SECRET,
        "user-agent": SECRET,
        "referer": f"http://pacs/{SECRET}",
    }
    with TestClient(app, headers=headers) as client:
        for body in (content, SECRET.encode(), content[:60], b"\x1f\x8b" + SECRET.encode(), b""):
            client.post(f"/v1/segment?name={SECRET}.nii.gz&model=", content=body)
            client.post(f"/v1/segment?model={SECRET}", content=body)
            client.post(f"/v1/jobs?name={SECRET}.nii", content=body)
        client.get(f"/v1/jobs/{SECRET}")
        client.get(f"/{SECRET}?{SECRET}={SECRET}")
        client.request(SECRET, "/health")
        for uri in (f"file://{tmp_path}/{SECRET}.nii", f"http://{SECRET}/"):
            tensor = {"name": "uri", "datatype": "BYTES", "shape": [1], "data": [uri]}
            client.post("/v2/models/bright/infer", json={"id": SECRET, "inputs": [tensor]})
            client.post(f"/v2/models/{SECRET}/infer", json={"id": SECRET, "inputs": [tensor]})
        client.post("/v2/models/bright/infer", json={SECRET: SECRET})
        segmenter.error = ValueError(f"patient {SECRET} has no spleen")
        client.post("/v1/segment", content=content)
        client.post("/v1/jobs", content=content)
        until(lambda: not app.state.desk._running)
    logged = "".join(capfd.readouterr())
    assert len(logged.splitlines()) > 20
    assert SECRET not in logged
    assert "Mueller" not in logged
    assert secrets["ward"] not in logged
    assert '"token": "ward"' in logged
    left = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert left == []


@pytest.mark.files
def test_headers_of_a_series_are_in_no_file_while_its_result_waits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The DICOM SEG that another copy gives out says whose scan it is; what lies on the disk does not."""
    import httpx

    from tests.serve.serving import application, dicom_zip, listening, until

    content = dicom_zip(tmp_path, SECRET)
    with listening(application()) as works, listening(application()) as other:
        href = httpx.post(f"{works}/v1/jobs", content=content).headers["location"]
        until(lambda: httpx.get(f"{other}{href}").json()["state"] == "done")
        for address in (works, other):
            found = httpx.get(f"{address}{href}/result", headers={"accept": "application/dicom"})
            assert (found.status_code, found.headers["content-type"]) == (200, "application/dicom")
            assert SECRET.encode() in found.content
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"state.json", "nifti", "json", "dicom-seg.json"} <= {path.name for path in files}
        for path in files:
            assert SECRET not in str(path)
            assert b"Mueller" not in path.read_bytes()
            assert b"19510203" not in path.read_bytes()
    assert "Mueller" not in "".join(capfd.readouterr())
