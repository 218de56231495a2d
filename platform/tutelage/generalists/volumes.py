"""Asking a generalist of slices about a whole volume.

It decides which slices are embedded (only those with a prompt) and how answers join: boxes
of one structure on one slice by the larger probability, everything else as `fusion` says.
It knows no particular generalist, and whether an answer is any good is not its business.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Embedding, Generalist, VolumeGeneralist
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.fusion import Patch, consensus, fuse, patch
from tutelage.generalists.pooling import Pool, small_grid, volume_grid
from tutelage.generalists.propagation import Propagation
from tutelage.generalists.settings import GeneralistSettings
from tutelage.generalists.slices import Slices, Voxels, windowed
from tutelage.generalists.volumetric import hear_volume
from tutelage.records import Answer, Logits, Prompt, Region

__all__ = ["Asked", "Heard", "ask", "conclude", "hear", "windowed"]

At = tuple[int, int]
"""A slice: its axis and its index."""

_SLICES_AT_ONCE = 16
"""Embeddings held in memory together: 2 MB each."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What one generalist said about one volume, slice by slice, and what that took."""

    patches: Mapping[int, Sequence[Patch]]
    """By structure."""

    opinions: Mapping[int, Sequence[float]]
    """What it thinks of its own masks, by structure."""

    pooled_KC: NDArray[np.float16]
    """See Candidate."""

    grid_DCHW: NDArray[np.float16] | None
    """See Candidate."""

    slices_embedded: int
    cache_hits: int
    prompts: int
    """Those that propagation added included."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What generalists said about one volume, joined, and what that took."""

    regions: tuple[Region, ...]
    """By label value; empty where nothing was asked; index 0 unused."""

    predicted_iou: tuple[float, ...]
    """Mean opinion of the generalists about their masks, by label value; 0 if not asked."""

    consensus: tuple[float, ...]
    """See Candidate."""

    pooled_KC: NDArray[np.float16]
    grid_DCHW: NDArray[np.float16] | None
    slices_embedded: int
    cache_hits: int
    prompts: int


def ask(
    generalist: Generalist,
    image: Voxels,
    digest: str,
    prompts: Sequence[Prompt],
    classes: int,
    cache: EmbeddingCache,
    settings: GeneralistSettings,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Asked:
    """Put every prompt to one generalist and join what it says; see `hear`."""
    heard = hear(generalist, image, digest, prompts, classes, cache, settings, spacing)
    return conclude([heard], classes)


def hear(
    generalist: Generalist,
    image: Voxels,
    digest: str,
    prompts: Sequence[Prompt],
    classes: int,
    cache: EmbeddingCache,
    settings: GeneralistSettings,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Heard:
    """Put every prompt to the generalist, and those that follow from its answers.

    `image` is (D, H, W), or (C, D, H, W) in colors; `digest` names it to the cache; `classes`
    counts the background; `spacing` is in mm along (D, H, W).

    Raises:
        GeneralistError: if a prompt names a slice or a structure that does not exist, or is
            of a kind that the generalist cannot answer.
    """
    slices = Slices(image, settings.window, spacing)
    if generalist.capabilities.volumes:
        _by_slice(prompts, slices, classes)  # refuses what does not exist
        whole = cast(VolumeGeneralist, generalist)
        found = hear_volume(whole, image, prompts, classes, settings.window, spacing)
        return Heard(found.patches, found.opinions, found.pooled_KC, None, 0, 0, found.prompts)
    hearing = _Hearing(slices, classes, generalist.capabilities.stretches, settings.keep_grid)
    propagation = Propagation([plane.depth for plane in slices.planes], prompts)
    waiting: Sequence[Prompt] = prompts
    while waiting:
        by_slice = _by_slice(waiting, slices, classes)
        for at, embedding, hit in _embedded(generalist, slices, sorted(by_slice), digest, cache):
            answers = _answers(generalist, slices, embedding, by_slice[at])
            believed = [answer for answer in answers if propagation.believes(answer)]
            hearing.take_in(at, embedding, hit, believed, len(answers))
        waiting = propagation.onward()
    return hearing.heard()


def conclude(everything: Sequence[Heard], classes: int) -> Asked:
    """Join what one generalist or several said about the same volume; the first one's features are kept."""
    alone = [[fuse(heard.patches.get(k, ())) for heard in everything] for k in range(classes)]
    if len(everything) == 1:
        regions = tuple(region for (region,) in alone)
    else:
        patches = [[p for heard in everything for p in heard.patches.get(k, ())] for k in range(classes)]
        regions = tuple(fuse(found) for found in patches)
    opinions = [[v for heard in everything for v in heard.opinions.get(k, ())] for k in range(classes)]
    first = everything[0]
    return Asked(
        regions,
        tuple(float(np.mean(found)) if found else 0.0 for found in opinions),
        tuple(consensus(each) for each in alone),
        first.pooled_KC,
        first.grid_DCHW,
        sum(heard.slices_embedded for heard in everything),
        sum(heard.cache_hits for heard in everything),
        sum(heard.prompts for heard in everything),
    )


class _Hearing:
    """Collects what is said."""

    def __init__(self, slices: Slices, classes: int, stretches: bool, keep_grid: bool) -> None:
        self._slices = slices
        self._stretches = stretches
        self._keep_grid = keep_grid
        self._patches: dict[int, list[Patch]] = defaultdict(list)
        self._opinions: dict[int, list[float]] = defaultdict(list)
        self._pool = Pool(classes, stretches)
        self._grids: dict[At, NDArray[np.float16]] = {}
        self._prompts = 0
        self._hits: dict[At, bool] = {}

    def take_in(self, at: At, embedding: Embedding, hit: bool, answers: Sequence[Answer], asked: int) -> None:
        """Keep the answers about one slice."""
        axis, index = at
        self._prompts += asked
        self._hits.setdefault(at, hit)
        fresh = [(k, patch(axis, index, variants)) for k, variants in _joined(answers).items()]
        self._pool.add(embedding, self._slices.planes[axis].shape, fresh)
        for structure, one in fresh:
            self._patches[structure].append(one)
        for answer in answers:
            self._opinions[answer.prompt.structure].append(answer.predicted_iou)
        if self._keep_grid:
            self._grids[at] = small_grid(embedding, self._stretches)

    def heard(self) -> Heard:
        """Return everything that was kept."""
        hits = sum(self._hits.values())
        pooled_KC = self._pool.means()
        grid_DCHW = None
        if self._keep_grid:
            grid_DCHW = volume_grid(self._grids, self._slices.shape, pooled_KC.shape[1])
        return Heard(
            self._patches,
            self._opinions,
            pooled_KC,
            grid_DCHW,
            len(self._hits) - hits,
            hits,
            self._prompts,
        )


def _by_slice(prompts: Iterable[Prompt], slices: Slices, classes: int) -> Mapping[At, list[Prompt]]:
    by_slice: dict[At, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        depth = slices.shape[prompt.axis] if prompt.axis in range(len(slices.shape)) else 0
        if not (0 <= prompt.index < depth and 1 <= prompt.structure < classes):
            raise GeneralistError(
                f"a prompt asks for structure {prompt.structure} on slice {prompt.index} along axis "
                f"{prompt.axis}, expected 1 to {classes - 1} on slices 0 to {depth - 1}; "
                "draw prompts on the mask of this image"
            )
        by_slice[prompt.axis, prompt.index].append(prompt)
    return by_slice


def _embedded(
    generalist: Generalist, slices: Slices, wanted: Sequence[At], digest: str, cache: EmbeddingCache
) -> Iterator[tuple[At, Embedding, bool]]:
    """Embeddings by slice, each with whether the cache had it; few are in memory at a time."""
    for axis in sorted({axis for axis, _ in wanted}):
        image = slices.seen_as(digest, axis)
        ours = [at for at in wanted if at[0] == axis]
        for start in range(0, len(ours), _SLICES_AT_ONCE):
            some = ours[start : start + _SLICES_AT_ONCE]
            known = cache.find(image, some)
            missing = [at for at in some if at not in known]
            fresh: dict[At, Embedding] = {}
            if missing:
                started = time.perf_counter()
                made = generalist.embed([slices.at(*at) for at in missing])
                fresh = dict(zip(missing, made, strict=True))
                cache.keep(image, fresh, time.perf_counter() - started)
            for at in some:
                yield at, fresh[at] if at in fresh else known[at], at not in fresh


def _answers(
    generalist: Generalist, slices: Slices, embedding: Embedding, prompts: Sequence[Prompt]
) -> list[Answer]:
    """Ask in the pixels that the generalist saw, and return answers in the volume's own."""
    plane = slices.planes[prompts[0].axis]
    if plane.seen == plane.shape:
        return generalist.segment(embedding, prompts)
    answers = generalist.segment(embedding, [plane.asked(prompt) for prompt in prompts])
    return [
        replace(answer, prompt=prompt, logits_HW=plane.answered(answer.logits_HW))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _joined(answers: Sequence[Answer]) -> Mapping[int, list[Logits]]:
    """Logits of every variant by structure: the larger one where boxes of one variant overlap."""
    found: dict[int, dict[int, Logits]] = defaultdict(dict)
    for answer in answers:
        variants = found[answer.prompt.structure]
        before = variants.get(answer.prompt.variant)
        logits_HW = answer.logits_HW
        variants[answer.prompt.variant] = logits_HW if before is None else np.maximum(before, logits_HW)
    return {structure: list(variants.values()) for structure, variants in found.items()}
