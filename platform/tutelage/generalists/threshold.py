"""The small honest generalist: what is as bright as the middle of the box belongs to it.

No weights, no learning, no torch: it is there to try the platform without a model and to
be beaten. It decides by brightness and connection alone, so it is fair on bright lone
organs and poor where neighbors look alike, and its opinion of itself is mere contrast.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.generalists.base import Capabilities, Embedding, Slice, refuse_unanswerable
from tutelage.geometry import Box
from tutelage.records import Answer, Prompt

Region = NDArray[np.bool_]

_SMOOTHING_PIXELS = 1.0
_TOLERANCE = (0.04, 0.3)
"""Least and most that a pixel may differ from the level, in units of the window."""

_SPREADS = 2.5
"""The tolerance is at least so many robust standard deviations of the seed."""

_RING_PIXELS = 3
"""How far around a box its surroundings reach."""

_STEEPNESS = 4.0
"""Logit of a pixel that is exactly at the level."""

_OUTSIDE = -10.0
"""Logit of what cannot belong."""


class Threshold:
    """Region growing inside a box, or from positive clicks."""

    capabilities = Capabilities(boxes=True, points=True)
    weights = "none-threshold"
    preprocessing = "as it is, float16"

    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        """Keep the slices themselves, of colors their brightness."""
        gray_HW = [image if image.ndim == 2 else image.mean(axis=0) for image in slices_HW]
        return [
            Embedding(image_HW[None].astype(np.float16), (image_HW.shape[0], image_HW.shape[1]))
            for image_HW in gray_HW
        ]

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer boxes and clicks on one slice.

        Raises:
            GeneralistError: if a prompt holds neither.
        """
        refuse_unanswerable("threshold", self.capabilities, prompts)
        image_HW = embedding.features_CHW[0].astype(np.float32)
        smooth_HW = ndimage.gaussian_filter(image_HW, _SMOOTHING_PIXELS)
        return [_answer(smooth_HW, prompt) for prompt in prompts]


def _answer(smooth_HW: Slice, prompt: Prompt) -> Answer:
    allowed_HW, seed_HW = _allowed(smooth_HW.shape, prompt), _seed(smooth_HW.shape, prompt)
    if not (seed_HW & allowed_HW).any():
        return Answer(prompt, np.full(smooth_HW.shape, _OUTSIDE, np.float32), 0.0)
    level, tolerance = _level(
        smooth_HW[seed_HW & allowed_HW], smooth_HW[_surroundings(smooth_HW.shape, prompt)]
    )
    logits_HW = (_STEEPNESS * (1.0 - np.abs(smooth_HW - level) / tolerance)).astype(np.float32)
    region_HW = _grown((logits_HW > 0) & allowed_HW, seed_HW)
    logits_HW[region_HW] = np.maximum(logits_HW[region_HW], 0.5)  # holes that were filled
    logits_HW[~region_HW] = np.minimum(logits_HW[~region_HW], -0.5)
    logits_HW[~allowed_HW] = _OUTSIDE
    return Answer(prompt, logits_HW, _contrast(smooth_HW, region_HW))


def _level(seeds: Slice, around: Slice) -> tuple[float, float]:
    """How bright the object is, and how far from that a pixel may be: half way to what surrounds it."""
    level = float(np.median(seeds))
    spread = 1.4826 * float(np.median(np.abs(seeds - level)))
    half_way = 0.5 * float(np.median(np.abs(around - level))) if around.size else 0.0
    low, high = _TOLERANCE
    return level, min(max(_SPREADS * spread, half_way, low), high)


def _surroundings(shape: tuple[int, ...], prompt: Prompt) -> Region:
    """A ring around the box; without one, the whole slice."""
    around_HW = np.ones(shape, bool)
    if prompt.box is not None:
        out = [_RING_PIXELS] * 4
        around_HW[:] = False
        around_HW[_pixels(prompt.box.moved(out), shape)] = True
        around_HW[_pixels(prompt.box, shape)] = False
    return around_HW


def _pixels(box: Box, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Pixels whose middle lies in the box; at least one along each axis."""
    inside = []
    for a, b, n in zip(box.start, box.stop, shape, strict=True):
        first = min(max(0, round(a)), n - 1)
        inside.append(slice(first, max(first + 1, min(n, round(b)))))
    return tuple(inside)


def _allowed(shape: tuple[int, ...], prompt: Prompt) -> Region:
    """Pixels that may belong: inside the box, and no nearer to a negative click than to a positive."""
    allowed_HW = np.ones(shape, bool)
    if prompt.box is not None:
        allowed_HW[:] = False
        allowed_HW[_pixels(prompt.box, shape)] = True
    if any(not point.positive for point in prompt.points):
        allowed_HW &= _distance(shape, prompt, positive=True) < _distance(shape, prompt, positive=False)
    return allowed_HW


def _distance(shape: tuple[int, ...], prompt: Prompt, positive: bool) -> NDArray[np.float64]:
    """From every pixel's middle to the nearest click of one kind, or to the box's middle without one."""
    clicks = [point.at for point in prompt.points if point.positive is positive]
    if not clicks and prompt.box is not None:
        clicks = [tuple((a + b) / 2 for a, b in zip(prompt.box.start, prompt.box.stop, strict=True))]
    rows, columns = np.indices(shape) + 0.5
    far = np.full(shape, np.inf)
    for row, column in clicks:
        far = np.minimum(far, np.hypot(rows - row, columns - column))
    return far


def _seed(shape: tuple[int, ...], prompt: Prompt) -> Region:
    """Pixels that surely belong: around positive clicks, or the middle of the box."""
    seed_HW = np.zeros(shape, bool)
    positive = [point for point in prompt.points if point.positive]
    for point in positive:
        seed_HW |= np.hypot(*(np.indices(shape) + 0.5 - np.reshape(point.at, (2, 1, 1)))) <= 1.5
    if not positive and prompt.box is not None:
        seed_HW[_pixels(prompt.box.grown(-0.3), shape)] = True
    return seed_HW


def _grown(candidate_HW: Region, seed_HW: Region) -> Region:
    """The connected pieces that hold a good part of the seed, their holes filled."""
    numbered, count = ndimage.label(candidate_HW)
    if count == 0:
        return candidate_HW
    seeds = np.bincount(numbered[seed_HW], minlength=count + 1)[1:]
    wanted = np.flatnonzero(seeds >= max(1, 0.5 * seeds.max())) + 1
    region_HW = ndimage.binary_fill_holes(np.isin(numbered, wanted))
    return np.asarray(region_HW)


def _contrast(smooth_HW: Slice, region_HW: Region) -> float:
    """How far brightness jumps at the border against how much it varies, in [0, 1]."""
    ring_HW = ndimage.binary_dilation(region_HW, iterations=3) & ~region_HW
    if not region_HW.any() or not ring_HW.any():
        return 0.0
    inside, around = smooth_HW[region_HW], smooth_HW[ring_HW]
    jump = abs(float(inside.mean()) - float(around.mean()))
    return jump / (jump + float(inside.std()) + float(around.std()) + 1e-6)
