"""The shelf: priors that a person has reviewed, as one YAML file for one region of the body.

It decides how a prior is written down. It does not know who asks for it or whether an
image agrees with it.
"""

from pathlib import Path

from pydantic import Field, field_validator

from tutelage.records import Prior
from tutelage.settings import Settings, load


class _Entry(Settings):
    """One structure."""

    volume_ml: tuple[float, float]
    """Smallest and largest volume to expect in adults."""

    components: tuple[int, int] = (1, 1)
    """Fewest and most separate pieces."""

    may_be_absent: bool = False
    """Whether a person can lack it."""

    text: dict[str, str] = Field(default_factory=dict)
    """Sentences by topic: shape, position, appearance."""

    @field_validator("volume_ml", "components")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"a range runs from low to high, write [{value[1]:g}, {value[0]:g}]")
        return value


class _Shelf(Settings):
    """The whole file."""

    source: str
    """Who wrote the entries, from what, and when."""

    structures: dict[str, _Entry]
    """Entries by the name that the archive gives the structure."""


def read(path: Path | None) -> dict[str, Prior]:
    """Return the priors of a shelf by structure; without a shelf there are none.

    Raises:
        SettingsError: every problem of the file at once.
    """
    if path is None:
        return {}
    shelf = load(path, _Shelf)
    return {
        name: Prior(
            structure=name,
            volume_ml=entry.volume_ml,
            components=entry.components,
            may_be_absent=entry.may_be_absent,
            text=entry.text,
            source=shelf.source,
        )
        for name, entry in shelf.structures.items()
    }
