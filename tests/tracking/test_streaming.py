"""Steps on their way to MLflow: slow, gone, back again, dead in the middle. Nothing lost, nothing twice."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.gates import Gate
from tutelage.errors import Preempted, TrackingError, TrainingError
from tutelage.storage import Place
from tutelage.tracking import streaming
from tutelage.tracking.campaign import Point, Tracker
from tutelage.tracking.journal import Journal, Row
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.streaming import Shipper, ship


def row(step: int, attempt: int = 0) -> Row:
    told: Row = {"step": step, "time_ms": 1_700_000_000_000 + 1000 * attempt + step, "loss": 1 / (step + 1)}
    told |= {"terms": {"dice": 0.5 / (step + 1)}, "lr": 0.01, "gradient_norm": 2.0 + attempt}
    return told | ({"pace": {"patches_per_s": 8.0}} if step % 50 == 49 else {})


class Kept:
    """Keeps points in memory as MLflow does; hangs, refuses or loses its answer when told to."""

    run = "campaign"

    def __init__(self) -> None:
        self.points_of: set[tuple[str, float, int, int]] = set()
        self.ended: list[tuple[str, str]] = []
        self.requests = 0
        self.refuses = False
        self.silent_after: int | None = None
        """Requests that it still takes before its answers are lost."""
        self.hangs = threading.Event()
        self.hangs.set()

    def newest(self, run: str, name: str) -> int:
        self._asked()
        return max((step for told, _, step, _ in self.points_of if told == name), default=-1)

    def points(self, run: str, points: Iterable[Point]) -> None:
        self._asked()
        several = list(points)
        assert len(several) <= 1000
        self.requests += 1
        self.points_of |= set(several)
        if self.silent_after is not None and self.requests > self.silent_after:
            self.silent_after = None
            raise TrackingError("the answer was lost")

    def end(self, run: str, status: str) -> None:
        self._asked()
        self.ended.append((run, status))

    def steps(self, name: str = "train/loss") -> list[int]:
        return sorted(step for told, _, step, _ in self.points_of if told == name)

    def _asked(self) -> None:
        self.hangs.wait(30)
        if self.refuses:
            raise TrackingError("MLflow is gone")


def opened(kept: Kept) -> Callable[[], Any]:
    def open_it() -> tuple[Kept, str]:
        kept._asked()
        return kept, "stage"

    return open_it


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_EVERY_S", 0.01)
    monkeypatch.setattr(streaming, "_SELDOM_S", 0.02)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def test_steps_arrive_while_training_goes_on_and_all_of_them_when_it_ends(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    with Shipper(journal, opened(kept), 10) as shipper:
        for step in range(30):
            journal.add(row(step))
        until(lambda: len(kept.steps()) == 30)
        for step in range(30, 900):
            journal.add(row(step))
    assert kept.steps() == list(range(900))
    assert kept.steps("train/term/dice") == kept.steps("train/lr") == kept.steps("train/gradient_norm")
    assert kept.steps("train/patches_per_s") == list(range(49, 900, 50))
    assert (shipper.trouble, shipper.late) == (None, False)
    assert kept.ended == [("stage", "FINISHED")]


def test_what_the_machine_was_at_is_told_with_its_step(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    for step in range(40):
        journal.add(row(step) | ({"system": {"cpu_utilization_percentage": 70.0}} if step % 20 == 0 else {}))
    kept.refuses = True
    with Shipper(journal, opened(kept), 10):
        pass
    kept.refuses = False  # and what MLflow has missed is told later, as of the time when it was
    ship((kept, "stage"), journal)  # type: ignore[arg-type]
    points = sorted(point for point in kept.points_of if point[0].startswith("system/"))
    assert points == [
        ("system/cpu_utilization_percentage", 70.0, 0, 1_700_000_000_000),
        ("system/cpu_utilization_percentage", 70.0, 20, 1_700_000_000_020),
    ]


def test_a_store_that_hangs_costs_training_nothing_and_its_end_only_patience(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    kept.hangs.clear()
    slowest, shipper = 0.0, Shipper(journal, opened(kept), 0.3)
    with journal, shipper:
        for step in range(2000):
            began = time.perf_counter()
            journal.add(row(step))
            slowest = max(slowest, time.perf_counter() - began)
        ended = time.perf_counter()
    # Whoever waited for the store would wait for 30 seconds.
    assert slowest < 10
    assert time.perf_counter() - ended < 10
    assert shipper.late
    kept.hangs.set()
    until(lambda: not shipper._thread.is_alive())
    assert kept.requests == 0  # given up is given up: nobody else's record is written to later
    ship((kept, "stage"), Journal(Place.of(tmp_path)))  # type: ignore[arg-type]
    assert kept.steps() == list(range(2000))


def test_a_server_that_was_gone_gets_everything_once_it_is_back(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    kept.refuses = True
    with Shipper(journal, opened(kept), 10) as shipper:
        for step in range(300):
            journal.add(row(step))
        until(lambda: shipper.trouble == "MLflow is gone")
        kept.refuses = False
        until(lambda: len(kept.steps()) == 300)
        kept.refuses = True
        for step in range(300, 400):
            journal.add(row(step))
        until(lambda: shipper.trouble == "MLflow is gone")
        kept.refuses = False
    assert kept.steps() == list(range(400))
    assert shipper.trouble is None


def test_a_server_that_is_gone_all_the_time_leaves_all_to_the_next_run(tmp_path: Path) -> None:
    kept = Kept()
    kept.refuses = True
    with Journal(Place.of(tmp_path)) as journal, Shipper(journal, opened(kept), 10) as shipper:
        for step in range(1500):
            journal.add(row(step))
    assert shipper.trouble == "MLflow is gone"
    kept.refuses = False
    ship((kept, "stage"), Journal(Place.of(tmp_path)))  # type: ignore[arg-type]
    assert kept.steps() == list(range(1500))


def test_an_answer_that_is_lost_makes_no_doubles_even_if_training_repeats_the_steps(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    for step in range(200):
        journal.add(row(step))
    kept.silent_after = 0
    with pytest.raises(TrackingError, match="answer was lost"):
        ship((kept, "stage"), journal)  # type: ignore[arg-type]
    arrived = kept.steps()
    assert arrived
    for step in range(10, 300):  # killed, and gone on from a checkpoint: another time, other numbers
        journal.add(row(step, attempt=1))
    ship((kept, "stage"), journal)  # type: ignore[arg-type]
    assert kept.steps() == kept.steps("train/gradient_norm") == list(range(300))


def test_steps_that_a_retry_repeats_are_not_sent_again(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    with Shipper(journal, opened(kept), 10):
        for step in range(100):
            journal.add(row(step))
        until(lambda: len(kept.steps()) == 100)
        for step in range(60, 150):
            journal.add(row(step, attempt=1))
    assert kept.steps("train/gradient_norm") == list(range(150))


@pytest.mark.parametrize(
    ("error", "status"), [(TrainingError, "FAILED"), (Preempted, "KILLED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_training_that_fails_is_on_record_as_failed(
    error: type[BaseException], status: str, tmp_path: Path
) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    journal.add(row(0))
    with pytest.raises(error), Shipper(journal, opened(kept), 10):
        raise error("no more")
    assert kept.steps() == [0]
    assert kept.ended == [("stage", status), ("campaign", status)]


def test_a_value_that_is_no_number_stays_one_and_the_rest_of_its_step_is_told(tmp_path: Path) -> None:
    journal = Journal(Place.of(tmp_path))
    journal.add(row(0) | {"gradient_norm": float("nan")})
    journal.flush()
    again = Journal(Place.of(tmp_path))
    assert json.loads((tmp_path / "000000000.jsonl").read_text())["step"] == 0
    named = dict((name, value) for name, value, _, _ in streaming._batch(again, -1))
    assert named["train/loss"] == 1.0
    assert math.isnan(named["train/gradient_norm"])


def test_whatever_goes_wrong_is_told_and_tried_again(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(Place.of(tmp_path))
    journal.add(row(0))
    wrong = iter([ImportError("there is no mlflow"), ValueError()])
    told: list[str | None] = []

    def open_it() -> Any:
        told.append(shipper.trouble)
        for error in wrong:
            raise error
        return kept, "stage"

    shipper = Shipper(journal, open_it, 10)
    with shipper:
        until(lambda: len(kept.steps()) == 1)
    assert told == [None, "there is no mlflow", "ValueError"]
    assert kept.steps() == [0]


@pytest.mark.slow
def test_a_real_server_that_is_slow_goes_and_comes_back_has_every_step_once(
    start_mlflow: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gate, journal = Gate(start_mlflow()), Journal(Place.of(tmp_path / "steps"))
    settings = TrackingSettings(uri=gate.uri)

    def record() -> tuple[Tracker, str]:
        tracker = Tracker(settings, Place.of(tmp_path), "quick", {})
        return tracker, tracker.stage("r00", "one")

    def on_record(name: str = "train/loss") -> list[int]:
        tracker, run = record()
        return sorted(point.step for point in tracker.store.client.get_metric_history(run, name))

    with journal, Shipper(journal, record, 60) as shipper:
        for part, mode in enumerate(["slow", "open", "loses answers", "open", "down", "open"]):
            gate.mode = mode
            for step in range(200 * part, 200 * part + 200):
                journal.add(row(step))
            failing = mode in ("loses answers", "down")
            until(lambda failing=failing: (shipper.trouble is not None) == failing)  # type: ignore[misc]
        for step in range(900, 1500):
            journal.add(row(step, attempt=1))
    assert shipper.trouble is None
    assert gate.lost
    assert on_record() == on_record("train/gradient_norm") == list(range(1500))
