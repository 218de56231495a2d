"""A loop that is asked to end does, and one that hangs says where and takes its process with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tutelage.casework.watching import Stopper, Watch, Watchdog, asked_by_signal
from tutelage.storage import Place

LONG_S = 30.0


def test_whoever_asks_is_heard_and_time_runs_from_the_first_time() -> None:
    stopper = Stopper()
    assert not stopper()
    assert stopper.left_s(20.0) == 20.0
    stopper.ask()
    time.sleep(0.02)
    left_s = stopper.left_s(20.0)
    stopper.ask()
    assert stopper()
    assert stopper.left_s(20.0) <= left_s < 20.0
    assert stopper.left_s(0.01) == 0.0


def test_a_signal_asks_once_and_then_does_what_it_did() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        stopper = Stopper()
        with asked_by_signal(stopper):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopper()
            assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
        with asked_by_signal(Stopper()):
            assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def loop() -> None:
        with asked_by_signal(Stopper()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_watch_ends_its_loop_when_whoever_started_it_says_so(tmp_path: Path) -> None:
    ending = False
    with Watch(0, Place.of(tmp_path / "hang.txt"), lambda: ending) as watch:
        assert not watch()
        ending = True
        assert watch()


def test_a_loop_that_hangs_says_where_it_stands(tmp_path: Path) -> None:
    notes, ended = tmp_path / "hang-rank0.txt", threading.Event()
    with Watchdog(0.2, Place.of(notes), ended.set):
        assert ended.wait(LONG_S)
    text = notes.read_text()
    assert text.startswith("no step has ended for 0 s")
    assert "test_a_loop_that_hangs_says_where_it_stands" in text
    assert str(os.getpid()) in text


class Looks:
    """Stands in for time: so many looks of a watchdog pass, with a sign of life before every few of them."""

    def __init__(self, watchdog: Watchdog, every: int, count: int) -> None:
        self._watchdog, self._every, self._left = watchdog, every, count

    def wait(self, seconds: float) -> bool:
        self._left -= 1
        if self._left % self._every == 0:
            self._watchdog.beat()
        return self._left <= 0


@pytest.mark.parametrize(("every", "ends"), [(7, False), (8, True)], ids=["in time", "too late"])
def test_signs_of_life_must_come_in_time(tmp_path: Path, every: int, ends: bool) -> None:
    ended: list[bool] = []
    watchdog = Watchdog(800.0, Place.of(tmp_path / "hang.txt"), lambda: ended.append(True))
    watchdog._over = Looks(watchdog, every, 80)  # type: ignore[assignment]
    watchdog._watch()
    assert (ended == [True]) == ends == (tmp_path / "hang.txt").exists()


def test_a_watchdog_that_waits_forever_does_not_look(tmp_path: Path) -> None:
    with Watchdog(0.0, Place.of(tmp_path / "hang.txt")):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_a_place_that_hangs_itself_does_not_keep_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.casework import watching

    monkeypatch.setattr(watching, "_WRITE_S", 0.1)
    ended, over = threading.Event(), threading.Event()
    monkeypatch.setattr(Place, "write_text", lambda place, text: over.wait(2 * LONG_S))
    with Watchdog(0.1, Place.of(tmp_path / "hang.txt"), ended.set):
        assert ended.wait(LONG_S)
    over.set()


HANGS = """
import sys, threading
from tutelage.casework.watching import Watch
from tutelage.storage import Place

with Watch(0.5, Place.of(sys.argv[1]), None) as watch:
    watch()
    threading.Lock().acquire() and threading.Event().wait()
"""


@pytest.mark.process
def test_a_process_that_hangs_ends(tmp_path: Path) -> None:
    notes = tmp_path / "hang-rank0.txt"
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(notes)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "no step has ended" in done.stderr
    assert "wait" in notes.read_text()
