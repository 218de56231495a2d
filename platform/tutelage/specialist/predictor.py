"""A loaded specialist: an image in, probabilities or a mask on the image's own grid out."""

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch.nn import functional as F

from tutelage.geometry import Grid
from tutelage.specialist.artifact import load
from tutelage.specialist.plan import Plan
from tutelage.specialist.preprocess import prepare, restore
from tutelage.storage import Place

_WHOLE = 2.0
"""Volumes up to this many times a patch are looked at in one piece."""


class Predictor:
    """A specialist with its weights loaded once."""

    def __init__(self, folder: Place | str) -> None:
        network, self.plan, self.digest = load(Place.of(folder))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = autocast_dtype(self.device)
        self.network = network.to(self.device)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names by label value, from 1."""
        return self.plan.structures

    def probability(self, image_CDHW: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Return (K, D, H, W) on the image's grid, the background first."""
        return restore(self._at_plan(image_CDHW, grid), grid.shape).numpy()

    def mask(self, image_CDHW: NDArray[np.float32], grid: Grid) -> NDArray[np.uint8]:
        """Return label values on the image's grid, one class at a time to spare memory."""
        probability_KDHW = self._at_plan(image_CDHW, grid)
        best_DHW = torch.full(grid.shape, -1.0)
        mask_DHW = torch.zeros(grid.shape, dtype=torch.uint8)
        for value in range(self.plan.classes):
            share_DHW = restore(probability_KDHW[value : value + 1], grid.shape)[0]
            wins = share_DHW > best_DHW
            mask_DHW[wins], best_DHW[wins] = value, share_DHW[wins]
        return mask_DHW.numpy()

    @torch.inference_mode()
    def _at_plan(self, image_CDHW: NDArray[np.float32], grid: Grid) -> torch.Tensor:
        image = torch.from_numpy(prepare(image_CDHW, grid, self.plan)).to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits = self._whole(image) if self._fits(image) else self._windows(image)
        return logits.float().softmax(0).cpu()

    def _fits(self, image_CDHW: torch.Tensor) -> bool:
        return image_CDHW[0].numel() <= _WHOLE * int(np.prod(self.plan.patch))

    def _whole(self, image_CDHW: torch.Tensor) -> torch.Tensor:
        shape = image_CDHW.shape[1:]
        padded = pad_to_multiple(image_CDHW, self.plan)
        logits: torch.Tensor = self.network(padded[None])[0]
        return logits[:, : shape[0], : shape[1], : shape[2]]

    def _windows(self, image_CDHW: torch.Tensor) -> torch.Tensor:
        logits = sliding_window_inference(
            image_CDHW[None], self.plan.patch, 1, self.network, overlap=0.5, mode="gaussian",
            padding_mode="replicate",
        )  # fmt: skip
        assert isinstance(logits, torch.Tensor)
        return logits[0]


def pad_to_multiple(image_CDHW: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Pad the far ends with the smallest value until every stride divides the shape."""
    after = [-n % m for n, m in zip(image_CDHW.shape[1:], plan.multiple, strict=True)]
    ends = [0, after[2], 0, after[1], 0, after[0]]
    return F.pad(image_CDHW, ends, value=float(image_CDHW.min()))


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware multiplies it natively, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if native else torch.float32
