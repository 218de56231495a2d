"""What the report page is told about a campaign: plain records, and how to make them.

Nothing here reads a file or a database; a room above gathers and hands over. Numbers that
nobody knows (a hidden label that does not exist, a weight of nothing) are None.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.geometry import Grid
from tutelage.records import Promotion, Quarantined, Ruling, Score, Scorecard

EVERY = "all structures"
"""Name of the row that sums up a round."""


@dataclass(frozen=True, slots=True)
class Curation:
    """What curation ruled about one structure in one round."""

    round: str
    structure: str
    accepted: int
    partial: int
    rejected: int
    absent: int
    failed: int
    """Cases that could not be labeled at all."""
    mean_weight: float | None
    """Over what is believed, in [0, 1]."""
    true_dice: float | None
    """Mean of accepted masks against labels that were hidden all the time, where there are any."""
    rejected_dice: float | None
    """The same of answers that were not accepted as they are: what curation kept out."""
    without_priors: "Believed | None" = None
    """What it comes to if nothing is known about anatomy; None where verdicts do not say."""
    with_priors: "Believed | None" = None
    """What it comes to if that is known."""

    @property
    def total(self) -> int:
        """Cases ruled on."""
        return self.accepted + self.partial + self.rejected + self.absent + self.failed


@dataclass(frozen=True, slots=True)
class Believed:
    """What curation accepts of the same answers under one set of rules, and how good that is.

    Answers are measured once, as they were ruled on; only what counts as accepted differs.
    """

    accepted: int
    true_dice: float | None
    """Mean of what would be accepted, against hidden labels."""
    rejected_dice: float | None
    """Mean of what would not."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Training loss of one stage."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One slice with what people and the specialist drew on it."""

    case: str
    stage: str
    """Whose prediction it is."""
    image_HW: NDArray[np.float32]
    reference_HW: NDArray[np.integer[Any]]
    prediction_HW: NDArray[np.integer[Any]]
    spacing_HW: tuple[float, float]
    """Millimeters."""
    dice: float | None = None
    """Mean over the structures of the whole case."""


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
    curation: tuple[Curation, ...] = ()
    curves: tuple[Curve, ...] = ()
    examples: tuple[Example, ...] = ()
    cases: tuple[tuple[str, int], ...] = ()
    """How many cases have which role."""
    quarantined: tuple[Quarantined, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    """Cases that failed on the way, and why."""
    settings_yaml: str = ""
    places: tuple[tuple[str, str], ...] = ()
    """What lies where: a name, and an address or a command."""


def curation_of(
    rows: Iterable[Mapping[str, Any]], truth: Mapping[str, Sequence[Score]] | None = None
) -> tuple[Curation, ...]:
    """Count the ledger's rows (round, case, structure, ruling, weight) by round and structure.

    `truth` holds scores of answers against hidden labels, by round.
    """
    true_dice = {
        (name, score.case, score.structure): score.dice
        for name, scores in (truth or {}).items()
        for score in scores
        if not score.absent
    }
    rounds: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {}).setdefault(row["structure"], []).append(row)
    counted: list[Curation] = []
    for name, by_structure in sorted(rounds.items()):
        counted += [_curation(name, s, ruled, true_dice) for s, ruled in by_structure.items()]
        everything = [row for ruled in by_structure.values() for row in ruled]
        counted.append(_curation(name, EVERY, everything, true_dice))
    return tuple(counted)


def _curation(
    name: str,
    structure: str,
    rows: Sequence[Mapping[str, Any]],
    true_dice: Mapping[tuple[str, str, str], float],
) -> Curation:
    rulings = [str(row["ruling"]) for row in rows]

    def mean_dice(*among: Ruling, by: str = "ruling") -> float | None:
        keys = [(name, str(row["case"]), str(row["structure"])) for row in rows if row.get(by) in among]
        return _mean([true_dice[key] for key in keys if key in true_dice])

    def believed(by: str) -> Believed | None:
        told = [row.get(by) for row in rows]
        if not any(told):
            return None
        others = mean_dice(Ruling.PARTIAL, Ruling.REJECT, by=by)
        return Believed(told.count(Ruling.ACCEPT.value), mean_dice(Ruling.ACCEPT, by=by), others)

    return Curation(
        round=name,
        structure=structure,
        accepted=rulings.count(Ruling.ACCEPT),
        partial=rulings.count(Ruling.PARTIAL),
        rejected=rulings.count(Ruling.REJECT),
        absent=rulings.count(Ruling.ABSENT),
        failed=len([ruling for ruling in rulings if ruling not in set(Ruling)]),
        mean_weight=_mean([row["weight"] for row in rows if row["weight"]]),
        true_dice=mean_dice(Ruling.ACCEPT),
        rejected_dice=mean_dice(Ruling.PARTIAL, Ruling.REJECT),
        without_priors=believed("without_priors"),
        with_priors=believed("with_priors"),
    )


def example(
    case: str,
    stage: str,
    image_DHW: NDArray[np.floating[Any]],
    reference_DHW: NDArray[np.integer[Any]],
    prediction_DHW: NDArray[np.integer[Any]],
    grid: Grid,
    dice: float | None = None,
) -> Example:
    """Take the slice of a case that shows the most structures, and of those the fullest."""
    index = fullest_slice(reference_DHW)
    return Example(
        case=case,
        stage=stage,
        image_HW=np.array(image_DHW[index], np.float32),
        reference_HW=np.array(reference_DHW[index]),
        prediction_HW=np.array(prediction_DHW[index]),
        spacing_HW=grid.spacing[1:],
        dice=dice,
    )


def fullest_slice(mask_DHW: NDArray[np.integer[Any]]) -> int:
    """Return the index along D of the slice with the most structures, then the most voxels."""
    fullness = [(len(np.unique(mask_HW)), int((mask_HW > 0).sum())) for mask_HW in mask_DHW]
    return max(range(len(fullness)), key=fullness.__getitem__)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
