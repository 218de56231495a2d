"""Convolutions whose gradient comes out wrong, computed in fp32 instead.

On a CPU in bf16, the gradient of a 3D convolution's weights holds memory that nobody wrote when
the image is flatter than the kernel and not of one slice: depth 2 under a kernel of 3. Seen with
torch 2.13 on a CPU with AMX, in both memory layouts, from 8 or 16 channels on: numbers up to 1e37,
infinities, and often merely wrong ones that no check notices. Outputs and the gradients of
inputs are right, and so is all of it in fp32.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def guard(networks: nn.Module) -> None:
    """Let every convolution decide by what it is given; what is not affected is computed as before."""
    for module in networks.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module.kernel_size[0] > 2:
            module.forward = partial(_guarded, module.forward, module.kernel_size[0])  # type: ignore[method-assign]


def _guarded(forward: Callable[[Tensor], Tensor], kernel: int, image_BCDHW: Tensor) -> Tensor:
    flat = 1 < image_BCDHW.shape[2] < kernel
    if not flat or image_BCDHW.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return forward(image_BCDHW)
    with torch.autocast("cpu", enabled=False):
        return forward(image_BCDHW.float())
