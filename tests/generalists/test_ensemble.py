"""Several generalists about one volume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Capabilities, Embedding, Slice
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.ensemble import Member, ask_all, digest
from tutelage.generalists.settings import CacheSettings
from tutelage.geometry import Box
from tutelage.records import Answer, Prompt
from tutelage.storage import Place

IMAGE_DHW = np.random.default_rng(0).random((4, 20, 20)).astype(np.float32)
PROMPTS = [Prompt(1, index, Box((4.0, 4.0), (12.0, 12.0))) for index in range(4)]


class Shifted:
    """Answers a box with itself, moved to the right by so many pixels."""

    capabilities = Capabilities(boxes=True)
    preprocessing = "none"

    def __init__(self, by: int) -> None:
        self.by = by
        self.weights = f"none-{by}"

    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        return [Embedding(s[None].astype(np.float16) + self.by, (s.shape[0], s.shape[1])) for s in slices_HW]

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        answers = []
        for prompt in prompts:
            logits_HW = np.full(embedding.shape, -50.0, np.float32)
            assert prompt.box is not None
            (top, left), (bottom, right) = prompt.box.start, prompt.box.stop
            logits_HW[int(top) : int(bottom), int(left) + self.by : int(right) + self.by] = 50.0
            answers.append(Answer(prompt, logits_HW, 0.8 + 0.05 * self.by))
        return answers


def _members(*by: int, place: Path | None = None) -> list[Member]:
    cached = None if place is None else Place.of(place)
    settings = GeneralistSettings(name="threshold", cache=CacheSettings(when="always"))
    return [Member(g, settings, EmbeddingCache(cached, g, settings.cache)) for g in map(Shifted, by)]


def test_every_generalist_is_one_opinion_on_every_voxel() -> None:
    asked = ask_all(_members(0, 2), [PROMPTS, PROMPTS], IMAGE_DHW, "digest", 3)
    region = asked.regions[1]
    assert region.where == (slice(0, 4), slice(4, 12), slice(4, 14))
    assert region.mean_DHW[0, 0].tolist() == [128] * 2 + [255] * 6 + [128] * 2
    assert region.variance_DHW[0, 0].tolist() == [255] * 2 + [0] * 6 + [255] * 2
    assert asked.predicted_iou[1] == pytest.approx(0.85)
    assert (asked.slices_embedded, asked.prompts) == (8, 8)


def test_how_far_they_agree_is_told_by_structure() -> None:
    asked = ask_all(_members(0, 2, 4), [PROMPTS] * 3, IMAGE_DHW, "digest", 3)
    assert asked.consensus[1] == pytest.approx((6 / 10 + 6 / 10 + 4 / 12) / 3)
    assert asked.consensus[2] == 1.0, "nobody found anything"
    assert ask_all(_members(0), [PROMPTS], IMAGE_DHW, "digest", 3).consensus[1] == 1.0


def test_one_that_can_be_asked_nothing_has_no_opinion() -> None:
    asked = ask_all(_members(0, 2), [PROMPTS, []], IMAGE_DHW, "digest", 2)
    assert (asked.regions[1].mean_DHW == 255).all()
    assert not asked.regions[1].variance_DHW.any()
    assert asked.consensus[1] == 0.0, "but it found nothing where the other found something"


def test_features_are_those_of_the_first() -> None:
    first, second = (ask_all(_members(*by), [PROMPTS] * 2, IMAGE_DHW, "digest", 2) for by in ((0, 2), (2, 0)))
    assert 0 < first.pooled_KC[1, 0] < 1
    assert second.pooled_KC[1, 0] > 2


def test_they_do_not_find_each_others_embeddings_but_their_own(tmp_path: Path) -> None:
    for hits in (0, 8):
        asked = ask_all(_members(0, 2, place=tmp_path), [PROMPTS] * 2, IMAGE_DHW, "digest", 2)
        assert asked.cache_hits == hits


def test_the_digest_names_all_of_them_in_order() -> None:
    assert digest(_members(0)) == "none-0"
    assert digest(_members(2, 0)) == "none-2+none-0"
