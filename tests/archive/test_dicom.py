"""DICOM series: where their slices lie, what is refused, and what of a patient stays in the files."""

import contextlib
import json
import os
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)

from tutelage.archive import codecs, dicom, formats, headers, instances, known
from tutelage.archive.catalog import Catalog, load, scan
from tutelage.archive.importers import Found, found_in
from tutelage.archive.settings import ArchiveSettings
from tutelage.cli import main
from tutelage.errors import ArchiveError, MissingExtraError
from tutelage.records import Quarantined
from tutelage.storage import Place

SHAPE = (6, 8, 10)
GAP_MM = 2.5
AXIAL = np.eye(3)
"""Columns: along a row, along a column, along the normal."""

SAGITTAL = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
FEET_FIRST = np.diag([-1.0, 1, -1])


def turned(degrees: float = 25.0) -> NDArray[np.float64]:
    """Return axes turned about a direction that is nobody's own."""
    x, y, z = np.array([1.0, 2, 3]) / np.sqrt(14)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def noise(shape: tuple[int, ...] = SHAPE, dtype: str = "i2") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 2000, shape).astype(dtype)


def slice_of(
    series: str,
    pixels_HW: NDArray[Any],
    position: Sequence[float] | NDArray[np.float64],
    axes: NDArray[np.float64] = AXIAL,
) -> Any:
    """Return one image of a series, as a CT writes it."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
    one.SeriesInstanceUID, one.StudyInstanceUID = series, "1.2.840.1"
    one.PatientID, one.PatientName, one.PatientBirthDate = "1234567", "Doe^Jane", "19700101"
    one.Modality, one.SeriesNumber, one.ImageType = "CT", 3, ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.Rows, one.Columns = pixels_HW.shape[:2]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = pixels_HW.itemsize * 8
    one.HighBit, one.PixelRepresentation = one.BitsStored - 1, int(pixels_HW.dtype.kind == "i")
    one.PixelSpacing = [0.7, 0.8]
    one.ImageOrientationPatient = [f"{v:.9f}" for v in (*axes[:, 0], *axes[:, 1])]
    one.ImagePositionPatient = [f"{v:.6f}" for v in position]
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelData = pixels_HW.tobytes()
    return one


def series_of(
    uid: str = "1.2.3",
    axes: NDArray[np.float64] = AXIAL,
    image_DHW: NDArray[Any] | None = None,
    step: NDArray[np.float64] | None = None,
) -> list[Any]:
    """Return the images of a series, in order along the normal."""
    image = noise() if image_DHW is None else image_DHW
    step = axes[:, 2] * GAP_MM if step is None else step
    start = np.array([-11.5, 23.25, 101.0])
    return [slice_of(uid, pixels_HW, start + step * k, axes) for k, pixels_HW in enumerate(image)]


def save(folder: Path, slices: Sequence[Any], seed: int = 0) -> list[Path]:
    """Write images in a wrong order, under names that say nothing and have no suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    there = len(list(folder.iterdir()))
    names = np.random.default_rng(seed).permutation(len(slices)) + there
    paths = [folder / f"IM{name:04d}" for name in names]
    for path, one in zip(paths, slices, strict=True):
        one.InstanceNumber = int(path.name[2:])
        pydicom.dcmwrite(path, one, enforce_file_format=True)
    return paths


def told(root: Path, **more: Any) -> ArchiveSettings:
    values = {"importer": "dicom", "root": str(root), "structures": ["liver"]}
    return ArchiveSettings.model_validate(values | more)


def listed(root: Path) -> tuple[list[Found], list[Quarantined]]:
    items = list(found_in(told(root), Place.of(root)))
    return [i for i in items if isinstance(i, Found)], [i for i in items if isinstance(i, Quarantined)]


def only(root: Path) -> Found:
    found, bad = listed(root)
    assert (len(found), bad) == (1, [])
    return found[0]


def refused(root: Path) -> str:
    found, bad = listed(root)
    assert (found, len(bad)) == ([], 1)
    return bad[0].reason


def by_itk(folder: Path, uid: str = "1.2.3") -> formats.Volume:
    """Read a series as SimpleITK does, by way of a NIfTI file."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    out = folder.parent.parent / "by_itk.nii.gz"
    SimpleITK.WriteImage(reader.Execute(), str(out))
    return formats.read_image(out)


# --- geometry -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axes",
    [AXIAL, SAGITTAL, CORONAL, FEET_FIRST, turned(), turned(70) @ SAGITTAL, turned(-40) @ CORONAL],
    ids=["axial", "sagittal", "coronal", "feet first", "oblique", "oblique sagittal", "oblique coronal"],
)
def test_slices_lie_where_simpleitk_puts_them(tmp_path: Path, axes: NDArray[np.float64]) -> None:
    save(tmp_path / "scan", series_of(axes=axes))
    volume, theirs = formats.read_image(only(tmp_path).image), by_itk(tmp_path / "scan")
    assert volume.grid.difference(theirs.grid, tolerance_mm=1e-4) is None
    assert (volume.image_CDHW == theirs.image_CDHW).all()
    assert formats.header(only(tmp_path).image).grid == volume.grid


def test_a_mask_lies_on_its_series(tmp_path: Path) -> None:
    save(tmp_path / "scan", series_of(axes=turned()))
    volume = formats.read_image(only(tmp_path).image)
    mask_DHW = (volume.image_CDHW[0] > 0).astype(np.uint8)
    formats.write_mask(tmp_path / "mask.nii.gz", mask_DHW, volume)
    assert (formats.read_label(tmp_path / "mask.nii.gz", volume.grid, 1) == mask_DHW).all()


def test_every_slice_is_rescaled_by_its_own_numbers(tmp_path: Path) -> None:
    slices = series_of()
    for k, one in enumerate(slices):
        one.Modality, one.RescaleSlope, one.RescaleIntercept = "PT", 0.25 * (k + 1), 0
    save(tmp_path / "scan", slices)
    image_DHW = formats.read_image(only(tmp_path).image).image_CDHW[0]
    expected = noise() * (0.25 * np.arange(1, 7))[:, None, None]
    # Rows run to the left and columns to the back, as ours do.
    np.testing.assert_allclose(image_DHW, expected, rtol=1e-6)
    np.testing.assert_allclose(image_DHW, by_itk(tmp_path / "scan").image_CDHW[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("syntax", "bare"),
    [(ImplicitVRLittleEndian, False), (ExplicitVRBigEndian, False), (ImplicitVRLittleEndian, True)],
    ids=["implicit", "big endian", "without preamble"],
)
def test_old_ways_of_writing_are_read(tmp_path: Path, syntax: Any, bare: bool) -> None:
    save(tmp_path / "new", series_of())
    newer = formats.read_image(only(tmp_path).image)
    folder = tmp_path / "old"
    folder.mkdir()
    for path in (tmp_path / "new").iterdir():
        one = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            one.PixelData = one.pixel_array.byteswap().tobytes()
        one.file_meta.TransferSyntaxUID = syntax
        if bare:
            del one.file_meta
            pydicom.dcmwrite(folder / path.name, one, implicit_vr=True, little_endian=True)
        else:
            pydicom.dcmwrite(
                folder / path.name,
                one,
                implicit_vr=syntax.is_implicit_VR,
                little_endian=syntax.is_little_endian,
            )
    shutil.rmtree(tmp_path / "new")
    older = formats.read_image(only(tmp_path).image)
    assert older.grid == newer.grid
    assert (older.image_CDHW == newer.image_CDHW).all()


REFUSED: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "one slice missing": (
        lambda: [one for k, one in enumerate(series_of()) if k != 3],
        r"1 slice is missing: 5.00 mm between IM\d+ and IM\d+ \(at 106.00 mm\), 2.50 mm elsewhere",
    ),
    "two slices missing": (
        lambda: [one for k, one in enumerate(series_of(image_DHW=noise((12, 8, 10)))) if k not in (3, 8)],
        "2 slices are missing",
    ),
    "tilted gantry": (
        lambda: series_of(step=np.array([0, 0.6, GAP_MM])),
        r"sideways by up to 3.00 mm \(gantry tilt of 13.5 degrees\)",
    ),
    "too few": (lambda: series_of()[:2], "it has 2 slices, expected at least 3"),
    "two orientations": (
        lambda: [*series_of()[:3], *series_of(axes=SAGITTAL)[3:]],
        r"different orientations: .*\(1, 0, 0, 0, 1, 0\) 3 times",
    ),
    "two sizes": (
        lambda: [*series_of()[:5], *series_of(image_DHW=noise((6, 4, 4)))[5:]],
        r"different rows, columns and channels: \(8, 10, 1\) 5 times, \(4, 4, 1\) 1 times",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_even_volume_is_set_aside_and_why(
    tmp_path: Path, make: Callable[[], list[Any]], reason: str
) -> None:
    save(tmp_path / "scan", make())
    found, bad = listed(tmp_path)
    assert not found
    assert dicom.is_series(bad[0].address)
    assert re.search(reason, bad[0].reason), bad[0].reason
    with pytest.raises(ArchiveError, match=re.escape(bad[0].reason)):
        formats.header(bad[0].address)


def test_uneven_gaps_are_set_aside_and_rounded_ones_are_not(tmp_path: Path) -> None:
    slices = series_of()
    for k, one in enumerate(slices):
        one.ImagePositionPatient = [0, 0, round(k * 1.2345678, 2)]
    save(tmp_path / "scan", slices)
    assert formats.header(only(tmp_path).image).grid.spacing[0] == pytest.approx(1.2345678, abs=0.005)
    shutil.rmtree(tmp_path / "scan")
    slices[2].ImagePositionPatient = [0, 0, 2.1]
    save(tmp_path / "scan", slices)
    assert "its gaps run from 0.87 to 1.60 mm" in refused(tmp_path)


# --- which files are a volume -------------------------------------------------------------


def test_a_copy_of_an_image_counts_once(tmp_path: Path) -> None:
    slices = series_of()
    save(tmp_path / "scan", [*slices, slices[2]])
    before = only(tmp_path)
    shutil.copytree(tmp_path / "scan", tmp_path / "sent again")
    assert only(tmp_path) == before
    assert formats.read_image(before.image).image_CDHW.shape == (1, *SHAPE)


def test_series_of_one_folder_are_told_apart_and_one_of_several_folders_is_whole(tmp_path: Path) -> None:
    first, second = series_of("1.2.3"), series_of("1.2.4", image_DHW=noise() + 1)
    save(tmp_path / "mixed", [*first[:3], *second])
    save(tmp_path / "more" / "dée per", first[3:])
    found, bad = listed(tmp_path)
    assert not bad
    images = [formats.read_image(one.image).image_CDHW[0] + 1024 for one in found]
    assert (images[0] == noise()).all()
    assert (images[1] == noise() + 1).all()
    assert dicom.parsed(found[0].image).within == ("mixed", "more/dée per")
    assert found[1].image.startswith(f"{tmp_path}/mixed#ct-3-")


Edit = Callable[[Any, int], None]


def echo(one: Any, volume: int) -> None:
    one.EchoTime = f"{2.3 * (volume + 1):.4f}"


def acquisition(one: Any, volume: int) -> None:
    one.AcquisitionNumber = volume + 1


def phase(one: Any, volume: int) -> None:
    one.TemporalPositionIdentifier = volume + 1


def kind(one: Any, volume: int) -> None:
    one.ImageType = ["ORIGINAL", "PRIMARY", "MP"[volume]]


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (echo, ["echo2.3", "echo4.6"]),
        (acquisition, ["acquisition1", "acquisition2"]),
        (phase, ["phase1", "phase2"]),
        (kind, ["typeoriginal.primary.m", "typeoriginal.primary.p"]),
    ],
)
def test_images_that_share_places_are_split_by_the_tag_that_tells_them_apart(
    tmp_path: Path, edit: Edit, names: list[str]
) -> None:
    slices = []
    for volume in (0, 1):
        for one in series_of(image_DHW=noise() + volume):
            edit(one, volume)
            slices.append(one)
    save(tmp_path / "scan", slices)
    found, bad = listed(tmp_path)
    assert not bad
    assert [one.case.split("-", 3)[3] for one in found] == names
    assert len({one.patient for one in found}) == 1
    volumes = [formats.read_image(one.image) for one in found]
    assert [float(v.image_CDHW.min()) for v in volumes] == [noise().min() - 1024, noise().min() - 1023]
    assert volumes[0].digest != volumes[1].digest


def test_two_tags_together_may_tell_volumes_apart(tmp_path: Path) -> None:
    slices = []
    for volume in range(4):
        for one in series_of():
            echo(one, volume // 2)
            kind(one, volume % 2)
            slices.append(one)
    save(tmp_path / "scan", slices)
    found, bad = listed(tmp_path)
    assert (len(found), bad) == (4, [])


def test_images_that_share_places_and_nothing_tells_apart_are_set_aside(tmp_path: Path) -> None:
    save(tmp_path / "scan", [*series_of(), *series_of()])
    assert re.search(
        r"7 images lie at places of others, first IM\d+ and IM\d+ at 101.00 mm", refused(tmp_path)
    )
    assert "none of acquisition, echo" in refused(tmp_path)


def test_localizers_are_left_out(tmp_path: Path) -> None:
    scout = slice_of("1.2.3", noise((30, 40)), (0, 0, 0), SAGITTAL)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path / "scan", [scout, *series_of()])
    found, bad = listed(tmp_path)
    assert [formats.header(one.image).grid.shape for one in found] == [SHAPE]
    assert "1 localizers (scouts) are left out of ct-3-" in bad[0].reason
    other = [slice_of("1.2.9", noise((30, 40)), (0, 0, 0)) for _ in range(3)]
    for one in other:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path / "scouts", other)
    _, bad = listed(tmp_path)
    assert [one.reason for one in bad if "scouts#ct" in one.address] == [
        "it is a localizer (scout), expected a volume; nothing is read from it"
    ]


def report_of() -> list[Any]:
    """Return a structured report, which has no pixels."""
    one = slice_of("1.2.7", noise((4, 4)), (0, 0, 0))
    one.SOPClassUID = EnhancedSRStorage
    for word in ("PixelData", "Rows", "Columns"):
        delattr(one, word)
    return [one]


def with_(**values: Any) -> Callable[[], list[Any]]:
    """Return images with other values in their headers; None deletes."""

    def made() -> list[Any]:
        slices = series_of()
        for one in slices:
            for word, value in values.items():
                delattr(one, word) if value is None else setattr(one, word, value)
        return slices

    return made


UNUSABLE: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "a report": (report_of, "it has no pixels (Enhanced SR Storage), expected a scan"),
    "a segmentation": (with_(SOPClassUID=SegmentationStorage), "it is a segmentation, expected a scan"),
    "no place": (with_(ImagePositionPatient=None), "it has no position, expected a slice with its place"),
    "two coordinates": (with_(ImagePositionPatient=[1, 2]), "its position is 1.0, 2.0, expected 3 numbers"),
    "no spacing": (with_(PixelSpacing=None), "it has no spacing"),
    "spacing of zero": (with_(PixelSpacing=[0, 1]), "its spacing is 0, 1 mm, expected positive numbers"),
    "slope of zero": (with_(RescaleSlope=0), "its rescale slope is 0"),
    "a table of values": (with_(ModalityLUTSequence=[]), "a table translates its values"),
    "frames without places": (with_(NumberOfFrames=2, Rows=4), "it tells places of 0 of its 2 frames"),
    "a palette": (with_(PhotometricInterpretation="PALETTE COLOR"), "its pixels are PALETTE COLOR with 1"),
    "odd bits": (with_(BitsAllocated=12), "its samples have 12 bits, expected 8, 16, 32, 64"),
    "too few pixels": (with_(Rows=9), "its pixels take 160 bytes, expected 180"),
    "axes that are no cosines": (
        with_(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]),
        "its orientation is 2, 0, 0, 0, 1, 0, expected cosines",
    ),
    "axes that are askew": (
        with_(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]),
        "its rows and columns are not upright on each other",
    ),
}


@pytest.mark.parametrize(("make", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_scan_or_says_too_little_is_set_aside(
    tmp_path: Path, make: Callable[[], list[Any]], reason: str
) -> None:
    save(tmp_path / "scan", make())
    assert reason in refused(tmp_path)


def test_files_that_are_no_dicom_do_not_disturb(tmp_path: Path) -> None:
    save(tmp_path / "scan", series_of())
    (tmp_path / "scan" / "readme.txt").write_text("exported on a Monday")
    (tmp_path / "scan" / "empty").write_bytes(b"")
    (tmp_path / "scan" / ".hidden").write_bytes(b"x")
    (tmp_path / "scan" / "loop").symlink_to(tmp_path)
    nameless = series_of()[0]
    del nameless.SeriesInstanceUID
    pydicom.dcmwrite(tmp_path / "nameless", nameless, enforce_file_format=True)
    deflated = series_of()[0]
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "deflated", deflated, enforce_file_format=True)
    found, bad = listed(tmp_path)
    assert len(found) == 1
    assert {Place(one.address).name: one.reason.split(",")[0].split(";")[0] for one in bad} == {
        "readme.txt": "it is no DICOM file",
        "empty": "it is no DICOM file",
        "nameless": "it names no series",
        "deflated": "its header is compressed (deflated)",
    }


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("left", [-1, -120, 700], ids=["a byte short", "most pixels gone", "header alone"])
def test_a_file_that_was_cut_off_sets_its_series_aside(tmp_path: Path, compressed: bool, left: int) -> None:
    slices = series_of()
    if compressed:
        for one in slices:
            one.compress(RLELossless, generate_instance_uid=False)
    # At an end of the stack no gap would show.
    path = save(tmp_path / "scan", slices)[-1]
    path.write_bytes(path.read_bytes()[:left])
    reason = refused(tmp_path)
    assert reason.startswith(f"{path.name}: it ends")
    assert reason.endswith("copy it again")


def test_a_header_that_was_cut_off_is_set_aside(tmp_path: Path) -> None:
    path = save(tmp_path / "scan", series_of())[-1]
    path.write_bytes(path.read_bytes()[:400])
    found, bad = listed(tmp_path)
    # Which series it belonged to nobody can say; what is left is a volume, one slice shorter.
    assert [formats.header(one.image).grid.shape[0] for one in found] == [5]
    assert "names no series" in bad[0].reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8))
def test_hostile_bytes_are_refused_and_nothing_worse(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    folder = tmp_path / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    slices = series_of()[:3]
    for n, one in enumerate(slices):
        one.compress(RLELossless, generate_instance_uid=False)
        one.SOPInstanceUID = f"1.2.3.{n}"
    path = save(folder, slices)[0]
    content = bytearray(path.read_bytes())
    for where, value in changes:
        content[where % len(content)] = value
    path.write_bytes(content)
    for one in listed(folder)[0]:
        with contextlib.suppress(ArchiveError):
            formats.read_image(one.image, 10_000)


# --- many frames --------------------------------------------------------------------------


def enhanced(phases: int = 1, axes: NDArray[np.float64] = AXIAL, like: str = "CT") -> Any:
    """Return an enhanced file: all frames in one, their places in groups, in a wrong order."""
    slices = [(v, one) for v in range(phases) for one in series_of(axes=axes, image_DHW=noise() + v)]
    order = np.random.default_rng(1).permutation(len(slices))
    whole = slices[0][1]
    whole.SOPClassUID, whole.NumberOfFrames, whole.Modality = EnhancedCTImageStorage, len(slices), like
    whole.PixelData = b"".join(slices[n][1].PixelData for n in order)
    shared, scale, measures, place = Dataset(), Dataset(), Dataset(), Dataset()
    scale.RescaleSlope, scale.RescaleIntercept, measures.PixelSpacing = 1, -1024, [0.7, 0.8]
    place.ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PixelValueTransformationSequence, shared.PixelMeasuresSequence = [scale], [measures]
    shared.PlaneOrientationSequence = [place]
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], []
    for n in order:
        own, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = slices[n][1].ImagePositionPatient
        content.TemporalPositionIndex = int(slices[n][0]) + 1
        own.PlanePositionSequence, own.FrameContentSequence = [position], [content]
        whole.PerFrameFunctionalGroupsSequence.append(own)
    for word in ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient"):
        delattr(whole, word)
    del whole.ImageOrientationPatient
    return whole


@pytest.mark.parametrize("axes", [AXIAL, turned(), turned() @ SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_frames_of_one_file_are_a_volume(tmp_path: Path, axes: NDArray[np.float64]) -> None:
    save(tmp_path / "scan", [enhanced(axes=axes)])
    volume = formats.read_image(only(tmp_path).image)
    save(tmp_path / "frame by frame", series_of(axes=axes))
    theirs = by_itk(tmp_path / "frame by frame")
    assert volume.grid.difference(theirs.grid, 1e-4) is None
    assert (volume.image_CDHW == theirs.image_CDHW).all()


def test_an_enhanced_file_in_order_lies_where_simpleitk_puts_it(tmp_path: Path) -> None:
    whole = enhanced(axes=turned())
    order = np.argsort(
        [g.PlanePositionSequence[0].ImagePositionPatient[2] for g in whole.PerFrameFunctionalGroupsSequence]
    )
    frames = whole.pixel_array
    whole.PixelData = frames[order].tobytes()
    whole.PerFrameFunctionalGroupsSequence = [whole.PerFrameFunctionalGroupsSequence[n] for n in order]
    (path,) = save(tmp_path / "scan", [whole])
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path.parent / "by_itk.nii.gz"))
    theirs = formats.read_image(tmp_path.parent / "by_itk.nii.gz")
    assert theirs.grid.difference(formats.read_image(only(tmp_path).image).grid, 1e-3) is None


def test_phases_of_one_file_are_volumes_of_their_own(tmp_path: Path) -> None:
    save(tmp_path / "scan", [enhanced(phases=3)])
    found, bad = listed(tmp_path)
    assert not bad
    assert [one.case.rpartition("-")[2] for one in found] == ["phase1", "phase2", "phase3"]
    volumes = [formats.read_image(one.image) for one in found]
    assert [int((v.image_CDHW[0] + 1024 - noise()).max()) for v in volumes] == [0, 1, 2]
    assert len({v.digest for v in volumes}) == 3


def test_frames_that_nothing_is_told_about_are_refused(tmp_path: Path) -> None:
    whole = enhanced()
    whole.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[:-1]
    save(tmp_path / "scan", [whole])
    assert "it tells places of 5 of its 6 frames" in refused(tmp_path)


# --- pixels -------------------------------------------------------------------------------


PACKERS: dict[Any, Callable[[NDArray[Any]], bytes | bytearray]] = {
    JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k"),
    HTJ2KLossless: lambda pixels: imagecodecs.htj2k_encode(pixels.view("u2"), reversible=True),
    JPEGLSLossless: lambda pixels: imagecodecs.jpegls_encode(pixels.view("u2")),
    JPEGLosslessSV1: lambda pixels: imagecodecs.jpeg8_encode(
        pixels.view("u2"), lossless=True, predictor=1, bitspersample=16
    ),
}


def packed(one: Any, syntax: Any) -> Any:
    """Compress an image; pydicom itself can write RLE alone."""
    if syntax == RLELossless:
        one.compress(RLELossless, generate_instance_uid=False)
        return one
    one.PixelData = encapsulate([PACKERS[syntax](one.pixel_array)])
    one["PixelData"].VR = "OB"
    one.file_meta.TransferSyntaxUID = syntax
    return one


@pytest.mark.parametrize("syntax", [RLELossless, *PACKERS])
@pytest.mark.parametrize("dtype", ["i2", "u2"])
def test_compressed_pixels_are_the_same(tmp_path: Path, syntax: Any, dtype: str) -> None:
    image = (noise((4, 32, 40)) - (1000 if dtype == "i2" else 0)).astype(dtype)
    save(tmp_path / "scan", series_of(image_DHW=image))
    plain = formats.read_image(only(tmp_path).image)
    shutil.rmtree(tmp_path / "scan")
    save(tmp_path / "scan", [packed(one, syntax) for one in series_of(image_DHW=image)])
    unpacked = formats.read_image(only(tmp_path).image)
    assert unpacked.grid == plain.grid
    assert (unpacked.image_CDHW == plain.image_CDHW).all()
    assert (unpacked.image_CDHW[0] == image - 1024.0).all()
    assert unpacked.digest != plain.digest


@pytest.mark.parametrize("syntax", PACKERS)
def test_a_damaged_frame_is_an_error_and_not_the_end(tmp_path: Path, syntax: Any) -> None:
    slices = [packed(one, syntax) for one in series_of(image_DHW=noise((3, 32, 40)))]
    path = save(tmp_path / "scan", slices)[1]
    content, random = path.read_bytes(), np.random.default_rng(0)
    image = only(tmp_path).image
    refusals = 0
    start = content.find(
        b"\xff\x4f\xff\x51" if "J2K" in syntax.keyword or "2000" in syntax.keyword else b"\xff\xd8\xff"
    )
    for n in range(100):
        damaged = bytearray(content)
        stop = start + 60 if n % 2 else len(content)
        damaged[random.integers(start, stop)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            formats.read_image(image)
        except ArchiveError:
            refusals += 1
    assert refusals


@pytest.mark.parametrize("syntax", PACKERS)
def test_a_frame_that_promises_another_size_is_not_unpacked(tmp_path: Path, syntax: Any) -> None:
    slices = [packed(one, syntax) for one in series_of(image_DHW=noise((3, 32, 40)))]
    for one in slices:
        one.Rows = 64
    save(tmp_path / "scan", slices)
    with pytest.raises(ArchiveError, match=r"a compressed frame of \(32, 40\) pixels, expected \(64, 40\)"):
        formats.read_image(only(tmp_path).image)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_colors_of_a_jpeg_are_red_green_and_blue(tmp_path: Path, photometric: str) -> None:
    rgb_HWC = np.full((32, 40, 3), (200, 100, 50), np.uint8)
    within = "ycbcr" if photometric != "RGB" else "rgb"
    jpeg = imagecodecs.jpeg8_encode(rgb_HWC, level=95, colorspace="rgb", outcolorspace=within)
    slices = series_of(image_DHW=np.zeros((3, 32, 40), np.uint8))
    for one in slices:
        one.SamplesPerPixel, one.PlanarConfiguration, one.PhotometricInterpretation = 3, 0, photometric
        one.RescaleIntercept, one.PixelData = 0, encapsulate([jpeg])
        one["PixelData"].VR = "OB"
        one.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    save(tmp_path / "scan", slices)
    image_CDHW = formats.read_image(only(tmp_path).image).image_CDHW
    assert np.abs(image_CDHW[:, 1, 16, 20] - (200, 100, 50)).max() <= 3


def test_a_compression_that_nothing_unpacks_is_set_aside(tmp_path: Path) -> None:
    slices = series_of()
    for one in slices:
        one.compress(RLELossless, generate_instance_uid=False)
        one.file_meta.TransferSyntaxUID = MPEG2MPML
    save(tmp_path / "scan", slices)
    assert "compressed as MPEG2 Main Profile / Main Level, which nothing here unpacks" in refused(tmp_path)


def test_a_decoder_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = [packed(one, JPEG2000Lossless) for one in series_of(image_DHW=noise((3, 32, 40)))]
    save(tmp_path / "scan", slices)
    monkeypatch.setattr(codecs, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"JPEG 2000.* need imagecodecs.*pip install 'tutelage\[dicom\]'"
    ):
        listed(tmp_path)


def test_pydicom_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "scan", series_of())
    image = only(tmp_path).image
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for work in (lambda: listed(tmp_path), lambda: formats.read_image(image)):
        with pytest.raises(MissingExtraError, match=r"pip install 'tutelage\[dicom\]'"):
            work()


def test_where_small_is_bright_values_are_turned_around(tmp_path: Path) -> None:
    slices = series_of(image_DHW=noise(dtype="u2"))
    for one in slices:
        one.PhotometricInterpretation, one.Modality, one.BitsStored = "MONOCHROME1", "MR", 12
        one.HighBit, one.RescaleIntercept = 11, 0
    save(tmp_path / "scan", slices)
    assert (formats.read_image(only(tmp_path).image).image_CDHW[0] == 4095 - noise()).all()
    shutil.rmtree(tmp_path / "scan")
    for one in slices:
        one.Modality = "CT"
    save(tmp_path / "scan", slices, seed=1)
    assert (formats.read_image(only(tmp_path).image).image_CDHW[0] == noise()).all()


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colors_are_channels(tmp_path: Path, photometric: str) -> None:
    from pydicom.pixels import convert_color_space

    color = (noise((*SHAPE, 3)) % 256).astype(np.uint8)
    slices = []
    for one, rgb_HWC in zip(series_of(image_DHW=color[..., 0]), color, strict=True):
        stored = rgb_HWC if photometric == "RGB" else convert_color_space(rgb_HWC, "RGB", photometric)
        one.SamplesPerPixel, one.PlanarConfiguration, one.PhotometricInterpretation = 3, 0, photometric
        one.PixelData, one.RescaleIntercept = stored.tobytes(), 0
        slices.append(one)
    save(tmp_path / "scan", slices)
    volume = formats.read_image(only(tmp_path).image)
    assert volume.image_CDHW.shape == (3, *SHAPE)
    assert np.abs(volume.image_CDHW - color.transpose(3, 0, 1, 2)).max() <= (0 if photometric == "RGB" else 2)


def test_too_many_voxels_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    slices = series_of()
    for one in slices:
        one.compress(RLELossless, generate_instance_uid=False)
        one.Rows = one.Columns = 60_000
    save(tmp_path / "scan", slices)
    image = only(tmp_path).image
    tracemalloc.start()
    with pytest.raises(ArchiveError, match="its header declares 21600000000 voxels"):
        formats.read_image(image)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


# --- addresses, stamps and digests --------------------------------------------------------


def test_addresses_come_back_as_they_were(tmp_path: Path) -> None:
    series = dicom.Series(
        Place.of(tmp_path / "a#b" / "c d?"), "ct-3-ab", "1.2&x", (("type", "A\\B c"),), (".", "é/f#g")
    )
    assert dicom.parsed(series.address) == series
    assert formats.stem(Place.of(series.address).name) == "ct-3-ab"
    assert not dicom.is_series(f"{tmp_path}/a#b.nii.gz")
    with pytest.raises(ArchiveError, match="it is no address of a series"):
        dicom.parsed("scan.nii.gz")


def test_a_stamp_changes_with_any_file_and_a_digest_only_with_their_content(tmp_path: Path) -> None:
    paths = save(tmp_path / "scan", series_of())
    image = only(tmp_path).image
    stamp, digest = formats.stamp(image), formats.read_image(image).digest
    assert stamp.startswith(f"{sum(path.stat().st_size for path in paths)}-")
    assert formats.stamp(image) == stamp
    os.utime(paths[2], ns=(1, 1))
    assert formats.stamp(image) != stamp
    paths[3].rename(paths[3].with_name("renamed"))
    assert formats.read_image(image).digest == digest
    one = pydicom.dcmread(paths[2])
    one.PixelData = bytes(len(one.PixelData))
    one.save_as(paths[2])
    assert formats.read_image(image).digest != digest


def test_a_series_that_is_gone_or_has_changed_is_said_so(tmp_path: Path) -> None:
    paths = save(tmp_path / "scan", series_of())
    image = only(tmp_path).image
    paths[3].unlink()
    with pytest.raises(ArchiveError, match="1 slice is missing"):
        formats.read_image(image)
    for path in paths:
        path.unlink(missing_ok=True)
    for work in (formats.stamp, formats.header, formats.read_image):
        with pytest.raises(ArchiveError, match="none of its files is there"):
            work(image)
    slices = [*series_of(), *series_of()]
    for n, one in enumerate(slices):
        acquisition(one, n // 6)
    save(tmp_path / "scan", slices)
    with pytest.raises(ArchiveError, match="its files make other volumes than before, expected a single one"):
        formats.header(image)


def test_headers_are_remembered_until_their_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = save(tmp_path / "scan", series_of())
    image = only(tmp_path).image
    opened: list[str] = []
    real = Place.open

    def counted(place: Place) -> Any:
        opened.append(place.name)
        return real(place)

    monkeypatch.setattr(Place, "open", counted)
    formats.header(image)
    assert opened == []
    os.utime(paths[2], ns=(1, 1))
    formats.header(image)
    assert opened == [paths[2].name]


def test_memory_for_headers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "_REMEMBERED", 10)
    memory = instances._Memory()
    for n in range(30):
        memory.keep(headers.Instance(f"f{n}", (1, 1), "scan"))
    assert [n for n in range(30) if memory.get(f"f{n}", (1, 1))] == list(range(20, 30))


def test_a_series_behind_an_address_with_a_scheme_is_the_same(tmp_path: Path) -> None:
    save(tmp_path / "scan", series_of()[:3])
    save(tmp_path / "more", series_of()[3:])
    here = only(tmp_path)
    settings = told(tmp_path)
    (there,) = found_in(settings, Place(f"file://{tmp_path}"))
    assert isinstance(there, Found)
    assert there.image == f"file://{here.image}"
    far = formats.read_image(Place(there.image))
    assert (far.image_CDHW == formats.read_image(here.image).image_CDHW).all()


# --- patients -----------------------------------------------------------------------------


def test_nothing_that_names_a_patient_leaves_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = series_of()
    save(tmp_path / "scan", slices)
    plain = only(tmp_path)
    assert not any(word in repr(plain) for word in ("1234567", "Doe", "Jane", "19700101"))
    monkeypatch.setenv(headers.SALT, "secret")
    salted = only(tmp_path)
    assert (salted.case, salted.image) == (plain.case, plain.image)
    assert salted.patient != plain.patient


def test_patients_are_told_apart_by_number_and_else_by_study(tmp_path: Path) -> None:
    for n, (patient, study) in enumerate(
        [("a", "1"), ("a", "2"), ("b", "3"), ("", "4"), ("", "4"), ("", "5")]
    ):
        slices = series_of(f"1.2.{n}")
        for one in slices:
            one.PatientID, one.StudyInstanceUID = patient, f"1.9.{study}"
        save(tmp_path / str(n), slices)
    found, _ = listed(tmp_path)
    patients = [one.patient for one in found]
    assert [patients.index(patient) for patient in patients] == [0, 0, 2, 3, 3, 5]


# --- labels and the catalog ---------------------------------------------------------------


def label(root: Path, found: Found, name: str, value: int = 1) -> None:
    grid = formats.header(found.image).grid
    formats.write_image(root / "labels" / name, np.full(grid.shape, value, np.uint8), grid)


def test_labels_are_named_like_a_case_or_a_series(tmp_path: Path) -> None:
    for n in range(4):
        save(tmp_path / f"scan{n}", series_of(f"1.2.{n}"))
    found, _ = listed(tmp_path)
    label(tmp_path, found[0], f"{found[0].case}.nii.gz")
    label(tmp_path, found[1], "1.2.1.nrrd")
    label(tmp_path, found[2], "1.2.2.nii.gz")
    label(tmp_path, found[2], f"{found[2].case}.nii")
    label(tmp_path, found[3], "somebody.nii.gz")
    again, bad = listed(tmp_path)
    labels = f"{tmp_path}/labels"
    assert [one.label for one in again] == [f"{labels}/{found[0].case}.nii.gz", f"{labels}/1.2.1.nrrd", None]
    reasons = {Place(one.address).name: one.reason for one in bad}
    assert "it has 2 labels" in reasons[Place(found[2].image).name]
    assert "no series has its name" in reasons["somebody.nii.gz"]


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Six patients, four of them with labels, and one series that lacks a slice."""
    root = tmp_path / "hospital"
    for n in range(6):
        slices = series_of(f"1.2.{n}", axes=turned(10 * n))
        for one in slices:
            one.PatientID = f"patient {n}"
        save(root / f"study{n % 2}", slices)
    for n, one in enumerate(listed(root)[0][:4]):
        label(root, one, f"1.2.{n}.nii.gz")
    save(root / "broken", [one for k, one in enumerate(series_of("1.2.99")) if k != 2])
    return root


def scanned(root: Path, **more: Any) -> Catalog:
    settings = told(root, split={"gold": 2, "validation": 1, "test": 1}, **more)
    return scan(settings, Place.of(root.parent / "catalog"), Place.of(root.parent / "made"))


def test_a_hospital_becomes_a_catalog_and_the_next_scan_opens_nothing(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = scanned(hospital)
    roles = [case.role.value for case in catalog.cases]
    assert sorted(roles) == ["gold", "gold", "test", "unlabeled", "unlabeled", "validation"]
    assert [Place(one.address).name[:9] for one in catalog.quarantined] == ["broken#ct"]
    for case in catalog.cases:
        volume = formats.read_image(case.image)
        assert volume.grid == case.grid
        if case.label:
            assert formats.read_label(case.label, volume.grid, 1).all()
    monkeypatch.setattr(formats, "header", lambda address: pytest.fail(f"opened {address}"))
    assert scanned(hospital).fingerprint() == catalog.fingerprint()


@pytest.fixture
def read(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a scan as a new process would do it, which tells names of files whose headers it read."""
    files: list[str] = []

    def noted(stream: Any, file: str, stamp: tuple[int, int]) -> headers.Instance:
        files.append(Place(file).name)
        return headers.examined(stream, file, stamp)

    def scan_anew(root: Path = hospital, **more: Any) -> list[str]:
        monkeypatch.setattr(instances, "_MEMORY", instances._Memory())
        files.clear()
        scanned(root, **more)
        return sorted(files)

    monkeypatch.setattr(instances, "examined", noted)
    return scan_anew


def loaded(hospital: Path) -> Catalog:
    return load(Place.of(hospital.parent / "catalog"))


def test_the_next_scan_reads_headers_of_new_and_of_changed_files_alone(
    hospital: Path, read: Callable[..., list[str]]
) -> None:
    (hospital / "readme.txt").write_text("exported on a Monday")
    many = enhanced()
    many.SeriesInstanceUID = "1.2.77"
    save(hospital / "many", [many])
    assert len(read()) == 6 * 6 + 5 + 2
    first = loaded(hospital)
    assert read() == []
    assert loaded(hospital).fingerprint() == first.fingerprint()
    assert loaded(hospital).quarantined == first.quarantined
    save(hospital / "broken", series_of("1.2.99")[2:3], seed=1)
    assert read() == ["IM0005"]
    # With it the series is whole.
    assert len(loaded(hospital).cases) == len(first.cases) + 1
    os.utime(hospital / "study1" / "IM0003", ns=(1, 1))
    assert read() == ["IM0003"]
    assert read() == []


def test_a_slice_that_is_gone_is_missed_without_any_header_read(
    hospital: Path, read: Callable[..., list[str]]
) -> None:
    read()
    inside = next(
        path
        for path in sorted((hospital / "study1").iterdir())
        if pydicom.dcmread(path).SeriesInstanceUID == "1.2.5"
        and pydicom.dcmread(path).pixel_array.tobytes() == noise()[3].tobytes()
    )
    inside.unlink()
    assert read() == []
    reasons = [one.reason for one in loaded(hospital).quarantined]
    assert len([reason for reason in reasons if "1 slice is missing" in reason]) == 2
    # Its row is gone too: were it sent again, it would be read.
    shutil.copy(hospital / "study1" / "IM0000", inside)
    assert read() == [inside.name]


def test_series_that_a_list_names_are_not_read_again_either(
    hospital: Path, read: Callable[..., list[str]]
) -> None:
    found, _ = listed(hospital)
    root = hospital.parent / "list.parquet"
    pq.write_table(
        pa.table({name: [getattr(one, name) for one in found] for name in ("image", "label")}), root
    )
    # Readers that meet in one folder may read a file each.
    assert len(read(root, importer="list")) >= 36
    assert read(root, importer="list") == []


def test_damaged_files_are_read_again_at_every_scan(hospital: Path, read: Callable[..., list[str]]) -> None:
    path = hospital / "broken" / "IM0001"
    path.write_bytes(path.read_bytes()[:-1])
    read()
    assert read() == ["IM0001"]
    assert any("IM0001: it ends 1 bytes early" in one.reason for one in loaded(hospital).quarantined)


def test_a_scan_that_was_killed_has_not_read_in_vain(
    hospital: Path, read: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_SHARD", 8)
    count = iter(range(20))

    def killed(*args: Any) -> headers.Instance:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return headers.examined(*args)

    with monkeypatch.context() as until_then:
        until_then.setattr(instances, "examined", killed)
        with pytest.raises(KeyboardInterrupt):
            read()
    assert len(read()) == 41 - 16
    assert read() == []
    assert not (hospital.parent / "catalog" / "instances").exists()


def test_what_is_kept_names_no_patient_and_counts_for_one_secret_only(
    hospital: Path, read: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read()
    plain = {case.patient for case in loaded(hospital).cases}
    monkeypatch.setenv(headers.SALT, "secret")
    assert len(read()) == 41
    salted = {case.patient for case in loaded(hospital).cases}
    assert plain & salted == set()
    assert read() == []
    stored = pq.read_table(hospital.parent / "catalog" / "instances.parquet")
    told = repr([stored.to_pylist(), stored.schema.metadata])
    assert salted < set(stored["patient"].to_pylist())
    assert not any(word in told for word in ("patient 0", "Doe", "19700101", "secret", *plain))
    assert headers.hashed("patient", "patient 0") not in told


def test_a_damaged_table_of_headers_costs_time_alone(hospital: Path, read: Callable[..., list[str]]) -> None:
    read()
    table, fingerprint = hospital.parent / "catalog" / "instances.parquet", loaded(hospital).fingerprint()
    whole = table.read_bytes()
    flipped = [bytearray(whole) for _ in range(24)]
    for n, copy in enumerate(flipped):
        copy[n * len(whole) // 24 + 5] ^= 0x55
    for content in (b"", b"no parquet", whole[: len(whole) // 2], *map(bytes, flipped)):
        table.write_bytes(content)
        assert len(read()) in (0, 41)
        assert loaded(hospital).fingerprint() == fingerprint
    pq.write_table(pa.table({"file": ["a"]}), table)
    assert len(read()) == 41
    assert read() == []


def test_splits_may_name_a_series_that_is_set_aside(hospital: Path) -> None:
    _, bad = listed(hospital)
    (broken,) = [dicom.parsed(one.address).case for one in bad]
    gold, test, validation, *_ = [one for one in listed(hospital)[0] if one.label]
    roles = {"gold": [gold.case], "test": [test.case], "validation": [validation.case, broken]}
    (hospital / "splits.json").write_text(json.dumps(roles))
    assert scanned(hospital).case(gold.case).role.value == "gold"


def test_a_series_too_large_and_a_label_beside_its_image_are_set_aside(hospital: Path) -> None:
    label(hospital, listed(hospital)[0][5], "1.2.4.nii.gz")
    reasons = {Place(one.address).name: one.reason for one in scanned(hospital).quarantined}
    assert "does not lie on its image" in reasons["1.2.4.nii.gz"]
    with pytest.raises(ArchiveError, match="0 patients have labels"):
        scanned(hospital, max_voxels=100)


def test_the_command_writes_a_catalog(hospital: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = hospital.parent / "hospital.yaml"
    split = {"gold": 2, "validation": 1, "test": 1}
    archive = {"importer": "dicom", "root": str(hospital), "structures": ["liver"], "split": split}
    workspace = str(hospital.parent / "ws")
    config.write_text(
        json.dumps(
            {"name": "h", "workspace": workspace, "archive": archive, "generalist": {"name": "threshold"}}
        )
    )
    with pytest.raises(SystemExit) as ended:
        main(["catalog", str(config), "--json"])
    out = capsys.readouterr().out
    assert ended.value.code in (0, 3), out
    assert '"CT"' in out
    assert "patient 0" not in out
