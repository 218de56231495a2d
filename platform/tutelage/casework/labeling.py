"""Labeling one case: the specialist says where, the generalist says exactly how far.

It joins specialist, prompts and generalist into a candidate. Whether the candidate is
believed is curation's business.
"""

import time
from dataclasses import dataclass

from tutelage import generalists
from tutelage.archive import formats
from tutelage.casework.base import Needs, Worker
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.volumes import ask
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.prompts.boxes import boxes, clean
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Candidate, Case
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


class Labeler(Worker):
    """Makes the candidate of one case after another."""

    needs = Needs(gpu=True)

    def __init__(self, job: LabelJob) -> None:
        self.job = job
        self.specialist = Predictor(Place.of(job.specialist))
        self.generalist = generalists.build(job.generalist)
        place = None if job.embeddings is None else Place.of(job.embeddings)
        self.cache = EmbeddingCache(place, self.generalist)

    def work(self, case: Case) -> Row:
        """Store the candidate of one case and return its lineage."""
        job, started = self.job, time.monotonic()
        volume = formats.read_image(case.image, job.max_voxels)
        classes = len(job.structures) + 1
        specialist_DHW = clean(self.specialist.mask(volume.image_CDHW, volume.grid), classes, job.prompts)
        prompts = boxes(specialist_DHW, classes, job.prompts, job.seed)
        gray_DHW = volume.image_CDHW.mean(axis=0)  # a generalist of gray slices sees colors as brightness
        asked = ask(self.generalist, gray_DHW, volume.digest, prompts, classes, self.cache, job.generalist)
        candidate = Candidate(
            case.case, specialist_DHW, asked.mean_KDHW, asked.variance_KDHW, asked.predicted_iou
        )
        return {
            "image": volume.digest,
            "specialist": self.specialist.digest,
            "generalist": self.generalist.weights,
            "candidate": arrays.write_candidate(Place.of(job.candidates), candidate),
            "prompts": asked.prompts,
            "slices_embedded": asked.slices_embedded,
            "cache_hits": asked.cache_hits,
            "seconds": round(time.monotonic() - started, 3),
        }
