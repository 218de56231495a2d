"""Embeddings survive storage; prompts that cannot be answered are refused."""

import numpy as np
import pytest

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Capabilities, Embedding, refuse_unanswerable
from tutelage.geometry import Box
from tutelage.records import Point, Prompt

EMBEDDING = Embedding(np.arange(24, dtype=np.float16).reshape(2, 3, 4), (31, 47))
BOX = Box((1.0, 2.0), (3.0, 4.0))
CLICK = Point((1.0, 2.0), positive=True)


def test_an_embedding_comes_back_as_it_was() -> None:
    back = Embedding.from_bytes(EMBEDDING.to_bytes())
    assert back.shape == (31, 47)
    assert back.features_CHW.dtype == np.float16
    assert np.array_equal(back.features_CHW, EMBEDDING.features_CHW)


def test_equal_embeddings_have_equal_bytes() -> None:
    twin = Embedding(EMBEDDING.features_CHW.copy(), (31, 47))
    assert twin.to_bytes() == EMBEDDING.to_bytes()


@pytest.mark.parametrize("cut", range(0, len(EMBEDDING.to_bytes()), 7))
def test_an_embedding_that_was_cut_short_is_not_read(cut: int) -> None:
    with pytest.raises(ValueError, match="checksum"):
        Embedding.from_bytes(EMBEDDING.to_bytes()[:cut])


def test_an_embedding_with_one_wrong_bit_is_not_read() -> None:
    data = bytearray(EMBEDDING.to_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        Embedding.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("capabilities", "prompt", "says"),
    [
        (Capabilities(boxes=True), Prompt(3, 5, points=(CLICK,)), "holds 1 points, but it takes boxes only"),
        (Capabilities(boxes=True), Prompt(3, 5, BOX, (CLICK, CLICK)), "holds a box and 2 points"),
        (Capabilities(points=True), Prompt(3, 5, BOX), "holds a box, but it takes points only"),
        (Capabilities(boxes=True, points=True), Prompt(3, 5), "holds nothing, but it takes boxes and points"),
    ],
    ids=["clicks to boxes only", "both to boxes only", "box to clicks only", "nothing"],
)
def test_a_prompt_that_cannot_be_answered_whole_is_refused(
    capabilities: Capabilities, prompt: Prompt, says: str
) -> None:
    with pytest.raises(GeneralistError, match=says) as caught:
        refuse_unanswerable("it", capabilities, [prompt])
    assert "structure 3 on slice 5" in str(caught.value)


def test_prompts_that_can_be_answered_pass() -> None:
    both = Capabilities(boxes=True, points=True)
    refuse_unanswerable(
        "it", both, [Prompt(1, 0, BOX), Prompt(1, 0, points=(CLICK,)), Prompt(1, 0, BOX, (CLICK,))]
    )
