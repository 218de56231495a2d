"""SAM's mask decoder for many prompts on one embedding, without the work they would repeat.

The same function as `segment_anything.modeling.MaskDecoder`, read from its modules, in
another order of multiplication:

- The image's tokens stay one set for all prompts until prompts first change them, and the
  scores of their positions are made apart from those of their features.
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

_PROMPTS_AT_ONCE = 2
"""On a CPU: a prompt's tokens of the image take 4 MB in fp32, its finest map 8 MB."""


class FastDecoder:
    """Masks and their predicted IoU for prompts on one embedding."""

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, dtype: torch.dtype) -> None:
        """Read the weights of segment_anything's modules, which are in fp32 and on their device by now.

        `dtype` is that of the image's tokens. Tokens of prompts, sums inside products,
        norms and softmaxes, and the logits stay fp32.
        """
        self._dtype = dtype
        self._position_1NC = _tokens(prompt_encoder.get_dense_pe()).to(dtype)
        self._own_tokens_TC = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        transformer = mask_decoder.transformer
        self._layers = [_Layer(layer) for layer in transformer.layers]
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
        """Return logits (B, M, 4 H, 4 W) and predicted IoUs (B, M), in fp32.

        M is 1, or 3 with `multimask`. `dense_BCHW` may hold one entry for all prompts. With
        `cells` only that many rows and columns of the grid are upscaled, from the first
        corner, and the logits are that much smaller: the rest of a square is often padding.
        """
        features_1CHW = features_1CHW.float()
        dense_BCHW = _unrepeated(dense_BCHW.float())
        whole = (features_1CHW.shape[2], features_1CHW.shape[3])
        step = _PROMPTS_AT_ONCE if features_1CHW.device.type == "cpu" else max(1, len(sparse_BTC))
        made = []
        for start in range(0, max(1, len(sparse_BTC)), step):
            some = slice(start, start + step)
            dense = dense_BCHW if len(dense_BCHW) == 1 else dense_BCHW[some]
            made.append(self._decoded(features_1CHW + dense, sparse_BTC[some].float(), multimask, cells or whole))
        masks_BMHW, ious_BM = (torch.cat(parts) for parts in zip(*made, strict=True))
        return masks_BMHW, ious_BM

    def _decoded(
        self, image_BCHW: Tensor, sparse_BTC: Tensor, multimask: bool, cells: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        image_BNC = _tokens(image_BCHW).to(self._dtype)
        own_BTC = self._own_tokens_TC.expand(len(sparse_BTC), -1, -1)
        prompt_BTC = torch.cat([own_BTC, sparse_BTC], dim=1)
        tokens_BTC = prompt_BTC
        for layer in self._layers:
            tokens_BTC, image_BNC = layer(tokens_BTC, prompt_BTC, image_BNC, self._position_1NC)
        seen_BTC = self._last(tokens_BTC + prompt_BTC, image_BNC, self._position_1NC)
        tokens_BTC = self._last_norm(tokens_BTC + seen_BTC)

        wanted = range(1, len(self._mixers)) if multimask else range(1)
        mixes_BMC = torch.stack([self._mixers[m](tokens_BTC[:, 1 + m]) for m in wanted], dim=1)
        ious_BM = self._iou_head(tokens_BTC[:, 0])[:, wanted.start : wanted.stop]
        image_BHWC = image_BNC.unflatten(1, image_BCHW.shape[2:])
        return self._upscaling(image_BHWC[:, : cells[0], : cells[1]], mixes_BMC), ious_BM


class _Layer:
    """Tokens look at each other and at the image, then the image looks at the tokens."""

    def __init__(self, layer: Any) -> None:
        self._plain = layer
        self._look_at_image = _LookAtImage(layer.cross_attn_token_to_image)
        self._look_at_tokens = _LookAtTokens(layer.cross_attn_image_to_token)

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
        seen_BTC = self._look_at_image(tokens_BTC + prompt_BTC, image_BNC, position_1NC)
        tokens_BTC = plain.norm2(tokens_BTC + seen_BTC)
        tokens_BTC = plain.norm3(tokens_BTC + plain.mlp(tokens_BTC))
        image_BNC = self._look_at_tokens(image_BNC, position_1NC, tokens_BTC + prompt_BTC, tokens_BTC)
        norm = plain.norm4
        weight, bias = norm.weight.to(image_BNC.dtype), norm.bias.to(image_BNC.dtype)
        return tokens_BTC, F.layer_norm(image_BNC, norm.normalized_shape, weight, bias, norm.eps)


class _LookAtImage:
    """Attention of a prompt's tokens to the image's, with keys and values folded into the tokens' side.

    The bias of the keys adds the same to every score of a token and drops out of its softmax.
    """

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._heads: int = attention.num_heads
        self._key_ADC = attention.k_proj.weight.unflatten(0, (self._heads, -1))
        self._value_ACD = attention.v_proj.weight.unflatten(0, (self._heads, -1)).transpose(1, 2)
        self._scale = 1.0 / math.sqrt(self._key_ADC.shape[1])

    def __call__(self, asking_BTC: Tensor, image_BNC: Tensor, position_1NC: Tensor) -> Tensor:
        query_BATD = self._attention.q_proj(asking_BTC).unflatten(2, (self._heads, -1)).transpose(1, 2)
        folded_BSC = (query_BATD @ self._key_ADC * self._scale).flatten(1, 2)
        shares_BSN = _scores(folded_BSC, image_BNC, position_1NC).softmax(dim=-1)
        seen_BSC = torch.matmul(shares_BSN.to(image_BNC.dtype), image_BNC).float()
        values_BATD = seen_BSC.unflatten(1, (self._heads, -1)) @ self._value_ACD
        values_BTC = values_BATD.transpose(1, 2).flatten(2) + self._attention.v_proj.bias
        return self._attention.out_proj(values_BTC)  # type: ignore[no-any-return]


class _LookAtTokens:
    """Attention of the image's tokens to a prompt's, with queries and output folded into the tokens' side.

    Shares of a head add up to one, so the bias of the output can be handed out among the values.
    """

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._heads: int = attention.num_heads
        self._query_ADC = attention.q_proj.weight.unflatten(0, (self._heads, -1))
        self._query_bias_AD1 = attention.q_proj.bias.unflatten(0, (self._heads, -1))[..., None]
        self._out_ADC = attention.out_proj.weight.t().unflatten(0, (self._heads, -1))
        self._out_bias_C = attention.out_proj.bias / self._heads
        self._scale = 1.0 / math.sqrt(self._query_ADC.shape[1])

    def __call__(
        self, image_BNC: Tensor, position_1NC: Tensor, asked_BTC: Tensor, tokens_BTC: Tensor
    ) -> Tensor:
        """Return the image's tokens with what they saw added."""
        key_BATD = self._attention.k_proj(asked_BTC).unflatten(2, (self._heads, -1)).transpose(1, 2)
        key_BATD = key_BATD * self._scale
        scores_BSN = _scores((key_BATD @ self._query_ADC).flatten(1, 2), image_BNC, position_1NC)
        scores_BATN = scores_BSN.unflatten(1, (self._heads, -1)) + key_BATD @ self._query_bias_AD1
        shares_BSN = scores_BATN.softmax(dim=2).flatten(1, 2)
        value_BATD = self._attention.v_proj(tokens_BTC).unflatten(2, (self._heads, -1)).transpose(1, 2)
        values_BSC = (value_BATD @ self._out_ADC + self._out_bias_C).flatten(1, 2)
        return _added(image_BNC, shares_BSN, values_BSC)


class _Upscaling:
    """Two transposed convolutions and the mixing of their channels into masks, four pixels a cell's side."""

    def __init__(self, upscaling: Any, dtype: torch.dtype) -> None:
        first, norm, _, second, _ = upscaling
        self._first = _per_cell(first, dtype)
        self._norm, self._eps = (norm.weight.to(dtype), norm.bias.to(dtype)), norm.eps
        self._second = _per_cell(second, dtype)

    def __call__(self, image_BHWC: Tensor, mixes_BMC: Tensor) -> Tensor:
        masks = [self._mixed(*one) for one in zip(image_BHWC, mixes_BMC, strict=True)]
        return torch.stack(masks)

    def _mixed(self, image_HWC: Tensor, mixes_MC: Tensor) -> Tensor:
        height, width, channels = image_HWC.shape
        coarse = onednn.linear(image_HWC.reshape(-1, channels), *self._first).view(height * width * 4, -1)
        coarse = F.gelu(F.layer_norm(coarse, coarse.shape[1:], *self._norm, self._eps))
        fine_PC = onednn.linear(coarse, *self._second, gelu=True).view(height * width * 16, -1)
        masks_MP = (mixes_MC.to(fine_PC.dtype) @ fine_PC.t()).float()
        masks = masks_MP.view(-1, height, width, 2, 2, 2, 2)
        return masks.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * height, 4 * width)


def _per_cell(convolution: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of the matrix product that a transposed convolution does in every cell."""
    kernel, stride = convolution.kernel_size, convolution.stride
    if kernel != stride:
        raise ValueError(f"found a kernel of {kernel} with a stride of {stride}, expected them equal")
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (in, out, 2, 2) -> (2 * 2 * out, in)
    bias = convolution.bias.repeat(weight.shape[0] // len(convolution.bias))
    return weight.to(dtype).contiguous(), bias.to(dtype)


def _scores(folded_BSC: Tensor, image_BNC: Tensor, position_1NC: Tensor) -> Tensor:
    """How much each token has to do with each of the image's, position and features together; fp32."""
    folded_BSC = folded_BSC.to(image_BNC.dtype)
    if len(image_BNC) == 1:
        placed_NC = (image_BNC + position_1NC)[0]
        return onednn.linear(folded_BSC.flatten(0, 1), placed_NC, None).view(*folded_BSC.shape[:2], -1).float()
    placed = onednn.linear(folded_BSC.flatten(0, 1), position_1NC[0], None).view(*folded_BSC.shape[:2], -1)
    pairs = zip(folded_BSC, image_BNC, placed, strict=True)
    return torch.stack([onednn.linear(one, image, None, added=at) for one, image, at in pairs]).float()


def _added(image_BNC: Tensor, shares_BSN: Tensor, values_BSC: Tensor) -> Tensor:
    """The image's tokens with shares of values added to them."""
    shares_BNS = shares_BSN.transpose(1, 2).to(image_BNC.dtype, memory_format=torch.contiguous_format)
    values_BCS = values_BSC.transpose(1, 2).to(image_BNC.dtype, memory_format=torch.contiguous_format)
    triples = zip(shares_BNS, values_BCS, image_BNC.expand(len(shares_BNS), -1, -1), strict=True)
    return torch.stack([onednn.linear(shares, values, None, added=image) for shares, values, image in triples])


def _tokens(map_BCHW: Tensor) -> Tensor:
    """(B, N, C), contiguous."""
    return map_BCHW.flatten(2).transpose(1, 2).contiguous()


def _unrepeated(dense_BCHW: Tensor) -> Tensor:
    """One entry where all are the same memory, as segment_anything gives without a mask prompt."""
    return dense_BCHW[:1] if dense_BCHW.stride(0) == 0 else dense_BCHW
