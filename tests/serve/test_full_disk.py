"""A full disk: told with when to come back, and nothing that could not be written takes a place for ever."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tutelage.cluster.settings import ServingSettings

if TYPE_CHECKING:
    from serve.jobs import Jobs

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))


@pytest.fixture
def jobs() -> "Iterator[Jobs]":
    from serve.jobs import Jobs

    jobs = Jobs(ServingSettings(jobs=2))
    yield jobs
    jobs.close()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have no room on the disk for files of some name from now on."""

    def fill(suffix: str) -> None:
        write = Path.write_bytes

        def refuse(path: Path, data: bytes) -> int:
            if path.name.endswith(suffix):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", refuse)

    return fill


def test_a_job_that_cannot_be_noted_takes_no_place(
    jobs: "Jobs", full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    full("state.json.writing")
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            jobs.begin("")
    monkeypatch.undo()
    assert {path.name for path in jobs.folder.iterdir()} == {"copies"}
    assert jobs.begin("").state == "queued"


def test_a_job_whose_end_cannot_be_written_has_ended_all_the_same(
    jobs: "Jobs", full: Callable[[str], None]
) -> None:
    job = jobs.update(jobs.begin(""), "running", 0.5)
    (jobs.folder / job.id / "nifti").write_bytes(b"half of its answers")
    full(".writing")
    jobs.fail(job, {"title": "no"})
    seen = jobs.get(job.id)
    assert seen is not None
    assert seen.state == "failed"
    assert seen.problem is not None
    assert "disk" in seen.problem["detail"]
    assert [path.name for path in (jobs.folder / job.id).iterdir()] == ["state.json"]


def test_a_full_disk_is_told_with_when_to_come_back_and_takes_no_place(
    tmp_path: Path, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.serve.serving import application, listening, scan, until

    content = scan(tmp_path)
    with listening(application(jobs=2)) as address, httpx.Client(base_url=address) as client:
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
            for path in ("/v1/segment", "/v1/jobs", "/v1/jobs", "/v1/jobs"):
                refused = client.post(path, content=content)
                assert (refused.status_code, refused.json()["type"]) == (503, "urn:tutelage:full")
                assert "expected room" in refused.json()["detail"]
                assert int(refused.headers["retry-after"]) > 0
        full("nifti.writing")
        for _ in range(3):
            href = client.post("/v1/jobs", content=content).headers["location"]
            until(lambda href=href: client.get(href).json()["state"] == "failed")  # type: ignore[misc]
            problem = client.get(href).json()["problem"]
            assert (problem["type"], problem["status"]) == ("urn:tutelage:full", 503)
        full(".writing")
        assert client.post("/v1/jobs", content=content).status_code == 503
        monkeypatch.undo()
        monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))
        href = client.post("/v1/jobs", content=content).headers["location"]
        until(lambda: client.get(href).json()["state"] == "done")


def test_a_job_that_ends_on_a_full_disk_gives_its_place_back(
    tmp_path: Path, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    app = application(Shown(slow), jobs=1)
    with listening(app) as address, httpx.Client(base_url=address) as client:
        href = client.post("/v1/jobs", content=scan(tmp_path)).headers["location"]
        until(lambda: slow.working == 1)
        full(".writing")
        until(lambda: not app.state.desk._running)
        told = client.get(href).json()
        assert told["state"] == "failed"
        assert "send the scan again" in told["problem"]["detail"]
        monkeypatch.undo()
        assert client.post("/v1/jobs", content=scan(tmp_path, "b.nii.gz")).status_code == 202
        slow.hurry.set()
