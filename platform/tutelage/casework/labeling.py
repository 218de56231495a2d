"""Labeling one case: the specialist says where, the generalist says exactly how far.

It joins specialist, prompts and generalists into a candidate. Whether the candidate is
believed is curation's business.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage import generalists
from tutelage.archive import formats
from tutelage.casework import asking
from tutelage.casework.base import Needs, Worker
from tutelage.errors import SettingsError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Batched
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.ensemble import Member, ask_all, digest
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.priors import cases
from tutelage.prompts.pieces import clean, fewest
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Candidate, Case, Expectation
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class LabelJob:
    """Everything a labeling worker is built from."""

    generalist: GeneralistSettings
    prompts: PromptSettings
    specialist: str
    """Folder of the specialist that prompts."""

    candidates: str
    """Folder for candidates."""

    embeddings: str | None
    """Folder of the embedding cache, or None to embed anew each time."""

    structures: tuple[str, ...]
    max_voxels: int
    seed: int
    most: Mapping[str, int] = field(default_factory=dict)
    """Pieces that a structure has at most, where that is known; smaller ones are not asked about."""

    expected: str | None = None
    """File of what notes say of single cases, or None; what they call absent is not asked about."""


class Labeler(Worker):
    """Makes the candidate of one case after another."""

    needs = Needs(gpu=True)

    def __init__(self, job: LabelJob) -> None:
        for where, what in asking.problems(job.prompts, job.generalist):
            raise SettingsError(f"{where}: {what}")
        self.job = job
        self.specialist = Predictor(Place.of(job.specialist))
        self.members = members(job.generalist, job.embeddings)
        self.expected = cases.Answered.of(Place.of(job.expected)) if job.expected else None

    def work(self, case: Case) -> Row:
        """Store the candidate of one case and return its lineage."""
        job, started = self.job, time.monotonic()
        halved, kept_out = self._strain()
        volume = formats.read_image(case.image, job.max_voxels)
        classes = len(job.structures) + 1
        specialist_DHW = clean(self.specialist.mask(volume.image_CDHW, volume.grid), classes, job.prompts)
        takes = [member.generalist.capabilities for member in self.members]
        asked_DHW = fewest(specialist_DHW, self._most(case))
        questions = asking.questions(asked_DHW, classes, job.prompts, job.seed, takes)
        seen = seen_by_generalists(volume.image_CDHW)
        asked = ask_all(self.members, questions, seen, volume.digest, classes, volume.grid.spacing)
        candidate = Candidate(
            case.case,
            specialist_DHW,
            asked.regions,
            asked.predicted_iou,
            asked.consensus,
            asked.pooled_KC,
            asked.grid_DCHW,
        )
        return {
            "image": volume.digest,
            "specialist": self.specialist.digest,
            "generalist": digest(self.members),
            "candidate": arrays.write_candidate(Place.of(job.candidates), candidate),
            "consensus": [round(share, 4) for share in asked.consensus[1:]],
            "prompts": asked.prompts,
            "prompted": asking.told(questions, classes),
            "slices_embedded": asked.slices_embedded,
            "cache_hits": asked.cache_hits,
            "not_kept": self._strain()[1] - kept_out,
            "halvings": self._strain()[0] - halved,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _most(self, case: Case) -> dict[int, int]:
        """Pieces to ask about at most, by value of the structure, where anything is known of that."""
        expected = self.expected.about(case.case) if self.expected else {}
        absent = {name: 0 for name, word in expected.items() if word is Expectation.ABSENT}
        most = {**self.job.most, **absent}
        return {value: most[name] for value, name in enumerate(self.job.structures, 1) if name in most}

    def _strain(self) -> tuple[int, int]:
        """How often memory ran out so far, and how many slices the caches did not keep."""
        halved = sum(m.generalist.halvings for m in self.members if isinstance(m.generalist, Batched))
        return halved, sum(m.cache.stats().refused for m in self.members)


def members(settings: GeneralistSettings, embeddings: str | None) -> list[Member]:
    """Load a generalist and those that give a second opinion, each with its cache in a folder."""
    place = None if embeddings is None else Place.of(embeddings)
    built = [(generalists.build(one), one) for one in (settings, *settings.second_opinions)]
    return [Member(made, one, EmbeddingCache(place, made, one.cache)) for made, one in built]


def seen_by_generalists(image_CDHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what generalists see: one channel or three as they are, of any other number the mean."""
    return image_CDHW if len(image_CDHW) in (1, 3) else image_CDHW.mean(axis=0)
