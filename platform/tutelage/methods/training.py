"""The loop that trains a specialist. It knows no method by name, no Ray and no files.

Everything in a step follows from the seed, the step and the worker's rank: what is learned
from (`batches`) and what is random inside the method, since torch's generator is seeded
anew for every part of every step. So a run that goes on from a checkpoint ends with the bits
of one that never stopped, unless its method remembers more than its networks do.

Processes that learn together decide together: what one of them finds, a loss that is no
number or a wish to end, all know at the end of the step, by one small sum over all of them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import DivergedError, Preempted, TrainingError
from tutelage.methods.base import SPECIALIST, Batch, Method
from tutelage.methods.batches import Batches
from tutelage.methods.checkpoint import Best, Checkpoint, State, copied, copied_deep
from tutelage.methods.kernels import guard
from tutelage.methods.parts import parted
from tutelage.methods.settings import TrainSettings
from tutelage.methods.sharding import divided, divided_optimizer, gathered, lend, whole
from tutelage.methods.together import join_norms


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. Loss, terms and gradient are those of all workers together."""

    step: int
    loss: float
    terms: dict[str, float]
    lr: float
    gradient_norm: float
    seconds: float
    waited: float
    """Seconds before that until its patches were there."""
    patches: int
    """That this process learned from."""
    memory_mib: float
    """Most memory of the GPU that tensors took so far; 0 on a CPU."""
    system: dict[str, float] | None = None
    """What the machine is at, if somebody around the loop has looked."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How one process got through one step."""

    step: int
    rank: int
    seconds: float
    waited: float


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


def _never() -> bool:
    return False


def _alone(numbers: Tensor) -> Tensor:
    return numbers


@dataclass(frozen=True)
class Around:
    """What surrounds the loop and is none of its business; the defaults are a loop by itself."""

    resume: Checkpoint | None = None
    save: Callable[[Checkpoint], None] | None = None
    on_step: Callable[[StepReport], None] | None = None
    validate: Callable[[State], Iterator[float]] | None = None
    """Scores weights of the specialist, one validation case after another; the highest mean is the best.
    One process looks. The others learn after each case that it is still at it, so none waits for longer."""
    wrap: Callable[[nn.Module], nn.Module] | None = None
    """Joins the processes that learn together; each may be left with a part of every weight (`sharding`)."""
    total: Callable[[dict[str, float]], dict[str, float]] = dict
    """Adds up what each of those counted; called by all of them at the same steps."""
    mean: Callable[[Tensor], Tensor] = _alone
    """Means over those of a few numbers that each has; called by all of them at the same moments."""
    stop: Callable[[], bool] = _never
    """Whether this process was asked to end. Called after every step and every validated case, so whoever
    gives it knows that the loop is alive."""
    autocast: torch.dtype = torch.float32


def fit(
    method: Method,
    networks: nn.ModuleDict,
    batches: Batches,
    settings: TrainSettings,
    around: Around | None = None,
) -> Trained:
    """Train in place and return the weights that may be kept.

    Losses are means over the parts of each worker's share of the batch, gradients means over workers.

    Raises:
        DivergedError: loss or gradient is no longer a number (the message names the cases).
        Preempted: it was asked to end, and has handed out a checkpoint of the last step.
        TrainingError: the checkpoint is of other networks.
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
        guard(networks)
        join_norms(networks)
        learner = Learner(method, networks)
        # First of all: from here on weights may be parts.
        self.learner = learner if around.wrap is None else around.wrap(learner)
        self.specialist = networks[SPECIALIST]
        self.device = next(self.specialist.parameters()).device
        self.optimizer = torch.optim.AdamW(
            [one for one in networks.parameters() if one.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,  # a quarter of the time on a CPU, where others walk through memory many times
        )
        resume = around.resume
        if resume is not None:
            self._restore(resume)
        self.mean = self._running(resume) if settings.ema else None
        self.best = None if resume is None else resume.best
        self.validated = () if resume is None else resume.validated
        self.counted = {} if resume is None else resume.counts
        self.seconds = 0.0 if resume is None else resume.seconds
        self.start = 0 if resume is None else resume.step
        self.asked = False

    def run(self) -> Trained:
        self.learner.train()
        steps = self.settings.steps
        if self.start and self.start not in dict(self.validated):  # asked to end before it had looked
            self._finish(self.start, time.perf_counter())
        ahead = self.batches.ahead(self.start, steps, pinned=self.device.type == "cuda")
        for step in range(self.start, steps):
            began = time.perf_counter()
            drawn = next(ahead)
            started = time.perf_counter()
            report = self._step(step, drawn.on(self.device), started)
            if self.around.on_step is not None:
                self.around.on_step(replace(report, waited=started - began))
            self._finish(step + 1, began)
            if (step + 1) % self.settings.checkpoint_every == 0 and step + 1 < steps:
                self._save(step + 1)
        return Trained(gathered(self._weights()), self.best, self.validated, self._counts(), self.seconds)

    def _finish(self, done: int, began: float) -> None:
        """Look at validation cases if it is time, and end if anybody was asked to."""
        looked = self._look(done)
        self.seconds += time.perf_counter() - began
        steps = self.settings.steps
        if self.asked and (done < steps or not looked):
            self._save(done)
            raise Preempted(f"training was asked to end after {done} of {steps} steps")

    def _step(self, step: int, batch: Batch, started: float) -> StepReport:
        rate = _rate(step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        terms = self._gradients(batch, step)
        norm = whole(nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip))
        told = self._told(norm, terms, step, batch)
        self.optimizer.step()
        self.method.after_step(self.networks, step)
        if self.mean is not None:
            _follow(self.mean, self.specialist, min(self.settings.ema, (1 + step) / (10 + step)))
        return StepReport(
            step=step,
            loss=told[1],
            terms=dict(zip(terms, told[2:], strict=True)),
            lr=rate,
            gradient_norm=told[0],
            seconds=time.perf_counter() - started,
            waited=0.0,
            patches=len(batch.labeled) + (len(batch.unlabeled) if batch.unlabeled else 0),
            memory_mib=_memory_mib(self.device),
        )

    def _gradients(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add up the gradients of all parts, joined with other processes' once; return the terms."""
        dtype, parts = self.around.autocast, parted(batch, self.settings.accumulate)
        apart = getattr(self.learner, "no_sync", contextlib.nullcontext)
        summed: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            torch.manual_seed(_seed(self.batches.seed, step, self.batches.rank, number))
            with apart() if number + 1 < len(parts) else contextlib.nullcontext():
                with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                    terms = self.learner(part, step)
                shares = {name: term.float() / len(parts) for name, term in terms.items()}
                torch.autograd.backward(torch.stack([*shares.values()]).sum())
            for name, share in shares.items():
                summed[name] = summed[name] + share.detach() if name in summed else share.detach()
        return summed

    def _told(self, norm: Tensor, terms: Mapping[str, Tensor], step: int, batch: Batch) -> list[float]:
        """Return norm, loss and terms over all processes; before the weights change, as numbers may be none.

        Whether anybody was asked to end is agreed on by the way.
        """
        parts = torch.stack([*terms.values()])
        mine = torch.stack([norm.detach().float(), parts.sum(), *parts])
        asked = mine.new_tensor([float(self.around.stop())])
        # One wait for the device a step.
        *told, asking, own = torch.cat([self.around.mean(torch.cat([mine, asked])), mine[1:2]]).tolist()
        self.asked = asking > 0
        if not np.isfinite(told[1]):
            mine_too = not np.isfinite(own)
            _refuse("loss", own if mine_too else told[1], step, _cases(batch) if mine_too else ())
        if not np.isfinite(told[0]):
            _refuse("gradient", told[0], step, _cases(batch))
        return told

    def _weights(self) -> State:
        """The specialist as it would be kept now, or this process's part of it."""
        return self.mean if self.mean is not None else dict(self.specialist.state_dict())

    def _look(self, done: int) -> bool:
        """Score the specialist on validation cases when it is time, and keep it if it is the best.

        Returns whether that is over; it is given up where anybody is asked to end.
        """
        every, steps = self.settings.validate_every, self.settings.steps
        if not every or (done % every and done < steps):
            return True
        validate = self.around.validate
        weights = gathered(self._weights())
        looking = iter(()) if validate is None or self.asked else validate(weights)
        scores: list[float] = []
        going = not self.asked
        while going:
            score = next(looking, None)
            scores += [] if score is None else [score]
            told = torch.tensor([float(self.around.stop()), float(score is not None)], device=self.device)
            asking, more = self.around.mean(told).tolist()
            self.asked = asking > 0
            going = more > 0 and not self.asked
        if scores and not self.asked:
            self._rank(done, float(np.mean(scores)), weights)
        return not self.asked

    def _rank(self, done: int, score: float, weights: State) -> None:
        self.validated = (*self.validated, (done, score))
        if self.best is None or score > self.best.score:
            self.best = Best(done, score, copied(weights))

    def _counts(self) -> dict[str, float]:
        """What was counted before a checkpoint and since, over all workers."""
        now = self.around.total({**self.method.counts(), **self.batches.counts()})
        return {name: self.counted.get(name, 0.0) + now.get(name, 0.0) for name in {**self.counted, **now}}

    def _save(self, done: int) -> None:
        """Hand out a copy of everything: a saver may keep it while training goes on."""
        counts = self._counts()
        state = (self.networks.state_dict(), self.mean, self.optimizer.state_dict())
        if self.around.save is None:
            lend(state)
            return
        networks, mean, optimizer = copied_deep(state)
        self.around.save(
            Checkpoint(
                step=done,
                networks=networks,
                mean=mean,
                optimizer=optimizer,
                best=self.best,
                validated=self.validated,
                counts=counts,
                seconds=self.seconds,
            )
        )

    def _running(self, resume: Checkpoint | None) -> State:
        """Where the running mean of the weights starts or goes on."""
        now = self.specialist.state_dict()
        kept = None if resume is None or resume.mean is None else divided(resume.mean, now)
        return copied(kept or now, self.device)

    def _restore(self, resume: Checkpoint) -> None:
        try:
            self.networks.load_state_dict(divided(resume.networks, self.networks.state_dict()))
            # A copy: loading keeps the tensors it is given, and steps change them.
            (group,) = self.optimizer.param_groups
            self.optimizer.load_state_dict(divided_optimizer(resume.optimizer, group["params"]))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"the checkpoint of step {resume.step} is of another network ({reason}); "
                "delete it to start over"
            ) from error


def _refuse(what: str, value: float, step: int, cases: tuple[str, ...]) -> None:
    """Stop at what is no number; without cases it is another process's."""
    where = f"on {', '.join(cases)}" if cases else "in another process"
    error = DivergedError(
        f"the {what} is {value} in step {step} {where}, expected a number; "
        "look at these cases, or lower train.learning_rate"
    )
    error.step, error.what, error.value, error.cases = step, what, value, cases
    raise error


def _cases(batch: Batch) -> tuple[str, ...]:
    return (*batch.labeled.cases, *(batch.unlabeled.cases if batch.unlabeled else ()))


def _memory_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def _seed(seed: int, step: int, rank: int, part: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0])


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
