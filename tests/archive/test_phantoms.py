"""The synthetic archive on disk: the same bytes every time, continued where it was left."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive import formats, phantoms
from tutelage.archive.catalog import scan
from tutelage.archive.phantoms import materialize
from tutelage.archive.settings import ArchiveSettings, SyntheticSettings
from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.errors import ArchiveError
from tutelage.records import Role
from tutelage.storage import Place

COARSE = SyntheticSettings(patients=3, spacing=(25.0, 12.0, 12.0))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_patients_are_written_once_and_are_the_painters(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    materialize(COARSE, Place.of(tmp_path), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    made = phantom(0, 1, COARSE.spacing, COARSE.styles, COARSE.variety)
    volume = formats.read_image(tmp_path / "imagesTr" / "patient_001.nii.gz")
    np.testing.assert_array_equal(volume.image_CDHW[0], made.image_DHW)
    assert volume.grid.spacing == pytest.approx(made.spacing, rel=1e-6)
    label = formats.read_label(tmp_path / "labelsTr" / "patient_001.nii.gz", volume.grid, len(STRUCTURES))
    np.testing.assert_array_equal(label, made.label_DHW)
    materialize(COARSE, Place.of(tmp_path), lambda done, total: pytest.fail("written again"))


def test_the_same_settings_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        materialize(COARSE, Place.of(tmp_path / name))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_an_interrupted_archive_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    materialize(COARSE, Place.of(tmp_path / "whole"))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        materialize(COARSE, Place.of(broken), stop)
    assert not (broken / "dataset.json").exists()
    painted: list[int] = []

    def counted(seed: int, index: int, *more: object) -> object:
        painted.append(index)
        return phantom(seed, index, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(phantoms, "phantom", counted)
    materialize(COARSE, Place.of(broken))
    assert painted == [2]
    assert digests(broken) == digests(tmp_path / "whole")


def test_other_settings_replace_the_archive(tmp_path: Path) -> None:
    other = COARSE.model_copy(update={"seed": 1, "patients": 2})
    materialize(COARSE, Place.of(tmp_path / "a"))
    materialize(other, Place.of(tmp_path / "a"))
    materialize(other, Place.of(tmp_path / "b"))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_images_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "imagesTr" / "mine.nii.gz"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    with pytest.raises(ArchiveError, match="not made here, expected an empty folder"):
        materialize(COARSE, Place.of(tmp_path))
    assert mine.read_bytes() == b"precious"


def test_a_synthetic_archive_is_scanned_with_its_modalities(tmp_path: Path) -> None:
    settings = ArchiveSettings.model_validate(
        {
            "importer": "synthetic",
            "synthetic": {"patients": 8, "spacing": [25, 12, 12]},
            "split": {"gold": 2, "validation": 2, "test": 2},
        }
    )
    catalog = scan(settings, Place.of(tmp_path / "catalog"), Place.of(tmp_path / "archive"))
    assert catalog.structures == STRUCTURES
    assert len(catalog.cases) == 8
    assert not catalog.quarantined
    assert {c.modality for c in catalog.cases} == {"CT", "MR"}
    assert {c.modality for c in catalog.of(Role.TEST)} == {"CT", "MR"}
