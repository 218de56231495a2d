"""DICOM files that mean harm: few bytes of which much would be made are refused before it is made."""

import contextlib
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from tests.archive.test_dicom import enhanced, noise, save, series_of
from tutelage.archive import codecs, elements, precincts
from tutelage.archive.volume import Limits
from tutelage.archive.zipped import read
from tutelage.errors import ArchiveError, StoppedError

GENEROUS = Limits(voxels=2**26, unpacked=10**8, ratio=10_000.0, entries=40)
EXPLICIT, DEFLATED = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.1.99"
ENDLESS = 0xFFFFFFFF


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    long = kind in (b"OB", b"SQ")
    length = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def file_of(syntax: bytes, content: bytes, uid: bytes = b"1.2.3") -> bytes:
    """Return a file with its preamble and its first group, and what is behind that."""
    told = element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.2") + element(2, 3, b"UI", uid)
    told += element(2, 0x10, b"UI", syntax)
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(told))) + told + content


def image(frames: int, groups: bytes, before: bytes = b"") -> bytes:
    """Return what describes frames of one pixel each, the groups that tell of them, and their pixels."""
    one = struct.pack("<H", 1)
    return b"".join(
        (
            element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2.1"), before,
            element(0x20, 0xD, b"UI", b"1.2"), element(0x20, 0xE, b"UI", b"1.2.9"),
            element(0x28, 2, b"US", one), element(0x28, 4, b"CS", b"MONOCHROME2"),
            element(0x28, 8, b"IS", str(frames).encode()),
            element(0x28, 0x10, b"US", one), element(0x28, 0x11, b"US", one),
            element(0x28, 0x100, b"US", struct.pack("<H", 8)), groups,
            element(0x7FE0, 0x10, b"OB", bytes(frames)),
        )
    )  # fmt: skip


def item(content: bytes = b"") -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def endless(group: int, number: int, items: bytes) -> bytes:
    """Return a sequence without a length."""
    start = struct.pack("<HH2sHI", group, number, b"SQ", 0, ENDLESS)
    return start + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


ENDLESS_ITEM = struct.pack("<HHIHHI", 0xFFFE, 0xE000, ENDLESS, 0xFFFE, 0xE00D, 0)


def reading(folder: Path, files: Sequence[bytes], limits: Limits = GENEROUS, **more: Any) -> Any:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, data in enumerate(files):
            archive.writestr(f"IM{number}", data)
    folder.mkdir(exist_ok=True)
    return read(buffer, len(buffer.getvalue()), folder, limits, **more)


def saved(folder: Path, slices: Sequence[Any]) -> list[bytes]:
    return [path.read_bytes() for path in sorted(save(folder, slices))]


@contextlib.contextmanager
def taking_at_most(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        assert tracemalloc.get_traced_memory()[1] - before < most
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True, scope="module")
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have all modules in memory that reading takes, or they would be counted."""
    slices = [jpeg_2000(one) for one in series_of(image_DHW=noise((3, 32, 40)))]
    reading(tmp_path_factory.mktemp("out"), saved(tmp_path_factory.mktemp("in") / "scan", slices))


def compressed(one: Any, data: bytes | bytearray, syntax: Any) -> Any:
    one.PixelData = encapsulate([bytes(data)])
    one["PixelData"].VR = "OB"
    one.file_meta.TransferSyntaxUID = syntax
    return one


def jpeg_2000(one: Any, codecformat: str = "j2k") -> Any:
    data = imagecodecs.jpeg2k_encode(one.pixel_array, reversible=True, codecformat=codecformat)
    return compressed(one, data, JPEG2000Lossless)


# --- headers ------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [10, 1200, 60_000])
def test_a_deflated_header_is_refused_however_late_it_says_so(tmp_path: Path, digits: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packer.compress(image(1, b"", element(9, 1, b"OB", bytes(2 * 10**7)))) + packer.flush()
    harm = file_of(DEFLATED, content, b"1." + b"2" * digits)
    with taking_at_most(2**22), pytest.raises(ArchiveError, match=r"header is compressed \(deflated\)"):
        reading(tmp_path, [harm])


def test_more_frames_than_a_file_may_have_are_refused_by_their_number(tmp_path: Path) -> None:
    groups = element(0x5200, 0x9230, b"SQ", item() * 70_000)
    with taking_at_most(2**22), pytest.raises(ArchiveError, match="it has 70000 frames, expected at most"):
        reading(tmp_path, [file_of(EXPLICIT, image(70_000, groups))])


@pytest.mark.parametrize("frames", [60_000, 2], ids=["as many frames", "two frames"])
def test_items_are_not_made_before_their_frames_are_seen_to_be_any(tmp_path: Path, frames: int) -> None:
    groups = element(0x5200, 0x9230, b"SQ", item() * 60_000)
    with taking_at_most(2**22), pytest.raises(ArchiveError, match="it has no position"):
        reading(tmp_path, [file_of(EXPLICIT, image(frames, groups))])


@pytest.mark.parametrize("one", [item(), ENDLESS_ITEM], ids=["items", "items without a length"])
@pytest.mark.parametrize("where", [(0x9, 0x1010), (0x5200, 0x9230)], ids=["anywhere", "of frames"])
def test_items_of_sequences_without_a_length_are_counted_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: bytes, where: tuple[int, int]
) -> None:
    monkeypatch.setattr(elements, "_READS", 2**12)
    crowd = endless(*where, one * 12_000)
    content = image(12_000, crowd) if where[0] == 0x5200 else image(1, b"", crowd)
    with taking_at_most(2**22), pytest.raises(ArchiveError, match="hold more elements than"):
        reading(tmp_path, [file_of(EXPLICIT, content)])


def test_what_is_behind_the_pixels_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = saved(tmp_path / "in", series_of())
    assert reading(tmp_path / "out", files)[0].grid.shape == noise().shape
    monkeypatch.setattr(elements, "_READS", 2**12)
    files[3] += endless(0x7FE1, 0x1010, item() * 12_000)
    with (
        taking_at_most(2**22),
        pytest.raises(ArchiveError, match=r"entry-00004: its .* bytes hold more elements"),
    ):
        reading(tmp_path / "again", files)


def test_frames_of_a_sequence_without_a_length_are_the_same(tmp_path: Path) -> None:
    plain, _ = reading(tmp_path / "plain", saved(tmp_path / "in", [enhanced()]))
    whole = enhanced()
    for group in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        whole[group].is_undefined_length = True
        for one in whole[group].value:
            one.is_undefined_length_sequence_item = True
    (data,) = saved(tmp_path / "without", [whole])
    assert struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, ENDLESS) in data
    volume, _ = reading(tmp_path / "out", [data])
    assert volume.grid == plain.grid
    assert (volume.image_CDHW == plain.image_CDHW).all()


def test_more_places_than_frames_are_refused(tmp_path: Path) -> None:
    whole = enhanced()
    whole.NumberOfFrames -= 1
    with pytest.raises(ArchiveError, match="it tells more places than it has frames, 5"):
        reading(tmp_path / "out", saved(tmp_path / "in", [whole]))


def test_a_sequence_that_is_cut_off_is_told_so(tmp_path: Path) -> None:
    harm = file_of(EXPLICIT, image(1, b"", endless(0x9, 0x1010, item() * 3)))
    with pytest.raises(ArchiveError, match="it is cut off"):
        reading(tmp_path, [harm[: harm.index(item() * 3) + 12]])


def test_a_value_longer_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    long = struct.pack("<HH2sHI", 0x8, 0x18, b"OB", 0, 2**31)
    with taking_at_most(2**22), pytest.raises(ArchiveError):
        reading(tmp_path, [file_of(EXPLICIT, image(1, b"", long))])


def test_what_stands_for_a_number_is_not_told_as_it_is(tmp_path: Path) -> None:
    content = image(1, b"").replace(element(0x28, 8, b"IS", b"1"), element(0x28, 8, b"IS", b"DOE^JANE"))
    with pytest.raises(ArchiveError, match=r"its number of frames is \?, expected a whole one"):
        reading(tmp_path, [file_of(EXPLICIT, content)])


# --- pixels -------------------------------------------------------------------------------


def test_compressed_pixels_count_against_what_may_be_unpacked(tmp_path: Path) -> None:
    slices = [jpeg_2000(one) for one in series_of(image_DHW=np.zeros((4, 1000, 1000), np.uint16))]
    files = saved(tmp_path / "in", slices)
    for limits in (Limits(2**26, 10**7, 200.0, 40), Limits(2**26, 7_999_999, 10_000.0, 40)):
        with taking_at_most(2**22), pytest.raises(ArchiveError, match="declare 8000000 unpacked"):
            reading(tmp_path / f"{limits.unpacked}", files, limits)
    volume, _ = reading(tmp_path / "out", files, Limits(2**26, 8 * 10**6, 10_000.0, 40))
    assert volume.grid.shape == (4, 1000, 1000)


def test_a_plain_series_is_as_large_as_its_pixels(tmp_path: Path) -> None:
    files = saved(tmp_path / "in", series_of(image_DHW=noise((4, 100, 100))))
    limits = Limits(2**26, sum(map(len, files)), 10_000.0, 40)
    assert reading(tmp_path / "out", files, limits)[0].grid.shape == (4, 100, 100)


GRAY = np.zeros((3, 64, 64), np.uint8)
COLORS = np.zeros((900, 900, 3), np.uint8)

SAMPLES = {
    "JPEG 2000": (JPEG2000Lossless, lambda: imagecodecs.jpeg2k_encode(COLORS, reversible=True)),
    "JPEG-LS": (JPEGLSLossless, lambda: imagecodecs.jpegls_encode(COLORS)),
    "JPEG": (JPEGBaseline8Bit, lambda: imagecodecs.jpeg8_encode(COLORS)),
}


def packed(folder: Path, data: bytes, syntax: Any, shape: tuple[int, int] = COLORS.shape[:2]) -> list[bytes]:
    """Return a series, each image of it in these bytes."""
    slices = [compressed(one, data, syntax) for one in series_of(image_DHW=GRAY)]
    for one in slices:
        one.Rows, one.Columns = shape
    return saved(folder, slices)


@pytest.mark.parametrize(("syntax", "make"), SAMPLES.values(), ids=SAMPLES)
def test_a_frame_that_promises_more_samples_is_not_unpacked(tmp_path: Path, syntax: Any, make: Any) -> None:
    files = packed(tmp_path / "in", make(), syntax)
    with pytest.raises(ArchiveError, match="a compressed frame of 3 samples a pixel, expected 1"):
        reading(tmp_path / "out", files)


@pytest.mark.parametrize("mark", [b"\xff", b"\xff\x01", b"\xff\xd0"], ids=["fill", "TEM", "RST0"])
def test_a_size_is_read_where_decoders_read_it(tmp_path: Path, mark: bytes) -> None:
    # Behind such marks stands no length; who takes one there finds the size that the comment fakes.
    data = bytes(imagecodecs.jpeg8_encode(np.zeros((900, 900), np.uint8)))
    at = data.index(b"\xff\xc0")
    fake = b"\xff\xc0\x00\x0b\x08" + struct.pack(">HHB", 64, 64, 1) + b"\x01\x11\x00"
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + (bytes(14) + fake + bytes(60_000))[:60_000]
    harm = data[:at] + mark + data[at:]
    assert codecs._size(harm) == (900, 900, 1)
    assert codecs._size(data[:at] + comment + data[at:]) == (900, 900, 1)
    with pytest.raises(ArchiveError, match=r"\(900, 900\) pixels, expected \(64, 64\)"):
        reading(tmp_path / "out", packed(tmp_path / "in", harm, JPEGBaseline8Bit, (64, 64)))


def test_the_size_of_jpeg_2000_is_that_of_what_is_decoded(tmp_path: Path) -> None:
    data = bytes(imagecodecs.jpeg2k_encode(np.zeros((900, 900), np.uint16), reversible=True))
    small = imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint16), reversible=True, codecformat="j2k")
    # A box in front, which decoders pass over, holds another image.
    harm = data[:32] + struct.pack(">I4s", 8 + len(small), b"free") + small + data[32:]
    with pytest.raises(ArchiveError, match=r"\(900, 900\) pixels, expected \(64, 64\)"):
        reading(tmp_path / "out", packed(tmp_path / "in", harm, JPEG2000Lossless, (64, 64)))


def test_jpeg_2000_in_a_file_of_its_own_is_the_same(tmp_path: Path) -> None:
    image_DHW = noise((3, 32, 40))
    files = saved(tmp_path / "in", [jpeg_2000(one, "jp2") for one in series_of(image_DHW=image_DHW)])
    volume, _ = reading(tmp_path / "out", files)
    assert (volume.image_CDHW[0] == image_DHW - 1024.0).all()


def test_a_frame_of_many_tiles_is_not_unpacked(tmp_path: Path) -> None:
    data = bytearray(imagecodecs.jpeg2k_encode(np.zeros((900, 900)).astype("u2"), codecformat="j2k"))
    struct.pack_into(">II", data, 24, 8, 8)
    with pytest.raises(ArchiveError, match="a compressed frame of 12769 tiles, expected at most 4096"):
        reading(tmp_path / "out", packed(tmp_path / "in", bytes(data), JPEG2000Lossless))


def cut(
    precincts: bytes = b"",
    layers: int = 1,
    tile: int = 512,
    where: str = "frame",
) -> bytes:
    """Return a JPEG 2000 frame of 512 by 512 pixels, all zero, cut up as it is told, coarsest first."""
    sizes = struct.pack(">H8IH3B", 0, 512, 512, 0, 0, tile, tile, 0, 0, 1, 15, 1, 1)
    levels = max(len(precincts), 1) - 1
    style = bytes([levels, 4, 4, 0, 1])
    plain = struct.pack(">BBHB", 0, 0, layers, 0) + style
    fine = struct.pack(">BBHB", 1, 0, layers, 0) + style + precincts
    one = b"\0\1" + style + precincts
    steps = b"\x40" + b"\x48" * (3 * levels + 1)
    marks = {"frame": ((0x52, fine), (0x52, plain)), "tile": ((0x52, plain), (0x52, fine))}
    first, second = {**marks, "samples": ((0x52, plain), (0x53, one))}[where]
    tile_marks = b"" if where == "frame" else marked(*second)
    part = struct.pack(">HIBB", 0, 22 + len(tile_marks), 0, 1)
    head = b"\xff\x4f" + marked(0x51, sizes) + marked(*first) + marked(0x5C, steps)
    return head + marked(0x90, part) + tile_marks + b"\xff\x93" + bytes(8) + b"\xff\xd9"


def marked(mark: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, mark, len(content) + 2) + content


@pytest.mark.parametrize("where", ["frame", "tile", "samples"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ({"precincts": b"\x00"}, "264196 precincts a tile, expected at most 32768"),
        ({"precincts": b"\x00\x11\x11\x11"}, r"\d+ precincts a tile"),
        ({"precincts": b"\x44", "layers": 65_535}, r"\d+ packets, expected at most 2097152"),
        ({"precincts": b"\xff" * 5, "layers": 65_535, "tile": 256}, r"\d+ packets"),
    ],
    ids=["precincts", "at a finer level", "in layers", "layers of tiles"],
)
def test_a_frame_that_is_cut_into_countless_pieces_is_not_unpacked(
    tmp_path: Path, where: str, harm: dict[str, Any], told: str
) -> None:
    data = cut(**harm, where=where)
    assert len(data) < 200
    files = packed(tmp_path / "in", data, JPEG2000Lossless, (512, 512))
    with taking_at_most(2**22), pytest.raises(ArchiveError, match=told):
        reading(tmp_path / "out", files)


@pytest.mark.parametrize("where", ["frame", "tile", "samples"])
def test_a_decoder_finds_the_pieces_where_they_are_counted(where: str) -> None:
    # Pieces as the decoder allows them, and fewer than are too many: it reads these frames to the end.
    assert imagecodecs.jpeg2k_decode(cut(b"\x55\x66", 3, where=where)).shape == (512, 512)


def test_frames_of_usual_pieces_are_unpacked() -> None:
    image = noise((1, 600, 500))[0]
    data = imagecodecs.jpeg2k_encode(image, reversible=True, codecformat="j2k", resolutions=6)
    precincts.check(bytes(data))
    assert (imagecodecs.jpeg2k_decode(data) == image).all()


def test_no_mark_hides_another_from_being_counted(tmp_path: Path) -> None:
    # The decoder looks on two bytes behind a mark that it does not know; by a length it would be far away.
    data = cut(b"\x00")
    at = data.index(b"\xff\x52")
    harm = data[:at] + b"\xff\x30" + data[at:]
    assert imagecodecs.jpeg2k_decode(harm).shape == (512, 512)
    with pytest.raises(ArchiveError, match="a mark 0xff30, expected those of JPEG 2000"):
        reading(tmp_path / "out", packed(tmp_path / "in", harm, JPEG2000Lossless, (512, 512)))


@pytest.mark.parametrize("count", [0, 3, 12, 40, 60, 75])
def test_a_frame_that_ends_early_is_left_to_the_decoder(count: int) -> None:
    precincts.check(cut(b"\x55", 3)[: 50 + count])


def test_runs_of_which_more_comes_out_than_is_kept_are_refused(tmp_path: Path) -> None:
    # Each two bytes stand for 128.
    data = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 300_000
    files = packed(tmp_path / "in", data, RLELossless, (64, 64))
    with taking_at_most(2**23), pytest.raises(ArchiveError, match="more than 8192 pixels, expected 4096"):
        reading(tmp_path / "out", files)


def test_runs_of_long_segments_are_unpacked_as_pydicom_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_DHW = noise((3, 64, 64))
    slices = series_of(image_DHW=image_DHW)
    for one in slices:
        one.compress(RLELossless, generate_instance_uid=False)
    monkeypatch.setattr(codecs, "_SHORT", 0)
    volume, _ = reading(tmp_path / "out", saved(tmp_path / "in", slices))
    assert (volume.image_CDHW[0] == image_DHW - 1024.0).all()


# --- nobody waits -------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0, 3, 8], ids=["at once", "among files", "among slices"])
def test_reading_ends_when_nobody_waits(tmp_path: Path, asked: int) -> None:
    files = saved(tmp_path / "in", series_of())
    answers = iter([False] * asked + [True])
    with pytest.raises(StoppedError, match="nobody waits"):
        reading(tmp_path / "out", files, stop=lambda: next(answers))
