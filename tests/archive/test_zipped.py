"""Zips of DICOM series from strangers: what comes out lies where the series does, and harm is refused."""

import io
import re
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.archive.test_dicom import enhanced, noise, only, save, series_of, turned
from tutelage.archive import formats, instances
from tutelage.archive.volume import Limits
from tutelage.archive.zipped import read, unpacked
from tutelage.errors import ArchiveError

LIMITS = Limits(voxels=2**20, unpacked=10**7, ratio=100.0, entries=40)


def zipped(files: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def series(folder: Path, slices: list[Any], within: str = "DOE^JANE/") -> list[tuple[str, bytes]]:
    """Return a series as files of a zip, called as scanners call them."""
    paths = save(folder, slices)
    return [(f"{within}{path.name}", path.read_bytes()) for path in sorted(paths)]


def reading(data: bytes, folder: Path, limits: Limits = LIMITS) -> Any:
    folder.mkdir(exist_ok=True)
    return read(io.BytesIO(data), len(data), folder, limits)


def patched(data: bytes, offset: int, layout: str, value: int, entry: int = 0) -> bytes:
    """Change what the directory says of an entry."""
    at = [match.start() for match in re.finditer(b"PK\x01\x02", data)][entry]
    changed = bytearray(data)
    struct.pack_into(layout, changed, at + offset, value)
    return bytes(changed)


def test_a_series_in_a_zip_is_the_series_in_its_folder(tmp_path: Path) -> None:
    slices = series_of(axes=turned())
    files = series(tmp_path / "series", slices)
    more = [("DICOMDIR", b"no image"), ("__MACOSX/._IM0001", b"\0\5\26\7"), ("README.TXT", b"hello")]
    volume, source = reading(zipped([*files, *more]), tmp_path / "out")
    plain = formats.read_image(only(tmp_path / "series").image)
    assert np.array_equal(volume.image_CDHW, plain.image_CDHW)
    assert (volume.grid, volume.native, volume.digest) == (plain.grid, plain.native, plain.digest)
    assert len(source.uids) == len(slices)


def test_one_file_of_all_frames_in_a_zip_is_a_volume(tmp_path: Path) -> None:
    volume, _ = reading(zipped(series(tmp_path / "series", [enhanced()])), tmp_path / "out")
    assert volume.grid.shape == noise().shape


def test_names_in_a_zip_are_used_for_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    reading(zipped(series(tmp_path / "series", series_of())), out)
    assert sorted(path.name for path in out.iterdir()) == [f"entry-{n:05d}" for n in range(1, 7)]


def test_headers_of_a_zip_are_not_remembered(tmp_path: Path) -> None:
    reading(zipped(series(tmp_path / "series", series_of())), tmp_path / "out")
    kept = [file for file, _ in instances._MEMORY._known if str(tmp_path / "out") in file]
    assert kept == []


# --- what it holds ------------------------------------------------------------------------


def test_two_series_are_refused_by_how_many_files_they_have(tmp_path: Path) -> None:
    both = [*series_of(), *series_of("1.2.4", image_DHW=noise((4, 8, 10)))]
    with pytest.raises(ArchiveError, match="2 series, of 6 and 4 files, expected one") as refused:
        reading(zipped(series(tmp_path / "series", both)), tmp_path / "out")
    for secret in ("DOE", "Doe", "1.2.4", "1234567", str(tmp_path)):
        assert secret not in str(refused.value)


def test_a_scout_beside_a_series_is_passed_over(tmp_path: Path) -> None:
    scout = series_of("1.2.4")[:1]
    scout[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    files = series(tmp_path / "series", [*series_of(), *scout])
    volume, _ = reading(zipped(files), tmp_path / "out")
    assert volume.grid.shape == noise().shape


def test_volumes_of_one_series_are_refused_by_what_tells_them_apart(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="2 volumes, told apart by phase, expected one"):
        reading(zipped(series(tmp_path / "series", [enhanced(phases=2)])), tmp_path / "out")


def test_a_zip_without_dicom_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="of its 2 files, none of them is a DICOM image"):
        reading(zipped([("a.txt", b"hello"), ("b.nii", bytes(400))]), tmp_path / "out")


@pytest.mark.parametrize("files", [[], [("folder/", b"")]], ids=["nothing", "a folder"])
def test_an_empty_zip_is_told_so(tmp_path: Path, files: list[tuple[str, bytes]]) -> None:
    with pytest.raises(ArchiveError, match="holds no files"):
        reading(zipped(files), tmp_path / "out")


def test_a_missing_slice_is_told_by_numbers_of_entries(tmp_path: Path) -> None:
    files = series(tmp_path / "series", [one for k, one in enumerate(series_of()) if k != 3])
    with pytest.raises(ArchiveError, match=r"1 slice is missing.*entry-0000\d") as refused:
        reading(zipped(files), tmp_path / "out")
    assert "DOE" not in str(refused.value)


def test_a_slice_cut_off_is_told_by_the_number_of_its_entry(tmp_path: Path) -> None:
    files = series(tmp_path / "series", series_of())
    files[2] = (files[2][0], files[2][1][:-50])
    with pytest.raises(ArchiveError, match="entry-00003: it ends 50 bytes early"):
        reading(zipped(files), tmp_path / "out")


def test_too_many_voxels_are_refused(tmp_path: Path) -> None:
    data = zipped(series(tmp_path / "series", series_of()))
    with pytest.raises(ArchiveError, match="declares 480 voxels, expected at most 479"):
        reading(data, tmp_path / "out", Limits(479, 10**7, 100.0, 40))


# --- harm ---------------------------------------------------------------------------------


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("IM0001")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def quoted() -> bytes:
    """Return entries that lie within each other, each with a name of its own (Fifield's bomb)."""
    plain = bytes(3 * 10**5)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(plain) + packer.flush()
    whole, head, directory = b"", b"", b""
    for number in range(9):
        if whole:
            # An uncompressed block holds the header of the entry behind it, and that entry goes on.
            size = struct.pack("<BHH", 0, len(head), 0xFFFF - len(head))
            packed, plain = size + whole, head + plain
        name = b"IM%04d" % number
        told = struct.pack("<IIIHH", zlib.crc32(plain), len(packed), len(plain), len(name), 0)
        head = struct.pack("<IHHHHH", 0x04034B50, 20, 0, 8, 0, 0) + told + name
        whole = head + packed
        # Where it starts is told from the end, as the first one is written last.
        entry = (
            struct.pack("<IHHHHHH", 0x02014B50, 20, 20, 0, 8, 0, 0) + told + struct.pack("<HHHI", 0, 0, 0, 0)
        )
        directory += entry + struct.pack("<I", len(whole)) + name
    moved = b""
    for at in range(0, len(directory), 52):
        entry = directory[at : at + 52]
        start = len(whole) - struct.unpack("<I", entry[42:46])[0]
        moved += entry[:42] + struct.pack("<I", start) + entry[46:]
    return whole + moved + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 9, 9, len(moved), len(whole), 0)


def crowded() -> bytes:
    """Return a directory of a hundred thousand entries, which its end says is empty."""
    entry = (
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    )
    directory = entry * 100_000
    return directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0, 0, len(directory), 0, 0)


ONE = zipped([("IM0001", b"hello")])
LARGE = zipped([("IM0001", bytes(3 * 10**6))])

HARM: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a zip": (lambda: b"PK\x03\x04 hello", "is no sound zip"),
    "cut off": (lambda: ONE[:-30], "is no sound zip"),
    "path upward": (lambda: zipped([("../../IM0001", b"x")]), "entry 1 would lie outside"),
    "path upward, of Windows": (lambda: zipped([("a", b"x"), ("a\\..\\..\\IM", b"x")]), "entry 2 would lie"),
    "absolute path": (lambda: zipped([("/etc/passwd", b"x")]), "would lie outside"),
    "path on a drive": (lambda: zipped([("C:\\IM0001", b"x")]), "would lie outside"),
    "a link": (linked, "entry 1 is a link"),
    "encrypted": (lambda: patched(ONE, 8, "<H", 1), "entry 1 is encrypted"),
    "another compression": (lambda: zipped([("a", b"x")], zipfile.ZIP_BZIP2), "compressed by method 12"),
    "a zip in a zip": (lambda: zipped([("a.zip", ONE)]), "entry 1 is a zip"),
    "one name twice": (lambda: zipped([("aa", b"x"), ("bb", b"y")]).replace(b"bb", b"aa"), "have one name"),
    "a bomb": (lambda: LARGE, r"more than 1\.\d MB"),
    "a bomb that says it is small": (lambda: patched(LARGE, 24, "<I", 10), "entry 1 is damaged"),
    "one that says it is large": (lambda: patched(ONE, 24, "<I", 9), "holds 5 bytes, expected 9"),
    "one that says it is huge": (lambda: patched(ONE, 24, "<I", 0xFFFFFFF0), "more than"),
    "zip64 without its sizes": (lambda: patched(ONE, 24, "<I", 0xFFFFFFFF), "no sound zip|more than"),
    "another checksum": (lambda: patched(ONE, 16, "<I", 1), "entry 1 is damaged"),
    "elsewhere in the file": (lambda: patched(ONE, 42, "<I", 7), "entry 1 is damaged"),
    "beyond the file": (lambda: patched(ONE, 42, "<I", 2**30), "entry 1 is damaged"),
    "entries within each other": (quoted, r"more than 1\.\d MB"),
    "too many files": (
        lambda: zipped((f"{n}", b"x") for n in range(41)),
        "holds 41 files, expected at most 40",
    ),
    "a crowded directory": (crowded, "directory is longer|no sound zip"),
}


@pytest.mark.parametrize(("make", "complaint"), HARM.values(), ids=HARM.keys())
def test_harm_is_refused_without_a_name_and_nothing_lies_outside(
    tmp_path: Path, make: Callable[[], bytes], complaint: str
) -> None:
    data = make()
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=complaint) as refused:
            reading(data, tmp_path / "out", Limits(2**20, 10**7, 2.0, 40))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "IM0001" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 2 * 10**6


def test_entries_within_each_other_are_sound_but_for_their_sum(tmp_path: Path) -> None:
    # Else the bomb above is refused as something else, and nothing is known of it.
    with zipfile.ZipFile(io.BytesIO(quoted())) as archive:
        entries = archive.infolist()
        assert len(archive.read(entries[0])) == 3 * 10**5
        assert sum(entry.file_size for entry in entries) > 900 * len(quoted())


def test_what_comes_out_is_counted_and_not_what_is_claimed(tmp_path: Path) -> None:
    data = zipped((f"{n}", bytes(4 * 10**5)) for n in range(5))
    for entry in range(5):
        data = patched(data, 24, "<I", 4 * 10**5, entry)
    with pytest.raises(ArchiveError, match="more than"):
        list(unpacked(io.BytesIO(data), len(data), tmp_path, Limits(1, 10**6, 1e9, 40)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return zipped(series(tmp_path_factory.mktemp("series"), series_of()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), keep=st.floats(0.1, 1))
def test_whatever_is_damaged_a_volume_or_a_refusal_comes_out(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, at: float, value: int, keep: float
) -> None:
    data = bytearray(sound[: int(len(sound) * keep)])
    data[int(len(data) * at)] = value
    told = ""
    try:
        volume, _ = reading(bytes(data), tmp_path_factory.mktemp("out"))
        assert volume.image_CDHW.size == noise().size
    except ArchiveError as refused:
        told = str(refused)
    assert "doe" not in told.lower()
