"""What the bench of several workers counts, and that it measures what it says."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.bench import train, workers
from tutelage.bench.base import Bench, Measured
from tutelage.bench.trainings import (
    Jobs,
    Looks,
    Memory,
    Ran,
    Size,
    bare,
    by_epoch,
    looked_at,
    started,
    told_by,
)
from tutelage.bench.workers import counts, rows
from tutelage.errors import SettingsError, TrainingError
from tutelage.methods.training import Pace, StepReport

pytestmark = pytest.mark.torch

Call = Callable[..., tuple[int, str, str]]

SMALL = Size((16, 48, 48), (8, 16), (9.0, 4.5, 4.5), patients=4, patches=1, steps=6, skipped=2)


def report(step: int, seconds: float, waited: float = 0.0) -> StepReport:
    return StepReport(step, 1.0, {}, 0.1, 1.0, seconds, waited, 1, 0.0)


# --- arithmetic -----------------------------------------------------------------------------


def test_a_pace_leaves_out_first_steps_and_counts_what_lies_between_the_others() -> None:
    reports = (report(0, 5.0, 3.0), *(report(step, 1.0) for step in range(1, 5)))
    ran = Ran(reports, (), took_s=16.0, whole_s=20.0)
    assert ran.pace(skipped=1) == pytest.approx(4 / 8)
    assert ran.start_s == 4.0


def test_of_several_workers_the_one_that_waits_most_is_told() -> None:
    paces = (Pace(0, 0, 1.0, 9.0), Pace(1, 0, 0.9, 0.1), Pace(0, 1, 1.0, 9.0), Pace(1, 1, 0.6, 0.4))
    assert Ran((), paces, 0.0, 0.0).waited(skipped=1) == pytest.approx(0.4)


def test_looks_at_memory_are_sorted_into_epochs_by_when_steps_were_told() -> None:
    told = [(10.0, 1), (10.5, 2), (11.0, 3), (14.0, 4)]
    looks = [(9.0, 99.0), (10.1, 1.0), (10.4, 5.0), (10.6, 2.0), (13.9, 3.0), (14.0, 4.0), (15.0, 99.0)]
    assert by_epoch(looks, told, steps=2) == Memory(epochs=(0, 1, 2), peaks_mib=(5.0, 3.0, 4.0))


def test_memory_that_grows_slowly_is_told_from_memory_that_swings() -> None:
    epochs = tuple(range(20))
    swinging = Memory(epochs, tuple(1000.0 + 30 * (epoch % 2) for epoch in epochs))
    growing = Memory(epochs, tuple(1000.0 + 2 * epoch for epoch in epochs))
    early, late = swinging.line(since=5)
    assert late / early == pytest.approx(1.0, abs=0.01)
    assert growing.line(since=5) == pytest.approx((1010.0, 1038.0))


def test_memory_of_first_epochs_is_left_out() -> None:
    epochs = tuple(range(20))
    filling = Memory(epochs, tuple(1000.0 if epoch >= 5 else 200.0 * epoch for epoch in epochs))
    assert filling.line(since=5) == pytest.approx((1000.0, 1000.0))
    with pytest.raises(TrainingError, match="seen in 1 epochs since the 5th"):
        Memory((4, 5), (1.0, 1.0)).line(since=5)


# --- the command ----------------------------------------------------------------------------


def test_numbers_of_workers_are_read_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    assert counts("2, 1,4,2") == (1, 2, 4)


@pytest.mark.parametrize("told", ["0", "a", "", "1,,2", "-1", "1.5", "99"])
def test_other_numbers_of_workers_are_refused(call: Call, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(SettingsError, match="from 1 to this machine's 2 cores"):
        counts(told)
    code, out, err = call("bench", "train", f"--workers={told}")
    assert (code, out) == (2, "")
    assert f"found '{told}'" in err


def test_its_help_has_an_example(call: Call) -> None:
    code, out, _ = call("bench", "train", "--help")
    assert code == 0
    assert "Example: tutelage bench train --workers 1,2 --json train.json" in " ".join(out.split())


def test_it_measures_on_ray_only_if_told_to(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, object]] = []

    def run(**options: object) -> Bench:
        given.append(options)
        return Bench("train", (Measured("train.two_workers", "one", 2.0, 1.0, 2.0, 1.7, "higher", ""),))

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    file = tmp_path / "train.json"
    assert call("bench", "train", "--workers", "1,2", "--json", file)[0] == 0
    assert call("bench", "train")[0] == 0
    assert given == [{"workers": (1, 2)}, {}]
    assert json.loads(file.read_text())["rows"][0]["met"] is True


def test_its_rows_stand_between_those_of_the_loop_and_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Measured("train.two_workers", "one", 2.0, 1.0, 2.0, 1.7, "higher", "")
    monkeypatch.setattr(workers, "rows", lambda told, repeats: (row,) * len(told))
    size = train.Size((4, 16, 16), 2, 2, channels=(4, 8))
    measured = train.run(repeats=1, size=size, windows=False, workers=(1, 2)).rows
    assert [one.measure for one in measured] == ["train.step_vs_torch", "train.data_wait", *[row.measure] * 2]
    assert measured[1].goal == 0.03


# --- what runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"), SMALL)


@pytest.mark.process
def test_a_training_that_fails_by_itself_says_why(jobs: Jobs) -> None:
    job = jobs.job(1)
    gone = replace(job.gold[0], image="nowhere.nii")
    with pytest.raises(TrainingError, match=r"by itself failed: .*nowhere\.nii"):
        bare(replace(job, gold=(gone,)))


@pytest.mark.process
def test_a_process_that_nobody_waits_for_is_ended(jobs: Jobs) -> None:
    with started(jobs.job(1, steps=10_000)) as process:
        assert next(told_by(process)).step == 0
    assert process.poll() is not None


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_processes_that_train_are_looked_at_and_no_others() -> None:
    hold = "import sys, time; x = b'1' * 64 * 2**20; print('held', flush=True); time.sleep(60)"
    looks: Looks = {}
    with looked_at(looks):
        children = [
            subprocess.Popen([sys.executable, "-c", hold, name], stdout=subprocess.PIPE)
            for name in ("ray::RayTrainWorker", "ray::other")
        ]
        try:
            for child in children:
                assert child.stdout is not None
                child.stdout.readline()
            deadline, before = time.monotonic() + 60, len(looks.get(children[0].pid, ()))
            while len(looks.get(children[0].pid, ())) < before + 2:  # so both were passed by once
                assert time.monotonic() < deadline, "nobody looked"
                time.sleep(0.02)
        finally:
            for child in children:
                child.kill()
                child.wait()
    assert set(looks) == {children[0].pid}
    assert max(mib for _, mib in looks[children[0].pid]) > 64


@pytest.mark.ray
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_everything_is_measured_on_a_small_training() -> None:
    found = {row.measure: row for row in rows((1, 2), repeats=1, size=SMALL)}
    assert list(found) == [
        *("train.ray_vs_bare", "train.ray_start_s", "train.two_workers"),
        *("train.data_wait_ray_1", "train.data_wait_ray_2", "train.resume_loses", "train.memory_slope"),
    ]
    pace, start, two, *waits, lost, memory = found.values()
    assert pace.ratio == pytest.approx(pace.ours / pace.theirs)
    assert 0.02 < pace.ratio < 50
    assert start.ours > 0.5
    assert two.goal == pytest.approx(1.7)
    assert all(0 <= wait.ours < 1 for wait in waits)
    assert 1 <= lost.ours <= 2 * lost.theirs
    assert 100 < memory.theirs < 4000
