from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.casework.claims import ClaimJob, Claims, findings_of
from tutelage.geometry import Grid
from tutelage.records import Case, Prior, Relation, Role
from tutelage.storage import Place

pytestmark = pytest.mark.files

GRID = Grid.from_spacing((4, 16, 16), (5.0, 5.0, 5.0))
SHELF = {"liver": Prior("liver", (1, 2), relations=(Relation("right-of", "spleen"),))}
JOB = ClaimJob(SHELF, ("liver", "spleen"))


@pytest.fixture
def gold(tmp_path: Path) -> Case:
    label_DHW = np.zeros(GRID.shape, np.uint8)
    label_DHW[1:3, 4:8, 2:6] = 1
    label_DHW[1:3, 4:8, 10:14] = 2
    place = tmp_path / "label.nii.gz"
    formats.write_image(Place.of(place), label_DHW, GRID)
    return Case("a", "p", Role.GOLD, "a.nii.gz", str(place), None, "CT", GRID, 1, "1-2")


def test_claims_are_measured_on_the_label_of_an_annotated_case(gold: Case) -> None:
    told = {finding.claim: finding for finding in findings_of(Claims(JOB)(gold))}
    assert told["volume_ml"].seen == "4 ml"
    assert not told["volume_ml"].held
    assert told["right-of spleen"].held


@pytest.mark.parametrize("role", [Role.VALIDATION, Role.TEST, Role.UNLABELED])
def test_no_other_label_is_opened(gold: Case, role: Role) -> None:
    row = Claims(JOB)(replace(gold, role=role))
    assert row["outcome"] == "failed"
    assert "no other label may shape what is believed" in row["reason"]
    assert findings_of(row) == []


def test_a_label_that_cannot_be_read_is_a_row_with_the_reason(gold: Case, tmp_path: Path) -> None:
    row = Claims(JOB)(replace(gold, label=str(tmp_path / "gone.nii.gz")))
    assert row["outcome"] == "failed"
    assert "gone.nii.gz" in row["reason"]
