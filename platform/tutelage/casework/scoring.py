"""Scoring one case: the specialist's mask against the label people made.

The only worker that may open hidden labels, and only when its job says so: `truth` also
measures the pseudo-labels of a round against hidden labels, for the record alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from tutelage.archive import formats
from tutelage.casework.base import Needs, Worker
from tutelage.errors import ArchiveError
from tutelage.evaluation.scorecard import score_case
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.labels import arrays
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
        return {"scores": _scores(case, mask_DHW, reference_DHW, self.job.structures, self.job.evaluation)}


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
        return {
            "scores": _scores(case, label.mask_DHW, reference_DHW, self.job.structures, self.job.evaluation)
        }


def _scores(
    case: Case,
    mask_DHW: np.ndarray[tuple[int, ...], np.dtype[np.integer]],
    reference_DHW: np.ndarray[tuple[int, ...], np.dtype[np.integer]],
    structures: tuple[str, ...],
    settings: EvaluationSettings,
) -> list[Mapping[str, object]]:
    scores = score_case(case.case, mask_DHW, reference_DHW, case.grid, structures, settings)
    return [asdict(score) for score in scores]


def scores_of(rows: list[Row]) -> list[Score]:
    """Return the scores that rows hold, cases that failed left out."""
    return [Score(**score) for row in rows for score in row.get("scores") or []]
