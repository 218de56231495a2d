"""Rules: a candidate and priors in, a pseudo-label with verdicts out. No IO, no torch, no Ray.

Specialist and generalist err differently: the generalist finds the border of whatever it
is shown, the specialist knows what should be shown. Where they agree the generalist's
border is better than the specialist's, so an accepted structure takes the generalist's
mask. A structure that is not accepted stays undecided: background then means "background
or one of the undecided", and training must not punish finding it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import xlogy

from tutelage.curation import anatomy, gates, voxels
from tutelage.curation.acceptance import beside, predicted, ruled
from tutelage.curation.anatomy import NOWHERE, Placed
from tutelage.curation.calibration import Calibration, Prediction
from tutelage.curation.settings import CurationSettings
from tutelage.geometry import Grid
from tutelage.measures import Mask, components
from tutelage.priors.claims import COUNTED_PIECE
from tutelage.records import Candidate, Expectation, Prior, PseudoLabel, Ruling, Verdict

_HALF = 255 // 2
"""A share in 255ths above this is above a half: the voxel is in the mask."""

_HARDLY = 255 // 20
"""Above this, a twentieth, variance counts: far outside the mask it is low whatever happens."""

_SHARES = np.arange(256) / 255
_ENTROPY = -(xlogy(_SHARES, _SHARES) + xlogy(1 - _SHARES, 1 - _SHARES)) / np.log(2)
"""Of a share in 255ths, in bits."""


def curate(
    candidate: Candidate,
    grid: Grid,
    structures: Sequence[str],
    priors: Mapping[str, Prior],
    settings: CurationSettings,
    expected: Mapping[str, Expectation] | None = None,
    calibration: Calibration | None = None,
) -> PseudoLabel:
    """Judge every structure of one case and paint what is believed.

    `expected` is what the case's own notes say, `calibration` what labeled cases teach about
    answers. Every verdict also says what it would be if nothing were known about anatomy.
    """
    verdicts = []
    for value, (name, seen) in enumerate(
        look(candidate, grid, structures, priors, settings).items(), start=1
    ):
        noted, own = (expected or {}).get(name), settings.of(name)
        features = dict(seen.features)
        if calibration is not None:
            features |= beside(calibration, candidate, value, name, features["generalist_ml"])
        told = {**features, **seen.of_anatomy, **anatomy.noted(noted)}
        plain, primed = (predicted(calibration, name, known, own) for known in (features, told))
        without = judge(name, features, None, own, prediction=plain)
        held = judge(name, told, priors.get(name), own, seen.placed, noted, primed)
        if held.ruling is Ruling.REJECT:
            held = replace(held, reasons=(*held.reasons, *seen.instead))
        chosen = held if settings.priors else replace(without, features=told | without.features)
        verdicts.append(replace(chosen, without_priors=without.ruling, with_priors=held.ruling))
    return _painted(candidate, verdicts, settings, calibration)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is measured of one structure before anybody judges it."""

    features: Mapping[str, float]
    """Of the answer itself."""
    of_anatomy: Mapping[str, float]
    """Of what is known of anatomy."""
    placed: Placed
    instead: tuple[str, ...]
    """Which other structures it may be, in words, where it does not fit its own."""


def look(
    candidate: Candidate,
    grid: Grid,
    structures: Sequence[str],
    priors: Mapping[str, Prior],
    settings: CurationSettings,
) -> dict[str, Seen]:
    """Measure every structure of one case, by name."""
    features = {name: measure(candidate, value, grid) for value, name in enumerate(structures, start=1)}
    rulings = {name: judge(name, features[name], None, settings.of(name)).ruling for name in structures}
    doubtful = {name for name, ruling in rulings.items() if ruling is Ruling.REJECT}
    placed = anatomy.placed(candidate, grid, structures, priors, doubtful, settings)
    return {
        name: Seen(
            known,
            placed[name].features | anatomy.outside(known, priors.get(name), settings),
            placed[name],
            anatomy.mistaken(
                name, known, placed[name], candidate, grid, structures, priors, doubtful, settings
            ),
        )
        for name, known in features.items()
    }


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
        "components": float((pieces >= COUNTED_PIECE * pieces.max()).sum()) if len(pieces) else 0.0,
        "variance": float(region.variance_DHW[asked].mean()) / 255 if asked.any() else 0.0,
        "entropy": float(_ENTROPY[region.mean_DHW[asked]].mean()) if asked.any() else 0.0,
        "predicted_iou": candidate.predicted_iou[value],
        "consensus": candidate.consensus[value],
    }


def judge(
    structure: str,
    features: Mapping[str, float],
    prior: Prior | None,
    settings: CurationSettings,
    placed: Placed = NOWHERE,
    expected: Expectation | None = None,
    prediction: Prediction | None = None,
) -> Verdict:
    """Accept what both agree on, does not move with the prompt, and is as large and lies where it should.

    A prediction with a bound decides instead, unless anatomy objects; one without says that it has none.
    """
    if features["specialist_ml"] == 0:
        return _missing(structure, features, prior, expected)
    objections = anatomy.objections(structure, features, prior, settings, placed, expected)
    if prediction is None:
        return _by_rules(structure, features, objections, settings)
    told = {**features, **prediction.features}
    if calibrated := ruled(structure, told, prediction, objections, settings):
        return calibrated
    verdict = _by_rules(structure, told, objections, settings)
    return replace(verdict, reasons=(*verdict.reasons, prediction.why))


def _by_rules(
    structure: str, features: Mapping[str, float], objections: Sequence[str], settings: CurationSettings
) -> Verdict:
    agreement = features["agreement"]
    reasons = [*_unsure(features, settings), *objections]
    if agreement < settings.partial_agreement:
        reasons.append(f"specialist and generalist agree {agreement:.2f} < {settings.partial_agreement:.2f}")
    if reasons:
        return Verdict(structure, Ruling.REJECT, 0.0, dict(features), tuple(reasons))
    doubts = gates.doubts(features, settings)
    if agreement < settings.min_agreement:
        doubts.insert(0, f"specialist and generalist agree {agreement:.2f} < {settings.min_agreement:.2f}")
    if doubts:
        return Verdict(structure, Ruling.PARTIAL, settings.partial_weight, dict(features), tuple(doubts))
    weight = agreement if settings.weight_by_agreement else 1.0
    return Verdict(structure, Ruling.ACCEPT, weight, dict(features))


def _missing(
    structure: str, features: Mapping[str, float], prior: Prior | None, expected: Expectation | None
) -> Verdict:
    """Not found. That an organ may be absent is no proof that it is: it stays undecided either way."""
    told = f"the specialist did not find {structure}"
    if expected is Expectation.ABSENT:
        return Verdict(
            structure, Ruling.ABSENT, 0.0, dict(features), (f"{told}, and the case's notes say it is absent",)
        )
    if expected is not Expectation.EXPECTED and anatomy.may_be_absent(prior):
        return Verdict(structure, Ruling.ABSENT, 0.0, dict(features), (f"{told}, which may be absent",))
    return Verdict(structure, Ruling.REJECT, 0.0, dict(features), (f"{told}, so nothing could be asked",))


def _unsure(features: Mapping[str, float], settings: CurationSettings) -> list[str]:
    reasons = []
    if features["variance"] > settings.max_variance:
        reasons.append(f"variance over prompts {features['variance']:.2f} > {settings.max_variance:.2f}")
    if features["consensus"] < settings.min_consensus:
        reasons.append(f"generalists agree {features['consensus']:.2f} < {settings.min_consensus:.2f}")
    return reasons


def _painted(
    candidate: Candidate,
    verdicts: Sequence[Verdict],
    settings: CurationSettings,
    calibration: Calibration | None,
) -> PseudoLabel:
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
    decided = gates.weigh(candidate, verdicts, mask_DHW, weight_DHW, settings)
    undecided = tuple(value for value in range(1, len(verdicts) + 1) if value not in decided)
    if calibration is not None and settings.calibration.voxels and calibration.least:
        weight_DHW[voxels.doubtful(candidate, mask_DHW, calibration.least, undecided)] = 0
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
