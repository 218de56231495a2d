"""Which pieces are prompted, and how boxes differ between variants."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.prompts import PromptSettings
from tutelage.prompts.boxes import boxes
from tutelage.prompts.pieces import clean
from tutelage.records import Prompt

EXACT = PromptSettings(margin=0.0)


def _mask(*blocks: tuple[int, tuple[slice, slice, slice]]) -> NDArray[np.uint8]:
    """A (4, 20, 30) mask with blocks of label values."""
    mask_DHW = np.zeros((4, 20, 30), np.uint8)
    for value, where in blocks:
        mask_DHW[where] = value
    return mask_DHW


def _edges(prompt: Prompt) -> tuple[float, ...]:
    assert prompt.box is not None
    return (*prompt.box.start, *prompt.box.stop)


LARGE = np.s_[0:3, 2:12, 3:15]


@pytest.mark.parametrize(
    ("small", "kept"),
    [
        (np.s_[0:1, 15:19, 20:28], False),
        (np.s_[0:3, 13:19, 18:26], True),
        (np.s_[3:4, 12:16, 15:20], False),
    ],
    ids=["far smaller", "large enough", "touching at a corner only"],
)
def test_stray_pieces_are_dropped_by_their_share_of_the_largest(
    small: tuple[slice, slice, slice], kept: bool
) -> None:
    mask_DHW = _mask((1, LARGE), (1, small))
    cleaned_DHW = clean(mask_DHW, 2, PromptSettings())
    assert bool((cleaned_DHW[small] == 1).all()) is kept
    assert (cleaned_DHW[LARGE] == 1).all()


def test_cleaning_leaves_its_input_and_other_structures_alone() -> None:
    mask_DHW = _mask((1, LARGE), (2, np.s_[0:1, 15:17, 20:22]))
    before_DHW = mask_DHW.copy()
    cleaned_DHW = clean(mask_DHW, 3, PromptSettings())
    assert np.array_equal(mask_DHW, before_DHW)
    assert np.array_equal(cleaned_DHW, before_DHW)
    assert cleaned_DHW.dtype == np.uint8


def test_sixteen_bit_labels_stay_sixteen_bit() -> None:
    mask_DHW = _mask((1, LARGE)).astype(np.uint16) * 300
    assert clean(mask_DHW, 301, PromptSettings()).dtype == np.uint16
    assert {p.structure for p in boxes(mask_DHW, 301, EXACT, seed=0)} == {300}


def test_a_box_without_margin_is_the_tightest() -> None:
    prompts = boxes(_mask((1, LARGE)), 2, EXACT, seed=0)
    assert [p.index for p in prompts] == [0, 1, 2]
    assert {_edges(p) for p in prompts} == {(2.0, 3.0, 12.0, 15.0)}


def test_the_margin_is_a_share_of_each_side() -> None:
    (prompt,) = boxes(_mask((1, np.s_[1:2, 5:15, 5:25])), 2, PromptSettings(margin=0.1), seed=0)
    assert _edges(prompt) == (4.0, 3.0, 16.0, 27.0)


def test_boxes_are_clipped_to_the_slice() -> None:
    settings = PromptSettings(margin=0.5, variants=5, jitter=0.4)
    for prompt in boxes(_mask((1, np.s_[:, :, :])), 2, settings, seed=0):
        top, left, bottom, right = _edges(prompt)
        assert 0 <= top < bottom <= 20
        assert 0 <= left < right <= 30


@pytest.mark.parametrize(
    ("second", "settings", "count"),
    [
        (np.s_[0:1, 15:17, 20:22], PromptSettings(), 1),
        (np.s_[0:1, 14:19, 20:24], PromptSettings(), 1),
        (np.s_[0:1, 13:19, 20:26], PromptSettings(), 2),
        (np.s_[0:1, 15:17, 20:22], PromptSettings(min_component_share=0.0, min_pixels=4), 2),
        (np.s_[0:1, 15:17, 20:22], PromptSettings(min_component_share=0.0, min_pixels=5), 1),
    ],
    ids=["too few pixels", "too small beside the largest", "large", "allowed", "one pixel short"],
)
def test_a_small_piece_of_a_slice_is_not_prompted(
    second: tuple[slice, slice, slice], settings: PromptSettings, count: int
) -> None:
    assert len(boxes(_mask((1, np.s_[0:1, 2:12, 3:15]), (1, second)), 2, settings, seed=0)) == count


def test_prompts_run_by_slice_structure_piece_and_variant() -> None:
    mask_DHW = _mask((2, np.s_[0:2, 1:6, 1:6]), (1, np.s_[0:2, 10:15, 1:6]), (1, np.s_[0:2, 10:15, 20:25]))
    prompts = boxes(mask_DHW, 3, PromptSettings(variants=2, jitter=0.0), seed=0)
    order = [(p.index, p.structure, _edges(p)[1] > 10, p.variant) for p in prompts]
    assert order == sorted(order)
    assert len(order) == 2 * 3 * 2


def test_only_further_variants_are_jittered_and_within_bounds() -> None:
    settings = PromptSettings(margin=0.0, jitter=0.1, variants=20)
    first, *others = boxes(_mask((1, np.s_[1:2, 5:15, 5:25])), 2, settings, seed=3)
    assert _edges(first) == (5.0, 5.0, 15.0, 25.0)
    moved = np.array([_edges(p) for p in others]) - _edges(first)
    assert [p.variant for p in others] == list(range(1, 20))
    assert (np.abs(moved) <= [1.0, 2.0, 1.0, 2.0]).all()
    assert (moved.max(axis=0) > 0.5).all()
    assert (moved.min(axis=0) < -0.5).all()


def test_the_seed_decides_the_jitter() -> None:
    mask_DHW, settings = _mask((1, LARGE)), PromptSettings(variants=3)
    assert boxes(mask_DHW, 2, settings, seed=1) == boxes(mask_DHW, 2, settings, seed=1)
    assert boxes(mask_DHW, 2, settings, seed=1) != boxes(mask_DHW, 2, settings, seed=2)


def test_every_place_is_jittered_by_itself() -> None:
    second = np.s_[0:3, 2:12, 17:29]  # as large as the first
    prompts = boxes(_mask((1, LARGE), (1, second)), 2, PromptSettings(margin=0.0, variants=2), seed=0)
    tight = [_edges(p) for p in prompts if p.variant == 0]
    drawn = [_edges(p) for p in prompts if p.variant == 1]
    moves = {tuple(np.subtract(b, a).round(9)) for a, b in zip(tight, drawn, strict=True)}
    assert len(moves) == len(drawn) == 3 * 2


def test_another_structure_does_not_move_the_boxes_of_the_first() -> None:
    settings = PromptSettings(variants=3)
    alone = boxes(_mask((2, LARGE)), 3, settings, seed=0)
    beside = boxes(_mask((2, LARGE), (1, np.s_[0:3, 14:19, 18:26])), 3, settings, seed=0)
    assert [p for p in beside if p.structure == 2] == alone


@pytest.mark.parametrize("shape", [(1, 20, 30), (3, 1, 1)], ids=["flat", "one voxel wide"])
def test_an_empty_mask_is_not_asked_about(shape: tuple[int, int, int]) -> None:
    empty_DHW = np.zeros(shape, np.uint8)
    assert boxes(clean(empty_DHW, 3, EXACT), 3, EXACT, seed=0) == []
