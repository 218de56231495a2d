"""How a patch is turned a little and made larger or smaller, about its middle.

It decides by which matrix, how much of a volume that takes, and what lies between voxels. A turn is
one in millimeters: voxels that are longer than wide make it oblique in voxels. Labels and their
weights are those of the nearest voxel, whatever is a share is between its neighbors. Flips and
quarters move voxels and change none; they are the View's own, and come after. What is drawn
comes from the patch's own seed and moves no other chance. It knows no volumes and no cases.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tutelage.methods import chance
from tutelage.methods.settings import AugmentSettings
from tutelage.specialist.plan import Plan, Triple

_SOMETIMES = 0.3
"""How often a patch is turned and scaled: what was between voxels is smoother, and whole volumes are not."""

_CUBES = 1.5
"""Voxels whose longest side is at most this many times the shortest are nearly cubes."""

Row = tuple[float, float, float]

Matrix = tuple[Row, Row, Row]
"""From a voxel of a patch to where it is taken from, along (D, H, W), both counted from the middle."""


def drawn(settings: AugmentSettings, plan: Plan, seed: int) -> Matrix | None:
    """Draw from its seed how one patch is turned and scaled; None leaves it as it is."""
    if not settings.rotation_degrees and not settings.scaling:
        return None
    generator = chance.generator(seed, "turning")
    often, turn, size, *where = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    if often >= _SOMETIMES:
        return None
    most = 1 + settings.scaling
    larger = 1 / most + size * (most - 1 / most)
    turned = _about(_axis(plan, where), math.radians(settings.rotation_degrees) * (2 * turn - 1))
    return in_voxels(turned / larger, plan.spacing)


def in_voxels(matrix_mm: NDArray[np.float64], spacing_mm: Sequence[float]) -> Matrix:
    """Return in voxels what is meant in millimeters."""
    d, h, w = (matrix_mm * np.asarray(spacing_mm) / np.asarray(spacing_mm)[:, None]).tolist()
    return tuple(d), tuple(h), tuple(w)


def margins(matrix: Matrix | None, patch: Triple) -> Triple:
    """Return by how much what a patch is made of is longer than the patch, on either side of each axis."""
    if matrix is None:
        return 0, 0, 0
    middle_3 = (np.asarray(patch) - 1) / 2
    d, h, w = np.ceil(np.abs(matrix) @ middle_3 - middle_3).clip(0).astype(int).tolist()
    return d, h, w


def taken(source: Tensor, matrix: Matrix, shape: Sequence[int], smooth: bool) -> Tensor:
    """Return (..., D, H, W) of this shape, whose middle is that of the source, in the source's type.

    What lies beyond the source is as its rim. Nothing of it depends on autocast.
    """
    sides, own = np.asarray(shape), np.asarray(source.shape[-3:])
    # Its numbers go from -1 to 1 along each axis, W first.
    theta = np.zeros((1, 3, 4), np.float32)
    theta[0, :, :3] = (np.asarray(matrix) * sides / own[:, None])[::-1, ::-1]
    with torch.autocast(source.device.type, enabled=False):
        where = F.affine_grid(torch.from_numpy(theta), [1, 1, *sides.tolist()], align_corners=False)
        found = F.grid_sample(
            source.float().reshape(1, -1, *source.shape[-3:]),
            where.to(source.device),
            mode="bilinear" if smooth else "nearest",
            padding_mode="border",
            align_corners=False,
        )
    return found.reshape(*source.shape[:-3], *found.shape[2:]).to(source.dtype)


def returned(patch: Tensor, matrix: Matrix, shape: Sequence[int], fill: float, smooth: bool) -> Tensor:
    """Undo `taken`: return what the patch was made of, and `fill` where it shows nothing."""
    back = np.linalg.inv(np.asarray(matrix)).tolist()
    return taken(F.pad(patch, [1] * 6, value=fill), back, shape, smooth)


def cells(matrix: Matrix, patch: Triple, counts: Sequence[int]) -> NDArray[np.float64]:
    """Return where the middles of a patch's cells are taken from, (3, d, h, w), in voxels of the patch."""
    sides = zip(patch, counts, strict=True)
    middles = [(np.arange(n) + 0.5) * p / n - p / 2 for p, n in sides]
    places: NDArray[np.float64] = np.tensordot(matrix, np.stack(np.meshgrid(*middles, indexing="ij")), 1)
    return places + (np.asarray(patch)[:, None, None, None] - 1) / 2


def looked_up(features_DCHW: NDArray[np.float16], shares_3dhw: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (F, d, h, w): features at places that are shares of a volume's sides, zero beyond it.

    The nearest slice, since those that nobody looked at are zero; linear within a slice.
    """
    sides = np.asarray([features_DCHW.shape[0], *features_DCHW.shape[2:]])[:, None, None, None]
    d, h, w = np.clip(shares_3dhw * sides - 0.5, 0, sides - 1)
    slices = np.rint(d).astype(int)
    found_dhwF = np.zeros((*d.shape, features_DCHW.shape[1]), np.float32)
    for row, of_row in _neighbors(h, features_DCHW.shape[2]):
        for column, of_column in _neighbors(w, features_DCHW.shape[3]):
            share = (of_row * of_column)[..., None].astype(np.float32)
            found_dhwF += features_DCHW[slices, :, row, column] * share
    beyond: NDArray[np.bool_] = np.any((shares_3dhw < 0) | (shares_3dhw > 1), axis=0)
    found_dhwF[beyond] = 0
    return np.moveaxis(found_dhwF, -1, 0)


def _neighbors(
    places: NDArray[np.float64], count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The cells before and after places along one axis, and how much each counts."""
    before = np.floor(places).astype(np.int64)
    share = places - before
    return [(before, 1 - share), (np.minimum(before + 1, count - 1), share)]


def _axis(plan: Plan, where: Sequence[float]) -> NDArray[np.float64] | None:
    """What is turned about: any direction where voxels are nearly cubes, else out of the finest two axes.

    Out of slices that lie far apart a turn would make what no scanner shows; two axes as fine are
    rather the last ones. None where fewer than two axes have more than one voxel.
    """
    finest = sorted((n for n in (2, 1, 0) if plan.patch[n] > 1), key=lambda n: plan.spacing[n])
    if len(finest) < 2:
        return None
    if len(finest) == 3 and max(plan.spacing) <= _CUBES * min(plan.spacing):
        height, around = 2 * where[0] - 1, 2 * math.pi * where[1]
        flat = math.sqrt(1 - height**2)
        return np.array([height, flat * math.cos(around), flat * math.sin(around)])
    (across,) = {0, 1, 2} - set(finest[:2])
    return np.array([float(n == across) for n in range(3)])


def _about(axis_3: NDArray[np.float64] | None, radians: float) -> NDArray[np.float64]:
    """Return the turn about an axis of length one; without one it is none (Rodrigues)."""
    if axis_3 is None:
        return np.eye(3)
    d, h, w = axis_3
    across = np.array([[0, -w, h], [w, 0, -d], [-h, d, 0]])
    turned: NDArray[np.float64] = (
        np.eye(3) + math.sin(radians) * across + (1 - math.cos(radians)) * across @ across
    )
    return turned
