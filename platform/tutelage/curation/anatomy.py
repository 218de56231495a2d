"""What is known of anatomy, held against a mask: volume, count, relations, and what the case's own notes say.

It decides which claims are believed enough to speak and what they say about one case. It does
not know whether generalists agree, nor what a rejection means for training.

A relation is about two structures, and if it fails it does not say which of them is wrong:
both hear of it. What counts is which share of all that is known about a structure's place
fails: one that lies where it should misses few of its many relations, a wrong one most. A share
says nothing where little is known, so what fails must also be believed enough by itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tutelage.curation.settings import CurationSettings
from tutelage.geometry import Grid
from tutelage.priors.claims import Body, body, claim_of, holds
from tutelage.priors.relations import INVERSE
from tutelage.records import Candidate, Expectation, Prior

_HALF = 255 // 2

_LEAST_ML = 1e-3
"""A range that begins at nothing has no logarithm; a microlitre is as good as nothing."""

_HOW = {
    "left-of": "right of",
    "right-of": "left of",
    "superior-to": "below",
    "inferior-to": "above",
    "anterior-to": "behind",
    "posterior-to": "in front of",
    "inside": "outside",
    "contains": "around nothing of",
    "touching": "apart from",
}
"""Where a structure lies that does not lie where it should."""


@dataclass(frozen=True, slots=True)
class Placed:
    """How a structure lies among the others."""

    checked: int = 0
    """Relations that could be measured."""

    violated: float = 0.0
    """Share of them that fails, each counted as much as it is believed."""

    against: float = 0.0
    """How much those that fail are believed, added up."""

    failures: tuple[str, ...] = ()
    """Those in words."""

    @property
    def features(self) -> dict[str, float]:
        """The numbers, as a verdict keeps them; nothing where nothing was measured."""
        if not self.checked:
            return {}
        return {"relations_checked": float(self.checked), "relations_violated": self.violated}


NOWHERE = Placed()
"""Of a structure about whose place nothing is known."""


def may_be_absent(prior: Prior | None) -> bool:
    """Whether it would be no wonder if a structure is not there."""
    return prior is not None and (prior.may_be_absent or "may_be_absent" in prior.struck)


_NOTED = {Expectation.ABSENT: 0.0, Expectation.DOUBTFUL: 0.5, Expectation.EXPECTED: 1.0}


def noted(expected: Expectation | None) -> dict[str, float]:
    """Return what the case's notes say as the number that a verdict keeps."""
    return {} if expected is None else {"notes_expect": _NOTED[expected]}


def outside(
    features: Mapping[str, float], prior: Prior | None, settings: CurationSettings
) -> dict[str, float]:
    """Return how far a volume lies outside the prior's range, as a logarithm; nothing if that is unknown."""
    volume_ml = features["generalist_ml"]
    if prior is None or not volume_ml or believed(prior, "volume_ml") < settings.min_claim:
        return {}
    low, high = (math.log(max(ml, _LEAST_ML)) for ml in prior.volume_ml)
    return {"outside_prior": max(0.0, low - math.log(volume_ml), math.log(volume_ml) - high)}


def objections(
    structure: str,
    features: Mapping[str, float],
    prior: Prior | None,
    settings: CurationSettings,
    placed: Placed,
    expected: Expectation | None = None,
) -> list[str]:
    """Say what speaks against a mask that was found."""
    told = [*_sizes(structure, features, prior, settings)] if prior is not None else []
    clear = placed.against >= settings.min_violated
    if placed.failures and clear and placed.violated >= settings.max_violated:
        told += placed.failures
    if expected is Expectation.ABSENT:
        volume_ml = features["generalist_ml"]
        found = (
            f"{structure} was found, {volume_ml:.1f} ml,"
            if volume_ml
            else f"the specialist found {structure},"
        )
        told.append(f"{found} but the case's notes say it is absent")
    return told


def _sizes(
    structure: str, features: Mapping[str, float], prior: Prior, settings: CurationSettings
) -> list[str]:
    told = []
    low, high = prior.volume_ml
    volume, pieces = features["generalist_ml"], features["components"]
    slack = settings.volume_slack
    wrong_size = not low * (1 - slack) <= volume <= high * (1 + slack)
    if wrong_size and believed(prior, "volume_ml") >= settings.min_claim:
        told.append(f"{structure} is {volume:.1f} ml, expected {low:g} to {high:g} ml")
    if believed(prior, "components") >= settings.min_claim:
        fewest, most = prior.components
        if pieces > most:
            told.append(f"{structure} is in {pieces:.0f} pieces, expected at most {most}")
        elif 0 < pieces < fewest:
            told.append(f"{structure} is in {pieces:.0f} pieces, expected at least {fewest}")
    return told


def believed(prior: Prior, claim: str) -> float:
    """Return how much a claim counts: share of answers that made it, times what annotated cases leave."""
    if claim in prior.struck:
        return 0.0
    return prior.confidence.get(claim, 1.0) * prior.weights.get(claim, 1.0)


# --- how structures lie ---------------------------------------------------------------------


def placed(
    candidate: Candidate,
    grid: Grid,
    structures: Sequence[str],
    priors: Mapping[str, Prior],
    doubtful: set[str],
    settings: CurationSettings,
) -> dict[str, Placed]:
    """Measure every relation that is believed enough, of every structure that was found.

    A structure is measured by the generalist's mask. The other one too, unless it is `doubtful`
    or nothing was answered about it: then by the specialist's.
    """
    known = relations(priors, structures, settings.min_claim)
    if not known:
        return {name: NOWHERE for name in structures}
    answered, seen = _bodies(candidate, grid, structures, doubtful)
    return lying(answered, seen, known, settings)


def _bodies(
    candidate: Candidate, grid: Grid, structures: Sequence[str], doubtful: set[str]
) -> tuple[dict[str, Body | None], Callable[[str], Body | None]]:
    """The generalist's masks, and where the other structure of a relation lies."""
    answered = {name: _answered(candidate, value, grid) for value, name in enumerate(structures, start=1)}

    def seen(other: str) -> Body | None:
        sure = answered[other] if other not in doubtful else None
        return sure or _specialists(candidate, structures.index(other) + 1, grid)

    return answered, seen


def mistaken(
    structure: str,
    features: Mapping[str, float],
    placed: Placed,
    candidate: Candidate,
    grid: Grid,
    structures: Sequence[str],
    priors: Mapping[str, Prior],
    doubtful: set[str],
    settings: CurationSettings,
) -> tuple[str, ...]:
    """Say which structures a mask may show instead: taken for its own at times, nothing speaking against it.

    It is said of a mask alone that does not fit its own structure, and decides nothing.
    """
    if not features["generalist_ml"] or not objections(
        structure, features, priors.get(structure), settings, placed
    ):
        return ()
    told = []
    known = relations(priors, structures, settings.min_claim)
    answered, seen = _bodies(candidate, grid, structures, doubtful)
    for other in _confused(structure, structures, priors, settings.min_claim):
        about = {key: weight for key, weight in known.get(other, {}).items() if key[1] != structure}
        there = lying({other: answered[structure]}, seen, {other: about}, settings)[other]
        unknown = placed.failures and not there.checked
        if not unknown and not objections(other, features, priors[other], settings, there):
            fits = "its size and place fit" if there.checked else "its size fits"
            told.append(f"{structure} may be {other} instead: {fits}")
    return tuple(told)


def _confused(
    structure: str, structures: Sequence[str], priors: Mapping[str, Prior], least: float
) -> Iterator[str]:
    """Yield what a structure is taken for, or the reverse, where it is known how large that is."""

    def taken(one: str, other: str) -> bool:
        if one not in priors or other not in priors[one].confused_with:
            return False
        return believed(priors[one], "confused_with") >= least

    for other in structures:
        sized = other in priors and believed(priors[other], "volume_ml") >= least
        if sized and (taken(structure, other) or taken(other, structure)):
            yield other


def lying(
    bodies: Mapping[str, Body | None],
    seen: Callable[[str], Body | None],
    known: Mapping[str, Mapping[tuple[str, str], float]],
    settings: CurationSettings,
) -> dict[str, Placed]:
    """Measure every relation of `relations`, of every structure that has a body.

    `seen` gives the other structure of a relation, None where it is not there; it is asked once for each.
    """
    others: dict[str, Body | None] = {}
    found: dict[str, Placed] = {}
    for name, one in bodies.items():
        told = []
        for (kind, other), weight in known.get(name, {}).items() if one is not None else ():
            if other not in others:
                others[other] = seen(other)
            there = others[other]
            if one is not None and there is not None:
                told.append((kind, other, weight, holds(kind, one, there, settings.relation_slack_mm)))
        found[name] = _summed(name, told)
    return found


def relations(
    priors: Mapping[str, Prior], structures: Sequence[str], believed: float = 0.0
) -> dict[str, dict[tuple[str, str], float]]:
    """Return how much each relation counts, by structure, kind and other; both structures know of it.

    One that is believed less than `believed` counts nothing.
    """
    known: dict[str, dict[tuple[str, str], float]] = {}
    for name in structures:
        for related in priors[name].relations if name in priors else ():
            struck = claim_of(related.kind, related.other) in priors[name].struck
            weight = 0.0 if struck else related.confidence * related.weight
            if weight > 0 and weight >= believed and related.other in structures and related.other != name:
                for about, kind, other in (
                    (name, related.kind, related.other),
                    (related.other, INVERSE[related.kind], name),
                ):
                    told = known.setdefault(about, {})
                    told[kind, other] = max(weight, told.get((kind, other), 0.0))
    return known


def _summed(name: str, told: Sequence[tuple[str, str, float, bool]]) -> Placed:
    total = sum(weight for _, _, weight, _ in told)
    wrong = [(kind, other, weight) for kind, other, weight, held in told if not held]
    if not told:
        return NOWHERE
    against = sum(weight for _, _, weight in wrong)
    return Placed(
        len(told),
        against / total,
        against,
        tuple(f"{name} lies {_HOW[kind]} {other}, expected {kind}" for kind, other, _ in wrong),
    )


def _answered(candidate: Candidate, value: int, grid: Grid) -> Body | None:
    region = candidate.regions[value]
    return body(region.mean_DHW > _HALF, grid, region.start) if region.mean_DHW.size else None


def _specialists(candidate: Candidate, value: int, grid: Grid) -> Body | None:
    return body(candidate.specialist_DHW == value, grid)
