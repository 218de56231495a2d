"""How answers about slices become a statement about a volume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Capabilities, Embedding, Slice
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.volumes import Asked, ask, windowed
from tutelage.geometry import Box
from tutelage.records import Answer, Prompt
from tutelage.storage import Place

SETTINGS = GeneralistSettings(name="threshold")
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
        return [Embedding(s[None].astype(np.float16), (s.shape[0], s.shape[1])) for s in slices_HW]

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


def _ask(prompts: Sequence[Prompt], place: Path | None = None, generalist: BoxFiller | None = None) -> Asked:
    generalist = generalist or BoxFiller()
    cache = EmbeddingCache(None if place is None else Place.of(place), generalist)
    return ask(generalist, IMAGE_DHW, "digest", prompts, 4, cache, SETTINGS)


def test_only_slices_with_a_prompt_are_embedded() -> None:
    generalist = BoxFiller()
    asked = _ask([_prompt(1, 4), _prompt(2, 1), _prompt(3, 4)], generalist=generalist)
    scaled_DHW = windowed(IMAGE_DHW, SETTINGS.window)
    assert (asked.slices_embedded, asked.cache_hits, asked.prompts) == (2, 0, 3)
    assert np.array_equal(generalist.seen, scaled_DHW[[1, 4]])


def test_what_was_not_asked_is_zero() -> None:
    asked = _ask([_prompt(1, 4)])
    assert asked.mean_KDHW.shape == (4, *IMAGE_DHW.shape)
    assert asked.mean_KDHW.dtype == asked.variance_KDHW.dtype == np.float32
    assert np.array_equal(np.argwhere(asked.mean_KDHW.any(axis=(2, 3))), [[1, 4]])
    assert asked.mean_KDHW[1, 4].sum() == pytest.approx(9)
    assert not asked.variance_KDHW.any()


def test_boxes_of_one_structure_join_by_the_larger_probability() -> None:
    asked = _ask([_prompt(1, 0, 2, 5), _prompt(1, 0, 4, 8), _prompt(2, 0, 0, 1)])
    assert np.array_equal(asked.mean_KDHW[1, 0, 2] > 0.5, [0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    assert np.array_equal(asked.mean_KDHW[2, 0, 2] > 0.5, [1] + 9 * [0])


def test_variants_join_by_mean_and_variance() -> None:
    asked = _ask([_prompt(1, 0, 2, 5), _prompt(1, 0, 4, 8, variant=1)])
    expected = [0, 0, 1 / 2, 1 / 2, 7 / 8, 3 / 8, 3 / 8, 3 / 8, 0, 0]
    spread = [0, 0, 1, 1, 1 / 16, 9 / 16, 9 / 16, 9 / 16, 0, 0]
    assert asked.mean_KDHW[1, 0, 2] == pytest.approx(expected, abs=1e-6)
    assert asked.variance_KDHW[1, 0, 2] == pytest.approx(spread, abs=1e-6)
    assert asked.variance_KDHW.max() <= 1.0


def test_opinions_are_means_by_label_value_and_zero_where_not_asked() -> None:
    asked = _ask([_prompt(1, 0), _prompt(2, 1), _prompt(2, 3)])
    assert asked.predicted_iou == pytest.approx((0.0, 0.9, 0.7, 0.0))


def test_a_second_time_nothing_is_embedded_and_answers_are_the_same(tmp_path: Path) -> None:
    prompts = [_prompt(1, index) for index in range(6)]
    first, again = _ask(prompts[:4], tmp_path), _ask(prompts, tmp_path)
    assert (first.slices_embedded, first.cache_hits) == (4, 0)
    assert (again.slices_embedded, again.cache_hits) == (2, 4)
    assert np.array_equal(again.mean_KDHW[:, :4], first.mean_KDHW[:, :4])


def test_another_window_does_not_find_old_embeddings(tmp_path: Path) -> None:
    generalist = BoxFiller()
    cache = EmbeddingCache(Place.of(tmp_path), generalist)
    for window in ((0.5, 99.5), (5.0, 95.0)):
        settings = SETTINGS.model_copy(update={"window": window})
        assert ask(generalist, IMAGE_DHW, "digest", [_prompt(1, 0)], 4, cache, settings).cache_hits == 0


def test_many_slices_are_embedded_in_several_goes() -> None:
    generalist, image_DHW = BoxFiller(), np.zeros((40, 8, 10), np.int16)
    prompts = [_prompt(1, index) for index in range(40)]
    asked = ask(generalist, image_DHW, "digest", prompts, 2, EmbeddingCache(None, generalist), SETTINGS)
    assert asked.slices_embedded == 40
    assert (asked.mean_KDHW[1] > 0.5).sum() == 40 * 9


def test_no_prompts_is_an_answer_too() -> None:
    asked = _ask([])
    assert not asked.mean_KDHW.any()
    assert (asked.slices_embedded, asked.prompts, asked.predicted_iou) == (0, 0, (0.0,) * 4)


@pytest.mark.parametrize(
    ("structure", "index"), [(4, 0), (0, 0), (1, 6), (1, -1)], ids=["unknown", "background", "above", "below"]
)
def test_a_prompt_about_what_does_not_exist_is_refused(structure: int, index: int) -> None:
    with pytest.raises(GeneralistError, match=r"expected 1 to 3 on slices 0 to 5"):
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
