"""Files that cannot be used: each is refused with what was found, what was expected, what to do."""

import bz2
import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tutelage.archive import formats
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid

GRID = Grid.from_spacing((4, 5, 6), (3.0, 1.0, 1.0))


def noise(shape: tuple[int, ...] = GRID.shape) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 999, shape).astype(np.int16)


def whole(suffix: str) -> bytes:
    """Return a good file."""
    if suffix in (".png", ".jpg"):
        buffer = io.BytesIO()
        Image.fromarray(noise((40, 40)).astype(np.uint8)).save(buffer, "png" if suffix == ".png" else "jpeg")
        return buffer.getvalue()
    return formats.image_bytes(noise(), GRID, suffix)


def patched(offset: int, layout: str, *values: float) -> bytes:
    """Return a NIfTI with other values in its header."""
    data = bytearray(whole(".nii"))
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


def without_transforms(offset: int, layout: str, *values: float) -> bytes:
    """The same, with spacings alone to tell where voxels lie."""
    data = bytearray(patched(offset, layout, *values))
    struct.pack_into("<2h", data, 252, 0, 0)
    return bytes(data)


def nrrd_with(old: str, new: str) -> bytes:
    return whole(".nrrd").replace(old.encode(), new.encode(), 1)


def floats(*bad: float) -> bytes:
    data = noise().astype(np.float32)
    data.flat[: len(bad)] = bad
    return formats.image_bytes(data, GRID, ".nii")


BAD_HEADERS: dict[str, tuple[str, bytes, str]] = {
    "unknown suffix": ("a.mha", whole(".nii"), "suffix is unknown, expected one of .nii,"),
    "empty": ("a.nii", b"", "0 bytes, expected a NIfTI header"),
    "empty gzip": ("a.nii.gz", b"", "cut off|0 bytes"),
    "empty NRRD": ("a.nrrd", b"", "no end"),
    "empty PNG": ("a.png", b"", "neither PNG nor JPEG"),
    "text": ("a.nii", b"hello, this is no scan", "does not start like"),
    "text as NRRD": ("a.nrrd", b"hello, this is no scan", "does not start like"),
    "text as gzip": ("a.nii.gz", b"hello, this is no scan", "cannot be decoded"),
    "text as PNG": ("a.png", b"hello, this is no scan", "neither PNG nor JPEG"),
    "GIF named PNG": ("a.png", b"GIF89a" + bytes(20), "neither PNG nor JPEG"),
    "header cut off": ("a.nii", whole(".nii")[:200], "early"),
    "zero spacing": ("a.nii", patched(80, "<3f", 1, 0, 1), r"spacing is 1, 0, 1 mm"),
    "spacing that is no number": ("a.nii", patched(80, "<3f", 1, float("nan"), 1), "spacing is 1, nan, 1"),
    "zero spacing without transforms": (
        "a.nii",
        without_transforms(80, "<3f", 0, 1, 1),
        "spacing is 0, 1, 1",
    ),
    "axes in a plane": ("a.nii", patched(280, "<4f", 0, 0, 0, 0), "lie in a plane|spacings of"),
    "transform that is no number": ("a.nii", patched(280, "<f", float("inf")), "expected positive numbers"),
    "no dimensions": ("a.nii", patched(40, "<h", 0), "declares dimensions"),
    "negative dimension": ("a.nii", patched(42, "<h", -4), "declares dimensions"),
    "five dimensions": ("a.nii", patched(40, "<6h", 5, 2, 2, 2, 3, 5), "more than four dimensions"),
    "colors as a structure": ("a.nii", patched(70, "<2h", 128, 24), "expected whole or real numbers"),
    "complex numbers": ("a.nii", patched(70, "<2h", 32, 64), "expected whole or real numbers"),
    "unknown type": ("a.nii", patched(70, "<2h", 999, 16), "unknown type 999"),
    "a pair of files": ("a.nii", patched(344, "<4s", b"ni1\0"), "second file"),  # type: ignore[arg-type]
    "voxels inside the header": ("a.nii", patched(108, "<f", 12), "start at byte 12"),
    "voxels nowhere": ("a.nii", patched(108, "<f", float("nan")), "start at byte nan"),
    "NRRD without end": ("a.nrrd", b"NRRD0004\ntype: short\n", "no end"),
    "NRRD of blocks": ("a.nrrd", nrrd_with("type: int16", "type: block"), "expected numbers"),
    "NRRD in text": ("a.nrrd", nrrd_with("encoding: gzip", "encoding: hex"), "encoding is hex"),
    "NRRD of another space": (
        "a.nrrd",
        nrrd_with("left-posterior-superior", "scanner-xyz"),
        "space is scanner-xyz",
    ),
    "NRRD elsewhere": ("a.nrrd", nrrd_with("endian", "data file: /etc/passwd\nendian"), "data file"),
    "NRRD with zero spacing": ("a.nrrd", nrrd_with("(1.0,", "(0.0,"), "spacings of 0, 1, 3 mm"),
    "NRRD with an empty axis": ("a.nrrd", nrrd_with("sizes: 6 5 4", "sizes: 6 0 4"), "sizes are"),
    "NRRD without sizes": ("a.nrrd", nrrd_with("sizes: 6 5 4\n", ""), "sizes|cannot be decoded"),
    "NRRD of channels only": (
        "a.nrrd",
        nrrd_with("kinds: domain domain domain", "kinds: list list list").replace(b"space dir", b"#"),
        "axes lie in space",
    ),
}


@pytest.mark.parametrize(("name", "data", "complaint"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_refused_by_its_name(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for read in (formats.header, formats.read_image):
        with pytest.raises(ArchiveError, match=complaint) as refused:
            read(path)
        assert str(refused.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"gone\.nii: it does not exist"):
        formats.read_image(tmp_path / "gone.nii")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.995], ids=["a third", "most", "nearly all"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".nrrd"])
def test_a_file_cut_off_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    data = whole(suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ArchiveError, match=r"copy it again|early"):
        formats.read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_cut_off_is_refused(tmp_path: Path, suffix: str) -> None:
    data = whole(suffix)
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * 0.9)])
    with pytest.raises(ArchiveError, match="cannot be decoded"):
        formats.read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.995], ids=["a third", "most", "nearly all"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_cut_off_is_found_by_its_header_alone(tmp_path: Path, suffix: str, keep: float) -> None:
    data = whole(suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ArchiveError, match=r"copy it again|early"):
        formats.header(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.bz2", ".nrrd"])
def test_a_changed_byte_of_a_compressed_file_is_noticed(tmp_path: Path, suffix: str) -> None:
    data = bytearray(whole(suffix))
    data[-40] ^= 0x10
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"check it, or copy it again|early"):
        formats.read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("bad", [[np.nan], [np.inf, -np.inf]], ids=["NaN", "infinite"])
def test_voxels_that_are_no_numbers_are_refused_when_read(tmp_path: Path, bad: list[float]) -> None:
    (tmp_path / "a.nii").write_bytes(floats(*bad))
    assert formats.header(tmp_path / "a.nii").grid.shape == GRID.shape
    with pytest.raises(ArchiveError, match=f"{len(bad)} of its voxels are no numbers"):
        formats.read_image(tmp_path / "a.nii")


def test_numbers_too_large_for_us_are_refused(tmp_path: Path) -> None:
    data = noise().astype(np.float64)
    data[0, 0, 0] = 1e300
    (tmp_path / "a.nii").write_bytes(formats.image_bytes(data, GRID, ".nii"))
    with pytest.raises(ArchiveError, match="no numbers"):
        formats.read_image(tmp_path / "a.nii")


# --- size ---------------------------------------------------------------------------------


def _png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header declares a size that no pixels follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


HUGE: dict[str, Callable[[], tuple[str, bytes]]] = {
    "NIfTI": lambda: ("a.nii", patched(40, "<4h", 3, 30000, 30000, 30000)),
    "gzip bomb": lambda: (
        "a.nii.gz",
        gzip.compress(patched(40, "<4h", 3, 30000, 30000, 30000) + bytes(2**24)),
    ),
    "bzip2 bomb": lambda: (
        "a.nii.bz2",
        bz2.compress(patched(40, "<4h", 3, 30000, 30000, 30000) + bytes(2**24)),
    ),
    "channels": lambda: ("a.nii", patched(40, "<5h", 4, 100, 100, 100, 30000)),
    "NRRD": lambda: ("a.nrrd", nrrd_with("sizes: 6 5 4", "sizes: 999999 999999 999999")),
    "PNG": lambda: ("a.png", _png_of(12000, 12000)),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE.keys())
def test_a_huge_claim_is_refused_before_memory_is_taken(
    tmp_path: Path, make: Callable[[], tuple[str, bytes]]
) -> None:
    name, data = make()
    (tmp_path / name).write_bytes(data)
    # Once before, so that what is measured is not the import of a decoder.
    _ = formats.header(tmp_path / name) if name.endswith(("nrrd", "png")) else None
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=r"declares \d+ voxels, expected at most 1000000"):
            formats.read_image(tmp_path / name, max_voxels=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_small_claim_bounds_what_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole(".nii") + bytes(2**26)))
    tracemalloc.start()
    try:
        assert formats.read_image(tmp_path / "a.nii.gz").grid == GRID
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


# --- labels -------------------------------------------------------------------------------


def save_label(path: Path, values: NDArray[Any], grid: Grid = GRID) -> Path:
    formats.write_image(path, values, grid)
    return path


def label_of(value: float, dtype: str) -> NDArray[Any]:
    label = np.zeros(GRID.shape, dtype)
    label[0, 0, 0] = value
    return label


BAD_LABELS: dict[str, tuple[NDArray[Any], str]] = {
    "above": (label_of(4, "u1"), "from 0 to 4, expected 0 to 3"),
    "negative": (label_of(-1, "i2"), "from -1 to 0"),
    "fraction": (label_of(0.5, "f4"), "not whole numbers"),
    "NaN": (label_of(np.nan, "f4"), "not whole numbers"),
    "infinite": (label_of(np.inf, "f4"), "not whole numbers|from 0 to inf"),
}


@pytest.mark.parametrize(("label", "complaint"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_label_with_impossible_values_is_refused(
    tmp_path: Path, label: NDArray[Any], complaint: str
) -> None:
    path = save_label(tmp_path / "a.nii.gz", label)
    with pytest.raises(ArchiveError, match=complaint):
        formats.read_label(path, GRID, 3)


OTHER_GRIDS = {
    "shape": Grid.from_spacing((4, 5, 7), (3, 1, 1)),
    "spacing": Grid.from_spacing(GRID.shape, (3, 1, 1.1)),
    "place": Grid(GRID.shape, tuple((*row[:3], row[3] + 1.0) for row in GRID.affine)),
}


@pytest.mark.parametrize("grid", OTHER_GRIDS.values(), ids=OTHER_GRIDS.keys())
def test_a_label_on_another_grid_is_refused(tmp_path: Path, grid: Grid) -> None:
    path = save_label(tmp_path / "a.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    with pytest.raises(ArchiveError, match=r"does not lie on its image: (shape|corners)"):
        formats.read_label(path, GRID, 3)


def test_a_label_of_channels_is_refused(tmp_path: Path) -> None:
    path = save_label(tmp_path / "a.nii.gz", np.zeros((2, *GRID.shape), np.uint8))
    with pytest.raises(ArchiveError, match="2 channels, expected one"):
        formats.read_label(path, GRID, 3)


def test_a_label_stored_as_real_numbers_is_read(tmp_path: Path) -> None:
    path = save_label(tmp_path / "a.nii.gz", label_of(2.0001, "f4"))
    label = formats.read_label(path, GRID, 3)
    assert label.dtype == np.uint8
    assert label[0, 0, 0] == 2


def test_many_structures_take_16_bits(tmp_path: Path) -> None:
    path = save_label(tmp_path / "a.nii.gz", label_of(300, "u2"))
    label = formats.read_label(path, GRID, 300)
    assert label.dtype == np.uint16
    assert label[0, 0, 0] == 300


# --- writing ------------------------------------------------------------------------------


def test_a_mask_of_another_shape_is_refused() -> None:
    volume = formats.read_image_bytes(whole(".nii"), "a.nii")
    with pytest.raises(ArchiveError, match=r"\(4, 5, 5\) does not fit its image, \(4, 5, 6\)"):
        formats.mask_bytes(np.zeros((4, 5, 5), np.uint8), volume, ".nii.gz")


@pytest.mark.parametrize(
    ("suffix", "complaint"),
    [(".jpg", "JPEG changes values"), (".png", "do not fit in a PNG"), (".mha", "suffix is unknown")],
)
def test_a_format_that_cannot_hold_a_mask_is_refused(suffix: str, complaint: str) -> None:
    volume = formats.read_image_bytes(whole(".nii"), "a.nii")
    with pytest.raises(ArchiveError, match=complaint):
        formats.mask_bytes(np.zeros(GRID.shape, np.uint8), volume, suffix)


# --- anything -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".png", ".jpg"])
@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_is_either_harmless_or_refused(suffix: str) -> None:
    good = whole(suffix)
    span = min(len(good), 352 if suffix == ".nii" else 400)

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(where=st.integers(0, span - 1), data=st.binary(min_size=1, max_size=8))
    def damaged(where: int, data: bytes) -> None:
        broken = good[:where] + data + good[where + len(data) :]
        try:
            volume = formats.read_image_bytes(broken, f"a{suffix}", max_voxels=10_000)
        except ArchiveError:
            return
        assert np.isfinite(volume.image_CDHW).all()

    damaged()
