"""What a generalist remembers of a structure, in one vector, and of a volume, in a small grid of each slice.

It decides how pixels share out over cells: by area, padding left out. It knows no
generalist by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tutelage.generalists.base import Embedding
from tutelage.generalists.fusion import Patch

GRID = 8
"""Cells of the small grid along each side of a slice."""

_HALF = 127


class Pool:
    """Features inside masks, summed over slices; every voxel of a structure counts alike.

    The mask is the one that was answered on the slice itself, variants joined. A structure
    that is seen along several axes has its voxels counted once an axis.
    """

    def __init__(self, classes: int, stretches: bool) -> None:
        """`stretches` is that of the generalist's capabilities."""
        self._stretches = stretches
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._voxels = np.zeros(classes)
        self._channels = 0

    def add(self, embedding: Embedding, shape: tuple[int, int], patches: Iterable[tuple[int, Patch]]) -> None:
        """Take in one slice, `shape` in its own pixels, and its patches by structure."""
        self._channels = len(embedding.features_CHW)
        rows, columns = _covered(embedding, self._stretches)
        down = _shared(shape[0], rows, embedding.features_CHW.shape[1])
        right = _shared(shape[1], columns, embedding.features_CHW.shape[2])
        for structure, one in patches:
            # In floats from here: products with truth values take a hundred times longer.
            mask_HW = (one.mean_HW > _HALF).astype(np.float32)
            voxels = float(mask_HW.sum(dtype=np.float64))
            if not voxels:
                continue
            top, left = one.start
            high, wide = mask_HW.shape
            # Not by @: numpy's threads for products stay awake, and slow down torch's for 20 ms a slice.
            weight_HW = np.einsum("ay,yx->ax", down[:, top : top + high], mask_HW)
            weight_HW = np.einsum("ax,bx->ab", weight_HW, right[:, left : left + wide])
            used = np.ix_(weight_HW.any(axis=1), weight_HW.any(axis=0))
            features_CN = embedding.features_CHW[:, used[0], used[1]].reshape(self._channels, -1)
            summed = self._sums.setdefault(structure, np.zeros(self._channels))
            summed += np.einsum("cn,n->c", features_CN.astype(np.float32), weight_HW[used].ravel())
            self._voxels[structure] += voxels

    def means(self) -> NDArray[np.float16]:
        """Return the vectors; zero where there was no mask, and without channels if no slice was added."""
        means = np.zeros((len(self._voxels), self._channels))
        for structure, summed in self._sums.items():
            means[structure] = summed / self._voxels[structure]
        return means.astype(np.float16)


def small_grid(embedding: Embedding, stretches: bool) -> NDArray[np.float16]:
    """Average the features of a slice, padding left out, over GRID x GRID cells."""
    rows, columns = _covered(embedding, stretches)
    down = _averaged(embedding.features_CHW.shape[1], rows)
    right = _averaged(embedding.features_CHW.shape[2], columns)
    return np.asarray(down @ embedding.features_CHW.astype(np.float32) @ right.T, np.float16)


def volume_grid(
    grids: Mapping[tuple[int, int], NDArray[np.float16]], shape: Sequence[int], channels: int
) -> NDArray[np.float16]:
    """Join the small grids of slices (axis, index) into one of every slice along D; zero where none looked.

    What was seen along D is kept slice by slice. What was seen along another axis is averaged
    over as many slices as share a cell, and says the same of all slices along D that share one.
    Where a cell was seen along several axes it holds their mean.
    """
    summed_DCHW = np.zeros((shape[0], channels, GRID, GRID), np.float32)
    views_DHW = np.zeros((shape[0], GRID, GRID), np.float32)
    for axis in range(len(shape)):
        slices = {index: grid for (across, index), grid in grids.items() if across == axis}
        if slices:
            seen_DCHW, known_DHW = (_along_d if axis == 0 else _across_d)(slices, axis, shape, channels)
            summed_DCHW += seen_DCHW
            views_DHW += known_DHW
    return np.asarray(summed_DCHW / np.maximum(views_DHW, 1)[:, np.newaxis], np.float16)


_Slices = Mapping[int, NDArray[np.float16]]
_Seen = tuple[NDArray[np.float32], NDArray[np.float32]]
"""(D, C, GRID, GRID), and 1 where it holds anything."""


def _along_d(slices: _Slices, axis: int, shape: Sequence[int], channels: int) -> _Seen:
    seen_DCHW = np.zeros((shape[axis], channels, GRID, GRID), np.float32)
    known_DHW = np.zeros((shape[axis], GRID, GRID), np.float32)
    for index, grid_CHW in slices.items():
        seen_DCHW[index], known_DHW[index] = grid_CHW, 1
    return seen_DCHW, known_DHW


def _across_d(slices: _Slices, axis: int, shape: Sequence[int], channels: int) -> _Seen:
    """X is the axis that was looked along, Y the one of H and W that is left, Z is D; all three in cells."""
    sums_XCZY = np.zeros((GRID, channels, GRID, GRID), np.float32)
    slices_X = np.zeros(GRID, np.float32)
    for index, grid_CZY in slices.items():
        cell = int((index + 0.5) * GRID / shape[axis])
        sums_XCZY[cell] += grid_CZY
        slices_X[cell] += 1
    means_XCZY = sums_XCZY / np.maximum(slices_X, 1)[:, np.newaxis, np.newaxis, np.newaxis]
    spread_DZ = _spread(shape[0])
    known_X = (slices_X > 0).astype(np.float32)
    if axis == 1:
        known_HW = np.repeat(known_X[:, np.newaxis], GRID, axis=1)
        seen_DCHW = np.einsum("dz,xczy->dcxy", spread_DZ, means_XCZY)
    else:
        known_HW = np.repeat(known_X[np.newaxis], GRID, axis=0)
        seen_DCHW = np.einsum("dz,xczy->dcyx", spread_DZ, means_XCZY)
    return seen_DCHW, np.broadcast_to(known_HW, (shape[0], GRID, GRID))


def _covered(embedding: Embedding, stretches: bool) -> tuple[float, float]:
    """Rows and columns of cells that hold the slice."""
    rows, columns = embedding.features_CHW.shape[1:]
    if stretches:
        return float(rows), float(columns)
    cells = max(rows, columns) / max(embedding.shape)
    return embedding.shape[0] * cells, embedding.shape[1] * cells


@lru_cache(maxsize=64)
def _shared(pixels: int, extent: float, cells: int) -> NDArray[np.float32]:
    """(cells, pixels): which share of a pixel lies in a cell, if all pixels together cover `extent` cells."""
    edges = np.arange(pixels + 1) * extent / pixels
    return (_overlap(np.arange(cells + 1.0), edges) * pixels / extent).astype(np.float32)


@lru_cache(maxsize=64)
def _averaged(cells: int, extent: float) -> NDArray[np.float32]:
    """(GRID, cells): which share of a coarse cell is covered by a fine one."""
    edges = np.arange(GRID + 1) * extent / GRID
    return (_overlap(edges, np.arange(cells + 1.0)) * GRID / extent).astype(np.float32)


@lru_cache(maxsize=64)
def _spread(slices: int) -> NDArray[np.float32]:
    """(slices, GRID): which share of a slice lies in a coarse cell along the same axis."""
    edges = np.arange(slices + 1) * GRID / slices
    return (_overlap(edges, np.arange(GRID + 1.0)) * slices / GRID).astype(np.float32)


def _overlap(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> NDArray[np.floating]:
    """Length that each interval between two edges of one list shares with each of the other."""
    start = np.maximum(rows[:-1, np.newaxis], columns[np.newaxis, :-1])
    stop = np.minimum(rows[1:, np.newaxis], columns[np.newaxis, 1:])
    shared: NDArray[np.floating] = np.maximum(stop - start, 0.0)
    return shared
