"""Jobs: told by any copy, ended by any copy, lost with the copy that worked on them, never kept for long."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tutelage.cluster.settings import ServingSettings
from tutelage.errors import StoppedError, WorkspaceError

if TYPE_CHECKING:
    from serve.jobs import Jobs

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))
    return tmp_path


@pytest.fixture
def copies(tmp_path: Path) -> "Iterator[tuple[Jobs, Jobs]]":
    from serve.jobs import Jobs

    both = Jobs(ServingSettings(jobs=2)), Jobs(ServingSettings(jobs=2))
    yield both
    for jobs in both:
        jobs.close()


def finished(jobs: "Jobs") -> Any:
    from serve.answers import Answer

    return jobs.finish(jobs.begin(""), {"json": Answer(b"{}", "application/json", "scan.json", {"x-a": "b"})})


def test_another_copy_tells_how_far_a_job_is_and_what_came_of_it(copies: "tuple[Jobs, Jobs]") -> None:
    mine, other = copies
    job = mine.begin("ward")
    seen = other.get(job.id)
    assert seen is not None
    assert (seen.state, seen.owner) == ("queued", "ward")
    mine.update(job, "running", 0.5)
    seen = other.get(job.id)
    assert seen is not None
    assert (seen.state, seen.share) == ("running", 0.5)
    done = finished(mine)
    answer = other.result(done, "json")
    assert answer is not None
    assert (answer.body, answer.media_type, answer.headers) == (b"{}", "application/json", {"x-a": "b"})
    assert other.result(done, "nifti") is None


@pytest.mark.parametrize("name", ["", "..", "copies", "../../etc/passwd", "a" * 31, "A" * 32, "gone-0"])
def test_only_ids_are_looked_up(copies: "tuple[Jobs, Jobs]", name: str) -> None:
    assert copies[0].get(name) is None


def test_ids_cannot_be_guessed(copies: "tuple[Jobs, Jobs]") -> None:
    ids = {finished(copies[0]).id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(set(name)) > 8 for name in ids)


def test_a_copy_takes_so_many_jobs_and_more_when_they_are_over(copies: "tuple[Jobs, Jobs]") -> None:
    from serve.problems import ProblemError

    mine, other = copies
    job = mine.begin("")
    mine.begin("")
    with pytest.raises(ProblemError) as refused:
        mine.begin("")
    assert refused.value.kind == "busy"
    assert other.begin("").state == "queued"
    mine.fail(job, {"title": "no"})
    assert mine.begin("").state == "queued"


def test_a_job_that_another_copy_removed_is_noticed_by_the_one_that_works(
    copies: "tuple[Jobs, Jobs]",
) -> None:
    mine, other = copies
    job = mine.begin("")
    other.remove(job.id)
    assert mine.cancelled(job)
    assert mine.get(job.id) is None
    with pytest.raises(StoppedError):
        mine.update(job, "running", 0.5)
    with pytest.raises(StoppedError):
        mine.finish(job, {})
    mine.fail(job, {})
    assert mine.get(job.id) is None


def test_jobs_of_a_copy_that_left_have_failed_and_say_what_to_do(copies: "tuple[Jobs, Jobs]") -> None:
    from serve.jobs import Jobs

    gone = Jobs(ServingSettings())
    running, done = gone.begin(""), finished(gone)
    gone.close()
    seen = copies[0].get(running.id)
    assert seen is not None
    assert seen.state == "failed"
    assert seen.problem is not None
    assert "send the scan again" in seen.problem["detail"]
    seen = copies[0].get(done.id)
    assert seen is not None
    assert seen.state == "done"


@pytest.mark.process
def test_jobs_of_a_copy_that_was_killed_have_failed_at_once(
    copies: "tuple[Jobs, Jobs]", tmp_path: Path
) -> None:
    code = (
        "import time\nfrom serve.jobs import Jobs\nfrom tutelage.cluster.settings import ServingSettings\n"
        "jobs = Jobs(ServingSettings())\nprint(jobs.update(jobs.begin(''), 'running', 0.5).id, flush=True)\n"
        "time.sleep(600)"
    )
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "platform")])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as worker:
        assert worker.stdout is not None
        name = worker.stdout.readline().strip()
        alive = copies[0].get(name)
        worker.send_signal(signal.SIGKILL)
    dead = copies[0].get(name)
    assert alive is not None
    assert alive.state == "running"
    assert dead is not None
    assert dead.state == "failed"
    copies[0].sweep()
    assert len(list((copies[0].folder / "copies").iterdir())) == 2


def test_results_are_removed_when_their_time_is_over(tmp_path: Path) -> None:
    from serve.jobs import Jobs
    from tests.serve.serving import until

    jobs = Jobs(ServingSettings(keep_s=0.2), tmp_path / "jobs")
    try:
        running, done = jobs.begin(""), finished(jobs)
        until(lambda: jobs.get(done.id) is None)
        assert jobs.get(running.id) is not None
        until(lambda: {path.name for path in jobs.folder.iterdir()} == {"copies", running.id})
    finally:
        jobs.close()


def test_what_dead_copies_left_is_swept_at_start(tmp_path: Path) -> None:
    from serve.jobs import Jobs

    first = Jobs(ServingSettings(), tmp_path / "jobs")
    old, young = first.begin(""), first.begin("")
    state = tmp_path / "jobs" / old.id / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "at": time.time() - 4000}))
    (tmp_path / "jobs" / "gone-123").mkdir()
    first.close()
    second = Jobs(ServingSettings(), tmp_path / "jobs")
    try:
        assert second.get(old.id) is None
        assert second.get(young.id) is not None
        assert not (tmp_path / "jobs" / "gone-123").exists()
    finally:
        second.close()


@pytest.mark.parametrize(
    "written",
    [
        *("", "{", "[]", '{"of": "another version"}'),
        '{"id": "a", "owner": "", "copy": "b", "state": "done", "kinds": [], "at": "yesterday"}',
        '{"id": "a", "owner": "", "copy": 3, "state": "lost", "kinds": [7], "at": 1.0}',
    ],
)
def test_a_job_that_cannot_be_read_is_none_and_is_swept(tmp_path: Path, written: str) -> None:
    from serve.jobs import Jobs

    first = Jobs(ServingSettings(), tmp_path / "jobs")
    broken, young = first.begin(""), first.begin("")
    folder = tmp_path / "jobs" / broken.id
    (folder / "state.json").write_text(written)
    os.utime(folder, (time.time() - 4000,) * 2)
    first.close()
    second = Jobs(ServingSettings(), tmp_path / "jobs")
    try:
        assert second.get(broken.id) is None
        assert not folder.exists()
        assert second.get(young.id) is not None
    finally:
        second.close()


def test_a_job_that_cannot_be_swept_keeps_nobody_from_sweeping_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from serve.jobs import Jobs
    from tests.serve.serving import until

    first = Jobs(ServingSettings(), tmp_path / "jobs")
    odd = first.begin("")
    first.close()
    real = Jobs._expired

    def expired(self: Jobs, folder: Path) -> bool:
        if folder.name == odd.id:
            raise RuntimeError("nobody thought of this")
        return real(self, folder)

    monkeypatch.setattr(Jobs, "_expired", expired)
    second = Jobs(ServingSettings(keep_s=0.2), tmp_path / "jobs")
    try:
        for _ in range(2):  # the thread goes on after a sweep that met it
            done = finished(second)
            until(lambda name=done.id: second.get(name) is None)  # type: ignore[misc]
    finally:
        second.close()
    assert "nobody thought of this" in caplog.text


def test_a_copy_that_gets_its_name_while_another_starts_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.jobs import Jobs

    real = os.scandir

    def listed(folder: Path) -> Any:
        if Path(folder).name == "copies":
            (folder / "00.new").touch()
        found = list(real(folder))
        (folder / "00.new").unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr("serve.jobs.os.scandir", listed)
    Jobs(ServingSettings(), tmp_path / "jobs").close()


def test_a_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    from serve.jobs import Jobs

    (tmp_path / "jobs").mkdir(mode=0o755)
    with pytest.raises(WorkspaceError, match="TUTELAGE_SPOOL"):
        Jobs(ServingSettings(), tmp_path / "jobs")
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(WorkspaceError):
        Jobs(ServingSettings(), tmp_path / "link")


# --- forms that quote headers ---------------------------------------------------------------


def quoting(jobs: "Jobs") -> Any:
    from serve.answers import Answer

    answers = {
        "dicom-seg": Answer(b"of Jane Doe", "application/dicom", "scan.dcm", {}),
        "json": Answer(b"{}", "application/json", "scan.json", {}),
    }
    return jobs.finish(jobs.begin(""), answers)  # type: ignore[arg-type]


def held(jobs: "Jobs") -> int:
    """Open files of the process without a name in the folder of its jobs."""
    links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(link.startswith(str(jobs.folder)) and link.endswith("(deleted)") for link in links)


def test_another_copy_has_a_form_that_quotes_headers_as_long_as_the_one_that_made_it(
    copies: "tuple[Jobs, Jobs]",
) -> None:
    from serve.jobs import Jobs
    from serve.problems import ProblemError

    made = Jobs(ServingSettings())
    job = quoting(made)
    answer = copies[0].result(job, "dicom-seg")
    assert answer is not None
    assert answer.body == b"of Jane Doe"
    assert not [path for path in made.folder.rglob("*") if path.is_file() and b"Jane" in path.read_bytes()]
    made.close()
    with pytest.raises(ProblemError, match="send the scan again, or accept another form") as gone:
        copies[0].result(job, "dicom-seg")
    assert gone.value.kind == "result-gone"
    assert copies[0].result(job, "json") is not None


def test_a_form_that_quotes_headers_goes_with_its_job(copies: "tuple[Jobs, Jobs]") -> None:
    mine, other = copies
    first, second, third = (quoting(mine) for _ in range(3))
    assert held(mine) == 3
    mine.remove(first.id)
    assert held(mine) == 2
    other.remove(second.id)
    mine.sweep()
    assert held(mine) == 1
    mine.fail(third, {})
    assert held(mine) == 0


# --- over HTTP ----------------------------------------------------------------------------


def test_a_job_goes_from_waiting_to_its_result(tmp_path: Path) -> None:
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    with listening(application(Shown(slow))) as address, httpx.Client(base_url=address) as client:
        content = scan(tmp_path)
        made = client.post("/v1/jobs", content=content, params={"name": "Mueller_Hans.nii.gz"})
        assert made.status_code == 202
        href = made.headers["location"]
        assert made.json()["href"] == href
        until(lambda: client.get(href).json()["share"] > 0.1)
        assert client.get(href).json()["state"] == "running"
        early = client.get(f"{href}/result")
        assert (early.status_code, early.json()["type"]) == (409, "urn:tutelage:not-finished")
        slow.hurry.set()
        until(lambda: client.get(href).json()["state"] == "done")
        told = client.get(href).json()
        assert (told["share"], told["problem"]) == (1.0, None)
        mask = client.get(told["result"])
        assert mask.content == client.post("/v1/segment", content=content).content
        assert "Mueller" not in mask.headers["content-disposition"]
        found = client.get(told["result"], headers={"accept": "application/json"}).json()
        assert found["structures"][0]["structure"] == "bright"
        assert client.get(told["result"], headers={"accept": "application/dicom"}).status_code == 406
        assert client.delete(href).status_code == 204
        assert client.get(href).status_code == 404
    left = [path for path in tmp_path.rglob("*") if b"Mueller" in path.name.encode()]
    assert left == []


def test_a_scan_that_cannot_be_read_is_told_by_its_job(tmp_path: Path) -> None:
    from tests.serve.serving import application, listening, until

    with listening(application()) as address, httpx.Client(base_url=address) as client:
        href = client.post("/v1/jobs", content=b"hello").headers["location"]
        until(lambda: client.get(href).json()["state"] == "failed")
        problem = client.get(href).json()["problem"]
        assert (problem["type"], problem["status"]) == ("urn:tutelage:unknown-format", 415)
        result = client.get(f"{href}/result")
        assert (result.status_code, result.json()["type"]) == (409, "urn:tutelage:job-failed")


@pytest.mark.parametrize("copy", ["the one that works", "another"])
def test_removing_a_job_ends_its_work(tmp_path: Path, copy: str) -> None:
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    with listening(application(Shown(slow))) as works, listening(application()) as other:
        href = httpx.post(f"{works}/v1/jobs", content=scan(tmp_path)).headers["location"]
        until(lambda: slow.working == 1)
        asked = works if copy == "the one that works" else other
        assert httpx.delete(f"{asked}{href}").status_code == 204
        until(lambda: slow.working == 0)
        assert slow.windows_seen < 5000
        assert httpx.get(f"{works}{href}").status_code == 404


def test_a_job_that_waits_can_be_removed(tmp_path: Path) -> None:
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    app = application(Shown(slow), ongoing=1, jobs=2)
    with listening(app) as address, httpx.Client(base_url=address) as client:
        try:
            content = scan(tmp_path)
            hrefs = [client.post("/v1/jobs", content=content).headers["location"] for _ in range(2)]
            full = client.post("/v1/jobs", content=content)
            assert (full.status_code, full.json()["type"]) == (503, "urn:tutelage:busy")
            assert "retry-after" in full.headers
            until(lambda: app.state.desk.crew.turns.waiting == 1)
            assert client.delete(hrefs[1]).status_code == 204
            until(lambda: app.state.desk.crew.turns.waiting == 0)
            assert client.post("/v1/jobs", content=content).status_code == 202
        finally:
            slow.hurry.set()


def test_a_server_that_is_taken_down_finishes_its_jobs_first(tmp_path: Path) -> None:
    from serve.jobs import Jobs
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    watching = Jobs(ServingSettings())
    with listening(application(Shown(slow))) as address:
        name = httpx.post(f"{address}/v1/jobs", content=scan(tmp_path)).json()["id"]
        until(lambda: slow.working == 1)
        threading.Timer(0.5, slow.hurry.set).start()
    job = watching.get(name)
    watching.close()
    assert job is not None
    assert job.state == "done"


def test_what_is_not_finished_in_time_is_told_as_failed(tmp_path: Path) -> None:
    from serve.jobs import Jobs
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    slow = Above(windows=10_000, window_s=0.01)
    watching = Jobs(ServingSettings())
    with listening(application(Shown(slow), drain_s=0.2)) as address:
        name = httpx.post(f"{address}/v1/jobs", content=scan(tmp_path)).json()["id"]
        until(lambda: slow.working == 1)
    until(lambda: slow.working == 0)
    job = watching.get(name)
    watching.close()
    assert job is not None
    assert job.state == "failed"
