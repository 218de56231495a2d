"""What unpacks compressed DICOM pixels: imagecodecs, which pydicom is told of as a decoder.

Chosen because it answers damaged frames with an error; GDCM, which most use, ends the process.
A frame whose own header promises another size than the file's is refused before it is
unpacked. RLE is left to pydicom.
"""

import logging
from importlib.util import find_spec
from threading import Lock
from typing import Any

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
_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""Marks in JPEG and JPEG-LS after which rows and columns stand."""

_SIZE_2000 = b"\xff\x4f\xff\x51"

_LOCK = Lock()

DECODER_DEPENDENCIES = dict.fromkeys(_CODECS, ("imagecodecs",))
"""pydicom asks for it by this name."""


def is_available(uid: str) -> bool:
    """Whether frames of a transfer syntax can be unpacked; pydicom asks."""
    return uid in _CODECS and find_spec("imagecodecs") is not None


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
    if syntax == _RLE or not uid.is_compressed:
        return "pydicom" if syntax == _RLE else ""
    if syntax not in _CODECS:
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
            decoder.add_plugin(NAME, (__name__, decode_frame.__name__))
            # pydicom logs what it raises as well, and without a handler that ends up on the screen.
            logging.getLogger("pydicom").addHandler(logging.NullHandler())


def decode_frame(source: bytes, runner: Any) -> bytearray:
    """Unpack one frame and tell pydicom how its values came out."""
    import imagecodecs

    expected = runner.rows, runner.columns
    if (found := _size(source)) != expected:
        raise ArchiveError(f"a compressed frame of {found} pixels, expected {expected}")
    codec = _CODECS[str(runner.transfer_syntax)]
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


def _colors(runner: Any) -> dict[str, Any]:
    """Have colors come out as red, green and blue, whatever they were packed as."""
    if runner.samples_per_pixel != 3:
        return {}
    packed = {"colorspace": "rgb"} if runner.photometric_interpretation == "RGB" else {}
    return packed | {"outcolorspace": "rgb"}


def _size(source: bytes) -> tuple[int, int] | None:
    """Read rows and columns from a compressed frame's own header."""
    if (at := source.find(_SIZE_2000, 0, 2**12)) >= 0:
        x, y, x_from, y_from = (int.from_bytes(source[n : n + 4]) for n in range(at + 8, at + 24, 4))
        return y - y_from, x - x_from
    at = 2
    while at + 9 <= len(source) and source[at] == 0xFF:
        if source[at + 1] in _SIZES:
            return int.from_bytes(source[at + 5 : at + 7]), int.from_bytes(source[at + 7 : at + 9])
        at += 2 + int.from_bytes(source[at + 2 : at + 4])
    return None
