"""Boxes around what a specialist thinks it sees.

It decides which pieces of a mask deserve a question and how the boxes differ from one
variant to the next. It knows no image, no generalist and no structure by name; the same
mask, settings and seed give the same boxes, and what one structure looks like never moves
the boxes of another.
"""

import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.geometry import Box
from tutelage.measures import components, largest_components
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Prompt

Labels = NDArray[np.unsignedinteger[Any]]
L = TypeVar("L", bound=Labels)


def clean(mask_DHW: L, classes: int, settings: PromptSettings) -> L:
    """Return a copy without stray pieces: those far smaller than the largest of their structure.

    `classes` counts the background; pieces that touch only at an edge or a corner are separate.
    """
    kept_DHW = np.zeros_like(mask_DHW)
    for value, where in _found(mask_DHW, classes):
        structure = mask_DHW[where] == value
        kept = largest_components(structure, keep=sys.maxsize, min_share=settings.min_volume_share)
        kept_DHW[where][kept] = value
    return kept_DHW


def boxes(mask_DHW: Labels, classes: int, settings: PromptSettings, seed: int) -> list[Prompt]:
    """Draw boxes on every slice, ordered by slice, structure, piece (as rows are read) and variant.

    Boxes are clipped to the slice. The mask is taken as it is: `clean` it first.
    """
    return [
        Prompt(value, index, _drawn(tight, mask_HW.shape, settings, [seed, index, value, piece, variant]),
               variant=variant)
        for index, mask_HW in enumerate(mask_DHW)
        for value, where in _found(mask_HW, classes)
        for piece, tight in enumerate(_pieces(mask_HW[where] == value, where, settings))
        for variant in range(settings.variants)
    ]  # fmt: skip


def _found(mask: Labels, classes: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Structures that the mask holds, with their bounds: nothing else needs to be looked at."""
    for value, where in enumerate(ndimage.find_objects(mask, max_label=classes - 1), start=1):
        if where is not None:
            yield value, where


def _pieces(
    structure_HW: NDArray[np.bool_], where: tuple[slice, ...], settings: PromptSettings
) -> Iterator[Box]:
    """Tightest boxes, in the whole slice, around the pieces that are large enough."""
    numbered, sizes = components(structure_HW)
    enough = max(settings.min_pixels, settings.min_component_share * sizes.max())
    for size, (rows, columns) in zip(sizes, ndimage.find_objects(numbered), strict=True):
        if size >= enough:
            top, left = where[0].start, where[1].start
            yield Box(
                (float(top + rows.start), float(left + columns.start)),
                (float(top + rows.stop), float(left + columns.stop)),
            )


def _drawn(tight: Box, shape: tuple[int, ...], settings: PromptSettings, seeds: list[int]) -> Box:
    """One variant of a box; `seeds` ends with its number."""
    drawn = tight.grown(settings.margin)
    if seeds[-1] > 0:
        shares = np.random.default_rng(seeds).uniform(-settings.jitter, settings.jitter, size=(2, 2))
        drawn = drawn.moved((shares * np.asarray(tight.size)).ravel().tolist())
    return drawn.clipped(shape)
