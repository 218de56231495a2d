"""What a generalist remembers of a structure, in one vector, and of a slice, in a small grid.

It decides how pixels share out over cells: by area, padding left out. It knows no
generalist by name.
"""

from collections.abc import Iterable
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


def _overlap(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> NDArray[np.floating]:
    """Length that each interval between two edges of one list shares with each of the other."""
    start = np.maximum(rows[:-1, np.newaxis], columns[np.newaxis, :-1])
    stop = np.minimum(rows[1:, np.newaxis], columns[np.newaxis, 1:])
    shared: NDArray[np.floating] = np.maximum(stop - start, 0.0)
    return shared
