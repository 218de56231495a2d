"""The plan of a specialist: at what spacing it looks, how much at once, and how deep it is.

Derived from the grids of the archive and the settings, then fixed: it is stored beside the
weights, because weights without it mean nothing. It knows nothing about torch or files.
"""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from tutelage.geometry import Grid
from tutelage.settings import Settings
from tutelage.specialist.settings import SpecialistSettings

Triple = tuple[int, int, int]

_ANISOTROPIC = 1.5
"""From this ratio of spacings on, the coarse axis is spared the first halving."""

_SHORTEST = 4
"""An axis is not halved to fewer cells than this."""


class Plan(Settings):
    """Everything that weights need to mean something."""

    structures: tuple[str, ...]
    """Names by label value, from 1."""
    channels_in: int = Field(default=1, ge=1)
    """Channels of an image."""
    spacing: tuple[float, float, float]
    """Millimeters along (D, H, W) at which the network looks."""
    patch: Triple
    """Voxels along (D, H, W) that it is shown at once in training."""
    network: str
    """A key of NETWORKS."""
    channels: tuple[int, ...]
    """Features by level."""
    strides: tuple[Triple, ...]
    """How each level shrinks the grid."""

    @property
    def classes(self) -> int:
        """Structures and the background."""
        return len(self.structures) + 1

    @property
    def multiple(self) -> Triple:
        """What each side of a patch must be a multiple of."""
        d, h, w = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return d, h, w


def make_plan(
    grids: Sequence[Grid], structures: Sequence[str], channels_in: int, settings: SpecialistSettings
) -> Plan:
    """Plan for the middle one of these grids."""
    spacings = np.array([grid.spacing for grid in grids])
    extents = np.array([np.multiply(grid.shape, grid.spacing) for grid in grids])
    spacing = settings.spacing or tuple(round(float(v), 4) for v in np.median(spacings, axis=0))
    shape = np.maximum(1, np.rint(np.median(extents, axis=0) / spacing)).astype(int)
    strides = _strides(shape, spacing, len(settings.channels) - 1)
    multiple = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
    patch = settings.patch or _affordable(shape, settings.max_patch_voxels)
    # To the nearest multiple: up would cost half as much again for a rim of padding.
    fitted = tuple(max(m, round(n / m) * m) for n, m in zip(patch, multiple, strict=True))
    return Plan(
        structures=tuple(structures),
        channels_in=channels_in,
        spacing=spacing,
        patch=fitted,
        network=settings.network,
        channels=settings.channels,
        strides=strides,
    )


def _affordable(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """The whole volume if that is not too much, else a part of its form."""
    shrink = min(1.0, (most / math.prod(int(n) for n in shape)) ** (1 / 3))
    return tuple(max(1, round(n * shrink)) for n in shape)


def _strides(shape: Sequence[int], spacing: Sequence[float], levels: int) -> tuple[Triple, ...]:
    """Halve fine axes first, and none until nothing is left of it."""
    cells, size = [float(n) for n in shape], list(spacing)
    strides = []
    for _ in range(levels):
        finest = min(s for s, n in zip(size, cells, strict=True) if n > 1)
        stride = tuple(
            2 if n / 2 >= _SHORTEST and s < _ANISOTROPIC * finest else 1
            for n, s in zip(cells, size, strict=True)
        )
        cells = [n / k for n, k in zip(cells, stride, strict=True)]
        size = [s * k for s, k in zip(size, stride, strict=True)]
        strides.append(stride)
    return tuple(strides)
