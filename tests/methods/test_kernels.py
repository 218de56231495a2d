"""Gradients in bf16 are those of fp32 up to rounding, whatever the memory held before."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tutelage.methods.kernels import guard

pytestmark = pytest.mark.torch


def gradient(conv: nn.Module, image: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Of weights and input, with memory made dirty before."""
    image = image.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        answer = conv(image)
    dirty = [torch.full((size,), 1e30) for size in (4096, 8192, 16384, 65536)]
    del dirty
    weight = next(conv.parameters())
    found = torch.autograd.grad(answer.float().square().sum(), [weight, image])
    return [*found, answer.float()]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv3d(16, 16, 3, padding=1),
        nn.Conv3d(16, 16, 3, padding=1, stride=(1, 2, 2)),
        nn.Conv3d(16, 16, 5, padding=2),
        nn.ConvTranspose3d(16, 16, 3, padding=1, stride=(1, 2, 2), output_padding=(0, 1, 1)),
    ],
    ids=["3", "strided", "5", "transposed"],
)
def test_a_guarded_convolution_has_the_gradient_of_single_precision(conv: nn.Module, depth: int) -> None:
    image = torch.randn(2, 16, depth, 6, 7, generator=torch.Generator().manual_seed(0))
    exact = gradient(copy.deepcopy(conv), image, torch.float32)
    guarded = nn.Sequential(copy.deepcopy(conv))
    guard(guarded)
    for _ in range(4):
        for found, expected in zip(gradient(guarded, image, torch.bfloat16), exact, strict=True):
            assert torch.isfinite(found).all()
            assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1)), (1, 96, 96)),  # the process died
        (nn.Conv3d(2, 2, (1, 3, 3), padding=(0, 1, 1)), (1, 96, 96)),  # so it did here
        (nn.Conv3d(48, 48, 3, padding=1), (3, 64, 38)),  # wrong by a sixth
        (nn.ConvTranspose3d(32, 16, (1, 2, 2), stride=(1, 2, 2)), (1, 48, 60)),
    ],
    ids=["16", "2", "48", "transposed"],
)
def test_large_slices_have_the_gradient_of_single_precision(
    conv: nn.Module, shape: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    channels = conv.in_channels
    assert isinstance(channels, int)
    image = torch.randn(2, channels, *shape, generator=generator)
    exact = gradient(copy.deepcopy(conv), image, torch.float32)
    guarded = nn.Sequential(copy.deepcopy(conv))
    guard(guarded)
    for found, expected in zip(gradient(guarded, image, torch.bfloat16), exact, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()


def test_large_slices_are_computed_otherwise_only_where_there_is_a_gradient() -> None:
    network = nn.Sequential(nn.Conv3d(16, 16, (1, 3, 3)))
    guard(network)
    small, large = torch.zeros(1, 16, 1, 63, 63), torch.zeros(1, 16, 1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(small).dtype is torch.bfloat16
        assert network(large).dtype is torch.float32
        with torch.no_grad():
            assert network(large).dtype is torch.bfloat16
        network.requires_grad_(False)  # as a mean teacher
        assert network(large).dtype is torch.bfloat16


def test_only_what_is_flatter_than_its_kernel_is_computed_otherwise() -> None:
    conv = nn.Conv3d(4, 4, 3, padding=1)
    network = nn.Sequential(conv)
    guard(network)
    kinds = {}
    with torch.autocast("cpu", torch.bfloat16):
        for depth in (1, 2, 3):
            kinds[depth] = network(torch.zeros(1, 4, depth, 4, 4)).dtype
    assert kinds == {1: torch.bfloat16, 2: torch.float32, 3: torch.bfloat16}
    assert network(torch.zeros(1, 4, 2, 4, 4)).dtype is torch.float32


def test_a_copy_of_a_guarded_network_computes_with_its_own_weights() -> None:
    network = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1))
    guard(network)
    other = copy.deepcopy(network)
    nn.init.zeros_(other[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(other[0].bias)  # type: ignore[arg-type]
    image = torch.ones(1, 4, 2, 4, 4)
    assert not other(image).any()
    assert network(image).any()
