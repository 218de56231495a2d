"""The loop that trains a specialist. It knows no method by name, no Ray and no files.

Everything in a step follows from the seed, the step and the worker's rank: what is learned
from (`batches`) and what is random inside the method, since torch's generator is seeded
anew for every step. So a run that goes on from a checkpoint ends with the bits of one that
never stopped.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.methods.base import SPECIALIST, Batch, Method
from tutelage.methods.batches import Batches
from tutelage.methods.kernels import guard
from tutelage.methods.settings import TrainSettings

State = dict[str, Tensor]
"""Weights by name."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did."""

    step: int
    loss: float
    terms: dict[str, float]
    lr: float
    gradient_norm: float
    seconds: float
    waited: float
    """Seconds before that until its patches were there."""


@dataclass(frozen=True, slots=True)
class Best:
    """The specialist that did best on validation cases so far."""

    step: int
    """Steps that it had learned."""
    score: float
    weights: State


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that going on needs; batches and chance follow from seed, step and rank."""

    step: int
    """Steps that are done."""
    networks: State
    mean: State | None
    optimizer: dict[str, Any]
    best: Best | None
    validated: tuple[tuple[int, float], ...]
    """Steps and scores."""
    counts: dict[str, float]
    seconds: float
    """That all steps so far took."""

    def to_dict(self) -> dict[str, Any]:
        """Return what can be stored without pickling classes; tensors are not copied."""
        values = {name: getattr(self, name) for name in Checkpoint.__slots__}
        best = self.best
        return values | {"best": best and {name: getattr(best, name) for name in Best.__slots__}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Checkpoint":
        """Return the checkpoint of stored values."""
        best = values["best"]
        return cls(**{**values, "best": best and Best(**best)})


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it."""

    last: State
    """Weights of the specialist after the last step, or their running mean."""
    best: Best | None
    validated: tuple[tuple[int, float], ...]
    counts: dict[str, float]
    """What the method counted, over all workers."""
    seconds: float


class Learner(nn.Module):
    """A method and its networks as one module: what is wrapped to learn in several processes."""

    def __init__(self, method: Method, networks: nn.ModuleDict) -> None:
        super().__init__()
        self.networks = networks
        self._method = method

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the method's terms."""
        return self._method.losses(batch, self.networks, step)


@dataclass(frozen=True)
class Around:
    """What surrounds the loop and is none of its business; the defaults are a loop by itself."""

    resume: Checkpoint | None = None
    save: Callable[[Checkpoint], None] | None = None
    on_step: Callable[[StepReport], None] | None = None
    validate: Callable[[State], float] | None = None
    """Scores weights of the specialist on validation cases; the highest is the best."""
    wrap: Callable[[nn.Module], nn.Module] | None = None
    """Joins the processes that learn together."""
    total: Callable[[dict[str, float]], dict[str, float]] = dict
    """Adds up what each of those counted; called by all of them at the same steps."""
    autocast: torch.dtype = torch.float32


def fit(
    method: Method,
    networks: nn.ModuleDict,
    batches: Batches,
    settings: TrainSettings,
    around: Around | None = None,
) -> Trained:
    """Train in place and return the weights that may be kept.

    Losses are means over each worker's share of the batch, gradients means over workers.

    Raises:
        TrainingError: loss or gradient is no longer a number (the message names the cases),
            or the checkpoint is of other networks.
    """
    return _Fit(method, networks, batches, settings, around or Around()).run()


class _Fit:
    """One run of the loop."""

    def __init__(
        self,
        method: Method,
        networks: nn.ModuleDict,
        batches: Batches,
        settings: TrainSettings,
        around: Around,
    ) -> None:
        self.method, self.networks, self.batches = method, networks, batches
        self.settings, self.around = settings, around
        self.specialist = networks[SPECIALIST]
        self.device = next(self.specialist.parameters()).device
        self.optimizer = torch.optim.AdamW(
            [one for one in networks.parameters() if one.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        resume = around.resume
        if resume is not None:
            self._restore(resume)
        running = None if resume is None else resume.mean
        self.mean = _copied(running or self.specialist.state_dict(), self.device) if settings.ema else None
        self.best = None if resume is None else resume.best
        self.validated = () if resume is None else resume.validated
        self.counted = {} if resume is None else resume.counts
        self.seconds = 0.0 if resume is None else resume.seconds
        self.start = 0 if resume is None else resume.step
        guard(networks)
        learner = Learner(method, networks)
        self.learner = learner if around.wrap is None else around.wrap(learner)

    def run(self) -> Trained:
        self.learner.train()
        ahead = self.batches.ahead(self.start, self.settings.steps, pinned=self.device.type == "cuda")
        for step in range(self.start, self.settings.steps):
            began = time.perf_counter()
            drawn = next(ahead)
            started = time.perf_counter()
            report = self._step(step, drawn.on(self.device), started)
            if self.around.on_step is not None:
                self.around.on_step(replace(report, waited=started - began))
            self._look(step + 1)
            self.seconds += time.perf_counter() - began
            self._save(step + 1)
        return Trained(self._weights(), self.best, self.validated, self._counts(), self.seconds)

    def _step(self, step: int, batch: Batch, started: float) -> StepReport:
        rate = _rate(step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_seed(self.batches.seed, step, self.batches.rank))
        dtype = self.around.autocast
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            terms = self.learner(batch, step)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        norm, values = self._learn(total, terms, f"in step {step} on {_named(batch)}")
        self.method.after_step(self.networks, step)
        if self.mean is not None:
            _follow(self.mean, self.specialist, min(self.settings.ema, (1 + step) / (10 + step)))
        said = dict(zip(terms, values[1:], strict=True))
        return StepReport(step, values[0], said, rate, norm, time.perf_counter() - started, 0.0)

    def _learn(self, total: Tensor, terms: Mapping[str, Tensor], where: str) -> tuple[float, list[float]]:
        """Change the weights once; return the norm that the gradient had, the loss and its terms."""
        self.optimizer.zero_grad()
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip)
        # One wait for the device a step; before the weights change, because numbers may be none.
        told = torch.stack([one.detach().float() for one in (norm, total, *terms.values())]).tolist()
        _refuse_no_number("loss", told[1], where)
        _refuse_no_number("gradient", told[0], where)
        self.optimizer.step()
        return told[0], told[1:]

    def _weights(self) -> State:
        """The specialist as it would be kept now."""
        return self.mean if self.mean is not None else dict(self.specialist.state_dict())

    def _look(self, done: int) -> None:
        """Score the specialist on validation cases when it is time, and keep it if it is the best."""
        every, validate = self.settings.validate_every, self.around.validate
        if validate is None or not every or (done % every and done < self.settings.steps):
            return
        score = validate(self._weights())
        self.validated = (*self.validated, (done, score))
        if self.best is None or score > self.best.score:
            self.best = Best(done, score, _copied(self._weights(), torch.device("cpu")))

    def _counts(self) -> dict[str, float]:
        """What was counted before a checkpoint and since, over all workers."""
        now = self.around.total(self.method.counts())
        return {name: self.counted.get(name, 0.0) + now.get(name, 0.0) for name in {**self.counted, **now}}

    def _save(self, done: int) -> None:
        """Hand out a copy of everything: a saver may keep it while training goes on."""
        if done % self.settings.checkpoint_every or done >= self.settings.steps:
            return
        counts = self._counts()
        if self.around.save is None:
            return
        self.around.save(
            Checkpoint(
                step=done,
                networks=_copied(self.networks.state_dict(), self.device),
                mean=None if self.mean is None else _copied(self.mean, self.device),
                optimizer=copy.deepcopy(self.optimizer.state_dict()),
                best=self.best,
                validated=self.validated,
                counts=counts,
                seconds=self.seconds,
            )
        )

    def _restore(self, resume: Checkpoint) -> None:
        try:
            self.networks.load_state_dict(resume.networks)
            # Loading keeps the tensors it is given, and steps change them.
            self.optimizer.load_state_dict(copy.deepcopy(resume.optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"the checkpoint of step {resume.step} is of another network ({reason}); "
                "delete it to start over"
            ) from error


def _refuse_no_number(what: str, value: float, where: str) -> None:
    if not np.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} {where}, expected a number; "
            "look at these cases, or lower train.learning_rate"
        )


def _named(batch: Batch) -> str:
    return ", ".join([*batch.labeled.cases, *(batch.unlabeled.cases if batch.unlabeled else ())])


def _copied(state: Mapping[str, Tensor], device: torch.device) -> State:
    return {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _rate(step: int, settings: TrainSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return float(settings.learning_rate * warm * (1 - step / settings.steps) ** 0.9)


@torch.no_grad()
def _follow(mean: State, model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1 - decay)
        else:
            mean[name].copy_(value)
