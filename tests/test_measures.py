"""Measures against two other people's (MONAI and medpy) and against numbers worked out by hand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tutelage import measures
from tutelage.measures import Mask

SPACINGS = [(1.0, 1.0, 1.0), (9.0, 3.0, 3.0), (5.0, 0.7, 1.3)]
PAIRS = 240


def blob(rng: np.random.Generator, shape: tuple[int, ...]) -> Mask:
    """A random smooth shape that now and then fills little, much, or touches the border."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.6, 2.5))
    return np.asarray(noise > np.quantile(noise, rng.uniform(0.3, 0.97)))


def pairs() -> Iterator[tuple[Mask, Mask, tuple[float, ...]]]:
    """Random pairs of masks, none of them empty, every fifth flat; some identical, some full."""
    rng = np.random.default_rng(0)
    for i in range(PAIRS):
        axes = 2 if i % 5 == 4 else 3
        shape = tuple(int(n) for n in rng.integers(4, 20, axes))
        a = np.ones(shape, bool) if i % 40 == 0 else blob(rng, shape)
        b = a.copy() if i % 30 == 1 else np.ones(shape, bool) if i % 40 == 7 else blob(rng, shape)
        yield a, b, SPACINGS[i % 3][-axes:]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_measures_agree_with_monai() -> None:
    import torch
    from monai import metrics

    tolerance = 3.0
    for i, (a, b, spacing) in enumerate(pairs()):
        # MONAI wants (batch, class, axes), with the background as class 0.
        one, other = (torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (a, b))
        near: dict[str, Any] = {"spacing": list(spacing), "include_background": False}
        ours = measures.compare(a, b, spacing, tolerance)
        theirs = {
            "hd95_mm": metrics.compute_hausdorff_distance(one, other, percentile=95, **near),
            "asd_mm": metrics.compute_average_surface_distance(one, other, symmetric=True, **near),
            "nsd": metrics.compute_surface_dice(one, other, [tolerance], **near),
            "dice": metrics.compute_dice(one, other, include_background=False),
            "jaccard": metrics.compute_iou(one, other, include_background=False),
        }
        for name, value in theirs.items():
            assert getattr(ours, name) == pytest.approx(float(value), abs=1e-4), (name, i, a.shape, spacing)


@pytest.mark.heavy
def test_measures_agree_with_medpy() -> None:
    from medpy.metric import binary

    for i, (a, b, spacing) in enumerate(pairs()):
        ab, ba = measures.surface_distances(a, b, spacing)
        ours_and_theirs = {
            "dice": (measures.dice(a, b), binary.dc(a, b)),
            "jaccard": (measures.jaccard(a, b), binary.jc(a, b)),
            "assd": (measures.asd(a, b, spacing), binary.assd(a, b, spacing)),
            "hd": (max(ab.max(), ba.max()), binary.hd(a, b, spacing)),
            # medpy takes one percentile of both directions together; ours is the larger of two.
            "hd95": (np.percentile(np.concatenate([ab, ba]), 95), binary.hd95(a, b, spacing)),
        }
        for name, (ours, theirs) in ours_and_theirs.items():
            assert ours == pytest.approx(theirs, abs=1e-9), (name, i, a.shape, spacing)


def test_the_single_measures_are_those_of_compare() -> None:
    for a, b, spacing in list(pairs())[:20]:
        all_at_once = measures.compare(a, b, spacing, 2.0)
        assert all_at_once.hd95_mm == measures.hd95(a, b, spacing)
        assert all_at_once.asd_mm == measures.asd(a, b, spacing)
        assert all_at_once.nsd == measures.nsd(a, b, spacing, 2.0)
        assert all_at_once.hd95_voxels == measures.hd95(a, b, [1.0] * a.ndim)
        assert all_at_once.asd_voxels == measures.asd(a, b, [1.0] * a.ndim)


def test_two_cubes_one_voxel_apart_measure_what_a_ruler_does() -> None:
    a, b = np.zeros((6, 12, 12), bool), np.zeros((6, 12, 12), bool)
    a[1:5, 2:8, 2:8] = True
    b[2:6, 2:8, 2:8] = True
    found = measures.compare(a, b, (5.0, 1.0, 1.0), tolerance_mm=4.9)
    assert found.dice == pytest.approx(0.75)
    assert found.jaccard == pytest.approx(0.6)
    assert found.hd95_mm == 5.0
    assert found.hd95_voxels == 1.0
    assert 0 < found.nsd < 1
    assert measures.nsd(a, b, (5.0, 1.0, 1.0), 5.0) == 1.0


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (
            0,
            0,
            {"dice": 1, "jaccard": 1, "hd95_mm": 0, "asd_mm": 0, "nsd": 1, "hd95_voxels": 0, "absent": True},
        ),
        (
            0,
            1,
            {
                "dice": 0,
                "jaccard": 0,
                "hd95_mm": 10,
                "asd_mm": 10,
                "nsd": 0,
                "hd95_voxels": 5,
                "absent": False,
            },
        ),
        (
            1,
            0,
            {
                "dice": 0,
                "jaccard": 0,
                "hd95_mm": 10,
                "asd_mm": 10,
                "nsd": 0,
                "hd95_voxels": 5,
                "absent": False,
            },
        ),
        (
            1,
            1,
            {"dice": 1, "jaccard": 1, "hd95_mm": 0, "asd_mm": 0, "nsd": 1, "hd95_voxels": 0, "absent": False},
        ),
    ],
    ids=["both empty", "first empty", "second empty", "both full"],
)
def test_empty_masks_are_measured_as_documented(left: int, right: int, expected: dict[str, float]) -> None:
    # One slice of 3 x 4 voxels of 2 mm: its diagonal is 5 voxels or 10 mm.
    a, b = np.full((1, 3, 4), left, bool), np.full((1, 3, 4), right, bool)
    found = measures.compare(a, b, (9.0, 2.0, 2.0))
    assert {name: pytest.approx(value) for name, value in expected.items()} == {
        name: getattr(found, name) for name in expected
    }


def test_a_tolerance_wider_than_the_volume_does_not_reward_an_empty_mask() -> None:
    a, b = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert measures.nsd(a, b, (1.0, 1.0, 1.0), 1000.0) == 0.0
    assert measures.compare(a, b, (1.0, 1.0, 1.0), 1000.0).nsd == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_measured_as_the_flat_image_it_is(axis: int) -> None:
    rng = np.random.default_rng(axis)
    a, b = blob(rng, (14, 11)), blob(rng, (14, 11))
    spacing = [2.0, 0.5]
    flat = measures.compare(a, b, spacing)
    deep = measures.compare(
        np.expand_dims(a, axis), np.expand_dims(b, axis), [*spacing[:axis], 50.0, *spacing[axis:]]
    )
    assert deep == flat


def test_where_masks_lie_in_a_volume_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    a, b = blob(rng, (8, 9, 10)), blob(rng, (8, 9, 10))
    roomy_a, roomy_b = np.pad(a, 3), np.pad(b, 3)
    assert measures.compare(a, b, (3, 1, 1)) == measures.compare(roomy_a, roomy_b, (3, 1, 1))


def test_masks_of_different_shapes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 3, 5\)"):
        measures.compare(np.ones((2, 3, 4), bool), np.ones((2, 3, 5), bool), (1, 1, 1))


def test_pieces_that_touch_at_a_corner_are_separate() -> None:
    mask = np.zeros((1, 5, 5), bool)
    mask[0, :2, :2] = True
    mask[0, 2, 2] = True
    numbered, sizes = measures.components(mask)
    assert sizes.tolist() == [4, 1]
    assert numbered.max() == 2
    assert measures.largest_components(mask).sum() == 4
    assert measures.largest_components(mask, keep=2).sum() == 5
    assert measures.largest_components(mask, keep=2, min_share=0.5).sum() == 4


def test_a_single_piece_has_all_voxels() -> None:
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 1:3, 1:] = True
    numbered, sizes = measures.components(mask)
    assert sizes.tolist() == [8]
    assert np.array_equal(numbered == 1, mask)


def test_nothing_has_no_pieces() -> None:
    nothing = np.zeros((2, 3, 4), bool)
    assert measures.components(nothing)[1].tolist() == []
    assert not measures.largest_components(nothing, keep=3).any()
