"""What comes out of an image file: voxels in our axes, and what it takes to write its like.

Knows the frame (D toward the head, H toward the back, W toward the patient's left) and how
a file's own axes map onto it. Knows no format and opens nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ArchiveError
from tutelage.geometry import Affine, Grid

FRAME = ("S", "P", "L")
"""Where D, H and W run to, in the words of nibabel."""

FLATTEST = 1e-4
"""Axes whose box has less than this share of its edges' product lie in a plane."""

Voxels = NDArray[Any]
Mask = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Native:
    """A file's own axes, and what its format wants to have back when a mask is written."""

    kind: str
    """Name of the format: nifti, nrrd or raster."""

    shape: tuple[int, int, int]
    """Voxels along the file's own axes, ones where it has fewer than three."""

    matrix: Affine
    """From the file's own voxels to RAS+ millimeters."""

    axes: tuple[int, int, int]
    """Which of the file's axes serves as D, H and W."""

    flips: tuple[bool, bool, bool]
    """Whether D, H and W run against it."""

    details: bytes = b""
    """Whatever else the format keeps; for NIfTI its whole header."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself before any voxel is read."""

    grid: Grid
    channels: int
    kind: str
    native: Native
    size: int | None
    """Bytes that the file holds uncompressed, at the least; None if only decoding tells."""

    unpacked: int = 0
    """Bytes that its voxels, and what comes before them, are in memory as they are stored."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a stranger's file is too much. Headers are asked before memory is taken."""

    voxels: int
    """Counting all channels."""

    unpacked: int
    """Bytes, once it is unpacked."""

    ratio: float
    """How many times its size it may be, unpacked, beyond the first megabyte."""

    entries: int = 1
    """Files in one of many."""

    def most(self, stored: int) -> int:
        """Return how many bytes may come out of so many."""
        return min(self.unpacked, 10**6 + int(self.ratio * stored))


@dataclass(frozen=True, slots=True)
class Volume:
    """An image in memory."""

    image_CDHW: NDArray[np.float32]
    grid: Grid
    native: Native
    digest: str
    """First 16 hex digits of the SHA-256 of the file as it is stored."""


def refuse_large(grid: Grid, channels: int, max_voxels: int) -> None:
    """Refuse a file by its header, before any memory is taken."""
    count = prod(grid.shape) * channels
    if count > max_voxels:
        raise ArchiveError(
            f"its header declares {count} voxels, expected at most {max_voxels}; "
            "raise max_voxels if that is right"
        )


def refuse_packed(found: Header, stored: int, limits: Limits) -> None:
    """Refuse a file that is too much, or claims to be, for the bytes it has."""
    refuse_large(found.grid, found.channels, limits.voxels)
    most = limits.most(stored)
    if found.unpacked > most:
        raise ArchiveError(
            f"its {stored} bytes declare {found.unpacked} unpacked, expected at most {most} of as many; "
            "send it less compressed, or in parts"
        )


def native_of(
    kind: str, shape: Sequence[int], matrix: NDArray[np.float64], details: bytes = b""
) -> tuple[Native, Grid]:
    """Find the frame in a file's own axes; `matrix` is 4x4, from its voxels to RAS+ millimeters."""
    axes, flips = _axes(matrix)
    i, j, k = (int(n) for n in shape)
    native = Native(kind, (i, j, k), _rows(matrix), axes, flips, details)
    ours = np.eye(4)
    ours[:3, 3] = matrix[:3, 3]
    for column, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        step = matrix[:3, axis]
        ours[:3, column] = -step if flip else step
        if flip:
            ours[:3, 3] += step * (native.shape[axis] - 1)
    return native, Grid.from_matrix([native.shape[axis] for axis in axes], ours)


def native_for(kind: str, grid: Grid) -> Native:
    """Return the axes of a new file on a grid: W fastest, D slowest, as most scanners store it."""
    ours = grid.matrix
    matrix = ours[:, [2, 1, 0, 3]]
    d, h, w = grid.shape
    return Native(kind, (w, h, d), _rows(matrix), (2, 1, 0), (False, False, False))


def to_frame(voxels_ijkC: Voxels, native: Native) -> Voxels:
    """Turn voxels from the file's axes, channels last, into (C, D, H, W); a view."""
    turned = voxels_ijkC.transpose(3, *native.axes)
    return turned[:, *_steps(native)]


def from_frame(image_CDHW: Voxels, native: Native) -> Voxels:
    """Turn voxels from (C, D, H, W) into the file's axes, channels last; a view."""
    turned = image_CDHW[:, *_steps(native)]
    back = [1 + native.axes.index(axis) for axis in range(3)]
    return turned.transpose(*back, 0)


def _steps(native: Native) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in native.flips)


def _rows(matrix: NDArray[np.float64]) -> Affine:
    return tuple(tuple(float(v) for v in row) for row in matrix[:3])


def _axes(matrix: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find which axis of the file lies closest to D, H and W, and whether it must be turned."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (lengths > 0).all():
        told = ", ".join(f"{v:g}" for v in lengths)
        raise ArchiveError(
            f"its axes have spacings of {told} mm, expected positive numbers; correct the header"
        )
    if abs(np.linalg.det(matrix[:3, :3])) < FLATTEST * lengths.prod():
        raise ArchiveError("its three axes lie in a plane, expected them to span space; correct the header")
    turn = ornt_transform(io_orientation(matrix), axcodes2ornt(FRAME))
    axes, flips = [0, 0, 0], [False, False, False]
    for own, (ours, direction) in enumerate(turn):
        axes[int(ours)], flips[int(ours)] = own, bool(direction < 0)
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])
