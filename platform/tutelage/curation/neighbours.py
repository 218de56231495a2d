"""What cases that look alike say of a structure whose own answer was rejected: a vote, never more than that.

Every answer about a case carries the generalist's features inside each mask. Cases are alike as those
features point the same way, on average over the structures that both have. The nearest of those
whose answer about the structure was accepted vote voxel by voxel, each with its likeness; their masks are
stretched to the grid of the case first (all volumes have the same axes). What more than half of the votes
paint, where nothing else is believed, is half believed. This is how SemiSAM-O1 treats its doubtful volumes
(PAPERS 4.5), by structure.

It helps where scans show about the same part of a body, and knows nothing of those that do not: hence it
is off unless somebody wants it, and counts at most half. It reads no files.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from tutelage.curation.settings import NeighbourSettings
from tutelage.measures import Mask
from tutelage.records import PseudoLabel, Ruling, Verdict

Features = NDArray[np.floating]
"""(K, C), a row for each label value; zero where there was no mask."""

_FULL = 255


@dataclass(frozen=True, slots=True)
class Vote:
    """What one neighbour says of one structure."""

    case: str
    likeness: float
    mask_DHW: Mask
    """In a box of its own grid."""
    start: tuple[int, int, int]
    """Where the box begins."""
    shape: tuple[int, int, int]
    """Of its grid."""

    @classmethod
    def of(cls, case: str, likeness: float, mask_DHW: NDArray[np.uint8], value: int) -> Self:
        """Cut one structure out of a case's mask."""
        d, h, w = mask_DHW.shape
        (where,) = find_objects(mask_DHW == value, 1)
        if where is None:
            return cls(case, likeness, np.zeros((0, 0, 0), np.bool_), (0, 0, 0), (d, h, w))
        start = tuple(axis.start for axis in where)
        return cls(case, likeness, mask_DHW[where] == value, start, (d, h, w))


def likeness(one_KC: Features, other_KC: Features) -> float:
    """Return the mean cosine over structures that both have; 0 where they share none."""
    if one_KC.shape != other_KC.shape:
        return 0.0
    one, other = one_KC.astype(np.float64), other_KC.astype(np.float64)
    lengths_K = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both = lengths_K > 0
    return float(((one * other).sum(axis=1)[both] / lengths_K[both]).mean()) if both.any() else 0.0


def nearest(of_KC: Features, among: Mapping[str, Features], count: int) -> list[tuple[str, float]]:
    """Return the cases most like one, the most alike first; none that is unlike."""
    alike = ((case, likeness(of_KC, other_KC)) for case, other_KC in among.items())
    best = heapq.nsmallest(count, alike, key=lambda one: (-one[1], one[0]))
    return [one for one in best if one[1] > 0]


def wanting(label: PseudoLabel) -> list[int]:
    """Return the structures that a vote may stand in for: asked about, rejected, not known to be absent."""
    return [
        value
        for value, verdict in enumerate(label.verdicts, start=1)
        if verdict.ruling is Ruling.REJECT
        and verdict.features["specialist_ml"] > 0
        and verdict.features.get("notes_expect") != 0.0
    ]


def voted(
    label: PseudoLabel, votes: Mapping[int, Sequence[Vote]], settings: NeighbourSettings
) -> PseudoLabel:
    """Paint what the votes about rejected structures agree on; they stay undecided elsewhere."""
    mask_DHW, weight_DHW = label.mask_DHW.copy(), label.weight_DHW.copy()
    verdicts = list(label.verdicts)
    free_DHW = label.mask_DHW == 0
    best_DHW = np.full(mask_DHW.shape, 0.5, np.float32)
    for value, of_value in votes.items():
        if len(of_value) < settings.least:
            continue
        share_DHW = _share(of_value, mask_DHW.shape)
        wins_DHW = free_DHW & (share_DHW > best_DHW)
        if not wins_DHW.any():
            continue
        mask_DHW[wins_DHW] = value
        best_DHW[wins_DHW] = share_DHW[wins_DHW]
        weight_DHW[wins_DHW] = round(_FULL * settings.weight)
        verdicts[value - 1] = _half_believed(verdicts[value - 1], of_value, settings)
    return replace(label, mask_DHW=mask_DHW, weight_DHW=weight_DHW, verdicts=tuple(verdicts))


def _share(votes: Sequence[Vote], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Add up votes on another grid, as a share of all of them."""
    added_DHW = np.zeros(shape, np.float32)
    for vote in votes:
        _add(added_DHW, vote)
    return added_DHW / np.float32(sum(vote.likeness for vote in votes))


def _add(added_DHW: NDArray[np.float32], vote: Vote) -> None:
    """Stretch a mask to a grid over the same extent, nearest voxel by nearest, and add it."""
    spans, picked = [], []
    for wanted, there, first, size in zip(
        added_DHW.shape, vote.shape, vote.start, vote.mask_DHW.shape, strict=True
    ):
        source = ((np.arange(wanted) + 0.5) * there / wanted).astype(int) - first
        inside = np.flatnonzero((source >= 0) & (source < size))
        if not len(inside):
            return
        spans.append(slice(inside[0], inside[-1] + 1))
        picked.append(source[inside])
    added_DHW[tuple(spans)] += np.float32(vote.likeness) * vote.mask_DHW[np.ix_(*picked)]


def _half_believed(verdict: Verdict, votes: Sequence[Vote], settings: NeighbourSettings) -> Verdict:
    alike = float(np.mean([vote.likeness for vote in votes]))
    told = f"{len(votes)} accepted cases that look alike ({alike:.2f}) voted instead: " + ", ".join(
        vote.case for vote in votes
    )
    return replace(
        verdict,
        ruling=Ruling.PARTIAL,
        weight=settings.weight,
        features=verdict.features | {"neighbours": float(len(votes)), "neighbours_alike": alike},
        reasons=(*verdict.reasons, told),
    )
