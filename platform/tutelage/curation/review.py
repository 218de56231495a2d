"""Which few cases a person should correct, and what to propose to that person.

What a corrected case is expected to bring is, added up over structures s,

    gain = sum of doubt_s x rarity_s

`doubt_s` is how wrong the answer is likely to be: one less the Dice that labeled cases predict, halfway
to what they promise at least, since an answer nobody is sure of may be worse than expected. Where
nothing is calibrated it is one less the product of what speaks for the answer: agreement of specialist and
generalist, of generalists among each other, and steadiness over prompts; any of them alone is
enough to doubt. What was rejected and contradicts anatomy (a size or a place that cannot be) is doubted
by half at least, however sure all are: they may agree about the wrong organ. What was not found, but must
be there, is doubted in full; what may be absent, not at all.

`rarity_s` is what one more label of a structure is worth. Error falls about as the logarithm of the number of
labels, so one more of n is worth 1 / n: (1 + gold) / (1 + gold + believed), of which 1 is a
structure that only the annotated cases show. A gain of 3 is three such structures, each wholly wrong.

Two cases that are doubted alike teach much the same. Cases are chosen one after another, and
each counts half less the more it resembles one that was chosen: in which structures are doubted, and in
how they look to the generalist where that is known. No more than half, because even a twin adds something,
and where there is a single structure all cases are doubted alike.

It reads verdicts and answers. It knows no labels, hidden or not, and no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.records import Candidate, PseudoLabel, Ruling

Vector = NDArray[np.float64]

_HALF = 255 // 2

AGAINST = ("outside_prior", "relations_violated")
"""What the ledger says of an answer that anatomy contradicts; 0 or nothing where it does not."""

_IMPOSSIBLE = 0.5

_NAMED = 3
"""Structures that a proposal gives as reasons."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What correcting one case would bring."""

    case: str
    by_structure: dict[str, float]
    """Doubt times rarity."""
    reasons: tuple[str, ...]
    """Of the structures that bring most."""

    @property
    def total(self) -> float:
        """Over all structures."""
        return sum(self.by_structure.values())


@dataclass(frozen=True, slots=True)
class Chosen:
    """A case to correct, in the order in which cases should be."""

    gain: Gain
    resembles: str | None
    """The case chosen before it that it is most like."""
    likeness: float
    """How much, in [0, 1]."""


def doubt(row: Mapping[str, Any]) -> float:
    """Return how wrong an answer is likely to be, in [0, 1], from its row in the ledger."""
    ruling = row["ruling"]
    if ruling == Ruling.ABSENT.value:
        return 0.0
    if not row.get("specialist_ml"):
        return 1.0
    contradicted = ruling == Ruling.REJECT.value and any(row.get(name) for name in AGAINST)
    return max(_IMPOSSIBLE if contradicted else 0.0, _unsure(row))


def _unsure(row: Mapping[str, Any]) -> float:
    """How wrong an answer is by what was predicted of it, or else by what disagrees."""
    dice, low = row.get("predicted_dice"), row.get("dice_low")
    if dice is not None:
        return _share(1 - (dice + (dice if low is None else low)) / 2)
    steady = 1 - _known(row.get("variance"), 0.0)
    return _share(1 - _known(row.get("agreement"), 0.0) * _known(row.get("consensus"), 1.0) * steady)


def rarities(gold: int, believed: Mapping[str, float]) -> dict[str, float]:
    """Return what one more label of each structure is worth; `believed` are weights, added up."""
    return {name: (1 + gold) / (1 + gold + weight) for name, weight in believed.items()}


def gain(case: str, rows: Sequence[Mapping[str, Any]], rarity: Mapping[str, float]) -> Gain:
    """Add up what correcting a case would bring, from its rows in the ledger."""
    doubts = {str(row["structure"]): (doubt(row), str(row["ruling"])) for row in rows}
    parts = {name: value * rarity.get(name, 1.0) for name, (value, _) in doubts.items()}
    most = sorted(parts, key=lambda name: (-parts[name], name))[:_NAMED]
    return Gain(
        case,
        parts,
        tuple(
            f"{name}: {doubts[name][1]}, doubt {doubts[name][0]:.2f}, rarity {rarity.get(name, 1.0):.2f}"
            for name in most
            if parts[name] > 0
        ),
    )


def choose(
    gains: Sequence[Gain], count: int, vectors: Mapping[str, NDArray[np.floating[Any]]] | None = None
) -> list[Chosen]:
    """Choose cases one after another, those that are unlike what was chosen before them first."""
    waiting = sorted((one for one in gains if one.total > 0), key=lambda one: (-one.total, one.case))
    likeness = _likeness(waiting, vectors or {})
    nearest = np.zeros(len(waiting))
    like: list[int | None] = [None] * len(waiting)
    left = list(range(len(waiting)))
    chosen: list[Chosen] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda i: (waiting[i].total * (1 - nearest[i] / 2), -i))
        left.remove(best)
        twin = like[best]
        name = None if twin is None else waiting[twin].case
        chosen.append(Chosen(waiting[best], name, float(nearest[best])))
        for i in left:
            if likeness[best, i] > nearest[i]:
                nearest[i], like[i] = likeness[best, i], best
    return chosen


def proposed(candidate: Candidate, label: PseudoLabel) -> NDArray[np.uint8]:
    """Return the mask to begin with: what is believed, else what was answered, else what was asked about."""
    mask_DHW = np.zeros(candidate.specialist_DHW.shape, np.uint8)
    values = range(1, len(candidate.regions))
    answered = {value for value in values if (candidate.regions[value].mean_DHW > _HALF).any()}
    for value in values:
        if value not in answered:
            mask_DHW[candidate.specialist_DHW == value] = value
    for value in sorted(answered):
        region = candidate.regions[value]
        mask_DHW[region.where][region.mean_DHW > _HALF] = value
    believed = label.mask_DHW > 0
    mask_DHW[believed] = label.mask_DHW[believed]
    return mask_DHW


def _likeness(gains: Sequence[Gain], vectors: Mapping[str, NDArray[np.floating[Any]]]) -> Vector:
    """How alike cases are, in [0, 1], each with each."""
    if not gains:
        return np.zeros((0, 0))
    names = sorted({name for one in gains for name in one.by_structure})
    doubted = np.array([[one.by_structure.get(name, 0.0) for name in names] for one in gains])
    alike = _cosines(doubted)
    known = [vectors.get(one.case) for one in gains]
    there = [i for i, vector in enumerate(known) if vector is not None and vector.size]
    if len(there) > 1:
        seen = np.array([np.asarray(known[i], np.float64) for i in there])
        # All scans look alike to a generalist; what tells them apart is where they lie off the mean.
        looks = _cosines(seen - seen.mean(axis=0))
        alike[np.ix_(there, there)] = (alike[np.ix_(there, there)] + looks) / 2
    return alike


def _cosines(rows: Vector) -> Vector:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.clip(units @ units.T, 0.0, 1.0))


def _share(value: float) -> float:
    return min(1.0, max(0.0, float(value)))


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else _share(value)
