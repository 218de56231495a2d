"""Asking generalists about a case while a specialist learns: the same question, the plan's grid.

A case is read once and stays in memory while it is among the latest; what generalists
remember of its slices is in the embedding cache, so that every further question costs a
decode. It decides how masks and answers travel between the plan's grid and the image's, and
where a generalist said nothing. It knows no network that learns, and opens no label. Nor does it
leave out what priors let labeling leave out: a mask that comes from a patch shows a part of each
structure, which may lie there in more pieces than the whole has.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tutelage.archive import formats
from tutelage.casework import asking
from tutelage.casework.labeling import members, seen_by_generalists
from tutelage.errors import SettingsError, TrainingError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.ensemble import ask_all
from tutelage.geometry import Grid
from tutelage.methods.base import Answers, Asker
from tutelage.prompts.pieces import clean
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Case, Prompt, Region
from tutelage.specialist.plan import Plan
from tutelage.specialist.preprocess import shape_at

_MOST_VOXELS = 2**27
"""Of all images in memory together, colors included: half a gigabyte. The latest always stays."""

_UNSAID = (0.5, 0.25)
"""Mean and variance of a voxel about which nothing was said: as undecided as can be."""


@dataclass(frozen=True, slots=True)
class AskJob:
    """Everything that asking during one training is about."""

    cases: tuple[Case, ...]
    """Those that may be asked about."""

    plan: Plan
    generalist: GeneralistSettings
    prompts: PromptSettings
    embeddings: str | None
    """Folder of the embedding cache, or None to embed anew each time."""

    max_voxels: int


def asker(job: AskJob) -> Asker:
    """Load the generalists of a job.

    Raises:
        SettingsError: they cannot be prompted as the settings want.
        GeneralistError: their weights are not there.
    """
    return _Online(job)


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """One case as generalists see it."""

    voxels: NDArray[np.float32]
    grid: Grid
    digest: str


class _Online:
    def __init__(self, job: AskJob) -> None:
        for where, what in asking.problems(job.prompts, job.generalist):
            raise SettingsError(f"{where}: {what}")
        self._plan, self._prompts = job.plan, job.prompts
        self._images = _Images(job.cases, job.max_voxels)
        self._members = members(job.generalist, job.embeddings)

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        """See Asker."""
        # Training's autocast is not the generalist's, which chooses its precision by itself.
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return self._asked(case, mask_DHW, seed)

    def _asked(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        image, plan = self._images.of(case), self._plan
        shape = shape_at(image.grid, plan)
        if mask_DHW.shape != shape:
            raise TrainingError(
                f"the mask of {case} has shape {mask_DHW.shape}, expected {shape} at the plan's spacing; "
                "carry it back to the whole volume"
            )
        fine_DHW = clean(_finer(mask_DHW, image.grid), plan.classes, self._prompts)
        takes = [member.generalist.capabilities for member in self._members]
        questions = asking.questions(fine_DHW, plan.classes, self._prompts, seed, takes)
        asked = ask_all(
            self._members, questions, image.voxels, image.digest, plan.classes, image.grid.spacing
        )
        structures = len(plan.structures)
        mean_KDHW = np.full((structures, *shape), _UNSAID[0], np.float32)
        variance_KDHW = np.full((structures, *shape), _UNSAID[1], np.float32)
        asked_K = np.zeros(structures, np.bool_)
        whole = any(member.generalist.capabilities.volumes for member in self._members)
        for place, region in enumerate(asked.regions[1:]):
            prompts = [p for drawn in questions for p in drawn if p.structure == place + 1]
            if not prompts:
                continue
            said_DHW = _said(region, prompts, image.grid.shape, whole)
            mean_KDHW[place] = _coarser(region, region.mean_DHW, said_DHW, 1.0, _UNSAID[0], shape)
            variance_KDHW[place] = _coarser(region, region.variance_DHW, said_DHW, 0.25, _UNSAID[1], shape)
            asked_K[place] = True
        return Answers(mean_KDHW, variance_KDHW, asked_K, asked.prompts)


class _Images:
    """The latest images, as many as there is room for."""

    def __init__(self, cases: Iterable[Case], max_voxels: int) -> None:
        self._cases: Mapping[str, Case] = {case.case: case for case in cases}
        self._max_voxels = max_voxels
        self._kept: OrderedDict[str, _Image] = OrderedDict()

    def of(self, name: str) -> _Image:
        """Return the image of a case."""
        if name not in self._kept:
            self._kept[name] = self._read(name)
        self._kept.move_to_end(name)
        while len(self._kept) > 1 and sum(one.voxels.size for one in self._kept.values()) > _MOST_VOXELS:
            self._kept.popitem(last=False)
        return self._kept[name]

    def _read(self, name: str) -> _Image:
        if name not in self._cases:
            raise TrainingError(
                f"{name} is none of the {len(self._cases)} cases that may be asked about; "
                "name it in the job that asks"
            )
        volume = formats.read_image(self._cases[name].image, self._max_voxels)
        return _Image(seen_by_generalists(volume.image_CDHW), volume.grid, volume.digest)


def _finer(mask_DHW: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """A mask at the plan's spacing on the image's grid: the class with the largest interpolated share."""
    if mask_DHW.shape == grid.shape:
        return mask_DHW
    best_DHW = np.zeros(grid.shape, np.float32)
    fine_DHW = np.zeros(grid.shape, np.uint8)
    for value in np.unique(mask_DHW):  # one class at a time: memory does not grow with their number
        share_DHW = _interpolated((mask_DHW == value).astype(np.float32), grid.shape)
        wins = share_DHW > best_DHW
        fine_DHW[wins], best_DHW[wins] = value, share_DHW[wins]
    return fine_DHW


def _said(
    region: Region, prompts: Sequence[Prompt], shape: tuple[int, int, int], whole: bool
) -> NDArray[np.bool_]:
    """Where anything was said about a structure: on slices that were asked about, and where it was found.

    A generalist of volumes speaks about the box of what it found, and about no slice by itself.
    """
    said_DHW = np.zeros(shape, np.bool_)
    if region.mean_DHW.size:
        said_DHW[region.where] = whole or region.mean_DHW > 0
    for axis, index in {(prompt.axis, prompt.index) for prompt in prompts} if not whole else ():
        said_DHW[(slice(None),) * axis + (index,)] = True
    return said_DHW


def _coarser(
    region: Region,
    shares_DHW: NDArray[np.uint8],
    said_DHW: NDArray[np.bool_],
    one: float,
    unsaid: float,
    shape: tuple[int, int, int],
) -> NDArray[np.float32]:
    """Shares, of which 255 stand for `one`, at the plan's spacing."""
    values_DHW = np.where(said_DHW, np.float32(0), np.float32(unsaid))
    if shares_DHW.size:
        scaled_DHW = shares_DHW.astype(np.float32) * np.float32(one / 255)
        values_DHW[region.where] = np.where(said_DHW[region.where], scaled_DHW, np.float32(unsaid))
    return _interpolated(values_DHW, shape)


def _interpolated(values_DHW: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Trilinear, as images and labels travel to the plan's spacing."""
    if values_DHW.shape == shape:
        return values_DHW
    whole = torch.from_numpy(values_DHW)[None, None]
    return F.interpolate(whole, size=shape, mode="trilinear", align_corners=False)[0, 0].numpy()
