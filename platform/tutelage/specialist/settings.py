"""What the specialist room can be told."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tutelage.settings import Settings


class SpecialistSettings(Settings):
    """What kind of network learns, and how finely it looks."""

    network: Literal["unet"] = "unet"
    """MONAI's residual U-Net."""

    channels: tuple[PositiveInt, ...] = Field(default=(16, 32, 64, 128), min_length=2)
    """Features by level, from fine to coarse."""

    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Millimeters along (D, H, W) at which it looks; None takes the archive's median."""

    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Voxels along (D, H, W) shown at once, moved to what the network's strides
    divide; None takes the median volume if it is small enough."""

    max_patch_voxels: int = Field(default=200_000, ge=1000)
    """Above this a patch shows only a part of the median volume."""
