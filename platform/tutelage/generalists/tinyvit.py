"""TinyViT at 256 pixels: the image encoder of LiteMedSAM.

Names of modules follow the published checkpoint so that it loads strictly. The network
only ever runs frozen, therefore there is no dropout, no stochastic depth and no training
mode; `fuse()` folds every batch norm into its convolution. It knows nothing about files,
slices or prompts.

Shapes: B images, C channels, H and W pixels or cells, N = H * W tokens, K windows.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm, foldable into one convolution."""

    def __init__(self, in_: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        padding = kernel // 2
        self.add_module("c", nn.Conv2d(in_, out, kernel, stride, padding, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """Return the one convolution that does the same in evaluation mode."""
        conv, norm = self.c, self.bn
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError(f"found {type(conv)} and {type(norm)}, expected a convolution and its batch norm")
        statistics = norm.state_dict()
        scale = norm.weight / torch.sqrt(statistics["running_var"] + norm.eps)
        one = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
        )
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - statistics["running_mean"] * scale
        one.load_state_dict({"weight": weight, "bias": bias})
        return one


class MBConv(nn.Module):
    """Inverted bottleneck: widen, convolve each channel, narrow, add."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 4 * width
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the same shape."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x_BCHW))))
        return F.gelu(self.conv3(hidden) + x_BCHW)


class Merge(nn.Module):
    """The step between two stages: change the width and, mostly, halve the grid."""

    def __init__(self, in_: int, out: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(in_, out)
        self.conv2 = ConvNorm(out, out, kernel=3, stride=stride, groups=out)
        self.conv3 = ConvNorm(out, out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the new width and, mostly, half the grid."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x_BCHW)))))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Attention inside one window, with a learned bias for every offset between tokens."""

    index: Tensor
    """Which bias belongs to each pair of tokens."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        offsets: dict[tuple[int, int], int] = {}
        cells = list(itertools.product(range(window), range(window)))
        index = [
            offsets.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(offsets))
            for a, b in itertools.product(cells, cells)
        ]
        self.attention_biases = nn.Parameter(torch.zeros(heads, len(offsets)))
        tokens = len(cells)
        self.register_buffer("index", torch.tensor(index).view(tokens, tokens), persistent=False)

    def forward(self, x_KNC: Tensor) -> Tensor:
        """Mix the tokens of each window."""
        windows, tokens, width = x_KNC.shape
        qkv = self.qkv(self.norm(x_KNC)).view(windows, tokens, self.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        bias = self.attention_biases[:, self.index].to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).reshape(windows, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Norm, widen, narrow."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token by itself."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Window attention, a local convolution, an MLP; kept in (B, H, W, C) throughout."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, kernel=3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x_BHWC = x_BHWC + self._attend(x_BHWC)
        x_BHWC = self.local_conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x_BHWC + self.mlp(x_BHWC)  # type: ignore[no-any-return]

    def _attend(self, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        w = self.window
        # The checkpoint was trained with zero-padded windows that take part in attention.
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, -width % w, 0, -height % w))
        rows, cols = x_BHWC.shape[1] // w, x_BHWC.shape[2] // w
        x_KNC = (
            x_BHWC.view(batch, rows, w, cols, w, channels)
            .transpose(2, 3)
            .reshape(batch * rows * cols, w * w, channels)
        )
        x_KNC = self.attn(x_KNC)
        x_BHWC = (
            x_KNC.view(batch, rows, cols, w, w, channels)
            .transpose(2, 3)
            .reshape(batch, rows * w, cols * w, channels)
        )
        return x_BHWC[:, :height, :width]


class ConvStage(nn.Module):
    """The first stage: convolutions only."""

    def __init__(self, width: int, depth: int, out: int, stride: int):
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(width) for _ in range(depth))
        self.downsample = Merge(width, out, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the blocks, then the merge."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.downsample(x_BCHW)  # type: ignore[no-any-return]


class AttentionStage(nn.Module):
    """A later stage: attention blocks, then a merge except after the last."""

    def __init__(self, width: int, depth: int, heads: int, window: int, merge: Merge | None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, window) for _ in range(depth))
        self.downsample = merge

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the blocks, then the merge if there is one."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        return x_BCHW if self.downsample is None else self.downsample(x_BCHW)


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
    """Two 1x1 convolutions: this variant keeps the full 256 x 256 grid in its first stage."""

    def __init__(self, width: int):
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, width // 2), nn.GELU(), ConvNorm(width // 2, width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.seq(x_BCHW)  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """(B, 3, 256, 256) in [0, 1] -> (B, 256, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(_WIDTHS[0])
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
        x_BCHW = self.patch_embed(image_B3HW)
        for stage in self.layers:
            x_BCHW = stage(x_BCHW)
        return self.neck(x_BCHW)  # type: ignore[no-any-return]

    def fuse(self) -> "TinyViT":
        """Fold every batch norm into its convolution, in place."""
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ConvNorm):
                    setattr(parent, name, child.fused())
        return self
