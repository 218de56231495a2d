"""The work of a round in this process, one case after another: no Ray, nothing to start."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tutelage.labels.rows import Row
from tutelage.records import Case

if TYPE_CHECKING:  # a run that has nothing to do loads no torch
    from tutelage.casework.base import Worker
    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import StepReport


class LocalRunner:
    """Runs workers and training here."""

    def each(self, build: "type[Worker]", job: object, cases: Sequence[Case]) -> Iterator[Row]:
        """Yield the row of every case, in order."""
        worker = build(job)  # type: ignore[call-arg]
        for case in cases:
            yield worker(case)

    def train(self, job: "TrainJob", on_step: "Callable[[StepReport], None]") -> str:
        """Train a specialist and return its digest."""
        from tutelage.casework.training import train

        return train(job, on_step=on_step)

    def close(self) -> None:
        """Nothing is held."""
