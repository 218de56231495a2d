"""What speaks against an answer, in numbers that all point one way: 0 is no doubt, more is more.

It decides what a prediction of Dice may look at. It does not know how much a doubt costs; that
is learned from labeled cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubts = NDArray[np.float64]
"""(F,), one for each of `NAMES`; NaN where nothing is known."""

NAMES = (
    "disagreement",
    "variance",
    "entropy",
    "resized",
    "components",
    "dissent",
    "modesty",
    "unusual_volume",
    "distance",
    "outside_prior",
    "relations_violated",
)

_LEAST_SPREAD = 0.1
"""Volumes of a few patients may be alike by chance; a tenth more or less is never unusual."""


def doubts_of(features: Mapping[str, float]) -> Doubts:
    """Turn a verdict's features into doubts; what was not measured is unknown, priors excepted.

    Nothing known of anatomy is nothing that speaks against a mask, so that is 0.
    """
    agreement = features["agreement"]
    told = {
        "disagreement": 1 - 2 * agreement / (1 + agreement),  # of Dice, which is what is predicted
        "variance": features["variance"],
        "entropy": features.get("entropy", np.nan),
        "resized": abs(np.log(features["generalist_ml"] / features["specialist_ml"])),
        "components": np.log(max(1.0, features["components"])),
        "dissent": 1 - features["consensus"],
        "modesty": 1 - features["predicted_iou"],
        "unusual_volume": features.get("unusual_volume", np.nan),
        "distance": features.get("distance", np.nan),
        "outside_prior": features.get("outside_prior", 0.0),
        "relations_violated": features.get("relations_violated", 0.0),
    }
    return np.array([told[name] for name in NAMES], np.float64)


def answered(features: Mapping[str, float]) -> bool:
    """Whether there is anything to predict the Dice of: both found the structure."""
    return features["specialist_ml"] > 0 and features["generalist_ml"] > 0


# --- beside the labeled cases ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sight:
    """One structure of one labeled case: what an answer about another case is held beside."""

    patient: str
    structure: str
    volume_ml: float
    """Of the label."""
    pooled_C: tuple[float, ...] = ()
    """The generalist's features inside its own mask; empty or zero if there are none."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What one structure looks like in labeled cases."""

    log_ml: float
    """Mean logarithm of volumes."""
    spread: float
    """Their deviation."""
    center_C: tuple[float, ...]
    """Mean direction of features."""

    def beside(self, volume_ml: float, pooled_C: Sequence[float]) -> dict[str, float]:
        """Return how far an answer is from that, as features of a verdict.

        The distance is the mean one to all labeled cases, not that to the nearest: the mean does
        not shrink when there is one case more, and a labeled case has one fewer to be held beside.
        """
        told = {}
        if volume_ml > 0:
            told["unusual_volume"] = abs(float(np.log(volume_ml)) - self.log_ml) / self.spread
        direction_C = _direction(pooled_C)
        if direction_C is not None and len(self.center_C) == len(direction_C):
            told["distance"] = 1 - float(direction_C @ np.asarray(self.center_C))
        return told


def usual(seen: Sequence[Sight], without: str | None = None) -> dict[str, Usual]:
    """Sum up what labeled cases show, those of one patient left out; two cases are the least."""
    found: dict[str, Usual] = {}
    for structure in dict.fromkeys(sight.structure for sight in seen):
        own = [s for s in seen if s.structure == structure and s.patient != without and s.volume_ml > 0]
        if len(own) < 2:
            continue
        logs = np.log([sight.volume_ml for sight in own])
        directions = [d for sight in own if (d := _direction(sight.pooled_C)) is not None]
        center_C = np.mean(directions, axis=0).tolist() if directions else []
        spread = max(_LEAST_SPREAD, float(logs.std(ddof=1)))
        found[structure] = Usual(float(logs.mean()), spread, tuple(center_C))
    return found


def _direction(pooled_C: Sequence[float]) -> NDArray[np.float64] | None:
    vector_C = np.asarray(pooled_C, np.float64)
    length = float(np.linalg.norm(vector_C)) if len(vector_C) else 0.0
    return vector_C / length if length > 0 else None
