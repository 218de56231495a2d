"""Asking a generalist of volumes what was drawn for slices.

It decides which clicks on slices become the clicks of a volume: few, apart from each other
and within reach of their middle. Answers go back onto slices, so that they join those of
other generalists. It knows no generalist.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.generalists.base import VolumeAnswer, VolumeGeneralist, VolumePrompt, refuse_unanswerable
from tutelage.generalists.fusion import Patch, patch
from tutelage.generalists.slices import Voxels, windowed
from tutelage.records import Point, Prompt

CLICKS = 5
"""Clicks of one prompt; published results hardly gain from more."""

_ELSEWHERE = -20.0
"""Logit of voxels that were not looked at, on slices that were."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was said, as if it had been said slice by slice along D."""

    patches: Mapping[int, Sequence[Patch]]
    """By structure."""

    opinions: Mapping[int, Sequence[float]]
    """By structure."""

    pooled_KC: NDArray[np.float16]
    """Mean features inside the masks, by label value."""

    prompts: int


def hear_volume(
    generalist: VolumeGeneralist,
    image: Voxels,
    prompts: Sequence[Prompt],
    classes: int,
    window: tuple[float, float],
    spacing: Sequence[float],
) -> Found:
    """Put the clicks of all slices to the generalist, structure by structure and variant by variant.

    Raises:
        GeneralistError: if a prompt holds anything but clicks.
    """
    refuse_unanswerable("a generalist of volumes", generalist.capabilities, prompts)
    asked = volume_prompts(prompts, spacing, generalist.reach_mm)
    grey = windowed(image, window)
    volume_DHW = grey if grey.ndim == 3 else grey.mean(axis=0)
    answers = generalist.segment_volume(volume_DHW, spacing, asked)
    patches: dict[int, list[Patch]] = defaultdict(list)
    opinions: dict[int, list[float]] = defaultdict(list)
    features: dict[int, list[NDArray[np.float16]]] = defaultdict(list)
    for answer in answers:
        opinions[answer.prompt.structure].append(answer.predicted_iou)
        features[answer.prompt.structure].append(answer.features_C)
    for structure in opinions:
        told = [answer for answer in answers if answer.prompt.structure == structure]
        patches[structure] += _on_slices(told, volume_DHW.shape)
    pooled_KC = np.zeros((classes, generalist.channels), np.float16)
    for structure, vectors in features.items():
        pooled_KC[structure] = np.mean(vectors, axis=0, dtype=np.float32)
    return Found(patches, opinions, pooled_KC, len(asked))


def volume_prompts(
    prompts: Sequence[Prompt], spacing: Sequence[float], reach_mm: float
) -> list[VolumePrompt]:
    """Join the clicks on slices into prompts of a volume, one a structure and variant that has any inside."""
    clicks: dict[tuple[int, int], list[Point]] = defaultdict(list)
    for prompt in prompts:
        for point in prompt.points:
            at = [*point.at]
            at.insert(prompt.axis, prompt.index + 0.5)
            clicks[prompt.structure, prompt.variant].append(Point(tuple(at), point.positive))
    made = []
    for (structure, variant), points in sorted(clicks.items()):
        if any(point.positive for point in points):
            middle, chosen = _chosen(points, np.asarray(spacing, float), reach_mm)
            made.append(VolumePrompt(structure, middle, chosen, variant))
    return made


def _chosen(
    points: Sequence[Point], spacing: NDArray[np.float64], reach_mm: float
) -> tuple[tuple[float, float, float], tuple[Point, ...]]:
    """The middle of the clicks inside, and a few clicks: one near it, then always the farthest from all."""
    at_mm = np.array([point.at for point in points]) * spacing
    inside = np.array([point.positive for point in points])
    middle_mm = (at_mm[inside].min(axis=0) + at_mm[inside].max(axis=0)) / 2
    nearest = _nearest(at_mm, middle_mm, inside)
    if np.abs(at_mm[nearest] - middle_mm).max() > reach_mm:
        middle_mm = at_mm[nearest]
    near = np.abs(at_mm - middle_mm).max(axis=1) <= reach_mm
    chosen = [nearest]
    apart = np.where(near, np.linalg.norm(at_mm - at_mm[nearest], axis=1), -1.0)
    while len(chosen) < CLICKS and apart.max() > 0:
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(at_mm - at_mm[chosen[-1]], axis=1))
    d, h, w = (middle_mm / spacing).tolist()
    return (d, h, w), tuple(points[index] for index in chosen)


def _nearest(at_mm: NDArray[np.float64], middle_mm: NDArray[np.float64], among: NDArray[np.bool_]) -> int:
    away = np.linalg.norm(at_mm - middle_mm, axis=1)
    return int(np.where(among, away, np.inf).argmin())


def _on_slices(answers: Sequence[VolumeAnswer], shape: Sequence[int]) -> Iterator[Patch]:
    """What the variants of one structure say on every slice along D that one of them looked at."""
    starts = [answer.start[0] for answer in answers]
    stops = [start + len(answer.logits_DHW) for start, answer in zip(starts, answers, strict=True)]
    for index in range(min(starts), max(stops)):
        variants = []
        for answer in answers:
            first, top, left = answer.start
            if first <= index < first + len(answer.logits_DHW):
                logits_HW = answer.logits_DHW[index - first]
                whole_HW = np.full((shape[1], shape[2]), _ELSEWHERE, np.float32)
                whole_HW[top : top + logits_HW.shape[0], left : left + logits_HW.shape[1]] = logits_HW
                variants.append(whole_HW)
        if variants:
            yield patch(0, index, variants)
