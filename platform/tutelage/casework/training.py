"""Training one specialist: gather what its method needs, run the plain loop, keep what comes out.

One process of possibly several; each gathers all samples, because a batch is drawn from
all of them. It knows no method by name, and not who started it.
"""

import io
import itertools
import json
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tutelage.casework import samples
from tutelage.casework.validating import Validator
from tutelage.casework.volumes import Volumes
from tutelage.errors import TrainingError
from tutelage.methods.base import SPECIALIST, Method, Resources
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.needs import Needs, needs_of
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Around, Checkpoint, StepReport, Trained, fit
from tutelage.records import Case
from tutelage.settings import fingerprint
from tutelage.specialist import artifact
from tutelage.specialist.plan import Plan
from tutelage.specialist.predictor import autocast_dtype
from tutelage.storage import Place

if TYPE_CHECKING:  # only methods that ask need what asking needs
    from tutelage.casework.online import AskJob

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
    """Folder for the specialist. If training looks at validation cases, a folder beside it gets the
    weights that were not selected, `.last` or `.best` added to its name."""
    checkpoint: str
    """File for checkpoints; a training that finds one goes on from it."""
    stage: str
    max_voxels: int
    unlabeled: tuple[Case, ...] = ()
    """Cases of which nothing is believed, if the method sees them."""
    validation: tuple[Case, ...] = ()
    """Annotated cases that only tell which weights are best."""
    record: str | None = None
    """File for what training took, if anybody wants to know."""
    texts: str | None = None
    """File of text vectors, if the method needs them."""
    start: str | None = None
    """Folder of the specialist whose weights it starts from, if the method goes on from one."""
    asks: "AskJob | None" = None
    """Whom the method may ask, if it asks."""

    @property
    def needs(self) -> Needs:
        """Those of its method, as it is told to learn."""
        return needs_of(self.settings)


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
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    read = gathered(job)
    method = method_class(job.settings.method)(job.plan, job.settings, _resources(job, read, device))
    networks = laid_out(method.networks().to(device))
    settings = job.settings
    if job.needs.continues and job.start is not None:
        _take_over(networks[SPECIALIST], Place.of(job.start))
        settings = settings.model_copy(
            update={"learning_rate": settings.learning_rate * settings.fine_tuning}
        )
    keeper = _Keeper(Place.of(job.checkpoint))
    around = Around(
        resume=keeper.load(),
        save=keeper.save if rank == 0 else None,
        on_step=on_step,
        validate=_validator(job, method, networks) if rank == 0 else None,
        wrap=wrap,
        total=_over_workers if world > 1 else dict,
        autocast=autocast_dtype(device),
    )
    batches = Batches(read, job.plan, job.settings, job.seed, rank, world)
    trained = fit(method, networks, batches, settings, around)
    return artifact.digest_of_state(trained.last) if rank else _stored(job, method.plan, trained, device)


def gathered(job: TrainJob) -> list[Sample]:
    """Read every case of a job as the network sees it, validation cases left out."""
    labels, features = Place.of(job.labels), job.needs.features
    everything = itertools.chain(  # annotated cases are drawn most often and come first, into memory
        (samples.annotated(case, job.plan, job.max_voxels) for case in job.gold),
        (samples.believed(case, job.plan, job.max_voxels, labels, features) for case in job.pseudo),
        (samples.unlabeled(case, job.plan, job.max_voxels) for case in job.unlabeled),
    )
    with Volumes(job.settings.max_gb) as volumes:
        return [volumes.keep(sample) for sample in everything]


def laid_out(networks: nn.ModuleDict) -> nn.ModuleDict:
    """Let kernels lie in memory with channels last: measured on a CPU in bf16, a tenth faster."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in networks.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    return networks


# --- what a method needs --------------------------------------------------------------------


def _resources(job: TrainJob, read: list[Sample], device: torch.device) -> Resources:
    asker = None
    if job.needs.asker:
        from tutelage.casework.online import asker as load

        if job.asks is None:
            raise TrainingError(f"{job.settings.method} asks a generalist, and the job names none")
        asker = load(job.asks)
    return Resources(
        texts_KTF=_texts(job).to(device) if job.needs.text else None,
        asker=asker,
        feature_width=next((s.features_DCHW.shape[1] for s in read if s.features_DCHW is not None), None),
    )


def _texts(job: TrainJob) -> Tensor:
    """Vectors of the plan's classes, in its order."""
    from tutelage.priors.vectors import BACKGROUND, read

    if job.texts is None:
        raise TrainingError(f"{job.settings.method} reads text vectors, and the job names no file of them")
    vectors = read(Place.of(job.texts))
    classes = (BACKGROUND, *job.plan.structures)
    if missing := [name for name in classes if name not in vectors.structures]:
        raise TrainingError(
            f"{job.texts} has no vectors of {', '.join(missing)}; make them again for this archive"
        )
    rows = [vectors.structures.index(name) for name in classes]
    return torch.from_numpy(vectors.array_KTF[rows])


def _take_over(network: nn.Module, folder: Place) -> None:
    before, _, _ = artifact.load(folder)
    try:
        network.load_state_dict(before.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"training cannot go on from {folder}, which is another network ({reason}); "
            "train the stage before it again"
        ) from error


def _validator(job: TrainJob, method: Method, networks: nn.ModuleDict) -> Validator | None:
    if not job.settings.validate_every:
        return None
    if not job.validation:
        raise TrainingError(
            "there is no validation case to look at; set archive.split.validation to 1 or more, "
            "or train.validate_every to 0"
        )
    cases = [samples.annotated(case, job.plan, job.max_voxels) for case in job.validation]
    return Validator(cases, method.plan, networks[SPECIALIST])


def _over_workers(counts: dict[str, float]) -> dict[str, float]:
    """Add up what each process counted."""
    everyone: list[dict[str, float]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everyone, counts)
    names = sorted({name for one in everyone for name in one})
    return {name: sum(one.get(name, 0.0) for one in everyone) for name in names}


# --- what is kept ---------------------------------------------------------------------------


def _stored(job: TrainJob, plan: Plan, trained: Trained, device: torch.device) -> str:
    """Write what was selected, what was not beside it, and what it took; return the first's digest."""
    about = {
        "stage": job.stage,
        "method": job.settings.method,
        "settings": fingerprint(job.settings.effective()),
    }
    both = {"last": trained.last} | ({"best": trained.best.weights} if trained.best else {})
    selected = job.settings.select if job.settings.select in both else "last"
    digests = {
        name: artifact.save(
            Place.of(job.out if name == selected else f"{job.out}.{name}"), weights, plan, about
        )
        for name, weights in both.items()
    }
    if job.record is not None:
        told = {
            "method": job.settings.method,
            "selected": selected,
            "digests": digests,
            "best_step": trained.best.step if trained.best else None,
            "validation_dice": trained.validated,
            "seconds": round(trained.seconds, 2),
            "peak_mib": round(_peak_mib(device), 1),
            "counts": trained.counts,
        }
        Place.of(job.record).write_text(json.dumps(told, indent=1))
    return digests[selected]


def _peak_mib(device: torch.device) -> float:
    """Most memory that was taken: of the GPU where there is one, else of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class _Keeper:
    """Keeps the last checkpoint of a training in one file, whole or not at all."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def save(self, checkpoint: Checkpoint) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint.to_dict(), buffer)
        self.place.write_bytes(buffer.getvalue())

    def load(self) -> Checkpoint | None:
        if not self.place.exists():
            return None
        try:
            values = torch.load(io.BytesIO(self.place.read_bytes()), map_location="cpu", weights_only=True)
            return Checkpoint.from_dict(values)
        except Exception as error:  # torch has no common base for what a damaged file can raise
            _log.warning("%s cannot be read (%s); training starts over", self.place, error)
            return None
