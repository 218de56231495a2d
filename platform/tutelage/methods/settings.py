"""What the methods room can be told."""

from typing import Literal

from pydantic import Field

from tutelage.settings import Settings


class TrainSettings(Settings):
    """How a specialist learns."""

    method: Literal["supervised"] = "supervised"
    """Labels and pseudo-labels alike, the latter by their weights."""

    steps: int = Field(default=800, ge=1)
    """Batches it learns from."""

    batch: int = Field(default=2, ge=1)
    """Patches in a batch, over all workers; a multiple of their number."""

    gold_share: float = Field(default=0.5, gt=0, le=1)
    """Share of patches from annotated cases once there are pseudo-labels."""

    learning_rate: float = Field(default=4e-3, gt=0)
    """Highest rate of AdamW, reached after the warm-up."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW."""

    warmup: int = Field(default=30, ge=0)
    """Steps until the learning rate is reached; from then on it falls as (1 - s / steps) ** 0.9."""

    clip: float = Field(default=5.0, gt=0)
    """Largest norm of the gradient."""

    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running mean of the weights that is kept in the end; 0 keeps the last weights."""

    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
