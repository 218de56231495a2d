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
    """When a challenger takes the champion's place, and when rounds end, by the validation split alone.

    Gains and losses are in Dice, 0.01 is one point.
    """

    min_gain: float = Field(default=0.0, ge=-1, le=1)
    """Least gain in mean Dice."""

    min_certainty: float = Field(default=0.0, ge=0, lt=1)
    """Share of bootstrap draws of cases in which `min_gain` must be reached. At 0 the mean alone decides: a
    handful of cases is sure of nothing. Above 0 fewer than five cases promote nobody but the first."""

    max_structure_loss: float = Field(default=0.05, ge=0, le=1)
    """Most that any one structure may lose, whatever the mean gains."""

    max_hd95_rise: float | None = Field(default=0.25, ge=0)
    """Share by which HD95 may rise, in the geometric mean over structures; None lets it. An arithmetic mean
    would be about the one structure that is sought at the other end of the body."""

    max_calibration_error: float | None = Field(default=0.2, ge=0, le=1)
    """By how much predicted Dice may have been off on labeled cases, in the mean, in the round that made the
    challenger's labels, where `curation.calibration` is enabled; None lets it."""

    patience: int = Field(default=2, ge=0)
    """Rounds in a row without a new champion after which no further one begins; 0 has all of them."""
