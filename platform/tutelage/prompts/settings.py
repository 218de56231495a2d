"""What prompting can be told."""

from typing import Literal

from pydantic import Field, field_validator

from tutelage.settings import Settings

Kind = Literal["boxes", "points", "boxes+points", "mask"]


class PromptSettings(Settings):
    """How a specialist's mask becomes questions."""

    kinds: Kind = "boxes"
    """What every question holds. mask: the piece itself, in low resolution, and its box with it, because no
    generalist has learned from a mask alone."""

    axes: tuple[int, ...] = (0,)
    """Axes along which slices are asked about: 0 is D, 1 is H, 2 is W. Across thick slices a generalist sees
    stripes, so more than 0 pays only where voxels are nearly cubes."""

    margin: float = Field(default=0.05, ge=0, le=1)
    """How far every side moves out from the tightest box, as a share of the box's size."""

    jitter: float = Field(default=0.05, ge=0, le=0.4)
    """How far a side of a further variant's box, or its mask, moves at most, as a share of the box's size."""

    variants: int = Field(default=1, ge=1, le=32)
    """Questions about each place; the first is never moved. Two or more tell how stable answers are."""

    points: int = Field(default=3, ge=1, le=32)
    """Clicks inside each piece, deep in it and far apart; a small piece has room for fewer."""

    negatives: int = Field(default=2, ge=0, le=32)
    """Clicks around each piece, where the specialist sees no structure."""

    box_from_points: float | None = Field(default=0.2, ge=0, le=1)
    """For a generalist without clicks the box around the inner ones is drawn, every side moved out by this
    share of its size; null refuses such a generalist."""

    propagate: bool = False
    """Whether answers ask on beyond the first and the last slice of each structure along each axis, until
    the generalist loses it: for structures that the specialist finds only in the middle. Wants boxes."""

    min_pixels: int = Field(default=6, ge=1)
    """Pieces of a slice with fewer pixels are not prompted."""

    min_component_share: float = Field(default=0.25, ge=0, le=1)
    """Nor are pieces smaller than this share of the structure's largest piece on that slice."""

    min_volume_share: float = Field(default=0.3, ge=0, le=1)
    """Before that, pieces of the volume smaller than this share of the structure's largest are dropped."""

    @field_validator("axes")
    @classmethod
    def _differ(cls, axes: tuple[int, ...]) -> tuple[int, ...]:
        if not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
            raise ValueError("expected one to three different axes of 0, 1 and 2, like (0, 1)")
        return tuple(sorted(axes))
