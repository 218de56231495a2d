"""NRRD with header and voxels in one file: raw, gzip or bzip2.

Decides how its `space` words become RAS+ millimeters; without them the axes are taken as
ITK takes them, toward left, back and head. Knows no addresses.
"""

import gzip
import io
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tutelage.archive.streams import exactly, finish, unpacked
from tutelage.archive.volume import Header, Native, Voxels, native_of
from tutelage.errors import ArchiveError

_TO_RAS = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
"""Signs that turn a space's millimeters into RAS+."""

_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_NUMPY = {word: name for name, words in _TYPES.items() for word in words.split(", ")}
_WORDS = {"u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "f4": "float", "f8": "double"}
"""What voxels are written as; everything else becomes float."""

_ENCODINGS = ("raw", "gzip", "bzip2")
_SPATIAL = ("domain", "space")
_LONGEST_HEADER = 2**20


def header(stream: BinaryIO) -> Header:
    """Read the header alone."""
    text = _text(stream)
    fields = _fields(text)
    spatial = _spatial_axes(fields)
    sizes = [int(n) for n in fields["sizes"]]
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    shape = [sizes[axis] for axis in spatial] + [1] * (3 - len(spatial))
    native, grid = native_of("nrrd", shape, _matrix(fields, spatial), text)
    channels = prod(sizes[axis] for axis in others)
    unpacked = len(text) + prod(sizes) * np.dtype(_NUMPY[fields["type"]]).itemsize
    size = unpacked if fields["encoding"] == "raw" else None
    return Header(grid, channels, "nrrd", native, size, unpacked)


def voxels(stream: BinaryIO, found: Header) -> Voxels:
    """Read the voxels that follow the header, in the file's own axes, channels last."""
    fields = _fields(found.native.details)
    spatial = _spatial_axes(fields)
    sizes = [int(n) for n in fields["sizes"]]
    order = "<" if fields.get("endian", "little") == "little" else ">"
    dtype = np.dtype(_NUMPY[fields["type"]]).newbyteorder(cast(Any, order))
    size = prod(sizes) * dtype.itemsize
    content = unpacked(stream, fields["encoding"])
    data = exactly(content, size)
    finish(content)
    array = np.frombuffer(data, dtype).reshape(sizes, order="F")
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    return array.transpose(*spatial, *others).reshape(*found.native.shape, found.channels)


def encode(array_ijkC: Voxels, native: Native) -> bytes:
    """Return a whole file with these voxels, compressed, in the space that the original names."""
    space = _space(_fields(native.details)) if native.kind == "nrrd" else "left-posterior-superior"
    key = array_ijkC.dtype.str[1:]
    stored = np.dtype(f"<{key if key in _WORDS else 'f4'}")
    signs = np.asarray(_TO_RAS[space])[:, np.newaxis]
    matrix = np.asarray(native.matrix) * signs
    vectors = [_vector(matrix[:, axis]) for axis in range(3)]
    sizes = list(array_ijkC.shape[:3])
    kinds = ["domain"] * 3
    channels = array_ijkC.shape[3]
    if channels > 1:
        sizes, kinds, vectors = [channels, *sizes], ["vector", *kinds], ["none", *vectors]
        array_ijkC = array_ijkC.transpose(3, 0, 1, 2)
    lines = [
        "NRRD0004",
        f"type: {_WORDS[stored.str[1:]]}",
        f"dimension: {len(sizes)}",
        f"space: {space}",
        f"sizes: {' '.join(str(n) for n in sizes)}",
        f"space directions: {' '.join(vectors)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(matrix[:, 3])}",
    ]
    text = "\n".join(lines) + "\n\n"
    return text.encode() + gzip.compress(array_ijkC.astype(stored).tobytes("F"), 4, mtime=0)


# --- headers ------------------------------------------------------------------------------


def _text(stream: BinaryIO) -> bytes:
    """Read to the empty line that ends a header, a byte at a time: the voxels start right after it."""
    text = bytearray()
    while not text.endswith((b"\n\n", b"\r\n\r\n")):
        byte = stream.read(1)
        if not byte or len(text) > _LONGEST_HEADER:
            raise ArchiveError(
                "its header has no end, expected an empty line; copy it again, or convert it to one file"
            )
        text += byte
        if len(text) == 4 and text != b"NRRD":
            raise ArchiveError("it does not start like a NRRD file; check what it is, or rename it")
    return bytes(text)


def _fields(text: bytes) -> Mapping[str, Any]:
    import nrrd

    fields: dict[str, Any] = dict(nrrd.read_header(io.BytesIO(text)))
    encoding = str(fields["encoding"]).lower()
    fields["encoding"] = {"gz": "gzip", "bz2": "bzip2"}.get(encoding, encoding)
    fields["type"] = str(fields["type"]).lower()
    for key in ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(key):
            raise ArchiveError(
                f"its header says {key}: {fields[key]}, expected voxels right after it; convert it"
            )
    if fields["encoding"] not in _ENCODINGS:
        raise ArchiveError(f"its encoding is {encoding}, expected raw, gzip or bzip2; convert it")
    if fields["type"] not in _NUMPY:
        raise ArchiveError(f"its voxels are of type {fields['type']}, expected numbers; convert it")
    sizes = fields.get("sizes")
    if sizes is None or not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise ArchiveError(f"its sizes are {sizes}, expected two to four positive numbers; convert it")
    _space(fields)
    return fields


def _space(fields: Mapping[str, Any]) -> str:
    space = str(fields.get("space", "left-posterior-superior")).lower()
    if space not in _TO_RAS:
        raise ArchiveError(
            f"its space is {space}, expected one of {', '.join(w for w in _TO_RAS if '-' in w)}; convert it"
        )
    return space


def _spatial_axes(fields: Mapping[str, Any]) -> list[int]:
    """Find the axes that lie in space; at most one other may hold channels."""
    count = len(fields["sizes"])
    directions = fields.get("space directions")
    kinds: Sequence[str] | None = fields.get("kinds")
    if directions is not None:
        spatial = [axis for axis, row in enumerate(directions) if _is_vector(row)]
    elif kinds is not None:
        spatial = [axis for axis, kind in enumerate(kinds) if kind.lower() in _SPATIAL]
    else:
        spatial = list(range(count))
    if not 2 <= len(spatial) <= 3 or count - len(spatial) > 1:
        raise ArchiveError(
            f"{len(spatial)} of its {count} axes lie in space, expected two or three and at most one "
            "of channels; convert it to .nii.gz"
        )
    return spatial


def _is_vector(row: Any) -> bool:
    return row is not None and not bool(np.isnan(np.asarray(row, np.float64)).all())


def _matrix(fields: Mapping[str, Any], spatial: Sequence[int]) -> NDArray[np.float64]:
    """Build the way from voxels to RAS+; axes that a flat image lacks stand upright on it."""
    matrix = np.eye(4)
    directions = fields.get("space directions")
    spacings = fields.get("spacings")
    for column, axis in enumerate(spatial):
        step = np.zeros(3)
        if directions is not None:
            given = np.asarray(directions[axis], np.float64)
            step[: len(given)] = given
        else:
            step[column] = 1.0 if spacings is None else float(spacings[axis])
        matrix[:3, column] = step
    if len(spatial) == 2:
        normal = np.cross(matrix[:3, 0], matrix[:3, 1])
        matrix[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    origin = np.asarray(fields.get("space origin", np.zeros(3)), np.float64)
    matrix[: len(origin), 3] = origin
    matrix[:3] *= np.asarray(_TO_RAS[_space(fields)])[:, np.newaxis]
    return matrix


def _vector(values: NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"
