"""Bodies from strangers: what is read, what is refused and when, and that nothing of them stays."""

import asyncio
import bz2
import gc
import gzip
import io
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve import uploads
from serve.uploads import Scan, TooLargeError, UnknownFormatError, Upload
from tests.archive.test_dicom import noise as scanned
from tests.archive.test_dicom import save, series_of, turned
from tests.archive.test_zipped import zipped
from tutelage.archive import formats
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import ArchiveError, StoppedError, TutelageError
from tutelage.geometry import Grid

pytestmark = [pytest.mark.files, pytest.mark.usefixtures("spool")]

SETTINGS = ServingSettings(max_mb=2.0, max_unpacked_mb=30.0, max_ratio=50.0, max_voxels=4 * 10**6)
GRID = Grid.from_spacing((4, 5, 6), (3.0, 1.5, 0.7))


def noise(shape: tuple[int, ...] = GRID.shape, dtype: str = "i2") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def reading(data: bytes, name: str = "", settings: ServingSettings = SETTINGS) -> Scan:
    with Upload(io.BytesIO(data), len(data), name) as upload:
        return uploads.read(upload, settings)


def left_in(spool: Path) -> list[str]:
    return [path.name for path in spool.glob("*/scan-*")]


def oblique(shape: tuple[int, int, int] = GRID.shape) -> Grid:
    matrix = np.eye(4)
    matrix[:3, :3] = turned() @ GRID.matrix[:3, :3]
    matrix[:3, 3] = (-12.5, 30.25, 7.0)
    return Grid.from_matrix(shape, matrix)


# --- receiving ----------------------------------------------------------------------------


class Body:
    """A body in pieces, which counts how many were taken."""

    def __init__(self, *pieces: bytes, broken: bool = False) -> None:
        self.pieces, self.broken, self.taken = pieces, broken, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.taken += 1
            yield piece
        if self.broken:
            raise ConnectionResetError


def received(body: Body, announced: int | None = None, name: str = "") -> Upload:
    return asyncio.run(uploads.received(body.__aiter__(), announced, name, SETTINGS))


def test_a_body_is_received_into_a_file_that_nobody_can_find(spool: Path) -> None:
    pieces = [bytes([n]) * 1000 for n in range(200)]
    with received(Body(*pieces), 200_000, "scan.nii") as upload:
        assert upload.file.read() == b"".join(pieces)
        assert (upload.size, upload.name) == (200_000, "scan.nii")
        assert list(spool.iterdir()) == []


def test_a_body_is_never_whole_in_memory() -> None:
    def receive() -> None:
        body = Body(*[b"x" * 2**16] * 500)
        asyncio.run(uploads.received(body.__aiter__(), None, "", ServingSettings())).close()

    assert peak_bytes(receive) < 2**22


def test_a_body_that_is_announced_too_large_is_refused_unread() -> None:
    body = Body(b"x" * 1000)
    with pytest.raises(TooLargeError, match=r"3\.0 MB or more, at most 2\.0 MB"):
        received(body, 3_000_000)
    assert body.taken == 0


def test_a_body_that_grows_too_large_is_refused_at_once() -> None:
    body = Body(*[b"x" * 500_000] * 100)
    with pytest.raises(TooLargeError, match=r"at most 2\.0 MB"):
        received(body, 1000)
    assert body.taken == 5


@pytest.mark.parametrize("body", [Body(), Body(b"", b"")], ids=["nothing", "empty pieces"])
def test_an_empty_body_is_told_how_curl_sends_one(body: Body) -> None:
    with pytest.raises(ArchiveError, match="--data-binary @"):
        received(body, 0)


def test_a_body_that_ends_early_is_refused() -> None:
    with pytest.raises(ArchiveError, match="ended after 3 of 9 bytes"):
        received(Body(b"abc"), 9)


@pytest.mark.parametrize("body", [Body(b"x", broken=True), Body(b"x" * 2**22), Body()])
def test_what_was_received_in_vain_holds_no_file(body: Body) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((ConnectionResetError, TutelageError)):
        received(body)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/a.nii", "a.nii"),
        ("C:\\scans\\a.nii", "a.nii"),
        ("a\r\nb\0.nii", "ab.nii"),
        ("folder/", ""),
        ("x" * 500 + ".nii", "x" * 116 + ".nii"),
    ],
)
def test_of_a_name_the_last_part_is_kept(sent: str, kept: str) -> None:
    with received(Body(b"x"), None, sent) as upload:
        assert upload.name == kept


# --- what is read -------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by its first bytes"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".nrrd"])
def test_volumes_are_read_as_they_lie(suffix: str, dtype: str, named: bool) -> None:
    image, grid = noise(dtype=dtype), oblique()
    scan = reading(formats.image_bytes(image, grid, suffix), f"patient 7{suffix.upper()}" if named else "")
    assert scan.name == ("patient 7" if named else "scan")
    assert np.array_equal(scan.volume.image_CDHW[0], image.astype(np.float32))
    # NIfTI keeps 32 bits of each number.
    assert scan.volume.grid.difference(grid, tolerance_mm=1e-4) is None
    assert scan.series is None


def test_a_picture_is_read() -> None:
    flat = Grid.from_spacing((1, 9, 8), (1, 1, 1))
    scan = reading(formats.image_bytes(noise((1, 9, 8), "u1"), flat, ".png"))
    assert scan.volume.grid.shape == (1, 9, 8)


def test_a_zip_is_read_and_leaves_nothing(tmp_path: Path, spool: Path) -> None:
    paths = save(tmp_path / "series", series_of(axes=turned()))
    scan = reading(zipped((path.name, path.read_bytes()) for path in paths), "CT of today.zip")
    assert (scan.name, scan.volume.grid.shape) == ("CT of today", scanned().shape)
    assert scan.series is not None
    assert left_in(spool) == []


def test_a_zip_that_nobody_waits_for_is_not_read_to_its_end(tmp_path: Path, spool: Path) -> None:
    paths = save(tmp_path / "series", series_of(axes=turned()))
    data = zipped((path.name, path.read_bytes()) for path in paths)
    with Upload(io.BytesIO(data), len(data), "a.zip") as upload, pytest.raises(StoppedError):
        uploads.read(upload, SETTINGS, stop=lambda: True)
    assert left_in(spool) == []


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"hello", ""), (b"\0" * 400, "a.txt"), (b"x", "IM0001")],
    ids=["words", "by name", "short"],
)
def test_an_upload_of_no_known_kind_is_told_which_kinds_there_are(data: bytes, name: str) -> None:
    with pytest.raises(UnknownFormatError, match=r"\.nii\.gz.*\.zip"):
        reading(data, name)


def test_a_single_dicom_file_is_told_to_come_with_its_series(tmp_path: Path) -> None:
    (path, *_) = save(tmp_path, series_of())
    with pytest.raises(UnknownFormatError, match="one DICOM file, expected a zip"):
        reading(path.read_bytes(), "IM0001.dcm")


def test_an_unknown_suffix_does_not_hide_a_known_kind() -> None:
    assert reading(formats.image_bytes(noise(), GRID, ".nii"), "scan.backup").name == "scan.backup"


# --- what is refused ----------------------------------------------------------------------


def header_of(shape: tuple[int, ...], code: int, bits: int) -> bytes:
    """Return a NIfTI header that claims a shape."""
    data = bytearray(formats.image_bytes(noise(), GRID, ".nii")[:352])
    struct.pack_into(f"<{len(shape) + 1}h", data, 40, len(shape), *shape)
    struct.pack_into("<2h", data, 70, code, bits)
    return bytes(data)


def nrrd_of(sizes: str, data: bytes, encoding: str = "gzip") -> bytes:
    lines = ("NRRD0004", "type: uint8", "dimension: 3", f"sizes: {sizes}", f"encoding: {encoding}", "", "")
    return "\n".join(lines).encode() + data


def picture(w: int, h: int) -> bytes:
    """Return a PNG that claims a size, its pixels all zero."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes((w + 1) * h), 9)
    head = struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def packed(shape: tuple[int, ...], real: int) -> bytes:
    return gzip.compress(header_of(shape, 4, 16) + bytes(real))


def unusual(value: float) -> bytes:
    image = noise(dtype="f4")
    image[1, 2, 3] = value
    return formats.image_bytes(image, GRID, ".nii.gz")


WHOLE = formats.image_bytes(noise(), GRID, ".nii.gz")
BIG = (90, 100, 110)

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb that says what it is": (lambda: packed(BIG, 2 * 90 * 100 * 110), "declare 1980352 unpacked"),
    "a bomb of bzip2": (lambda: bz2.compress(header_of(BIG, 4, 16) + bytes(1980000)), "declare 1980352 unp"),
    "a bomb of NRRD": (
        lambda: nrrd_of("100 100 200", gzip.compress(bytes(2 * 10**6))),
        "declare 20000.. unp",
    ),
    "a bomb of pixels": (lambda: picture(2000, 2100), "declares 4200000 voxels"),
    "a flat bomb of pixels": (lambda: picture(2000, 1900), "declare 3800000 unpacked"),
    "a claim of more than there is": (lambda: packed((50, 50, 50), 1000), "249000 bytes early"),
    "a claim of very much": (lambda: header_of((32767,) * 3, 64, 64), "declares 35181150961663 voxels"),
    "too many channels": (lambda: header_of((50, 50, 50, 90), 4, 16), "declares 11250000 voxels"),
    "five dimensions": (lambda: header_of((5, 5, 5, 3, 4), 4, 16), "more than four dimensions"),
    "negative sizes": (lambda: header_of((-5, 5, 5), 4, 16), "declares dimensions"),
    "sizes of nothing": (lambda: nrrd_of("0 5 5", b""), "sizes are"),
    "more digits than a number has": (lambda: nrrd_of("9" * 5000 + " 1 1", b""), "sizes are"),
    "raw NRRD that is short": (lambda: nrrd_of("50 50 50", b"hello", "raw"), "124995 bytes early"),
    "NRRD that lies elsewhere": (
        lambda: nrrd_of("5 5 5", b"").replace(b"encoding", b"data file: /etc/passwd\nencoding"),
        "data file",
    ),
    "half a gzip": (lambda: WHOLE[: len(WHOLE) // 2], "cut off|early"),
    "another checksum": (lambda: WHOLE[:-8] + b"abcd" + WHOLE[-4:], "cannot be decoded"),
    "very many parts of gzip": (lambda: gzip.compress(b"") * 132_000, "more than 131072 parts"),
    "gzip and then words": (lambda: WHOLE + b"hello", "cannot be decoded"),
    "no number": (lambda: unusual(float("nan")), "1 of its voxels are no numbers"),
    "without end": (lambda: unusual(float("-inf")), "1 of its voxels are no numbers"),
    "a path upward": (lambda: zipped([("../../IM", b"x")]), r"scan\.zip: its entry 1 would lie outside"),
    "half a zip": (lambda: zipped([("IM", b"x" * 99)])[:-9], "no sound zip"),
    "a zip of nothing": (lambda: zipped([]), "holds no files"),
}


@pytest.mark.parametrize(("make", "complaint"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_means_harm_is_refused_before_memory_is_taken(
    spool: Path, make: Callable[[], bytes], complaint: str
) -> None:
    data = make()
    assert peak_bytes(lambda: refused(data, complaint)) < 2**21 + 4 * len(data)
    assert left_in(spool) == []


def refused(data: bytes, complaint: str) -> None:
    with pytest.raises(ArchiveError, match=complaint):
        reading(data, settings=SETTINGS)


def peak_bytes(work: Callable[[], None]) -> int:
    """Return the most memory that was taken at a time, imports of decoders aside."""
    work()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_back_where_it_was_after_many_refusals() -> None:
    bodies = [data for make, _ in HOSTILE.values() if len(data := make()) < 10**6]

    def all_of_them() -> None:
        for data in bodies:
            refused(data, ".")
        gc.collect()

    all_of_them()
    tracemalloc.start()
    try:
        all_of_them()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            all_of_them()
        assert tracemalloc.get_traced_memory()[0] - before < 2**18
    finally:
        tracemalloc.stop()


def test_what_follows_a_volume_is_not_kept_in_memory() -> None:
    data = formats.image_bytes(noise(), GRID, ".nii")
    long = gzip.compress(data + bytes(10**7))
    assert peak_bytes(lambda: check(long)) < 2**22


def check(data: bytes) -> None:
    assert reading(data, "a.nii.gz").volume.grid.shape == GRID.shape


def test_gzip_in_parts_and_with_zeros_behind_is_read_whole() -> None:
    image = noise((20, 60, 60))
    data = formats.image_bytes(image, Grid.from_spacing(image.shape, (1, 1, 1)), ".nii")
    parts = [gzip.compress(data[start : start + 50_000]) for start in range(0, len(data), 50_000)]
    scan = reading(b"".join([*parts[:1], gzip.compress(b""), *parts[1:], bytes(99_999)]))
    assert np.array_equal(scan.volume.image_CDHW[0], image)


def test_a_long_name_in_gzip_costs_no_time() -> None:
    head, content = WHOLE[:10], WHOLE[10:]
    named = head[:3] + b"\x08" + head[4:] + b"n" * 10**7 + b"\0" + content
    started = time.process_time()
    assert reading(named).volume.grid.shape == GRID.shape
    # A byte at a time took a second.
    assert time.process_time() - started < 0.5


def test_unpacked_size_and_ratio_bound_each_for_itself() -> None:
    data = formats.image_bytes(noise((20, 100, 100)), Grid.from_spacing((20, 100, 100), (1, 1, 1)), ".nii.gz")
    small = ServingSettings(max_unpacked_mb=0.3)
    with pytest.raises(ArchiveError, match="declare 400352 unpacked, expected at most 300000"):
        reading(data, "", small)
    # What is left of the first megabyte is nobody's ratio.
    assert reading(data, "", ServingSettings(max_ratio=1.1)).volume.grid.shape == (20, 100, 100)


def test_points_in_time_are_channels_and_count_as_voxels() -> None:
    image = noise((3, *GRID.shape))
    data = formats.image_bytes(image, GRID, ".nii.gz")
    assert reading(data).volume.image_CDHW.shape == (3, *GRID.shape)
    with pytest.raises(ArchiveError, match="declares 360 voxels"):
        reading(data, "", ServingSettings(max_voxels=359))


# --- what is more than memory holds --------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".nrrd", ".png"])
def test_what_takes_more_memory_than_there_is_is_refused_before_it_is_taken(suffix: str) -> None:
    shape = (1, 1200, 1200) if suffix == ".png" else (100, 120, 120)
    data = formats.image_bytes(np.zeros(shape, "u1"), Grid.from_spacing(shape, (1, 1, 1)), suffix)
    with Upload(io.BytesIO(data), len(data), f"a{suffix}") as upload:
        taken = uploads.read(upload, ServingSettings(max_ratio=5000), 5 * 1_440_000 + 1000)
        assert taken.volume.image_CDHW.size == 1_440_000
        tracemalloc.start()
        with pytest.raises(TooLargeError, match=r"takes about 0.0 GB of memory, expected at most 0.0 GB"):
            uploads.read(upload, ServingSettings(max_ratio=5000), 5 * 1_440_000 - 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_series_that_takes_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    paths = save(tmp_path / "series", series_of())
    data = zipped([(path.name, path.read_bytes()) for path in paths])
    with Upload(io.BytesIO(data), len(data), "a.zip") as upload:
        voxels = uploads.read(upload, ServingSettings(), 10**9).volume.image_CDHW.size
        with pytest.raises(ArchiveError, match=f"{voxels} voxels, expected at most {voxels - 1}"):
            uploads.read(upload, ServingSettings(), 12 * voxels - 1)


def test_a_damaged_header_is_told_as_such_where_memory_is_counted() -> None:
    with (
        Upload(io.BytesIO(b"x" * 400), 400, "a.nii") as upload,
        pytest.raises(ArchiveError, match=r"a\.nii: it does not start like a NIfTI"),
    ):
        uploads.read(upload, ServingSettings(), 1)
