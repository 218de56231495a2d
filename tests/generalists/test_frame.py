"""How far a slice is magnified, what of the square is shown and kept, and that this tells the scale."""

import numpy as np
import pytest
import torch

from tutelage.generalists.frame import Frame
from tutelage.geometry import Box
from tutelage.records import Prompt

pytestmark = pytest.mark.torch

SHAPES = [(35, 50), (50, 35), (40, 40), (1, 9), (3, 1), (300, 131)]


def test_without_a_bound_the_longest_side_fills_the_square() -> None:
    frame = Frame(256)
    assert [frame.scaled(shape) for shape in ((35, 50), (300, 150))] == [(179, 256), (256, 128)]
    assert frame.shown((35, 50)) == (256, 256)
    assert frame.kept((35, 50)) == (64, 64)


def test_a_bound_stops_at_whole_cells_and_never_passes_the_square() -> None:
    frame = Frame(256, magnify=2.0, partial=True)
    assert frame.scaled((35, 50)) == (70, 100)
    assert frame.scaled((35, 51)) == (69, 100)  # 102 pixels are no whole cells
    assert frame.kept((35, 50)) == (18, 25)
    assert frame.shown((35, 50)) == (72, 100)
    assert frame.scaled((300, 150)) == (256, 128)
    assert frame.shown((300, 150)) == (256, 128)
    assert frame.kept((1, 1)) == (1, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("magnify", [0.5, 2.0, 3.3])
def test_the_longest_side_of_what_is_kept_tells_the_scale(shape: tuple[int, int], magnify: float) -> None:
    """Whoever averages features over pixels knows nothing else of the frame."""
    frame = Frame(256, magnify=magnify, partial=True)
    height, width = frame.scaled(shape)
    assert max(height, width) == frame.cell * max(frame.kept(shape))
    assert max(height, width) <= max(magnify * max(shape), frame.cell)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_shown_is_the_slice_and_its_padding(shape: tuple[int, int], partial: bool) -> None:
    frame = Frame(256, magnify=2.0, partial=partial)
    shown_3HW = frame.square(torch.ones(1, *shape))
    assert tuple(shown_3HW.shape[1:]) == frame.shown(shape)
    height, width = frame.scaled(shape)
    assert np.allclose(shown_3HW[:, :height, :width], 1)
    assert shown_3HW.sum().item() == pytest.approx(3 * height * width)


def test_boxes_are_magnified_as_the_slice_is() -> None:
    frame = Frame(256, magnify=2.0, partial=True)
    corners_14 = frame.corners([Prompt(1, 0, Box((5.0, 10.0), (20.0, 40.0)))], (35, 50))
    assert corners_14.tolist() == [[20.0, 10.0, 80.0, 40.0]]  # x before y


def test_logits_come_back_into_the_pixels_they_were_asked_about() -> None:
    frame, shape = Frame(256, magnify=4.0, partial=True), (32, 48)
    rows, columns = frame.kept(shape)
    ramp = torch.linspace(-1, 1, 4 * columns).expand(1, 1, 4 * rows, -1)
    back_HW = frame.restored(ramp, shape)[0, 0].numpy()
    assert back_HW.shape == shape
    middles = (np.arange(48) + 0.5) / 48 * 2 - 1
    assert np.allclose(back_HW, middles, atol=0.02)


def test_a_mask_that_is_a_prompt_lies_where_the_slice_does() -> None:
    frame, shape = Frame(1024, magnify=4.0), (40, 64)
    square = frame.believed([Prompt(1, 0, logits_HW=np.full(shape, 5.0, np.float32))], shape)[0, 0]
    height, width = (n // 4 for n in frame.scaled(shape))
    assert tuple(square.shape) == (256, 256)
    assert (square[:height, :width] == 5).all()
    assert (square == 5).sum() == height * width


def test_magnify_is_part_of_what_is_told_and_a_stretched_slice_has_none() -> None:
    told = {Frame(256).told(), Frame(256, magnify=2).told(), Frame(256, magnify=3).told()}
    assert len(told | {Frame(256, magnify=2, partial=True).told()}) == 4
    with pytest.raises(ValueError, match="found magnify with fit stretch, expected longest"):
        Frame(1024, "stretch", magnify=2.0)
    with pytest.raises(ValueError, match="without magnify"):
        Frame(256, partial=True)
