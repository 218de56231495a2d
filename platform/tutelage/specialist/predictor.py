"""A loaded specialist: an image in, probabilities or a mask on the image's own grid out.

It decides how much of an image is looked at once, and keeps memory bounded: windows and
their sum live in main memory, and masks are made one class at a time. It does not know
where images come from.
"""

from collections.abc import Sequence

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
        image = torch.from_numpy(prepare(image_CDHW, grid, self.plan))
        logits = self._whole(image) if self._fits(image) else self._windows(image)
        for slice_KHW in logits.unbind(1):  # in place: a second copy of a large volume may not fit
            slice_KHW.copy_(slice_KHW.softmax(0))
        return logits

    def _logits(self, image_BCDHW: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits: torch.Tensor = self.network(image_BCDHW)
        return logits.float()

    def _fits(self, image_CDHW: torch.Tensor) -> bool:
        return image_CDHW[0].numel() <= _WHOLE * int(np.prod(self.plan.patch))

    def _whole(self, image_CDHW: torch.Tensor) -> torch.Tensor:
        shape = image_CDHW.shape[1:]
        padded = pad_to_multiple(image_CDHW, self.plan)
        logits = self._logits(padded[None].to(self.device))[0].cpu()
        return logits[:, : shape[0], : shape[1], : shape[2]]

    def _windows(self, image_CDHW: torch.Tensor) -> torch.Tensor:
        shape = image_CDHW.shape[1:]
        padded = _padded(image_CDHW, self.plan.patch)
        logits: torch.Tensor = sliding_window_inference(
            padded[None], self.plan.patch, 1, self._logits, overlap=0.5, mode="gaussian",
            sw_device=self.device, device=torch.device("cpu"),
        )  # fmt: skip
        return logits[0, :, : shape[0], : shape[1], : shape[2]]


def pad_to_multiple(image_CDHW: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Pad the far ends until every stride divides the shape.

    An image of which the deepest level would see a single cell is padded to the patch: one
    cell has no deviation to be normalized by.
    """
    fitted = [n + -n % m for n, m in zip(image_CDHW.shape[1:], plan.multiple, strict=True)]
    return _padded(image_CDHW, plan.patch if tuple(fitted) == plan.multiple else fitted)


def _padded(image_CDHW: torch.Tensor, least: Sequence[int]) -> torch.Tensor:
    """Pad the far ends with the smallest value, as training does, to at least this shape."""
    d, h, w = (max(0, wanted - n) for n, wanted in zip(image_CDHW.shape[1:], least, strict=True))
    return F.pad(image_CDHW, [0, w, 0, h, 0, d], value=float(image_CDHW.min()))


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware multiplies it natively, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if native else torch.float32
