"""The application on a real Ray Serve, asked over HTTP: what the proxy passes, and how much at a time."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.running import GRID, Running, running
from tutelage.archive import formats
from tutelage.client import Client
from tutelage.errors import RefusedError, SettingsError, WorkspaceError
from tutelage.geometry import Grid

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.process]

_ONGOING, _QUEUED = 1, 2


@pytest.fixture(scope="module")
def server(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits: dict[str, Any] = {"ongoing": _ONGOING, "queued": _QUEUED, "max_mb": 1.0}
    with running(tmp_path_factory.mktemp("served"), **limits) as server:
        yield server


def test_a_scan_comes_back_as_the_mask_that_predict_writes(server: Running, tmp_path: Path) -> None:
    from tutelage.casework.predicting import orders, predict
    from tutelage.specialist.predictor import Predictor

    folder = server.folder / "workspace" / "rounds" / "r00" / "specialist"
    (here,) = predict(Predictor(str(folder)), orders(server.scan, tmp_path / "here"), 2**24)
    stages: list[str] = []
    with Client(server.url) as client:
        there = client.segment(
            server.scan, tmp_path / "there.nii.gz", progress=lambda stage, *_: stages.append(stage)
        )
    assert here.mask is not None
    written = formats.read_label(here.mask, GRID, 2)
    assert np.array_equal(formats.read_label(there.path, GRID, 2), written)
    assert server.is_right(there)
    assert formats.header(there.path).grid.difference(formats.header(here.mask).grid) is None
    assert there.volumes_ml == {one.structure: one.volume_ml for one in here.found}
    assert set(stages) == {"sending", "receiving"}


def test_models_are_asked_by_name(server: Running, tmp_path: Path) -> None:
    with Client(server.url) as client:
        assert [model["name"] for model in client.models()] == ["ours", "other"]
        other = client.segment(server.scan, tmp_path / "a.nii.gz", model="other")
        assert other.specialist == server.digests[1]
        assert server.is_right(other)
        with pytest.raises(RefusedError, match="nobody") as refused:
            client.segment(server.scan, tmp_path / "b.nii.gz", model="nobody")
    assert (refused.value.status, refused.value.kind) == (404, "unknown-model")


def test_a_job_is_done_on_the_servers_own_time(server: Running, tmp_path: Path) -> None:
    with Client(server.url) as client:
        job = client.submit(server.scan)
        done = client.wait(job, tmp_path / "a.nii.gz", every_s=0.05)
        assert server.is_right(done)
        client.cancel(job)
        with pytest.raises(RefusedError):
            client.state(job)


@pytest.mark.parametrize(
    "address",
    ["/", "/health", "/docs", "/openapi.json", "/v2", "/v2/health/ready", "/v2/models/ours", "/metrics"],
)
def test_every_address_is_behind_the_proxy(server: Running, address: str) -> None:
    answer = httpx.get(server.url + address, timeout=60)
    assert answer.status_code == 200
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_bad_uploads_are_problems_and_the_next_one_is_answered(server: Running, tmp_path: Path) -> None:
    for content, status, kind in (
        (b"hello", 415, "unknown-format"),
        (b"", 400, "unreadable-scan"),
        (b"x" * 1_100_000, 413, "too-large"),
    ):
        answer = httpx.post(f"{server.url}/v1/segment", content=content, timeout=60)
        assert (answer.status_code, answer.json()["type"]) == (status, f"urn:tutelage:{kind}")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
    with Client(server.url) as client:
        assert server.is_right(client.segment(server.scan, tmp_path / "a.nii.gz"))


def test_a_full_queue_tells_when_to_come_back_and_light_questions_pass(
    server: Running, tmp_path: Path
) -> None:
    grid = Grid.from_spacing((48, 96, 120), (18.0, 9.0, 9.0))
    formats.write_image(tmp_path / "large.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    body = (tmp_path / "large.nii.gz").read_bytes()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{server.url}/v1/segment", content=body, timeout=120))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 200
    for thread in threads:
        thread.join()
    found = Counter(answer.status_code for answer in answers)
    assert set(found) == {200, 503}
    assert found[200] >= _ONGOING + _QUEUED
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["type"] == "urn:tutelage:busy"
            assert int(answer.headers["retry-after"]) >= 1


def test_the_servers_folder_is_its_own_and_holds_no_upload(server: Running, tmp_path: Path) -> None:
    (pid,) = server.pids()
    environment = dict(
        line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line
    )
    spool = Path(environment["TUTELAGE_SPOOL"])
    with Client(server.url) as client:
        client.segment(server.scan, tmp_path / "a.nii.gz")
    assert spool.is_dir()
    assert [path for path in spool.rglob("*") if path.suffix in (".gz", ".nii")] == []


def test_a_taken_port_is_refused_before_anything_starts(server: Running) -> None:
    from tutelage.cluster.serving import check_port

    host, port = server.url.removeprefix("http://").split(":")
    with pytest.raises(SettingsError, match="choose another --port"):
        check_port(host, int(port))


def test_a_ray_that_serves_already_is_left_alone(server: Running, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="Ray Serve runs on this Ray already"), running(tmp_path):
        pytest.fail("a second server took the place of the first")
    with Client(server.url) as client:
        assert server.is_right(client.segment(server.scan, tmp_path / "a.nii.gz"))


# --- how it is set up -----------------------------------------------------------------------


def test_a_range_of_copies_follows_the_queue_and_limits_are_passed_on() -> None:
    from serve.app import build

    settings = {"open": True, "replicas": (1, 3), "target_ongoing": 1.5, "drain_s": 7.0, "queued": 5}
    deployment = build({"a": "/a"}, settings)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 1.5)
    config = deployment._deployment_config
    assert config.graceful_shutdown_timeout_s == 7.0
    assert config.max_ongoing_requests >= 8 + 5
    assert config.max_queued_requests >= 5
    assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (503, 5.0)
    fixed = build({"a": "/a"}, {"open": True, "replicas": 2})._bound_deployment
    assert fixed.num_replicas == 2


def test_serves_own_file_and_the_environment_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.app import app

    with pytest.raises(SettingsError, match="no model is named"):
        app({})
    with pytest.raises(SettingsError, match="not said who may ask"):
        app({"models": {"a": "/a"}})
    by_file = app({"models": {"a": "/a", "b": "models:/b@champion"}, "settings": {"tokens": "/t"}})
    monkeypatch.setenv("TUTELAGE_MODELS", "a=/a,b=models:/b@champion")
    monkeypatch.setenv("TUTELAGE_TOKENS", "/t")
    by_environment = app({})
    first, second = (one._bound_deployment.init_args for one in (by_file, by_environment))
    assert first == second
    assert json.loads(json.dumps(first[0])) == {"a": "/a", "b": "models:/b@champion"}
