"""What is told while a specialist trains: every step to the journal, and from there to MLflow.

It decides what a row of the journal holds, and keeps all of it off the training's way: a row is
a line in memory, files and MLflow are written by threads. Only before a checkpoint it waits for
the file, so that no training goes on from a step that the journal does not know. On Ray steps come
by way of a board, and a checkpoint does not wait for that: where worker, board and driver die in the
same moment, the journal lacks the steps of the last second or two; weights lack nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tutelage.methods.settings import TrainSettings
from tutelage.rounds.campaign import Campaign, record_waits
from tutelage.rounds.workspace import stage_name
from tutelage.storage import Place
from tutelage.tracking.journal import Journal
from tutelage.tracking.store import fit_to_record

if TYPE_CHECKING:
    from tutelage.methods.training import Pace, StepReport
    from tutelage.tracking.campaign import Tracker

_WINDOW_STEPS = 50
"""Steps over which pace is told; its single steps would be noise, and thousands of points."""

_LATE = 4
"""Windows after which nobody waits for a process that has not told of a step."""

_GOING_ON: Any = {
    **dict.fromkeys(("rounds", "max_attempts", "cluster", "serving", "tracking"), True),
    "promotion": {"patience"},
}
"""Settings that say how far a campaign goes and where it works: with others of these it is the same one."""

_COLUMNS = ("step", "loss", "lr", "gradient_norm", "seconds", "waited", "patches", "memory_mib")


def journal_of(stage: Place) -> Place:
    """Return where a stage's journal lies."""
    return stage / "steps"


@contextlib.contextmanager
def told(campaign: Campaign, number: int, training: str, job: TrainSettings) -> Iterator["Told"]:
    """Keep the journal of a training, and send it to MLflow meanwhile; `training` is its fingerprint."""
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Journal(journal_of(campaign.workspace.stage(number))))
        if campaign.settings.tracking.enabled:
            stack.enter_context(_shipped(campaign, number, training, journal))
        yield Told(journal, job)


@contextlib.contextmanager
def _shipped(campaign: Campaign, number: int, training: str, journal: Journal) -> Iterator[None]:
    from tutelage.tracking.streaming import Shipper

    def opened() -> "tuple[Tracker, str]":
        tracker = tracker_of(campaign)
        return tracker, tracker.stage(stage_name(number), training)

    shipper = Shipper(journal, opened, campaign.settings.tracking.patience_s)
    try:
        with shipper:
            yield
    finally:
        if shipper.trouble is not None:
            record_waits(campaign.reporter, shipper.trouble)
        elif shipper.late:
            campaign.reporter.say("  MLflow is behind; it gets the rest of these steps with the record")


def tracker_of(campaign: Campaign) -> "Tracker":
    """Open the campaign's record.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
    """
    from tutelage.tracking.campaign import Tracker

    settings = campaign.settings
    parameters = fit_to_record(settings.model_dump(mode="json"))
    identity = settings.model_dump(mode="json", exclude=_GOING_ON)
    return Tracker(settings.tracking, campaign.workspace.root, settings.name, parameters, identity)


class Told:
    """Turns reports into rows. Called by one thread, the one that trains or waits for training."""

    def __init__(
        self, journal: Journal, settings: TrainSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._journal, self._settings, self._clock = journal, settings, clock
        self._window = _Window(settings.batch)

    def on_step(self, report: "StepReport") -> None:
        """Note a step of the first process."""
        if report.step <= self._journal.last:
            self._window = _Window(self._settings.batch)  # it began anew: what was told is told again
        self._window.add(report)
        row = {name: getattr(report, name) for name in _COLUMNS}
        row |= {"time_ms": int(self._clock() * 1000), "terms": dict(report.terms)}
        row |= {"system": report.system} if report.system else {}
        done, last = report.step + 1, report.step + 1 == self._settings.steps
        if last or done % _WINDOW_STEPS == 0:
            row["pace"] = self._window.told()
        self._journal.add(row)
        if last or done % self._settings.checkpoint_every == 0:
            self._journal.flush()

    def on_pace(self, pace: "Pace") -> None:
        """Note how long a step took another process."""
        self._window.also(pace)


class _Window:
    """Reports since pace was last told."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._reports: list[StepReport] = []
        self._others_s = self._others_waited = 0.0
        self._seconds: dict[int, dict[int, float]] = {}
        """By step and rank, until every process has told of a step."""

    def add(self, report: "StepReport") -> None:
        self._reports.append(report)
        self._seconds.setdefault(report.step, {})[0] = report.seconds

    def also(self, pace: "Pace") -> None:
        self._others_s += pace.seconds
        self._others_waited += pace.waited
        self._seconds.setdefault(pace.step, {})[pace.rank] = pace.seconds

    def told(self) -> dict[str, float]:
        """Return how fast the window was, and begin the next."""
        reports = self._reports
        worked, waited = (sum(getattr(r, name) for r in reports) for name in ("seconds", "waited"))
        both = worked + waited + self._others_s + self._others_waited
        pace = {
            "patches_per_s": self._batch * len(reports) / max(worked + waited, 1e-9),
            "wait_share": (waited + self._others_waited) / max(both, 1e-9),
            "memory_mib": max(report.memory_mib for report in reports),
        }
        if (skew := self._skew(reports[-1].step)) is not None:
            pace["skew"] = skew
        self._reports, self._others_s, self._others_waited = [], 0.0, 0.0
        return pace

    def _skew(self, newest: int) -> float | None:
        """How long the slowest process takes for what all take on average 1.0 for; None of one process.

        Others tell of a step a little later than the first does: it counts once all have.
        """
        processes = 1 + max(max(seconds) for seconds in self._seconds.values())
        settled = [step for step, seconds in self._seconds.items() if len(seconds) == processes]
        skews = [
            max(seconds.values()) * processes / max(sum(seconds.values()), 1e-9)
            for seconds in map(self._seconds.pop, settled)
        ]
        for step in [step for step in self._seconds if step <= newest - _LATE * _WINDOW_STEPS]:
            del self._seconds[step]
        return sum(skews) / len(skews) if skews and processes > 1 else None
