"""The work of a round on Ray. Starts or joins Ray when the first work comes, not before."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING

from tutelage.cluster.settings import ClusterSettings
from tutelage.labels.rows import Row

if TYPE_CHECKING:  # a run that has nothing to do loads neither torch nor Ray
    import pyarrow as pa

    from tutelage.casework.base import Limit, Worker
    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import Pace, StepReport


class RayRunner:
    """Runs workers and training on Ray."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self._stack = ExitStack()
        self._connected = False

    outlives_workers = True

    def each(self, build: "type[Worker]", job: object, items: "pa.Table", limit: "Limit") -> Iterator[Row]:
        """Yield the row of every item as it finishes."""
        from tutelage.cluster.cases import each

        self._connect()
        return each(build, job, items, limit, self.settings)

    def train(
        self,
        job: "TrainJob",
        on_step: "Callable[[StepReport], None]",
        on_pace: "Callable[[Pace], None] | None" = None,
    ) -> str:
        """Train a specialist with one or more processes and return its digest."""
        from tutelage.cluster.training import train

        self._connect()
        return train(job, self.settings, on_step, on_pace)

    def close(self) -> None:
        """Stop the Ray that was started here, if any."""
        self._stack.close()
        self._connected = False

    def _connect(self) -> None:
        from tutelage.cluster.session import session

        if not self._connected:
            # Ray prints what it thinks of workers that died; standard output is for results.
            self._stack.enter_context(redirect_stdout(sys.stderr))
            self._stack.enter_context(session(self.settings))
            self._connected = True
