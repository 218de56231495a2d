"""Whether bounds and sets of voxels hold: drawing again and again who calibrates and who is judged.

It needs answers about patients whose labels are known, made up or kept aside; what it returns is
for people to read, and decides nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.curation import voxels
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


@dataclass(frozen=True, slots=True)
class VoxelCoverage:
    """How sets of voxels did on patients that took no part in making them."""

    alpha: float
    patients: int
    """That calibrated each time."""
    resamplings: int
    known: float
    """Share of classes and draws in which labeled cases tell what is probable enough."""
    covered: float
    """Of a class and patient: the share of its voxels that have it in their set, in the mean; NaN if none."""
    by_class: tuple[float, ...]
    """The same class by class, by label value."""


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
    judged: list[Judged] = []
    for chosen in _drawn(everyone, count, alpha, resamplings, seed):
        model = calibrated([trial for trial in trials if trial.patient in chosen])
        for trial in trials:
            if trial.patient not in chosen:
                told = model.predict(trial.structure, trial.features, alpha)
                judged.append(Judged(trial.structure, told.dice or 0.0, told.low, trial.dice))
    return summed(judged, alpha, count, resamplings)


def resampled_voxels(
    by_patient: Mapping[str, NDArray[np.int64]],
    alpha: float,
    patients: int,
    resamplings: int = RESAMPLINGS,
    seed: int = 0,
) -> VoxelCoverage:
    """Do the same with sets of voxels, whose classes were counted by how probable they are.

    Raises:
        ValueError: there are too few patients for a set and somebody to judge.
    """
    kept: dict[int, list[float]] = {}
    known: list[bool] = []
    for chosen in _drawn(sorted(by_patient), patients, alpha, resamplings, seed):
        thresholds = voxels.least({who: counts for who, counts in by_patient.items() if who in chosen}, alpha)
        known += [threshold is not None for threshold in thresholds]
        for counts in (counts for who, counts in by_patient.items() if who not in chosen):
            for value, threshold in enumerate(thresholds):
                if threshold is not None and counts[value].sum():
                    inside = counts[value, threshold:].sum() / counts[value].sum()
                    kept.setdefault(value, []).append(float(inside))
    classes = len(next(iter(by_patient.values())))
    everything = [share for shares in kept.values() for share in shares]
    by_class = tuple(_mean(kept.get(value, [])) for value in range(classes))
    return VoxelCoverage(alpha, patients, resamplings, _mean(known), _mean(everything), by_class)


def _drawn(
    everyone: Sequence[str], count: int, alpha: float, resamplings: int, seed: int
) -> Iterator[set[str]]:
    """Draw who calibrates, again and again.

    Raises:
        ValueError: there are too few patients for a bound and somebody to judge.
    """
    if not needed(alpha) <= count < len(everyone):
        raise ValueError(
            f"{count} of {len(everyone)} patients would calibrate, expected {needed(alpha)} or more for a "
            f"bound at a level of {1 - alpha:.0%} and at least one to judge; take more, or a larger alpha"
        )
    chance = np.random.default_rng(seed)
    for _ in range(resamplings):
        yield set(chance.permutation(np.array(everyone))[:count].tolist())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
