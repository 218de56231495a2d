"""NIfTI 1 and 2 in one file, plain or compressed by the caller.

Decides which of a header's transforms counts (sform before qform before spacings alone,
as everywhere) and what of a header a mask inherits: both transforms with their codes, the
units and the version. Knows no addresses; voxels are read only as far as the header says.
"""

from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tutelage.archive.streams import exactly
from tutelage.archive.volume import Header, Native, Voxels, native_of
from tutelage.errors import ArchiveError

_SIZES = {348: "nibabel.nifti1", 540: "nibabel.nifti2"}
"""Bytes of a header by version; both are read from the first four bytes."""

_MAGIC = (b"n+1", b"n+2")
"""Header and voxels in one file; `ni1` is a pair of files."""

_MM_OF_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Meters, millimeters, micrometers; no unit given means millimeters."""

_LONGEST_EXTENSION = 2**27
"""Bytes between header and voxels; a file that declares more is broken, or means harm."""

_STORED = {"|u1", "<i2", "<u2", "<i4", "<f4", "<f8"}
"""What voxels are written as; everything else becomes float32."""


def header(stream: BinaryIO) -> Header:
    """Read the header alone."""
    return _parsed(_raw(stream))


def voxels(stream: BinaryIO, found: Header) -> Voxels:
    """Read the voxels that follow the header, in the file's own axes, channels last."""
    raw = _decoded(found.native.details)
    skip = int(raw["vox_offset"]) - raw.sizeof_hdr
    exactly(stream, skip)
    dtype = raw.get_data_dtype()
    shape = (*found.native.shape, found.channels)
    data = exactly(stream, prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype).reshape(shape, order="F")
    slope, inter = raw.get_slope_inter()
    if (slope, inter) in ((None, None), (1.0, 0.0)):
        return array
    scaled = array.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(inter)
    return scaled


def encode(array_ijkC: Voxels, native: Native) -> bytes:
    """Return a whole file with these voxels; a NIfTI's own header is kept but for its content."""
    fresh = _like(native) if native.kind == "nifti" else _fresh(native)
    dtype = array_ijkC.dtype.newbyteorder("<")
    stored = np.dtype(dtype if dtype.str in _STORED else np.float32)
    shape = array_ijkC.shape if array_ijkC.shape[3] > 1 else array_ijkC.shape[:3]
    fresh.set_data_dtype(stored)
    fresh.set_data_shape(_fitting(shape, fresh))
    fresh.set_slope_inter(1, 0)
    fresh["vox_offset"] = fresh.sizeof_hdr + 4
    fresh["magic"] = b"n+1" if fresh.sizeof_hdr == 348 else b"n+2"
    # Four zero bytes after the header say that no extensions follow.
    return bytes(fresh.binaryblock) + b"\0" * 4 + array_ijkC.astype(stored).tobytes("F")


# --- headers ------------------------------------------------------------------------------


def _raw(stream: BinaryIO) -> Any:
    start = stream.read(4)
    if len(start) < 4:
        raise ArchiveError(f"it holds {len(start)} bytes, expected a NIfTI header; copy it again")
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    size = next((n for n in sizes if n in _SIZES), None)
    if size is None:
        raise ArchiveError("it does not start like a NIfTI file; check what it is, or rename it")
    return _decoded(start + exactly(stream, size - 4))


def _decoded(block: bytes | bytearray) -> Any:
    from importlib import import_module

    module = import_module(_SIZES[len(block)])
    cls = module.Nifti1Header if len(block) == 348 else module.Nifti2Header
    return cls(bytes(block), check=False)


def _parsed(raw: Any) -> Header:
    if bytes(raw["magic"].item())[:3] not in _MAGIC:
        raise ArchiveError(
            "its voxels are in a second file (.hdr and .img), expected one file; convert it to .nii.gz"
        )
    shape, channels = _shape(raw)
    dtype = _dtype(raw)
    native, grid = native_of("nifti", shape, _matrix(raw), bytes(raw.binaryblock))
    if not raw.sizeof_hdr <= float(raw["vox_offset"]) < _LONGEST_EXTENSION:
        raise ArchiveError(
            f"its voxels start at byte {raw['vox_offset']:.0f}, expected {raw.sizeof_hdr + 4} or a little "
            "more; convert it again"
        )
    size = int(raw["vox_offset"]) + prod(shape) * channels * dtype.itemsize
    return Header(grid, channels, "nifti", native, size, size)


def _shape(raw: Any) -> tuple[tuple[int, int, int], int]:
    count = int(raw["dim"][0])
    sizes = [int(n) for n in raw["dim"][1 : count + 1]]
    if not 2 <= count <= 7 or min(sizes) < 1:
        raise ArchiveError(
            f"its header declares dimensions {[int(n) for n in raw['dim']]}, expected a count of 2 to 4 "
            "and as many positive numbers; convert it again"
        )
    sizes += [1] * (4 - len(sizes))
    # ITK keeps the channels of a volume in the fifth dimension, behind a time of one.
    channels = [n for n in sizes[3:] if n > 1]
    if len(channels) > 1:
        raise ArchiveError(
            f"it has more than four dimensions, {tuple(sizes)}, expected three and channels; "
            "split it into one file a volume"
        )
    return (sizes[0], sizes[1], sizes[2]), channels[0] if channels else 1


def _dtype(raw: Any) -> np.dtype[Any]:
    code = int(raw["datatype"])
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except Exception:
        raise ArchiveError(f"its voxels are of unknown type {code}; convert it again") from None
    if dtype.kind not in "iuf":
        raise ArchiveError(
            f"its voxels are of type {dtype} (code {code}), expected whole or real numbers; convert it"
        )
    return dtype


def _matrix(raw: Any) -> NDArray[np.float64]:
    dimensions = min(int(raw["dim"][0]), 3)
    spacing = np.asarray(raw["pixdim"][1 : dimensions + 1], np.float64)
    if not (np.isfinite(spacing) & (spacing != 0)).all():
        told = ", ".join(f"{v:g}" for v in spacing)
        raise ArchiveError(f"its spacing is {told} mm, expected positive numbers; correct the header")
    readable = raw.copy()
    # Many writers leave the handedness at 0, which everybody takes for 1.
    if readable["pixdim"][0] not in (-1, 1):
        readable["pixdim"][0] = 1
    if not readable["sform_code"]:
        readable["pixdim"][1:4] = np.abs(readable["pixdim"][1:4])
    matrix = np.array(readable.get_best_affine(), np.float64)
    if dimensions < 3:
        _thicken(matrix)
    matrix[:3] *= _MM_OF_UNIT.get(int(raw["xyzt_units"]) & 7, 1.0)
    return matrix


def _thicken(matrix: NDArray[np.float64]) -> None:
    """Give a flat image one slice of thickness, where its header has none."""
    if not matrix[:3, 2].any() or not np.isfinite(matrix[:3, 2]).all():
        normal = np.cross(matrix[:3, 0], matrix[:3, 1])
        matrix[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)


def _like(native: Native) -> Any:
    """Copy a header, freed from what described the old voxels."""
    kept = _decoded(native.details).as_byteswapped("<")
    for field in ("cal_max", "cal_min"):
        kept[field] = 0
    kept["intent_code"] = 0
    kept["intent_name"] = b""
    return kept


def _fresh(native: Native) -> Any:
    from nibabel.nifti1 import Nifti1Header

    made = Nifti1Header(endianness="<")
    made.set_data_shape(native.shape)
    made.set_xyzt_units("mm")
    matrix = np.vstack([np.asarray(native.matrix), [0.0, 0.0, 0.0, 1.0]])
    # Scanner coordinates in both forms: some readers know only one.
    made.set_qform(matrix, code=1, strip_shears=True)
    made.set_sform(matrix, code=1)
    return made


def _fitting(shape: tuple[int, ...], made: Any) -> tuple[int, ...]:
    """Keep a flat file flat, and refuse what 16 bits cannot count."""
    if int(made["dim"][0]) == 2 and shape[2:] == (1,):
        shape = shape[:2]
    if made.sizeof_hdr == 348 and max(shape) > 32767:
        raise ArchiveError(f"shape {shape} is more than NIfTI 1 can count, 32767 an axis; write .nrrd")
    return shape
