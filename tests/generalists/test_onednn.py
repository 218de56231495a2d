"""Products with their end in the same pass against the same in steps."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.generalists import onednn

pytestmark = pytest.mark.torch

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Of values around 1: in bf16 steps round twice, one pass once."""


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=TOLERANCE, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    with torch.inference_mode():
        usable = onednn.usable(torch.zeros(1, dtype=chosen))
    if not usable:
        pytest.skip(f"oneDNN does no {chosen} here")
    return chosen


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@torch.inference_mode()
def test_a_linear_product_ends_as_in_steps(dtype: torch.dtype, gelu: bool, summed: bool) -> None:
    x, weight, bias = (
        _random(2, 7, 16).to(dtype),
        _random(24, 16, seed=1).to(dtype) / 4,
        _random(24).to(dtype),
    )
    added = _random(2, 7, 24, seed=2).to(dtype) if summed else None
    expected = onednn.ended(F.linear(x.float(), weight.float(), bias.float()), gelu, added)
    made = onednn.linear(x, weight, bias, gelu, added)
    assert made.dtype == dtype
    assert float((made - expected).abs().max()) < TOLERANCE[dtype]


@torch.inference_mode()
def test_weights_may_be_seen_from_the_other_side(dtype: torch.dtype) -> None:
    x, weight = _random(5, 16).to(dtype), (_random(16, 24, seed=1) / 4).to(dtype)
    made = onednn.linear(x, weight.t(), None)
    assert float((made - x.float() @ weight.float()).abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("groups", [1, 8])
@torch.inference_mode()
def test_a_convolution_ends_as_in_steps(dtype: torch.dtype, gelu: bool, summed: bool, groups: int) -> None:
    convolution = onednn.Convolution(8, 8, 3, padding=1, groups=groups).requires_grad_(False)
    convolution.gelu = gelu
    convolution.to(dtype)
    x = _random(2, 8, 9, 10).to(dtype).contiguous(memory_format=torch.channels_last)
    added = torch.roll(x, 1, dims=0) if summed else None
    weight, bias = convolution.weight.float(), convolution.bias
    assert bias is not None
    plain = F.conv2d(x.float(), weight, bias.float(), padding=1, groups=groups)
    expected = onednn.ended(plain, gelu, None if added is None else added.float())
    assert float((convolution(x, added) - expected).abs().max()) < TOLERANCE[dtype]


def test_gradients_are_not_lost_where_they_are_wanted() -> None:
    linear = onednn.Linear(4, 3)
    assert not onednn.usable(torch.zeros(1, 4))
    linear(_random(2, 4)).sum().backward()
    assert linear.weight.grad is not None


def test_pages_can_be_kept_more_than_once() -> None:
    onednn.keep_pages()
    onednn.keep_pages()
    assert float(torch.ones(10_000_000).sum()) == 10_000_000


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiler_gets_plain_steps() -> None:
    linear = onednn.Linear(16, 24)
    linear.gelu = True
    x = _random(5, 16)
    assert torch.allclose(torch.compile(linear)(x), linear(x), atol=1e-5)
