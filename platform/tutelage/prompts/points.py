"""Clicks in and around a piece.

Inside they lie deep and far apart: the first variant starts at the deepest pixel, others
anywhere deep, and each next click is the deep pixel farthest from those before. Around it
they lie in a ring at some distance, where no structure is and on the slice. All are at the
middle of a pixel. It knows no image and no generalist.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.measures import Mask
from tutelage.prompts.boxes import generator
from tutelage.prompts.pieces import Piece
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Point

_DEEP = 0.5
"""A pixel is deep from this share of the greatest depth on."""

_RING = (0.15, 0.5)
"""Nearest and farthest of the ring, as shares of the side of a square as large as the piece."""

_NEAREST_PIXELS = 2.0
"""Nearer than this, the border itself may be wrong."""


def points(piece: Piece, variant: int, settings: PromptSettings, seed: int) -> tuple[Point, ...]:
    """Draw one variant of the clicks: those inside first, then those around."""
    rng = generator(piece, variant, seed)
    return tuple(
        Point((row + 0.5, column + 0.5), positive)
        for positive, places in (
            (True, inside(piece, settings.points, rng if variant else None)),
            (False, around(piece, settings.negatives, rng)),
        )
        for row, column in places.tolist()
    )


def inside(piece: Piece, count: int, rng: np.random.Generator | None) -> NDArray[np.intp]:
    """Return up to `count` pixels of a piece, (N, 2) on the slice; the first is drawn, or the deepest."""
    depth_HW = ndimage.distance_transform_edt(np.pad(piece.inside_HW, 1))[1:-1, 1:-1]
    deep = np.argwhere(depth_HW >= _DEEP * depth_HW.max())
    deepest = np.argwhere(depth_HW == depth_HW.max())[0]
    first = deepest if rng is None else deep[rng.integers(len(deep))]
    return _apart(deep, first, count) + _corner(piece.where)


def around(piece: Piece, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return up to `count` pixels in the ring around a piece, (N, 2) on the slice."""
    side = float(np.sqrt(piece.inside_HW.sum()))
    near = max(_NEAREST_PIXELS, _RING[0] * side)
    far = max(near + _NEAREST_PIXELS, _RING[1] * side)
    reach = int(np.ceil(far))
    window = (
        slice(max(0, piece.where[0].start - reach), piece.where[0].stop + reach),
        slice(max(0, piece.where[1].start - reach), piece.where[1].stop + reach),
    )
    distance_HW = ndimage.distance_transform_edt(~_seen_through(piece, window))
    ring = np.argwhere((distance_HW >= near) & (distance_HW <= far) & (piece.labels_HW[window] == 0))
    if not len(ring) or not count:
        return np.zeros((0, 2), np.intp)
    return _apart(ring, ring[rng.integers(len(ring))], count) + _corner(window)


def _seen_through(piece: Piece, window: tuple[slice, slice]) -> Mask:
    """The piece alone, in a window around it."""
    seen_HW = np.zeros(piece.labels_HW[window].shape, bool)
    (top, left), (high, wide) = _corner(piece.where) - _corner(window), piece.inside_HW.shape
    seen_HW[top : top + high, left : left + wide] = piece.inside_HW
    return seen_HW


def _apart(pixels: NDArray[np.intp], first: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """The first, then again and again the pixel that is farthest from all chosen so far."""
    chosen = [first]
    nearest = np.hypot(*(pixels - first).T)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(pixels[int(nearest.argmax())])
        nearest = np.minimum(nearest, np.hypot(*(pixels - chosen[-1]).T))
    return np.stack(chosen)


def _corner(where: tuple[slice, slice]) -> NDArray[np.intp]:
    return np.array([where[0].start, where[1].start])
