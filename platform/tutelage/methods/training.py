"""The loop that trains a specialist. It knows no method by name, no Ray and no files.

The batch of a step is a pure function of the seed and the step, and is divided over the
workers, so that two workers with one sample each see what one worker sees with two, and a
run that goes on from a checkpoint sees what it would have seen.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.methods import supervised
from tutelage.methods.settings import TrainSettings

Loss = Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]

METHODS: dict[str, Loss] = {"supervised": supervised.loss}
"""Losses by the name that settings use."""


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
        TrainingError: the loss is no longer a number; the message names the cases.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    mean = {k: v.clone() for k, v in model.state_dict().items()} if settings.ema else None
    first = 0
    if resume is not None:
        first = resume.step
        model.load_state_dict(resume.model)
        optimizer.load_state_dict(resume.optimizer)
        mean = resume.mean
    wrapped = model if wrap is None else wrap(model)
    wrapped.train()
    loss = METHODS[settings.method]
    for step in range(first, settings.steps):
        started = time.perf_counter()
        batch, cases = batches.at(step)
        batch = {key: value.to(device) for key, value in batch.items()}
        rate = _rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, autocast, enabled=autocast is not torch.float32):
            logits = wrapped(batch["image"])
        terms = loss(logits, batch)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise TrainingError(
                f"the loss is {float(total.detach())} in step {step} on {', '.join(cases)}; look at these cases, "
                "or lower train.learning_rate"
            )
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(wrapped.parameters(), settings.clip)
        optimizer.step()
        if mean is not None:
            _follow(mean, model, min(settings.ema, (1 + step) / (10 + step)))
        if on_step is not None:
            said = {name: float(term.detach()) for name, term in terms.items()}
            seconds = time.perf_counter() - started
            on_step(StepReport(step, float(total.detach()), said, rate, float(norm), seconds))
        done = step + 1
        if save is not None and done % settings.checkpoint_every == 0 and done < settings.steps:
            save(Checkpoint(done, dict(model.state_dict()), mean, optimizer.state_dict()))
    return mean if mean is not None else dict(model.state_dict())


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
