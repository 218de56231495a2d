"""What evaluation can be told: how scores are summed up and when a challenger is promoted."""

from pydantic import Field

from tutelage.settings import Settings


class EvaluationSettings(Settings):
    """How scores are measured and summed up."""

    nsd_tolerance_mm: float = Field(default=3.0, gt=0)
    """Boundary error in millimeters that the normalized surface Dice forgives."""

    bootstrap: int = Field(default=1000, ge=1, le=100_000)
    """How many times cases are drawn again for an interval."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of the bootstrap means that an interval holds."""


class PromotionSettings(Settings):
    """When a challenger takes the champion's place. Both numbers are Dice on the validation split."""

    min_gain: float = Field(default=0.0, ge=-1, le=1)
    """Least gain in mean Dice; 0.01 is one point."""

    max_structure_loss: float = Field(default=0.05, ge=0, le=1)
    """Most that any one structure may lose, whatever the mean gains."""
