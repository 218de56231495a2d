"""Gates and weights that are off unless somebody wants them: those of knowledge mining, and of each voxel.

It decides what makes an accepted mask a doubtful one, and how much voxels count when the mask
is painted. It does not know which rulings there were before.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tutelage.curation.settings import CurationSettings
from tutelage.records import Candidate, Ruling, Verdict

_HALF = 255 // 2

_FULL = 255


def doubts(features: Mapping[str, float], settings: CurationSettings) -> list[str]:
    """Say why a mask on which both agree is only half believed; features as `rules.measure` has them."""
    found = []
    if features["predicted_iou"] < settings.min_predicted_iou:
        found.append(
            f"the generalist expects IoU {features['predicted_iou']:.2f} < {settings.min_predicted_iou:.2f}"
        )
    if settings.volume_ratio is not None:
        low, high = settings.volume_ratio
        ratio = features["generalist_ml"] / features["specialist_ml"]
        if not low <= ratio <= high:
            found.append(f"the mask is {ratio:.2f} times the specialist's, expected {low:g} to {high:g}")
    return found


def weigh(
    candidate: Candidate,
    verdicts: Sequence[Verdict],
    mask_DHW: NDArray[np.uint8],
    weight_DHW: NDArray[np.uint8],
    settings: CurationSettings,
) -> set[int]:
    """Change weights in place as the settings want, and return the structures that are decided.

    Those are the accepted ones, and half believed ones whose rest is ignored.
    """
    accepted = {v: one.weight for v, one in enumerate(verdicts, start=1) if one.ruling is Ruling.ACCEPT}
    if settings.weight_by_agreement and accepted:
        weight_DHW[mask_DHW == 0] = round(_FULL * min(accepted.values()))
        for value, weight in accepted.items():
            weight_DHW[mask_DHW == value] = round(_FULL * weight)
    if settings.weight_by_variance:
        for value in accepted:
            region = candidate.regions[value]
            steady = 1.0 - region.variance_DHW / np.float32(_FULL)
            weight_DHW[region.where] = np.rint(weight_DHW[region.where] * steady)
    halves = set() if settings.partial_rest == "undecided" else _halves(verdicts)
    for value in halves:
        differ_DHW = candidate.specialist_DHW == value
        region = candidate.regions[value]
        differ_DHW[region.where] ^= region.mean_DHW > _HALF
        weight_DHW[differ_DHW & (mask_DHW == 0)] = 0
    return set(accepted) | halves


def _halves(verdicts: Sequence[Verdict]) -> set[int]:
    return {v for v, one in enumerate(verdicts, start=1) if one.ruling is Ruling.PARTIAL and one.weight > 0}
