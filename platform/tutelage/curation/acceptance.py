"""What is believed of an answer whose Dice was predicted: its bound decides, not what it was predicted from.

It decides acceptance, half belief and rejection where labeled cases give a bound. Where they do
not, the rules decide, and the verdict says so. It does not know how Dice is predicted.
"""

from collections.abc import Mapping, Sequence

from tutelage.curation.calibration import Calibration, Prediction
from tutelage.curation.doubts import answered
from tutelage.curation.settings import CurationSettings
from tutelage.records import Candidate, Ruling, Verdict


def beside(
    calibration: Calibration, candidate: Candidate, value: int, structure: str, volume_ml: float
) -> dict[str, float]:
    """Return how an answer looks beside the labeled cases, as features of its verdict."""
    usual = calibration.usual.get(structure)
    return {} if usual is None else usual.beside(volume_ml, pooled(candidate, value))


def pooled(candidate: Candidate, value: int) -> tuple[float, ...]:
    """Return the generalist's features inside its mask of one structure; empty without any."""
    return tuple(float(v) for v in candidate.pooled_KC[value])


def predicted(
    calibration: Calibration | None, structure: str, features: Mapping[str, float], settings: CurationSettings
) -> Prediction | None:
    """Predict the Dice of an answer; None where nobody asked, or where there is no answer."""
    if calibration is None or not answered(features):
        return None
    return calibration.predict(structure, features, settings.calibration.alpha)


def ruled(
    structure: str,
    features: Mapping[str, float],
    prediction: Prediction,
    objections: Sequence[str],
    settings: CurationSettings,
) -> Verdict | None:
    """Rule by the bound; None if there is none. What is known of anatomy may still object."""
    if prediction.dice is None or prediction.low is None:
        return None
    least, half = settings.calibration.min_dice, settings.calibration.partial_dice
    if objections:
        return Verdict(structure, Ruling.REJECT, 0.0, dict(features), (*objections, prediction.why))
    if prediction.low >= least:
        weight = features["agreement"] if settings.weight_by_agreement else 1.0
        return Verdict(structure, Ruling.ACCEPT, weight, dict(features), (prediction.why,))
    if prediction.dice >= half:
        told = f"{prediction.why}, expected at least {least:.2f}"
        return Verdict(structure, Ruling.PARTIAL, settings.partial_weight, dict(features), (told,))
    told = f"{prediction.why}, expected a prediction of {half:.2f} or more"
    return Verdict(structure, Ruling.REJECT, 0.0, dict(features), (told,))
