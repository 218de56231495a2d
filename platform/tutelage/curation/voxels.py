"""Which classes a voxel may belong to: conformal sets, whose one class is believed and whose several are not.

A class is in the set of a voxel where it is probable enough, and what is enough is found on
labeled cases, class by class, so that a voxel of the class has it in its set with 1 - alpha. Voxels
of one patient are not so many observations: what is counted is the share of each patient's
voxels that a threshold would miss, and the threshold keeps the mean share over patients, one that
misses everything added, at alpha or less (conformal risk control, Angelopoulos et al. 2022).
Hence for a new patient the expected share of missed voxels of a class is at most alpha.

Structures are answered about one by one, so background is as probable as the most probable
structure is not. Probabilities are in 255ths, which is how answers are kept. It decides nothing
about whole structures.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.records import Candidate

_SHARES = 256
"""Values that a probability in 255ths can have."""

_FULL = 255

_HALF = 128
"""From here on a class is always in the set: what is more probable than not is never left out, so that no
set is empty only because classes are told apart better than they need be."""


def counted(candidate: Candidate, label_DHW: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Count the voxels of each class by how probable it is there, (classes, 256)."""
    counts = np.zeros((len(candidate.regions), _SHARES), np.int64)
    highest_DHW = _highest(candidate)
    background = _FULL - highest_DHW[label_DHW == 0]
    counts[0] = np.bincount(background, minlength=_SHARES)
    for value in range(1, len(candidate.regions)):
        region = candidate.regions[value]
        inside = region.mean_DHW[label_DHW[region.where] == value]
        counts[value] = np.bincount(inside, minlength=_SHARES)
        counts[value, 0] += int(np.count_nonzero(label_DHW == value)) - len(inside)
    return counts


def least(by_patient: Mapping[str, NDArray[np.int64]], alpha: float) -> tuple[int | None, ...]:
    """Return from which probability on each class is in a set.

    None where patients with the class are too few, or so unlike their answers that it would be in
    every set: then nothing is known.
    """
    classes = len(next(iter(by_patient.values()))) if by_patient else 0
    return tuple(_least([counts[value] for counts in by_patient.values()], alpha) for value in range(classes))


def _least(counts: Sequence[NDArray[np.int64]], alpha: float) -> int | None:
    there = [count for count in counts if count.sum()]
    if not there:
        return None
    # Share of a patient's voxels of the class that are at least so probable.
    kept = np.mean([count[::-1].cumsum()[::-1] / count.sum() for count in there], axis=0)
    n = len(there)
    enough = np.flatnonzero(n * kept >= (n + 1) * (1 - alpha) - 1e-9)
    return min(_HALF, int(enough[-1])) if len(enough) and enough[-1] > 0 else None


def doubtful(
    candidate: Candidate,
    mask_DHW: NDArray[np.uint8],
    thresholds: Sequence[int | None],
    undecided: Collection[int],
) -> NDArray[np.bool_]:
    """Return the voxels whose set is not the one class that is painted there.

    Undecided structures, and classes without a threshold, are in the set where they are painted, and
    nowhere else: nothing is known about them.
    """
    count_DHW = np.zeros(mask_DHW.shape, np.uint8)
    painted_DHW = np.zeros(mask_DHW.shape, np.bool_)

    def count(value: int, inside_DHW: NDArray[np.bool_]) -> None:
        count_DHW[inside_DHW] += 1
        painted_DHW[inside_DHW & (mask_DHW == value)] = True

    floor = thresholds[0]
    count(0, mask_DHW == 0 if floor is None else _FULL - _highest(candidate) >= floor)
    for value in range(1, len(candidate.regions)):
        threshold = thresholds[value]
        if threshold is None or value in undecided:
            count(value, mask_DHW == value)
            continue
        region = candidate.regions[value]
        inside_DHW = np.zeros(mask_DHW.shape, np.bool_)
        inside_DHW[region.where] = region.mean_DHW >= threshold
        count(value, inside_DHW)
    return np.asarray((count_DHW != 1) | ~painted_DHW)


def _highest(candidate: Candidate) -> NDArray[np.uint8]:
    """How probable the most probable structure is, everywhere."""
    highest_DHW = np.zeros(candidate.specialist_DHW.shape, np.uint8)
    for region in candidate.regions[1:]:
        np.maximum(highest_DHW[region.where], region.mean_DHW, out=highest_DHW[region.where])
    return highest_DHW
