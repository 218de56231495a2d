"""One DICOM file's header: whether it is a scan, something else, or damaged, and where its frames lie.

Read without pixels, though it is seen to that all of them are there. What leaves a header is
geometry, modality, series number and UID, and the patient's number as a hash; never a name
or a date. Whoever has a list of numbers can find the hash's out, unless TUTELAGE_PATIENT_SALT
holds a secret when the archive is scanned (another secret makes other patients, and other
splits). Does not know which files belong together.
"""

import hashlib
import io
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from math import isfinite
from typing import Any, BinaryIO, Literal, TypeVar, cast

from tutelage.archive import codecs, elements
from tutelage.archive.elements import decoding
from tutelage.archive.series import TELLING, Frame, Vector
from tutelage.errors import ArchiveError

SALT = "TUTELAGE_PATIENT_SALT"
"""Environment variable with a secret that goes into names of patients."""

NO_DICOM = "it is no DICOM file; nothing else was read from it, move it elsewhere"

_NO_SCANS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a microscope's slide",
}
"""Objects with pixels that are no scans."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_BITS = (8, 16, 32, 64)
_MOST_FRAMES = 2**16
"""Frames of one file; those of a functional MR of an hour are fewer."""

_ENDLESS = 0xFFFFFFFF
"""Length of an element that ends with a mark: compressed pixels."""

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Instance:
    """One file, as its header describes it."""

    file: str
    """Address."""

    stamp: tuple[int, int]
    """Bytes, and time of change in nanoseconds."""

    state: Literal["scan", "other", "damaged"]
    reason: str = ""
    """Why it is no scan that can be used."""

    series: str = ""
    """UID; empty where the file does not say."""

    number: str = ""
    """Of the series in its study."""

    patient: str = ""
    """Hash of the patient's number, or of the study where there is none, with the secret in it."""

    modality: str = ""
    photometric: str = ""
    localizer: bool = False
    frames: tuple[Frame, ...] = ()
    unpacked: int = field(default=0, compare=False)
    """Bytes of its pixels as they are stored, uncompressed; 0 where a scan remembered the rest."""


def examined(stream: BinaryIO, file: str, stamp: tuple[int, int]) -> Instance:
    """Read a file's header; what is wrong with the file is in the answer."""
    try:
        raw = _header(stream, stamp[0])
    except ArchiveError as error:
        return Instance(file, stamp, "other", str(error))
    own = Instance(
        file,
        stamp,
        "scan",
        series=elements.text(raw, "series"),
        number=elements.text(raw, "number"),
        patient=_patient(raw),
        modality=elements.text(raw, "modality"),
        photometric=elements.text(raw, "photometric"),
        localizer="LOCALIZER" in elements.text(raw, "type").upper().split("\\"),
    )
    if told := _no_scan(raw, stream, stamp[0]):
        return replace(own, state="other", reason=told)
    try:
        with decoding(quoting=False):
            _check_whole(raw, stream, stamp[0])
            frames = () if own.localizer else _frames(raw, file)
            return replace(own, frames=frames, unpacked=_pixel_bytes(raw))
    except ArchiveError as error:
        return replace(own, state="damaged", reason=str(error))


def _header(stream: BinaryIO, size: int) -> Any:
    from pydicom import dcmread

    start = stream.read(1024)
    # Old files start with the first group at once, without a preamble.
    bare = start[:1] in (b"\x02", b"\x08") and start[1:2] == start[3:4] == b"\0"
    if start[128:132] != b"DICM" and not bare:
        raise ArchiveError(NO_DICOM)
    stream.seek(0)
    paced: Any = elements.Paced(stream, size)
    with decoding(quoting=False):
        raw = dcmread(paced, stop_before_pixels=True, specific_tags=list(elements.TAGS.values()), force=bare)
    if not elements.text(raw, "series"):
        raise ArchiveError("it names no series, expected a SeriesInstanceUID; check what it is")
    return raw


def _no_scan(raw: Any, stream: BinaryIO, size: int) -> str:
    """Say why a sound file is no scan; empty if it is one."""
    kind = elements.text(raw, "class")
    if kind in _NO_SCANS:
        return f"it is {_NO_SCANS[kind]}, expected a scan; nothing is read from it"
    from pydicom.uid import UID

    name = UID(kind).name
    # An image's file without pixels was cut off.
    if stream.tell() < size or "Image Storage" in name:
        return ""
    return f"it has no pixels ({name or 'of unknown kind'}), expected a scan; nothing is read from it"


# --- patients -----------------------------------------------------------------------------


def _patient(raw: Any) -> str:
    number = elements.text(raw, "patient")
    own = hashed("patient", number) if number else hashed("study", elements.text(raw, "study"))
    return hashed(os.environ.get(SALT, ""), own)


def seal() -> str:
    """Tell secrets of patients' names apart, without telling them."""
    return hashed("salt", os.environ.get(SALT, ""))


def hashed(*words: str) -> str:
    """Return twelve hex digits of a SHA-256."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


# --- whole files --------------------------------------------------------------------------


def _check_whole(raw: Any, stream: BinaryIO, size: int) -> None:
    """Find a file that was cut off, and one whose pixels nothing here can unpack."""
    syntax = elements.syntax(raw)
    codecs.plugin(syntax)
    order = ">" if syntax == elements.BIG_ENDIAN else "<"
    start = stream.tell()
    # A length of four bytes, after the tag or, where kinds of values are told, after those too.
    before = 4 if syntax == elements.IMPLICIT else 8
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
    rows, columns, frames, samples, bits = (
        elements.whole(raw, word) for word in ("rows", "columns", "frames", "samples", "bits")
    )
    if elements.text(raw, "photometric") == "YBR_FULL_422":
        samples = 2
    return rows * columns * (frames or 1) * (samples or 1) * bits // 8


# --- frames -------------------------------------------------------------------------------


def _frames(raw: Any, file: str) -> tuple[Frame, ...]:
    if elements.TAGS["table"] in raw:
        raise ArchiveError("a table translates its values, expected slope and intercept; convert it")
    size, uid = _size(raw), hashed("image", elements.text(raw, "uid"))
    told = {word: elements.text(raw, word) for word in elements.TAGS if word not in ("shared", "each")}
    each, count = elements.sequence(raw, elements.TAGS["each"]), elements.whole(raw, "frames") or 1
    if count > _MOST_FRAMES:
        raise ArchiveError(f"it has {count} frames, expected at most {_MOST_FRAMES} in a file; split it")
    alike = {"type": told["type"]}
    for source in islice(elements.sequence(raw, elements.TAGS["shared"]), 1):
        alike |= _grouped(source)
    # A frame at a time: what a header says of all of them may be much more than what is kept.
    frames = tuple(
        _frame(alike | _grouped(own), file, index, uid, size) for index, own in enumerate(islice(each, count))
    )
    if not frames and count == 1:
        return (_frame(told, file, 0, uid, size),)
    if len(frames) != count:
        raise ArchiveError(
            f"it tells places of {len(frames)} of its {count} frames, expected all; convert it"
        )
    if next(each, None) is not None:
        raise ArchiveError(f"it tells more places than it has frames, {count}, expected as many; convert it")
    return frames


def _grouped(source: Any) -> dict[str, str]:
    """Return what is told about one frame, or about all of them."""
    return {
        word: text
        for word, ways in elements.GROUPED.items()
        if (text := next(filter(None, (_inner(source, *way) for way in ways)), ""))
    }


def _inner(source: Any, group: int, tag: int) -> str:
    return next((elements.value(inner, tag) for inner in elements.sequence(source, group)), "")


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
        orientation=shared(orientation),
        spacing=shared((spacing[0], spacing[1])),
        size=shared(size),
        slope=slope,
        intercept=_numbers(told, "intercept", 1)[0] if told.get("intercept") else 0.0,
        tells=shared(tuple(_alike(told.get(word, "")) for word in TELLING)),
    )


@lru_cache(4096)
def _once(values: Any) -> Any:
    return values


def shared(values: T) -> T:
    """Have what thousands of frames say alike once in memory."""
    return cast(T, _once(values))


def _alike(text: str) -> str:
    """Write numbers alike, however many digits a header spends on them."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _size(raw: Any) -> tuple[int, int, int]:
    rows, columns, samples = (elements.whole(raw, word) for word in ("rows", "columns", "samples"))
    photometric, bits = elements.text(raw, "photometric"), elements.whole(raw, "bits")
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
