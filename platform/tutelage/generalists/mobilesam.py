"""MobileSAM: SAM's prompts and squares with a small encoder in place of the vision transformer."""

from tutelage.generalists.capabilities import CAPABILITIES
from tutelage.generalists.family import PromptableSam
from tutelage.generalists.frame import Frame
from tutelage.generalists.loading import Parts, loaded, prompting_parts
from tutelage.generalists.settings import Precision
from tutelage.generalists.tinyvit import TinyViT
from tutelage.generalists.weights import Weights

_SIDE_PIXELS = 1024
_PATCH_STRIDE = 2

_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
"""What is left in the checkpoint from the encoder's time as a classifier."""


class MobileSAM(PromptableSam):
    """The published MobileSAM, or weights of the same form. It takes boxes, clicks and masks."""

    def __init__(
        self,
        weights: Weights,
        precision: Precision = "auto",
        device: str | None = None,
        compiled: bool = False,
        magnify: float | None = None,
    ) -> None:
        """Load the weights onto a device, by default a GPU if there is one."""
        encoder = TinyViT(_PATCH_STRIDE)
        parts = loaded(weights.path, "MobileSAM", Parts(encoder, *prompting_parts(_SIDE_PIXELS)), _CLASSIFIER)
        encoder.fuse()
        super().__init__(
            "mobilesam",
            parts,
            Frame(_SIDE_PIXELS, "longest", "imagenet", magnify=magnify, partial=magnify is not None),
            weights.digest,
            CAPABILITIES["mobilesam"],
            precision=precision,
            device=device,
            compiled=compiled,
        )
