"""DICOM SEG, read back without the library that writes it: equal voxels at equal places in the patient."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from tests.archive.test_dicom import (
    AXIAL,
    CORONAL,
    FEET_FIRST,
    GAP_MM,
    SAGITTAL,
    enhanced,
    noise,
    save,
    series_of,
    turned,
)
from tutelage.archive import dicom, formats, segmentation
from tutelage.archive.instances import look_once
from tutelage.archive.segmentation import Maker, Source, coded, encoded, source_of
from tutelage.archive.volume import Volume, to_frame
from tutelage.errors import ArchiveError
from tutelage.storage import Place

MAKER = Maker("heart-of-gold", "3", "abc123")
TO_RAS = np.diag([-1.0, -1.0, 1.0])


def referable(slices: Sequence[Any]) -> list[Any]:
    """Have a series say all that another object needs to refer to it."""
    for one in slices:
        one.FrameOfReferenceUID, one.StudyInstanceUID = "1.2.3.4.5", "1.2.840.1"
        one.PatientSex, one.StudyDate, one.AccessionNumber = "F", "20200102", "A77"
    return list(slices)


def read_from(folder: Path, slices: Sequence[Any]) -> tuple[Volume, Source]:
    """Write a series, and read it as an upload is read."""
    files = [look_once(Place.of(path)) for path in save(folder, slices)]
    (stack,) = dicom.stacks(files)
    found, voxels, digest = dicom.assembled(stack, files, 2**20)
    return formats.volume_of(to_frame(voxels, found.native), found, digest), source_of(stack)


def drawn(volume: Volume) -> NDArray[np.uint8]:
    """Return a mask of two structures without any symmetry, with empty slices at one end."""
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[1:4, 1:3, 2:4] = 1
    mask[2, 4:6, 0] = 2
    mask[0, 0, 1] = 2
    return mask


def written(volume: Volume, source: Source, mask_DHW: NDArray[np.uint8]) -> bytes:
    return encoded(mask_DHW, volume.native, source, ("liver", "left kidney"), MAKER)


def frames_of(raw: Any) -> list[tuple[int, NDArray[np.float64], NDArray[np.bool_]]]:
    """Read segment, 3x4 way from (row, column) to RAS+ mm, and pixels of every frame, by PS3.3 and PS3.5."""
    size = raw.Rows * raw.Columns
    # PS3.5 8.1.1: frames of single bits follow each other without padding, the first pixel in the lowest bit.
    bits = np.unpackbits(np.frombuffer(raw.PixelData, np.uint8), bitorder="little")
    shared = raw.SharedFunctionalGroupsSequence[0]
    orientation = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    between_rows, between_columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = []
    for number, own in enumerate(raw.PerFrameFunctionalGroupsSequence):
        # PS3.3 C.7.6.2.1.1: the first three cosines run along a row, from column to column.
        way = np.zeros((3, 3))
        way[:, 0] = np.array(orientation[3:]) * between_rows
        way[:, 1] = np.array(orientation[:3]) * between_columns
        way[:, 2] = [float(v) for v in own.PlanePositionSequence[0].ImagePositionPatient]
        pixels = bits[number * size : (number + 1) * size].reshape(raw.Rows, raw.Columns)
        identified = own.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        frames.append((int(identified[0].ReferencedSegmentNumber), TO_RAS @ way, pixels.astype(bool)))
    return frames


def seen_on(volume: Volume, raw: Any) -> NDArray[np.uint8]:
    """Put what a SEG says onto a volume's grid, through the patient's millimeters."""
    mask = np.zeros(volume.grid.shape, np.uint8)
    for segment, way, pixels in frames_of(raw):
        rows, columns = np.nonzero(pixels)
        places = np.stack([*(way @ np.stack([rows, columns, np.ones_like(rows)])), np.ones(len(rows))])
        indices = (np.linalg.inv(volume.grid.matrix) @ places)[:3]
        assert np.abs(indices - np.rint(indices)).max(initial=0) < 1e-3
        d, h, w = np.rint(indices).astype(int)
        assert not mask[d, h, w].any()
        mask[d, h, w] = segment
    return mask


SLICES = {
    "axial": lambda: series_of(axes=AXIAL),
    "from head to feet": lambda: series_of(axes=AXIAL, step=-AXIAL[:, 2] * GAP_MM),
    "feet first": lambda: series_of(axes=FEET_FIRST),
    "sagittal": lambda: series_of(axes=SAGITTAL),
    "coronal": lambda: series_of(axes=CORONAL),
    "oblique": lambda: series_of(axes=turned()),
    "oblique sagittal": lambda: series_of(axes=turned() @ SAGITTAL),
    "one file of all frames": lambda: [enhanced(axes=turned())],
}


@pytest.mark.parametrize("make", SLICES.values(), ids=SLICES.keys())
def test_voxels_come_back_at_their_places_in_the_patient(tmp_path: Path, make: Any) -> None:
    volume, source = read_from(tmp_path, referable(make()))
    mask = drawn(volume)
    raw = pydicom.dcmread(io.BytesIO(written(volume, source, mask)))
    assert np.array_equal(seen_on(volume, raw), mask)
    assert raw.BitsAllocated == 1
    assert raw.SegmentationType == "BINARY"


@pytest.mark.parametrize("kind", ["oblique", "from head to feet"])
def test_another_library_unpacks_the_same_pixels_in_the_same_directions(tmp_path: Path, kind: str) -> None:
    volume, source = read_from(tmp_path / "series", referable(SLICES[kind]()))
    (tmp_path / "seg.dcm").write_bytes(written(volume, source, drawn(volume)))
    image = SimpleITK.ReadImage(str(tmp_path / "seg.dcm"))
    frames = frames_of(pydicom.dcmread(tmp_path / "seg.dcm"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image) > 0, [pixels for *_, pixels in frames])
    way = TO_RAS @ frames[0][1]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.allclose(direction[:, 0], way[:, 1] / np.linalg.norm(way[:, 1]), atol=1e-6)
    assert np.allclose(direction[:, 1], way[:, 0] / np.linalg.norm(way[:, 0]), atol=1e-6)


def test_every_frame_refers_to_the_image_at_its_place(tmp_path: Path) -> None:
    slices = referable(series_of(axes=turned()))
    volume, source = read_from(tmp_path, slices)
    raw = pydicom.dcmread(io.BytesIO(written(volume, source, drawn(volume))))
    positions = {str(one.SOPInstanceUID): np.array(one.ImagePositionPatient, float) for one in slices}
    for own in raw.PerFrameFunctionalGroupsSequence:
        referred = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.allclose(place, positions[str(referred)], atol=1e-6)
    (series,) = raw.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID != raw.SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} == set(positions)
    assert raw.FrameOfReferenceUID == slices[0].FrameOfReferenceUID


def test_who_drew_it_and_what_is_told(tmp_path: Path) -> None:
    volume, source = read_from(tmp_path, referable(series_of()))
    raw = pydicom.dcmread(io.BytesIO(written(volume, source, drawn(volume))))
    assert [(one.SegmentNumber, one.SegmentLabel) for one in raw.SegmentSequence] == [
        (1, "liver"),
        (2, "left kidney"),
    ]
    kidney = raw.SegmentSequence[1]
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeMeaning == "Kidney"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kidney.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("heart-of-gold", "3")
    assert "abc123" in algorithm.AlgorithmParameters
    assert (raw.Manufacturer, raw.ManufacturerModelName, raw.DeviceSerialNumber) == (
        "tutelage",
        "heart-of-gold",
        "abc123",
    )


def test_patient_and_study_go_back_and_nothing_else_does(tmp_path: Path) -> None:
    slices = referable(series_of())
    for one in slices:
        one.SpecificCharacterSet, one.PatientName = "ISO_IR 100", "Müller^Jörg"
        # What hospitals write, and no standard allows.
        one.add_new(0x00100040, "CS", "unclear")
        one.add_new(0x00100030, "DA", "70s")
        one.InstitutionName, one.StudyDescription, one.OperatorsName = "St. Elsewhere", "secret", "Roe^R"
        one.PatientComments = "secret"
    volume, source = read_from(tmp_path, slices)
    raw = pydicom.dcmread(io.BytesIO(written(volume, source, drawn(volume))))
    assert str(raw.PatientName) == "Müller^Jörg"
    assert (raw.PatientID, raw.AccessionNumber) == ("1234567", "A77")
    assert (raw["PatientSex"].value, str(raw["PatientBirthDate"].value)) == ("unclear", "70s")
    assert raw.StudyInstanceUID == "1.2.840.1"
    told = str(raw)
    assert "secret" not in told
    assert "Elsewhere" not in told
    assert "Roe" not in told


def test_a_mask_of_nothing_is_still_one(tmp_path: Path) -> None:
    volume, source = read_from(tmp_path, referable(series_of()))
    empty = np.zeros(volume.grid.shape, np.uint8)
    raw = pydicom.dcmread(io.BytesIO(written(volume, source, empty)))
    assert not seen_on(volume, raw).any()


@pytest.mark.parametrize("word", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_that_nothing_can_refer_to_is_told_so(tmp_path: Path, word: str) -> None:
    slices = referable(series_of())
    for one in slices:
        delattr(one, word)
    volume, source = read_from(tmp_path, slices)
    with pytest.raises(ArchiveError, match=f"{word}.*ask for NIfTI"):
        written(volume, source, drawn(volume))


def test_headers_that_mean_harm_are_a_refusal_that_quotes_nothing(tmp_path: Path) -> None:
    slices = referable(series_of())
    for one in slices:
        one.SOPClassUID = "1.2.3.4567"
    volume, source = read_from(tmp_path, slices)
    with pytest.raises(ArchiveError, match="do not go into a DICOM SEG") as refused:
        written(volume, source, drawn(volume))
    assert "4567" not in str(refused.value)


def test_long_and_foreign_names_become_labels_that_fit(tmp_path: Path) -> None:
    volume, source = read_from(tmp_path, referable(series_of(image_DHW=noise())))
    data = encoded(drawn(volume), volume.native, source, ("größte\\Niere", "x" * 99), MAKER)
    labels = [one.SegmentLabel for one in pydicom.dcmread(io.BytesIO(data)).SegmentSequence]
    assert labels == ["gr??te/Niere", "x" * 64]


@pytest.mark.parametrize("name", sorted(segmentation._CODES | segmentation._ALTERED))
def test_codes_are_those_of_the_standard(name: str) -> None:
    _, (code, meaning), _ = coded(name)
    known = getattr(codes.SCT, "".join(word.capitalize() for word in name.split()))
    assert (known.value, known.meaning.lower()) == (code, meaning.lower())


@pytest.mark.parametrize(
    ("structure", "kind", "side"),
    [
        ("Left kidney", "Kidney", "Left"),
        ("kidney_right", "Kidney", "Right"),
        ("kidneys", "Kidney", None),
        ("left atrium", "Left atrium", None),
        ("LIVER", "Liver", None),
        ("postcava", "Inferior vena cava", None),
        ("tumour", "Neoplasm", None),
        ("blob", "Tissue", None),
        ("anterior hippocampus", "Tissue", None),
    ],
)
def test_structures_are_coded_by_their_names(structure: str, kind: str, side: str | None) -> None:
    category, found, found_side = coded(structure)
    assert found[1] == kind
    assert (found_side and found_side[1]) == side
    assert category[1].startswith("Morph" if kind == "Neoplasm" else "Anatomical")
