"""A piece as a mask that is a question itself.

It decides the resolution: low, because generalists take masks in low resolution and a
volume has thousands of them. Further variants are moved by parts of a pixel.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.prompts.boxes import generator
from tutelage.prompts.pieces import Piece
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Logits

LONGEST = 128
"""Pixels along the longer side of the slice, at most."""

_SURE = 1e-3
"""Nobody is surer than this."""


def mask(piece: Piece, variant: int, settings: PromptSettings, seed: int) -> Logits:
    """Draw one variant of a piece, on the whole slice, as logits in low resolution."""
    high, wide = piece.labels_HW.shape[0], piece.labels_HW.shape[1]
    whole = np.zeros((high, wide), np.float32)
    whole[piece.where] = piece.inside_HW
    scale = min(1.0, LONGEST / max(high, wide))
    down, right = (_averaging(n, max(1, round(n * scale))) for n in (high, wide))
    share_HW = down @ whole @ right.T
    if variant > 0:
        shares = generator(piece, variant, seed).uniform(-settings.jitter, settings.jitter, size=2)
        by = shares * piece.tight.size * scale
        share_HW = ndimage.shift(share_HW, by, order=1)
    share_HW = np.clip(share_HW, _SURE, 1 - _SURE)
    logits_HW: Logits = np.log(share_HW / (1 - share_HW)).astype(np.float32)
    return logits_HW


@lru_cache(maxsize=64)
def _averaging(pixels: int, cells: int) -> NDArray[np.float32]:
    """(cells, pixels): which share of a cell a pixel covers."""
    pixel, cell = np.arange(pixels + 1) * cells / pixels, np.arange(cells + 1.0)
    start = np.maximum(cell[:-1, np.newaxis], pixel[np.newaxis, :-1])
    stop = np.minimum(cell[1:, np.newaxis], pixel[np.newaxis, 1:])
    shares: NDArray[np.float32] = np.maximum(stop - start, 0.0).astype(np.float32)
    return shares
