"""From one answer to the next slice, and where that ends."""

import numpy as np
import pytest

from tutelage.generalists.propagation import LARGEST_GROWTH, MARGIN, Propagation
from tutelage.geometry import Box
from tutelage.records import Answer, Prompt

SHAPE = (40, 60)
START = Prompt(1, 5, Box((10.0, 10.0), (20.0, 20.0)), propagate=True)


def _answer(prompt: Prompt, side: int = 10, iou: float = 0.9, top: int = 10) -> Answer:
    logits_HW = np.full(SHAPE, -5.0, np.float32)
    logits_HW[top : top + side, 10 : 10 + side] = 5.0
    return Answer(prompt, logits_HW, iou)


def _onward(propagation: Propagation) -> dict[int, Prompt]:
    return {prompt.index: prompt for prompt in propagation.onward()}


def test_an_answer_asks_on_to_both_sides_with_the_box_of_its_mask() -> None:
    propagation = Propagation((20, 40, 60), [START])
    assert propagation.believes(_answer(START, top=12))
    found = _onward(propagation)
    assert sorted(found) == [4, 6]
    grown = Box((12.0, 10.0), (22.0, 20.0)).grown(MARGIN)
    assert {(p.structure, p.axis, p.variant, p.box) for p in found.values()} == {(1, 0, 0, grown)}


def test_what_does_not_ask_on_is_believed_and_leads_nowhere() -> None:
    plain = Prompt(1, 5, START.box)
    propagation = Propagation((20, 40, 60), [plain])
    assert propagation.believes(_answer(plain, side=0, iou=0.0))
    assert propagation.onward() == []


def test_the_way_leads_on_until_the_volume_ends() -> None:
    propagation = Propagation((9, 40, 60), [START])
    propagation.believes(_answer(START))
    seen = []
    while waiting := propagation.onward():
        seen += [prompt.index for prompt in waiting]
        assert all(propagation.believes(_answer(prompt)) for prompt in waiting)
    assert sorted(seen) == [0, 1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("side", "iou"),
    [(0, 0.9), (2, 0.9), (15, 0.9), (7, 0.9), (10, 0.4)],
    ids=["vanished", "a few pixels", "twice as large", "half as large", "doubted"],
)
def test_an_answer_that_ends_the_way_is_not_believed(side: int, iou: float) -> None:
    propagation = Propagation((20, 40, 60), [START])
    propagation.believes(_answer(START))
    up, down = propagation.onward()
    assert not propagation.believes(_answer(up, side, iou))
    assert propagation.believes(_answer(down))
    assert list(_onward(propagation)) == [down.index + (down.index - START.index)]


def test_a_mask_may_not_grow_without_end_in_small_steps() -> None:
    propagation = Propagation((20, 40, 60), [START])
    propagation.believes(_answer(START, side=10))
    sides = []
    for side in (13, 16, 19, 22, 25):
        up = max(propagation.onward(), key=lambda prompt: prompt.index)
        if not propagation.believes(_answer(up, side)):
            break
        sides.append(side)
    assert sides == [side for side in (13, 16, 19, 22, 25) if side**2 <= LARGEST_GROWTH * 100]


def test_a_first_answer_that_is_doubted_stays_but_does_not_ask_on() -> None:
    propagation = Propagation((20, 40, 60), [START])
    assert propagation.believes(_answer(START, iou=0.2))
    assert propagation.onward() == []


def test_slices_with_prompts_of_their_own_are_left_to_them() -> None:
    other = Prompt(1, 6, START.box)
    elsewhere = Prompt(2, 4, START.box)
    propagation = Propagation((20, 40, 60), [START, other, elsewhere])
    propagation.believes(_answer(START))
    assert list(_onward(propagation)) == [4]


def test_two_ways_that_meet_end_there() -> None:
    far = Prompt(1, 8, START.box, propagate=True)
    propagation = Propagation((20, 40, 60), [START, far])
    asked = []
    waiting = [START, far]
    while waiting:
        for prompt in waiting:
            propagation.believes(_answer(prompt))
        waiting = propagation.onward()
        asked += [prompt.index for prompt in waiting]
    assert sorted(asked) == [i for i in range(20) if i not in (5, 8)]
