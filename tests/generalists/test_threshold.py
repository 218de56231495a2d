"""The generalist without weights is good where it can be, and says where it is not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.generalists.threshold import Threshold
from tutelage.geometry import Box
from tutelage.measures import dice
from tutelage.records import Answer, Point, Prompt


def _disk(shape: tuple[int, int], center: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.indices(shape) + 0.5
    return np.asarray(np.hypot(rows - center[0], columns - center[1]) < radius)


LEFT, RIGHT = _disk((48, 64), (24, 16), 9), _disk((48, 64), (24, 46), 11)
BOXES = {"left": Box((14.0, 6.0), (34.0, 26.0)), "right": Box((12.0, 34.0), (36.0, 58.0))}


def _image(contrast: float = 0.5, noise: float = 0.03) -> NDArray[np.float32]:
    clear = 0.3 + contrast * (LEFT | RIGHT)
    return (clear + noise * np.random.default_rng(0).standard_normal(clear.shape)).astype(np.float32)


def _answer(prompt: Prompt, image_HW: NDArray[np.float32]) -> Answer:
    threshold = Threshold()
    (embedding,) = threshold.embed([image_HW])
    (answer,) = threshold.segment(embedding, [prompt])
    return answer


@pytest.mark.parametrize(("side", "disk"), [("left", LEFT), ("right", RIGHT)], ids=["left", "right"])
def test_a_box_outlines_the_disk_inside_it(side: str, disk: NDArray[np.bool_]) -> None:
    answer = _answer(Prompt(1, 0, BOXES[side]), _image())
    assert answer.logits_HW.shape == (48, 64)
    assert answer.logits_HW.dtype == np.float32
    assert dice(answer.logits_HW > 0, disk) > 0.9


def test_a_click_outlines_the_disk_under_it() -> None:
    answer = _answer(Prompt(1, 0, points=(Point((24.0, 46.0), positive=True),)), _image())
    assert dice(answer.logits_HW > 0, RIGHT) > 0.9


def test_a_negative_click_keeps_the_mask_away() -> None:
    clicks = (Point((24.0, 46.0), positive=True), Point((24.0, 54.0), positive=False))
    mask_HW = _answer(Prompt(1, 0, points=clicks), _image()).logits_HW > 0
    assert mask_HW[24, 46]
    assert not mask_HW[:, 51:].any()


def test_nothing_outside_the_box_belongs() -> None:
    mask_HW = _answer(Prompt(1, 0, BOXES["left"]), np.full((48, 64), 0.5, np.float32)).logits_HW > 0
    outside_HW = np.ones_like(mask_HW)
    outside_HW[14:34, 6:26] = False
    assert mask_HW.any()
    assert not mask_HW[outside_HW].any()


def test_a_box_half_outside_the_slice_is_answered() -> None:
    answer = _answer(Prompt(1, 0, Box((-10.0, -10.0), (10.0, 10.0))), _image())
    assert np.isfinite(answer.logits_HW).all()


def test_a_click_on_a_negative_click_finds_nothing() -> None:
    clicks = tuple(Point((24.0, 46.0), positive) for positive in (True, False))
    answer = _answer(Prompt(1, 0, points=clicks), _image())
    assert not (answer.logits_HW > 0).any()
    assert answer.predicted_iou == 0.0


def test_its_opinion_of_itself_falls_with_contrast() -> None:
    opinions = [
        _answer(Prompt(1, 0, BOXES["right"]), _image(contrast, noise=0.05)).predicted_iou
        for contrast in (0.5, 0.1, 0.0)
    ]
    assert opinions == sorted(opinions, reverse=True)


def test_only_negative_clicks_without_a_box_find_nothing() -> None:
    answer = _answer(Prompt(1, 0, points=(Point((24.0, 46.0), positive=False),)), _image())
    assert not (answer.logits_HW > 0).any()


def test_a_prompt_that_holds_nothing_is_refused() -> None:
    with pytest.raises(GeneralistError, match="takes boxes and points only"):
        _answer(Prompt(1, 0), _image())
