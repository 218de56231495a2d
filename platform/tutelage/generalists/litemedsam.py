"""LiteMedSAM: a segment-anything model taught on medical slices. It takes boxes and nothing else.

Encoder: the TinyViT of this room. Prompt encoder and mask decoder: segment_anything's own
modules. A slice is scaled so that its longest side is 256 pixels and padded to the right
and below. Measured on two CPU threads in bf16: 0.43 s a slice to embed, 0.02 to 0.04 s a
box to answer. It knows nothing about volumes, caches or structures by name.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Capabilities, Embedding, Slice, refuse_unanswerable
from tutelage.generalists.settings import Precision
from tutelage.generalists.tinyvit import EMBED_DIM, GRID_SIZE, IMAGE_SIZE, TinyViT
from tutelage.generalists.weights import Weights
from tutelage.records import Answer, Logits, Prompt

_PREPROCESSING = "longest side 256, bilinear, padded right and below, fused"

_SLICES_AT_ONCE = {"cpu": 1, "cuda": 16}
"""More slices at a time do not make a CPU faster, only its memory fuller."""

_BOXES_AT_ONCE = {"cpu": 16, "cuda": 64}
"""Bounds the decoder's memory: about 25 MB a box in fp32."""


class LiteMedSAM:
    """A loaded model; frozen, and the same answer to the same question."""

    capabilities = Capabilities(boxes=True)

    def __init__(self, weights: Weights, precision: Precision = "auto", device: str | None = None) -> None:
        """Load the weights onto a device, by default a GPU if there is one."""
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(kind)
        self.dtype = _dtype(precision, self.device)
        self.weights = weights.digest
        self.preprocessing = f"{_PREPROCESSING}, {str(self.dtype).removeprefix('torch.')}"
        self._encoder, self._prompt_encoder, self._decoder = load_parts(weights.path)
        self._encoder.fuse().to(self.device, self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._prompt_encoder.to(self.device)  # stays fp32: coordinates have no bits to spare
        self._decoder.to(self.device, self.dtype)

    @torch.inference_mode()
    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        """Look at slices in [0, 1]; they may differ in shape."""
        embeddings = []
        step = _SLICES_AT_ONCE[self.device.type]
        for start in range(0, len(slices_HW), step):
            some = slices_HW[start : start + step]
            images_B3HW = torch.stack([model_square(image_HW) for image_HW in some]).to(
                self.device, self.dtype
            )
            features_BCHW = self._encoder(images_B3HW.contiguous(memory_format=torch.channels_last))
            # Layer norm ends the encoder, so values stay near 1 and fp16 holds what bf16 can say.
            arrays = features_BCHW.to(torch.float16).contiguous().cpu().numpy()
            if not np.isfinite(arrays).all():
                raise GeneralistError(
                    f"litemedsam embeds a slice as values that are not numbers in {self.dtype}, expected "
                    "slices in [0, 1] and the published weights; check the image, or set precision: fp32"
                )
            embeddings += [
                Embedding(array, (image_HW.shape[0], image_HW.shape[1]))
                for array, image_HW in zip(arrays, some, strict=True)
            ]
        return embeddings

    @torch.inference_mode()
    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer boxes on one slice, several at a time.

        Raises:
            GeneralistError: if a prompt holds anything but a box.
        """
        refuse_unanswerable("litemedsam", self.capabilities, prompts)
        features_1CHW = torch.from_numpy(embedding.features_CHW).to(self.device, self.dtype)[None]
        answers = []
        step = _BOXES_AT_ONCE[self.device.type]
        for start in range(0, len(prompts), step):
            some = prompts[start : start + step]
            logits_BHW, ious_B = self._decoded(
                features_1CHW, model_corners(some, embedding.shape), embedding.shape
            )
            answers += [
                Answer(prompt, logits_HW, float(iou))
                for prompt, logits_HW, iou in zip(some, logits_BHW, ious_B, strict=True)
            ]
        return answers

    def _decoded(
        self, features_1CHW: Tensor, corners_B4: Tensor, shape: tuple[int, int]
    ) -> tuple[Logits, list[float]]:
        sparse, dense = self._prompt_encoder(points=None, boxes=corners_B4.to(self.device), masks=None)
        masks_B1HW, ious_B1 = self._decoder(
            image_embeddings=features_1CHW,
            image_pe=self._prompt_encoder.get_dense_pe().to(self.dtype),
            sparse_prompt_embeddings=sparse.to(self.dtype),
            dense_prompt_embeddings=dense.to(self.dtype),
            multimask_output=False,
        )
        height, width = _scaled(shape)
        square = (IMAGE_SIZE, IMAGE_SIZE)
        masks_B1HW = F.interpolate(masks_B1HW.float(), square, mode="bilinear", align_corners=False)
        masks_B1HW = masks_B1HW[..., :height, :width]
        masks_B1HW = F.interpolate(masks_B1HW, shape, mode="bilinear", align_corners=False)
        # A plain regression predicts the IoU: it can leave [0, 1].
        return masks_B1HW[:, 0].cpu().numpy(), ious_B1[:, 0].float().clamp(0, 1).tolist()


# --- from slices to the model's square ------------------------------------------------------


def _scaled(shape: tuple[int, int]) -> tuple[int, int]:
    """Pixels of a slice inside the model's square."""
    longest = max(shape)
    height, width = (max(1, round(n * IMAGE_SIZE / longest)) for n in shape)
    return height, width


def model_square(image_HW: Slice) -> Tensor:
    """(3, 256, 256): the slice scaled and padded, the same in all three colors."""
    height, width = _scaled((image_HW.shape[0], image_HW.shape[1]))
    image_11HW = torch.from_numpy(np.ascontiguousarray(image_HW, np.float32))[None, None]
    # Antialiasing changes nothing when enlarging; when shrinking it averages, as in training.
    scaled = F.interpolate(image_11HW, (height, width), mode="bilinear", align_corners=False, antialias=True)
    padded = F.pad(scaled, (0, IMAGE_SIZE - width, 0, IMAGE_SIZE - height))
    return padded[0].expand(3, -1, -1)


def model_corners(prompts: Sequence[Prompt], shape: tuple[int, int]) -> Tensor:
    """(B, 4): x and y of the first corner, then of the last, in pixels of the square."""
    down, right = (after / before for after, before in zip(_scaled(shape), shape, strict=True))
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    corners = [(b.start[1] * right, b.start[0] * down, b.stop[1] * right, b.stop[0] * down) for b in boxes]
    return torch.tensor(corners, dtype=torch.float32)


# --- loading ----------------------------------------------------------------------------------


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_parts(path: Path) -> tuple[TinyViT, Any, Any]:
    """Encoder, prompt encoder and mask decoder, loaded and frozen."""
    sam = _modeling()
    parts: dict[str, nn.Module] = {
        "image_encoder": (encoder := TinyViT()),
        "prompt_encoder": sam.PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(GRID_SIZE, GRID_SIZE),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        "mask_decoder": sam.MaskDecoder(
            num_multimask_outputs=3,
            transformer=sam.TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBED_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    }
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            part.load_state_dict(own, strict=True)
            part.eval().requires_grad_(False)
    except Exception as error:  # torch has no common base for what a wrong file can raise
        raise GeneralistError(
            f"{path} does not hold the weights of LiteMedSAM: {str(error).strip()[:300]}; "
            "expected its published state dict, correct generalist.weights"
        ) from error
    return encoder, parts["prompt_encoder"], parts["mask_decoder"]


def _modeling() -> ModuleType:
    """segment_anything.modeling without segment_anything, whose first import is torchvision."""
    name = "sam_modeling"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("segment_anything")
    if package is None or not package.submodule_search_locations:
        raise GeneralistError(
            "package segment-anything is not installed, expected version 1.0; "
            "run `pip install segment-anything==1.0`"
        )
    folder = Path(package.submodule_search_locations[0]) / "modeling"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise GeneralistError(f"{folder} cannot be imported; reinstall segment-anything==1.0")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
