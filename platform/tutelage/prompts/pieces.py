"""Which pieces of a mask deserve a question.

It decides what is too small to ask about, in the volume and on a slice. It knows no image,
no generalist and no structure by name.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.geometry import Box
from tutelage.measures import Mask, components, largest_components
from tutelage.prompts.settings import PromptSettings

Labels = NDArray[np.unsignedinteger[Any]]
L = TypeVar("L", bound=Labels)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One connected piece of one structure on one slice."""

    structure: int
    axis: int
    index: int
    number: int
    """Among the structure's pieces on the slice, as rows are read."""

    where: tuple[slice, slice]
    """Its bounds on the slice."""

    inside_HW: Mask
    """Within its bounds."""

    labels_HW: Labels
    """The whole slice, all structures."""

    @property
    def tight(self) -> Box:
        """The tightest box around it."""
        rows, columns = self.where
        return Box(
            (float(rows.start), float(columns.start)),
            (float(rows.stop), float(columns.stop)),
        )


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


def fewest(mask_DHW: L, most: Mapping[int, int]) -> L:
    """Return a copy with at most so many pieces of each structure named, the largest; 0 leaves nothing."""
    left_DHW = mask_DHW.copy()
    for value, number in most.items():
        structure = np.equal(mask_DHW, value)
        left_DHW[structure & ~largest_components(structure, keep=number)] = 0
    return left_DHW


def pieces(mask_DHW: Labels, classes: int, settings: PromptSettings) -> Iterator[Piece]:
    """Yield the pieces that are large enough, by axis, slice, structure and as rows are read."""
    for axis in settings.axes:
        for index, labels_HW in enumerate(np.moveaxis(mask_DHW, axis, 0)):
            for value, where in _found(labels_HW, classes):
                yield from _pieces(value, axis, index, where, labels_HW, settings)


def _found(mask: Labels, classes: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Structures that the mask holds, with their bounds: nothing else needs to be looked at."""
    for value, where in enumerate(ndimage.find_objects(mask, max_label=classes - 1), start=1):
        if where is not None:
            yield value, where


def _pieces(
    value: int, axis: int, index: int, around: tuple[slice, ...], labels_HW: Labels, settings: PromptSettings
) -> Iterator[Piece]:
    numbered, sizes = components(labels_HW[around] == value)
    enough = max(settings.min_pixels, settings.min_component_share * sizes.max())
    large = [number for number, size in enumerate(sizes, start=1) if size >= enough]
    bounds = ndimage.find_objects(numbered)
    for order, number in enumerate(large):
        rows, columns = bounds[number - 1]
        top, left = around[0].start, around[1].start
        where = (
            slice(top + rows.start, top + rows.stop),
            slice(left + columns.start, left + columns.stop),
        )
        yield Piece(value, axis, index, order, where, numbered[rows, columns] == number, labels_HW)
