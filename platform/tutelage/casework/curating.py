"""Curating one case: read its candidate, judge it, keep what is believed."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tutelage.casework.base import Worker
from tutelage.curation import CurationSettings, calibration, curate
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.priors import cases
from tutelage.records import Case, Prior, PseudoLabel
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class CurateJob:
    """Everything a curating worker is built from."""

    curation: CurationSettings
    priors: Mapping[str, Prior]
    expected: str | None
    """File of what notes say of single cases, or None."""
    structures: tuple[str, ...]
    candidates: str
    """Folder of candidates."""
    labels: str
    """Folder for pseudo-labels."""
    calibration: str | None = None
    """File of what labeled cases teach about answers, or None."""


class Curator(Worker):
    """Turns one candidate after another into a pseudo-label."""

    def __init__(self, job: CurateJob) -> None:
        self.job = job
        self.expected = cases.Answered.of(Place.of(job.expected)) if job.expected else None
        self.calibration = (
            calibration.from_dict(json.loads(Place.of(job.calibration).read_text()))
            if job.calibration
            else None
        )

    def work(self, case: Case) -> Row:
        """Store the pseudo-label of one case and return the verdicts on it."""
        return self.kept(self.judged(case))

    def judged(self, case: Case) -> PseudoLabel:
        """Judge what was answered about one case."""
        job = self.job
        candidate = arrays.read_candidate(Place.of(job.candidates), case.case)
        expected = self.expected.about(case.case) if self.expected else {}
        return curate(
            candidate, case.grid, job.structures, job.priors, job.curation, expected, self.calibration
        )

    def kept(self, label: PseudoLabel) -> Row:
        """Store a pseudo-label and return its row."""
        return {
            "label": arrays.write_label(Place.of(self.job.labels), label),
            "masks": arrays.mask_digests(label.mask_DHW, len(self.job.structures)),
            "verdicts": [asdict(verdict) for verdict in label.verdicts],
        }
