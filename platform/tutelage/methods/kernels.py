"""Convolutions whose gradient comes out wrong, computed in fp32 instead.

On a CPU in bf16, torch 2.13 computes the gradient of a 3D convolution's weights wrongly, on CPUs with
AMX: outputs and the gradients of inputs are right, and so is all of it in fp32 or without AMX.

- Where the image is flatter than the kernel and not of one slice, depth 2 under a kernel of 3, it holds
  memory that nobody wrote, from 8 or 16 channels on, in both memory layouts: numbers up to 1e37,
  infinities, and often merely wrong ones that no check notices.
- Where slices are large and channels many, it is wrong by a tenth to a third, or no number, or memory is
  written that belongs to others, and the process dies ("double free or corruption"). Seen on an AMX of
  AVX10.1 from 228,096 numbers on, a slice of input and output together, channels rounded up to 16: at 96
  x 96 with 16 channels, at 64 x 38 with 48. Of 465 convolutions below that none was wrong.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

LIMIT = 2**17
"""Numbers of a slice of input and output from which on fp32 is used: little more than half of the fewest
with which it went wrong."""

_CHANNELS = 16
"""To a multiple of which kernels round channels up."""

_Convolution = nn.Conv3d | nn.ConvTranspose3d


def guard(networks: nn.Module) -> None:
    """Let every convolution decide by what it is given; what is not affected is computed as before."""
    for module in networks.modules():
        if isinstance(module, _Convolution):
            module.forward = partial(_guarded, module.forward, module)  # type: ignore[method-assign]


def _guarded(forward: Callable[[Tensor], Tensor], module: _Convolution, image_BCDHW: Tensor) -> Tensor:
    affected = _is_flat(module, image_BCDHW) or _is_large(module, image_BCDHW)
    if not affected or image_BCDHW.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return forward(image_BCDHW)
    with torch.autocast("cpu", enabled=False):
        return forward(image_BCDHW.float())


def _is_flat(module: _Convolution, image_BCDHW: Tensor) -> bool:
    return 1 < image_BCDHW.shape[2] < module.kernel_size[0]


def _is_large(module: _Convolution, image_BCDHW: Tensor) -> bool:
    """Whether a slice of what the weights' gradient is made of is, if there will be one."""
    if not torch.is_grad_enabled() or not module.weight.requires_grad:
        return False
    high, wide = image_BCDHW.shape[3:]
    if isinstance(module, nn.ConvTranspose3d):
        high, wide = high * module.stride[1], wide * module.stride[2]
    channels = sum(-(-count // _CHANNELS) * _CHANNELS for count in (module.in_channels, module.out_channels))
    return channels * high * wide >= LIMIT
