"""A loaded specialist: an image in, probabilities or a mask on the image's own grid out.

It decides how much of an image is looked at once, and keeps memory bounded: answers come slice
by slice, and of a mask nothing is ever held for all classes and the whole volume. It does
not know where images come from.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.geometry import Grid
from tutelage.specialist.artifact import load
from tutelage.specialist.plan import Plan
from tutelage.specialist.preprocess import prepare, restored, shape_at
from tutelage.specialist.windows import kept_bytes, padded, slide
from tutelage.storage import Place

_WHOLE = 2.0
"""Volumes up to this many times a patch are looked at in one piece."""

_AT_ONCE = {"cpu": 1, "cuda": 4}
"""Windows that are looked at together; more than one keeps a GPU busy."""

_SHARE = 0.5
"""Of a GPU's free memory that the sums over windows may take; larger ones live in main memory."""


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

    @torch.inference_mode()
    def probability(self, image_CDHW: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Return (K, D, H, W) on the image's grid, the background first."""
        probability_KDHW = np.empty((self.plan.classes, *grid.shape), np.float32)
        for index, share_KHW in enumerate(self._slices(image_CDHW, grid)):
            probability_KDHW[:, index] = share_KHW.cpu().numpy()
        return probability_KDHW

    @torch.inference_mode()
    def mask(self, image_CDHW: NDArray[np.float32], grid: Grid) -> NDArray[np.uint8]:
        """Return label values on the image's grid."""
        mask_DHW = np.empty(grid.shape, np.uint8)
        for index, share_KHW in enumerate(self._slices(image_CDHW, grid)):
            mask_DHW[index] = largest(share_KHW).cpu().numpy()
        return mask_DHW

    def _slices(self, image_CDHW: NDArray[np.float32], grid: Grid) -> Iterator[torch.Tensor]:
        """Probabilities (K, H, W) of one slice of the image's grid after another."""
        image = torch.from_numpy(prepare(image_CDHW, grid, self.plan))
        logits = self._whole(image) if self._fits(image) else self._windows(image)
        shares = (logits_KHW.softmax(0) for logits_KHW in logits)
        return restored(shares, shape_at(grid, self.plan), grid.shape)

    def _logits(self, image_BCDHW: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits: torch.Tensor = self.network(image_BCDHW)
        return logits.float()

    def _fits(self, image_CDHW: torch.Tensor) -> bool:
        return image_CDHW[0].numel() <= _WHOLE * int(np.prod(self.plan.patch))

    def _whole(self, image_CDHW: torch.Tensor) -> Iterator[torch.Tensor]:
        depth, height, width = image_CDHW.shape[1:]
        fitted = pad_to_multiple(image_CDHW, self.plan)
        logits_KDHW = self._logits(fitted[None].to(self.device))[0, :, :depth, :height, :width]
        return iter(logits_KDHW.unbind(1))

    def _windows(self, image_CDHW: torch.Tensor) -> Iterator[torch.Tensor]:
        patch, keep = self.plan.patch, self.device
        if keep.type == "cuda":
            free, _ = torch.cuda.mem_get_info(keep)
            if kept_bytes(image_CDHW.shape[1:], patch, self.plan.classes) > _SHARE * free:
                keep = torch.device("cpu")
        at_once = _AT_ONCE[self.device.type]
        return slide(image_CDHW, patch, self._logits, self.device, keep=keep, at_once=at_once)


def largest(share_KHW: torch.Tensor) -> torch.Tensor:
    """Return the class with the largest share, the first of several, as bytes."""
    best_HW, values_HW = share_KHW[0].clone(), torch.zeros_like(share_KHW[0], dtype=torch.uint8)
    for value, share_HW in enumerate(share_KHW[1:], start=1):
        values_HW.masked_fill_(share_HW > best_HW, value)
        torch.maximum(best_HW, share_HW, out=best_HW)
    return values_HW


def pad_to_multiple(image_CDHW: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Pad the far ends until every stride divides the shape.

    An image of which the deepest level would see a single cell is padded to the patch: one
    cell has no deviation to be normalized by.
    """
    fitted = [n + -n % m for n, m in zip(image_CDHW.shape[1:], plan.multiple, strict=True)]
    return padded(image_CDHW, plan.patch if tuple(fitted) == plan.multiple else fitted)


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware multiplies it natively, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if native else torch.float32
