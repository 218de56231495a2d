"""A volume looked at in overlapping windows of the size of a patch; its answer comes slice by slice.

Windows, their order and their weights are those of MONAI's sliding_window_inference with
gaussian weights, and so are the sums, number by number. What differs is what is kept: MONAI's
holds every class of the whole volume until the end. Here windows go along D, and a slice
below which no further window begins is finished, handed out and forgotten, so that what is
kept is as deep as a patch. It does not know what becomes of the slices.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.specialist.parts import compute_importance_map
from tutelage.specialist.plan import Triple

OVERLAP = 0.5
"""Share of a window that the next one along an axis sees again."""

SIGMA = 0.125
"""Of the weights of a window's voxels, as a share of its sides."""


def slide(
    image_CDHW: Tensor,
    patch: Triple,
    look: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    keep: torch.device | None = None,
    at_once: int = 1,
) -> Iterator[Tensor]:
    """Yield the logits of every slice, (K, H, W), from the first to the last.

    Each is overwritten when the next one is asked for. `look` is given `at_once` windows on
    `device` and returns their logits, which are overwritten too. What is kept, `keep` keeps: by
    default that device.
    """
    _, depth, height, width = image_CDHW.shape
    filled_CDHW = padded(image_CDHW, patch)
    along_D, along_H, along_W = (starts(n, p) for n, p in zip(filled_CDHW.shape[1:], patch, strict=True))
    places = list(itertools.product(along_H, along_W))
    sums: _Sums | None = None
    for d, following in zip(along_D, [*along_D[1:], depth], strict=True):
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            windows = [_cut(filled_CDHW, (d, h, w), patch) for h, w in some]
            logits_BKDHW = look(torch.stack(windows).to(device))
            if sums is None:
                shape = (logits_BKDHW.shape[1], *filled_CDHW.shape[2:])
                sums = _Sums(shape, patch, keep or device, device)
            for (h, w), logits_KDHW in zip(some, logits_BKDHW, strict=True):
                sums.add(logits_KDHW, (d, h, w))
        assert sums is not None
        for index in range(d, min(following, depth)):
            yield sums.finished(index)[:, :height, :width]
            sums.forget(index)


class _Sums:
    """Weighted sums over windows, of as many slices as a patch has; slice n lies at n modulo that."""

    def __init__(
        self, shape_KHW: tuple[int, int, int], patch: Triple, keep: torch.device, device: torch.device
    ) -> None:
        self.patch = patch
        self.keep = keep
        self.weight_DHW = compute_importance_map(patch, mode="gaussian", sigma_scale=SIGMA, device=device)
        self.kept_DHW = self.weight_DHW.to(keep)
        self.sums_DKHW = torch.zeros((patch[0], *shape_KHW), device=keep)
        self.weights_DHW = torch.zeros((patch[0], *shape_KHW[1:]), device=keep)

    def add(self, logits_KDHW: Tensor, start: Triple) -> None:
        """Add one window."""
        d, h, w = start
        weighted_DKHW = logits_KDHW.mul_(self.weight_DHW).to(self.keep).transpose(0, 1)
        inside = (..., slice(h, h + self.patch[1]), slice(w, w + self.patch[2]))
        first = d % self.patch[0]
        fitting = self.patch[0] - first
        for there, here in (slice(first, None), slice(fitting)), (slice(first), slice(fitting, None)):
            self.sums_DKHW[there][inside].add_(weighted_DKHW[here])
            self.weights_DHW[there][inside].add_(self.kept_DHW[here])

    def finished(self, index: int) -> Tensor:
        """Return the mean of a slice that no further window will see."""
        at = index % self.patch[0]
        return self.sums_DKHW[at].div_(self.weights_DHW[at])

    def forget(self, index: int) -> None:
        """Make room for the slice that comes a patch later."""
        at = index % self.patch[0]
        self.sums_DKHW[at].zero_()
        self.weights_DHW[at].zero_()


def kept_bytes(shape: Sequence[int], patch: Triple, classes: int) -> int:
    """Return how much is kept while a volume of this shape is looked at."""
    height, width = (max(n, p) for n, p in zip(shape[1:], patch[1:], strict=True))
    return 4 * (classes + 1) * patch[0] * height * width


def count(shape: Sequence[int], patch: Triple) -> int:
    """Return how many windows a volume of this shape is looked at in."""
    return math.prod(len(starts(max(n, p), p)) for n, p in zip(shape, patch, strict=True))


def starts(length: int, patch: int) -> list[int]:
    """Return where windows begin along an axis; the last one ends where the axis does."""
    step = max(1, int(patch * (1 - OVERLAP)))
    count = 1 + math.ceil((length - patch) / step)
    return [min(n * step, length - patch) for n in range(count)]


def padded(image_CDHW: Tensor, least: Sequence[int]) -> Tensor:
    """Pad the far ends with the smallest value, as training does, to at least this shape."""
    d, h, w = (max(0, wanted - n) for n, wanted in zip(image_CDHW.shape[1:], least, strict=True))
    if not d + h + w:  # a copy of a large volume may not fit
        return image_CDHW
    return F.pad(image_CDHW, [0, w, 0, h, 0, d], value=float(image_CDHW.min()))


def _cut(image_CDHW: Tensor, start: Triple, patch: Triple) -> Tensor:
    inside = (slice(a, a + p) for a, p in zip(start, patch, strict=True))
    return image_CDHW[(slice(None), *inside)]
