"""How much our loop costs beside the loop that everybody writes first.

Peer: ten lines of PyTorch with the same network, batches, loss, optimizer and clipping, whose
batches are made beforehand and lie on the device; it looks at no number and keeps nothing. Ours
is what a training worker does, drawing and changing its patches included. Correctness first: both
must lose the same, step by step. How large volumes are looked at in windows is measured too, and if
numbers of workers are named, what Ray and several of them bring (`bench/workers.py`).

On a GPU patches are 96 voxels wide and there are four of them; elsewhere they are what a
laptop trains on.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tutelage.bench import base, window
from tutelage.bench.base import Bench, Measured, medians, same_losses
from tutelage.casework.training import laid_out
from tutelage.geometry import Grid
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.settings import TrainSettings
from tutelage.methods.supervised import Supervised, loss
from tutelage.methods.training import Around, StepReport, fit
from tutelage.specialist.plan import Triple, make_plan
from tutelage.specialist.predictor import autocast_dtype
from tutelage.specialist.settings import SpecialistSettings

PEER = "plain PyTorch loop"

_STRUCTURES = 10
_SAMPLES = 4


@dataclass(frozen=True)
class Size:
    """What is trained."""

    patch: Triple
    batch: int
    steps: int
    channels: tuple[int, ...] = (16, 32, 64, 128)


# Small enough that no convolution of ours is computed in fp32 (`methods/kernels.py`), as the peer's never is.
_SIZES = {"cpu": Size((32, 48, 48), 2, 20), "cuda": Size((96, 96, 96), 4, 40)}


def run(
    repeats: int = 5, size: Size | None = None, windows: bool = True, workers: Sequence[int] = ()
) -> Bench:
    """Measure `repeats` times each way, on Ray too if numbers of workers are named."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    both = _Both(size or _SIZES[device.type], device)
    off = same_losses(both.ours(), both.theirs(), "our loop and the plain one")
    ours, theirs = (seconds / both.size.steps for seconds in medians([both.ours, both.theirs], repeats))
    told = (
        f"{both.size.batch} patches of {'x'.join(map(str, both.plan.patch))}, "
        f"{str(both.dtype).removeprefix('torch.')}, {base.where(device)}, median of {repeats} times "
        f"{both.size.steps} steps; largest difference of a loss {off:.0e}"
    )
    rows = (
        Measured(
            "train.step_vs_torch", PEER, 1 / ours, 1 / theirs, theirs / ours, 0.95, "higher",
            f"steps a second; the peer's batches are ready, ours are drawn; {told}",
        ),
        Measured(
            "train.data_wait", "the step itself", both.waited(), 1.0, both.waited(), 0.03, "lower",
            f"share of time without patches to learn from, after the first step; {told}",
        ),
    )  # fmt: skip
    return Bench("train", (*rows, *_on_ray(workers, repeats), *(window.rows() if windows else ())))


def _on_ray(workers: Sequence[int], repeats: int) -> Sequence[Measured]:
    if not workers:
        return ()
    from tutelage.bench.workers import rows  # needs the whole package, which this file does not

    return rows(workers, repeats)


class _Both:
    """The two ways, from the same first weights."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device, self.dtype = size, device, autocast_dtype(device)
        names = [f"structure {number}" for number in range(1, _STRUCTURES + 1)]
        settings = SpecialistSettings(channels=size.channels, patch=size.patch, spacing=(1.0, 1.0, 1.0))
        whole = tuple(round(1.25 * n) for n in size.patch)
        self.plan = make_plan([Grid.from_spacing(whole, (1.0, 1.0, 1.0))], names, 1, settings)
        self.settings = TrainSettings(steps=size.steps, batch=size.batch)
        samples = [_sample(f"case {number}", whole, number) for number in range(_SAMPLES)]
        self.batches = Batches(samples, self.plan, self.settings, seed=0)
        self.ready = [self.batches.at(step, device) for step in range(size.steps)]
        self._reports: list[StepReport] = []

    def ours(self) -> list[float]:
        """Losses of our loop."""
        method, networks = self._fresh()
        self._reports = []
        around = Around(on_step=self._reports.append, autocast=self.dtype)
        fit(method, networks, self.batches, self.settings, around)
        return [report.loss for report in self._reports]

    def theirs(self) -> list[float]:
        """Losses of the plain loop."""
        network = self._fresh()[1][SPECIALIST].train()
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=self.settings.weight_decay)
        losses = []
        for batch, rate in zip(self.ready, self._rates(), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            total = self._loss(network, batch)
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), self.settings.clip)
            optimizer.step()
            losses.append(total.detach())
        return torch.stack(losses).tolist()

    def waited(self) -> float:
        """Share of the last run in which our loop waited for patches, its first step left out."""
        later = self._reports[1:]
        waited = sum(report.waited for report in later)
        return waited / (waited + sum(report.seconds for report in later))

    def _fresh(self) -> tuple[Supervised, nn.ModuleDict]:
        torch.manual_seed(0)
        method = Supervised(self.plan, self.settings, Resources())
        return method, laid_out(method.networks().to(self.device))

    def _loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        patches = batch.labeled
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits = network(patches.image)
        terms = loss(logits, patches.label, patches.weight, patches.undecided)
        return terms["cross_entropy"] + terms["dice"]

    def _rates(self) -> Iterator[float]:
        told = self.settings
        for step in range(told.steps):
            yield told.learning_rate * min(1.0, (step + 1) / told.warmup) * (1 - step / told.steps) ** 0.9


def _sample(name: str, shape: Sequence[int], seed: int) -> Sample:
    """Noise, and a label in slabs: what a step costs does not depend on what is seen."""
    rng = np.random.default_rng(seed)
    d, h, w = shape
    label = np.broadcast_to(np.arange(w) * (_STRUCTURES + 1) // w, (d, h, w)).astype(np.uint8)
    image = (label + rng.normal(0, 1, label.shape)).astype(np.float32)
    return Sample(name, image[None], label, None, (), gold=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and say so, without the rest of the package."""
    parser = argparse.ArgumentParser(prog="python -m tutelage.bench.train", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-windows", action="store_true", help="leave out inference in windows")
    told = parser.parse_args(arguments)
    base.told(run(told.repeats, windows=not told.no_windows), told.json)


if __name__ == "__main__":
    main()
