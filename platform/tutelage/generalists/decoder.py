"""SAM's mask decoder for many prompts on one embedding, without the work they would repeat.

The same function as `segment_anything.modeling.MaskDecoder`, read from its modules, in
another order of multiplication:

- The image's tokens stay one set for all prompts until prompts first change them.
- A prompt has a few tokens, the image thousands. Projections of the image's tokens are
  folded into the prompt's side: (x Wq) (t Wk)' = x (Wq (t Wk)').
- A transposed convolution whose kernel is its stride is a matrix product in every cell, so
  upscaling reorders nothing before its last step.
- Only the masks and the cells that are wanted are made, on a CPU for as many prompts at a
  time as its cache has room for.

It knows nothing about boxes, slices or files.

Shapes: B prompts, T tokens of a prompt, N = H * W tokens of the image, C channels, A heads,
D channels of a head, S = A * T scores, M masks; a 1 in place of B is shared by all prompts.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.generalists import onednn

_CACHED_BYTES = 16 * 2**20
"""Of the image's tokens of the prompts that a CPU works on together: 8 prompts in bf16, 4 in fp32."""


class FastDecoder:
    """Masks and their predicted IoU for prompts on one embedding."""

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, dtype: torch.dtype) -> None:
        """Read the weights of segment_anything's modules, which are in fp32 and on their device by now.

        `dtype` is that of the image's tokens and of what is made of them. Tokens of prompts
        stay fp32, and so does what is summed up inside products, norms and softmaxes.
        """
        self._dtype = dtype
        self._position_1CHW = prompt_encoder.get_dense_pe().to(dtype)
        self._own_tokens_TC = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        transformer = mask_decoder.transformer
        self._layers = [_Layer(layer, dtype) for layer in transformer.layers]
        self._last = _LookAtImage(transformer.final_attn_token_to_image)
        self._last_norm = transformer.norm_final_attn
        self._upscaling = _Upscaling(mask_decoder.output_upscaling, dtype)
        self._mixers = mask_decoder.output_hypernetworks_mlps
        self._iou_head = mask_decoder.iou_prediction_head

    @torch.inference_mode()
    def __call__(
        self,
        features_1CHW: Tensor,
        sparse_BTC: Tensor,
        dense_BCHW: Tensor,
        multimask: bool = False,
        cells: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, 4 H, 4 W) and predicted IoUs (B, M), in fp32; for at least one prompt.

        M is 1, or 3 with `multimask`. `dense_BCHW` may hold one entry for all prompts. With
        `cells` only that many rows and columns of the grid are upscaled, from the first
        corner, and the logits are that much smaller: the rest of a square is often padding.
        Features themselves may be of the first rows and columns of a square alone.
        """
        grid = (features_1CHW.shape[2], features_1CHW.shape[3])
        position_1NC = _tokens(self._position_1CHW[..., : grid[0], : grid[1]])
        image_BNC = _tokens(features_1CHW.float() + _unrepeated(dense_BCHW).float()).to(self._dtype)
        step = len(sparse_BTC)
        if onednn.usable(image_BNC):
            step = max(1, _CACHED_BYTES // (image_BNC[0].numel() * image_BNC.element_size()))
        made = []
        for start in range(0, len(sparse_BTC), step):
            own_BNC = image_BNC if len(image_BNC) == 1 else image_BNC[start : start + step]
            sparse = sparse_BTC[start : start + step].float()
            made.append(self._decoded(own_BNC, position_1NC, sparse, multimask, grid, cells or grid))
        masks_BMHW, ious_BM = (torch.cat(parts) for parts in zip(*made, strict=True))
        return masks_BMHW, ious_BM

    def _decoded(
        self,
        image_BNC: Tensor,
        position_1NC: Tensor,
        sparse_BTC: Tensor,
        multimask: bool,
        grid: tuple[int, int],
        cells: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        own_BTC = self._own_tokens_TC.expand(len(sparse_BTC), -1, -1)
        prompt_BTC = torch.cat([own_BTC, sparse_BTC], dim=1)
        tokens_BTC = prompt_BTC
        for layer in self._layers:
            tokens_BTC, image_BNC = layer(tokens_BTC, prompt_BTC, image_BNC, position_1NC)
        seen_BTC = self._last(tokens_BTC + prompt_BTC, image_BNC, image_BNC + position_1NC)
        tokens_BTC = self._last_norm(tokens_BTC + seen_BTC)

        wanted = range(1, len(self._mixers)) if multimask else range(1)
        mixes_BMC = torch.stack([self._mixers[m](tokens_BTC[:, 1 + m]) for m in wanted], dim=1)
        ious_BM = self._iou_head(tokens_BTC[:, 0])[:, wanted.start : wanted.stop]
        batch, _, channels = image_BNC.shape
        image_BHWC = image_BNC.view(batch, *grid, channels)[:, : cells[0], : cells[1]]
        return self._upscaling(image_BHWC, mixes_BMC), ious_BM


class _Layer:
    """Tokens look at each other and at the image, then the image looks at the tokens."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        self._plain = layer
        self._look_at_image = _LookAtImage(layer.cross_attn_token_to_image)
        self._look_at_tokens = _LookAtTokens(layer.cross_attn_image_to_token)
        norm = layer.norm4
        self._image_norm = (norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    def __call__(
        self, tokens_BTC: Tensor, prompt_BTC: Tensor, image_BNC: Tensor, position_1NC: Tensor
    ) -> tuple[Tensor, Tensor]:
        plain = self._plain
        if plain.skip_first_layer_pe:
            tokens_BTC = plain.self_attn(q=tokens_BTC, k=tokens_BTC, v=tokens_BTC)
        else:
            asking_BTC = tokens_BTC + prompt_BTC
            tokens_BTC = tokens_BTC + plain.self_attn(q=asking_BTC, k=asking_BTC, v=tokens_BTC)
        tokens_BTC = plain.norm1(tokens_BTC)
        placed_BNC = image_BNC + position_1NC
        seen_BTC = self._look_at_image(tokens_BTC + prompt_BTC, image_BNC, placed_BNC)
        tokens_BTC = plain.norm2(tokens_BTC + seen_BTC)
        tokens_BTC = plain.norm3(tokens_BTC + plain.mlp(tokens_BTC))
        image_BNC = self._look_at_tokens(image_BNC, placed_BNC, tokens_BTC + prompt_BTC, tokens_BTC)
        return tokens_BTC, F.layer_norm(image_BNC, *self._image_norm)


class _LookAtImage:
    """Attention of a prompt's tokens to the image's, with keys and values folded into the tokens' side.

    The bias of the keys adds the same to every score of a token and drops out of its softmax.
    """

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        heads: int = attention.num_heads
        self._key_ADC = _by_head(attention.k_proj.weight, heads, 0)
        self._value_ACD = _by_head(attention.v_proj.weight, heads, 0).transpose(1, 2)
        self._scale = 1.0 / math.sqrt(self._key_ADC.shape[1])

    def __call__(self, asking_BTC: Tensor, image_BNC: Tensor, placed_BNC: Tensor) -> Tensor:
        heads = len(self._key_ADC)
        query_BATD = _by_head(self._attention.q_proj(asking_BTC), heads, 2).transpose(1, 2)
        folded_BSC = (query_BATD @ self._key_ADC * self._scale).flatten(1, 2)
        shares_BSN = _products(folded_BSC, placed_BNC).softmax(dim=-1)
        seen_BSC = _products(shares_BSN, image_BNC.transpose(1, 2)).float()
        values_BATD = _by_head(seen_BSC, heads, 1) @ self._value_ACD
        values_BTC = values_BATD.transpose(1, 2).flatten(2) + self._attention.v_proj.bias
        return self._attention.out_proj(values_BTC)  # type: ignore[no-any-return]


class _LookAtTokens:
    """Attention of the image's tokens to a prompt's, with queries and output folded into the tokens' side.

    Shares of a head add up to one, so the bias of the output can be handed out among the values.
    """

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        heads: int = attention.num_heads
        self._query_ADC = _by_head(attention.q_proj.weight, heads, 0)
        self._query_bias_AD1 = _by_head(attention.q_proj.bias, heads, 0)[..., None]
        self._out_ADC = _by_head(attention.out_proj.weight.t(), heads, 0)
        self._out_bias_C = attention.out_proj.bias / heads
        self._scale = 1.0 / math.sqrt(self._query_ADC.shape[1])

    def __call__(
        self, image_BNC: Tensor, placed_BNC: Tensor, asked_BTC: Tensor, tokens_BTC: Tensor
    ) -> Tensor:
        """Return the image's tokens, now of each prompt, with what they saw added."""
        heads = len(self._query_ADC)
        key_BATD = _by_head(self._attention.k_proj(asked_BTC) * self._scale, heads, 2).transpose(1, 2)
        scores_BSN = _products((key_BATD @ self._query_ADC).flatten(1, 2), placed_BNC)
        scores_BATN = _by_head(scores_BSN.float(), heads, 1) + key_BATD @ self._query_bias_AD1
        shares_BSN = scores_BATN.softmax(dim=2).flatten(1, 2)
        value_BATD = _by_head(self._attention.v_proj(tokens_BTC), heads, 2).transpose(1, 2)
        values_BSC = (value_BATD @ self._out_ADC + self._out_bias_C).flatten(1, 2)
        return _summed(image_BNC, shares_BSN.transpose(1, 2), values_BSC)


class _Upscaling:
    """Two transposed convolutions and the mixing of their channels into masks, four pixels a cell's side."""

    def __init__(self, upscaling: Any, dtype: torch.dtype) -> None:
        first, norm, _, second, _ = upscaling
        self._first = _per_cell(first, dtype)
        self._norm, self._eps = (norm.weight.to(dtype), norm.bias.to(dtype)), norm.eps
        self._second = _per_cell(second, dtype)

    def __call__(self, image_BHWC: Tensor, mixes_BMC: Tensor) -> Tensor:
        if not onednn.usable(image_BHWC):
            return self._masks(image_BHWC, mixes_BMC)
        pairs = zip(image_BHWC.split(1), mixes_BMC.split(1), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self._masks(*one) for one in pairs])

    def _masks(self, image_BHWC: Tensor, mixes_BMC: Tensor) -> Tensor:
        batch, height, width, channels = image_BHWC.shape
        coarse = onednn.linear(image_BHWC.reshape(-1, channels), *self._first)
        coarse = coarse.view(batch * height * width * 4, -1)
        coarse = F.gelu(F.layer_norm(coarse, coarse.shape[1:], *self._norm, self._eps))
        fine_BPC = onednn.linear(coarse, *self._second, gelu=True).view(batch, height * width * 16, -1)
        masks_BMP = _products(mixes_BMC, fine_BPC)
        masks = masks_BMP.float().view(batch, -1, height, width, 2, 2, 2, 2)
        return masks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(batch, -1, 4 * height, 4 * width)


def _per_cell(convolution: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of the matrix product that a transposed convolution does in every cell."""
    kernel, stride = convolution.kernel_size, convolution.stride
    if kernel != stride:
        raise ValueError(f"found a kernel of {kernel} with a stride of {stride}, expected them equal")
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (in, out, 2, 2) -> (2 * 2 * out, in)
    bias = convolution.bias.repeat(weight.shape[0] // len(convolution.bias))
    return weight.to(dtype).contiguous(), bias.to(dtype)


def _by_head(x: Tensor, heads: int, dim: int) -> Tensor:
    """One axis as two, heads first."""
    return x.view(*x.shape[:dim], heads, -1, *x.shape[dim + 1 :])


def _products(few_BSK: Tensor, many_BXK: Tensor) -> Tensor:
    """(B, S, X): few @ many' of every prompt, in the type of the many, which all may share."""
    few_BSK = few_BSK.to(many_BXK.dtype)
    if not onednn.usable(many_BXK):
        return few_BSK @ many_BXK.transpose(1, 2)
    if len(many_BXK) == 1:
        made = onednn.linear(few_BSK.flatten(0, 1), many_BXK[0], None)
        return made.view(*few_BSK.shape[:2], -1)
    return torch.stack([onednn.linear(*one, None) for one in zip(few_BSK, many_BXK, strict=True)])


def _summed(image_BNC: Tensor, shares_BNS: Tensor, values_BSC: Tensor) -> Tensor:
    """The image's tokens, which all prompts may share, with each prompt's shares of its values added."""
    shares_BNS, values_BSC = shares_BNS.to(image_BNC.dtype), values_BSC.to(image_BNC.dtype)
    if not onednn.usable(image_BNC):
        return image_BNC + shares_BNS @ values_BSC
    summed_BNC = image_BNC.new_empty(len(values_BSC), *image_BNC.shape[1:])
    parts = (summed_BNC, image_BNC.expand_as(summed_BNC), shares_BNS, values_BSC)
    for summed, image, shares, values in zip(*parts, strict=True):
        # A sum within the product would copy the image first, which takes longer than this.
        torch.add(onednn.linear(shares.contiguous(), values.t(), None), image, out=summed)
    return summed_BNC


def _tokens(map_BCHW: Tensor) -> Tensor:
    """(B, N, C), contiguous."""
    return map_BCHW.flatten(2).transpose(1, 2).contiguous()


def _unrepeated(dense_BCHW: Tensor) -> Tensor:
    """One entry where all are the same memory, as segment_anything gives without a mask prompt."""
    return dense_BCHW[:1] if dense_BCHW.stride(0) == 0 else dense_BCHW
