"""Opinions about voxels: what is averaged over whom, against the definition written out."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.generalists.fusion import Patch, consensus, fuse, patch
from tutelage.records import Region

SHAPE = (7, 8, 9)
HALF_A_STEP = 0.5 / 255 + 1e-6


def _logits(rng: np.random.Generator, axis: int) -> NDArray[np.float32]:
    """A blob somewhere on a slice, nothing elsewhere."""
    rows, columns = (n for a, n in enumerate(SHAPE) if a != axis)
    logits_HW = np.full((rows, columns), -20.0, np.float32)
    top, left = rng.integers(0, rows - 3), rng.integers(0, columns - 3)
    logits_HW[top : top + 3, left : left + 3] = rng.normal(1, 3, (3, 3))
    return logits_HW


def _by_definition(
    said: Sequence[tuple[int, int, Sequence[NDArray[np.float32]]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and four times the population variance of the opinions on each voxel, one voxel after another."""
    mean, spread = np.zeros(SHAPE), np.zeros(SHAPE)
    for voxel in np.ndindex(*SHAPE):
        opinions = [
            1 / (1 + np.exp(-float(logits[tuple(v for a, v in enumerate(voxel) if a != axis)])))
            for axis, index, variants in said
            if voxel[axis] == index
            for logits in variants
        ]
        if opinions:
            mean[voxel], spread[voxel] = np.mean(opinions), 4 * np.var(opinions)
    return mean, spread


def _whole(region: Region) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, spread = np.zeros(SHAPE), np.zeros(SHAPE)
    mean[region.where], spread[region.where] = region.mean_DHW / 255, region.variance_DHW / 255
    return mean, spread


@pytest.mark.parametrize("variants", [1, 3])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("generalists", [1, 2])
def test_fusing_is_what_its_definition_says(variants: int, axes: tuple[int, ...], generalists: int) -> None:
    rng = np.random.default_rng(0)
    said = [
        (axis, int(index), [_logits(rng, axis) for _ in range(variants)])
        for _ in range(generalists)
        for axis in axes
        for index in rng.choice(SHAPE[axis], 4, replace=False)
    ]
    region = fuse([patch(*one) for one in said])
    mean, spread = _by_definition(said)
    found_mean, found_spread = _whole(region)
    # Every patch is rounded once, and so is what comes of them.
    steps = 1 if axes == (0,) and generalists == 1 else 2
    assert np.abs(found_mean - mean).max() <= steps * HALF_A_STEP
    assert np.abs(found_spread - spread).max() <= 6 * steps * HALF_A_STEP


def test_an_axis_that_was_not_asked_on_a_slice_abstains_there() -> None:
    yes = np.full(SHAPE[1:], 20.0, np.float32)
    across = np.full((SHAPE[0], SHAPE[2]), 20.0, np.float32)
    mean, spread = _whole(fuse([patch(0, 2, [-yes]), patch(1, 4, [across])]))
    assert mean[5, 4, 3] == 1.0, "asked across only"
    assert mean[2, 4, 3] == pytest.approx(0.5, abs=HALF_A_STEP), "asked along both, and they differ"
    assert spread[2, 4, 3] == pytest.approx(1.0, abs=2 * HALF_A_STEP)
    assert mean[2, 1, 3] == 0.0
    assert spread[5, 4, 3] == 0.0


def test_a_patch_keeps_the_part_of_a_slice_where_something_is_said() -> None:
    logits_HW = np.full((300, 400), -12.0, np.float32)
    logits_HW[100:110, 50:70] = 3.0
    kept = patch(0, 4, [logits_HW])
    assert (kept.first, kept.shape) == ((4, 100, 50), (1, 10, 20))
    assert kept.variance_HW is None


def test_nothing_said_is_an_empty_region() -> None:
    empty: Sequence[Patch] = [patch(0, 1, [np.full((5, 5), -30.0, np.float32)])]
    for found in (fuse([]), fuse(empty)):
        assert (found.mean_DHW.size, found.variance_DHW.size) == (0, 0)


def _block(start: tuple[int, int, int], size: int) -> Region:
    full = np.full((size,) * 3, 200, np.uint8)
    return Region(start, full, np.zeros_like(full))


def test_consensus_is_the_mean_overlap_of_pairs() -> None:
    one, moved, away = _block((0, 0, 0), 4), _block((0, 0, 2), 4), _block((5, 5, 5), 2)
    assert consensus([one, one]) == 1.0
    assert consensus([one, moved]) == pytest.approx(32 / 96)
    assert consensus([one, moved, away]) == pytest.approx(32 / 96 / 3)
    assert consensus([one]) == 1.0, "there is nobody to differ with"
    assert consensus([fuse([]), fuse([])]) == 1.0, "both found nothing"
    assert consensus([one, fuse([])]) == 0.0


def test_what_is_less_likely_than_not_is_not_counted_for_consensus() -> None:
    faint = Region((0, 0, 0), np.full((8, 8, 8), 127, np.uint8), np.zeros((8, 8, 8), np.uint8))
    faint.mean_DHW[:4, :4, :4] = 128
    assert consensus([_block((0, 0, 0), 4), faint]) == 1.0
