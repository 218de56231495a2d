"""Whether a challenger takes the champion's place: two scorecards in, a decision with reasons out.

It looks at validation scores only and refuses test scores, because what decides can no
longer be reported. No IO, no torch, no MLflow.
"""

import math
from collections.abc import Iterator

from tutelage.evaluation.scorecard import MEAN, mean_dice, nan_mean, table
from tutelage.evaluation.settings import PromotionSettings
from tutelage.records import Decision, Promotion, Role, Scorecard

_ROUNDING = 1e-9
"""Means of the same scores may differ by this much in floating point."""


def decide(challenger: Scorecard, champion: Scorecard | None, settings: PromotionSettings) -> Promotion:
    """Promote a challenger that gains enough on average and loses little anywhere."""
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
        return _promotion(Decision.HOLD, challenger, champion, "no validation case shows what it can do")
    if champion is None or not math.isfinite(mean_dice(champion)):
        mean, cases = mean_dice(challenger), challenger.summaries[-1].cases
        told = f"mean Dice {mean:.3f} on {cases} validation cases, and no champion to compare with"
        return _promotion(Decision.PROMOTE, challenger, champion, told)
    if challenger.specialist == champion.specialist:
        return _promotion(Decision.HOLD, challenger, champion, "its weights are the champion's own")
    return _compared(challenger, champion, settings)


def _compared(challenger: Scorecard, champion: Scorecard, settings: PromotionSettings) -> Promotion:
    mine, theirs = _cases(challenger), _cases(champion)
    if missing := sorted(theirs - mine):
        told = f"{len(missing)} validation cases were scored for the champion only: {', '.join(missing[:5])}"
        return _promotion(Decision.HOLD, challenger, champion, told)
    new, old = _dice(challenger, theirs), _dice(champion, theirs)
    gain = new[MEAN] - old[MEAN]
    enough = gain >= settings.min_gain - _ROUNDING
    reasons = [
        f"mean Dice {new[MEAN]:.3f} on validation, champion {old[MEAN]:.3f}: {_points(gain)}, "
        f"at least {_points(settings.min_gain)} asked"
    ]
    losers = list(_losers(new, old, settings.max_structure_loss))
    decision = Decision.PROMOTE if enough and not losers else Decision.HOLD
    return _promotion(decision, challenger, champion, *reasons, *losers)


def _losers(new: dict[str, float], old: dict[str, float], allowed: float) -> Iterator[str]:
    for structure, before in old.items():
        after = new.get(structure, math.nan)
        if structure != MEAN and after < before - allowed - _ROUNDING:
            yield (
                f"{structure}: Dice {after:.3f}, champion {before:.3f}: {_points(after - before)}, "
                f"at most {_points(-allowed)} allowed"
            )


def _dice(card: Scorecard, cases: set[str]) -> dict[str, float]:
    """Mean Dice by structure and over structures, on these cases only."""
    structures = _structures(card)
    values = table([s for s in card.scores if s.case in cases], structures, "dice")
    means = nan_mean(values, axis=0)
    named = dict(zip(structures, (float(m) for m in means), strict=True))
    return named | {MEAN: float(nan_mean(means[None], axis=1)[0])}


def _structures(card: Scorecard) -> list[str]:
    return [summary.structure for summary in card.summaries if summary.structure != MEAN]


def _cases(card: Scorecard) -> set[str]:
    return {score.case for score in card.scores}


def _points(dice: float) -> str:
    return f"{100 * dice:+.1f} points"


def _promotion(
    decision: Decision, challenger: Scorecard, champion: Scorecard | None, *reasons: str
) -> Promotion:
    return Promotion(
        decision=decision,
        challenger=challenger.specialist,
        champion=None if champion is None else champion.specialist,
        reasons=reasons,
    )
