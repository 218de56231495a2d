"""TinyViT: the image encoder of LiteMedSAM at 256 pixels and of MobileSAM at 1024.

Names of modules follow the published checkpoint so that it loads strictly. The network
only ever runs frozen, therefore there is no dropout, no stochastic depth and no training
mode. As built it is plain; `fuse()` makes it quick: batch norms are folded into their
convolutions, products end in their GELU or sum, biases of attention are looked up once,
and a CPU works on strips of rows. It knows nothing about files, slices or prompts.

Shapes: B images, C channels, H and W pixels or cells, N = H * W tokens, K windows.
"""

import itertools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.generalists import onednn

IMAGE_SIZE = 256
"""Pixels of the square the encoder sees."""

GRID_SIZE = 64
"""Cells of the embedding along each side."""

EMBED_DIM = 256
"""Channels of the embedding."""

_WIDTHS = (64, 128, 160, 320)
_DEPTHS = (2, 2, 6, 2)
_HEADS = (2, 4, 5, 10)
_WINDOWS = (7, 7, 14, 7)
_STRIDES = (2, 2, 1)
"""How much each merge between two stages shrinks the grid: 256 -> 128 -> 64 -> 64."""

_STRIP_BYTES = 8 * 2**20
"""Of the widest map inside a strip."""


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm, foldable into one; then perhaps a sum and a GELU."""

    def __init__(
        self, in_: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, gelu: bool = False
    ):
        super().__init__()
        padding = kernel // 2
        self.add_module("c", nn.Conv2d(in_, out, kernel, stride, padding, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))
        self.gelu = gelu

    def forward(self, x_BCHW: Tensor, added_BCHW: Tensor | None = None) -> Tensor:
        """Return the map, changed in turn by each of them."""
        return onednn.ended(super().forward(x_BCHW), self.gelu, added_BCHW)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def fused(self) -> onednn.Convolution:
        """Return the one convolution that does the same in evaluation mode."""
        conv, norm = self.c, self.bn
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError(f"found {type(conv)} and {type(norm)}, expected a convolution and its batch norm")
        statistics = norm.state_dict()
        scale = norm.weight / torch.sqrt(statistics["running_var"] + norm.eps)
        one = onednn.Convolution(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
        )
        one.gelu = self.gelu
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - statistics["running_mean"] * scale
        one.load_state_dict({"weight": weight, "bias": bias})
        return one


class Product(nn.Linear):
    """A matrix product, then perhaps a sum and a GELU."""

    def __init__(self, in_: int, out: int, gelu: bool = False):
        super().__init__(in_, out)
        self.gelu = gelu

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Return every token, changed in turn by each of them."""
        return onednn.ended(super().forward(x), self.gelu, added)

    def fused(self) -> onednn.Linear:
        """Return the one call that does the same."""
        one = onednn.Linear(self.in_features, self.out_features)
        one.gelu = self.gelu
        one.load_state_dict(self.state_dict())
        return one


class InStrips(nn.Module):
    """What runs on a few rows at a time once fused, so that wide maps stay in the processor's cache.

    Measured on two threads, a bottleneck at 256 x 256 takes a third of the time: maps of
    more than 32 MB are also given back to the system each time, and its pages are dear.
    """

    fused = False

    def in_strips(
        self,
        part: Callable[[Tensor], Tensor],
        x_BHWC: Tensor,
        widest: int,
        step: int = 1,
        halo: int = 0,
        shrink: int = 1,
    ) -> Tensor:
        """Return part(x), for a part that looks `halo` rows far and has one row for `shrink` of x.

        `widest` is the number of channels at the part's widest; strips have a multiple of
        `step` rows. Beyond the edge of a strip a part sees its own padding instead of a
        row: what that spoils, the halo, is cut.
        """
        batch, height, width, _ = x_BHWC.shape
        rows = max(1, _STRIP_BYTES // (width * widest * x_BHWC.element_size() * step)) * step
        if not self.fused or not onednn.usable(x_BHWC) or height <= rows:
            return part(x_BHWC)
        images = []
        for x_1HWC in x_BHWC[:, None]:
            strips = []
            for start in range(0, height, rows):
                stop, above = min(height, start + rows), max(0, start - halo)
                strip_1HWC = part(x_1HWC[:, above : stop + halo])
                strips.append(strip_1HWC[:, (start - above) // shrink :][:, : -(-(stop - start) // shrink)])
            images.append(torch.cat(strips, dim=1))
        return images[0] if batch == 1 else torch.cat(images)


class MBConv(InStrips):
    """Inverted bottleneck: widen, convolve each channel, narrow, add."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = 4 * width
        self.conv1 = ConvNorm(width, self.hidden, gelu=True)
        self.conv2 = ConvNorm(self.hidden, self.hidden, kernel=3, groups=self.hidden, gelu=True)
        self.conv3 = ConvNorm(self.hidden, width, gelu=True)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return self.in_strips(self._whole, x_BHWC, self.hidden, halo=1)

    def _whole(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        y_BCHW = self.conv3(self.conv2(self.conv1(x_BCHW)), x_BCHW)
        return cast(Tensor, y_BCHW.permute(0, 2, 3, 1))


class Merge(InStrips):
    """The step between two stages: change the width and, mostly, halve the grid."""

    def __init__(self, in_: int, out: int, stride: int):
        super().__init__()
        self.width, self.stride = out, stride
        self.conv1 = ConvNorm(in_, out, gelu=True)
        self.conv2 = ConvNorm(out, out, kernel=3, stride=stride, groups=out, gelu=True)
        self.conv3 = ConvNorm(out, out)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return a map of the new width and, mostly, half the grid."""
        stride = self.stride
        return self.in_strips(self._whole, x_BHWC, self.width, step=stride, halo=stride, shrink=stride)

    def _whole(self, x_BHWC: Tensor) -> Tensor:
        y_BCHW = self.conv3(self.conv2(self.conv1(x_BHWC.permute(0, 3, 1, 2))))
        return cast(Tensor, y_BCHW.permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Attention inside one window, with a learned bias for every offset between tokens."""

    index: Tensor
    """Which bias belongs to each pair of tokens."""

    bias_1ANN: Tensor | None
    """The biases of every pair, once they have been looked up."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Product(width, 3 * width)
        self.proj = Product(width, width)
        offsets: dict[tuple[int, int], int] = {}
        cells = list(itertools.product(range(window), range(window)))
        index = [
            offsets.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(offsets))
            for a, b in itertools.product(cells, cells)
        ]
        self.attention_biases = nn.Parameter(torch.zeros(heads, len(offsets)))
        tokens = len(cells)
        self.register_buffer("index", torch.tensor(index).view(tokens, tokens), persistent=False)
        self.register_buffer("bias_1ANN", None, persistent=False)

    @torch.no_grad()
    def fuse(self) -> None:
        """Look up the biases."""
        self.bias_1ANN = self.attention_biases[:, self.index][None]

    def forward(self, x_KNC: Tensor) -> Tensor:
        """Mix the tokens of each window; the last product is left to the caller."""
        qkv = self.qkv(self.norm(x_KNC)).unflatten(-1, (self.heads, 3, -1))
        if onednn.usable(qkv):
            qkv = qkv.float()  # a CPU's kernel is no slower then
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        bias = self.attention_biases[:, self.index] if self.bias_1ANN is None else self.bias_1ANN
        # Only with four axes is the bias let into the kernel that keeps its scores in the cache.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Norm, widen, narrow, add."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = Product(width, 4 * width, gelu=True)
        self.fc2 = Product(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token by itself."""
        return cast(Tensor, self.fc2(self.fc1(self.norm(x)), x))


class Block(InStrips):
    """Window attention, a local convolution, an MLP; kept in (B, H, W, C) throughout."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.width, self.window = width, window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, kernel=3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x_BHWC = self.in_strips(self._attend, x_BHWC, 3 * self.width, step=self.window)
        x_BHWC = self.local_conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.in_strips(self.mlp, x_BHWC, 4 * self.width)

    def _attend(self, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        w = self.window
        # The checkpoint was trained with zero-padded windows that take part in attention.
        padded_BHWC = F.pad(x_BHWC, (0, 0, 0, -width % w, 0, -height % w))
        rows, cols = padded_BHWC.shape[1] // w, padded_BHWC.shape[2] // w
        x_KNC = (
            padded_BHWC.view(batch, rows, w, cols, w, channels)
            .transpose(2, 3)
            .reshape(batch * rows * cols, w * w, channels)
        )
        x_KNC = self.attn(x_KNC)
        mixed_BHWC = (
            x_KNC.view(batch, rows, cols, w, w, channels)
            .transpose(2, 3)
            .reshape(batch, rows * w, cols * w, channels)
        )
        mixed_BHWC = mixed_BHWC[:, :height, :width].contiguous()
        return cast(Tensor, self.attn.proj(mixed_BHWC, x_BHWC))


class ConvStage(nn.Module):
    """The first stage: convolutions only."""

    def __init__(self, width: int, depth: int, out: int, stride: int):
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(width) for _ in range(depth))
        self.downsample = Merge(width, out, stride)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Run the blocks, then the merge."""
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return cast(Tensor, self.downsample(x_BHWC))


class AttentionStage(nn.Module):
    """A later stage: attention blocks, then a merge except after the last."""

    def __init__(self, width: int, depth: int, heads: int, window: int, merge: Merge | None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, window) for _ in range(depth))
        self.downsample = merge

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Run the blocks, then the merge if there is one."""
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC if self.downsample is None else cast(Tensor, self.downsample(x_BHWC))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a (B, C, H, W) map."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalize every cell over its channels."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        normed = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normed.permute(0, 3, 1, 2)


class _PatchEmbed(nn.Module):
    """Two convolutions of stride 1, which see one pixel, or of stride 2, which see three."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        kernel = 1 if stride == 1 else 3
        # The checkpoint counts a GELU between them.
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, kernel, stride, gelu=True),
            nn.Identity(),
            ConvNorm(width // 2, width, kernel, stride),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.seq(x_BCHW)  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """(B, 3, S, S) -> (B, 256, 64, 64); S is 256, or 1024 with `patch_stride` 2."""

    def __init__(self, patch_stride: int = 1) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(_WIDTHS[0], patch_stride)
        stages: list[nn.Module] = [ConvStage(_WIDTHS[0], _DEPTHS[0], _WIDTHS[1], _STRIDES[0])]
        for i in (1, 2, 3):
            merge = Merge(_WIDTHS[i], _WIDTHS[i + 1], _STRIDES[i]) if i < 3 else None
            stages.append(AttentionStage(_WIDTHS[i], _DEPTHS[i], _HEADS[i], _WINDOWS[i], merge))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], EMBED_DIM, 1, bias=False),
            ChannelNorm(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, 3, padding=1, bias=False),
            ChannelNorm(EMBED_DIM),
        )

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Embed a batch of square images."""
        x_BHWC = self.patch_embed(image_B3HW).permute(0, 2, 3, 1)
        for stage in self.layers:
            x_BHWC = stage(x_BHWC)
        return self.neck(x_BHWC.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    def lowered(self, dtype: torch.dtype) -> "TinyViT":
        """Put the products of attention and MLPs, two thirds of the work, into a shorter type, in place.

        Convolutions and what flows from block to block do not bear bf16: each rounding is passed
        on to all that follows, and an image that is merely rounded moves the embedding by 2 %
        of its norm. All in bf16 it moves by 7 %, like this by 1.5 %, at a fifth more time.
        """
        for module in self.modules():
            if isinstance(module, onednn.Linear):
                module.to(dtype)
        return self

    def fuse(self) -> "TinyViT":
        """Make it quick, in place; the same function up to rounding."""
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ConvNorm | Product):
                    setattr(parent, name, child.fused())
            if isinstance(parent, WindowAttention):
                parent.fuse()
            if isinstance(parent, InStrips):
                parent.fused = True
        return self
