"""What training workers tell whoever started them, and the one thing they are told: to stop.

An actor stands between them, because a report to Ray Train makes every worker wait for the
slowest. Workers pin their reports to it and go on; the driver takes them when it has time.
What nobody takes is thinned out, so that memory is bounded however slow the driver is and
however long training lasts. It knows no training, and no MLflow.
"""

import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # the board's own process passes reports on as bytes, and starts without torch
    from tutelage.methods.training import Pace, StepReport

_POST_EVERY_S = 0.5
_LAST_POST_S = 10.0
"""How long a worker that is done waits for its last reports to arrive."""

_MOST_REPORTS = 20_000
"""Reports that a worker keeps while the board does not answer."""

_MOST_POSTS = 4_000
"""Posts that the board keeps until they are taken; half a second of one worker each."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lost:
    """Workers that died or failed at the same time."""

    ranks: tuple[int, ...]
    reason: str
    """Of the first of them, in one line."""

    def __str__(self) -> str:
        others = len(self.ranks) - 1
        return f"worker {self.ranks[0]} lost ({self.reason})" + f", {others} more with it" * (others > 0)


@dataclass(slots=True)
class Reports:
    """What workers reported, in order."""

    steps: "list[StepReport]" = field(default_factory=list)
    """Of rank 0; steps that a retry repeats are here again."""
    paces: "list[Pace]" = field(default_factory=list)
    """Of the others."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A worker began to work."""

    rank: int


Pinned = bytes | Begun | Lost
"""One thing on the board; reports are passed on unread."""


class Board:
    """What Ray runs."""

    def __init__(self) -> None:
        self._pinned: list[Pinned] = []
        self._stopping = False

    def pin(self, what: Pinned) -> bool:
        """Take what a worker tells, or whoever watches it; return whether it has to stop."""
        self._pinned = thinned([*self._pinned, what], _MOST_POSTS)
        return self._stopping

    def stop(self) -> None:
        """Tell every worker with its next report that it has to stop."""
        self._stopping = True

    def take(self) -> list[Pinned]:
        """Return everything in the order in which it came, and keep nothing."""
        taken, self._pinned = self._pinned, []
        return taken


def thinned(some: list[T], most: int) -> list[T]:
    """Leave out every other one of too many, but never the newest."""
    return some if len(some) <= most else some[::-2][::-1]


def read(post: bytes) -> Reports:
    """Return what a worker reported."""
    reports: Reports = pickle.loads(post)
    return reports


def lost(errors: Mapping[int, BaseException]) -> Lost:
    """Return what happened to workers, by the rank of each.

    One that died says more than those that were cut off from it.
    """
    first = min(errors, key=lambda rank: (not _died(errors[rank]), rank))
    return Lost((first, *sorted(set(errors) - {first})), reason(errors[first]))


def reason(error: BaseException) -> str:
    """Return what went wrong in one line."""
    cause = getattr(error, "health_check_failure", error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = (lines or [""])[-1].partition(" Some common causes")[0]
    return f"{type(cause).__name__}: {said}"


def _died(error: BaseException) -> bool:
    return isinstance(error, RayActorError) or hasattr(error, "health_check_failure")


def hung() -> Any:
    """Start a board on the node of this process, whose end is its end. Needs a session."""
    here = ray.get_runtime_context().get_node_id()
    kind: Any = ray.remote(Board).options(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        max_restarts=-1,
    )
    return kind.remote()


class Pins:
    """One worker's side of the board: collects, and posts without waiting."""

    def __init__(self, board: Any, rank: int, checkpoint_every: int) -> None:
        """At checkpoints it does not wait for the time to post: steps before them are not repeated."""
        self._board, self._rank, self._checkpoint_every = board, rank, checkpoint_every
        self._collected = Reports()
        self._posted: Any = None
        self._posted_s = time.monotonic()
        self._stopping = False

    def begin(self) -> None:
        """Say that this worker is there."""
        self._board.pin.remote(Begun(self._rank))

    def on_step(self, report: "StepReport") -> None:
        """Take a report of a step."""
        from tutelage.methods.training import Pace

        held = self._collected
        if self._rank:
            pace = Pace(report.step, self._rank, report.seconds, report.waited)
            held.paces = thinned([*held.paces, pace], _MOST_REPORTS)
        else:
            held.steps = thinned([*held.steps, report], _MOST_REPORTS)
        if (report.step + 1) % self._checkpoint_every == 0:
            self._post()

    def stopping(self) -> bool:
        """Post what is collected if it is time; return whether the driver wants training to stop."""
        if time.monotonic() - self._posted_s >= _POST_EVERY_S and self._arrived(0):
            self._post()
        return self._stopping

    def finish(self) -> None:
        """Post what is left, and wait a little for it to arrive."""
        if self._arrived(_LAST_POST_S):
            self._post()
            self._arrived(_LAST_POST_S)

    def _post(self) -> None:
        self._posted = self._board.pin.remote(pickle.dumps(self._collected))
        self._collected, self._posted_s = Reports(), time.monotonic()

    def _arrived(self, timeout_s: float) -> bool:
        """Whether the last post is read: one at a time, or a slow board would be buried."""
        if self._posted is None:
            return True
        try:
            self._stopping = self._stopping or ray.get(self._posted, timeout=timeout_s)
        except GetTimeoutError:
            return False
        except RayActorError:  # the board is started anew; reports are not worth a training
            self._stopping = False
        self._posted = None
        return True
