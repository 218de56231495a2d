"""Which cases a page shows of a structure, and where three planes cut through it.

Pictures show the champion at its best and at its worst on the validation split: who looks at
pictures of test cases and changes something has decided on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.campaign import Plane
from tutelage.evaluation.scorecard import MEAN
from tutelage.geometry import Grid
from tutelage.records import Scorecard

MOST_STRUCTURES = 12
"""Weakest ones first: nobody looks at a hundred."""

MOST_CASES = 12
"""A prediction each."""

_MARGIN_MM = 15.0
_LEAST_MM = 60.0
"""Around what is drawn, and side of what is shown: a structure without its neighborhood says little."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """One structure of one case to show."""

    structure: str
    case: str
    rank: str
    dice: float


def chosen(card: Scorecard) -> tuple[Choice, ...]:
    """Choose the best and the worst case of each structure, the weakest structures if there are many."""
    means = {s.structure: s.dice for s in card.summaries if s.structure != MEAN and np.isfinite(s.dice)}
    found: list[Choice] = []
    cases: set[str] = set()
    for structure in sorted(means, key=lambda name: means[name])[:MOST_STRUCTURES]:
        scores = [s for s in card.scores if s.structure == structure and not s.absent]
        ranked = sorted(scores, key=lambda s: (s.dice, s.case))
        ends = (("worst", ranked[0]), ("best", ranked[-1])) if len(ranked) > 1 else (("only", ranked[0]),)
        for rank, score in ends:
            if score.case in cases or len(cases) < MOST_CASES:
                cases.add(score.case)
                found.append(Choice(structure, score.case, rank, score.dice))
    return tuple(found)


def planes(
    image_DHW: NDArray[np.floating[Any]], reference_DHW: Mask, prediction_DHW: Mask, grid: Grid
) -> tuple[Plane, ...]:
    """Cut along D, H and W where people drew most of a structure, or the specialist where they drew nothing.

    All are squares of one size around everything that is drawn. A volume of one slice has one plane only.
    """
    where_DHW = reference_DHW if reference_DHW.any() else prediction_DHW
    bounds = _bounds(reference_DHW | prediction_DHW)
    extents_mm = [(high - low) * mm for (low, high), mm in zip(bounds, grid.spacing, strict=True)]
    side_mm = max(_LEAST_MM, max(extents_mm) + 2 * _MARGIN_MM)
    found = []
    for axis in range(3):
        rows, columns = (other for other in range(3) if other != axis)
        if min(grid.shape[rows], grid.shape[columns]) == 1:
            continue
        index = int(where_DHW.sum(axis=(rows, columns)).argmax())
        windows = [_Window.of(bounds[a], side_mm / grid.spacing[a], grid.shape[a]) for a in (rows, columns)]
        up = slice(None, None, -1) if rows == 0 else slice(None)  # D runs toward the head, pictures down
        image_HW, mask_HW, drawn_HW = (
            _cut(volume_DHW, axis, index, windows)[up]
            for volume_DHW in (image_DHW - image_DHW.min(), reference_DHW, prediction_DHW)
        )
        spacing_HW = (grid.spacing[rows], grid.spacing[columns])
        found.append(Plane(image_HW.astype(np.float32), mask_HW, drawn_HW, spacing_HW))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Window:
    """What is shown along one axis: some of the volume, and nothing on either side of it."""

    inside: slice
    before: int
    after: int

    @classmethod
    def of(cls, drawn: tuple[int, int], voxels: float, length: int) -> "_Window":
        count = max(1, round(voxels))
        start = round((sum(drawn) - count) / 2)
        inside = slice(max(0, start), min(length, start + count))
        return cls(inside, inside.start - start, start + count - inside.stop)


def _cut(volume_DHW: NDArray[Any], axis: int, index: int, windows: Sequence[_Window]) -> NDArray[Any]:
    slice_HW: NDArray[Any] = np.moveaxis(volume_DHW, axis, 0)[index]
    rows, columns = windows
    pads = [(window.before, window.after) for window in windows]
    return np.pad(slice_HW[rows.inside, columns.inside], pads)


def _bounds(mask_DHW: Mask) -> list[tuple[int, int]]:
    """First voxel and the one after the last along each axis; the whole axis of an empty mask."""
    found = []
    for axis, length in enumerate(mask_DHW.shape):
        there = np.flatnonzero(mask_DHW.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append((int(there[0]), int(there[-1]) + 1) if len(there) else (0, length))
    return found
