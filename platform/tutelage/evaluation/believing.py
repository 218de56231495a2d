"""What curation believed, counted: by round and structure, and how good it really was where that is known.

It adds up tallies, groups of rulings that are alike, so that a ledger of any length comes to a few
numbers before anybody looks at it. Where rulings and true Dice come from, the caller knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tutelage.records import Ruling

EVERY = "all structures"
"""Name of the row that sums up a round."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers about one structure in one round that were ruled on alike."""

    round: str
    structure: str
    ruling: str
    """One of `Ruling`, or anything else of a case that could not be labeled at all."""
    count: int
    weighted: int = 0
    """How many have a weight, and what those weights come to."""
    weight: float = 0.0
    measured: int = 0
    """How many have a hidden label to compare with, and what their true Dice comes to."""
    dice: float = 0.0
    without_priors: str | None = None
    """The ruling if nothing were known about anatomy; None where verdicts do not say."""
    with_priors: str | None = None
    """The ruling if that is known."""


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


def curation_of(tallies: Iterable[Tally]) -> tuple[Curation, ...]:
    """Add up tallies by round and structure, structures in the order they come in, all of them last."""
    rounds: dict[str, dict[str, list[Tally]]] = {}
    for tally in tallies:
        rounds.setdefault(tally.round, {}).setdefault(tally.structure, []).append(tally)
    counted: list[Curation] = []
    for name, by_structure in sorted(rounds.items()):
        counted += [_curation(name, structure, told) for structure, told in by_structure.items()]
        everything = [tally for told in by_structure.values() for tally in told]
        counted.append(_curation(name, EVERY, everything))
    return tuple(counted)


_OTHERS = (Ruling.PARTIAL, Ruling.REJECT)


def _curation(name: str, structure: str, told: Sequence[Tally]) -> Curation:
    def count(ruling: Ruling) -> int:
        return sum(tally.count for tally in told if tally.ruling == ruling)

    return Curation(
        round=name,
        structure=structure,
        accepted=count(Ruling.ACCEPT),
        partial=count(Ruling.PARTIAL),
        rejected=count(Ruling.REJECT),
        absent=count(Ruling.ABSENT),
        failed=sum(tally.count for tally in told if tally.ruling not in set(Ruling)),
        mean_weight=_share(sum(t.weight for t in told), sum(t.weighted for t in told)),
        true_dice=_true_dice(told, "ruling", Ruling.ACCEPT),
        rejected_dice=_true_dice(told, "ruling", *_OTHERS),
        without_priors=_believed(told, "without_priors"),
        with_priors=_believed(told, "with_priors"),
    )


def _believed(told: Sequence[Tally], by: str) -> Believed | None:
    if not any(getattr(tally, by) for tally in told):
        return None
    accepted = sum(tally.count for tally in told if getattr(tally, by) == Ruling.ACCEPT)
    return Believed(accepted, _true_dice(told, by, Ruling.ACCEPT), _true_dice(told, by, *_OTHERS))


def _true_dice(told: Sequence[Tally], by: str, *among: Ruling) -> float | None:
    """Mean over the answers that were, or would be, ruled on in one of these ways."""
    chosen = [tally for tally in told if getattr(tally, by) in among]
    return _share(sum(tally.dice for tally in chosen), sum(tally.measured for tally in chosen))


def _share(total: float, count: int) -> float | None:
    return total / count if count else None
