"""Clicks, masks and what a generalist is asked that takes this and not that."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.prompts import PromptSettings
from tutelage.prompts.boxes import boxes
from tutelage.prompts.drawing import Drawn, Takes, draw, nearest, suited
from tutelage.prompts.masks import LONGEST
from tutelage.prompts.settings import Kind
from tutelage.records import Prompt

EVERYTHING, BOXES, CLICKS = Takes(True, True, True), Takes(True, False, False), Takes(False, True, False)


def _mask() -> NDArray[np.uint8]:
    """On slice 1 of 3 a disc, a bar beside it, and a bar at the slice's edge."""
    mask_DHW = np.zeros((3, 60, 80), np.uint8)
    rows, columns = np.indices((60, 80))
    mask_DHW[1][np.hypot(rows - 30, columns - 30) < 14] = 1
    mask_DHW[1, 20:40, 46:52] = 2
    mask_DHW[1, 50:60, 60:80] = 3
    return mask_DHW


def _clicks(prompt: Prompt, positive: bool) -> NDArray[np.intp]:
    at = np.array([point.at for point in prompt.points if point.positive is positive]).reshape(-1, 2)
    assert (at % 1 == 0.5).all(), "the middle of a pixel"
    return at.astype(np.intp)


@pytest.mark.parametrize("variants", [1, 6])
def test_clicks_lie_deep_inside_or_where_no_structure_is(variants: int) -> None:
    mask_DHW = _mask()
    settings = PromptSettings(kinds="points", points=4, negatives=5, variants=variants)
    prompts = draw(mask_DHW, 4, settings, seed=0)
    assert [(p.structure, p.variant) for p in prompts] == [(k, v) for k in (1, 2, 3) for v in range(variants)]
    for prompt in prompts:
        inside, around = _clicks(prompt, True), _clicks(prompt, False)
        assert (len(inside), len(around)) == (4, 5)
        assert prompt.box is None
        assert (mask_DHW[1][tuple(inside.T)] == prompt.structure).all()
        assert not mask_DHW[1][tuple(around.T)].any()


def test_the_first_click_is_the_deepest_and_the_others_are_far_apart() -> None:
    (disc, *_) = draw(_mask(), 4, PromptSettings(kinds="points", points=3), seed=0)
    inside = _clicks(disc, True)
    assert np.abs(inside[0] - 30).max() <= 1
    apart = [np.hypot(*(a - b)) for i, a in enumerate(inside) for b in inside[:i]]
    assert min(apart) >= 6


def test_clicks_around_lie_in_a_ring_that_neither_touches_nor_is_far() -> None:
    (disc, *_) = draw(_mask(), 4, PromptSettings(kinds="points", negatives=12), seed=0)
    away = np.hypot(*(_clicks(disc, False) - 30).T) - 14
    assert (away > 1).all()
    assert (away < 14).all()


def test_a_piece_without_room_gets_fewer_clicks() -> None:
    full_DHW = np.ones((1, 3, 3), np.uint8)
    (prompt,) = draw(full_DHW, 2, PromptSettings(kinds="points", points=30, negatives=4), seed=0)
    assert 1 <= len(_clicks(prompt, True)) <= 9
    assert len(_clicks(prompt, False)) == 0


@pytest.mark.parametrize("kind", ["points", "boxes+points", "mask"])
def test_the_seed_decides_and_variants_differ(kind: Kind) -> None:
    settings = PromptSettings(kinds=kind, variants=4)
    one, same, other = (draw(_mask(), 4, settings, seed) for seed in (1, 1, 2))
    told = [[(p, np.asarray(p.logits_HW).tolist()) for p in drawn] for drawn in (one, same, other)]
    assert told[0] == told[1]
    assert told[0] != told[2]
    disc = told[0][:4]
    assert len({(p.box, p.points, str(logits)) for p, logits in disc}) == 4


def test_boxes_are_the_boxes_that_come_with_clicks_and_masks() -> None:
    alone = boxes(_mask(), 4, PromptSettings(variants=2), seed=0)
    for kind in ("boxes", "boxes+points", "mask"):
        drawn = draw(_mask(), 4, PromptSettings(variants=2), 0, kind)
        assert [p.box for p in drawn] == [p.box for p in alone]


def test_a_mask_is_the_piece_in_low_resolution() -> None:
    mask_DHW = np.zeros((1, 300, 600), np.uint8)
    mask_DHW[0, 100:200, 150:300] = 1
    prompt, moved = draw(mask_DHW, 2, PromptSettings(kinds="mask", variants=2), seed=0)
    logits_HW = prompt.logits_HW
    assert logits_HW is not None
    assert logits_HW.shape == (LONGEST // 2, LONGEST)
    assert logits_HW.dtype == np.float32
    inside = np.argwhere(logits_HW > 0) * 300 / 64
    assert inside.min(axis=0) == pytest.approx([100, 150], abs=5)
    assert inside.max(axis=0) == pytest.approx([200, 300], abs=5)
    assert moved.logits_HW is not None
    assert 0.8 < ((moved.logits_HW > 0) & (logits_HW > 0)).sum() / (logits_HW > 0).sum() <= 1.0


def test_a_small_slice_keeps_its_own_resolution() -> None:
    (prompt, *_) = draw(_mask(), 4, PromptSettings(kinds="mask"), seed=0)
    assert prompt.logits_HW is not None
    assert np.array_equal(prompt.logits_HW > 0, _mask()[1] == 1)


@pytest.mark.parametrize(
    ("kind", "takes", "exact", "close"),
    [
        ("boxes", BOXES, "boxes", "boxes"),
        ("boxes", CLICKS, None, "points"),
        ("points", BOXES, "box of points", "box of points"),
        ("points", EVERYTHING, "points", "points"),
        ("boxes+points", EVERYTHING, "boxes+points", "boxes+points"),
        ("boxes+points", BOXES, None, "boxes"),
        ("boxes+points", CLICKS, None, "points"),
        ("mask", EVERYTHING, "mask", "mask"),
        ("mask", BOXES, None, "boxes"),
        ("mask", Takes(False, False, False), None, None),
    ],
)
def test_what_a_generalist_is_asked_depends_on_what_it_takes(
    kind: Kind, takes: Takes, exact: Drawn | None, close: Drawn | None
) -> None:
    settings = PromptSettings(kinds=kind)
    assert (suited(settings, takes), nearest(settings, takes)) == (exact, close)


def test_clicks_become_a_box_only_where_that_is_allowed() -> None:
    assert suited(PromptSettings(kinds="points", box_from_points=None), BOXES) is None


def test_the_box_of_clicks_holds_the_inner_ones_and_a_margin() -> None:
    settings = PromptSettings(kinds="points", points=5, negatives=3, box_from_points=0.2)
    boxed = draw(_mask(), 4, settings, 0, "box of points")
    for prompt, clicked in zip(boxed, draw(_mask(), 4, settings, 0), strict=True):
        assert prompt.box is not None
        assert not prompt.points
        inside = _clicks(clicked, True)
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        size = high - low
        assert prompt.box.start == pytest.approx(np.maximum(low - 0.2 * size, 0))
        assert prompt.box.stop == pytest.approx(np.minimum(high + 0.2 * size, (60, 80)))


def test_only_the_outermost_slices_of_a_structure_ask_on() -> None:
    mask_DHW = np.zeros((9, 20, 20), np.uint8)
    mask_DHW[2:6, 2:8, 2:8] = 1
    mask_DHW[4, 12:18, 12:18] = 2
    prompts = draw(mask_DHW, 3, PromptSettings(propagate=True, variants=2), seed=0)
    asking = {(p.structure, p.index) for p in prompts if p.propagate}
    assert asking == {(1, 2), (1, 5), (2, 4)}
    assert not any(p.propagate for p in draw(mask_DHW, 3, PromptSettings(), seed=0))
