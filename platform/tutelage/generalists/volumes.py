"""Asking a generalist of slices about a whole volume.

It decides how a volume is windowed, which slices are embedded (only those with a prompt)
and how answers join: boxes of one structure on one slice by the larger probability,
variants by mean and variance. It knows no particular generalist, and whether an answer is
any good is not its business.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Embedding, Generalist, Slice
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.settings import GeneralistSettings
from tutelage.records import Answer, Probability, Prompt

Voxels = NDArray[np.integer] | NDArray[np.floating]

_SLICES_AT_ONCE = 16
"""Embeddings held in memory together: 2 MB each."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a generalist said about one volume, and what that took."""

    mean_KDHW: Probability
    """Mean over variants; zero where nothing was asked; index 0 unused."""

    variance_KDHW: Probability
    """Population variance over variants times four, in [0, 1]."""

    predicted_iou: tuple[float, ...]
    """Mean opinion of the generalist about its masks, by label value; 0 if not asked."""

    slices_embedded: int
    cache_hits: int
    prompts: int


def windowed(image_DHW: Voxels, percentiles: tuple[float, float]) -> Slice:
    """Scale a volume to [0, 1] float32 between two percentiles of itself.

    Where they coincide (a nearly empty image) its extremes are taken; a constant image is 0.
    """
    scaled_DHW: Slice = image_DHW.astype(np.float32)
    low, high = (float(v) for v in np.percentile(scaled_DHW, percentiles))
    if high <= low:
        low, high = float(scaled_DHW.min()), float(scaled_DHW.max())
    if high <= low:
        return np.zeros_like(scaled_DHW)
    scaled_DHW -= low
    scaled_DHW /= high - low
    return np.clip(scaled_DHW, 0.0, 1.0, out=scaled_DHW)


def ask(
    generalist: Generalist,
    image_DHW: Voxels,
    digest: str,
    prompts: Sequence[Prompt],
    classes: int,
    cache: EmbeddingCache,
    settings: GeneralistSettings,
) -> Asked:
    """Put every prompt to the generalist and join what it says.

    `digest` names the image to the cache; `classes` counts the background.

    Raises:
        GeneralistError: if a prompt names a slice or a structure that does not exist, or is
            of a kind that the generalist cannot answer.
    """
    by_slice = _by_slice(prompts, image_DHW.shape[0], classes)
    mean_KDHW = np.zeros((classes, *image_DHW.shape), np.float32)
    variance_KDHW = np.zeros_like(mean_KDHW)
    opinions: dict[int, list[float]] = defaultdict(list)
    hits = 0
    scaled_DHW = windowed(image_DHW, settings.window)
    low, high = settings.window
    seen_as = f"{digest}-{low:g}-{high:g}"
    for index, embedding, hit in _embedded(generalist, scaled_DHW, sorted(by_slice), seen_as, cache):
        hits += hit
        answers = generalist.segment(embedding, by_slice[index])
        for structure, variants_VHW in _joined(answers).items():
            mean_KDHW[structure, index] = variants_VHW.mean(axis=0)
            if len(variants_VHW) > 1:  # zeros that are never written take no memory
                variance_KDHW[structure, index] = 4.0 * variants_VHW.var(axis=0)
        for answer in answers:
            opinions[answer.prompt.structure].append(answer.predicted_iou)
    means = tuple(float(np.mean(opinions[k])) if k in opinions else 0.0 for k in range(classes))
    return Asked(mean_KDHW, variance_KDHW, means, len(by_slice) - hits, hits, len(prompts))


def _by_slice(prompts: Sequence[Prompt], depth: int, classes: int) -> Mapping[int, list[Prompt]]:
    by_slice: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if not (0 <= prompt.index < depth and 1 <= prompt.structure < classes):
            raise GeneralistError(
                f"a prompt asks for structure {prompt.structure} on slice {prompt.index}, expected "
                f"1 to {classes - 1} on slices 0 to {depth - 1}; draw prompts on the mask of this image"
            )
        by_slice[prompt.index].append(prompt)
    return by_slice


def _embedded(
    generalist: Generalist, scaled_DHW: Slice, indices: Sequence[int], image: str, cache: EmbeddingCache
) -> Iterator[tuple[int, Embedding, bool]]:
    """Embeddings by slice, each with whether the cache had it; few are in memory at a time."""
    for start in range(0, len(indices), _SLICES_AT_ONCE):
        some = indices[start : start + _SLICES_AT_ONCE]
        known = {index: cache.get(image, index) for index in some}
        missing = [index for index in some if known[index] is None]
        made = generalist.embed([scaled_DHW[index] for index in missing]) if missing else []
        fresh = dict(zip(missing, made, strict=True))
        for index, embedding in fresh.items():
            cache.put(image, index, embedding)
        for index in some:
            hit = known[index]
            yield index, fresh[index] if hit is None else hit, hit is not None


def _joined(answers: Sequence[Answer]) -> Mapping[int, Probability]:
    """Probabilities (V, H, W) by structure: the larger one where boxes of one variant overlap."""
    found: dict[int, dict[int, Probability]] = defaultdict(dict)
    for answer in answers:
        variants = found[answer.prompt.structure]
        probability_HW = expit(answer.logits_HW)
        before = variants.get(answer.prompt.variant)
        joined = probability_HW if before is None else np.maximum(before, probability_HW)
        variants[answer.prompt.variant] = joined
    return {structure: np.stack(list(variants.values())) for structure, variants in found.items()}
