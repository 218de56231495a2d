"""What a generalist sees of a volume, and how questions and answers travel with it."""

import numpy as np
import pytest

from tutelage.errors import GeneralistError
from tutelage.generalists.slices import Plane, Slices, windowed
from tutelage.geometry import Box
from tutelage.records import Point, Prompt

WHOLE = (0.0, 100.0)
IMAGE_DHW = np.random.default_rng(0).integers(0, 1000, (6, 8, 10)).astype(np.int16)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_has_the_two_other_axes_in_their_order(axis: int) -> None:
    slices = Slices(IMAGE_DHW, WHOLE)
    expected = np.take(windowed(IMAGE_DHW, WHOLE), 3, axis)
    assert np.array_equal(slices.at(axis, 3), expected)
    assert slices.planes[axis].shape == expected.shape
    assert slices.planes[axis].depth == IMAGE_DHW.shape[axis]


def test_looking_changes_nothing_in_the_image() -> None:
    image_DHW = IMAGE_DHW.astype(np.float32)
    Slices(image_DHW, WHOLE).at(0, 0)
    assert np.array_equal(image_DHW, IMAGE_DHW)


def test_colors_stay_colors_and_are_windowed_together() -> None:
    image_CDHW = np.stack([IMAGE_DHW, IMAGE_DHW // 2, IMAGE_DHW // 4])
    slice_CHW = Slices(image_CDHW, WHOLE).at(0, 2)
    assert slice_CHW.shape == (3, 8, 10)
    assert np.array_equal(slice_CHW, windowed(image_CDHW, WHOLE)[:, 2])
    assert Slices(image_CDHW, WHOLE).seen_as("x", 0) != Slices(IMAGE_DHW, WHOLE).seen_as("x", 0)


def test_two_channels_are_neither_gray_nor_colors() -> None:
    with pytest.raises(GeneralistError, match="2 channels"):
        Slices(np.stack([IMAGE_DHW, IMAGE_DHW]), WHOLE)


@pytest.mark.parametrize(
    ("spacing", "seen"),
    [
        ((3.0, 3.0, 3.0), [(8, 10), (6, 10), (6, 8)]),
        ((4.0, 3.0, 3.0), [(8, 10), (6, 10), (6, 8)]),
        ((12.0, 3.0, 3.0), [(8, 10), (24, 10), (24, 8)]),
        ((12.0, 3.0, 6.0), [(8, 20), (12, 10), (24, 8)]),
    ],
    ids=["cubes", "nearly cubes", "thick slices", "three sizes"],
)
def test_pixels_that_are_much_longer_than_wide_become_square(
    spacing: tuple[float, float, float], seen: list[tuple[int, int]]
) -> None:
    slices = Slices(IMAGE_DHW, WHOLE, spacing)
    assert [plane.seen for plane in slices.planes] == seen
    assert [slices.at(axis, 0).shape for axis in range(3)] == seen
    stretched = [plane.seen != plane.shape for plane in slices.planes]
    names = [slices.seen_as("x", axis) != Slices(IMAGE_DHW, WHOLE).seen_as("x", axis) for axis in range(3)]
    assert names == stretched


def test_stretching_runs_straight_between_the_middles_of_pixels() -> None:
    ramp_DHW = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((6, 2, 4), np.float32)
    seen_HW = Slices(ramp_DHW, WHOLE, (4.0, 1.0, 1.0)).at(1, 0)
    expected = np.clip((np.arange(24) + 0.5) / 4 - 0.5, 0, 5) / 5
    assert seen_HW[:, 0] == pytest.approx(expected, abs=1e-6)


def test_boxes_and_clicks_are_stretched_with_the_slice_and_masks_cover_all_of_it_anyway() -> None:
    plane = Plane.along(1, (6, 8, 10), (12.0, 3.0, 3.0))
    logits_HW = np.zeros((3, 5), np.float32)
    own = Prompt(1, 2, Box((1.0, 2.0), (3.0, 7.0)), (Point((1.5, 2.5), True),), axis=1, logits_HW=logits_HW)
    asked = plane.asked(own)
    assert asked.box == Box((4.0, 2.0), (12.0, 7.0))
    assert asked.points == (Point((6.0, 2.5), True),)
    assert asked.logits_HW is logits_HW
    assert Plane.along(0, (6, 8, 10), (12.0, 3.0, 3.0)).asked(own) is own


def test_an_answer_comes_back_where_it_was_given() -> None:
    plane = Plane.along(2, (6, 8, 10), (12.0, 3.0, 3.0))
    mask_HW = np.zeros((6, 8), np.float32)
    mask_HW[2:5, 3:6] = 1
    seen_HW = np.repeat(mask_HW, 4, axis=0) * 20 - 10
    assert np.array_equal(plane.answered(seen_HW) > 0, mask_HW > 0)
