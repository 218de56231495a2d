"""The loop that trains a specialist. It knows no method, no Ray and no files.

The batch of a step is a pure function of the seed and the step, and is divided over the
workers, so that two workers with one sample each see what one worker sees with two, and a
run that goes on from a checkpoint sees what it would have seen.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.methods.registry import METHODS
from tutelage.methods.settings import TrainSettings


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One case as the network sees it, at the plan's spacing."""

    case: str
    image_CDHW: NDArray[np.float32]
    label_DHW: NDArray[np.uint8]
    weight_DHW: NDArray[np.float32] | None
    """Shares in [0, 1]; None counts every voxel."""
    undecided: tuple[int, ...]
    """See PseudoLabel."""
    gold: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did."""

    step: int
    loss: float
    terms: dict[str, float]
    lr: float
    gradient_norm: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that going on needs; batches follow from seed and step."""

    step: int
    """Steps that are done."""
    model: dict[str, Tensor]
    mean: dict[str, Tensor] | None
    optimizer: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """The batches of one worker."""

    samples: Sequence[Sample]
    patch: tuple[int, int, int]
    classes: int
    settings: TrainSettings
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.settings.batch % self.world:
            raise TrainingError(
                f"a batch of {self.settings.batch} cannot be divided over {self.world} workers; "
                "set train.batch to a multiple of cluster.train_workers"
            )
        if not any(sample.gold for sample in self.samples):
            raise TrainingError("there is no annotated case to learn from; give at least one gold case")
        for sample in self.samples:
            self._check(sample)

    def _check(self, sample: Sample) -> None:
        """Values out of range would end far from here, in an index or, on a GPU, in an assertion."""
        values = {int(sample.label_DHW.max()), *sample.undecided}
        if min(sample.undecided, default=1) < 1 or max(values) >= self.classes:
            raise TrainingError(
                f"{sample.case} has labels up to {sample.label_DHW.max()} and undecided structures "
                f"{list(sample.undecided)}, expected structures 1 to {self.classes - 1}; label it again"
            )

    def at(self, step: int) -> tuple[dict[str, Tensor], list[str]]:
        """Return this worker's share of one step's batch, and the cases in it."""
        share = self.settings.batch // self.world
        places = range(self.rank * share, (self.rank + 1) * share)
        drawn = [self._draw(step, place) for place in places]
        tensors = {key: torch.from_numpy(np.stack([d[key] for d, _ in drawn])) for key in drawn[0][0]}
        return tensors, [case for _, case in drawn]

    def _draw(self, step: int, place: int) -> tuple[dict[str, NDArray[Any]], str]:
        rng = np.random.default_rng([self.seed, step, place])
        gold = [sample for sample in self.samples if sample.gold]
        others = [sample for sample in self.samples if not sample.gold]
        pool = others if others and rng.random() >= self.settings.gold_share else gold
        sample = pool[rng.integers(len(pool))]
        image, label, weight = _cropped(sample, self.patch, rng)
        undecided = np.zeros(self.classes, np.bool_)
        undecided[list(sample.undecided)] = True
        drawn: dict[str, NDArray[Any]]
        drawn = {"image": _shaken(image, rng), "label": label, "weight": weight, "undecided": undecided}
        return drawn, sample.case


def fit(
    model: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    *,
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    autocast: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Train in place and return the weights to keep.

    Losses are means over each worker's share of the batch, gradients means over workers.

    Raises:
        TrainingError: loss or gradient is no longer a number (the message names the cases),
            or the checkpoint is of another network.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    if resume is not None:
        _restore(resume, model, optimizer)
    running = None if resume is None else resume.mean
    mean = _copied(running or model.state_dict(), device) if settings.ema else None
    wrapped = model if wrap is None else wrap(model)
    wrapped.train()
    for step in range(resume.step if resume else 0, settings.steps):
        started = time.perf_counter()
        batch, cases = batches.at(step)
        batch = {key: value.to(device) for key, value in batch.items()}
        rate = _rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, autocast, enabled=autocast is not torch.float32):
            logits = wrapped(batch["image"])
        terms = METHODS[settings.method](logits, batch)
        total = torch.stack(list(terms.values())).sum()
        norm = _learn(total, wrapped, optimizer, settings.clip, f"in step {step} on {', '.join(cases)}")
        if mean is not None:
            _follow(mean, model, min(settings.ema, (1 + step) / (10 + step)))
        if on_step is not None:
            said = {name: float(term.detach()) for name, term in terms.items()}
            seconds = time.perf_counter() - started
            on_step(StepReport(step, float(total.detach()), said, rate, float(norm), seconds))
        done = step + 1
        if save is not None and done % settings.checkpoint_every == 0 and done < settings.steps:
            save(_checkpoint(done, model, mean, optimizer))
    return mean if mean is not None else dict(model.state_dict())


def _learn(
    total: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float, where: str
) -> Tensor:
    """Change the weights once and return the norm that the gradient had."""
    _refuse_no_number("loss", total, where)
    optimizer.zero_grad()
    torch.autograd.backward(total)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    _refuse_no_number("gradient", norm, where)
    optimizer.step()
    return norm


def _refuse_no_number(what: str, value: Tensor, where: str) -> None:
    if not torch.isfinite(value):
        raise TrainingError(
            f"the {what} is {float(value.detach())} {where}, expected a number; "
            "look at these cases, or lower train.learning_rate"
        )


def _restore(resume: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    try:
        model.load_state_dict(resume.model)
        # Loading keeps the tensors it is given, and steps change them.
        optimizer.load_state_dict(copy.deepcopy(resume.optimizer))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"the checkpoint of step {resume.step} is of another network ({reason}); delete it to start over"
        ) from error


def _checkpoint(
    done: int, model: nn.Module, mean: dict[str, Tensor] | None, optimizer: torch.optim.Optimizer
) -> Checkpoint:
    """A copy: a saver may keep it while training goes on."""
    device = next(model.parameters()).device
    return Checkpoint(
        step=done,
        model=_copied(model.state_dict(), device),
        mean=None if mean is None else _copied(mean, device),
        optimizer=copy.deepcopy(optimizer.state_dict()),
    )


def _copied(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}


def _rate(step: int, settings: TrainSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return float(settings.learning_rate * warm * (1 - step / settings.steps) ** 0.9)


@torch.no_grad()
def _follow(mean: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1 - decay)
        else:
            mean[name].copy_(value)


# --- patches --------------------------------------------------------------------------------


def _cropped(
    sample: Sample, patch: tuple[int, int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """One patch; a volume that is smaller is padded, and padding teaches background as the rim does."""
    shape = sample.label_DHW.shape
    start = [int(rng.integers(0, max(0, n - p) + 1)) for n, p in zip(shape, patch, strict=True)]
    where = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
    after = [(0, max(0, p - n)) for n, p in zip(shape, patch, strict=True)]
    image = sample.image_CDHW[(slice(None), *where)]
    padded = np.pad(image, [(0, 0), *after], constant_values=float(sample.image_CDHW.min()))
    label = np.pad(sample.label_DHW[where], after).astype(np.int64)
    weight = np.ones(shape, np.float32) if sample.weight_DHW is None else sample.weight_DHW
    return padded, label, np.pad(weight[where], after, constant_values=1.0)


def _shaken(image_CDHW: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Other brightness, contrast, noise and gamma, as another scanner might."""
    x = image_CDHW * rng.uniform(0.8, 1.25) + rng.uniform(-0.2, 0.2)
    if rng.random() < 0.3:
        x = x + rng.normal(0, 0.1, x.shape)
    if rng.random() < 0.3:
        low, high = x.min(), x.max()
        x = ((x - low) / (high - low + 1e-6)) ** rng.uniform(0.7, 1.5) * (high - low) + low
    return x.astype(np.float32)
