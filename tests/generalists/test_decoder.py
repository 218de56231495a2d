"""The fast decoder against segment_anything's own, with seeded random weights and with the published ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.generalists import onednn
from tutelage.generalists.decoder import FastDecoder
from tutelage.generalists.litemedsam import load_parts
from tutelage.generalists.weights import find

pytestmark = pytest.mark.torch

Parts = tuple[Any, Any]
FP32_LOGITS = 1e-3
"""Largest difference of a logit in fp32: sums are the same, in another order. Seen: 3e-5."""

BF16_LOGITS = 0.5
"""In bf16, for logits of which a tenth lies beyond 5. Seen: 0.3; plain modules in bf16: 0.4."""


@pytest.fixture(scope="module")
def published() -> Parts:
    _, prompt_encoder, mask_decoder = load_parts(find().path)
    return prompt_encoder, mask_decoder


@pytest.fixture(scope="module")
def made_up(published: Parts) -> Parts:
    """The same modules with random weights, every bias and every norm among them."""
    generator = torch.Generator().manual_seed(0)
    prompt_encoder, mask_decoder = copy.deepcopy(published)
    for parameter in mask_decoder.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return prompt_encoder, mask_decoder


@pytest.fixture(params=["published", "made_up"])
def parts(request: pytest.FixtureRequest) -> Parts:
    parts: Parts = request.getfixturevalue(request.param)
    return parts


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = _random(1, 256, 64, 64)


def _boxes(count: int) -> Tensor:
    first = 120 * torch.rand(count, 2, generator=torch.Generator().manual_seed(2))
    return torch.cat([first, first + 100], dim=1)


def _box_prompts(prompt_encoder: Any, count: int) -> tuple[Tensor, Tensor]:
    sparse, dense = prompt_encoder(points=None, boxes=_boxes(count), masks=None)
    return sparse, dense


@torch.inference_mode()
def _plain(parts: Parts, sparse: Tensor, dense: Tensor, multimask: bool = False) -> tuple[Tensor, Tensor]:
    prompt_encoder, mask_decoder = parts
    logits, ious = mask_decoder(
        image_embeddings=FEATURES,
        image_pe=prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return logits, ious


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@torch.inference_mode()
def test_it_decodes_boxes_as_the_plain_one_does(parts: Parts, count: int, multimask: bool) -> None:
    sparse, dense = _box_prompts(parts[0], count)
    logits, ious = FastDecoder(*parts, torch.float32)(FEATURES, sparse, dense, multimask)
    plain_logits, plain_ious = _plain(parts, sparse, dense, multimask)
    assert logits.shape == plain_logits.shape == (count, 3 if multimask else 1, 256, 256)
    assert float((logits - plain_logits).abs().max()) < FP32_LOGITS
    assert float((ious - plain_ious).abs().max()) < 1e-5


def _points(prompt_encoder: Any) -> tuple[Tensor, Tensor]:
    places = 256 * torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(3))
    sparse, dense = prompt_encoder(
        points=(places, torch.tensor([[1, 1, 0, 0, 1]] * 2)), boxes=None, masks=None
    )
    return sparse, dense


def _masks(prompt_encoder: Any) -> tuple[Tensor, Tensor]:
    sparse, dense = prompt_encoder(points=None, boxes=_boxes(3), masks=4 * _random(3, 1, 256, 256, seed=4))
    return sparse, dense


@pytest.mark.parametrize("prompts", [_points, _masks], ids=["points", "a mask each"])
@torch.inference_mode()
def test_it_decodes_other_prompts_as_the_plain_one_does(
    parts: Parts, prompts: Callable[[Any], tuple[Tensor, Tensor]]
) -> None:
    sparse, dense = prompts(parts[0])
    logits, _ = FastDecoder(*parts, torch.float32)(FEATURES, sparse, dense)
    assert float((logits - _plain(parts, sparse, dense)[0]).abs().max()) < FP32_LOGITS


@torch.inference_mode()
def test_half_the_bits_move_no_logit_far(published: Parts) -> None:
    sparse, dense = _box_prompts(published[0], 3)
    logits, ious = FastDecoder(*published, torch.bfloat16)(FEATURES, sparse, dense)
    plain_logits, plain_ious = _plain(published, sparse, dense)
    assert logits.dtype == ious.dtype == torch.float32
    assert float((logits - plain_logits).abs().max()) < BF16_LOGITS
    assert float((ious - plain_ious).abs().max()) < 0.01
    disagree = (logits > 0) != (plain_logits > 0)
    assert float(disagree.float().mean()) < 1e-3


@torch.inference_mode()
def test_of_a_part_of_the_grid_it_makes_that_part(published: Parts) -> None:
    sparse, dense = _box_prompts(published[0], 2)
    decoder = FastDecoder(*published, torch.float32)
    whole, ious = decoder(FEATURES, sparse, dense)
    part, part_ious = decoder(FEATURES, sparse, dense, cells=(50, 37))
    assert part.shape == (2, 1, 200, 148)
    assert torch.allclose(part, whole[..., :200, :148], atol=1e-4)
    assert torch.equal(ious, part_ious)


@torch.inference_mode()
def test_without_onednn_it_says_the_same(published: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, dense = _box_prompts(published[0], 2)
    decoder = FastDecoder(*published, torch.float32)
    quick, _ = decoder(FEATURES, sparse, dense)
    monkeypatch.setattr(onednn, "_PRESENT", False)
    in_steps, _ = decoder(FEATURES, sparse, dense)
    assert float((quick - in_steps).abs().max()) < FP32_LOGITS
