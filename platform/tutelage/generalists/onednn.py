"""Convolutions and matrix products that end in a GELU or a sum without a second pass over memory.

On a CPU oneDNN can do so while values are still in registers, and its fp32 products are
twice as fast as the default ones on processors that are not Intel's. PyTorch keeps these
calls for its compiler; they are asked for here by name, so no compiler is needed. Where
they are absent, on a GPU, under a compiler and while gradients are wanted, the same is done
in steps.
"""

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OPS = torch.ops.mkldnn
_NEEDED = ("_linear_pointwise", "_convolution_pointwise", "_is_mkldnn_bf16_supported")
_PRESENT = torch.backends.mkldnn.is_available() and all(hasattr(_OPS, name) for name in _NEEDED)  # type: ignore[no-untyped-call]


def usable(x: Tensor) -> bool:
    """Whether oneDNN does the products of such a tensor."""
    if torch.compiler.is_compiling():  # a compiler joins products with their ends by itself
        return False
    if not _PRESENT or not torch.backends.mkldnn.enabled or x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and bool(_OPS._is_mkldnn_bf16_supported()))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20


def keep_pages() -> None:
    """Let this process keep what it frees, up to 256 MB, instead of giving it back to the system each time.

    Networks on a CPU ask for megabytes thousands of times a second, and new pages cost more
    than what is written on them: decoding takes a third less time. Only where the C library is GNU's.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def ended(y: Tensor, gelu: bool, added: Tensor | None) -> Tensor:
    """The end of a product in steps: perhaps a sum, then perhaps a GELU."""
    y = y if added is None else y + added
    return F.gelu(y) if gelu else y


class Convolution(nn.Conv2d):
    """A convolution, then perhaps a sum, then perhaps a GELU."""

    gelu = False

    def forward(self, x_BCHW: Tensor, added_BCHW: Tensor | None = None) -> Tensor:  # noqa: D102
        if not usable(x_BCHW):
            return ended(super().forward(x_BCHW), self.gelu, added_BCHW)
        how = (self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        if added_BCHW is None:
            return _OPS._convolution_pointwise(x_BCHW, *how, *_last(self.gelu))  # type: ignore[no-any-return]
        summed_BCHW = _OPS._convolution_pointwise.binary(x_BCHW, added_BCHW, *how, "add", 1.0, None, [], None)
        return ended(summed_BCHW, self.gelu, None)  # oneDNN has no call for both


class Linear(nn.Linear):
    """A matrix product in the type of its weights, then perhaps a sum in that of what is added and a GELU."""

    gelu = False

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:  # noqa: D102
        x = x.to(self.weight.dtype)
        if added is None or added.dtype == x.dtype:
            return linear(x, self.weight, self.bias, self.gelu, added)
        return ended(linear(x, self.weight, self.bias), self.gelu, added)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False, added: Tensor | None = None
) -> Tensor:
    """`F.linear`, then perhaps a sum, then perhaps a GELU."""
    if not usable(x):
        return ended(F.linear(x, weight, bias), gelu, added)
    if added is None:
        return _OPS._linear_pointwise(x, weight, bias, *_last(gelu))  # type: ignore[no-any-return]
    return ended(_OPS._linear_pointwise.binary(x, added, weight, bias, "add"), gelu, None)


def _last(gelu: bool) -> tuple[str, list[float], str]:
    return ("gelu" if gelu else "none"), [], "none"
