"""What unpacks compressed DICOM pixels: imagecodecs, which pydicom is told of as a decoder.

Chosen because it answers damaged frames with an error; GDCM, which most use, ends the process.
A frame whose own header promises another size than the file's, other samples, or countless
pieces, is refused before it is unpacked. RLE is left to pydicom, once it is seen how much comes out. Knows no
file: what frames there are, and how many are too many, is decided elsewhere.
"""

import logging
import struct
from importlib.util import find_spec
from itertools import pairwise
from threading import Lock
from typing import Any

from tutelage.archive import precincts
from tutelage.errors import ArchiveError, MissingExtraError

NAME = "tutelage"
"""Of this decoder, among those that pydicom knows."""

_JPEG = "jpeg8"
_JPEG_LS = "jpegls"
_JPEG_2000 = "jpeg2k"
_CODECS = {
    "1.2.840.10008.1.2.4.50": _JPEG,
    "1.2.840.10008.1.2.4.51": _JPEG,
    "1.2.840.10008.1.2.4.57": _JPEG,
    "1.2.840.10008.1.2.4.70": _JPEG,
    "1.2.840.10008.1.2.4.80": _JPEG_LS,
    "1.2.840.10008.1.2.4.81": _JPEG_LS,
    "1.2.840.10008.1.2.4.90": _JPEG_2000,
    "1.2.840.10008.1.2.4.91": _JPEG_2000,
    "1.2.840.10008.1.2.4.201": _JPEG_2000,
    "1.2.840.10008.1.2.4.202": _JPEG_2000,
    "1.2.840.10008.1.2.4.203": _JPEG_2000,
}
"""Transfer syntax -> what imagecodecs calls it: JPEG of all ages, with loss and without; JPEG-LS;
JPEG 2000, of high throughput too."""

_RLE = "1.2.840.10008.1.2.5"
_SHORT = 2**19
"""Bytes of an RLE segment that need no counting: 64 times as many come out of it at most."""

_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""Marks in JPEG and JPEG-LS after which rows and columns stand."""

_BARE = (0x01, *range(0xD0, 0xD8))
"""Marks without a length behind them."""

_SIZE_2000 = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream, and the mark after which its size stands."""

_BOXES = b"\0\0\0\x0cjP  "
"""Start of a JP2 file, which holds a codestream; DICOM wants that alone, some write the whole."""

_MOST_TILES = 2**12
"""Of a JPEG 2000 frame: each takes 9 KB, however small it is."""

_LOCK = Lock()

DECODER_DEPENDENCIES = {**dict.fromkeys(_CODECS, ("imagecodecs",)), _RLE: ("pydicom",)}
"""pydicom asks for it by this name."""


def is_available(uid: str) -> bool:
    """Whether frames of a transfer syntax can be unpacked; pydicom asks."""
    return uid == _RLE or (uid in _CODECS and find_spec("imagecodecs") is not None)


def plugin(syntax: str) -> str:
    """Return the name of the decoder that pydicom shall take; empty where nothing is compressed.

    Raises:
        ArchiveError: nobody can unpack this.
        MissingExtraError: imagecodecs could, but is not installed.
    """
    from pydicom.uid import UID

    uid = UID(syntax)
    if not uid.is_transfer_syntax or uid.is_private:
        raise ArchiveError(f"its transfer syntax is {syntax[:64]!r}, which nobody knows; export it again")
    if not uid.is_compressed:
        return ""
    if syntax not in DECODER_DEPENDENCIES:
        raise ArchiveError(f"its pixels are compressed as {uid.name}, which nothing here unpacks; convert it")
    if not is_available(syntax):
        raise MissingExtraError(
            f"DICOM pixels compressed as {uid.name} need imagecodecs, which is not installed; "
            "run `pip install 'tutelage[dicom]'`"
        )
    _register(uid)
    return NAME


def _register(uid: Any) -> None:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(uid)
    with _LOCK:
        if NAME not in decoder.available_plugins:
            unpacking = decode_runs if str(uid) == _RLE else decode_frame
            decoder.add_plugin(NAME, (__name__, unpacking.__name__))
            # pydicom logs what it raises as well, and without a handler that ends up on the screen.
            logging.getLogger("pydicom").addHandler(logging.NullHandler())


def decode_frame(source: bytes, runner: Any) -> bytearray:
    """Unpack one frame and tell pydicom how its values came out."""
    import imagecodecs

    codec = _CODECS[str(runner.transfer_syntax)]
    if codec == _JPEG_2000:
        source = _codestream(source)
    *found, samples = _size_2000(source) if codec == _JPEG_2000 else _size(source)
    expected = runner.rows, runner.columns
    if tuple(found) != expected:
        raise ArchiveError(f"a compressed frame of {tuple(found)} pixels, expected {expected}")
    if samples != runner.samples_per_pixel:
        raise ArchiveError(
            f"a compressed frame of {samples} samples a pixel, expected {runner.samples_per_pixel}"
        )
    if codec == _JPEG_2000:
        precincts.check(source)
    if codec == _JPEG:
        array = imagecodecs.jpeg8_decode(source, **_colors(runner))
    else:
        array = getattr(imagecodecs, f"{codec}_decode")(source)
    if runner.samples_per_pixel == 3:
        runner.set_option("planar_configuration", 0)
        if codec == _JPEG or ("YBR_" in runner.photometric_interpretation and codec == _JPEG_2000):
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", array.itemsize * 8)
    return bytearray(array.tobytes())


def decode_runs(source: bytes, runner: Any) -> bytearray:
    """Unpack one frame of RLE, as pydicom does, unless more comes out than is kept."""
    from pydicom.pixels.decoders import rle

    expected = runner.rows * runner.columns
    count, *starts = struct.unpack_from("<16I", source)
    for start, end in pairwise([*starts[:count], len(source)]):
        # Some pad what they pack.
        if end - start > _SHORT and _run_bytes(source, start, end, 2 * expected) > 2 * expected:
            raise ArchiveError(f"a compressed frame of more than {2 * expected} pixels, expected {expected}")
    frame: bytearray = rle._decode_frame(source, runner)
    return frame


def _run_bytes(source: bytes, at: int, end: int, most: int) -> int:
    """Count what comes out of a segment of RLE, not far beyond `most`."""
    count, end = 0, min(end, len(source))
    while at < end and count <= most:
        told = source[at]
        if told < 128:
            count, at = count + told + 1, at + told + 2
        elif told > 128:
            count, at = count + 257 - told, at + 2
        else:
            at += 1
    return count


def _colors(runner: Any) -> dict[str, Any]:
    """Have colors come out as red, green and blue, whatever they were packed as."""
    if runner.samples_per_pixel != 3:
        return {}
    packed = {"colorspace": "rgb"} if runner.photometric_interpretation == "RGB" else {}
    return packed | {"outcolorspace": "rgb"}


# --- what a frame promises ------------------------------------------------------------------


def _size(source: bytes) -> tuple[int, int, int]:
    """Read rows, columns and samples from the header of a JPEG or JPEG-LS frame, as decoders do."""
    at = 2
    while at + 10 <= len(source) and source[at] == 0xFF:
        mark = source[at + 1]
        if mark in _SIZES:
            rows, columns, samples = struct.unpack_from(">HHB", source, at + 5)
            return rows, columns, samples
        if mark == 0xFF:  # as many of these as one likes may stand before a mark
            at += 1
        elif mark in _BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(source[at + 2 : at + 4])
    raise ArchiveError("a compressed frame that does not tell its size, expected one that does")


def _size_2000(source: bytes) -> tuple[int, int, int]:
    """Read rows, columns and samples from the header of a JPEG 2000 codestream."""
    if len(source) < 42:
        raise ArchiveError("a compressed frame that ends in its header, expected more; copy it again")
    x, y, x_from, y_from, tile_x, tile_y, *_, samples = struct.unpack_from(">8IH", source, 8)
    rows, columns = y - y_from, x - x_from
    tiles = -(-rows // max(1, tile_y)) * -(-columns // max(1, tile_x))
    if tiles > _MOST_TILES:
        raise ArchiveError(f"a compressed frame of {tiles} tiles, expected at most {_MOST_TILES}")
    return rows, columns, samples


def _codestream(source: bytes) -> bytes:
    """Return what is decoded of a JPEG 2000 frame: not what a file around it adds, a palette above all.

    So what is read here is what the decoder reads too.
    """
    at = 0
    while source.startswith(_BOXES) and at + 16 <= len(source):
        length, kind, longer = struct.unpack_from(">I4sQ", source, at)
        start, length = (16, longer) if length == 1 else (8, length)
        if kind == b"jp2c":
            source = source[at + start :]
            break
        at += max(length, start)
    if not source.startswith(_SIZE_2000):
        raise ArchiveError("a compressed frame without a JPEG 2000 codestream, expected one; copy it again")
    return source
