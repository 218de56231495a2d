"""What is asked about anatomy: one question a structure, modality and view, and the schema of its answer.

Everything that does not differ between questions is in the system prompt, which an engine
computes once. Texts are bounded in the schema, so that `max_tokens` suffices for the longest
answer it allows. It does not know who answers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.errors import SettingsError
from tutelage.priors.base import Question
from tutelage.priors.relations import KINDS
from tutelage.priors.settings import AskingSettings

MOST_ML = 20000.0
"""No structure of a person is larger."""

MOST_PIECES = 40

_RELATIONS = 6
_CONFUSED = 3
"""At most so many in an answer; more would be guessed."""

_FEWEST_LETTERS = 8

_DECIMALS = 7
"""Point and digits after it that engines allow."""

_MOST_LETTERS = re.compile(r",(\d+)\}\$$")


@dataclass(frozen=True, slots=True)
class Topic:
    """What a question is about."""

    structure: str
    modality: str
    view: str

    @property
    def key(self) -> str:
        """As a question's key; a structure's name comes first and cannot hold the bar."""
        return f"{self.structure}|{self.modality}|{self.view}"


@dataclass(frozen=True)
class Region:
    """What an archive shows: the structures that can be told apart, and how they were imaged."""

    structures: tuple[str, ...]
    modalities: tuple[str, ...]

    def others(self, structure: str) -> tuple[str, ...]:
        """All structures but one.

        Raises:
            SettingsError: the archive has no such structure.
        """
        if structure not in self.structures:
            known = ", ".join(self.structures)
            raise SettingsError(
                f"the archive has no structure {structure!r}, so nothing is asked about it; it has {known}"
            )
        return tuple(name for name in self.structures if name != structure)


def topics(region: Region, structures: Sequence[str], settings: AskingSettings) -> list[Topic]:
    """List what to ask about: every structure as each modality shows it in each view."""
    for structure in structures:
        region.others(structure)
    return [
        Topic(structure, modality, view)
        for structure in structures
        for modality in region.modalities or ("",)
        for view in settings.views
    ]


def question(topic: Topic, region: Region, settings: AskingSettings) -> Question:
    """Return the question about a topic, of one sample."""
    names = schema(region.others(topic.structure), settings)
    return Question(
        key=topic.key,
        system=system(region),
        user=_user(topic),
        schema=names,
        temperature=settings.temperature if settings.samples > 1 else 0.0,
        max_tokens=longest(names),
        seed=settings.seed,
    )


def again(asked: Question, said: str, complaints: Sequence[str]) -> Question:
    """Return a question once more, with what was wrong with the answer."""
    listed = "\n".join(f"- {complaint}" for complaint in complaints)
    shown = f"You answered: {said[: asked.max_tokens]}\n" if said else ""
    user = f"{asked.user}\n\n{shown}That answer cannot be used:\n{listed}\nAnswer again, with this put right."
    return replace(asked, user=user)


def system(region: Region) -> str:
    """Return what all questions about a region share."""
    kinds = ", ".join(f'"{kind}"' for kind in KINDS)
    structures = "\n".join(f"- {name}" for name in region.structures)
    return (
        "You are a radiologist who writes down what is known about anatomy before any image is seen.\n"
        "You answer with one JSON object and nothing else. Its fields:\n"
        "shape: what the structure looks like, in one sentence.\n"
        "location: where it lies in the body and beside what, in one sentence.\n"
        "appearance: how bright and how even it is in the images named, in one sentence.\n"
        "smallest_ml, largest_ml: the volumes in milliliters between which nearly all adults lie.\n"
        "fewest_pieces, most_pieces: how many separate pieces a correct mask of it has.\n"
        "may_be_absent: whether a person can lack it, by nature or after surgery.\n"
        f"relations: where its center lies as seen from others' centers; kind is one of {kinds}. "
        "Left and right are the patient's own. "
        '{"kind": "left-of", "other": NAME} says that it lies left of NAME. '
        "State only what holds in nearly all adults, at most one relation of a kind and its opposite.\n"
        "confused_with: which of the others are easily taken for it.\n"
        f"The images show these structures, and no others may be named:\n{structures}\n"
    )


def schema(others: Sequence[str], settings: AskingSettings) -> dict[str, Any]:
    """Return the JSON schema of an answer about a structure that has these others around it."""
    letters = words(_FEWEST_LETTERS, settings.letters)
    volume = {"type": "number", "minimum": 0, "maximum": MOST_ML}
    pieces = {"type": "integer", "minimum": 1, "maximum": MOST_PIECES}
    fields: dict[str, Any] = {
        "shape": letters,
        "location": letters,
        "appearance": letters,
        "smallest_ml": volume,
        "largest_ml": volume,
        "fewest_pieces": pieces,
        "most_pieces": pieces,
        "may_be_absent": {"type": "boolean"},
    }
    if others:
        name = {"type": "string", "enum": list(others)}
        related = _object({"kind": {"type": "string", "enum": list(KINDS)}, "other": name})
        fields["relations"] = {"type": "array", "items": related, "maxItems": min(_RELATIONS, len(others))}
        fields["confused_with"] = {"type": "array", "items": name, "maxItems": min(_CONFUSED, len(others))}
    return _object(fields)


def words(fewest: int, most: int) -> dict[str, Any]:
    """Return the schema of a text of so many plain letters; a token writes one of them at least."""
    return {"type": "string", "pattern": f"^[A-Za-z0-9 ,.;:()/%+'-]{{{fewest},{most}}}$"}


def longest(schema: Mapping[str, Any]) -> int:
    """Count the letters of the longest answer that a schema allows; it has no more tokens than that."""
    kind = schema.get("type")
    if "enum" in schema:
        return max(len(value) for value in schema["enum"]) + 2
    if kind == "object":
        return 2 + sum(len(name) + 6 + longest(inner) for name, inner in schema["properties"].items())
    if kind == "array":
        return 2 + int(schema["maxItems"]) * (2 + longest(schema["items"]))
    if kind == "string":
        bound = _MOST_LETTERS.search(schema["pattern"])
        return int(bound[1]) + 2 if bound else 2
    return len(str(MOST_ML)) + _DECIMALS


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _user(topic: Topic) -> str:
    seen = f"{topic.modality} images" if topic.modality else "medical images"
    return f"Structure: {topic.structure}\nImages: {seen}, {topic.view} slices"
