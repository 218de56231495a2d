"""From an image as it was stored to what a specialist sees, and back.

Intensities: each channel is clipped to its own 0.5 and 99.5 percentiles, then has mean 0
and deviation 1. Geometry: trilinear to the plan's spacing, labels one class at a time.
It does not know what the network makes of it.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.specialist.plan import Plan, Triple

PERCENTILES = (0.5, 99.5)
"""Of a channel's intensities, between which they are kept."""


def shape_at(grid: Grid, plan: Plan) -> tuple[int, int, int]:
    """Return the shape of a volume at the plan's spacing."""
    d, h, w = (
        max(1, round(n * s / wanted))
        for n, s, wanted in zip(grid.shape, grid.spacing, plan.spacing, strict=True)
    )
    return d, h, w


def prepare(image_CDHW: NDArray[np.float32], grid: Grid, plan: Plan) -> NDArray[np.float32]:
    """Return the image as the network sees it, (C, D, H, W) at the plan's spacing.

    Raises:
        ArchiveError: it has not as many channels as the plan.
    """
    if len(image_CDHW) != plan.channels_in:
        raise ArchiveError(
            f"the image has {len(image_CDHW)} channels, the specialist expects {plan.channels_in}; "
            "give images like those it learns from"
        )
    normal = np.stack([_normalized(channel) for channel in image_CDHW])
    return _resampled(torch.from_numpy(normal), shape_at(grid, plan)).numpy()


def resample_label(label_DHW: NDArray[np.integer], grid: Grid, plan: Plan) -> NDArray[np.uint8]:
    """Return a label at the plan's spacing: the class with the largest interpolated share.

    Interpolation asks the nearest voxels only, so a label made coarser by more than two loses
    what is thinner than the gaps between them.
    """
    shape = shape_at(grid, plan)
    best, label = torch.full(shape, -1.0), torch.zeros(shape, dtype=torch.uint8)
    for value in range(plan.classes):  # one class at a time: memory does not grow with their number
        here = torch.from_numpy((label_DHW == value).astype(np.float32))
        share = _resampled(here[None], shape)[0]
        wins = share > best
        label[wins], best[wins] = value, share[wins]
    return label.numpy()


def resample_weight(weight_DHW: NDArray[np.uint8], grid: Grid, plan: Plan) -> NDArray[np.float32]:
    """Return voxel weights, 0 to 255, as shares in [0, 1] at the plan's spacing."""
    share = torch.from_numpy(weight_DHW.astype(np.float32) / 255)
    return _resampled(share[None], shape_at(grid, plan))[0].numpy()


def restored(slices_KHW: Iterable[torch.Tensor], source: Triple, shape: Triple) -> Iterator[torch.Tensor]:
    """Yield one slice (K, H, W) after another of what lies at the plan's spacing, on the image's grid.

    Trilinear, as `prepare` is, first within slices and then between two of them, which are all
    that is held; what comes must stay what it is that long. `source` is its shape, `shape` that
    of what goes.
    """
    coming = (_flat(slice_KHW, shape[1:]) for slice_KHW in slices_KHW)
    if source[0] == shape[0]:
        yield from coming
        return
    low, high, at = next(coming), None, 0
    for index in range(shape[0]):
        place = min(max(0.0, (index + 0.5) * source[0] / shape[0] - 0.5), source[0] - 1.0)
        while at < int(place):
            low = next(coming) if high is None else high
            high, at = None, at + 1
        if place > at and high is None:
            high = next(coming)
        yield low if high is None else torch.lerp(low, high, place - at)


def _normalized(channel_DHW: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(channel_DHW, PERCENTILES)
    if low == high:  # nearly all one value: what differs from it is all there is to see
        low, high = channel_DHW.min(), channel_DHW.max()
    if low == high:
        return np.zeros(channel_DHW.shape, np.float32)
    normal: NDArray[np.float32] = np.clip(channel_DHW, low, high).astype(np.float32, copy=False)
    mean, deviation = normal.mean(), normal.std()
    normal -= mean  # in place: a second copy of a large volume may not fit
    normal /= deviation + 1e-6
    return normal


def _flat(slice_KHW: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if tuple(slice_KHW.shape[1:]) == shape:
        return slice_KHW
    return F.interpolate(slice_KHW[None], size=shape, mode="bilinear", align_corners=False)[0]


def _resampled(x_CDHW: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    if tuple(x_CDHW.shape[1:]) == tuple(shape):
        return x_CDHW
    return F.interpolate(x_CDHW[None], size=shape, mode="trilinear", align_corners=False)[0]
