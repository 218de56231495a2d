"""What every worker has in common: one case in, one row out, and no case ever lost.

A worker is built once from a job (small, picklable: settings and addresses, never models)
and then called for case after case. A case that cannot be worked on becomes a row with
the reason; the others go on. A case that takes its whole process down cannot say so
itself: `Guard` counts for it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tutelage.archive.cases import case_of
from tutelage.errors import TutelageError
from tutelage.labels.rows import Row
from tutelage.records import Case, Outcome
from tutelage.storage import Place

_log = logging.getLogger(__name__)

_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Needs:
    """What one worker occupies while it lives."""

    gpu: bool
    """Whether a GPU makes it faster; without one it uses a CPU core."""


class Worker(ABC):
    """Base of the workers below; subclasses load their models in `__init__`."""

    needs = Needs(gpu=False)

    def __call__(self, case: Case) -> Row:
        """Return the row of one case, whatever happens to it."""
        try:
            row = self.work(case)
        except Exception as error:  # a stranger's file can raise anything; the row says what it was
            expected = isinstance(error, TutelageError | MemoryError)
            _log.warning("%s failed: %s", case.case, error, exc_info=not expected)
            return failed(case, f"{type(error).__name__}: {error}")
        return {"case": case.case, "outcome": Outcome.DONE.value, "reason": "", **row}

    @abstractmethod
    def work(self, case: Case) -> Row:
        """Do the work and return what is worth keeping, besides case and outcome."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How often a case may take its process down, and where that is counted."""

    attempts: int
    folder: str
    """One small file for each case that is being worked on; left behind by those that died."""


class Guard:
    """A worker, and a count of the processes that each case took down."""

    def __init__(self, worker: Worker, limit: Limit) -> None:
        self._worker = worker
        self._limit = limit
        self._folder = Place.of(limit.folder)

    def __call__(self, case: Case) -> Row:
        """Return the row of one case; one that has died too often is not tried again."""
        mark = self._folder / quote(case.case, safe="")
        died = int(mark.read_text() or 0) if mark.exists() else 0
        if died >= self._limit.attempts:
            return failed(
                case,
                f"it took down the process that worked on it {died} times, expected no more than "
                f"{self._limit.attempts - 1}; look at its file, give workers more memory, or retry errors",
            )
        mark.write_text(str(died + 1))
        try:
            return self._worker(case)
        finally:  # also when a person stops the run: that is nobody's fault
            mark.remove()


def answered(work: Callable[[Case], Row], item: Mapping[str, Any]) -> Row:
    """Return the row of one item: a row of the catalog, and in `of` what the answer will be about."""
    values = dict(item)
    about = values.pop("of")
    return work(case_of(values)) | {"of": about}


def failed(case: Case, reason: str) -> Row:
    """Return the row of a case that could not be worked on."""
    return {"case": case.case, "outcome": Outcome.FAILED.value, "reason": reason[:_REASON_CHARACTERS]}
