"""Files in, masks out: what is segmented, what the masks are called, and that geometry survives."""

import json
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.errors import ArchiveError, SettingsError, TutelageError
from tutelage.geometry import Grid

pytestmark = pytest.mark.torch

OBLIQUE = Grid.from_matrix(
    (10, 24, 20),
    np.array([[0.3, -1.9, -7.9, 90.0], [-0.4, -7.8, 1.9, 80.0], [15.0, -0.4, 0.2, -60.0], [0, 0, 0, 1]]),
)


def scan(path: Path, grid: Grid = OBLIQUE, channels: int = 1) -> Path:
    noise = np.random.default_rng(0).normal(100, 20, (channels, *grid.shape)).astype(np.float32)
    if path.suffix == ".png":
        noise = np.clip(noise, 0, 255).astype(np.uint8)
    formats.write_image(str(path), noise, grid)
    return path


def flat() -> Grid:
    return Grid.from_spacing((1, 24, 20), (1.0, 1.0, 1.0))


def names(source: Path, out: Path) -> list[str]:
    from tutelage.casework.predicting import orders

    return [order.mask.relative_to(out).as_posix() for order in orders(source, out)]


def test_a_folder_keeps_its_layout_and_what_is_no_scan_is_left_alone(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "deep/a.nrrd", "notes.txt", ".hidden.nii"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert names(tmp_path / "scans", tmp_path / "out") == ["b.nii.gz", "deep/a.nii.gz"]


def test_scans_that_differ_in_kind_alone_get_two_masks(tmp_path: Path) -> None:
    for name in ("scans/a.nii.gz", "scans/a.png"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path / "scans", tmp_path / "out") == ["a.nii.gz.nii.gz", "a.png.nii.gz"]


def test_masks_inside_the_folder_of_scans_are_not_segmented_again(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.nii").write_bytes(b"")
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"")
    assert names(tmp_path, tmp_path / "out") == ["a.nii.gz"]


def test_a_single_scan_may_name_its_mask(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert names(tmp_path / "a.png", tmp_path) == ["a.nii.gz"]
    assert names(tmp_path / "a.png", tmp_path / "mask.nii.gz") == ["."]


@pytest.mark.parametrize(
    ("source", "out", "error", "told"),
    [
        ("absent", "out", SettingsError, "does not exist"),
        ("empty", "out", ArchiveError, "holds no scans"),
        ("scans", "scans", SettingsError, "lie together"),
        ("scans", "mask.nii.gz", SettingsError, "name a folder"),
        ("scans/a.nii.gz", "scans", SettingsError, "overwrite"),
        ("scans/a.nii.gz", "scans/a.nii.gz", SettingsError, "overwrite"),
    ],
    ids=["absent", "nothing to do", "into itself", "folder into file", "over itself", "over itself by name"],
)
def test_orders_that_cannot_end_well_are_refused(
    tmp_path: Path, source: str, out: str, error: type[TutelageError], told: str
) -> None:
    from tutelage.casework.predicting import orders

    (tmp_path / "empty").mkdir()
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"")
    with pytest.raises(error, match=told):
        orders(tmp_path / source, tmp_path / out)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd"])
def test_a_mask_lies_exactly_on_its_scan(tmp_path: Path, tiny_specialist: Path, name: str) -> None:
    from tutelage.casework.predicting import orders, predict
    from tutelage.specialist.predictor import Predictor

    image = scan(tmp_path / name)
    (done,) = predict(Predictor(str(tiny_specialist)), orders(image, tmp_path / "out"), 2**20)
    assert done.reason == ""
    label_DHW = formats.read_label(str(done.mask), formats.header(str(image)).grid, values=2)
    assert {one.value: one.voxels for one in done.found} == {
        value: int((label_DHW == value).sum()) for value in (1, 2)
    }


def test_a_flat_picture_gets_a_nifti_too(tmp_path: Path, tiny_specialist: Path) -> None:
    from tutelage.casework.predicting import orders, predict
    from tutelage.specialist.predictor import Predictor

    image = scan(tmp_path / "a.png", flat())
    (done,) = predict(Predictor(str(tiny_specialist)), orders(image, tmp_path / "out"), 2**20)
    assert done.mask is not None, done.reason
    assert formats.header(done.mask).grid.shape == (1, 24, 20)


def test_what_lies_beside_a_mask_says_what_is_in_it(tmp_path: Path, tiny_specialist: Path) -> None:
    from tutelage.casework.predicting import orders, predict
    from tutelage.specialist.predictor import Predictor

    predictor = Predictor(str(tiny_specialist))
    (order,) = orders(scan(tmp_path / "a.nii.gz"), tmp_path / "out")
    list(predict(predictor, [order], 2**20))
    told = json.loads(order.description.read_text())
    assert order.description.name == "a.json"
    assert told["specialist"] == predictor.digest
    assert [(one["value"], one["structure"]) for one in told["structures"]] == [(1, "liver"), (2, "spleen")]
    for one in told["structures"]:
        assert one["volume_ml"] == pytest.approx(one["voxels"] * OBLIQUE.voxel_ml, abs=1e-3)


def test_a_bad_scan_becomes_a_row_with_its_reason_and_the_rest_go_on(
    tmp_path: Path, tiny_specialist: Path
) -> None:
    from tutelage.casework.predicting import orders, predict
    from tutelage.specialist.predictor import Predictor

    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii.gz").write_bytes(b"not a scan")
    scan(scans / "b.nii.gz")
    scan(scans / "c.nii.gz", channels=2)
    scan(scans / "d.nii.gz", Grid.from_spacing((40, 40, 40), (1.0, 1.0, 1.0)))
    done = list(predict(Predictor(str(tiny_specialist)), orders(scans, tmp_path / "out"), 40**3 - 1))
    assert [one.mask is not None for one in done] == [False, True, False, False]
    assert "2 channels, expected 1" in done[2].reason
    assert "max_voxels" in done[3].reason
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["b.json", "b.nii.gz"]
