"""Scoring one case: the specialist's mask against the label people made."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from tutelage.archive import formats
from tutelage.casework.base import Needs, Worker
from tutelage.errors import ArchiveError
from tutelage.evaluation.scorecard import score_case
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.labels.rows import Row
from tutelage.records import Case, Score
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Everything a scoring worker is built from."""

    specialist: str
    """Folder of the specialist."""

    structures: tuple[str, ...]
    evaluation: EvaluationSettings
    max_voxels: int


class Scorer(Worker):
    """Scores one labeled case after another."""

    needs = Needs(gpu=True)

    def __init__(self, job: ScoreJob) -> None:
        self.job = job
        self.specialist = Predictor(Place.of(job.specialist))

    def work(self, case: Case) -> Row:
        """Return the scores of every structure of one case."""
        if case.label is None:
            raise ArchiveError(f"{case.case} has no label, expected one to score against; check the split")
        volume = formats.read_image(case.image, self.job.max_voxels)
        reference_DHW = formats.read_label(case.label, volume.grid, len(self.job.structures))
        mask_DHW = self.specialist.mask(volume.image_CDHW, volume.grid)
        scores = score_case(
            case.case, mask_DHW, reference_DHW, volume.grid, self.job.structures, self.job.evaluation
        )
        return {"scores": [asdict(score) for score in scores]}


def scores_of(rows: Iterable[Row]) -> list[Score]:
    """Return the scores that rows hold, cases that failed left out."""
    return [Score(**score) for row in rows for score in row.get("scores") or []]
