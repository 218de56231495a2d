"""What every network of a specialist offers: an answer, and the features that it was made of.

It decides where something else may be put in: at the bottleneck, and in place of the last
layer. It does not know which layers a network has, nor who looks at its features.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Seen(NamedTuple):
    """What a network made of a batch of images."""

    logits: Tensor
    """(B, K, D, H, W), the background first."""
    levels: tuple[Tensor, ...]
    """Features (B, C, d, h, w) of the decoder from coarse to fine: first the bottleneck's, with
    whatever was fused into it, last those that the head turns into logits, at full resolution."""


class Specialist(nn.Module, ABC):
    """Base of every network. A network gives its levels and its own last layer; the rest is here.

    Levels are what the network computes anyway, so seeing them costs nothing, and they carry
    gradients.
    """

    level_channels: tuple[int, ...]
    """Channels of each of the levels, as many as the plan has channels."""

    head: nn.Module | None
    """Takes the tuple of levels and gives the logits, in place of the network's own last layer; None
    keeps that one. A network whose plan has a text head has no last layer of its own."""

    def __init__(self, level_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.level_channels = level_channels
        self.bottleneck: nn.Module = nn.Identity()
        """Applied to the bottleneck's features, whose number it keeps."""
        self.register_module("head", None)

    @abstractmethod
    def levels(self, image_BCDHW: Tensor) -> tuple[Tensor, ...]:
        """Return the features of the decoder, from coarse to fine; see Seen."""

    @abstractmethod
    def last(self, finest_BCDHW: Tensor) -> Tensor:
        """Apply the network's own last layer to the finest level."""

    def see(self, image_BCDHW: Tensor) -> Seen:
        """Return logits and levels."""
        levels = self.levels(image_BCDHW)
        logits: Tensor = self.last(levels[-1]) if self.head is None else self.head(levels)
        return Seen(logits, levels)

    def forward(self, image_BCDHW: Tensor) -> Tensor:
        """Return logits, (B, K, D, H, W)."""
        return self.see(image_BCDHW).logits
