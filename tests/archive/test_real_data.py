"""Published scans, where somebody has put them; nothing of them is part of this project."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.archive.catalog import scan
from tutelage.archive.settings import ArchiveSettings
from tutelage.records import Role
from tutelage.storage import Place

DATA = Path(os.environ.get("TUTELAGE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; set TUTELAGE_DATA to the folder that holds it")
    return DATA / name


def test_hippocampus_is_scanned_with_its_labels(tmp_path: Path) -> None:
    root = folder("hippocampus")
    settings = ArchiveSettings.model_validate(
        {"importer": "pairs", "root": str(root), "structures": ["anterior", "posterior"], "modality": "MR"}
    )
    catalog = scan(settings, Place.of(tmp_path), Place.of(tmp_path))
    shapes = json.loads((root / "dataset.json").read_text())["shapes"]
    assert len(catalog.cases) + len(catalog.quarantined) == len(shapes)
    assert not catalog.quarantined
    assert len(catalog.of(Role.GOLD)) == settings.split.gold
    for case in catalog.of(Role.TEST):
        volume = formats.read_image(case.image)
        label = formats.read_label(case.label or "", volume.grid, 2)
        assert sorted(volume.grid.shape) == sorted(shapes[case.case])
        assert volume.grid.spacing == pytest.approx((1, 1, 1), abs=0.01)
        assert set(np.unique(label)) == {0, 1, 2}


def test_a_left_atrium_in_bzip2_lies_on_its_label() -> None:
    root = folder("la")
    image = min((root / "images").glob("*.nii.bz2"))
    volume = formats.read_image(image)
    assert volume.grid.spacing == pytest.approx((0.625, 0.625, 0.625))
    label = root / "labels" / image.name.replace(".nii.bz2", ".nii.gz")
    mask_DHW = formats.read_label(label, volume.grid, 1)
    assert 0.001 < mask_DHW.mean() < 0.2
    second_opinion = nibabel.as_closest_canonical(nibabel.load(image)).get_fdata()
    expected_DHW = second_opinion.transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_allclose(volume.image_CDHW[0], expected_DHW, atol=1e-5)


def test_a_polyp_is_one_structure_of_a_picture() -> None:
    root = folder("kvasir_seg")
    image = min((root / "images").glob("*.jpg"))
    volume = formats.read_image(image)
    assert volume.image_CDHW.shape == (3, 1, 352, 352)
    assert formats.read_label(root / "masks" / f"{image.stem}.png", volume.grid, 1).any()
