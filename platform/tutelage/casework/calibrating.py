"""Trying one labeled case as if it had no label, and measuring what comes of it against the label.

A specialist that never saw the case prompts the same generalist in the same way as on unlabeled
cases. It opens labels that specialists learn from and no others; what labeled cases teach
about answers is curation's business.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tutelage.archive import formats
from tutelage.casework.base import Needs, Worker
from tutelage.casework.labeling import Labeler, LabelJob
from tutelage.casework.truth import answer_of
from tutelage.curation import CurationSettings, voxels
from tutelage.curation.acceptance import pooled
from tutelage.curation.calibration import Calibration, Trial, calibrated
from tutelage.curation.doubts import Sight, answered, usual
from tutelage.curation.rules import look
from tutelage.errors import ArchiveError
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.measures import dice
from tutelage.records import Case, Outcome, Prior
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place

_OF_ANSWER = ("image", "specialist", "generalist", "candidate", "prompts", "seconds")
"""What is kept of a labeling row."""


@dataclass(frozen=True, slots=True)
class TryJob:
    """Everything a worker that tries labeled cases is built from."""

    labeling: LabelJob
    """How unlabeled cases are asked about; its specialist is replaced case by case."""
    specialists: Mapping[str, str]
    """Folder of a specialist that never saw the patient, by case."""
    priors: Mapping[str, Mapping[str, Prior]]
    """What is known without the patient's labels, by case."""
    curation: CurationSettings


class Trier(Worker):
    """Asks about one labeled case after another and measures the answers."""

    needs = Needs(gpu=True)

    def __init__(self, job: TryJob) -> None:
        self.job = job
        some = next(iter(job.specialists.values()))
        self.labeler = Labeler(replace(job.labeling, specialist=some))
        self.folder = some

    def work(self, case: Case) -> Row:
        """Return what was answered about one case, how good that is, and what the label shows."""
        if case.label is None:
            raise ArchiveError(f"{case.case} has no label, expected one to try answers against; scan again")
        job, structures = self.job, self.job.labeling.structures
        row = self._labeled(case)
        candidate = arrays.read_candidate(Place.of(job.labeling.candidates), case.case)
        label_DHW = formats.read_label(case.label, case.grid, len(structures))
        looked = look(candidate, case.grid, structures, job.priors[case.case], job.curation)
        trials, sights = [], []
        for value, (structure, seen) in enumerate(looked.items(), start=1):
            truth_DHW = label_DHW == value
            volume_ml = float(np.count_nonzero(truth_DHW)) * case.grid.voxel_ml
            sights.append([structure, volume_ml, pooled(candidate, value)])
            if answered(seen.features):
                features = {**seen.features, **seen.of_anatomy}
                found = dice(answer_of(candidate, value), truth_DHW)
                trials.append([structure, features, pooled(candidate, value), found])
        counted = voxels.counted(candidate, label_DHW).tolist() if job.curation.calibration.voxels else []
        told = {"patient": case.patient, "trials": trials, "sights": sights, "voxels": counted}
        return {name: row[name] for name in _OF_ANSWER} | told

    def _labeled(self, case: Case) -> Row:
        """Have the case asked about by the specialist that never saw it."""
        folder = self.job.specialists[case.case]
        if folder != self.folder:
            self.labeler.specialist, self.folder = Predictor(Place.of(folder)), folder
        return self.labeler.work(case)


def fitted(rows: Iterable[Row], curation: CurationSettings) -> Calibration:
    """Learn from what trying labeled cases came to; cases that failed are left out."""
    tried = [row for row in rows if row["outcome"] == Outcome.DONE.value]
    return calibrated(trials_of(tried), _sights(tried), _thresholds(tried, curation))


def trials_of(rows: Iterable[Row]) -> list[Trial]:
    """Return the answers that were tried; how usual one looks is told beside other patients' labels only."""
    tried = [row for row in rows if row["outcome"] == Outcome.DONE.value]
    sights = _sights(tried)
    beside = {row["patient"]: usual(sights, without=row["patient"]) for row in tried}
    trials = []
    for row in tried:
        for structure, features, pooled_C, found in row["trials"]:
            known = beside[row["patient"]].get(structure)
            more = known.beside(features["generalist_ml"], pooled_C) if known else {}
            trials.append(Trial(row["patient"], structure, features | more, found))
    return trials


def _sights(tried: Sequence[Row]) -> list[Sight]:
    return [
        Sight(row["patient"], structure, volume_ml, tuple(pooled_C))
        for row in tried
        for structure, volume_ml, pooled_C in row["sights"]
    ]


def _thresholds(tried: Sequence[Row], curation: CurationSettings) -> tuple[int | None, ...]:
    if not curation.calibration.voxels:
        return ()
    by_patient: dict[str, NDArray[np.int64]] = {}
    for row in tried:
        counted = np.array(row["voxels"], np.int64)
        by_patient[row["patient"]] = by_patient.get(row["patient"], 0) + counted
    return voxels.least(by_patient, curation.calibration.voxel_alpha)
