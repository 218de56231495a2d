"""One writer at a time, whoever dies: real processes, with a kernel's help and without."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tutelage.errors import WorkspaceError
from tutelage.rounds.locking import LEASE, Owner, Timing, held, owner_of
from tutelage.storage import Place

pytestmark = pytest.mark.process

QUICK = Timing(renew_s=0.1, expire_s=0.6, settle_s=0.2)

HOLD = """
import sys, time
from tutelage.rounds.locking import Timing, held
from tutelage.storage import Place

with held(Place.of(sys.argv[1]), Timing(0.1, 0.6, 0.2), kernel=sys.argv[2] == "kernel"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another(folder: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(folder), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def owner(folder: Path) -> Owner:
    found = owner_of(Place.of(folder) / LEASE)
    assert found is not None
    return found


def elsewhere(folder: Path, **facts: object) -> Owner:
    """Leave the lease of a process on another machine."""
    there = replace(Owner.this(), machine="another one", host="node7", user="ada", process=4711, **facts)  # type: ignore[arg-type]
    (folder / LEASE).write_text(json.dumps(asdict(there)))
    return there


@pytest.mark.parametrize("how", ["kernel", "lease"])
def test_a_second_process_is_told_who_has_the_workspace_and_what_to_do(tmp_path: Path, how: str) -> None:
    with another(tmp_path, how) as process:
        with pytest.raises(WorkspaceError) as told, held(Place.of(tmp_path), QUICK, kernel=how == "kernel"):
            pytest.fail("two have it")
        there = owner(tmp_path)
    assert f"in use by process {process.pid} of {there.user} on {there.host} since 20" in str(told.value)
    assert "wait for it, stop it, or set another workspace" in str(told.value)


@pytest.mark.parametrize("how", ["kernel", "lease"])
def test_an_owner_that_is_killed_is_followed_at_once(tmp_path: Path, how: str) -> None:
    with another(tmp_path, how) as process:
        process.send_signal(signal.SIGKILL)
        while process.poll() is None and not owner(tmp_path).is_gone():
            time.sleep(0.01)
        began = time.monotonic()
        with held(Place.of(tmp_path), replace(QUICK, expire_s=60.0), kernel=how == "kernel"):
            assert owner(tmp_path).process == os.getpid()
        assert time.monotonic() - began < 5


def test_what_is_given_back_leaves_no_lease(tmp_path: Path) -> None:
    with held(Place.of(tmp_path), QUICK):
        assert owner(tmp_path).process == os.getpid()
    assert not (tmp_path / LEASE).exists()
    with held(Place.of(tmp_path), QUICK):
        pass


def test_a_lease_is_renewed_while_its_owner_works(tmp_path: Path) -> None:
    with held(Place.of(tmp_path), QUICK):
        first = owner(tmp_path)
        time.sleep(0.5)
        later = owner(tmp_path)
    assert later.token == first.token
    assert later.beats > first.beats
    assert later.renewed > first.renewed


def test_a_lease_of_another_machine_holds_until_it_expires_in_silence(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    with pytest.raises(WorkspaceError, match="in use by process 4711 of ada on node7"):
        held(Place.of(tmp_path), QUICK).__enter__()
    elsewhere(tmp_path, renewed=time.time() - 10)
    with held(Place.of(tmp_path), QUICK):
        assert owner(tmp_path).process == os.getpid()


def test_an_owner_whose_clock_is_slow_is_not_taken_for_dead(tmp_path: Path) -> None:
    with another(tmp_path, "lease"):
        beating = owner(tmp_path)
        # Nothing is known of the process here, and its clock seems an hour late: only its renewals speak.
        lagging = replace(beating, machine="another one", renewed=beating.renewed - 3600)
        assert lagging.is_gone() is False
        (tmp_path / LEASE).write_text(json.dumps(asdict(lagging)))
        # Twenty renewals' time to hear one of them, as a busy machine may let the owner wait for its turn.
        with pytest.raises(WorkspaceError, match="in use by"):
            held(Place.of(tmp_path), replace(QUICK, renew_s=1.0), kernel=False).__enter__()


def test_an_owner_whose_lease_is_taken_stops(tmp_path: Path) -> None:
    def work() -> None:
        with held(Place.of(tmp_path), QUICK):
            elsewhere(tmp_path)
            time.sleep(5)
            pytest.fail("it went on")

    with pytest.raises(WorkspaceError, match=r"was lost: process 4711 of ada on node7.* has taken it"):
        work()
    assert owner(tmp_path).process == 4711


def test_an_owner_that_cannot_renew_stops_before_others_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    def work() -> None:
        with held(Place.of(tmp_path), QUICK):
            monkeypatch.setattr(Place, "write_text", full)
            time.sleep(5)
            pytest.fail("it went on")

    began = time.monotonic()
    with pytest.raises(WorkspaceError, match=r"could not be renewed for .*no space left"):
        work()
    assert time.monotonic() - began < 3


def test_of_two_that_begin_at_once_without_a_kernel_one_gives_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "lease"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        ended = _first_to_end(both)
        assert "in use by process" in ended.communicate()[1]
        (other,) = (process for process in both if process is not ended)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert other.poll() is None
    finally:
        for process in both:
            process.kill()
            process.communicate()


def _first_to_end(processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    for _ in range(3000):
        for process in processes:
            if process.poll() is not None:
                return process
        time.sleep(0.01)
    raise AssertionError("both go on")


def test_a_damaged_lease_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text("{")
    with held(Place.of(tmp_path), QUICK):
        assert owner(tmp_path).process == os.getpid()


def test_a_run_in_a_workspace_that_another_process_has_says_so(tmp_path: Path) -> None:
    with another(tmp_path / "ws", "kernel"):
        (tmp_path / "c.yaml").write_text(
            f"workspace: {tmp_path}/ws\narchive: {{importer: synthetic}}\ntracking: {{enabled: false}}\n"
        )
        command = [sys.executable, "-m", "tutelage.cli", "catalog", str(tmp_path / "c.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "in use by process" in done.stderr
    assert "Traceback" not in done.stderr
