"""A volume cut into slices, as a generalist sees them, and its questions and answers taken along.

It decides how brightness is windowed, how colors travel and what becomes of pixels that are
not square: a slice whose pixels are longer than wide by half or more is stretched until
they are square before it is looked at, boxes and points with it, and answers are sampled
back at the middle of its own pixels. Less than that, generalists are used to. Voxels are
windowed slice by slice when one is asked for, so that nothing is paid where embeddings are
cached. It knows no generalist.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Slice
from tutelage.geometry import Box
from tutelage.records import Logits, Point, Prompt

Voxels = NDArray[np.integer] | NDArray[np.floating]

_LONGEST = 1.5
"""How many times as long as wide a pixel may be before a slice is stretched."""

_COLORS = 3
_AXES = 3


@dataclass(frozen=True, slots=True)
class Plane:
    """The slices along one axis: all of them are of one shape."""

    depth: int
    """How many there are."""

    shape: tuple[int, int]
    """In the volume's own pixels."""

    seen: tuple[int, int]
    """As the generalist sees them."""

    @classmethod
    def along(cls, axis: int, shape: Sequence[int], spacing: Sequence[float]) -> "Plane":
        """Return the plane across one axis of a volume."""
        rows, columns = (a for a in range(_AXES) if a != axis)
        own = (shape[rows], shape[columns])
        mm = (spacing[rows], spacing[columns])
        fine = min(mm)
        if max(mm) < _LONGEST * fine:
            return cls(shape[axis], own, own)
        down, right = (max(1, round(n * s / fine)) for n, s in zip(own, mm, strict=True))
        return cls(shape[axis], own, (down, right))

    def asked(self, prompt: Prompt) -> Prompt:
        """Return a prompt as it is put to the generalist."""
        if self.seen == self.shape:
            return prompt
        scale = [seen / own for seen, own in zip(self.seen, self.shape, strict=True)]
        box = prompt.box
        if box is not None:
            box = Box(_scaled(box.start, scale), _scaled(box.stop, scale))
        points = tuple(Point(_scaled(point.at, scale), point.positive) for point in prompt.points)
        return replace(prompt, box=box, points=points)

    def answered(self, logits_HW: Logits) -> Logits:
        """Return an answer in the volume's own pixels."""
        return _stretched(logits_HW, self.shape)


class Slices:
    """One image: (D, H, W), or (C, D, H, W) with one channel or three colors."""

    def __init__(
        self, image: Voxels, percentiles: tuple[float, float], spacing: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> None:
        self._image_CDHW = image if image.ndim == _AXES + 1 else image[np.newaxis]
        self._percentiles = percentiles
        channels = len(self._image_CDHW)
        if channels not in (1, _COLORS):
            raise GeneralistError(
                f"an image has {channels} channels, expected one, or three colors; "
                "give a generalist the mean of them"
            )
        self.shape = tuple(self._image_CDHW.shape[1:])
        self.planes = tuple(Plane.along(axis, self.shape, spacing) for axis in range(_AXES))

    def seen_as(self, image: str, axis: int) -> str:
        """Name the slices along an axis for a cache: all that changes pixels is in the name."""
        low, high = self._percentiles
        plane = self.planes[axis]
        stretched = "" if plane.seen == plane.shape else f"-{plane.seen[0]}x{plane.seen[1]}"
        colors = "" if len(self._image_CDHW) == 1 else "-rgb"
        return f"{image}-{low:g}-{high:g}{colors}{stretched}"

    def at(self, axis: int, index: int) -> Slice:
        """Return one slice, (H, W), or (3, H, W) in colors."""
        # Always a copy: it is changed in place.
        slice_CHW = np.take(self._image_CDHW, index, axis=1 + axis).astype(np.float32)
        scaled_CHW = _within(slice_CHW, *self._limits)
        seen_CHW = _stretched(scaled_CHW, self.planes[axis].seen)
        return seen_CHW[0] if len(seen_CHW) == 1 else seen_CHW

    @cached_property
    def _limits(self) -> tuple[float, float]:
        return _limits(self._image_CDHW.astype(np.float32, copy=False), self._percentiles)


def windowed(image: Voxels, percentiles: tuple[float, float]) -> Slice:
    """Scale a volume to [0, 1] float32 between two percentiles of itself, colors together.

    Where they coincide (a nearly empty image) its extremes are taken; a constant image is 0.
    """
    scaled: Slice = image.astype(np.float32)
    return _within(scaled, *_limits(scaled, percentiles))


def _limits(image: Slice, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Values that become black and white."""
    low, high = (float(v) for v in np.percentile(image, percentiles))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return low, high


def _within(image: Slice, low: float, high: float) -> Slice:
    """Scale in place."""
    if high <= low:
        return np.zeros_like(image)
    image -= low
    image /= high - low
    return np.clip(image, 0.0, 1.0, out=image)


def _scaled(at: tuple[float, ...], scale: Sequence[float]) -> tuple[float, ...]:
    return tuple(v * s for v, s in zip(at, scale, strict=True))


def _stretched(image: Slice, shape: tuple[int, int]) -> Slice:
    """Resample the last two axes linearly, by the middles of pixels; the edges are continued."""
    for axis, wanted in zip((-2, -1), shape, strict=True):
        have = image.shape[axis]
        if have == wanted:
            continue
        middles = np.clip((np.arange(wanted) + 0.5) * have / wanted - 0.5, 0, have - 1)
        before = np.floor(middles).astype(np.intp)
        after = np.minimum(before + 1, have - 1)
        share = (middles - before).astype(np.float32)
        if axis == -2:
            share = share[:, np.newaxis]
        left, right = np.take(image, before, axis), np.take(image, after, axis)
        image = left + share * (right - left)
    return image
