"""SAM with its original encoder, a plain vision transformer: ViT-B, ViT-L, ViT-H, and MedSAM.

MedSAM is a ViT-B that was taught on medical slices with boxes only: other weights, another
square. Encoder blocks are segment_anything's; only their attention is replaced by one that
never holds a score for every pair of 4096 tokens and every head at once, with the same
result. Pixels are scaled as they are, where SAM's own predictor rounds them to 0..255 first.
"""

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.generalists.capabilities import CAPABILITIES
from tutelage.generalists.family import PromptableSam
from tutelage.generalists.frame import Frame
from tutelage.generalists.loading import EMBED_DIM, Parts, loaded, modeling, prompting_parts
from tutelage.generalists.settings import Precision
from tutelage.generalists.weights import Weights

_PATCH_PIXELS = 16
_WINDOW_CELLS = 14

_ALIGNED = 8
"""Channels of a head come in multiples of this where a GPU's fast kernels shall take them."""


@dataclass(frozen=True, slots=True)
class Size:
    """What the encoders differ in."""

    width: int
    depth: int
    heads: int
    everywhere: tuple[int, ...]
    """Blocks whose attention sees the whole square; the others see windows of 14 x 14 cells."""

    side: int = 1024
    """Pixels of the square."""


SIZES = MappingProxyType(
    {
        "sam_vit_b": Size(768, 12, 12, (2, 5, 8, 11)),
        "sam_vit_l": Size(1024, 24, 16, (5, 11, 17, 23)),
        "sam_vit_h": Size(1280, 32, 16, (7, 15, 23, 31)),
    }
)
"""By the name of the generalist, as published."""


class Sam(PromptableSam):
    """A SAM that takes boxes, clicks and masks."""

    def __init__(
        self,
        weights: Weights,
        name: str = "sam_vit_b",
        precision: Precision = "auto",
        device: str | None = None,
        compiled: bool = False,
        magnify: float | None = None,
        size: Size | None = None,
    ) -> None:
        """Load the weights onto a device, by default a GPU if there is one; `size` is that of `name`."""
        size = size or SIZES[name]
        super().__init__(
            name,
            _lean(loaded(weights.path, name, empty_parts(size))),
            # Positions are learned for the whole square, which is therefore always shown.
            Frame(size.side, "longest", "imagenet", grid=size.side // _PATCH_PIXELS, magnify=magnify),
            weights.digest,
            CAPABILITIES[name],
            precision=precision,
            device=device,
            compiled=compiled,
        )


class MedSAM(PromptableSam):
    """A ViT-B that takes boxes. Its slices are stretched to the square, darkest to 0 and brightest to 1."""

    def __init__(
        self,
        weights: Weights,
        precision: Precision = "auto",
        device: str | None = None,
        compiled: bool = False,
        size: Size | None = None,
    ) -> None:
        """Load the weights onto a device, by default a GPU if there is one."""
        size = size or SIZES["sam_vit_b"]
        super().__init__(
            "medsam",
            _lean(loaded(weights.path, "MedSAM", empty_parts(size))),
            Frame(size.side, "stretch", "extremes", grid=size.side // _PATCH_PIXELS),
            weights.digest,
            CAPABILITIES["medsam"],
            precision=precision,
            device=device,
            compiled=compiled,
        )


def empty_parts(size: Size) -> Parts:
    """The three networks without values: to draw hundreds of millions at random takes half a minute."""
    with torch.device("meta"):
        encoder = modeling().ImageEncoderViT(
            img_size=size.side,
            patch_size=_PATCH_PIXELS,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=4,
            out_chans=EMBED_DIM,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=_WINDOW_CELLS,
            global_attn_indexes=size.everywhere,
        )
        return Parts(encoder, *prompting_parts(size.side, size.side // _PATCH_PIXELS))


def _lean(parts: Parts) -> Parts:
    blocks: Any = parts.encoder.blocks
    for block in blocks:
        block.attn = LeanAttention(block.attn)
    return parts


class LeanAttention(nn.Module):
    """segment_anything's attention with its learned offsets, in less memory.

    The score of a pair of cells is query * key, plus what the query says about the distance
    in rows, plus the same in columns. On a CPU heads take turns, so that the sum of both
    offsets is held for one head. On a GPU the offsets travel as further channels: the query
    has its opinion of every row and column, the key a one at its own, and their product is
    the sum. So no kernel needs to know about offsets, and none holds the scores.
    """

    rows: Tensor
    """(S, S, D): the learned offset of every row to every row; `columns` likewise."""

    columns: Tensor
    places: Tensor
    """(S * S, 2 * S): a one at the row and a one at the column of each cell."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj
        side = (len(attention.rel_pos_h) + 1) // 2
        cells = torch.arange(side)
        apart = cells[:, None] - cells[None] + side - 1
        eye = torch.eye(side)
        places = torch.cat([eye.repeat_interleave(side, dim=0), eye.repeat(side, 1)], dim=1)
        self.register_buffer("rows", attention.rel_pos_h.detach()[apart], persistent=False)
        self.register_buffer("columns", attention.rel_pos_w.detach()[apart], persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Mix the cells of each square of a batch."""
        batch, height, width, _ = x_BHWC.shape
        qkv = self.qkv(x_BHWC).view(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed_BAND = self.widened(q, k, v) if x_BHWC.is_cuda else self.in_turns(q, k, v)
        mixed_BHWC = mixed_BAND.transpose(1, 2).reshape(batch, height, width, -1)
        return self.proj(mixed_BHWC)  # type: ignore[no-any-return]

    def in_turns(self, q_BAND: Tensor, k_BAND: Tensor, v_BAND: Tensor) -> Tensor:
        """Head by head, with the scores' offsets of one head at a time."""
        mixed = []
        for q, k, v in zip(
            *(x_BAND.chunk(self.heads, 1) for x_BAND in (q_BAND, k_BAND, v_BAND)), strict=True
        ):
            down, across = self._offsets(q)
            offsets = (down[..., :, None] + across[..., None, :]).flatten(-2)
            mixed.append(F.scaled_dot_product_attention(q, k, v, attn_mask=offsets, scale=self.scale))
        return torch.cat(mixed, dim=1)

    def widened(self, q_BAND: Tensor, k_BAND: Tensor, v_BAND: Tensor) -> Tensor:
        """All heads at once, with the offsets as further channels of query and key."""
        batch, heads, _, channels = q_BAND.shape
        wide = channels + self.places.shape[1]
        spare = -wide % _ALIGNED
        places = F.pad(self.places, (0, spare)).to(k_BAND.dtype).expand(batch, heads, -1, -1)
        queries = torch.cat([q_BAND * self.scale, *self._offsets(q_BAND)], dim=-1)
        mixed = F.scaled_dot_product_attention(
            F.pad(queries, (0, spare)),
            torch.cat([k_BAND, places], dim=-1),
            F.pad(v_BAND, (0, wide + spare - channels)),
            scale=1.0,
        )
        return mixed[..., :channels]

    def _offsets(self, q_BAND: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A, N, S) each: what every query says about every row, and about every column."""
        batch, heads, _, channels = q_BAND.shape
        side = len(self.rows)
        q_BAHWD = q_BAND.reshape(batch, heads, side, side, channels)
        down = torch.einsum("bahwd,hkd->bahwk", q_BAHWD, self.rows).flatten(2, 3)
        across = torch.einsum("bahwd,wkd->bahwk", q_BAHWD, self.columns).flatten(2, 3)
        return down, across
