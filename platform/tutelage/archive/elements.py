"""Values of a DICOM header's elements, as text: which are read, and where each may stand.

Knows numbers of tags and not what follows from a value. Turns whatever hostile bytes make
pydicom raise into a reason.
"""

import contextlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

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
        raise ArchiveError(f"its number of {word} is {told!r}, expected a whole one; correct the header")
    return int(told or 0)


def sequence(raw: Any, tag: int) -> Sequence[Any]:
    """Return the items of a group; none where the header has none."""
    return cast(Sequence[Any], raw[tag].value) if tag in raw else ()


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
    except (ArchiveError, MissingExtraError, MemoryError, OSError):
        raise
    except EOFError:
        raise ArchiveError("it is cut off, expected more; copy it again") from None
    except Exception as error:
        told = " ".join(str(error).split()) if quoting else ""
        told = told or type(error).__name__
        raise ArchiveError(f"it cannot be decoded ({told}); check it, or copy it again") from error
