"""The networks of SAM-Med3D: SAM's three parts with a third axis.

Names of modules follow the published checkpoint so that it loads strictly. Tokens of the
prompt and of the image look at each other in segment_anything's own transformer, to which
the order of an image's cells is all the same. The network only ever runs frozen. It knows
nothing about files, volumes or millimeters.

Shapes: B images, C channels, X Y Z cells or voxels, N = X * Y * Z tokens, A heads, E channels of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.generalists.loading import modeling

EMBED_DIM = 384
"""Channels of the embedding."""

PATCH_VOXELS = 16
"""Voxels of a cell along each side."""

_WINDOW_CELLS = 14
_MASK_CHANNELS = 16
_MASK_TOKENS = 4
_IOU_WIDTH = 256


class CubeNorm(nn.Module):
    """Layer norm over the channels of a (B, C, X, Y, Z) map."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Normalize every cell over its channels."""
        last = x_BCXYZ.movedim(1, -1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, eps=1e-6).movedim(-1, 1)


class CubeAttention(nn.Module):
    """Attention of all cells of a small cube, with learned offsets for distances.

    The checkpoint was trained with cubes padded to windows of 14 cells whose padding takes
    part: all that is known of it is the bias. Nobody looks at what padding finds, so it does
    not ask. See `_offsets` for what else the checkpoint was trained with.
    """

    def __init__(self, width: int, heads: int, cells: int, span: int):
        super().__init__()
        if cells > span:
            raise ValueError(f"found a cube of {cells} cells, expected at most a window of {span}")
        self.heads, self.cells, self.span = heads, cells, span
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        for axis in "dhw":
            self.register_parameter(
                f"rel_pos_{axis}", nn.Parameter(torch.zeros(2 * span - 1, width // heads))
            )

    def forward(self, x_BXYZC: Tensor) -> Tensor:
        """Mix the cells of each cube."""
        batch, n, s = len(x_BXYZC), self.cells, self.span
        own = self.qkv(x_BXYZC)
        every = self.qkv.bias.to(own.dtype).expand(batch, s, s, s, -1).clone()
        every[:, :n, :n, :n] = own
        q_BANE = self._by_head(own, 0)
        rows = self._by_head(every[:, :n, :n], 0).reshape(batch, self.heads, n, n, s, -1)
        offsets_BANM = self._offsets(rows)
        mixed_BANE = F.scaled_dot_product_attention(
            q_BANE, self._by_head(every, 1), self._by_head(every, 2), attn_mask=offsets_BANM
        )
        return self.proj(mixed_BANE.transpose(1, 2).reshape(x_BXYZC.shape))  # type: ignore[no-any-return]

    def _by_head(self, qkv_BXYZC: Tensor, which: int) -> Tensor:
        part_BNC = qkv_BXYZC.chunk(3, dim=-1)[which].flatten(1, 3)
        return part_BNC.reshape(*part_BNC.shape[:2], self.heads, -1).transpose(1, 2)

    def _offsets(self, rows_BAXYSE: Tensor) -> Tensor:
        """(B, A, N, M) to add to the scores, from the queries of whole rows, padding included.

        The published code means an offset for the distance along each axis, and adds another:
        all three are read by the key's place along Z, and the second and third are those of the
        cell of the query's row whose place along Z is the key's along X, and along Y. The
        weights were trained with that, so they only work with it.
        """
        n, s = self.cells, self.span
        places = torch.arange(s, device=rows_BAXYSE.device)
        apart = places[:, None] - places[None] + s - 1
        first, second, third = (self.get_parameter(f"rel_pos_{axis}")[apart] for axis in "dhw")
        own = torch.einsum("baxyze,xke->baxyzk", rows_BAXYSE[..., :n, :], first[:n])
        by_x = torch.einsum("baxyze,yke->baxyzk", rows_BAXYSE, second[:n])
        by_y = torch.einsum("baxyze,zke->baxyzk", rows_BAXYSE, third)
        offsets = own[..., None, None, :] + by_x[:, :, :, :, None, :, None] + by_y[:, :, :, :, None, None]
        return offsets.flatten(5).flatten(2, 4)


class CubeMlp(nn.Module):
    """Widen, narrow."""

    def __init__(self, width: int):
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every cell by itself."""
        return self.lin2(F.gelu(self.lin1(x)))  # type: ignore[no-any-return]


class CubeBlock(nn.Module):
    """Attention, then an MLP, each added."""

    def __init__(self, width: int, heads: int, cells: int, span: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CubeAttention(width, heads, cells, span)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = CubeMlp(width)

    def forward(self, x_BXYZC: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x_BXYZC = x_BXYZC + self.attn(self.norm1(x_BXYZC))
        return x_BXYZC + self.mlp(self.norm2(x_BXYZC))  # type: ignore[no-any-return]


class _Patches(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv3d(1, width, PATCH_VOXELS, PATCH_VOXELS)

    def forward(self, x_B1XYZ: Tensor) -> Tensor:
        return self.proj(x_B1XYZ).movedim(1, -1)  # type: ignore[no-any-return]


class CubeEncoder(nn.Module):
    """(B, 1, S, S, S) -> (B, 384, S / 16, S / 16, S / 16)."""

    def __init__(
        self,
        side: int = 128,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        everywhere: tuple[int, ...] = (2, 5, 8, 11),
    ):
        """`everywhere` are the blocks without padding; side and sizes are the published ones."""
        super().__init__()
        cells = side // PATCH_VOXELS
        self.patch_embed = _Patches(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, cells, cells, cells, width))
        spans = [cells if block in everywhere else _WINDOW_CELLS for block in range(depth)]
        self.blocks = nn.ModuleList(CubeBlock(width, heads, cells, span) for span in spans)
        self.neck = nn.Sequential(
            nn.Conv3d(width, EMBED_DIM, 1, bias=False),
            CubeNorm(EMBED_DIM),
            nn.Conv3d(EMBED_DIM, EMBED_DIM, 3, padding=1, bias=False),
            CubeNorm(EMBED_DIM),
        )

    def forward(self, x_B1XYZ: Tensor) -> Tensor:
        """Embed a batch of cubes."""
        x_BXYZC = self.patch_embed(x_B1XYZ) + self.pos_embed
        for block in self.blocks:
            x_BXYZC = block(x_BXYZC)
        return self.neck(x_BXYZC.movedim(-1, 1))  # type: ignore[no-any-return]


class _Places(nn.Module):
    """Sines and cosines of random waves; the sines twice, which makes three thirds of the channels."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, EMBED_DIM // 3))

    def forward(self, shares: Tensor) -> Tensor:
        """(..., 3) shares of the cube's side along X, Y and Z -> (..., C)."""
        waves = 2 * math.pi * (2 * shares - 1) @ self.positional_encoding_gaussian_matrix
        return torch.cat([waves.sin(), waves.cos(), waves.sin()], dim=-1)


class CubePrompts(nn.Module):
    """Clicks and a first mask as tokens."""

    def __init__(self, side: int = 128):
        super().__init__()
        self.side, self.cells = side, side // PATCH_VOXELS
        self.pe_layer = _Places()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, EMBED_DIM) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, EMBED_DIM)
        few = _MASK_CHANNELS // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, few, 2, 2),
            CubeNorm(few),
            nn.GELU(),
            nn.Conv3d(few, _MASK_CHANNELS, 2, 2),
            CubeNorm(_MASK_CHANNELS),
            nn.GELU(),
            nn.Conv3d(_MASK_CHANNELS, EMBED_DIM, 1),
        )
        self.no_mask_embed = nn.Embedding(1, EMBED_DIM)  # in the checkpoint, and never asked for here

    def forward(self, places_BT3: Tensor, positive_BT: Tensor, logits_B1XYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T + 1, C) tokens and (B, C, X, Y, Z) cells.

        Places are voxels from the cube's first corner along X, Y and Z.
        """
        outside, inside = (self.get_parameter(f"point_embeddings.{k}.weight") for k in (0, 1))
        kinds_BTC = torch.where(positive_BT[..., None], inside, outside)
        tokens_BTC = self.pe_layer(places_BT3 / self.side) + kinds_BTC
        # One token that is no click always ends the row, as in training.
        none_B1C = self.not_a_point_embed.weight.expand(len(tokens_BTC), 1, -1)
        return torch.cat([tokens_BTC, none_B1C], dim=1), self.mask_downscaling(logits_B1XYZ)

    def positions(self) -> Tensor:
        """(1, C, X, Y, Z): where each cell of the embedding is."""
        device = self.no_mask_embed.weight.device
        shares = (torch.arange(self.cells, device=device) + 0.5) / self.cells
        x, y, z = torch.meshgrid(shares, shares, shares, indexing="ij")
        # The published code swaps the first two axes here and nowhere else; so were the weights trained.
        return self.pe_layer(torch.stack([y, x, z], dim=-1)).movedim(-1, 0)[None]  # type: ignore[no-any-return]


class _Head(nn.Module):
    """A few layers with ReLU between them."""

    def __init__(self, width: int, out: int):
        super().__init__()
        sizes = [(EMBED_DIM, width), (width, width), (width, out)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))  # type: ignore[no-any-return]


class CubeDecoder(nn.Module):
    """Masks from tokens and cells."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = modeling().TwoWayTransformer(
            depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8
        )
        self.iou_token = nn.Embedding(1, EMBED_DIM)
        self.mask_tokens = nn.Embedding(_MASK_TOKENS, EMBED_DIM)
        half, eighth = EMBED_DIM // 4, EMBED_DIM // 8
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(EMBED_DIM, half, 2, 2),
            CubeNorm(half),
            nn.GELU(),
            nn.ConvTranspose3d(half, eighth, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(_Head(EMBED_DIM, eighth) for _ in range(_MASK_TOKENS))
        self.iou_prediction_head = _Head(_IOU_WIDTH, _MASK_TOKENS)

    def forward(
        self, features_1CXYZ: Tensor, positions_1CXYZ: Tensor, tokens_BTC: Tensor, dense_BCXYZ: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (B, 4X, 4Y, 4Z) logits of the single mask and its (B,) predicted IoU."""
        batch = len(tokens_BTC)
        own_BTC = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        cells_BCXYZ = features_1CXYZ + dense_BCXYZ
        shape = cells_BCXYZ.shape
        looked_BTC, cells_BNC = self.transformer(
            cells_BCXYZ.flatten(3),
            positions_1CXYZ.expand(shape).flatten(3),
            torch.cat([own_BTC, tokens_BTC], dim=1),
        )
        upscaled_BCXYZ = self.output_upscaling(cells_BNC.transpose(1, 2).reshape(shape))
        mixture_BC = self.output_hypernetworks_mlps[0](looked_BTC[:, 1])
        logits_BXYZ = torch.einsum("bc,bcxyz->bxyz", mixture_BC, upscaled_BCXYZ)
        return logits_BXYZ, self.iou_prediction_head(looked_BTC[:, 0])[:, 0]
