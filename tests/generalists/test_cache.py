"""What was embedded once is found again, and only then."""

import logging
from pathlib import Path

import numpy as np
import pytest

from tutelage.generalists.base import Embedding
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.threshold import Threshold
from tutelage.storage import Place

EMBEDDING = Embedding(np.full((2, 3, 4), 1.5, np.float16), (31, 47))


def _changed(**attributes: str) -> Threshold:
    generalist = Threshold()
    for name, value in attributes.items():
        setattr(generalist, name, value)
    return generalist


def test_a_slice_that_was_kept_is_found(tmp_path: Path) -> None:
    EmbeddingCache(Place.of(tmp_path), Threshold()).put("image", 7, EMBEDDING)
    found = EmbeddingCache(Place.of(tmp_path), Threshold()).get("image", 7)
    assert found is not None
    assert np.array_equal(found.features_CHW, EMBEDDING.features_CHW)


def test_one_file_is_one_slice_beneath_weights_and_image(tmp_path: Path) -> None:
    EmbeddingCache(Place.of(tmp_path), Threshold()).put("image", 7, EMBEDDING)
    (file,) = tmp_path.rglob("*.npy")
    weights, image, name = file.relative_to(tmp_path).parts
    assert weights.startswith("none-threshold-")
    assert (image, name) == ("image", "00007.npy")


@pytest.mark.parametrize(
    ("generalist", "image", "index"),
    [
        (Threshold(), "image", 8),
        (Threshold(), "other", 7),
        (_changed(weights="none-other"), "image", 7),
        (_changed(preprocessing="upside down"), "image", 7),
    ],
    ids=["slice", "image", "weights", "preprocessing"],
)
def test_another_key_is_a_miss(tmp_path: Path, generalist: Threshold, image: str, index: int) -> None:
    EmbeddingCache(Place.of(tmp_path), Threshold()).put("image", 7, EMBEDDING)
    assert EmbeddingCache(Place.of(tmp_path), generalist).get(image, index) is None


@pytest.mark.parametrize("left", [0, 1, 100, -1], ids=["empty", "a byte", "a header", "all but a byte"])
def test_a_damaged_file_is_a_miss_that_is_logged_and_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    cache = EmbeddingCache(Place.of(tmp_path), Threshold())
    cache.put("image", 7, EMBEDDING)
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        assert cache.get("image", 7) is None
    assert str(file) in caplog.text
    cache.put("image", 7, EMBEDDING)
    assert cache.get("image", 7) is not None


def test_without_a_place_nothing_is_remembered() -> None:
    cache = EmbeddingCache(None, Threshold())
    cache.put("image", 7, EMBEDDING)
    assert cache.get("image", 7) is None
