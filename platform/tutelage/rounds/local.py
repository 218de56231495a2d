"""The work of a round in this process, one case after another: no Ray, nothing to start."""

from collections.abc import Callable, Iterator, Sequence

from tutelage.casework.base import Worker
from tutelage.casework.training import TrainJob, train
from tutelage.labels.rows import Row
from tutelage.methods.training import StepReport
from tutelage.records import Case


class LocalRunner:
    """Runs workers and training here."""

    def each(self, build: type[Worker], job: object, cases: Sequence[Case]) -> Iterator[Row]:
        """Yield the row of every case, in order."""
        worker = build(job)  # type: ignore[call-arg]
        for case in cases:
            yield worker(case)

    def train(self, job: TrainJob, on_step: Callable[[StepReport], None]) -> str:
        """Train a specialist and return its digest."""
        return train(job, on_step=on_step)

    def close(self) -> None:
        """Nothing is held."""
