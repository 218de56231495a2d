"""How opinions about voxels become one probability and one variance.

An opinion is one variant, along one axis, of one generalist. What is asked on a slice is an
opinion on every voxel of that slice; on other slices the same axis abstains, even if it was
asked about the structure there: it counts neither as yes nor as no. So the mean of a voxel
is over the opinions on the slices through it, and zero where there is none. It knows no
generalist and no prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tutelage.records import Logits, Region

Shares = NDArray[np.uint8]
"""Shares of one in 255ths."""

_LEAST = -6.25
"""The logit below which a share rounds to 0 of 255."""

_SLAB = 32
"""Slices that are fused together: bounds memory, of which floats take eight times what shares do."""

_HALF = 127
"""A share above this is above a half."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """What the variants of one generalist say about one structure on one slice."""

    axis: int
    index: int
    opinions: int
    start: tuple[int, int]
    """First pixel of the box outside of which no variant says anything."""

    mean_HW: Shares
    variance_HW: Shares | None
    """None where a single variant was asked."""

    @property
    def first(self) -> tuple[int, int, int]:
        """First voxel in the volume, along (D, H, W)."""
        at = [*self.start]
        at.insert(self.axis, self.index)
        return at[0], at[1], at[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels in the volume, along (D, H, W)."""
        d, h, w = np.expand_dims(self.mean_HW, self.axis).shape
        return d, h, w


def patch(axis: int, index: int, variants: Sequence[Logits]) -> Patch:
    """Join the variants of one structure on one slice."""
    over_HW = variants[0] > _LEAST
    for logits_HW in variants[1:]:
        over_HW |= logits_HW > _LEAST
    rows, columns = _bounds(over_HW, 1), _bounds(over_HW, 0)
    shares_VHW = np.stack([expit(logits_HW[rows, columns]) for logits_HW in variants])
    variance_HW = None if len(variants) == 1 else _rounded(4.0 * shares_VHW.var(axis=0))
    mean_HW = _rounded(shares_VHW.mean(axis=0))
    return Patch(axis, index, len(variants), (rows.start, columns.start), mean_HW, variance_HW)


def fuse(patches: Sequence[Patch]) -> Region:
    """Join what was said about one structure on all slices, along all axes, by all generalists."""
    filled = [one for one in patches if one.mean_HW.size]
    if not filled:
        nothing = np.zeros((0, 0, 0), np.uint8)
        return Region((0, 0, 0), nothing, nothing)
    starts = np.array([one.first for one in filled])
    stops = starts + [one.shape for one in filled]
    d, h, w = (int(n) for n in starts.min(axis=0))
    shape = tuple(int(n) for n in stops.max(axis=0) - (d, h, w))
    region = Region((d, h, w), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
    if len({(one.axis, one.index) for one in patches}) == len(patches) == sum(p.axis == 0 for p in patches):
        _copy(filled, region)
    else:
        _average(patches, filled, region)
    return region


def consensus(regions: Sequence[Region]) -> float:
    """Mean IoU over all pairs of what different generalists hold for one structure.

    1 where only one was asked, and where none found anything.
    """
    ious = [_iou(one, other) for one, other in combinations(regions, 2)]
    return float(np.mean(ious)) if ious else 1.0


def _copy(patches: Sequence[Patch], region: Region) -> None:
    """Slices along D, each with one patch at most: nothing is to be averaged."""
    for one in patches:
        where = _within(one, region)
        region.mean_DHW[where] = one.mean_HW[np.newaxis]
        if one.variance_HW is not None:
            region.variance_DHW[where] = one.variance_HW[np.newaxis]


def _average(patches: Sequence[Patch], filled: Sequence[Patch], region: Region) -> None:
    """First and second moments, a slab at a time."""
    counts = [np.zeros(n, np.float32) for n in region.mean_DHW.shape]
    for one in patches:
        at = one.index - region.start[one.axis]
        if 0 <= at < len(counts[one.axis]):
            counts[one.axis][at] += one.opinions
    along_d, along_h, along_w = counts
    for first in range(0, len(along_d), _SLAB):
        slab = slice(first, min(first + _SLAB, len(along_d)))
        count_DHW = along_d[slab, None, None] + along_h[:, None] + along_w
        first_DHW, second_DHW = np.zeros_like(count_DHW), np.zeros_like(count_DHW)
        for one in filled:
            _add(one, region, slab, first_DHW, second_DHW)
        np.maximum(count_DHW, 1.0, out=count_DHW)
        first_DHW /= count_DHW
        second_DHW /= count_DHW
        region.mean_DHW[slab] = _rounded(first_DHW)
        region.variance_DHW[slab] = _rounded(4.0 * (second_DHW - first_DHW**2))


def _add(
    one: Patch,
    region: Region,
    slab: slice,
    first_DHW: NDArray[np.float32],
    second_DHW: NDArray[np.float32],
) -> None:
    """Add a patch, times its opinions, to the moments of a slab."""
    depth, rows, columns = _within(one, region)
    low, high = max(depth.start, slab.start), min(depth.stop, slab.stop)
    if low >= high:
        return
    there = slice(low - depth.start, high - depth.start)
    here = (slice(low - slab.start, high - slab.start), rows, columns)
    mean_DHW = np.expand_dims(one.mean_HW, one.axis)[there] / np.float32(255)
    first_DHW[here] += one.opinions * mean_DHW
    second_DHW[here] += one.opinions * mean_DHW**2
    if one.variance_HW is not None:
        variance_DHW = np.expand_dims(one.variance_HW, one.axis)[there] / np.float32(4 * 255)
        second_DHW[here] += one.opinions * variance_DHW


def _within(one: Patch, region: Region) -> tuple[slice, slice, slice]:
    """Where a patch lies in a region."""
    d, h, w = (slice(a - b, a - b + n) for a, b, n in zip(one.first, region.start, one.shape, strict=True))
    return d, h, w


def _iou(one: Region, other: Region) -> float:
    mask, reference = one.mean_DHW > _HALF, other.mean_DHW > _HALF
    start = np.maximum(one.start, other.start)
    stop = np.minimum(np.add(one.start, mask.shape), np.add(other.start, reference.shape))
    both = 0
    if (start < stop).all():
        both = int((_part(mask, one.start, start, stop) & _part(reference, other.start, start, stop)).sum())
    union = int(mask.sum()) + int(reference.sum()) - both
    return both / union if union else 1.0


def _part(
    mask: NDArray[np.bool_], origin: tuple[int, ...], start: NDArray[np.intp], stop: NDArray[np.intp]
) -> NDArray[np.bool_]:
    return mask[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))]


def _bounds(over_HW: NDArray[np.bool_], across: int) -> slice:
    """From the first row or column that holds anything to the last; empty if none does."""
    found = np.flatnonzero(over_HW.any(axis=across))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _rounded(shares: NDArray[np.floating]) -> Shares:
    rounded: Shares = np.rint(np.clip(shares, 0.0, 1.0) * 255).astype(np.uint8)
    return rounded
