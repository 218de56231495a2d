"""Boxes around what a specialist thinks it sees.

It decides how the boxes differ from one variant to the next. It knows no image and no
generalist; the same piece, settings and seed give the same box, and what one structure
looks like never moves the boxes of another.
"""

from collections.abc import Sequence

import numpy as np

from tutelage.geometry import Box
from tutelage.prompts.pieces import Labels, Piece, pieces
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Point, Prompt


def boxes(mask_DHW: Labels, classes: int, settings: PromptSettings, seed: int) -> list[Prompt]:
    """Draw boxes on every slice, ordered by axis, slice, structure, piece (as rows are read) and variant.

    Boxes are clipped to the slice. The mask is taken as it is: `clean` it first.
    """
    return [
        Prompt(piece.structure, piece.index, box(piece, variant, settings, seed), (), variant, piece.axis)
        for piece in pieces(mask_DHW, classes, settings)
        for variant in range(settings.variants)
    ]


def box(piece: Piece, variant: int, settings: PromptSettings, seed: int) -> Box:
    """Draw one variant of the box around a piece."""
    drawn = piece.tight.grown(settings.margin)
    if variant > 0:
        shares = generator(piece, variant, seed).uniform(-settings.jitter, settings.jitter, size=(2, 2))
        drawn = drawn.moved((shares * np.asarray(piece.tight.size)).ravel().tolist())
    return drawn.clipped(piece.labels_HW.shape)


def box_around(points: Sequence[Point], margin: float, shape: Sequence[int]) -> Box:
    """Draw the box around the pixels of positive clicks, every side moved out by a share of its size."""
    at = np.array([point.at for point in points if point.positive])
    low, high = at.min(axis=0) - 0.5, at.max(axis=0) + 0.5
    return Box(tuple(low.tolist()), tuple(high.tolist())).grown(margin).clipped(shape)


def generator(piece: Piece, variant: int, seed: int) -> np.random.Generator:
    """Return the chance that belongs to one variant of one piece."""
    along = [piece.axis] if piece.axis else []  # what is drawn along D does not depend on other axes
    return np.random.default_rng([seed, piece.index, piece.structure, piece.number, variant, *along])
