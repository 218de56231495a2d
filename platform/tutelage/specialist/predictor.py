"""A loaded specialist: an image in, probabilities or a mask on the image's own grid out.

It looks by windows of the size of a patch, however small an image is: one that is seen whole
would have to be padded, and no network learned from such a rim (polyps of 98 pixels in place of
96: .09 of Dice). It keeps memory bounded: answers come slice by slice, and of a mask nothing is
ever held for all classes and the whole volume. It does not know where images come from, nor who
else looks through the same network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import StoppedError
from tutelage.geometry import Grid
from tutelage.specialist.artifact import load
from tutelage.specialist.looking import Look, Stop, never
from tutelage.specialist.preprocess import prepare, restored, shape_at
from tutelage.specialist.windows import count, kept_bytes, slide
from tutelage.storage import Place

Progress = Callable[[int, int], None]
"""Called with windows done and windows in all."""

_AT_ONCE = {"cpu": 1, "cuda": 4}
"""Windows that are looked at together; more than one keeps a GPU busy."""

_SHARE = 0.5
"""Of a GPU's free memory that the sums over windows may take; larger ones live in main memory."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A mask, and how sure the specialist is of it."""

    mask_DHW: NDArray[np.uint8]
    """Label values on the image's grid."""

    confidence: tuple[float | None, ...]
    """Mean probability of a class over the voxels in which it is the most probable one, by label value, the
    background first; None where it is so in no voxel."""

    @property
    def finite(self) -> bool:
        """Whether all probabilities were numbers; where one is not, the background is said to win."""
        return bool(np.isfinite([mean for mean in self.confidence if mean is not None]).all())


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
        slices = self._slices(self.prepared(image_CDHW, grid), grid, self.logits)
        for index, share_KHW in enumerate(slices):
            probability_KDHW[:, index] = share_KHW.cpu().numpy()
        return probability_KDHW

    @torch.inference_mode()
    def mask(self, image_CDHW: NDArray[np.float32], grid: Grid) -> NDArray[np.uint8]:
        """Return label values on the image's grid."""
        mask_DHW = np.empty(grid.shape, np.uint8)
        slices = self._slices(self.prepared(image_CDHW, grid), grid, self.logits)
        for index, share_KHW in enumerate(slices):
            mask_DHW[index] = largest(share_KHW).cpu().numpy()
        return mask_DHW

    def prepared(self, image_CDHW: NDArray[np.float32], grid: Grid) -> torch.Tensor:
        """Return an image as the network sees it, for `answer`.

        Raises:
            ArchiveError: the specialist learned from images with another number of channels.
        """
        return torch.from_numpy(prepare(image_CDHW, grid, self.plan))

    @torch.inference_mode()
    def answer(
        self,
        prepared_CDHW: torch.Tensor,
        grid: Grid,
        look: Look | None = None,
        stop: Stop = never,
        progress: Progress | None = None,
    ) -> Answer:
        """Return the mask that `mask` returns, with how sure it is, for somebody who may stop waiting.

        `look` takes windows and returns their logits, in place of this specialist's own network: where
        several look through it together.

        Raises:
            StoppedError: `stop`, which is asked before every window and every slice, said so.
        """
        windows = count(prepared_CDHW.shape[1:], self.plan.patch)
        watched = _Watched(look or self.logits, stop, progress, windows)
        mask_DHW = np.empty(grid.shape, np.uint8)
        voxels_K, sums_K = np.zeros(self.plan.classes, np.int64), np.zeros(self.plan.classes)
        for index, share_KHW in enumerate(self._slices(prepared_CDHW, grid, watched)):
            watched.go_on()
            best_HW, values_HW = _best(share_KHW)
            mask_DHW[index] = values_HW.cpu().numpy()
            _add_up(mask_DHW[index].ravel(), best_HW.cpu().numpy().ravel(), voxels_K, sums_K)
        means = (float(total / n) if n else None for total, n in zip(sums_K, voxels_K, strict=True))
        return Answer(mask_DHW, tuple(means))

    def logits(self, image_BCDHW: torch.Tensor) -> torch.Tensor:
        """Return what the network makes of images as it sees them; call it in inference mode."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits: torch.Tensor = self.network(image_BCDHW)
        return logits.float()

    def _slices(self, image_CDHW: torch.Tensor, grid: Grid, look: Look) -> Iterator[torch.Tensor]:
        """Probabilities (K, H, W) of one slice of the image's grid after another."""
        shares = (logits_KHW.softmax(0) for logits_KHW in self._windows(image_CDHW, look))
        return restored(shares, shape_at(grid, self.plan), grid.shape)

    def _windows(self, image_CDHW: torch.Tensor, look: Look) -> Iterator[torch.Tensor]:
        patch, keep = self.plan.patch, self.device
        if keep.type == "cuda":
            free, _ = torch.cuda.mem_get_info(keep)
            if kept_bytes(image_CDHW.shape[1:], patch, self.plan.classes) > _SHARE * free:
                keep = torch.device("cpu")
        at_once = _AT_ONCE[self.device.type]
        return slide(image_CDHW, patch, look, self.device, keep=keep, at_once=at_once)


class _Watched:
    """A look through the network that is counted, and given up when nobody waits any more."""

    def __init__(self, look: Look, stop: Stop, progress: Progress | None, total: int) -> None:
        self._look, self._stop, self._progress = look, stop, progress
        self._done, self._total = 0, total

    def __call__(self, windows_BCDHW: torch.Tensor) -> torch.Tensor:
        self.go_on()
        logits_BKDHW = self._look(windows_BCDHW)
        self._done += len(windows_BCDHW)
        if self._progress is not None:
            self._progress(self._done, self._total)
        return logits_BKDHW

    def go_on(self) -> None:
        if self._stop():
            raise StoppedError(f"nobody waits any more; it ended after {self._done} of {self._total} windows")


def largest(share_KHW: torch.Tensor) -> torch.Tensor:
    """Return the class with the largest share, the first of several, as bytes."""
    return _best(share_KHW)[1]


def _best(share_KHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest share, and the class that has it."""
    best_HW, values_HW = share_KHW[0].clone(), torch.zeros_like(share_KHW[0], dtype=torch.uint8)
    for value, share_HW in enumerate(share_KHW[1:], start=1):
        values_HW.masked_fill_(share_HW > best_HW, value)
        torch.maximum(best_HW, share_HW, out=best_HW)
    return best_HW, values_HW


def _add_up(
    values_N: NDArray[np.uint8],
    shares_N: NDArray[np.float32],
    voxels_K: NDArray[np.int64],
    sums_K: NDArray[np.float64],
) -> None:
    """Add a slice to the voxels and shares of each class; the background, most of it, is what is left."""
    inside = np.flatnonzero(values_N)
    values, shares = values_N[inside], shares_N[inside].astype(np.float64)
    voxels_K += np.bincount(values, minlength=len(voxels_K))
    sums_K += np.bincount(values, shares, minlength=len(sums_K))
    voxels_K[0] += len(values_N) - len(inside)
    sums_K[0] += shares_N.sum(dtype=np.float64) - shares.sum()


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware multiplies it natively, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if native else torch.float32
