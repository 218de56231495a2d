"""Measuring answers about one case against a label that was hidden all the time, for the record alone.

What curation accepted is measured as the pseudo-label has it, everything else as the
generalist answered it; where nothing was answered there is nothing to measure. The only
worker that opens hidden labels: no prompt, rule, training or promotion reads what it
returns. Loads no torch.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.archive import formats
from tutelage.casework.base import Worker
from tutelage.curation import voxels
from tutelage.errors import ArchiveError
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.measures import compare
from tutelage.records import Candidate, Case, Score
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class TruthJob:
    """Everything a worker that measures answers is built from."""

    candidates: str
    """Folder of candidates."""

    labels: str
    """Folder of pseudo-labels."""

    structures: tuple[str, ...]
    evaluation: EvaluationSettings
    voxels: bool = False
    """Whether voxels of each class are counted too, by how probable it is there."""


class Truth(Worker):
    """Measures answers against hidden labels. Nothing but the report reads its rows."""

    def __init__(self, job: TruthJob) -> None:
        self.job = job

    def work(self, case: Case) -> Row:
        """Return the scores of every structure that was answered about, and what is counted of voxels."""
        if case.hidden is None:
            raise ArchiveError(f"{case.case} has no hidden label; measure only cases that have one")
        candidate = arrays.read_candidate(Place.of(self.job.candidates), case.case)
        label = arrays.read_label(Place.of(self.job.labels), case.case)
        reference_DHW = formats.read_label(case.hidden, case.grid, len(self.job.structures))
        tolerance_mm = self.job.evaluation.nsd_tolerance_mm
        scores = []
        for value, structure in enumerate(self.job.structures, start=1):
            accepted = value not in label.undecided
            mask_DHW = label.mask_DHW == value if accepted else answer_of(candidate, value)
            if mask_DHW.any():
                measured = compare(mask_DHW, reference_DHW == value, case.grid.spacing, tolerance_mm)
                scores.append(asdict(Score(case.case, structure, **asdict(measured))))
        counted = voxels.counted(candidate, reference_DHW).tolist() if self.job.voxels else []
        return {"scores": scores, "voxels": counted}


def answer_of(candidate: Candidate, value: int) -> NDArray[np.bool_]:
    """Where generalists see a structure more likely than not."""
    mask_DHW = np.zeros(candidate.specialist_DHW.shape, np.bool_)
    region = candidate.regions[value]
    mask_DHW[region.where] = region.mean_DHW > 127
    return mask_DHW
