"""What each method can be told beyond what all share: one class a method, numbers as published.

It is pure, so that settings are checked before torch is loaded. It does not know what a
method does with them.
"""

from pydantic import Field

from tutelage.settings import Settings


class MeanTeacherOptions(Settings):
    """A running mean of the specialist teaches it to be steady. Also UA-MT's base."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the running mean, at most."""

    noise: float = Field(default=0.1, ge=0)
    """Deviation of the noise on the teacher's image, clipped at twice that."""

    consistency: float = Field(default=0.1, ge=0)
    """Weight of the consistency term once it has risen."""

    rise: float = Field(default=0.4, gt=0, le=1)
    """Share of all steps over which it rises as exp(-5 (1 - t)^2)."""
