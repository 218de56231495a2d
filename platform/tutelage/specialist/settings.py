"""What the specialist room can be told."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tutelage.settings import Settings

Norm = Literal["instance", "batch"]


class SpecialistSettings(Settings):
    """What kind of network learns, and how finely it looks."""

    network: Literal["unet", "vnet", "resvnet", "unetplusplus"] = "unet"
    """MONAI's residual U-Net, the V-Net of the literature on few labels, the same with residual
    blocks, or U-Net++."""

    channels: tuple[PositiveInt, ...] = Field(default=(16, 32, 64, 128), min_length=2)
    """Features by level, from fine to coarse."""

    norm: Norm = "instance"
    """What features are normalized over: each image by itself, or the batch."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of features that are left out in training: of whole channels before and after the decoder
    of a V-Net, of single features after each convolution of the others."""

    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Millimeters along (D, H, W) at which it looks; None takes the archive's median."""

    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Voxels along (D, H, W) shown at once, moved to what the network's strides
    divide; None takes the median volume if it is small enough."""

    max_patch_voxels: int = Field(default=200_000, ge=1000)
    """Above this a patch shows only a part of the median volume."""
