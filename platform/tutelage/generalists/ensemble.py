"""Several generalists about one volume.

Each is asked what it can take, with its own window and its own cache, one after another;
what they say is joined as `fusion` says, every opinion alike. It decides nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.generalists.base import Generalist
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.settings import GeneralistSettings
from tutelage.generalists.slices import Voxels
from tutelage.generalists.volumes import Asked, conclude, hear
from tutelage.records import Prompt


@dataclass(frozen=True, slots=True)
class Member:
    """A loaded generalist with what belongs to it."""

    generalist: Generalist
    settings: GeneralistSettings
    cache: EmbeddingCache


def digest(members: Sequence[Member]) -> str:
    """Name all weights, in order."""
    return "+".join(member.generalist.weights for member in members)


def ask_all(
    members: Sequence[Member],
    questions: Sequence[Sequence[Prompt]],
    image: Voxels,
    image_digest: str,
    classes: int,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Asked:
    """Put to every member its own questions about the same image; see `volumes.hear`."""
    return conclude(
        [
            hear(m.generalist, image, image_digest, prompts, classes, m.cache, m.settings, spacing)
            for m, prompts in zip(members, questions, strict=True)
        ],
        classes,
    )
