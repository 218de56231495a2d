"""What the report page is told about a campaign: plain records.

Nothing here reads a file or a database; a room above gathers and hands over. Numbers that
nobody knows (a hidden label that does not exist, a weight of nothing) are None.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.believing import Curation
from tutelage.records import Promotion, Scorecard


@dataclass(frozen=True, slots=True)
class Work:
    """One step of one stage, when it was last done."""

    stage: str
    step: str
    cases: int | None
    """Cases that it was about; None of a step that goes through no cases."""
    failed: int
    seconds: float
    """Of the last attempt: what one that was killed had done already, was not done again."""
    worked_s: float | None
    """Seconds that processes spent on cases, added up over all attempts; None where nobody counted."""
    per_hour: float | None
    """Cases an hour in the last attempt."""
    hit_share: float | None
    """Share of slices that the cache knew."""
    gpu_s: float | None
    """Seconds that GPUs were held, by the settings of today, in the last attempt or by all that was done if
    that is more; None without one."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One specialist, and what it came from."""

    name: str
    method: str
    annotated: int | None
    """Cases with a label of people that it learned from."""
    pseudo: int | None
    """Cases with a pseudo-label that it learned from."""
    lineage: tuple[tuple[str, str], ...] = ()
    """What went in, in order: a name and a digest; the specialist itself comes last."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How well one round predicted the quality of its answers."""

    round: str
    alpha: float
    """Bounds may be missed this often."""
    patients: int
    """Labeled ones that were tried."""
    bounded: int
    """Structures that have a bound."""
    error: float | None
    """Mean absolute error of predicted Dice on labeled cases; None if nothing could be learned."""
    points: tuple[tuple[float, float], ...] = ()
    """Predicted and true Dice of answers about labeled cases, each predicted without its patient."""
    bins: tuple[tuple[float, float, int], ...] = ()
    """The same of answers about cases with a hidden label, averaged where predictions are alike: mean
    predicted Dice, mean true Dice, how many."""
    judged: int = 0
    """Answers with a hidden label and a bound."""
    covered: float | None = None
    """Share of them that are as good as their bound."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Training loss of one stage; long ones averaged over neighboring steps."""

    name: str
    steps: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Plane:
    """One slice through a structure, as a person looks at it: up is up."""

    image_HW: NDArray[np.float32]
    reference_HW: NDArray[np.bool_]
    prediction_HW: NDArray[np.bool_]
    spacing_HW: tuple[float, float]
    """Millimeters."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """One structure of one case in three planes: what people drew and what the specialist draws."""

    case: str
    structure: str
    color: int
    """Of the structure: its place among all, from 0."""
    rank: str
    """best, worst, or only."""
    dice: float
    planes: tuple[Plane, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that could not be used, and why. No address: it may name a person."""

    what: str
    """A case with its stage and step, or how many files."""
    reason: str


@dataclass(frozen=True, slots=True)
class Campaign:
    """Everything the page shows."""

    name: str
    workspace: str
    made: str
    """When the page was made, as text."""
    version: str
    """Of tutelage."""
    structures: tuple[str, ...]
    champion: str | None
    """Stage of the champion."""
    validation: tuple[tuple[str, Scorecard], ...]
    """By stage, in order."""
    test: tuple[tuple[str, Scorecard], ...]
    promotions: tuple[tuple[str, Promotion], ...] = ()
    """By stage, in order."""
    stages: tuple[Stage, ...] = ()
    stopped: str | None = None
    """Why rounds ended before the last one that was asked for."""
    curation: tuple[Curation, ...] = ()
    calibration: tuple[Calibrated, ...] = ()
    work: tuple[Work, ...] = ()
    curves: tuple[Curve, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    cases: tuple[tuple[str, int], ...] = ()
    """How many cases have which role."""
    quarantined: int = 0
    """Files of the archive that cannot be used."""
    failed: int = 0
    """Cases that failed on the way."""
    troubles: tuple[Trouble, ...] = ()
    """Some of both, with reasons."""
    settings_yaml: str = ""
    places: tuple[tuple[str, str], ...] = ()
    """What lies where: a name, and an address or a command."""
