"""Voxel grids and the boxes drawn on them.

Axes are always (D, H, W): D runs toward the head, H toward the back, W toward the
patient's left, so that a slice looks as radiologists are used to. Millimetres are those
of NIfTI's world, RAS+: x grows toward the patient's right, y to the front, z to the head.
Conversion from a file's own axes happens in `archive` and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ArchiveError

Affine = tuple[tuple[float, ...], ...]
"""Three rows of four: from (d, h, w, 1) in voxels to (x, y, z) in RAS+ millimetres."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The sampling grid of one volume; a flat image is a volume of one slice."""

    shape: tuple[int, int, int]
    """Voxels along (D, H, W)."""

    affine: Affine
    """Voxel indices to millimetres."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ArchiveError(f"shape {self.shape} has an axis without voxels")
        if not all(np.isfinite(s) and s > 0 for s in self.spacing):
            raise ArchiveError(
                f"spacing {self.spacing} mm has a value that is not a positive number; "
                "correct the file's header"
            )

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing: Sequence[float]) -> Self:
        """Return the grid whose axes are the frame's own and whose first voxel is at zero."""
        d, h, w = spacing
        d_, h_, w_ = shape
        # Head is +z in RAS+, the back is -y, the left is -x.
        affine = ((0.0, 0.0, -w, 0.0), (0.0, -h, 0.0, 0.0), (d, 0.0, 0.0, 0.0))
        return cls((int(d_), int(h_), int(w_)), affine)

    @classmethod
    def from_matrix(cls, shape: Sequence[int], matrix: NDArray[np.floating]) -> Self:
        """Return the grid of a 4x4 (or 3x4) affine that maps (d, h, w) to RAS+ millimetres."""
        rows = tuple(tuple(float(v) for v in row) for row in matrix[:3])
        d, h, w = (int(n) for n in shape)
        return cls((d, h, w), rows)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as a 4x4 array."""
        return np.vstack([np.asarray(self.affine, np.float64), [0.0, 0.0, 0.0, 1.0]])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along (D, H, W)."""
        d, h, w = (float(v) for v in np.linalg.norm(np.asarray(self.affine)[:, :3], axis=0))
        return d, h, w

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return prod(self.spacing) / 1000.0

    def difference(self, other: "Grid", tolerance_mm: float = 0.01) -> str | None:
        """Say how another grid differs, or None if voxels lie on voxels."""
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.asarray(self.shape) - 1
        apart = np.linalg.norm((corners @ (self.matrix - other.matrix).T)[:, :3], axis=1).max()
        if apart > tolerance_mm:
            return f"corners lie up to {apart:.2f} mm apart (tolerance {tolerance_mm} mm)"
        return None


@dataclass(frozen=True, slots=True)
class Box:
    """A box in voxel edges: voxel i spans [i, i + 1). Two axes on a slice, three in a volume."""

    start: tuple[float, ...]
    """First edge along each axis."""

    stop: tuple[float, ...]
    """Last edge along each axis."""

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Self | None:
        """Return the tightest box around a mask, or None around nothing."""
        start, stop = [], []
        for axis in range(mask.ndim):
            others = tuple(a for a in range(mask.ndim) if a != axis)
            hit = np.flatnonzero(mask.any(axis=others))
            if not len(hit):
                return None
            start.append(float(hit[0]))
            stop.append(float(hit[-1] + 1))
        return cls(tuple(start), tuple(stop))

    @property
    def size(self) -> tuple[float, ...]:
        """Voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def moved(self, by: Sequence[float]) -> Self:
        """Return the box with its edges moved: first all starts, then all stops, outward positive."""
        n = len(self.start)
        return type(self)(
            tuple(a - m for a, m in zip(self.start, by[:n], strict=True)),
            tuple(b + m for b, m in zip(self.stop, by[n:], strict=True)),
        )

    def grown(self, margin: float) -> Self:
        """Return the box with every side moved out by `margin`, a share of its size."""
        outward = [margin * s for s in self.size]
        return self.moved([*outward, *outward])

    def clipped(self, shape: Sequence[int]) -> Self:
        """Return the part of the box that lies in an array of this shape."""
        return type(self)(
            tuple(min(max(0.0, a), n - 1.0) for a, n in zip(self.start, shape, strict=True)),
            tuple(max(min(float(n), b), 1.0) for b, n in zip(self.stop, shape, strict=True)),
        )
