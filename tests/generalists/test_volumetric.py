"""What was drawn on slices reaches a generalist of volumes, and its answers come back onto slices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Capabilities, Embedding, Slice, VolumeAnswer, VolumePrompt
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.volumes import ask
from tutelage.generalists.volumetric import CLICKS, volume_prompts
from tutelage.geometry import Box
from tutelage.records import Answer, Point, Prompt

SPACING = (3.0, 1.0, 1.0)
SHAPE = (10, 20, 30)


class Brick:
    """A small honest generalist of volumes: a brick of 3 voxels each way around the first click."""

    capabilities = Capabilities(points=True, volumes=True)
    weights = "none-brick"
    preprocessing = "none"
    reach_mm = 12.0
    channels = 2

    def __init__(self) -> None:
        self.asked: list[VolumePrompt] = []
        self.brightest = 0.0

    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        raise AssertionError("slices are not its business")

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        raise AssertionError("slices are not its business")

    def segment_volume(
        self, volume_DHW: Slice, spacing_mm: Sequence[float], prompts: Sequence[VolumePrompt]
    ) -> list[VolumeAnswer]:
        self.asked += prompts
        self.brightest = float(volume_DHW.max())
        answers = []
        for prompt in prompts:
            d, h, w = (int(v) for v in prompt.clicks[0].at)
            logits = np.full((5, 5, 5), -9.0, np.float32)
            logits[1:4, 1:4, 1:4] = 9.0
            features = np.full(2, prompt.structure, np.float16)
            answers.append(
                VolumeAnswer(prompt, (d - 2, h - 2, w - 2), logits, 0.5 + 0.1 * prompt.variant, features)
            )
        return answers


def _click(index: int, row: float, column: float, positive: bool = True, **more: Any) -> Prompt:
    return Prompt(more.pop("structure", 1), index, points=(Point((row, column), positive),), **more)


def _ask(brick: Brick, prompts: Sequence[Prompt], image: NDArray[Any] | None = None) -> Any:
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) if image is None else image
    return ask(brick, image, "digest", prompts, 4, EmbeddingCache(None, brick), GeneralistSettings(), SPACING)


def test_a_mask_comes_back_where_its_click_was() -> None:
    asked = _ask(brick := Brick(), [_click(4, 10.5, 12.5, structure=2)])
    assert [region.mean_DHW.size for region in asked.regions] == [0, 0, 27, 0]
    assert asked.regions[2].where == (slice(3, 6), slice(9, 12), slice(11, 14))
    assert (asked.regions[2].mean_DHW > 250).all()
    assert asked.predicted_iou == (0.0, 0.0, 0.5, 0.0)
    assert asked.pooled_KC.tolist() == [[0, 0], [0, 0], [2, 2], [0, 0]]
    assert asked.prompts == 1
    assert brick.brightest == 1.0


def test_clicks_along_every_axis_are_clicks_in_the_volume() -> None:
    prompts = [_click(4, 10.5, 12.5), _click(11, 5.5, 13.5, axis=1), _click(14, 3.5, 9.5, axis=2)]
    (prompt,) = volume_prompts(prompts, SPACING, reach_mm=100.0)
    assert {click.at for click in prompt.clicks} == {(4.5, 10.5, 12.5), (5.5, 11.5, 13.5), (3.5, 9.5, 14.5)}
    assert prompt.middle == (4.5, 10.5, 13.5)


def test_variants_are_asked_apart_and_their_variance_is_kept() -> None:
    asked = _ask(brick := Brick(), [_click(4, 10.5, 12.5), _click(4, 10.5, 15.5, variant=1)])
    assert [prompt.variant for prompt in brick.asked] == [0, 1]
    region = asked.regions[1]
    assert region.mean_DHW.shape == (3, 3, 6)
    assert np.abs(region.mean_DHW.astype(float) - 127.5).max() <= 1  # one says yes and one no
    assert int(region.variance_DHW.max()) >= 250
    assert asked.predicted_iou[1] == pytest.approx(0.55)


def test_of_many_clicks_a_few_are_chosen_that_lie_apart_and_the_first_is_inside() -> None:
    prompts = [
        _click(4, r + 0.5, c + 0.5, positive=(r + c) % 2 == 0) for r in range(5, 15) for c in range(5, 15)
    ]
    (prompt,) = volume_prompts(prompts, SPACING, reach_mm=100.0)
    assert len(prompt.clicks) == CLICKS
    assert prompt.clicks[0].positive
    places = np.array([click.at for click in prompt.clicks]) * SPACING
    apart = [np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]]
    assert min(apart) >= 4.0


def test_clicks_out_of_reach_are_left_out() -> None:
    prompts = [_click(4, 1.5, 1.5), _click(4, 1.5, 2.5), _click(4, 1.5, 28.5)]
    (prompt,) = volume_prompts(prompts, SPACING, reach_mm=5.0)
    for click in prompt.clicks:
        away = (np.array(click.at) - prompt.middle) * SPACING
        assert np.abs(away).max() <= 5.0
    assert prompt.clicks


def test_a_structure_with_clicks_outside_only_is_not_asked_about() -> None:
    assert volume_prompts([_click(4, 1.5, 1.5, positive=False)], SPACING, 100.0) == []
    asked = _ask(Brick(), [_click(4, 1.5, 1.5, positive=False)])
    assert not any(region.mean_DHW.size for region in asked.regions)


def test_colors_are_seen_as_their_mean() -> None:
    image = np.zeros((3, *SHAPE), np.float32)
    image[0] = np.linspace(0, 1, int(np.prod(SHAPE))).reshape(SHAPE)
    _ask(brick := Brick(), [_click(4, 10.5, 12.5)], image)
    assert brick.brightest == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            Prompt(1, 4, Box((1.0, 1.0), (5.0, 5.0))),
            "holds a box, but a generalist of volumes takes points only",
        ),
        (_click(4, 1.5, 1.5, structure=4), "expected 1 to 3"),
        (_click(10, 1.5, 1.5), "slices 0 to 9"),
    ],
    ids=["a box", "no such structure", "no such slice"],
)
def test_what_cannot_be_asked_is_refused(prompt: Prompt, says: str) -> None:
    with pytest.raises(GeneralistError, match=says):
        _ask(Brick(), [prompt])
