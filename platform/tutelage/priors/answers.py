"""What a language model says about a structure: read, checked, and joined over samples.

It decides whether an answer can be used and what several answers agree on. It does not know
whether any of it is true: labeled cases and people tell that.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tutelage.priors.base import Finish, Reply
from tutelage.priors.questions import MOST_ML, MOST_PIECES
from tutelage.priors.relations import KINDS, Stated, complaints
from tutelage.records import Prior, Relation

_SHOWN = 60

Words = Annotated[str, Field(min_length=1)]
Pieces = Annotated[int, Field(ge=1, le=MOST_PIECES)]
Volume = Annotated[float, Field(ge=0, le=MOST_ML, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Related(_Model):
    """One relation of an answer."""

    kind: str
    other: str


class Said(_Model):
    """One sample of an answer about one structure, as the schema wants it."""

    shape: Words
    location: Words
    appearance: Words
    smallest_ml: Volume
    largest_ml: Volume
    fewest_pieces: Pieces
    most_pieces: Pieces
    may_be_absent: bool
    relations: tuple[Related, ...] = ()
    confused_with: tuple[str, ...] = ()

    def stated(self, structure: str) -> list[Stated]:
        """Return its relations as statements, each once."""
        return sorted({Stated(structure, related.kind, related.other) for related in self.relations})


@dataclass(frozen=True)
class Found:
    """What a reply says that can be used, and everything that is wrong with it."""

    said: Said | None
    """Without the relations that are wrong, with ranges as they are; None where more is wrong."""
    wrong: tuple[str, ...] = ()


def read(reply: Reply, structure: str, others: Sequence[str]) -> Found:
    """Return what a reply says about a structure that has these others around it."""
    values = parsed(reply)
    if isinstance(values, str):
        # A question about a structure holds nobody's notes, so what a server says about it may be told.
        return Found(None, (f"{values}: {reply.detail}" if reply.detail else values,))
    try:
        said = Said.model_validate(values)
    except ValidationError as error:
        return Found(None, tuple(_complaint(e["loc"], e["msg"], e["input"]) for e in error.errors()))
    found = _related(said, structure, others)
    return replace(found, wrong=(*_ranges_wrong(said).values(), *found.wrong))


def parsed(reply: Reply) -> Any:
    """Return the JSON object of a reply, or in words why there is none."""
    text = reply.text.strip()
    if reply.finish == Finish.ERROR:
        return reply.error or "there is no answer"
    if not text:
        return "the answer is empty; expected a JSON object"
    if reply.finish == Finish.LENGTH:
        return f"the answer was cut after {reply.tokens} tokens; write shorter sentences"
    try:
        values = json.loads(_unfenced(text))
    except ValueError:
        return f"the answer is not JSON but {_shown(text)}; expected one JSON object and nothing else"
    return values if isinstance(values, dict) else f"the answer is {_shown(values)}; expected a JSON object"


def joined(
    structure: str,
    several: Mapping[str, Sequence[Said]],
    asked: int,
    source: str,
) -> Prior:
    """Join the samples of all questions about a structure, by question, into what most of them say.

    Of ranges the medians of both ends are taken, of the rest what at least half of the samples say.
    A range that no sample gave the right way round is struck: there to be corrected, and not used.
    Texts are those of the sample that agrees most with the others; `asked` counts the samples that
    were wanted, so what could not be used lowers the confidence.
    """
    samples = [said for samples in several.values() for said in samples]
    volumes, struck_volume = _ranges(samples, "volume_ml", lambda s: (s.smallest_ml, s.largest_ml))
    pieces, struck_pieces = _ranges(samples, "components", lambda s: (s.fewest_pieces, s.most_pieces))
    volume_ml = (median(low for low, _ in volumes), median(high for _, high in volumes))
    components = _most(pieces)
    absent = _most([s.may_be_absent for s in samples])
    said = Counter(claim for s in samples for claim in s.stated(structure))
    taken_for = Counter(name for s in samples for name in dict.fromkeys(s.confused_with))
    confused = tuple(name for name, count in taken_for.items() if 2 * count >= len(samples))
    confidence = {
        "volume_ml": sum(_alike((s.smallest_ml, s.largest_ml), volume_ml) for s in samples) / asked,
        "components": sum((s.fewest_pieces, s.most_pieces) == components for s in samples) / asked,
        "may_be_absent": sum(s.may_be_absent == absent for s in samples) / asked,
        "confused_with": sum({*s.confused_with} == {*confused} for s in samples) / asked,
    }
    return Prior(
        structure=structure,
        volume_ml=volume_ml,
        components=components,
        may_be_absent=absent,
        text=_texts(
            structure, several, volume_ml, {claim for claim in said if 2 * said[claim] >= len(samples)}
        ),
        source=source,
        relations=tuple(
            Relation(claim.kind, claim.other, count / asked if asked > 1 else 1.0)
            for claim, count in sorted(said.items())
            if 2 * count >= len(samples)
        ),
        confused_with=confused,
        confidence=confidence if asked > 1 else {},
        struck=struck_volume | struck_pieces,
    )


def _ranges_wrong(said: Said) -> dict[str, str]:
    """What is wrong with ranges, which a schema cannot relate, by claim."""
    wrong = {}
    if said.smallest_ml > said.largest_ml:
        ends = f"{said.smallest_ml:g} and {said.largest_ml:g}"
        wrong["volume_ml"] = f"smallest_ml and largest_ml are {ends}; a range runs from low to high"
    elif said.largest_ml == 0:
        wrong["volume_ml"] = "largest_ml is 0; a structure has a volume"
    if said.fewest_pieces > said.most_pieces:
        ends = f"{said.fewest_pieces} and {said.most_pieces}"
        wrong["components"] = f"fewest_pieces and most_pieces are {ends}; a range runs from low to high"
    return wrong


def _related(said: Said, structure: str, others: Sequence[str]) -> Found:
    """Take out relations that name what there is not, or that cannot all be true, and say which."""
    wrong: list[str] = []
    for name in dict.fromkeys([*(related.other for related in said.relations), *said.confused_with]):
        if name == structure:
            wrong.append(f"{structure} is related to itself; name another structure")
        elif name not in others:
            wrong.append(f"unknown structure {_shown(name)}; known are {', '.join(others) or 'no others'}")
    kinds = dict.fromkeys(related.kind for related in said.relations if related.kind not in KINDS)
    wrong += [f"unknown relation {_shown(kind)}; known are {', '.join(KINDS)}" for kind in kinds]
    good = {related for related in said.relations if related.kind in KINDS and related.other in others}
    told = [Stated(structure, related.kind, related.other) for related in sorted(good, key=str)]
    circular = dict(complaints(told))
    wrong += dict.fromkeys(circular.values())
    kept = [
        r
        for r in dict.fromkeys(said.relations)
        if r in good and Stated(structure, r.kind, r.other) not in circular
    ]
    taken_for = [name for name in dict.fromkeys(said.confused_with) if name in others]
    update = {"relations": tuple(kept), "confused_with": tuple(taken_for)}
    return Found(said.model_copy(update=update), tuple(wrong))


def _ranges(
    samples: Sequence[Said], claim: str, ends: Callable[[Said], tuple[Any, Any]]
) -> tuple[list[tuple[Any, Any]], dict[str, str]]:
    """Ranges of samples that have a good one; without any all turned round, and why they are struck."""
    wrong = [_ranges_wrong(said).get(claim) for said in samples]
    good = [ends(said) for said, words in zip(samples, wrong, strict=True) if words is None]
    if good:
        return good, {}
    turned = [(min(ends(said)), max(ends(said))) for said in samples]
    return turned, {claim: f"the model said nothing usable: {wrong[0]}"}


def _texts(
    structure: str,
    several: Mapping[str, Sequence[Said]],
    volume_ml: tuple[float, float],
    relations: set[Stated],
) -> dict[str, str]:
    """Shape and position from the first question; appearance from each, as it is about images."""

    def near(said: Said) -> tuple[int, bool]:
        stated = set(said.stated(structure))
        return len(stated & relations) - len(stated - relations), _alike(
            (said.smallest_ml, said.largest_ml), volume_ml
        )

    texts: dict[str, str] = {}
    for number, (images, samples) in enumerate((key, samples) for key, samples in several.items() if samples):
        best = max(samples, key=near)
        if number == 0:
            texts = {"shape": best.shape, "position": best.location, "appearance": best.appearance}
        else:
            texts[f"appearance, {images}"] = best.appearance
    return texts


def _most(values: Sequence[Any]) -> Any:
    """The most common one; of equals the first."""
    return Counter(values).most_common(1)[0][0]


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges share half of what either covers."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    total = max(one[1], other[1]) - min(one[0], other[0])
    return one == other or (total > 0 and common / total >= 0.5)


def _unfenced(text: str) -> str:
    """Without the fence that models like to put around JSON."""
    found = re.match(r"^```(?:json)?\s*(.*?)\s*```$", text, re.DOTALL)
    return found[1] if found else text


def _complaint(loc: tuple[int | str, ...], message: str, found: object) -> str:
    where = ".".join(str(part) for part in loc)
    if message == "Field required":
        return f"{where} is missing"
    return f"{where} is {_shown(found)}: {message[0].lower()}{message[1:]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
