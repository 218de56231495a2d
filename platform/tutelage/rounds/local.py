"""The work of a round in this process, one case after another: no Ray, nothing to start."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tutelage.errors import PREEMPTED
from tutelage.labels.rows import Row

if TYPE_CHECKING:  # a run that has nothing to do loads no torch
    import pyarrow as pa

    from tutelage.casework.base import Limit, Worker
    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import Pace, StepReport

_ITEMS_AT_ONCE = 256


class LocalRunner:
    """Runs workers and training here."""

    outlives_workers = False

    def each(self, build: "type[Worker]", job: object, items: "pa.Table", limit: "Limit") -> Iterator[Row]:
        """Yield the row of every item, in order."""
        from tutelage.casework.base import Guard, answered

        work = Guard(build(job), limit)  # type: ignore[call-arg]
        with _ending_orderly():
            for batch in items.to_batches(max_chunksize=_ITEMS_AT_ONCE):
                for item in batch.to_pylist():
                    yield answered(work, item)

    def train(
        self,
        job: "TrainJob",
        on_step: "Callable[[StepReport], None]",
        on_pace: "Callable[[Pace], None] | None" = None,
    ) -> str:
        """Train a specialist and return its digest; there are no other processes, whose pace were told."""
        from tutelage.casework.training import train

        return train(job, on_step=on_step)

    def close(self) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def _ending_orderly() -> Iterator[None]:
    """Let SIGTERM end this as Ctrl-C does: finished rows are written, the case at hand is not to blame."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signals here
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
