"""Training one specialist: gather what its method needs, run the plain loop, keep what comes out.

One process of possibly several, which say the same or nothing at all: the first one of them reads
and writes checkpoints, looks at validation cases while the others wait, and stores the
specialist. Validation cases lie in its memory beside `train.max_gb`. It knows no method by name,
and not who started it.
"""

import json
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tutelage.casework import samples
from tutelage.casework.checkpoints import Checkpoints
from tutelage.casework.gathering import Reader, shelves
from tutelage.casework.validating import Validator
from tutelage.casework.watching import Watch
from tutelage.casework.workers import Workers
from tutelage.errors import DivergedError, Preempted, TrainingError
from tutelage.methods import sharding, teachers
from tutelage.methods.base import SPECIALIST, Asker, Method, Resources
from tutelage.methods.batches import Batches
from tutelage.methods.checkpoint import Checkpoint
from tutelage.methods.needs import Needs, needs_of, undivided
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Around, StepReport, Trained, fit
from tutelage.records import Case
from tutelage.settings import fingerprint
from tutelage.specialist import artifact
from tutelage.specialist.plan import Plan
from tutelage.specialist.predictor import autocast_dtype
from tutelage.storage import Place

if TYPE_CHECKING:  # only methods that ask need what asking needs
    from tutelage.casework.online import AskJob

_log = logging.getLogger(__name__)

_END_WITHIN_S = 20.0
"""From being asked to end until the last checkpoint is written, or given up."""

_LAST_WRITE_S = 60.0
"""What a checkpoint that is being written when training is done may take: its folder is about to go."""


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
    """Folder for checkpoints; a training that finds one goes on from the newest that is whole."""
    stage: str
    max_voxels: int
    unlabeled: tuple[Case, ...] = ()
    """Cases of which nothing is believed, if the method sees them."""
    validation: tuple[Case, ...] = ()
    """Annotated cases that only tell which weights are best."""
    record: str | None = None
    """File for what training took, if anybody wants to know."""
    failure: str | None = None
    """File for what was learned from when loss or gradient was no number any more."""
    texts: str | None = None
    """File of text vectors, if the method needs them."""
    start: str | None = None
    """Folder of the specialist whose weights it starts from, if the method goes on from one."""
    asks: "AskJob | None" = None
    """Whom the method may ask, if it asks."""
    watches_machine: bool = False
    """Whether now and then a step tells what the machine of the first process is at."""

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
    shard: bool = False,
    ask: Callable[["AskJob"], Asker] | None = None,
    read: Reader | None = None,
    stop: Callable[[], bool] | None = None,
) -> str:
    """Train, store the specialist (rank 0) and return its digest.

    `wrap` joins whole copies of what learns; `shard` divides it among the processes instead (see
    `methods.sharding`). `ask` makes the generalist that a method asks, instead of loading it here; `read`
    decodes cases, instead of threads of this process; `stop` tells when to end, instead of SIGTERM.

    Raises:
        Preempted: it was asked to end, in any of the processes; the message says where it goes on.
        DivergedError: loss or gradient is no number any more; `job.failure` holds the cases.
        TrainingError: it cannot be learned from what there is.
    """
    if shard and (reason := undivided(job.settings)):
        raise TrainingError(f"cluster.shard is true, but {reason}")
    torch.manual_seed(job.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if job.failure is not None and rank == 0:
        Place.of(job.failure).remove()
    workers = Workers(rank, world)
    with shelves(job, read) as cases:
        resources = _resources(job, cases.width or None, device, ask)
        method = method_class(job.settings.method)(job.plan, job.settings, resources)
        # What is divided comes to the device layer by layer.
        networks, settings = _networks(job, method, torch.device("cpu") if shard else device)
        batches = Batches(cases, job.plan, job.settings, job.seed, rank, world)
        checkpoints = Checkpoints(Place.of(job.checkpoint), settings.keep)
        around = Around(
            resume=_resumed(checkpoints, workers),
            save=checkpoints.save if workers.is_first else None,
            on_step=_watching(on_step) if on_step and job.watches_machine and rank == 0 else on_step,
            validate=_validator(job, method, networks, device) if workers.is_first else None,
            wrap=partial(sharding.shard, device=device) if shard else wrap,
            total=workers.total,
            mean=workers.mean,
            autocast=autocast_dtype(device),
        )
        notes = Place.of(job.checkpoint).parent / f"hang-rank{rank}.txt"
        with Watch(settings.hang_s, notes, stop) as watch:
            try:
                trained = fit(method, networks, batches, settings, replace(around, stop=watch))
            except Preempted as error:
                raise Preempted(workers.first(_kept(error, checkpoints, watch))) from None
            except DivergedError as error:
                raise _recorded(error, job, workers) from None
    checkpoints.close(_LAST_WRITE_S)
    return _stored(job, method.plan, trained, device) if rank == 0 else artifact.digest_of_state(trained.last)


def _watching(on_step: Callable[[StepReport], None]) -> Callable[[StepReport], None]:
    """Have steps tell what this machine is at, too."""
    from tutelage.tracking.machine import Machine

    machine = Machine()
    return lambda report: on_step(replace(report, system=machine.told()))


def _networks(job: TrainJob, method: Method, device: torch.device) -> tuple[nn.ModuleDict, TrainSettings]:
    """Build what learns, from where it starts, and say how fast."""
    networks = laid_out(method.networks().to(device))
    if not job.needs.continues or job.start is None:
        return networks, job.settings
    _take_over(networks[SPECIALIST], method.plan, Place.of(job.start))
    teachers.start_alike(networks)
    slower = job.settings.learning_rate * job.settings.fine_tuning
    return networks, job.settings.model_copy(update={"learning_rate": slower})


def laid_out(networks: nn.ModuleDict) -> nn.ModuleDict:
    """Let kernels lie in memory with channels last: measured on a CPU in bf16, a tenth faster."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in networks.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    return networks


# --- what a method needs --------------------------------------------------------------------


def _resources(
    job: TrainJob, width: int | None, device: torch.device, ask: Callable[["AskJob"], Asker] | None
) -> Resources:
    asker = None
    if job.needs.asker:
        if job.asks is None:
            raise TrainingError(f"{job.settings.method} asks a generalist, and the job names none")
        asker = (ask or _loaded)(job.asks)
    return Resources(
        texts_KTF=_texts(job).to(device) if job.needs.text else None, asker=asker, feature_width=width
    )


def _loaded(asks: "AskJob") -> Asker:
    from tutelage.casework.online import asker

    return asker(asks)


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


def _take_over(network: nn.Module, plan: Plan, folder: Place) -> None:
    before, known, _ = artifact.load(folder)
    state = before.state_dict()
    alike = (plan.network, plan.channels) == (known.network, known.channels)
    if plan.text is not None and known.text is None and alike:
        # Labels alone teach no text: what reads it starts afresh, and a head what leads to it too.
        fresh = network.state_dict()
        kept = {name for name in fresh if name in state and state[name].shape == fresh[name].shape}
        state = {name: (state if name in kept else fresh)[name] for name in fresh}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"training cannot go on from {folder}, which is another network ({reason}); "
            "train the stage before it again"
        ) from error


def _validator(
    job: TrainJob, method: Method, networks: nn.ModuleDict, device: torch.device
) -> Validator | None:
    if not job.settings.validate_every:
        return None
    if not job.validation:
        raise TrainingError(
            "there is no validation case to look at; set archive.split.validation to 1 or more, "
            "or train.validate_every to 0"
        )
    cases = [samples.annotated(case, job.plan, job.max_voxels) for case in job.validation]
    return Validator(cases, method.plan, networks[SPECIALIST], device)


# --- going on -------------------------------------------------------------------------------


def _resumed(checkpoints: Checkpoints, workers: Workers) -> Checkpoint | None:
    """Return the checkpoint that all processes go on from: the first one looks which is whole."""
    found = checkpoints.newest() if workers.is_first else None
    step = workers.first(None if found is None else found.step)
    return found if workers.is_first or step is None else checkpoints.of(step)


def _kept(asked: Preempted, checkpoints: Checkpoints, watch: Watch) -> str:
    """Wait for the last checkpoint, as long as there is time, and say where training goes on."""
    in_time = checkpoints.wait(watch.stopper.left_s(_END_WITHIN_S))
    safe = checkpoints.safe
    late = f"it was not written within {_END_WITHIN_S:g} s"
    missed = safe.failure if in_time else late
    instead = f"; its last checkpoint could not be kept ({missed})" if missed else ""
    goes_on = f"goes on from step {safe.step}" if safe.step else "starts over"
    return f"{asked}{instead}. The same command {goes_on}"


def _recorded(error: DivergedError, job: TrainJob, workers: Workers) -> DivergedError:
    """Write down what was learned from in the step that went wrong, and return the same to all processes."""
    everyone = list(enumerate(workers.everyone(error)))
    # Numbers that are too large only together are nobody's.
    found = [(rank, one) for rank, one in everyone if one.cases] or everyone
    if job.failure is not None and workers.is_first:
        told = {
            "step": error.step,
            "what": error.what,
            "value": str(found[0][1].value),  # JSON has no word for it
            "cases": list(dict.fromkeys(case for _, one in found for case in one.cases)),
            "workers": [{"rank": rank, "cases": list(one.cases)} for rank, one in found],
        }
        try:
            Place.of(job.failure).write_text(json.dumps(told, indent=1))
        except OSError as trouble:  # must not hide what is told here
            _log.error("%s cannot be written (%s); it would hold %s", job.failure, trouble, told)
    return workers.first(found[0][1])


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
