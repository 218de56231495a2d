"""One DICOM file: what its header says about itself, and its pixels.

Headers are read without pixels and remembered while the process lives. What leaves one is
geometry, modality, series number and UIDs, and the patient's number as a hash; never a name
or a date. Says of every file whether it is a scan, something else, or damaged, and whether
it was cut off. Does not know which files belong together.

Values are those after rescaling, frame by frame. MONOCHROME1, where small is bright, is
turned around because networks see brightness; in CT and PET it stays, for there values are
a measure and the word is about display alone. Colors of any kind become red, green, blue.
"""

import contextlib
import hashlib
import io
import re
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite, prod
from threading import Lock
from typing import Any, BinaryIO, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tutelage.archive import codecs
from tutelage.archive.series import TELLING, Frame, Vector
from tutelage.errors import ArchiveError, MissingExtraError
from tutelage.storage import Place

_TAGS = {
    "class": 0x00080016, "uid": 0x00080018, "type": 0x00080008, "modality": 0x00080060,
    "patient": 0x00100020, "study": 0x0020000D, "series": 0x0020000E, "number": 0x00200011,
    "acquisition": 0x00200012, "phase": 0x00200100, "position": 0x00200032, "orientation": 0x00200037,
    "echo": 0x00180081, "trigger": 0x00181060, "bvalue": 0x00189087,
    "samples": 0x00280002, "photometric": 0x00280004, "frames": 0x00280008, "rows": 0x00280010,
    "columns": 0x00280011, "spacing": 0x00280030, "bits": 0x00280100, "intercept": 0x00281052,
    "slope": 0x00281053, "table": 0x00283000, "shared": 0x52009229, "each": 0x52009230,
}  # fmt: skip
"""All that is read of a header."""

_GROUPED = {
    "position": ((0x00209113, 0x00200032),),
    "orientation": ((0x00209116, 0x00200037),),
    "spacing": ((0x00289110, 0x00280030),),
    "slope": ((0x00289145, 0x00281053),),
    "intercept": ((0x00289145, 0x00281052),),
    "acquisition": ((0x00209111, 0x00209156),),
    "phase": ((0x00209111, 0x00209128),),
    "stack": ((0x00209111, 0x00209056),),
    "echo": ((0x00189114, 0x00189082),),
    "bvalue": ((0x00189117, 0x00189087),),
    "trigger": ((0x00189118, 0x00209153),),
    "type": ((0x00189226, 0x00089007), (0x00189329, 0x00089007), (0x00189751, 0x00089007)),
}
"""Where files of many frames keep the same: a group of a frame, and the tag in it."""

_BINARY = {
    0x00280002: "H", 0x00280010: "H", 0x00280011: "H", 0x00280100: "H", 0x00209156: "H",
    0x00209128: "I", 0x00189087: "d", 0x00189082: "d", 0x00209153: "d",
}  # fmt: skip
"""Tags whose numbers are not written as text."""

_NO_SCANS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a microscope's slide",
}
"""Objects with pixels that are no scans."""

_MEASURES = ("CT", "PT")
"""Modalities whose values are a measure, however they are displayed."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_BITS = (8, 16, 32, 64)
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_ENDLESS = 0xFFFFFFFF
"""Length of an element that ends with a mark: compressed pixels."""

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_REMEMBERED = 2**16
"""Frames whose headers stay in memory."""

_AHEAD = 2**16
"""Bytes asked for at a time: a store far away is slow to answer, not to send."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Instance:
    """One file, as its header describes it."""

    file: str
    """Address."""

    stamp: tuple[int, int]
    """Bytes, and time of change."""

    state: Literal["scan", "other", "damaged"]
    reason: str = ""
    """Why it is no scan that can be used."""

    series: str = ""
    """UID; empty where the file does not say."""

    number: str = ""
    """Of the series in its study."""

    patient: str = ""
    """Hash of the patient's number, or of the study where there is none."""

    modality: str = ""
    photometric: str = ""
    localizer: bool = False
    frames: tuple[Frame, ...] = ()


# --- headers ------------------------------------------------------------------------------


class _Memory:
    """Headers that were read lately, bounded by how many frames they describe."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Instance] = OrderedDict()
        self._frames = 0
        self._lock = Lock()

    def get(self, file: str, stamp: tuple[int, int]) -> Instance | None:
        """Return what is known about a file, if it has not changed."""
        with self._lock:
            known = self._known.get(file)
            if known is None or known.stamp != stamp:
                return None
            self._known.move_to_end(file)
            return known

    def keep(self, one: Instance) -> None:
        """Remember a file, and forget those not asked for longest."""
        with self._lock:
            self._drop(self._known.pop(one.file, None))
            self._known[one.file] = one
            self._frames += max(1, len(one.frames))
            while self._frames > _REMEMBERED and len(self._known) > 1:
                self._drop(self._known.popitem(last=False)[1])

    def _drop(self, one: Instance | None) -> None:
        if one is not None:
            self._frames -= max(1, len(one.frames))


_MEMORY = _Memory()


class _Ahead:
    """A stream that asks for much at a time; not a BufferedReader, which pydicom takes for a local file."""

    def __init__(self, stream: BinaryIO) -> None:
        buffered = io.BufferedReader(cast(Any, stream), _AHEAD)
        self.read, self.seek, self.tell = buffered.read, buffered.seek, buffered.tell


def look(place: Place) -> Instance:
    """Read a file's header; what is wrong with the file is in the answer.

    Raises:
        MissingExtraError: pydicom, or what unpacks these pixels, is not installed.
    """
    need_pydicom()
    try:
        stamp = place.stamp()
        if known := _MEMORY.get(place.uri, stamp):
            return known
        with place.open() as stream:
            one = _examined(cast(BinaryIO, _Ahead(stream)), place.uri, stamp)
    except OSError as error:
        return Instance(place.uri, (0, 0), "damaged", f"it cannot be read ({error}); check its rights")
    _MEMORY.keep(one)
    return one


def need_pydicom() -> None:
    """Complain at once if it is not there, and not about the first file."""
    try:
        from pydicom import config
    except ImportError:
        raise MissingExtraError(
            "DICOM needs pydicom, which is not installed; run `pip install 'tutelage[dicom]'`"
        ) from None
    # Its warnings quote values, and with them patients; what counts is checked here.
    config.settings.reading_validation_mode = config.IGNORE


def _examined(stream: BinaryIO, file: str, stamp: tuple[int, int]) -> Instance:
    try:
        raw = _header(stream)
    except ArchiveError as error:
        return Instance(file, stamp, "other", str(error))
    own = Instance(
        file,
        stamp,
        "scan",
        series=_text(raw, "series"),
        number=_text(raw, "number"),
        patient=_patient(raw),
        modality=_text(raw, "modality"),
        photometric=_text(raw, "photometric"),
        localizer="LOCALIZER" in _text(raw, "type").upper().split("\\"),
    )
    if told := _no_scan(raw, stream, stamp[0]):
        return replace(own, state="other", reason=told)
    try:
        with _decoding(quoting=False):
            _check_whole(raw, stream, stamp[0])
            return replace(own, frames=() if own.localizer else _frames(raw, file))
    except ArchiveError as error:
        return replace(own, state="damaged", reason=str(error))


def _header(stream: BinaryIO) -> Any:
    from pydicom import dcmread

    start = stream.read(1024)
    # Old files start with the first group at once, without a preamble.
    bare = start[:1] in (b"\x02", b"\x08") and start[1:2] == start[3:4] == b"\0"
    if start[128:132] != b"DICM" and not bare:
        raise ArchiveError("it is no DICOM file; nothing else was read from it, move it elsewhere")
    if _DEFLATED in start:
        # It would be unpacked whole, however large that is.
        raise ArchiveError(
            "its header is compressed (deflated), expected at most its pixels to be; convert it"
        )
    stream.seek(0)
    with _decoding(quoting=False):
        raw = dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS.values()), force=bare)
    if not _text(raw, "series"):
        raise ArchiveError("it names no series, expected a SeriesInstanceUID; check what it is")
    return raw


def _no_scan(raw: Any, stream: BinaryIO, size: int) -> str:
    """Say why a sound file is no scan; empty if it is one."""
    kind = _text(raw, "class")
    if kind in _NO_SCANS:
        return f"it is {_NO_SCANS[kind]}, expected a scan; nothing is read from it"
    from pydicom.uid import UID

    name = UID(kind).name
    # An image's file without pixels was cut off.
    if stream.tell() < size or "Image Storage" in name:
        return ""
    return f"it has no pixels ({name or 'of unknown kind'}), expected a scan; nothing is read from it"


def _patient(raw: Any) -> str:
    number = _text(raw, "patient")
    return hashed("patient", number) if number else hashed("study", _text(raw, "study"))


def hashed(*words: str) -> str:
    """Return twelve hex digits of a SHA-256."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


# --- whole files --------------------------------------------------------------------------


def _check_whole(raw: Any, stream: BinaryIO, size: int) -> None:
    """Find a file that was cut off, and one whose pixels nothing here can unpack."""
    syntax = _syntax(raw)
    codecs.plugin(syntax)
    order = ">" if syntax == _BIG_ENDIAN else "<"
    start = stream.tell()
    # A length of four bytes, after the tag or, where kinds of values are told, after those too.
    before = 4 if syntax == _IMPLICIT else 8
    head = stream.read(before + 4)
    if len(head) < before + 4:
        raise ArchiveError("it ends before its pixels; copy it again")
    (length,) = struct.unpack(f"{order}I", head[before:])
    if length == _ENDLESS:
        _check_parts(stream, size)
        return
    if start + before + 4 + length > size:
        raise ArchiveError(f"it ends {start + before + 4 + length - size} bytes early; copy it again")
    if length < (expected := _pixel_bytes(raw)):
        raise ArchiveError(f"its pixels take {length} bytes, expected {expected}; export it again")


def _check_parts(stream: BinaryIO, size: int) -> None:
    """Walk along compressed frames to the mark at their end."""
    while (mark := stream.read(8))[:4] == _ITEM and len(mark) == 8:
        stream.seek(struct.unpack("<I", mark[4:])[0], io.SEEK_CUR)
        if stream.tell() > size:
            break
    if mark[:4] != _END or len(mark) < 8:
        raise ArchiveError("it ends within its compressed pixels; copy it again")


def _pixel_bytes(raw: Any) -> int:
    samples = 2 if _text(raw, "photometric") == "YBR_FULL_422" else _whole(raw, "samples") or 1
    sizes = (_whole(raw, "rows"), _whole(raw, "columns"), _whole(raw, "frames") or 1, samples)
    return prod(sizes) * _whole(raw, "bits") // 8


def _syntax(raw: Any) -> str:
    meta = getattr(raw, "file_meta", None)
    told = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    if told:
        return told
    implicit, little = raw.original_encoding
    return _IMPLICIT if implicit else "1.2.840.10008.1.2.1" if little else _BIG_ENDIAN


# --- frames -------------------------------------------------------------------------------


def _frames(raw: Any, file: str) -> tuple[Frame, ...]:
    if _TAGS["table"] in raw:
        raise ArchiveError("a table translates its values, expected slope and intercept; convert it")
    size, uid = _size(raw), _text(raw, "uid")
    told = {word: _text(raw, word) for word in _TAGS if word not in ("shared", "each")}
    each, count = _sequence(raw, _TAGS["each"]), _whole(raw, "frames") or 1
    if not each and count == 1:
        return (_frame(told, file, 0, uid, size),)
    if len(each) != count:
        raise ArchiveError(f"it tells places of {len(each)} of its {count} frames, expected all; convert it")
    shared = _sequence(raw, _TAGS["shared"])[:1]
    return tuple(
        _frame({"type": told["type"]} | _grouped([own, *shared]), file, index, uid, size)
        for index, own in enumerate(each)
    )


def _grouped(sources: Sequence[Any]) -> dict[str, str]:
    """Return what is told about one frame, by itself or else by what all frames share."""
    return {
        word: text
        for word, ways in _GROUPED.items()
        if (text := next(filter(None, (_inner(source, *way) for source in sources for way in ways)), ""))
    }


def _inner(source: Any, group: int, tag: int) -> str:
    return next((_value(inner, tag) for inner in _sequence(source, group)), "")


def _frame(told: Mapping[str, str], file: str, index: int, uid: str, size: tuple[int, int, int]) -> Frame:
    position, orientation = _numbers(told, "position", 3), _numbers(told, "orientation", 6)
    spacing = _numbers(told, "spacing", 2)
    if min(spacing) <= 0:
        raise ArchiveError(
            f"its spacing is {spacing[0]:g}, {spacing[1]:g} mm, expected positive numbers; correct the header"
        )
    slope = _numbers(told, "slope", 1)[0] if told.get("slope") else 1.0
    if slope == 0:
        raise ArchiveError("its rescale slope is 0, which makes all values one; correct the header")
    return Frame(
        file=file,
        index=index,
        uid=uid,
        position=cast(Vector, position),
        orientation=_shared(orientation),
        spacing=_shared((spacing[0], spacing[1])),
        size=_shared(size),
        slope=slope,
        intercept=_numbers(told, "intercept", 1)[0] if told.get("intercept") else 0.0,
        tells=_shared(tuple(_alike(told.get(word, "")) for word in TELLING)),
    )


@lru_cache(4096)
def _once(values: Any) -> Any:
    return values


def _shared(values: T) -> T:
    """Have what thousands of frames say alike once in memory."""
    return cast(T, _once(values))


def _alike(text: str) -> str:
    """Write numbers alike, however many digits a header spends on them."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _size(raw: Any) -> tuple[int, int, int]:
    rows, columns, samples = (_whole(raw, word) for word in ("rows", "columns", "samples"))
    photometric, bits = _text(raw, "photometric"), _whole(raw, "bits")
    if min(rows, columns) < 1:
        raise ArchiveError(f"it has {rows} x {columns} pixels, expected some; export it again")
    if photometric not in {1: _GRAY, 3: _COLORS}.get(samples or 1, ()):
        raise ArchiveError(
            f"its pixels are {photometric or 'of unknown kind'} with {samples} samples each, expected gray "
            "ones or colors; convert it"
        )
    if bits not in _BITS:
        raise ArchiveError(f"its samples have {bits} bits, expected {', '.join(map(str, _BITS))}; convert it")
    return rows, columns, samples or 1


def _numbers(told: Mapping[str, str], word: str, count: int) -> tuple[float, ...]:
    text = told.get(word, "")
    if not text:
        raise ArchiveError(f"it has no {word}, expected a slice with its place in space; convert it")
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(isfinite, values)):
        # Where a header is damaged, other values may have come in here.
        shown = re.sub(r"[^0-9eE+.,-]+", "?", text.replace("\\", ", "))[:64].replace(",?", ", ")
        raise ArchiveError(f"its {word} is {shown}, expected {count} numbers; correct the header")
    return values


# --- elements -----------------------------------------------------------------------------


def _text(raw: Any, word: str) -> str:
    return _value(raw, _TAGS[word])


def _value(raw: Any, tag: int) -> str:
    """Return a value as text; parts of it are set apart by backslashes.

    Decoded here and not by pydicom, which warns about half of what hospitals write.
    """
    element = raw.get_item(tag)
    value = None if element is None else element.value
    if not isinstance(value, bytes):
        return ""
    if code := _BINARY.get(tag):
        order = "<" if element.is_little_endian else ">"
        count = len(value) // struct.calcsize(code)
        numbers = struct.unpack(f"{order}{count}{code}", value[: count * struct.calcsize(code)])
        return "\\".join(map(repr, numbers))
    return "\\".join(part.strip(" \0") for part in value.decode("latin-1").split("\\"))


def _whole(raw: Any, word: str) -> int:
    text = _text(raw, word).partition("\\")[0]
    if text and not re.fullmatch(r"\d{1,9}", text):
        raise ArchiveError(f"its number of {word} is {text!r}, expected a whole one; correct the header")
    return int(text or 0)


def _sequence(raw: Any, tag: int) -> Sequence[Any]:
    return cast(Sequence[Any], raw[tag].value) if tag in raw else ()


# --- pixels -------------------------------------------------------------------------------


def pixels(one: Instance, data: bytes, frames: Sequence[Frame]) -> Iterator[NDArray[np.float32]]:
    """Decode frames from the bytes of a file, each (rows, columns, samples)."""
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels import pixel_array
    from pydicom.uid import UID

    with _decoding():
        raw: Any = dcmread(io.BytesIO(data), force=True)
        syntax = _syntax(raw)
        raw.file_meta = FileMetaDataset()
        raw.file_meta.TransferSyntaxUID = UID(syntax)
        plugin = codecs.plugin(syntax)
    turned = one.photometric == "MONOCHROME1" and one.modality not in _MEASURES
    for frame in frames:
        with _decoding():
            stored = pixel_array(raw, index=frame.index, decoding_plugin=plugin)
            if stored.size != prod(frame.size):
                raise ArchiveError(
                    f"a frame of {stored.shape} pixels came out, expected {frame.size}; export it again"
                )
            values = stored.reshape(frame.size).astype(np.float32)
            if turned:
                values = np.float32(_brightest(raw)) - values
        values *= np.float32(frame.slope)
        values += np.float32(frame.intercept)
        yield values


def _brightest(raw: Any) -> int:
    """Return the sum of the smallest and the largest value that can be stored."""
    return -1 if raw.PixelRepresentation else int(2**raw.BitsStored) - 1


@contextlib.contextmanager
def _decoding(quoting: bool = True) -> Iterator[None]:
    """Turn whatever hostile bytes make a decoder raise into a reason.

    What is raised about a header may quote it, and with it the patient.
    """
    try:
        yield
    except (ArchiveError, MissingExtraError, MemoryError, OSError):
        raise
    except EOFError:
        raise ArchiveError("it is cut off, expected more; copy it again") from None
    except Exception as error:
        told = " ".join(str(error).split()) if quoting else ""
        told = told or type(error).__name__
        raise ArchiveError(f"it cannot be decoded ({told}); check it, or copy it again") from error
