"""What prompting can be told."""

from pydantic import Field

from tutelage.settings import Settings


class PromptSettings(Settings):
    """How boxes are drawn around a specialist's mask."""

    margin: float = Field(default=0.05, ge=0, le=1)
    """How far every side moves out from the tightest box, as a share of the box's size."""

    jitter: float = Field(default=0.05, ge=0, le=0.4)
    """How far a side of a further variant moves at most, in or out, as a share of the box's size."""

    variants: int = Field(default=1, ge=1, le=32)
    """Boxes drawn around each place; the first never moves. Two or more tell how stable answers are."""

    min_pixels: int = Field(default=6, ge=1)
    """Pieces of a slice with fewer pixels are not prompted."""

    min_component_share: float = Field(default=0.25, ge=0, le=1)
    """Nor are pieces smaller than this share of the structure's largest piece on that slice."""

    min_volume_share: float = Field(default=0.3, ge=0, le=1)
    """Before that, pieces of the volume smaller than this share of the structure's largest are dropped."""
