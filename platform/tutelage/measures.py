"""Plain numbers about masks: one definition of each, used by everything.

Surface: the voxels of a mask that a 6-connected erosion removes; the volume's border
counts as outside. A volume of one slice is measured as the flat image it is.

Distances run from every surface voxel of one mask to the nearest of the other, between
voxel centres, in the unit of `spacing` (millimetres; voxels with spacing 1).
HD95 is the larger of the two directed 95th percentiles, ASD the mean over both
directions' distances, NSD the share of both surfaces that lies within the tolerance.

Empty masks: if both are empty they agree (overlaps and NSD 1, distances 0); if one is,
overlaps and NSD are 0 and distances are the diagonal of the volume, the largest that any
answer could have earned. A mean over cases should leave out the pairs where both are
empty: `Agreement.absent` marks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]

NSD_TOLERANCE_MM = 3.0
"""Boundary error that a second reader would not mind, unless a caller knows better."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well one mask matches its reference."""

    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    nsd: float
    hd95_voxels: float
    asd_voxels: float
    absent: bool
    """Neither mask holds anything: right, but no evidence of skill."""


def compare(
    mask: Mask,
    reference: Mask,
    spacing: Sequence[float],
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> Agreement:
    """Measure everything at once; each surface is found a single time."""
    flat_spacing, a, b = _drop_flat_axes(spacing, mask, reference)
    in_mm = surface_distances(a, b, flat_spacing)
    in_voxels = surface_distances(a, b, [1.0] * a.ndim)
    return Agreement(
        dice=dice(a, b),
        jaccard=jaccard(a, b),
        hd95_mm=_hd95(*in_mm),
        asd_mm=_mean(*in_mm),
        nsd=_share_within(*in_mm, tolerance_mm) if a.any() == b.any() else 0.0,
        hd95_voxels=_hd95(*in_voxels),
        asd_voxels=_mean(*in_voxels),
        absent=not (a.any() or b.any()),
    )


def dice(a: Mask, b: Mask) -> float:
    """Twice the overlap over the sum of both."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def jaccard(a: Mask, b: Mask) -> float:
    """Overlap over union, also called IoU."""
    union = int((a | b).sum())
    return 1.0 if union == 0 else int((a & b).sum()) / union


def hd95(a: Mask, b: Mask, spacing: Sequence[float]) -> float:
    """95th percentile Hausdorff distance, in the unit of `spacing`."""
    flat_spacing, a, b = _drop_flat_axes(spacing, a, b)
    return _hd95(*surface_distances(a, b, flat_spacing))


def asd(a: Mask, b: Mask, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance, in the unit of `spacing`."""
    flat_spacing, a, b = _drop_flat_axes(spacing, a, b)
    return _mean(*surface_distances(a, b, flat_spacing))


def nsd(a: Mask, b: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Normalized surface Dice: the share of both surfaces within `tolerance`."""
    flat_spacing, a, b = _drop_flat_axes(spacing, a, b)
    if a.any() != b.any():
        return 0.0
    return _share_within(*surface_distances(a, b, flat_spacing), tolerance)


def surface_distances(a: Mask, b: Mask, spacing: Sequence[float]) -> tuple[Distances, Distances]:
    """From each surface voxel of one mask to the other's surface, both ways.

    If only one mask is empty both directions hold the volume's diagonal.
    """
    if not a.any() and not b.any():
        nothing = np.zeros(0)
        return nothing, nothing
    if not a.any() or not b.any():
        diagonal = np.array([np.linalg.norm(np.asarray(a.shape) * np.asarray(spacing))])
        return diagonal, diagonal
    where = _crop(a | b)
    surface_a, surface_b = surface(a[where]), surface(b[where])
    to_b = ndimage.distance_transform_edt(~surface_b, sampling=spacing)
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=spacing)
    return to_b[surface_a], to_a[surface_b]


def surface(mask: Mask) -> Mask:
    """Return the voxels of a mask that touch its outside."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the connected pieces of a mask from 1, and count their voxels.

    Pieces that touch only at a corner or an edge are separate.
    """
    numbered, count = ndimage.label(mask)
    if count == 1:  # as most structures are
        sizes = np.array([np.count_nonzero(mask)])
    else:
        sizes = np.bincount(numbered[numbered > 0], minlength=count + 1)[1:]
    return numbered.astype(np.int32, copy=False), sizes.astype(np.int64, copy=False)


def largest_components(mask: Mask, keep: int = 1, min_share: float = 0.0) -> Mask:
    """Keep the `keep` largest pieces that reach `min_share` of the largest one's size."""
    numbered, sizes = components(mask)
    if len(sizes) == 0:
        return mask.copy()
    ranked = np.argsort(-sizes, kind="stable")[:keep]
    wanted = [i + 1 for i in ranked if sizes[i] >= min_share * sizes.max()]
    return np.isin(numbered, wanted)


def _drop_flat_axes(spacing: Sequence[float], a: Mask, b: Mask) -> tuple[list[float], Mask, Mask]:
    if a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape} cannot be compared")
    kept = [axis for axis, n in enumerate(a.shape) if n > 1] or [0]
    shape = [a.shape[axis] for axis in kept]
    return [spacing[axis] for axis in kept], a.reshape(shape), b.reshape(shape)


def _crop(mask: Mask) -> tuple[slice, ...]:
    """Bounds of a mask: nothing outside them changes a surface or a nearest voxel."""
    return tuple(ndimage.find_objects(mask.astype(np.uint8))[0])


def _hd95(ab: Distances, ba: Distances) -> float:
    if len(ab) == 0:
        return 0.0
    return float(max(np.percentile(ab, 95), np.percentile(ba, 95)))


def _mean(ab: Distances, ba: Distances) -> float:
    return float(np.concatenate([ab, ba]).mean()) if len(ab) else 0.0


def _share_within(ab: Distances, ba: Distances, tolerance: float) -> float:
    both = np.concatenate([ab, ba])
    return float((both <= tolerance).mean()) if len(both) else 1.0
