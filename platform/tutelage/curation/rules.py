"""Rules: a candidate and priors in, a pseudo-label with verdicts out. No IO, no torch, no Ray.

Specialist and generalist err differently: the generalist finds the border of whatever it
is shown, the specialist knows what should be shown. Where they agree the generalist's
border is better than the specialist's, so an accepted structure takes the generalist's
mask. A structure that is not accepted stays undecided: background then means "background
or one of the undecided", and training must not punish finding it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.curation.settings import CurationSettings
from tutelage.geometry import Grid
from tutelage.measures import Mask, components
from tutelage.records import Candidate, Prior, PseudoLabel, Ruling, Verdict

_COUNTED_PIECE = 0.1
"""Share of the largest piece from which on another piece counts as a component."""

_HALF = 255 // 2
"""A share in 255ths above this is above a half: the voxel is in the mask."""

_HARDLY = 255 // 20
"""Above this, a twentieth, variance counts: far outside the mask it is low whatever happens."""


def curate(
    candidate: Candidate,
    grid: Grid,
    structures: Sequence[str],
    priors: Mapping[str, Prior],
    settings: CurationSettings,
) -> PseudoLabel:
    """Judge every structure of one case and paint what is believed."""
    verdicts = []
    for value, structure in enumerate(structures, start=1):
        features = measure(candidate, value, grid)
        verdicts.append(judge(structure, features, priors.get(structure), settings.of(structure)))
    return _painted(candidate, verdicts)


def measure(candidate: Candidate, value: int, grid: Grid) -> dict[str, float]:
    """Return the numbers that verdicts on one structure rest on."""
    region = candidate.regions[value]
    generalist = region.mean_DHW > _HALF
    asked = region.mean_DHW > _HARDLY
    _, pieces = components(generalist)
    # Outside its region the generalist says nothing, so both can only agree inside.
    both = int(_agreed(candidate, value).sum())
    specialist_voxels = int(np.count_nonzero(candidate.specialist_DHW == value))
    generalist_voxels = int(generalist.sum())
    either = specialist_voxels + generalist_voxels - both
    return {
        "agreement": both / either if either else 1.0,
        "specialist_ml": float(specialist_voxels) * grid.voxel_ml,
        "generalist_ml": float(generalist_voxels) * grid.voxel_ml,
        "components": float((pieces >= _COUNTED_PIECE * pieces.max()).sum()) if len(pieces) else 0.0,
        "variance": float(region.variance_DHW[asked].mean()) / 255 if asked.any() else 0.0,
        "predicted_iou": candidate.predicted_iou[value],
        "consensus": candidate.consensus[value],
    }


def judge(
    structure: str, features: Mapping[str, float], prior: Prior | None, settings: CurationSettings
) -> Verdict:
    """Accept what both agree on, is as large as it should be, and does not move with the prompt."""
    if features["specialist_ml"] == 0:
        return _missing(structure, features, prior)
    agreement = features["agreement"]
    reasons = [*_implausible(structure, features, prior, settings)]
    if agreement < settings.partial_agreement:
        reasons.append(f"specialist and generalist agree {agreement:.2f} < {settings.partial_agreement:.2f}")
    if reasons:
        return Verdict(structure, Ruling.REJECT, 0.0, dict(features), tuple(reasons))
    if agreement < settings.min_agreement:
        why = f"specialist and generalist agree {agreement:.2f} < {settings.min_agreement:.2f}"
        return Verdict(structure, Ruling.PARTIAL, settings.partial_weight, dict(features), (why,))
    return Verdict(structure, Ruling.ACCEPT, 1.0, dict(features))


def _missing(structure: str, features: Mapping[str, float], prior: Prior | None) -> Verdict:
    """Not found. That an organ may be absent is no proof that it is: it stays undecided either way."""
    if prior is not None and prior.may_be_absent:
        why = f"the specialist did not find {structure}, which may be absent"
        return Verdict(structure, Ruling.ABSENT, 0.0, dict(features), (why,))
    why = f"the specialist did not find {structure}, so nothing could be asked"
    return Verdict(structure, Ruling.REJECT, 0.0, dict(features), (why,))


def _implausible(
    structure: str, features: Mapping[str, float], prior: Prior | None, settings: CurationSettings
) -> list[str]:
    reasons = []
    if features["variance"] > settings.max_variance:
        reasons.append(f"variance over prompts {features['variance']:.2f} > {settings.max_variance:.2f}")
    if features["consensus"] < settings.min_consensus:
        reasons.append(f"generalists agree {features['consensus']:.2f} < {settings.min_consensus:.2f}")
    if prior is None:
        return reasons
    low, high = prior.volume_ml
    volume = features["generalist_ml"]
    if not low * (1 - settings.volume_slack) <= volume <= high * (1 + settings.volume_slack):
        reasons.append(f"{structure} is {volume:.1f} ml, expected {low:g} to {high:g} ml")
    if features["components"] > prior.components[1]:
        reasons.append(
            f"{structure} is in {features['components']:.0f} pieces, expected at most {prior.components[1]}"
        )
    return reasons


def _painted(candidate: Candidate, verdicts: Sequence[Verdict]) -> PseudoLabel:
    """Paint accepted masks, the more probable one where two overlap, then what is half believed."""
    shape = candidate.specialist_DHW.shape
    mask_DHW = np.zeros(shape, np.uint8)
    weight_DHW = np.full(shape, 255, np.uint8)
    best_DHW = np.full(shape, _HALF, np.uint8)
    for value, verdict in enumerate(verdicts, start=1):
        if verdict.ruling is Ruling.ACCEPT:
            region = candidate.regions[value]
            wins = region.mean_DHW > best_DHW[region.where]
            mask_DHW[region.where][wins] = value
            best_DHW[region.where][wins] = region.mean_DHW[wins]
    for value, verdict in enumerate(verdicts, start=1):
        if verdict.ruling is Ruling.PARTIAL and verdict.weight > 0:
            where = candidate.regions[value].where
            both = _agreed(candidate, value) & (mask_DHW[where] == 0)
            mask_DHW[where][both] = value
            weight_DHW[where][both] = round(255 * verdict.weight)
    undecided = tuple(v for v, verdict in enumerate(verdicts, start=1) if verdict.ruling is not Ruling.ACCEPT)
    return PseudoLabel(
        candidate.case,
        mask_DHW,
        weight_DHW,
        undecided,
        tuple(verdicts),
        candidate.pooled_KC,
        candidate.grid_DCHW,
    )


def _agreed(candidate: Candidate, value: int) -> Mask:
    """Where both see a structure, within its region."""
    region = candidate.regions[value]
    return np.asarray((candidate.specialist_DHW[region.where] == value) & (region.mean_DHW > _HALF))
