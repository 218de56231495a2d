"""What every worker has in common: one case in, one row out, and no case ever lost.

A worker is built once from a job (small, picklable: settings and addresses, never models)
and then called for case after case. A case that cannot be worked on becomes a row with
the reason; the others go on.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tutelage.errors import TutelageError
from tutelage.labels.rows import Row
from tutelage.records import Case, Outcome

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
            reason = f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
            return {"case": case.case, "outcome": Outcome.FAILED.value, "reason": reason}
        return {"case": case.case, "outcome": Outcome.DONE.value, "reason": "", **row}

    @abstractmethod
    def work(self, case: Case) -> Row:
        """Do the work and return what is worth keeping, besides case and outcome."""
