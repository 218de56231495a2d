"""Scans that cannot be used: on record with their reasons, never used, and the rest goes on."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.console import Console

from tutelage.archive.phantoms import materialize
from tutelage.archive.settings import SyntheticSettings
from tutelage.errors import PARTIAL
from tutelage.labels.rows import read_table
from tutelage.rounds.progress import Reporter
from tutelage.rounds.results import Finished
from tutelage.rounds.run import run
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = pytest.mark.torch

ROLES = {
    "gold": ["patient_000", "patient_001"],
    "validation": ["patient_002"],
    "test": ["patient_003"],
}

CONFIG = """
workspace: {workspace}
rounds: 1
archive: {{importer: msd, root: {root}}}
generalist: {{name: threshold}}
curation: {{min_agreement: 0.3, partial_agreement: 0.1}}
specialist: {{channels: [8, 16, 16]}}
train: {{steps: 10}}
evaluation: {{bootstrap: 20}}
tracking: {{enabled: false}}
"""


def damage(root: Path) -> None:
    """Cut one image, empty another, write NaN into a third, and shift the label of a fourth."""
    images, labels = root / "imagesTr", root / "labelsTr"
    cut = images / "patient_004.nii.gz"
    cut.write_bytes(cut.read_bytes()[:200])
    (images / "patient_005.nii.gz").write_bytes(b"")
    nan = nibabel.load(images / "patient_006.nii.gz")
    voxels = nan.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, nan.affine), images / "patient_006.nii.gz")
    moved = nibabel.load(labels / "patient_007.nii.gz")
    affine = moved.affine.copy()
    affine[0, 3] += 25
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), affine), labels / "patient_007.nii.gz")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("bad")
    root = folder / "archive"
    synthetic = SyntheticSettings(patients=10, spacing=(18.0, 9.0, 9.0), styles=("ct",))
    materialize(synthetic, Place.of(root))
    damage(root)
    (root / "splits.json").write_text(json.dumps(ROLES))
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(workspace=folder / "workspace", root=root))
    return run(load(config, RunSettings), Reporter(Console(quiet=True)))


def test_the_run_ends_as_finished_with_failed_cases(finished: Finished) -> None:
    assert finished.exit_code == PARTIAL
    assert finished.failed == 1
    assert finished.quarantined == 3
    assert finished.champion is not None


def test_the_ledger_tells_why_a_case_failed(finished: Finished) -> None:
    rows = list(read_table(Place.of(finished.workspace) / "ledger.parquet"))
    failed = [row for row in rows if row["ruling"] == "failed"]
    assert {row["case"] for row in failed} == {"patient_006"}
    assert all("NaN" in row["reasons"][0] for row in failed)
    assert {row["case"] for row in rows} == {"patient_006", "patient_008", "patient_009"}


def test_quarantine_names_the_file_and_the_reason(finished: Finished) -> None:
    rows = list(read_table(Place.of(finished.workspace) / "catalog" / "quarantine.parquet"))
    told = {Path(row["address"]).name: row["reason"] for row in rows}
    assert set(told) == {f"patient_00{n}.nii.gz" for n in (4, 5, 7)}
    assert all(told.values())


def test_the_page_tells_what_could_not_be_used_and_where_files_are_named(finished: Finished) -> None:
    page = Path(finished.report).read_text()
    assert "patient_006" in page, "a case that failed"
    assert "in quarantine" in page
    assert "catalog/quarantine.parquet" in page
    assert not {f"patient_00{n}.nii.gz" for n in (4, 5, 7)} & set(re.findall(r"[\w.]+", page)), (
        "names of files may name people"
    )
