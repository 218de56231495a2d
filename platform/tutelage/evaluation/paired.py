"""What a challenger gains on the cases that both were scored on, and how sure that is: a paired bootstrap.

The same cases are drawn for both, so what makes a case difficult falls out of the difference. It is
drawn in the very number that decides, a mean over structures of means over cases, and bears structures
that some cases lack. A signed-rank test does neither: it ranks differences of cases, and of
three cases its smallest p is an eighth, whatever they show.

Draws of a handful of cases are too much alike, so intervals are too narrow there. Below
`FEWEST` cases, of which no exact test could be sure at 95 % either, nothing is said to be certain.
"""

from dataclasses import dataclass

import numpy as np

from tutelage.evaluation.scorecard import Values, nan_mean
from tutelage.evaluation.settings import EvaluationSettings

FEWEST = 5
"""Cases from which on a share of draws is worth telling: by chance all of five gain once in 32 times."""

_SEED = 0
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean Dice of the challenger less the champion's."""

    cases: int
    dice: float
    low: float
    """Lower end of the interval over draws of cases."""
    high: float
    certainty: float | None
    """Share of draws in which it is what was asked; None of too few cases."""


def gain(challenger: Values, champion: Values, asked: float, settings: EvaluationSettings) -> Gain:
    """Compare two tables of Dice of the same cases, in the same order, and structures."""
    if challenger.shape != champion.shape:
        raise ValueError(f"tables of {challenger.shape} and {champion.shape} (cases, structures) are no pair")
    cases = len(challenger)
    draws = np.random.default_rng(_SEED).integers(0, cases, (settings.bootstrap, cases))
    gains = np.array([_mean(challenger[draw]) - _mean(champion[draw]) for draw in draws])
    gains = gains[np.isfinite(gains)]  # a draw may miss every case with a structure
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(gains, (tail, 1 - tail)) if len(gains) else (np.nan, np.nan)
    certain = float((gains >= asked - _ROUNDING).mean()) if cases >= FEWEST and len(gains) else None
    return Gain(cases, _mean(challenger) - _mean(champion), float(low), float(high), certain)


def _mean(values: Values) -> float:
    """Mean over structures of their means over cases."""
    return float(nan_mean(nan_mean(values, axis=0), axis=0))
