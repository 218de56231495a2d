"""LiteMedSAM: a SAM taught on medical slices, with a small encoder. It takes boxes and nothing else.

Encoder: the TinyViT of this room. A slice is scaled so that its longest side is 256 pixels
and padded to the right and below. Measured on two CPU threads in bf16: 0.24 s a slice to
embed, 7 ms a box to answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.generalists.base import Slice
from tutelage.generalists.capabilities import CAPABILITIES
from tutelage.generalists.family import PromptableSam
from tutelage.generalists.frame import Frame, slice_colors
from tutelage.generalists.loading import Parts, loaded, prompting_parts
from tutelage.generalists.settings import Precision
from tutelage.generalists.tinyvit import IMAGE_SIZE, TinyViT
from tutelage.generalists.weights import Weights
from tutelage.records import Prompt

FRAME = Frame(IMAGE_SIZE)


class LiteMedSAM(PromptableSam):
    """The published LiteMedSAM, or weights of the same form."""

    def __init__(
        self,
        weights: Weights,
        precision: Precision = "auto",
        device: str | None = None,
        compiled: bool = False,
        magnify: float | None = None,
    ) -> None:
        """Load the weights onto a device, by default a GPU if there is one."""
        encoder, prompt_encoder, mask_decoder = load_parts(weights.path)
        super().__init__(
            "litemedsam",
            Parts(encoder.fuse(), prompt_encoder, mask_decoder),
            replace(FRAME, magnify=magnify, partial=magnify is not None),
            weights.digest,
            CAPABILITIES["litemedsam"],
            precision=precision,
            device=device,
            compiled=compiled,
        )


def load_parts(path: Path) -> tuple[TinyViT, Any, Any]:
    """Encoder, prompt encoder and mask decoder, loaded, frozen and not yet fused."""
    encoder = TinyViT()
    parts = loaded(path, "LiteMedSAM", Parts(encoder, *prompting_parts(IMAGE_SIZE)))
    return encoder, parts.prompt_encoder, parts.mask_decoder


def model_square(image_HW: Slice) -> Tensor:
    """(3, 256, 256): the slice scaled and padded, the same in all three colors if it has none."""
    return FRAME.square(slice_colors(image_HW))


def model_corners(prompts: Sequence[Prompt], shape: tuple[int, int]) -> Tensor:
    """(B, 4): x and y of the first corner, then of the last, in pixels of the square."""
    return FRAME.corners(prompts, shape)
