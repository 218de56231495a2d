"""The shelf: priors that a person reviews, as one YAML file for one region of the body.

It decides how a prior is written down, and tells what a person has changed in it: each entry
that a model made carries a digest of every claim as the model and the labeled cases left it,
with its weight, and a claim that no longer has its digest was edited. Relations that cannot all
be true are refused. It does not know who asks for a prior or whether an image
agrees with it.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from tutelage.errors import SettingsError
from tutelage.priors.relations import KINDS, circles, stated
from tutelage.records import Prior, Relation
from tutelage.settings import Settings, fingerprint, load
from tutelage.storage import Place

CLAIMS = ("volume_ml", "components", "may_be_absent", "confused_with", "relations")
"""What an entry claims, beside its texts, whose claims are called text.shape, text.position and so on."""

_HEAD = """\
# Priors that a language model wrote: read them before you rely on them, it may be wrong anatomy.
# Change what is wrong; a changed claim is kept when the model is asked again, and marked as edited.
# Comments of your own do not survive that.
"""

_PLAIN = re.compile(r"^(?P<kind>[a-z-]+) (?P<other>.+)$")


class Asked(Settings):
    """Where an entry comes from."""

    model: str
    """Name of the model."""

    weights: str
    """Digest of its weights; `unknown` behind an endpoint that does not tell."""

    prompt: str
    """Digest of everything it was asked about the structure."""

    sampling: dict[str, float]
    """Samples, temperature, max_tokens and seed."""

    date: str
    """Day of the answer."""

    claims: dict[str, str]
    """Digest of each claim as the model made it and labeled cases weighed it: a claim that no longer has
    it was edited."""


class _Related(Settings):
    """One relation; in the file also `left-of liver` alone."""

    kind: str
    """Which, of `relations.KINDS`."""

    other: str
    """The other structure."""

    confidence: float = Field(default=1.0, ge=0, le=1)
    """Share of the answers that said so."""

    weight: float = Field(default=1.0, ge=0, le=1)
    """How much it counts."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"no such relation, expected one of {', '.join(KINDS)}")
        return kind


class Entry(Settings):
    """One structure."""

    volume_ml: tuple[float, float]
    """Smallest and largest volume to expect in adults."""

    components: tuple[int, int] = (1, 1)
    """Fewest and most separate pieces."""

    may_be_absent: bool = False
    """Whether a person can lack it."""

    text: dict[str, str] = Field(default_factory=dict)
    """Sentences by topic: shape, position, appearance."""

    relations: tuple[_Related, ...] = ()
    """Where it lies as seen from other structures."""

    confused_with: tuple[str, ...] = ()
    """What is easily taken for it."""

    confidence: dict[str, float] = Field(default_factory=dict)
    """Share of a model's answers that agree, by claim."""

    struck: dict[str, str] = Field(default_factory=dict)
    """What labeled cases say against a claim, by claim; it is not used."""

    edited: tuple[str, ...] = ()
    """Claims that a person changed."""

    weights: dict[str, float] = Field(default_factory=dict)
    """How much a claim counts of which only some labeled cases disagree."""

    contradicted: dict[str, str] = Field(default_factory=dict)
    """What labeled cases say against a claim that is still used."""

    asked: Asked | None = None
    """None where a person wrote the entry."""

    @field_validator("volume_ml", "components")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"a range runs from low to high, write [{value[1]:g}, {value[0]:g}]")
        return value

    @field_validator("relations", mode="before")
    @classmethod
    def _spelled_out(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        plain = [(one, _PLAIN.match(one) if isinstance(one, str) else None) for one in value]
        return [found.groupdict() if found else one for one, found in plain]

    def prior(self, name: str, source: str) -> Prior:
        """Return it as the record that other rooms know."""
        return Prior(
            structure=name,
            volume_ml=self.volume_ml,
            components=self.components,
            may_be_absent=self.may_be_absent,
            text=self.text,
            source=source,
            relations=tuple(Relation(**related.model_dump()) for related in self.relations),
            confused_with=self.confused_with,
            confidence=self.confidence,
            struck=self.struck,
            edited=self.edited,
            weights=self.weights,
            contradicted=self.contradicted,
        )


class _File(Settings):
    """The whole file."""

    source: str
    """Who wrote the entries, from what, and when."""

    structures: dict[str, Entry]
    """Entries by the name that the archive gives the structure."""


@dataclass(frozen=True)
class Shelf:
    """Priors by structure, and where those that a model wrote come from."""

    source: str
    priors: dict[str, Prior]
    asked: dict[str, Asked]

    def with_priors(self, priors: Mapping[str, Prior]) -> "Shelf":
        """Return it with other opinions about claims (weights, strikes), which then are no edits."""
        asked = {}
        for name, origin in self.asked.items():
            edited = priors[name].edited
            left = {claim: told for claim, told in claims_of(priors[name]).items() if claim not in edited}
            asked[name] = origin.model_copy(update={"claims": origin.claims | left})
        return replace(self, priors=dict(priors), asked=asked)


def read(path: Path | None) -> dict[str, Prior]:
    """Return the priors of a shelf by structure; without a shelf there are none.

    Raises:
        SettingsError: every problem of the file at once.
    """
    return {} if path is None else opened(Place.of(path)).priors


def opened(place: Place) -> Shelf:
    """Return a whole shelf, with every claim that was changed since a model made it among the edited.

    Raises:
        SettingsError: every problem of the file at once.
    """
    if place.local is not None:
        file = load(place.local, _File)
    else:
        with tempfile.TemporaryDirectory() as folder:
            try:
                (copy := Path(folder) / place.name).write_bytes(place.read_bytes())
            except OSError as error:
                raise SettingsError(f"{place} cannot be read: {error}") from None
            file = load(copy, _File)
    priors = {
        name: _with_edits(entry.prior(name, file.source), entry.asked)
        for name, entry in file.structures.items()
    }
    asked = {name: entry.asked for name, entry in file.structures.items() if entry.asked}
    _consistent(place, priors)
    return Shelf(file.source, priors, asked)


def _consistent(place: Place, priors: Mapping[str, Prior]) -> None:
    """Refuse relations that cannot all be true: nobody but who wrote them knows which is wrong."""
    found = circles(stated(used(priors)))
    wrong = [" and ".join(f'"{claim}"' for claim in circle) for circle in found]
    if wrong:
        listed = "\n".join(f"  {words} cannot be true" for words in wrong)
        raise SettingsError(
            f"{place} contradicts itself, take one relation of each line out or turn it round:\n{listed}"
        )


def write(place: Place, shelf: Shelf) -> None:
    """Write a shelf for a person to read, whole or not at all."""
    structures = {name: _plain(prior, shelf.asked.get(name)) for name, prior in shelf.priors.items()}
    content = {"source": shelf.source, "structures": structures}
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    place.write_text((_HEAD if shelf.asked else "") + text)


def claims_of(prior: Prior) -> dict[str, str]:
    """Return a digest of every claim of a prior and its weight, without how many answers made it.

    A weight of 1 leaves no trace, so that a shelf without weights has the digests of its claims alone.
    """
    told: dict[str, object] = {
        "volume_ml": [float(value) for value in prior.volume_ml],
        "components": list(prior.components),
        "may_be_absent": prior.may_be_absent,
        "confused_with": sorted(prior.confused_with),
        "relations": sorted(_weighted((one.kind, one.other), one.weight) for one in prior.relations),
    } | {f"text.{topic}": sentence for topic, sentence in prior.text.items()}
    return {
        claim: fingerprint(*_weighted((value,), prior.weights.get(claim, 1.0)))
        for claim, value in told.items()
    }


def _weighted(claim: tuple[object, ...], weight: float) -> tuple[Any, ...]:
    """A claim with its weight as the file says it, if it says one."""
    return claim if round(weight, 3) == 1 else (*claim, round(weight, 3))


def used(priors: Mapping[str, Prior]) -> dict[str, list[Relation]]:
    """Return by structure the relations that are not struck."""
    return {
        name: [one for one in prior.relations if f"{one.kind} {one.other}" not in prior.struck]
        for name, prior in priors.items()
    }


def kept_edits(answered: Prior, before: Prior) -> Prior:
    """Return what a model says now, with every claim that a person edited as the person left it."""
    values: dict[str, Any] = {claim: getattr(before, claim) for claim in before.edited if claim in CLAIMS}
    texts = dict(answered.text)
    for topic in (claim.removeprefix("text.") for claim in before.edited if claim.startswith("text.")):
        texts.pop(topic, None)
        if topic in before.text:
            texts[topic] = before.text[topic]
    confidence = {claim: share for claim, share in answered.confidence.items() if claim not in before.edited}
    struck = {claim: words for claim, words in answered.struck.items() if claim not in before.edited}
    weights = {claim: weight for claim, weight in before.weights.items() if claim in before.edited}
    return replace(
        answered,
        **values,
        text=texts,
        confidence=confidence,
        struck=struck,
        edited=before.edited,
        weights=weights,
    )


def _with_edits(prior: Prior, asked: Asked | None) -> Prior:
    if asked is None:
        return prior
    now = claims_of(prior)
    changed = {claim for claim in {*now, *asked.claims} if now.get(claim) != asked.claims.get(claim)}
    if not changed - {*prior.edited}:
        return prior
    edited = tuple(sorted({*prior.edited, *changed}))
    unsure = {claim: share for claim, share in prior.confidence.items() if claim not in edited}
    struck = {claim: words for claim, words in prior.struck.items() if claim not in edited}
    return replace(prior, confidence=unsure, struck=struck, edited=edited)


# --- how it looks in the file --------------------------------------------------------------


class _Flow(dict[str, Any]):
    """Keys and values on one line."""


class _Dumper(yaml.SafeDumper):
    """Lists and small mappings on one line."""


_Dumper.add_representer(
    _Flow, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq",
        value,
        flow_style=all(
            isinstance(one, int | float | str) and (not isinstance(one, str) or " " not in one)
            for one in value
        ),
    ),
)


def _plain(prior: Prior, asked: Asked | None) -> dict[str, Any]:
    """An entry without what says nothing."""
    entry: dict[str, Any] = {
        "volume_ml": [_number(value) for value in prior.volume_ml],
        "components": list(prior.components),
        "may_be_absent": prior.may_be_absent,
        "text": dict(prior.text),
        "relations": [_related(related) for related in prior.relations],
        "confused_with": list(prior.confused_with),
        "confidence": _Flow({claim: round(share, 3) for claim, share in prior.confidence.items()}),
        "struck": dict(prior.struck),
        "edited": list(prior.edited),
        "weights": _Flow({claim: round(weight, 3) for claim, weight in prior.weights.items()}),
        "contradicted": dict(prior.contradicted),
    }
    entry = {key: value for key, value in entry.items() if value not in ({}, [])}
    if asked is not None:
        told = asked.model_dump(mode="json")
        sampling = {key: _number(value) for key, value in asked.sampling.items()}
        entry["asked"] = told | {"sampling": _Flow(sampling), "claims": _Flow(asked.claims)}
    return entry


def _related(related: Relation) -> object:
    if related.confidence == related.weight == 1:
        return f"{related.kind} {related.other}"
    weights = {"confidence": round(related.confidence, 3), "weight": round(related.weight, 3)}
    return _Flow({"kind": related.kind, "other": related.other} | weights)


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
