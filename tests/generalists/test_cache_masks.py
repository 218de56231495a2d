"""What keeping embeddings in fewer bits does to LiteMedSAM's masks."""

import pytest

from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.generalists import GeneralistSettings, build
from tutelage.generalists.codec import pack, unpack
from tutelage.generalists.settings import CachePrecision
from tutelage.generalists.volumes import windowed
from tutelage.measures import jaccard
from tutelage.prompts import PromptSettings
from tutelage.prompts.boxes import boxes

pytestmark = pytest.mark.torch

_SMALLEST_PIXELS = 50
"""In masks below this a single pixel is more than what is asked for."""


@pytest.mark.parametrize(("precision", "smallest_iou"), [("fp16", 1.0), ("int8", 0.97)])
def test_masks_from_kept_embeddings_are_those_from_fresh_ones(
    precision: CachePrecision, smallest_iou: float
) -> None:
    patient = phantom(0, 1, spacing=(30.0, 3.0, 3.0), styles=("ct",))
    slices_DHW = windowed(patient.image_DHW, (0.5, 99.5))
    prompts = boxes(patient.label_DHW, len(STRUCTURES) + 1, PromptSettings(), seed=0)
    fullest = sorted({p.index for p in prompts}, key=lambda index: -sum(p.index == index for p in prompts))
    generalist = build(GeneralistSettings())
    ious = []
    for index in fullest[:3]:
        (fresh,) = generalist.embed([slices_DHW[index]])
        kept = unpack(*pack(fresh, precision, 1))
        asked = [prompt for prompt in prompts if prompt.index == index]
        for before, after in zip(
            generalist.segment(fresh, asked), generalist.segment(kept, asked), strict=True
        ):
            if (before.logits_HW > 0).sum() >= _SMALLEST_PIXELS:
                ious.append(jaccard(after.logits_HW > 0, before.logits_HW > 0))
    assert len(ious) >= 6
    assert min(ious) >= smallest_iou
