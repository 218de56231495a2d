"""Masks and measures in the form that the caller accepts, on the grid of what was sent."""

import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from serve import uploads
from serve.answers import Answer, Kind, NotAcceptableError, answered, kind_of
from serve.segmenter import Finding, Segmented
from serve.uploads import Scan, Upload
from tests.archive.test_dicom import series_of, turned
from tests.archive.test_segmentation import referable, seen_on
from tests.archive.test_zipped import series, zipped
from tutelage.archive import formats
from tutelage.cluster.settings import ServingSettings
from tutelage.geometry import Grid

# The segmenter's answer comes with the network's room.
pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv(uploads.SPOOL, str(tmp_path / "spool"))


def scan_of(data: bytes, name: str) -> Scan:
    with Upload(io.BytesIO(data), len(data), name) as upload:
        return uploads.read(upload, ServingSettings())


def scan(suffix: str) -> Scan:
    """Return a scan on an oblique grid with three different spacings."""
    matrix = np.eye(4)
    matrix[:3, :3] = turned() @ Grid.from_spacing((1, 1, 1), (3.0, 1.5, 0.7)).matrix[:3, :3]
    matrix[:3, 3] = (-12.5, 30.25, 7.0)
    grid = Grid.from_matrix((4, 5, 6), matrix)
    noise = np.random.default_rng(0).integers(0, 99, grid.shape).astype(np.int16)
    return scan_of(formats.image_bytes(noise, grid, suffix), f"Jörg's scan{suffix}")


def dicom_scan(folder: Path, slices: list[Any]) -> Scan:
    return scan_of(zipped(series(folder / "series", slices)), "CT.zip")


def done(scanned: Scan) -> Segmented:
    """Return an answer whose structures lie nowhere symmetrically."""
    mask = np.zeros(scanned.volume.grid.shape, np.uint8)
    mask[1:3, 1:3, 2:4] = 1
    mask[2, 3:5, 0] = 2
    return Segmented(
        mask,
        (
            Finding("liver", 1, 8, 0.0252, 1, 0.93, False, ()),
            Finding("left kidney", 2, 2, 0.0063, 1, None, True, ("smaller than any that was seen",)),
        ),
        model="abdomen",
        version="3",
        digest="abc123",
        seconds={"prepare": 0.12345678, "network": 1.5},
    )


def answer(kind: Kind, scanned: Scan) -> tuple[Answer, Segmented]:
    made = done(scanned)
    return answered(kind, scanned, made, "0123-4567"), made


# --- which form ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "nifti"),
        ("*/*", "nifti"),
        ("application/*", "nifti"),
        ("application/gzip", "nifti"),
        ("application/x-nifti", "nifti"),
        ("application/dicom", "dicom-seg"),
        ("Application/DICOM ; q=0.5", "dicom-seg"),
        ("application/json", "json"),
        ("application/json, text/plain, */*", "json"),
        ("application/json;q=0.5, application/dicom", "dicom-seg"),
        ("application/json;q=0.5, application/dicom;q=0.2, */*;q=0.1", "json"),
        ("application/json, application/gzip", "nifti"),
        ("application/json;q=0.1, */*", "nifti"),
        (
            "application/gzip;q=0, application/x-nifti;q=0, application/*;q=0.3, application/dicom",
            "dicom-seg",
        ),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", "nifti"),
        ("application/json; charset=utf-8; q=1", "json"),
    ],
)
def test_the_form_is_the_one_that_is_liked_best(accept: str, kind: str) -> None:
    assert kind_of(accept) == kind


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "image/*", "application/json;q=x", "*"]
)
def test_a_form_that_there_is_not_is_refused_with_those_there_are(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match="application/gzip, application/dicom, application/json"):
        kind_of(accept)


# --- in that form -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_the_mask_lies_on_the_scan(tmp_path: Path, suffix: str) -> None:
    scanned = scan(suffix)
    found, made = answer("nifti", scanned)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(found.body)
    assert np.array_equal(formats.read_label(path, scanned.volume.grid, values=2), made.mask_DHW)
    image = nib.load(path)
    assert image.shape == scanned.volume.native.shape
    assert np.allclose(image.affine[:3], scanned.volume.native.matrix, atol=1e-4)
    assert (found.media_type, found.name) == ("application/gzip", "Jörg's scan.nii.gz")


def test_the_mask_of_a_series_lies_on_it_as_nifti_too(tmp_path: Path) -> None:
    scanned = dicom_scan(tmp_path, series_of(axes=turned()))
    found, made = answer("nifti", scanned)
    (tmp_path / "mask.nii.gz").write_bytes(found.body)
    label = formats.read_label(tmp_path / "mask.nii.gz", scanned.volume.grid, values=2)
    assert np.array_equal(label, made.mask_DHW)


def test_the_mask_of_a_series_refers_to_it_as_dicom(tmp_path: Path) -> None:
    scanned = dicom_scan(tmp_path, referable(series_of(axes=turned())))
    found, made = answer("dicom-seg", scanned)
    raw = pydicom.dcmread(io.BytesIO(found.body))
    assert np.array_equal(seen_on(scanned.volume, raw), made.mask_DHW)
    assert [one.SegmentLabel for one in raw.SegmentSequence] == ["liver", "left kidney"]
    assert (found.media_type, found.name) == ("application/dicom", "CT.dcm")


def test_a_segmentation_of_what_is_no_series_is_refused_with_what_to_do() -> None:
    with pytest.raises(NotAcceptableError, match=r"the scan is nifti; send a zip of the series, or accept"):
        answer("dicom-seg", scan(".nii"))


def test_a_segmentation_of_a_series_without_a_frame_of_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAcceptableError, match="FrameOfReferenceUID"):
        answer("dicom-seg", dicom_scan(tmp_path, series_of()))


def test_json_tells_everything_but_voxels() -> None:
    scanned = scan(".nii")
    found, _ = answer("json", scanned)
    told = json.loads(found.body)
    assert told["request_id"] == "0123-4567"
    assert told["model"] == {"name": "abdomen", "version": "3", "digest": "abc123"}
    assert told["structures"][1] == {
        "structure": "left kidney",
        "value": 2,
        "voxels": 2,
        "volume_ml": 0.0063,
        "components": 1,
        "confidence": None,
        "needs_review": True,
        "reasons": ["smaller than any that was seen"],
    }
    assert told["needs_review"] is True
    assert told["seconds"] == {"prepare": 0.1235, "network": 1.5}
    assert told["grid"]["shape"] == list(scanned.volume.native.shape)
    assert np.allclose(told["grid"]["spacing_mm"], [0.7, 1.5, 3.0], atol=1e-5)
    assert np.allclose(told["grid"]["affine"], scanned.volume.native.matrix)
    assert (found.media_type, found.name) == ("application/json", "Jörg's scan.json")


@pytest.mark.parametrize("kind", ["nifti", "json"])
def test_headers_tell_the_same_beside_each_form(kind: Kind) -> None:
    headers = answer(kind, scan(".nii"))[0].headers
    assert json.loads(headers["x-tutelage-volumes-ml"]) == {"liver": 0.0252, "left kidney": 0.0063}
    assert json.loads(headers["x-tutelage-review"]) == ["left kidney"]
    assert json.loads(headers["x-tutelage-seconds"]) == {"prepare": 0.1235, "network": 1.5}
    assert (headers["x-tutelage-specialist"], headers["x-tutelage-model"]) == ("abc123", "abdomen")
    assert headers["content-disposition"].startswith("attachment; filename*=UTF-8''J%C3%B6rg")
    for value in headers.values():
        value.encode("latin-1")
