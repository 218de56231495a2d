"""Sending a journal to MLflow while its training goes on, and whatever is left of it later.

A thread of its own reads the journal and sends what the run does not have. There is no
queue: the journal is what waits, however long MLflow is slow or gone. How far it got, the run
itself tells, so that a kill between sending and remembering makes no doubles; it is asked
anew after every failure. What a run has of a step is not sent again: a training that goes on
from a checkpoint repeats steps, and MLflow cannot take points back.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from tutelage.errors import Preempted, TrackingError
from tutelage.tracking.campaign import BATCH, Point, Tracker
from tutelage.tracking.journal import Journal, Row

_LOSS = "train/loss"
"""In every row, and so the measure of how far a run is."""

_PLAIN = ("lr", "gradient_norm")
"""Columns of every row beside its loss and the loss's terms."""

_EVERY_S = 5.0
_SELDOM_S = 60.0
"""Longest pause between two attempts while MLflow does not answer."""

Opened = tuple[Tracker, str]
"""A record, and in it the run of a stage."""


def ship(record: Opened, journal: Journal, stopped: Callable[[], bool] = lambda: False) -> int:
    """Send every step that a run does not have and return the last that it has then.

    Raises:
        TrackingError: MLflow fails; what arrived is known only to the run.
    """
    tracker, run = record
    return _sent(record, journal, tracker.newest(run, _LOSS), stopped)


def _sent(record: Opened, journal: Journal, after: int, stopped: Callable[[], bool]) -> int:
    """Send the steps after one that a run has, and return the last that it has then."""
    tracker, run = record
    while not stopped() and (points := _batch(journal, after)):
        tracker.points(run, points)
        after = max(step for _, _, step, _ in points)
    return after


def _batch(journal: Journal, after: int) -> list[Point]:
    """Points of whole steps, as many as one request takes: a step must never be there in part."""
    batch: list[Point] = []
    for row in journal.after(after, BATCH):
        points = list(_points(row))
        if len(batch) + len(points) > BATCH:
            break
        batch += points
    return batch


def _points(row: Row) -> Iterator[Point]:
    """What a row tells, by the names it has in MLflow."""
    named = {_LOSS: row["loss"]}
    named |= {f"train/{name}": row[name] for name in _PLAIN}
    named |= {f"train/term/{name}": value for name, value in row["terms"].items()}
    named |= {f"train/{name}": value for name, value in row.get("pace", {}).items()}
    named |= {f"system/{name}": value for name, value in row.get("system", {}).items()}
    for name, value in named.items():
        yield name, float(value), int(row["step"]), int(row["time_ms"])


class Shipper:
    """Sends a journal while it is a context; leaving it takes `patience_s` at most, whatever MLflow does."""

    def __init__(self, journal: Journal, opened: Callable[[], Opened], patience_s: float) -> None:
        """Start nothing yet; `opened` opens the record and is called in the thread, after failures again."""
        self.journal = journal
        self.trouble: str | None = None
        """How MLflow failed, if it did when last asked."""
        self.late = False
        """Whether it was not done when patience was over. Then this sends no more; whoever records does."""
        self._opened = opened
        self._patience_s = patience_s
        self._ending = threading.Event()
        self._given_up = threading.Event()
        self._outcome = "RUNNING"
        self._thread = threading.Thread(target=self._run, name="to MLflow", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outcome = "FINISHED" if kind is None else _outcome(kind)
        self._ending.set()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._given_up.set()
            self.late = True

    def _run(self) -> None:
        record: Opened | None = None
        sent, pause_s = -1, 0.0
        while not self._given_up.is_set():
            ending = self._ending.wait(pause_s)
            try:
                if record is None:
                    record = self._opened()
                    sent = ship(record, self.journal, self._given_up.is_set)
                else:
                    sent = _sent(record, self.journal, sent, self._given_up.is_set)
                self.trouble, pause_s = None, _EVERY_S
            except Exception as error:  # nobody above a thread would hear of it
                self.trouble, record = str(error) or type(error).__name__, None
                pause_s = min(max(_EVERY_S, 2 * pause_s), _SELDOM_S)
            if ending:
                self._told(record)
                return

    def _told(self, record: Opened | None) -> None:
        """Say how the training went, where MLflow listens."""
        if record is not None and not self._given_up.is_set():
            tracker, run = record
            with contextlib.suppress(TrackingError):  # a status is no loss: the next run sets it
                tracker.end(run, self._outcome)
                if self._outcome != "FINISHED":
                    tracker.end(tracker.run, self._outcome)


def _outcome(kind: type[BaseException]) -> str:
    return "FAILED" if issubclass(kind, Exception) and not issubclass(kind, Preempted) else "KILLED"
