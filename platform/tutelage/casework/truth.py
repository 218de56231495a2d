"""Measuring one pseudo-label against a label that was hidden all the time, for the record alone.

The only worker that opens hidden labels. Nothing but the report reads what it returns: no
prompt, rule, training or promotion does. Loads no torch.
"""

from dataclasses import asdict, dataclass

from tutelage.archive import formats
from tutelage.casework.base import Worker
from tutelage.errors import ArchiveError
from tutelage.evaluation.scorecard import score_case
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.records import Case
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class TruthJob:
    """Everything a worker that measures pseudo-labels is built from."""

    labels: str
    """Folder of pseudo-labels."""

    structures: tuple[str, ...]
    evaluation: EvaluationSettings


class Truth(Worker):
    """Measures pseudo-labels against hidden labels. Nothing but the report reads its rows."""

    def __init__(self, job: TruthJob) -> None:
        self.job = job

    def work(self, case: Case) -> Row:
        """Return the scores of one case's pseudo-label."""
        if case.hidden is None:
            raise ArchiveError(f"{case.case} has no hidden label; measure only cases that have one")
        label = arrays.read_label(Place.of(self.job.labels), case.case)
        reference_DHW = formats.read_label(case.hidden, case.grid, len(self.job.structures))
        scores = score_case(
            case.case, label.mask_DHW, reference_DHW, case.grid, self.job.structures, self.job.evaluation
        )
        return {"scores": [asdict(score) for score in scores]}
