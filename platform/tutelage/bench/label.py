"""How fast a case is labeled, against the loop that everybody writes first.

Peer: per slice one fp32 pass of the unfused encoder, then one decoder call a box, with the
same weights, the same boxes and the same threads. Ours is what a labeling worker does:
fused, in the precision the settings choose, boxes in batches, embeddings from the cache
the second time. Correctness first: every mask is compared.
"""

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from tutelage import generalists
from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.bench.base import Bench, Measured, medians
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.litemedsam import load_parts, model_corners, model_square
from tutelage.generalists.volumes import ask, windowed
from tutelage.generalists.weights import find
from tutelage.measures import jaccard
from tutelage.prompts.boxes import boxes
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Prompt
from tutelage.storage import Place

PEER = "plain per-slice fp32 loop"

_SMALLEST_ML = 1.0
"""Masks below this are a handful of voxels, of which one is a large share."""


def run(repeats: int = 3, slices: int = 8) -> Bench:
    """Measure on `slices` slices of one phantom, `repeats` times each way."""
    patient = phantom(0, 0, styles=("ct",))
    middle = patient.image_DHW.shape[0] // 2
    where = slice(max(0, middle - slices // 2), middle - slices // 2 + slices)
    image_DHW, label_DHW = patient.image_DHW[where], patient.label_DHW[where]
    classes = len(STRUCTURES) + 1
    prompts = boxes(label_DHW, classes, PromptSettings(), seed=0)
    settings = GeneralistSettings()
    ours, theirs = generalists.build(settings), _Plain()
    nothing = EmbeddingCache(None, ours)

    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache(Place.of(folder), ours)
        ask(ours, image_DHW, "phantom", prompts, classes, cache, settings)
        scaled_DHW = windowed(image_DHW, settings.window)
        first, cached, encoder, plain, plain_encoder = medians(
            [
                lambda: ask(ours, image_DHW, "phantom", prompts, classes, nothing, settings),
                lambda: ask(ours, image_DHW, "phantom", prompts, classes, cache, settings),
                lambda: ours.embed(list(scaled_DHW)),
                lambda: theirs.masks(scaled_DHW, prompts),
                lambda: [theirs.embed(image_HW) for image_HW in scaled_DHW],
            ],
            repeats,
        )
    smallest = _smallest_iou(ours, theirs, scaled_DHW, prompts, float(np.prod(patient.spacing)) / 1000)
    told = (
        f"{len(image_DHW)} slices, {len(prompts)} boxes, {torch.get_num_threads()} threads, {repeats} times"
    )
    return Bench(
        "label",
        (
            _row("first_round", first, plain, plain / first, 2.0, f"seconds; theirs over ours; {told}"),
            _row("cached_round", cached, plain, plain / cached, 8.0, f"embeddings cached; {told}"),
            _row(
                "encoder_share",
                encoder / first,
                plain_encoder / plain,
                encoder / first,
                0.6,
                "share of the first round that the encoder takes, which nothing can avoid; ratio is ours",
            ),
            _row("mask_iou_min", smallest, 1.0, smallest, 0.9, f"over boxes of {_SMALLEST_ML:g} ml or more"),
        ),
    )


def _row(name: str, ours: float, theirs: float, ratio: float, goal: float, note: str) -> Measured:
    return Measured(f"label.{name}", PEER, ours, theirs, ratio, goal, "higher", note)


class _Plain:
    """The peer."""

    def __init__(self) -> None:
        self.encoder, self.prompt_encoder, self.decoder = load_parts(find().path)

    @torch.inference_mode()
    def embed(self, image_HW: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> torch.Tensor:
        features: torch.Tensor = self.encoder(model_square(image_HW)[None].contiguous())
        return features

    @torch.inference_mode()
    def masks(
        self, scaled_DHW: np.ndarray[tuple[int, ...], np.dtype[np.float32]], prompts: Sequence[Prompt]
    ) -> list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
        """One mask a prompt, in order."""
        found = []
        features, index = torch.zeros(0), -1
        shape = (scaled_DHW.shape[1], scaled_DHW.shape[2])
        for prompt in prompts:
            if prompt.index != index:
                features, index = self.embed(scaled_DHW[prompt.index]), prompt.index
            sparse, dense = self.prompt_encoder(points=None, boxes=model_corners([prompt], shape), masks=None)
            low_11HW, _ = self.decoder(
                image_embeddings=features,
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            found.append(_resized(low_11HW, shape))
        return found


def _resized(
    low_11HW: torch.Tensor, shape: tuple[int, int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    side = 256
    high, wide = (max(1, round(n * side / max(shape))) for n in shape)
    square = F.interpolate(low_11HW, (side, side), mode="bilinear", align_corners=False)[..., :high, :wide]
    mask_HW = F.interpolate(square, shape, mode="bilinear", align_corners=False)[0, 0] > 0
    return np.asarray(mask_HW.numpy())


def _smallest_iou(
    ours: generalists.Generalist,
    theirs: _Plain,
    scaled_DHW: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    prompts: Sequence[Prompt],
    voxel_ml: float,
) -> float:
    reference = theirs.masks(scaled_DHW, prompts)
    embeddings = ours.embed(list(scaled_DHW))
    ious = []
    for prompt, mask_HW in zip(prompts, reference, strict=True):
        (answer,) = ours.segment(embeddings[prompt.index], [prompt])
        if mask_HW.sum() * voxel_ml >= _SMALLEST_ML:
            ious.append(jaccard(answer.logits_HW > 0, mask_HW))
    return min(ious)
