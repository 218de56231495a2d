"""Values of a DICOM header's elements, as text: which are read, and where each may stand.

Decides too how much may be made of a header's bytes, for few bytes make many objects. Knows
numbers of tags and not what follows from a value. Turns whatever hostile bytes make pydicom
raise into a reason.
"""

import contextlib
import io
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from tutelage.errors import ArchiveError, MissingExtraError

TAGS = {
    "class": 0x00080016, "uid": 0x00080018, "type": 0x00080008, "modality": 0x00080060,
    "patient": 0x00100020, "study": 0x0020000D, "series": 0x0020000E, "number": 0x00200011,
    "acquisition": 0x00200012, "phase": 0x00200100, "position": 0x00200032, "orientation": 0x00200037,
    "echo": 0x00180081, "trigger": 0x00181060, "bvalue": 0x00189087,
    "samples": 0x00280002, "photometric": 0x00280004, "frames": 0x00280008, "rows": 0x00280010,
    "columns": 0x00280011, "spacing": 0x00280030, "bits": 0x00280100, "intercept": 0x00281052,
    "slope": 0x00281053, "table": 0x00283000, "shared": 0x52009229, "each": 0x52009230,
}  # fmt: skip
"""All that is read of a header."""

GROUPED = {
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

IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
"""Transfer syntaxes that are written otherwise than the rest."""

_READS = 2**16
"""How often pydicom may read of any file: twice or three times an element, for 200 bytes of memory each."""

_BYTES_A_READ = 32
"""Bytes of a file that allow one more. What files of many frames say of a frame takes about one for 55."""


def text(raw: Any, word: str) -> str:
    """Return a value by our word for it; empty where the header has none."""
    return value(raw, TAGS[word])


def value(raw: Any, tag: int) -> str:
    """Return a value as text; parts of it are set apart by backslashes.

    Decoded here and not by pydicom, which warns about half of what hospitals write.
    """
    element = raw.get_item(tag)
    data = None if element is None else element.value
    if not isinstance(data, bytes):
        return ""
    if code := _BINARY.get(tag):
        order = "<" if element.is_little_endian else ">"
        count = len(data) // struct.calcsize(code)
        numbers = struct.unpack(f"{order}{count}{code}", data[: count * struct.calcsize(code)])
        return "\\".join(map(repr, numbers))
    return "\\".join(part.strip(" \0") for part in data.decode("latin-1").split("\\"))


def whole(raw: Any, word: str) -> int:
    """Return a number that counts something; 0 where the header has none."""
    told = text(raw, word).partition("\\")[0]
    if told and not re.fullmatch(r"\d{1,9}", told):
        # Where a header is damaged, other values may have come in here.
        shown = re.sub(r"[^0-9.+-]+", "?", told)[:16]
        raise ArchiveError(f"its number of {word} is {shown}, expected a whole one; correct the header")
    return int(told or 0)


def sequence(raw: Any, tag: int) -> Iterator[Any]:
    """Make the items of a group one by one, none where the header has none.

    pydicom would make all of them at once and keep them: 700 bytes for an item that takes eight.
    """
    element = raw.get_item(tag)
    if element is None or element.VR not in (None, "SQ", "UN"):
        return
    if not isinstance(element.value, bytes):
        # One without a length was read whole, as often as `Paced` allows.
        yield from element.value or ()
        return
    from pydicom.filereader import read_sequence_item

    stream, size = io.BytesIO(element.value), len(element.value)
    while stream.tell() < size:
        paced: Any = Paced(stream, size)
        item = read_sequence_item(paced, element.is_implicit_VR, element.is_little_endian, "iso8859")
        if item is None:
            return
        yield item


def syntax(raw: Any) -> str:
    """Return the UID of the transfer syntax, from the way it is written where the file does not say."""
    meta = getattr(raw, "file_meta", None)
    told = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    if told:
        return told
    implicit, little = raw.original_encoding
    return IMPLICIT if implicit else "1.2.840.10008.1.2.1" if little else BIG_ENDIAN


@contextlib.contextmanager
def decoding(quoting: bool = True) -> Iterator[None]:
    """Turn whatever hostile bytes make a decoder raise into a reason.

    What is raised about a header may quote it, and with it the patient.
    """
    try:
        yield
    except (ArchiveError, MissingExtraError, MemoryError):
        raise
    except OSError as error:
        # pydicom raises one, whatever happened to it between two items.
        if isinstance(error.__context__, ArchiveError):
            raise error.__context__ from None
        if isinstance(error.__context__, struct.error):
            raise ArchiveError("it is cut off, expected more; copy it again") from None
        raise
    except EOFError:
        raise ArchiveError("it is cut off, expected more; copy it again") from None
    except Exception as error:
        told = " ".join(str(error).split()) if quoting else ""
        told = told or type(error).__name__
        raise ArchiveError(f"it cannot be decoded ({told}); check it, or copy it again") from error


class Paced:
    """A file of so many bytes as pydicom may read it: in steps, and not in too many of them.

    Sequences without a length become objects at once, wherever they stand, and what is deflated
    is unpacked at once, whatever it takes. Both show in how it reads, and nowhere more surely.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._left = self._most = _READS + size // _BYTES_A_READ
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        """Read on; no more than there can be, for memory is taken before it is known what comes."""
        if size < 0:
            raise ArchiveError(
                "its header is compressed (deflated), expected at most its pixels to be; convert it"
            )
        self._left -= 1
        if self._left < 0:
            raise ArchiveError(
                f"its {self._size} bytes hold more elements than {self._most} steps read, expected fewer; "
                "remove what is no part of the image"
            )
        return self._stream.read(min(size, self._size))


def refuse_crowded(data: bytes) -> None:
    """Refuse a whole file of which too much would be made, behind its pixels too."""
    from pydicom import dcmread

    with decoding(quoting=False):
        paced: Any = Paced(io.BytesIO(data), len(data))
        dcmread(paced, defer_size=1, force=True, specific_tags=[TAGS["uid"]])
