"""Whether a round's bounds hold, where labels were hidden: for people to read, never for a decision.

It joins what verdicts rested on with what hidden labels say of the same answers, which the step
`truth` measured. An answer that was accepted is measured as the pseudo-label has it.
"""

import numpy as np
from numpy.typing import NDArray

from tutelage.curation import coverage
from tutelage.curation.calibration import Trial
from tutelage.curation.coverage import Coverage, Judged
from tutelage.curation.doubts import answered
from tutelage.labels.rows import Rows
from tutelage.records import Role
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.counting import true_scores
from tutelage.rounds.workspace import read_manifest


def held(campaign: Campaign, number: int) -> Coverage | None:
    """Count how often bounds that a round's verdicts rest on held; None without hidden labels."""
    judged = [
        Judged(t.structure, t.features["predicted_dice"], t.features.get("dice_low"), t.dice)
        for t in trials(campaign, number)
        if "predicted_dice" in t.features
    ]
    calibrated = read_manifest(campaign.workspace.stage(number), "calibrate")
    if not judged or calibrated is None:
        return None
    alpha = campaign.settings.curation.calibration.alpha
    return coverage.summed(judged, alpha, int(calibrated["outputs"]["patients"]))


def voxel_counts(campaign: Campaign, number: int) -> dict[str, NDArray[np.int64]]:
    """Return the voxels of each class by how probable it is there, by patient with hidden labels."""
    patients = {case.case: case.patient for case in campaign.catalog.of(Role.UNLABELED)}
    by_patient: dict[str, NDArray[np.int64]] = {}
    for row in Rows(campaign.workspace.stage(number) / "truth.rows").read():
        if row["case"] in patients and row.get("voxels"):
            counts = np.array(row["voxels"], np.int64)
            by_patient[patients[row["case"]]] = by_patient.get(patients[row["case"]], 0) + counts
    return by_patient


def trials(campaign: Campaign, number: int) -> list[Trial]:
    """Return a round's answers about unlabeled cases with how good they really were."""
    patients = {case.case: case.patient for case in campaign.catalog.of(Role.UNLABELED)}
    dice = {(s.case, s.structure): s.dice for s in true_scores(campaign, number) if not s.absent}
    rows = Rows(campaign.workspace.stage(number) / "curate.rows").read()
    return [
        Trial(patients[row["case"]], verdict["structure"], verdict["features"], known)
        for row in rows
        for verdict in row.get("verdicts") or ()
        if row["case"] in patients
        and answered(verdict["features"])
        and (known := dice.get((row["case"], verdict["structure"]))) is not None
    ]
