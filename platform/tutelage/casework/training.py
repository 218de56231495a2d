"""Training one specialist: gather the samples, run the plain loop, keep what comes out.

One process of possibly several; each gathers all samples, because a batch is drawn from
all of them. It does not know who started it.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from tutelage.archive import formats
from tutelage.errors import TrainingError
from tutelage.labels.arrays import read_label
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Batches, Checkpoint, Sample, StepReport, fit
from tutelage.records import Case
from tutelage.specialist import artifact
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan
from tutelage.specialist.predictor import autocast_dtype
from tutelage.specialist.preprocess import prepare, resample_label, resample_weight
from tutelage.storage import Place

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Everything that one training is about."""

    gold: tuple[Case, ...]
    pseudo: tuple[Case, ...]
    """Unlabeled cases with a pseudo-label."""
    labels: str
    """Folder of pseudo-labels."""
    plan: Plan
    settings: TrainSettings
    seed: int
    out: str
    """Folder for the specialist."""
    checkpoint: str
    """File for checkpoints; a training that finds one goes on from it."""
    stage: str
    max_voxels: int


def train(
    job: TrainJob,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> str:
    """Train, store the specialist (rank 0) and return its digest."""
    torch.manual_seed(job.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Measured on a CPU in bf16: a tenth faster than the default layout.
    network = build(job.plan).to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    batches = Batches(
        samples=samples(job),
        patch=job.plan.patch,
        classes=job.plan.classes,
        settings=job.settings,
        seed=job.seed,
        rank=rank,
        world=world,
    )
    keeper = _Keeper(Place.of(job.checkpoint))
    state = fit(
        network,
        batches,
        job.settings,
        resume=keeper.load(),
        save=keeper.save if rank == 0 else None,
        on_step=on_step,
        wrap=wrap,
        autocast=autocast_dtype(device),
    )
    if rank:
        return artifact.digest_of_state(state)
    about = {"stage": job.stage, "settings": job.settings.fingerprint()}
    return artifact.save(Place.of(job.out), state, job.plan, about)


def samples(job: TrainJob) -> list[Sample]:
    """Read every case of a job as the network sees it."""
    return [_gold(job, case) for case in job.gold] + [_pseudo(job, case) for case in job.pseudo]


def _gold(job: TrainJob, case: Case) -> Sample:
    if case.label is None:
        raise TrainingError(f"{case.case} is annotated but has no label; scan the archive again")
    volume = formats.read_image(case.image, job.max_voxels)
    label_DHW = formats.read_label(case.label, volume.grid, len(job.plan.structures))
    return Sample(
        case=case.case,
        image_CDHW=prepare(volume.image_CDHW, volume.grid, job.plan),
        label_DHW=resample_label(label_DHW, volume.grid, job.plan),
        weight_DHW=None,
        undecided=(),
        gold=True,
    )


def _pseudo(job: TrainJob, case: Case) -> Sample:
    volume = formats.read_image(case.image, job.max_voxels)
    label = read_label(Place.of(job.labels), case.case)
    return Sample(
        case=case.case,
        image_CDHW=prepare(volume.image_CDHW, volume.grid, job.plan),
        label_DHW=resample_label(label.mask_DHW, volume.grid, job.plan),
        weight_DHW=resample_weight(label.weight_DHW, volume.grid, job.plan),
        undecided=label.undecided,
        gold=False,
    )


class _Keeper:
    """Keeps the last checkpoint of a training in one file, whole or not at all."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def save(self, checkpoint: Checkpoint) -> None:
        buffer = io.BytesIO()
        torch.save(asdict(checkpoint), buffer)
        self.place.write_bytes(buffer.getvalue())

    def load(self) -> Checkpoint | None:
        if not self.place.exists():
            return None
        try:
            values = torch.load(io.BytesIO(self.place.read_bytes()), map_location="cpu", weights_only=True)
            return Checkpoint(**values)
        except Exception as error:  # torch has no common base for what a damaged file can raise
            _log.warning("%s cannot be read (%s); training starts over", self.place, error)
            return None
