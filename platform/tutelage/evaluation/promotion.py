"""Whether a challenger takes the champion's place: two scorecards in, a decision with reasons out.

It looks at validation scores, and at how well the quality of the challenger's labels had been
predicted on labeled cases. It refuses test scores, because what decides can no longer be
reported. No IO, no torch, no MLflow.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.evaluation.paired import FEWEST, Gain, gain
from tutelage.evaluation.scorecard import MEAN, Values, mean_dice, means, table
from tutelage.evaluation.settings import EvaluationSettings, PromotionSettings
from tutelage.records import Decision, Ground, Promotion, Reason, Role, Score, Scorecard

_ROUNDING = 1e-9
"""Means of the same scores may differ by this much in floating point."""

_NEAR_MM = 1.0
"""Nearer than this is near enough, and no HD95 is more times better than another one."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well labeled cases could tell the quality of what a challenger has learned from."""

    error: float | None
    """Mean absolute error of predicted Dice; None where too few labeled cases gave no prediction."""


@dataclass(frozen=True)
class _Pair:
    """Two cards on the cases of the champion's."""

    structures: list[str]
    new: list[Score]
    old: list[Score]

    def values(self, scores: list[Score]) -> Values:
        """Dice by case and structure."""
        return table(scores, self.structures, "dice")

    def mean(self, scores: list[Score], measure: str) -> dict[str, float]:
        """Means by structure and over structures."""
        return means(scores, self.structures, measure)


def decide(
    challenger: Scorecard,
    champion: Scorecard | None,
    settings: PromotionSettings,
    evaluation: EvaluationSettings | None = None,
    labels: Reliability | None = None,
) -> Promotion:
    """Promote a challenger that gains enough on average and loses little anywhere.

    `labels` is None where nobody asked how well their quality is predicted.
    """
    for card in (challenger, champion):
        if card is not None and card.role is not Role.VALIDATION:
            raise ValueError(
                f"promotion was asked to judge scores on the {card.role.value} split, expected validation: "
                "what decides cannot be reported afterwards"
            )
    if champion is not None and _structures(champion) != _structures(challenger):
        raise ValueError(
            f"challenger knows {_structures(challenger)}, champion {_structures(champion)}; "
            "only specialists of the same structures can be compared"
        )
    if not math.isfinite(mean_dice(challenger)):
        return _on_evidence(False, challenger, champion, "no validation case shows what it can do")
    if champion is None or not math.isfinite(mean_dice(champion)):
        mean, cases = mean_dice(challenger), challenger.summaries[-1].cases
        told = f"mean Dice {mean:.3f} on {cases} validation cases, and no champion to compare with"
        return _on_evidence(True, challenger, champion, told)
    if challenger.specialist == champion.specialist:
        return _on_evidence(False, challenger, champion, "its weights are the champion's own")
    if missing := sorted(_cases(champion) - _cases(challenger)):
        told = f"{len(missing)} validation cases were scored for the champion only: {', '.join(missing[:5])}"
        return _on_evidence(False, challenger, champion, told)
    pair = _paired(challenger, champion)
    reasons = tuple(_asked(pair, settings, evaluation or EvaluationSettings(), labels))
    decision = Decision.PROMOTE if all(reason.passed for reason in reasons) else Decision.HOLD
    return Promotion(decision, challenger.specialist, champion.specialist, reasons)


def from_dict(values: Mapping[str, Any]) -> Promotion:
    """Return the promotion of `dataclasses.asdict`; versions before this one kept reasons as sentences."""
    decision = Decision(values["decision"])
    reasons = tuple(
        Reason(Ground.EVIDENCE, decision is Decision.PROMOTE, told)
        if isinstance(told, str)
        else Reason(**{**told, "kind": Ground(told["kind"])})
        for told in values["reasons"]
    )
    return Promotion(decision, values["challenger"], values["champion"], reasons)


# --- what is asked ------------------------------------------------------------------------


def _asked(
    pair: _Pair, settings: PromotionSettings, evaluation: EvaluationSettings, labels: Reliability | None
) -> Iterator[Reason]:
    found = gain(pair.values(pair.new), pair.values(pair.old), settings.min_gain, evaluation)
    new, old = pair.mean(pair.new, "dice"), pair.mean(pair.old, "dice")
    yield Reason(
        Ground.GAIN,
        found.dice >= settings.min_gain - _ROUNDING,
        f"mean Dice {new[MEAN]:.3f} on validation, champion {old[MEAN]:.3f}: {_points(found.dice)}, "
        f"at least {_points(settings.min_gain)} asked",
        value=found.dice,
        limit=settings.min_gain,
    )
    yield _certain(found, settings.min_certainty, evaluation)
    yield from _losses(new, old, settings.max_structure_loss)
    if settings.max_hd95_rise is not None:
        yield _farther(pair.mean(pair.new, "hd95_mm"), pair.mean(pair.old, "hd95_mm"), settings.max_hd95_rise)
    if labels is not None and settings.max_calibration_error is not None:
        yield _calibrated(labels, settings.max_calibration_error)


def _certain(found: Gain, asked: float, evaluation: EvaluationSettings) -> Reason:
    told = (
        f"{found.cases} cases drawn again {evaluation.bootstrap} times gain {_points(found.low)} to "
        f"{_points(found.high)} in {evaluation.confidence:.0%} of draws"
    )
    if found.certainty is None:
        told += f", too few to be sure of anything: that takes {FEWEST}"
    else:
        told += f", and enough in {found.certainty:.0%}"
    if asked:
        told += f"; {asked:.0%} asked"
    passed = not asked or (found.certainty is not None and found.certainty >= asked)
    return Reason(Ground.CERTAINTY, passed, told, value=found.certainty, limit=asked)


def _losses(new: dict[str, float], old: dict[str, float], allowed: float) -> Iterator[Reason]:
    """Yield every structure that lost too much; if none did, the one that did worst."""
    gains = {name: new[name] - before for name, before in old.items() if name != MEAN}
    known = {name: change for name, change in gains.items() if math.isfinite(change)}
    losers = [name for name, change in known.items() if change < -allowed - _ROUNDING]
    for name in losers or sorted(known, key=known.__getitem__)[:1]:
        yield Reason(
            Ground.STRUCTURE,
            name not in losers,
            f"{name}: Dice {new[name]:.3f}, champion {old[name]:.3f}: {_points(known[name])}, "
            f"at most {_points(-allowed)} allowed",
            structure=name,
            value=known[name],
            limit=-allowed,
        )


def _farther(new_mm: dict[str, float], old_mm: dict[str, float], allowed: float) -> Reason:
    """Compare structures one by one: one that is sought at the other end of the body is one of many."""
    pairs = [(new_mm[name], before) for name, before in old_mm.items() if name != MEAN]
    logs = [math.log(max(a, _NEAR_MM) / max(b, _NEAR_MM)) for a, b in pairs if math.isfinite(a + b)]
    factor = math.exp(sum(logs) / len(logs)) if logs else 1.0
    return Reason(
        Ground.HD95,
        factor <= 1 + allowed + _ROUNDING,
        f"HD95 of a structure is {factor:.2f} times the champion's, in the geometric mean, "
        f"at most {1 + allowed:.2f} times allowed",
        value=factor,
        limit=1 + allowed,
    )


def _calibrated(labels: Reliability, allowed: float) -> Reason:
    if labels.error is None:
        told = "uncalibrated: too few labeled cases to predict Dice, so other rules decided what to believe"
        return Reason(Ground.CALIBRATION, True, told, limit=allowed)
    return Reason(
        Ground.CALIBRATION,
        labels.error <= allowed,
        f"Dice of its labels was predicted with a mean error of {labels.error:.3f} on labeled cases, "
        f"at most {allowed:.3f} allowed",
        value=labels.error,
        limit=allowed,
    )


# --- cards --------------------------------------------------------------------------------


def _paired(challenger: Scorecard, champion: Scorecard) -> _Pair:
    shared = _cases(champion)
    new = [score for score in challenger.scores if score.case in shared]
    return _Pair(_structures(champion), new, list(champion.scores))


def _structures(card: Scorecard) -> list[str]:
    return [summary.structure for summary in card.summaries if summary.structure != MEAN]


def _cases(card: Scorecard) -> set[str]:
    return {score.case for score in card.scores}


def _points(dice: float) -> str:
    return f"{100 * dice:+.1f} points"


def _on_evidence(passed: bool, challenger: Scorecard, champion: Scorecard | None, told: str) -> Promotion:
    return Promotion(
        decision=Decision.PROMOTE if passed else Decision.HOLD,
        challenger=challenger.specialist,
        champion=None if champion is None else champion.specialist,
        reasons=(Reason(Ground.EVIDENCE, passed, told),),
    )
