"""Vectors of structures and small grids of slices, against the definition written out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.generalists.base import Embedding
from tutelage.generalists.fusion import Patch, patch
from tutelage.generalists.pooling import GRID, Pool, small_grid, volume_grid


def _mask(shape: tuple[int, int], *where: slice) -> Patch:
    logits_HW = np.full(shape, -20.0, np.float32)
    logits_HW[where] = 20.0
    return patch(0, 0, [logits_HW])


def _embedding(shape: tuple[int, int], cells: int = 4, seed: int = 0) -> Embedding:
    features = np.random.default_rng(seed).normal(size=(3, cells, cells)).astype(np.float16)
    return Embedding(features, shape)


def _slow(embedding: Embedding, mask_HW: NDArray[np.bool_], down: float, right: float) -> NDArray[np.float64]:
    """Sum of features over the pixels of a mask, each cut into 20 x 20 specks that lie in one cell each."""
    total = np.zeros(len(embedding.features_CHW))
    specks = (np.arange(20) + 0.5) / 20
    for row, column in np.argwhere(mask_HW):
        at_rows = ((row + specks) * down).astype(int)
        at_columns = ((column + specks) * right).astype(int)
        total += embedding.features_CHW[:, at_rows[:, None], at_columns].mean(axis=(1, 2), dtype=np.float64)
    return total


@pytest.mark.parametrize("stretches", [False, True], ids=["padded", "stretched"])
def test_the_vector_of_a_structure_is_the_mean_over_its_voxels(stretches: bool) -> None:
    shape = (6, 8)
    down, right = (4 / 6, 4 / 8) if stretches else (4 / 8, 4 / 8)
    pool, total, voxels = Pool(3, stretches), np.zeros(3), 0
    for seed, where in enumerate((np.s_[1:3, 2:7], np.s_[0:6, 5:6])):
        embedding, mask_HW = _embedding(shape, seed=seed), np.zeros(shape, bool)
        mask_HW[where] = True
        pool.add(embedding, shape, [(2, _mask(shape, *where))])
        total += _slow(embedding, mask_HW, down, right)
        voxels += mask_HW.sum()
    means = pool.means()
    assert means.shape == (3, 3)
    assert means.dtype == np.float16
    assert means[2] == pytest.approx(total / voxels, abs=0.02)
    assert not means[:2].any()


def test_a_slice_that_was_stretched_before_it_was_seen_is_pooled_where_its_mask_lies() -> None:
    """Own pixels (4, 8), seen as (8, 8): a row of its own is a row of four cells of a 4 x 4 grid."""
    embedding = _embedding((8, 8))
    pool = Pool(2, stretches=False)
    pool.add(embedding, (4, 8), [(1, _mask((4, 8), np.s_[2:3], np.s_[0:8]))])
    expected = embedding.features_CHW[:, 2].astype(np.float64).mean(axis=1)
    assert pool.means()[1] == pytest.approx(expected, abs=2e-3)


def test_padding_is_in_no_vector_and_no_grid() -> None:
    features = np.ones((2, 4, 4), np.float16)
    features[:, 2:] = 1000.0
    embedding = Embedding(features, (4, 8))
    pool = Pool(2, stretches=False)
    pool.add(embedding, (4, 8), [(1, _mask((4, 8), np.s_[:], np.s_[:]))])
    assert pool.means()[1] == pytest.approx([1.0, 1.0])
    assert small_grid(embedding, stretches=False) == pytest.approx(np.ones((2, GRID, GRID)))


def test_a_small_grid_averages_by_area() -> None:
    features = np.arange(3 * 16 * 16, dtype=np.float16).reshape(3, 16, 16)
    found = small_grid(Embedding(features, (100, 100)), stretches=False)
    expected = features.astype(np.float64).reshape(3, GRID, 2, GRID, 2).mean(axis=(2, 4))
    assert found.dtype == np.float16
    assert found == pytest.approx(expected, rel=1e-3)


def test_without_slices_there_are_no_channels() -> None:
    assert Pool(4, stretches=False).means().shape == (4, 0)


def _grids_of(field_DHW: NDArray[np.float64], axis: int) -> dict[tuple[int, int], NDArray[np.float16]]:
    """What a generalist that sees brightness alone would tell of a volume with sides in multiples of GRID."""
    found = {}
    for index in range(field_DHW.shape[axis]):
        slice_HW = np.take(field_DHW, index, axis)
        down, right = (n // GRID for n in slice_HW.shape)
        coarse = slice_HW.reshape(GRID, down, GRID, right).mean(axis=(1, 3))
        found[axis, index] = coarse[np.newaxis].astype(np.float16)
    return found


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis_become_cells_at_their_own_place(axis: int) -> None:
    """A field that changes evenly along D, H and W at its own pace each tells swapped axes apart."""
    shape = (16, 24, 32)
    d, h, w = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    field_DHW = d + 3 * h + 9 * w
    grid_DCHW = volume_grid(_grids_of(field_DHW, axis), shape, 1)
    expected = field_DHW.reshape(16, GRID, 3, GRID, 4).mean(axis=(2, 4))
    if axis != 0:  # then a coarse cell is all that is known along D
        expected = expected.reshape(GRID, 2, GRID, GRID).mean(axis=1).repeat(2, axis=0)
    assert grid_DCHW.shape == (16, 1, GRID, GRID)
    assert np.allclose(grid_DCHW[:, 0], expected, atol=0.02)


def test_cells_seen_along_several_axes_hold_the_mean_and_others_what_was_seen() -> None:
    one, three = (np.full((1, GRID, GRID), value, np.float16) for value in (1.0, 3.0))
    grid_DCHW = volume_grid({(0, 4): one, (2, 0): three}, (8, 8, 8), 1)
    assert (grid_DCHW[4, 0, :, 0] == 2).all()
    assert (grid_DCHW[4, 0, :, 1:] == 1).all()
    others = np.delete(grid_DCHW, 4, axis=0)
    assert (others[:, 0, :, 0] == 3).all()
    assert not others[:, 0, :, 1:].any()


def test_few_slices_along_d_share_what_was_seen_across_them() -> None:
    """A slice along D that is thicker than a cell holds the mean of its cells."""
    ramp_CZY = np.repeat(np.arange(GRID)[np.newaxis, :, np.newaxis], GRID, axis=2).astype(np.float16)
    grid_DCHW = volume_grid({(1, 0): ramp_CZY}, (2, 8, 8), 1)
    assert grid_DCHW[:, 0, 0, 0].tolist() == [1.5, 5.5]


def test_where_nobody_looked_the_grid_is_empty() -> None:
    assert not volume_grid({}, (5, 8, 8), 2).any()
