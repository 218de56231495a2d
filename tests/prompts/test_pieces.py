"""Which pieces are asked about along which axis."""

import numpy as np
import pytest
from pydantic import ValidationError

from tutelage.prompts import PromptSettings
from tutelage.prompts.boxes import boxes
from tutelage.prompts.pieces import fewest, pieces


def _block() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    mask_DHW = np.zeros((8, 20, 30), np.uint8)
    mask_DHW[2:6, 3:9, 10:22] = 1
    return mask_DHW


@pytest.mark.parametrize(
    ("axis", "indices", "edges"),
    [
        (0, range(2, 6), (3.0, 10.0, 9.0, 22.0)),
        (1, range(3, 9), (2.0, 10.0, 6.0, 22.0)),
        (2, range(10, 22), (2.0, 3.0, 6.0, 9.0)),
    ],
)
def test_slices_run_along_any_axis(axis: int, indices: range, edges: tuple[float, ...]) -> None:
    prompts = boxes(_block(), 2, PromptSettings(axes=(axis,), margin=0.0), seed=0)
    assert [(p.axis, p.index) for p in prompts] == [(axis, index) for index in indices]
    assert {(*p.box.start, *p.box.stop) for p in prompts if p.box} == {edges}


def test_boxes_along_one_axis_do_not_depend_on_the_others() -> None:
    settings = PromptSettings(variants=3)
    all_axes = boxes(_block(), 2, settings.model_copy(update={"axes": (0, 1, 2)}), seed=0)
    alone = boxes(_block(), 2, settings, seed=0)
    assert [p for p in all_axes if p.axis == 0] == alone
    assert [p.axis for p in all_axes] == sorted(p.axis for p in all_axes)


def test_variants_on_slices_of_one_number_along_different_axes_move_differently() -> None:
    cube_DHW = np.zeros((20, 20, 20), np.uint8)
    cube_DHW[5:15, 5:15, 5:15] = 1
    prompts = boxes(cube_DHW, 2, PromptSettings(axes=(0, 1, 2), variants=2), seed=0)
    moved = {p.box for p in prompts if p.index == 7 and p.variant == 1}
    assert len(moved) == 3


def test_a_piece_knows_its_own_pixels_only() -> None:
    mask_DHW = np.zeros((1, 12, 12), np.uint8)
    mask_DHW[0, 1:5, 1:9] = 1
    mask_DHW[0, 6:11, 2:6] = 1
    mask_DHW[0, 2, 3] = 2
    first, second = pieces(mask_DHW, 2, PromptSettings())
    assert (first.number, second.number) == (0, 1)
    assert (first.inside_HW.sum(), second.inside_HW.sum()) == (31, 20)
    assert second.where == (slice(6, 11), slice(2, 6))


@pytest.mark.parametrize("axes", [(), (0, 0), (3,), (-1,)], ids=["none", "twice", "a fourth", "negative"])
def test_axes_that_are_not_one_to_three_of_a_volume_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="one to three different axes"):
        PromptSettings(axes=axes)


def test_the_order_of_axes_means_nothing() -> None:
    assert PromptSettings(axes=(2, 0)).fingerprint() == PromptSettings(axes=(0, 2)).fingerprint()


def test_of_more_pieces_than_there_can_be_the_largest_stay() -> None:
    mask_DHW = _block()
    mask_DHW[2:6, 14:18, 10:20] = 1
    mask_DHW[2:4, 3:5, 25:28] = 2
    before = mask_DHW.copy()
    left_DHW = fewest(mask_DHW, {1: 1})
    assert (left_DHW[2:6, 3:9, 10:22] == 1).all()
    assert not (left_DHW[:, 14:18] == 1).any()
    assert ((left_DHW == 2) == (mask_DHW == 2)).all()
    assert (fewest(mask_DHW, {1: 2}) == mask_DHW).all()
    assert set(np.unique(fewest(mask_DHW, {1: 0}))) == {0, 2}
    assert (mask_DHW == before).all()


def test_where_nothing_is_known_all_pieces_stay() -> None:
    assert (fewest(_block(), {}) == _block()).all()
