"""How good an answer is, predicted from its doubts, and how good it is at least: learned from labeled cases.

A labeled case is asked about as if it had no label, by a specialist that never saw it; what
came of that is a `Trial`. Few labeled cases give some dozens of trials, so the prediction is a
line with little freedom: what a structure is worth, less what doubts take off, both shrunk.
A doubt may only lower it, since among few cases chance makes some doubts look like virtues.

The bound is the jackknife+ one of Barber et al. (2021), one-sided: lines are fitted without each
patient in turn, and a patient's score for a structure is by how much the line without it promised
too much. Structures of one patient err together, so they never count as so many
observations: each structure has a bound of its own, from one score a patient. What is
promised: among exchangeable patients, of the answers about one structure at least 1 - 2 alpha
are as good as their bound whatever the distribution, and about 1 - alpha where a single patient
moves the line little, which is what is measured. Not promised: that all structures of a patient
are at once, nor anything for patients unlike the labeled ones. From too few patients there is no bound;
then that is what it says.

It knows neither what is done with a bound nor where trials come from.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tutelage.curation.doubts import NAMES, Sight, Usual, doubts_of, usual

_SHRINK = 1.0
"""Ridge on what is in deviations of trials: a doubt in which they hardly differ takes off hardly anything."""

_FARTHEST = 3.0
"""Deviations beyond which an answer is not doubted more: nothing was seen there that a line could follow."""

_CONSTANT = 1e-6

_LEAST_PATIENTS = 3
"""Fewer leave no line when one of them is left out."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer about one structure of a labeled case, and how good it really was."""

    patient: str
    structure: str
    features: Mapping[str, float]
    """As a verdict keeps them."""
    dice: float
    """Against the label."""


@dataclass(frozen=True, slots=True)
class Line:
    """Predicts Dice from doubts."""

    level: float
    """Of an answer as doubtful as the mean of trials, about no structure in particular."""
    centers_F: tuple[float, ...]
    scales_F: tuple[float, ...]
    costs_F: tuple[float, ...]
    """What one deviation of each doubt takes off."""
    structures: Mapping[str, float]
    """What is added for a structure."""

    def dice(self, structure: str, doubts_F: NDArray[np.float64]) -> float:
        """Return the predicted Dice of one answer; an unknown doubt counts as a mean one."""
        deviations_F = _deviations(doubts_F, np.array(self.centers_F), np.array(self.scales_F))
        told = self.level + self.structures.get(structure, 0.0) - float(deviations_F @ self.costs_F)
        return min(1.0, max(0.0, told))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of one answer."""

    dice: float | None
    """None if nothing could be learned."""
    low: float | None
    """What it reaches at least, at the level asked for; None if labeled cases are too few to say."""
    why: str
    """In words."""

    @property
    def features(self) -> dict[str, float]:
        """Return what a verdict keeps of it."""
        told = {"predicted_dice": self.dice, "dice_low": self.low}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What labeled cases teach about answers."""

    patients: int = 0
    line: Line | None = None
    """From all of them; None if they are too few."""
    without: Mapping[str, Line] = field(default_factory=dict)
    """Without one patient, by patient."""
    short: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By how much the line without a patient promised too much, by structure and patient."""
    usual: Mapping[str, Usual] = field(default_factory=dict)
    """What labeled cases look like, by structure."""
    least: tuple[int | None, ...] = ()
    """See `voxels.least`; by label value, from 0."""

    def predict(self, structure: str, features: Mapping[str, float], alpha: float) -> Prediction:
        """Predict one answer, with the bound that 1 - alpha of such answers keep."""
        scores, doubts_F = self.short.get(structure, {}), doubts_of(features)
        dice = self.line.dice(structure, doubts_F) if self.line else None
        rank = rank_of(len(scores), alpha)
        if dice is None or rank is None:
            there = len(scores) if self.line else self.patients
            told = f"uncalibrated: {there} labeled patient{'' if there == 1 else 's'} with {structure}"
            level = f"a bound at a level of {1 - alpha:.0%}"
            return Prediction(dice, None, f"{told}, expected {needed(alpha)} or more for {level}")
        lowest = sorted(self.without[who].dice(structure, doubts_F) - over for who, over in scores.items())
        low = min(1.0, max(0.0, lowest[len(scores) - rank]))
        return Prediction(
            dice, low, f"predicted Dice {dice:.3f}, at least {low:.3f} at a level of {1 - alpha:.0%}"
        )


def calibrated(
    trials: Sequence[Trial], seen: Sequence[Sight] = (), least: Sequence[int | None] = ()
) -> Calibration:
    """Learn from trials, of which each patient's are left out once."""
    patients = sorted({trial.patient for trial in trials})
    references = usual(seen)
    if len(patients) < _LEAST_PATIENTS:
        return Calibration(len(patients), usual=references, least=tuple(least))
    table = _Table.of(trials)
    without = {who: table.fitted(without=who) for who in patients}
    short: dict[str, dict[str, float]] = {}
    for trial, doubts_F in zip(trials, table.doubts_NF, strict=True):
        over = without[trial.patient].dice(trial.structure, doubts_F) - trial.dice
        worst = short.setdefault(trial.structure, {})
        worst[trial.patient] = max(over, worst.get(trial.patient, -math.inf))
    return Calibration(len(patients), table.fitted(), without, short, references, tuple(least))


def rank_of(n: int, alpha: float) -> int | None:
    """Return which of n scores, in order from 1, is the conformal quantile; None if there is none.

    Raises:
        ValueError: alpha is no share.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a share between 0 and 1")
    rank = math.ceil(round((n + 1) * (1 - alpha), 9))  # 20 * (1 - 0.05) must not come to 19.000000000000004
    return rank if 1 <= rank <= n else None


def quantile(scores: Iterable[float], alpha: float) -> float | None:
    """Return the conformal quantile: the ceil((n + 1) (1 - alpha))-th smallest; None if there is none."""
    ordered = sorted(scores)
    rank = rank_of(len(ordered), alpha)
    return None if rank is None else ordered[rank - 1]


def needed(alpha: float) -> int:
    """Return from how many patients there is a bound."""
    n = _LEAST_PATIENTS
    while rank_of(n, alpha) is None:
        n += 1
    return n


# --- fitting --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """Trials as arrays: N trials, F doubts, K structures."""

    patients: NDArray[np.str_]
    structures: tuple[str, ...]
    doubts_NF: NDArray[np.float64]
    belongs_NK: NDArray[np.float64]
    dice_N: NDArray[np.float64]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "_Table":
        structures = tuple(sorted({trial.structure for trial in trials}))
        return cls(
            np.array([trial.patient for trial in trials]),
            structures,
            np.stack([doubts_of(trial.features) for trial in trials]),
            np.array([[trial.structure == name for name in structures] for trial in trials], np.float64),
            np.array([trial.dice for trial in trials]),
        )

    def fitted(self, without: str | None = None) -> Line:
        """Fit a line to the trials of all patients, or of all but one."""
        kept = self.patients != without if without is not None else np.ones(len(self.patients), bool)
        doubts_NF, belongs_NK, dice_N = self.doubts_NF[kept], self.belongs_NK[kept], self.dice_N[kept]
        centers_F, scales_F = _scales(doubts_NF)
        # What a structure adds may have either sign, so each has two columns of which one stays 0.
        whole = np.hstack([-_deviations(doubts_NF, centers_F, scales_F), belongs_NK, -belongs_NK])
        means = whole.mean(axis=0)
        ridge = math.sqrt(_SHRINK) * np.eye(whole.shape[1])
        answers = np.concatenate([dice_N - dice_N.mean(), np.zeros(len(ridge))])
        found, _ = nnls(np.vstack([whole - means, ridge]), answers)
        costs_F, more_K, less_K = np.split(found, [len(NAMES), len(NAMES) + len(self.structures)])
        return Line(
            float(dice_N.mean() - means @ found),
            tuple(centers_F.tolist()),
            tuple(scales_F.tolist()),
            tuple(costs_F.tolist()),
            dict(zip(self.structures, (more_K - less_K).tolist(), strict=True)),
        )


def _scales(doubts_NF: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each doubt over trials in which it is known; 0 and 1 of one that never is."""
    known = np.isfinite(doubts_NF)
    count_F = np.maximum(1, known.sum(axis=0))
    filled_NF = np.where(known, doubts_NF, 0.0)
    centers_F = filled_NF.sum(axis=0) / count_F
    squares_F = (np.where(known, filled_NF - centers_F, 0.0) ** 2).sum(axis=0) / count_F
    scales_F = np.sqrt(squares_F)
    return centers_F, np.where(scales_F > _CONSTANT, scales_F, 1.0)


def _deviations(
    doubts: NDArray[np.float64], centers_F: NDArray[np.float64], scales_F: NDArray[np.float64]
) -> NDArray[np.float64]:
    told = np.clip((doubts - centers_F) / scales_F, -_FARTHEST, _FARTHEST)
    return np.where(np.isfinite(told), told, 0.0)


# --- as a file ------------------------------------------------------------------------------


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """Return what JSON can hold."""
    return {"doubts": list(NAMES)} | asdict(calibration)


def from_dict(values: Mapping[str, Any]) -> Calibration:
    """Return the calibration of `to_dict`.

    Raises:
        ValueError: it was made from other doubts than these.
    """
    if tuple(values["doubts"]) != NAMES:
        raise ValueError(f"it rests on {', '.join(values['doubts'])}, expected {', '.join(NAMES)}")
    return Calibration(
        values["patients"],
        None if values["line"] is None else _line(values["line"]),
        {who: _line(line) for who, line in values["without"].items()},
        values["short"],
        {
            name: Usual(one["log_ml"], one["spread"], tuple(one["center_C"]))
            for name, one in values["usual"].items()
        },
        tuple(values["least"]),
    )


def _line(values: Mapping[str, Any]) -> Line:
    lists = {name: tuple(values[name]) for name in ("centers_F", "scales_F", "costs_F")}
    return Line(level=values["level"], structures=values["structures"], **lists)
