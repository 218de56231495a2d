"""Whether bounds hold: measured by drawing again and again which patients calibrate and which are judged.

It needs answers about patients whose labels are known, made up or kept aside; what it returns is
for people to read, and decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.curation.calibration import Trial, calibrated, needed

RESAMPLINGS = 200


@dataclass(frozen=True, slots=True)
class Coverage:
    """How bounds did on answers that took no part in making them."""

    alpha: float
    patients: int
    """That calibrated each time."""
    resamplings: int
    answers: int
    """That were judged, over all resamplings."""
    bounded: float
    """Share of them that had a bound; the others say that they are uncalibrated."""
    covered: float
    """Share of those with a bound that reach it; NaN if there is none."""
    by_structure: dict[str, float]
    room: float
    """By how much true Dice lies above the bound in the mean: 0 would be a bound as tight as can be."""
    error: float
    """Mean absolute error of predicted Dice."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer with its bound, and how good it really was."""

    structure: str
    predicted: float
    low: float | None
    dice: float


def summed(judged: Sequence[Judged], alpha: float, patients: int, resamplings: int = 1) -> Coverage:
    """Count how many answers reach their bound."""
    bounded = [one for one in judged if one.low is not None]
    kept: dict[str, list[bool]] = {}
    for one in bounded:
        kept.setdefault(one.structure, []).append(one.dice >= (one.low or 0.0))
    everything = [hit for hits in kept.values() for hit in hits]
    return Coverage(
        alpha,
        patients,
        resamplings,
        len(judged),
        len(bounded) / len(judged) if judged else 0.0,
        _mean(everything),
        {name: _mean(hits) for name, hits in sorted(kept.items())},
        _mean([one.dice - (one.low or 0.0) for one in bounded]),
        _mean([abs(one.dice - one.predicted) for one in judged]),
    )


def resampled(
    trials: Sequence[Trial],
    alpha: float,
    patients: int | None = None,
    resamplings: int = RESAMPLINGS,
    seed: int = 0,
) -> Coverage:
    """Calibrate on some patients and judge the others, many times; half of them unless told how many.

    Raises:
        ValueError: there are too few patients for a bound and somebody to judge.
    """
    everyone = sorted({trial.patient for trial in trials})
    count = len(everyone) // 2 if patients is None else patients
    if not needed(alpha) <= count < len(everyone):
        raise ValueError(
            f"{count} of {len(everyone)} patients would calibrate, expected {needed(alpha)} or more for a "
            f"bound at a level of {1 - alpha:.0%} and at least one to judge; take more, or a larger alpha"
        )
    chance = np.random.default_rng(seed)
    judged: list[Judged] = []
    for _ in range(resamplings):
        chosen = set(chance.permutation(np.array(everyone))[:count].tolist())
        model = calibrated([trial for trial in trials if trial.patient in chosen])
        for trial in trials:
            if trial.patient not in chosen:
                told = model.predict(trial.structure, trial.features, alpha)
                judged.append(Judged(trial.structure, told.dice or 0.0, told.low, trial.dice))
    return summed(judged, alpha, count, resamplings)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
