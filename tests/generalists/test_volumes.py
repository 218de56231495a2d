"""How answers about slices become a statement about a volume."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Capabilities, Embedding, Slice
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.settings import CacheSettings
from tutelage.generalists.volumes import Asked, ask, windowed
from tutelage.geometry import Box
from tutelage.records import Answer, Prompt
from tutelage.storage import Place

SETTINGS = GeneralistSettings(name="threshold")
ALWAYS = CacheSettings(when="always")
IMAGE_DHW = np.random.default_rng(0).integers(0, 1000, (6, 8, 10)).astype(np.int16)
CERTAIN, LIKELY = 50.0, float(np.log(3.0))  # probability 1 and 3/4


class BoxFiller:
    """Answers each box with itself: certain for variant 0, likely for the others, never elsewhere."""

    capabilities = Capabilities(boxes=True)
    weights = "none-boxfiller"
    preprocessing = "none"

    def __init__(self) -> None:
        self.seen: list[Slice] = []

    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        self.seen += slices_HW
        gray = [s if s.ndim == 2 else s.mean(axis=0) for s in slices_HW]
        return [Embedding(s[None].astype(np.float16), (s.shape[0], s.shape[1])) for s in gray]

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        answers = []
        for prompt in prompts:
            logits_HW = np.full(embedding.shape, -100.0, np.float32)
            assert prompt.box is not None
            (top, left), (bottom, right) = prompt.box.start, prompt.box.stop
            logits_HW[int(top) : int(bottom), int(left) : int(right)] = LIKELY if prompt.variant else CERTAIN
            answers.append(
                Answer(prompt, logits_HW, 0.9 if prompt.structure == 1 else 0.5 + 0.1 * prompt.index)
            )
        return answers


def _prompt(structure: int, index: int, left: float = 2, right: float = 5, variant: int = 0) -> Prompt:
    return Prompt(structure, index, Box((1.0, left), (4.0, right)), variant=variant)


def _whole(asked: Asked, what: str = "mean") -> NDArray[np.float64]:
    """(K, D, H, W) shares of one."""
    whole_KDHW = np.zeros((len(asked.regions), *IMAGE_DHW.shape))
    for k, region in enumerate(asked.regions):
        whole_KDHW[k][region.where] = (region.mean_DHW if what == "mean" else region.variance_DHW) / 255
    return whole_KDHW


def _ask(prompts: Sequence[Prompt], place: Path | None = None, generalist: BoxFiller | None = None) -> Asked:
    generalist = generalist or BoxFiller()
    cache = EmbeddingCache(None if place is None else Place.of(place), generalist, ALWAYS)
    return ask(generalist, IMAGE_DHW, "digest", prompts, 4, cache, SETTINGS)


def test_only_slices_with_a_prompt_are_embedded() -> None:
    generalist = BoxFiller()
    asked = _ask([_prompt(1, 4), _prompt(2, 1), _prompt(3, 4)], generalist=generalist)
    scaled_DHW = windowed(IMAGE_DHW, SETTINGS.window)
    assert (asked.slices_embedded, asked.cache_hits, asked.prompts) == (2, 0, 3)
    assert np.array_equal(generalist.seen, scaled_DHW[[1, 4]])


def test_only_what_was_answered_takes_room() -> None:
    asked = _ask([_prompt(1, 4)])
    assert [region.mean_DHW.size for region in asked.regions] == [0, 9, 0, 0]
    assert asked.regions[1].where == (slice(4, 5), slice(1, 4), slice(2, 5))
    assert (asked.regions[1].mean_DHW == 255).all()
    assert not asked.regions[1].variance_DHW.any()


def test_boxes_of_one_structure_join_by_the_larger_probability() -> None:
    mean_KDHW = _whole(_ask([_prompt(1, 0, 2, 5), _prompt(1, 0, 4, 8), _prompt(2, 0, 0, 1)]))
    assert np.array_equal(mean_KDHW[1, 0, 2] > 0.5, [0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    assert np.array_equal(mean_KDHW[2, 0, 2] > 0.5, [1] + 9 * [0])


def test_variants_join_by_mean_and_variance() -> None:
    asked = _ask([_prompt(1, 0, 2, 5), _prompt(1, 0, 4, 8, variant=1)])
    expected = [0, 0, 1 / 2, 1 / 2, 7 / 8, 3 / 8, 3 / 8, 3 / 8, 0, 0]
    spread = [0, 0, 1, 1, 1 / 16, 9 / 16, 9 / 16, 9 / 16, 0, 0]
    assert _whole(asked)[1, 0, 2] == pytest.approx(expected, abs=0.5 / 255 + 1e-6)
    assert _whole(asked, "variance")[1, 0, 2] == pytest.approx(spread, abs=0.5 / 255 + 1e-6)


def test_opinions_are_means_by_label_value_and_zero_where_not_asked() -> None:
    asked = _ask([_prompt(1, 0), _prompt(2, 1), _prompt(2, 3)])
    assert asked.predicted_iou == pytest.approx((0.0, 0.9, 0.7, 0.0))


def test_a_second_time_nothing_is_embedded_and_answers_are_the_same(tmp_path: Path) -> None:
    prompts = [_prompt(1, index) for index in range(6)]
    first, again = _ask(prompts[:4], tmp_path), _ask(prompts, tmp_path)
    assert (first.slices_embedded, first.cache_hits) == (4, 0)
    assert (again.slices_embedded, again.cache_hits) == (2, 4)
    assert np.array_equal(_whole(again)[:, :4], _whole(first)[:, :4])


def test_another_window_does_not_find_old_embeddings(tmp_path: Path) -> None:
    generalist = BoxFiller()
    cache = EmbeddingCache(Place.of(tmp_path), generalist, ALWAYS)
    for window in ((0.5, 99.5), (5.0, 95.0)):
        settings = SETTINGS.model_copy(update={"window": window})
        assert ask(generalist, IMAGE_DHW, "digest", [_prompt(1, 0)], 4, cache, settings).cache_hits == 0


def test_many_slices_are_embedded_in_several_goes() -> None:
    generalist, image_DHW = BoxFiller(), np.zeros((40, 8, 10), np.int16)
    prompts = [_prompt(1, index) for index in range(40)]
    asked = ask(generalist, image_DHW, "digest", prompts, 2, EmbeddingCache(None, generalist), SETTINGS)
    assert asked.slices_embedded == 40
    assert (asked.regions[1].mean_DHW > 127).sum() == 40 * 9


def test_no_prompts_is_an_answer_too() -> None:
    asked = _ask([])
    assert not any(region.mean_DHW.size for region in asked.regions)
    assert asked.pooled_KC.shape == (4, 0)
    assert (asked.slices_embedded, asked.prompts, asked.predicted_iou) == (0, 0, (0.0,) * 4)


@pytest.mark.parametrize(
    ("structure", "index"), [(4, 0), (0, 0), (1, 6), (1, -1)], ids=["unknown", "background", "above", "below"]
)
def test_a_prompt_about_what_does_not_exist_is_refused(structure: int, index: int) -> None:
    with pytest.raises(GeneralistError, match=r"along axis 0, expected 1 to 3 on slices 0 to 5"):
        _ask([_prompt(structure, index)])


def test_a_window_maps_its_percentiles_to_black_and_white() -> None:
    image_DHW = np.arange(1001, dtype=np.int16).reshape(1, 7, 143)
    scaled_DHW = windowed(image_DHW, (10.0, 90.0))
    assert scaled_DHW.dtype == np.float32
    assert scaled_DHW.ravel()[[0, 100, 500, 900, 1000]] == pytest.approx([0, 0, 0.5, 1, 1])
    assert image_DHW[0, 0, 1] == 1


@pytest.mark.parametrize(
    ("image_DHW", "values"),
    [(np.full((2, 3, 4), 7.0), {0.0}), (np.eye(40)[None] * (np.arange(40) == 3), {0.0, 1.0})],
    ids=["constant", "one bright voxel"],
)
def test_images_with_hardly_any_contrast_stay_finite(
    image_DHW: NDArray[np.float64], values: set[float]
) -> None:
    assert set(np.unique(windowed(image_DHW, (0.5, 99.5))).tolist()) == values


def test_slices_along_other_axes_are_asked_in_their_own_pixels() -> None:
    prompts = [_prompt(1, 3), replace(_prompt(1, 5), axis=1), replace(_prompt(1, 7), axis=2)]
    asked = _ask(prompts)
    mean_DHW = _whole(asked)[1]
    assert asked.slices_embedded == 3
    assert np.array_equal(np.argwhere(mean_DHW[3, 1:4, 2:5] == 1), np.argwhere(np.ones((3, 3))))
    assert (mean_DHW[1:3, 5, 2:5] == 1).all(), "rows are D and columns W on a slice along H"
    assert (mean_DHW[1:3, 2:5, 7] == 1).all(), "rows are D and columns H on a slice along W"
    assert mean_DHW[3, 3, 7] == pytest.approx(0.5, abs=0.5 / 255), "asked along two axes, one says no"


def test_where_pixels_are_not_square_the_generalist_sees_square_ones() -> None:
    generalist = BoxFiller()
    prompt = replace(_prompt(1, 5), axis=1)  # rows 1 to 4 of D, columns 2 to 5 of W
    cache = EmbeddingCache(None, generalist)
    asked = ask(generalist, IMAGE_DHW, "digest", [prompt], 4, cache, SETTINGS, (12.0, 3.0, 3.0))
    assert generalist.seen[0].shape == (24, 10)
    region = asked.regions[1]
    assert region.where == (slice(1, 4), slice(5, 6), slice(2, 5))
    assert (region.mean_DHW > 127).all()


def test_stretched_slices_and_colors_do_not_find_plain_gray_ones(tmp_path: Path) -> None:
    generalist = BoxFiller()
    cache, prompt = EmbeddingCache(Place.of(tmp_path), generalist, ALWAYS), replace(_prompt(1, 5), axis=1)
    colors_CDHW = np.stack([IMAGE_DHW] * 3)
    for image, spacing in ((IMAGE_DHW, (1, 1, 1)), (IMAGE_DHW, (12, 3, 3)), (colors_CDHW, (1, 1, 1))):
        for hits in (0, 1):
            asked = ask(generalist, image, "digest", [prompt], 4, cache, SETTINGS, spacing)
            assert asked.cache_hits == hits


def test_colors_reach_the_generalist() -> None:
    generalist, rng = BoxFiller(), np.random.default_rng(0)
    image_CDHW = rng.integers(0, 256, (3, 1, 8, 10)).astype(np.uint8)
    ask(generalist, image_CDHW, "digest", [_prompt(1, 0)], 2, EmbeddingCache(None, generalist), SETTINGS)
    (seen_CHW,) = generalist.seen
    assert np.array_equal(seen_CHW, windowed(image_CDHW, SETTINGS.window)[:, 0])


def test_an_image_is_not_even_windowed_where_all_slices_are_cached(tmp_path: Path) -> None:
    _ask([_prompt(1, 3)], tmp_path)
    generalist = BoxFiller()
    nothing_DHW = np.zeros_like(IMAGE_DHW)
    cache = EmbeddingCache(Place.of(tmp_path), generalist, ALWAYS)
    asked = ask(generalist, nothing_DHW, "digest", [_prompt(1, 3)], 4, cache, SETTINGS)
    assert (asked.cache_hits, generalist.seen) == (1, [])


def test_features_are_pooled_by_structure_and_zero_where_nothing_was_asked() -> None:
    scaled_DHW = windowed(IMAGE_DHW, SETTINGS.window)
    asked = _ask([_prompt(1, 4), _prompt(1, 2), _prompt(3, 0)])
    expected = np.stack([scaled_DHW[4, 1:4, 2:5], scaled_DHW[2, 1:4, 2:5]]).mean()
    assert asked.pooled_KC.shape == (4, 1)
    assert asked.pooled_KC.dtype == np.float16
    assert asked.pooled_KC[1, 0] == pytest.approx(expected, abs=2e-3)
    assert asked.pooled_KC[3, 0] == pytest.approx(scaled_DHW[0, 1:4, 2:5].mean(), abs=2e-3)
    assert asked.pooled_KC[2, 0] == 0


def test_a_small_grid_is_kept_of_every_slice_that_was_looked_at_if_wanted() -> None:
    assert _ask([_prompt(1, 4)]).grid_DCHW is None
    generalist, settings = BoxFiller(), SETTINGS.model_copy(update={"keep_grid": True})
    asked = ask(
        generalist, IMAGE_DHW, "digest", [_prompt(1, 4)], 4, EmbeddingCache(None, generalist), settings
    )
    assert asked.grid_DCHW is not None
    assert asked.grid_DCHW.shape == (6, 1, 8, 8)
    assert np.argwhere(asked.grid_DCHW.any(axis=(1, 2, 3))).ravel().tolist() == [4]


def test_a_small_grid_is_kept_along_whichever_axis_was_asked() -> None:
    """Else whoever learns from features of coronal slices learns from nothing, and is told nothing."""
    generalist, settings = BoxFiller(), SETTINGS.model_copy(update={"keep_grid": True})
    prompts = [replace(_prompt(1, 2), axis=1)]
    asked = ask(generalist, IMAGE_DHW, "digest", prompts, 4, EmbeddingCache(None, generalist), settings)
    assert asked.grid_DCHW is not None
    seen_H = asked.grid_DCHW.any(axis=(0, 1, 3))
    assert seen_H.tolist() == [row == int(2.5 * 8 / IMAGE_DHW.shape[1]) for row in range(8)]


class Shrinking(BoxFiller):
    """Sees, wherever a box is, what lies in it of a cone: smaller on every slice away from slice 10."""

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        return [
            replace(answer, logits_HW=np.minimum(answer.logits_HW, self._cone(answer)), predicted_iou=0.9)
            for answer in super().segment(embedding, prompts)
        ]

    def _cone(self, answer: Answer) -> NDArray[np.float32]:
        rows, columns = np.indices(answer.logits_HW.shape)
        radius = 8 - abs(answer.prompt.index - 10)
        return np.where(np.hypot(rows - 12, columns - 12) < radius, CERTAIN, -100.0).astype(np.float32)


def test_a_structure_is_followed_from_one_slice_through_the_volume(tmp_path: Path) -> None:
    generalist, image_DHW = Shrinking(), np.random.default_rng(0).random((24, 25, 25))
    middle = Prompt(1, 10, Box((3.0, 3.0), (22.0, 22.0)), propagate=True)
    cache = EmbeddingCache(Place.of(tmp_path), generalist, ALWAYS)
    asked, again = (ask(generalist, image_DHW, "digest", [middle], 2, cache, SETTINGS) for _ in range(2))
    held = (asked.regions[1].mean_DHW > 127).sum(axis=(1, 2))
    first = asked.regions[1].start[0]
    assert first + len(held) - 1 - 10 == 10 - first, "as far up as down"
    assert 4 <= 10 - first < 8
    assert (held[: 10 - first] < held[1 : 11 - first]).all()
    assert asked.prompts == asked.slices_embedded > len(held)
    assert (again.slices_embedded, again.cache_hits) == (0, asked.slices_embedded)
    alone = ask(generalist, image_DHW, "x", [replace(middle, propagate=False)], 2, cache, SETTINGS)
    assert alone.regions[1].mean_DHW.shape[0] == 1
