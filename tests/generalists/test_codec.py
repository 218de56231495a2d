"""Embeddings as bytes: fp16 to the bit, int8 within half a step, and nothing believed unseen."""

import numpy as np
import pyarrow
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from tutelage.generalists.base import Embedding
from tutelage.generalists.codec import Form, pack, unpack

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((5, 6, 7)).astype(np.float16)
EVERY_BIT_PATTERN = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(4, 128, 128)


@pytest.mark.parametrize("zstd", [0, 1, 3])
@pytest.mark.parametrize(
    "features",
    [NORMAL, EVERY_BIT_PATTERN, NORMAL[:, ::2, ::-1], NORMAL[..., None], NORMAL[:0], NORMAL.ravel()],
    ids=["normal", "every bit pattern", "not contiguous", "four axes", "empty", "one axis"],
)
def test_fp16_comes_back_to_the_bit(features: NDArray[np.float16], zstd: int) -> None:
    form, data = pack(Embedding(features, (31, 47)), "fp16", zstd)
    back = unpack(form, data)
    assert back.shape == (31, 47)
    assert back.features_CHW.shape == features.shape
    assert back.features_CHW.tobytes() == features.tobytes()
    assert back.features_CHW.flags.writeable  # torch warns about memory that is not


def test_int8_is_off_by_half_a_step_of_its_channel_at_most() -> None:
    features = NORMAL * np.array([0.01, 1, 100, 0, 5], np.float16)[:, None, None]
    form, data = pack(Embedding(features, (31, 47)), "int8", 1)
    back = unpack(form, data).features_CHW
    assert back.dtype == np.float16
    step = np.abs(features.astype(np.float32)).max(axis=(1, 2), keepdims=True) / 127
    assert (np.abs(back.astype(np.float32) - features) <= 0.51 * step + 1e-3 * np.abs(features)).all()
    assert form.unpacked_bytes == 5 * 4 + features.size


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_has_no_scale_is_kept_as_fp16(odd: float) -> None:
    features = NORMAL.copy()
    features[2, 3, 4] = odd
    form, data = pack(Embedding(features, (31, 47)), "int8", 1)
    assert form.precision == "fp16"
    assert unpack(form, data).features_CHW.tobytes() == features.tobytes()


def test_bytes_apart_are_smaller_than_bytes_together() -> None:
    # As from a network that computes in bf16: eight significant bits.
    bits = RANDOM.standard_normal((64, 64, 64)).astype(np.float32).view(np.uint32) & 0xFFFF0000
    features = bits.view(np.float32).astype(np.float16)
    _, data = pack(Embedding(features, (31, 47)), "fp16", 1)
    assert len(data) < 0.9 * len(pyarrow.compress(features.tobytes(), "zstd", asbytes=True))


def test_what_zstd_cannot_shrink_is_left_alone() -> None:
    noise = RANDOM.integers(0, 65536, (8, 16, 16)).astype(np.uint16).view(np.float16)
    form, data = pack(Embedding(noise, (31, 47)), "fp16", 19)
    assert len(data) == form.unpacked_bytes


@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_bytes_that_are_cut_short_are_refused(left: int) -> None:
    form, data = pack(Embedding(np.zeros((5, 6, 7), np.float16), (31, 47)), "fp16", 1)
    with pytest.raises(ValueError, match="bytes are not 420 behind zstd"):
        unpack(form, data[: min(left, len(data) - 1)])


def test_bytes_that_unpack_to_more_than_they_should_are_refused() -> None:
    _, bomb = pack(Embedding(np.zeros((500, 100, 100), np.float16), (31, 47)), "fp16", 1)
    form = Form(features=(5, 100, 100), shape=(31, 47), precision="fp16")
    with pytest.raises(ValueError, match="behind zstd"):
        unpack(form, bomb)


@pytest.mark.parametrize("features", [(10**12,), (10**6, 10**6), (10**12, 0), (), (-1, 4)])
def test_a_form_that_claims_too_much_or_nothing_is_refused(features: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="features"):
        Form(features=features, shape=(31, 47), precision="fp16")
