"""How a large volume is looked at in windows: time, labels and memory.

Peer: MONAI's sliding_window_inference on the same network, windows and weights, one window at a
time, sums in main memory, and the largest class of each voxel. Ours hands out slices as they
are finished and never holds all classes of the whole volume. Memory is what a process of its
own takes beyond the image and a network that has looked at one window before; there the
network is small, because what is compared does not depend on it. Linux only. By default on a
volume of a minute; the one that is spoken of takes half an hour on two cores:

    python -m tutelage.bench.window --shape 400 512 512 --repeats 1 --json window.json
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from tutelage.bench import base
from tutelage.bench.base import Bench, Measured, medians
from tutelage.geometry import Grid
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.predictor import autocast_dtype, largest
from tutelage.specialist.settings import SpecialistSettings
from tutelage.specialist.windows import slide

_PEER = "monai.inferers.sliding_window_inference"
_SHAPE: Triple = (96, 160, 160)
_SPACING_MM = (2.5, 0.8, 0.8)
_STRUCTURES = 8
_SMALL = SpecialistSettings(channels=(4, 8))
_USUAL = SpecialistSettings()
_CPU = torch.device("cpu")


def run(shape: Triple = _SHAPE, repeats: int = 3) -> Bench:
    """Measure on a volume of this shape."""
    return Bench("window", rows(shape, repeats))


def rows(shape: Triple = _SHAPE, repeats: int = 3) -> tuple[Measured, ...]:
    """Return what the bench measures, for a larger bench to append."""
    return *speed(shape, repeats), peak_memory(shape)


class _Both:
    """The two ways, on one network and one volume of noise."""

    def __init__(self, shape: Triple, settings: SpecialistSettings) -> None:
        self.plan = _plan(shape, settings)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = autocast_dtype(self.device)
        torch.manual_seed(0)
        self.network = build(self.plan).eval().to(self.device)
        self.image_CDHW = torch.randn(1, *shape)

    @torch.inference_mode()
    def ours(self) -> Tensor:
        """Labels, slice by slice."""
        labels_DHW = torch.empty(self.image_CDHW.shape[1:], dtype=torch.uint8)
        for index, logits_KHW in enumerate(self._slices()):
            labels_DHW[index] = largest(logits_KHW).cpu()
        return labels_DHW

    @torch.inference_mode()
    def theirs(self) -> Tensor:
        """Labels, from the sum of everything."""
        logits: Tensor = sliding_window_inference(
            self.image_CDHW[None], self.plan.patch, 1, self._look, overlap=0.5, mode="gaussian",
            sw_device=self.device, device=_CPU,
        )  # fmt: skip
        return logits[0].argmax(0).to(torch.uint8)

    @torch.inference_mode()
    def once(self) -> None:
        """Look at one window, so that later ones find everything prepared."""
        d, h, w = self.plan.patch
        self._look(self.image_CDHW[None, :, :d, :h, :w].to(self.device))

    def _slices(self) -> Iterator[Tensor]:
        return slide(self.image_CDHW, self.plan.patch, self._look, self.device)

    def _look(self, image_BCDHW: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits: Tensor = self.network(image_BCDHW)
        return logits.float()


def speed(shape: Triple = _SHAPE, repeats: int = 3) -> tuple[Measured, Measured]:
    """Measure seconds from image to labels, and compare the labels."""
    both = _Both(shape, _USUAL)
    both.once()
    equal = float((both.ours() == both.theirs()).double().mean())
    ours, theirs = medians([both.ours, both.theirs], repeats)
    told = f"{_told(shape, both.plan)}, {base.where(both.device)}"
    return (
        Measured(
            "window.vs_monai", _PEER, ours, theirs, theirs / ours, 1.0, "higher",
            f"seconds from image to labels, theirs over ours; {told}, median of {repeats}",
        ),
        Measured(
            "window.same_labels", _PEER, equal, 1.0, equal, 1.0, "higher",
            f"share of voxels with the same label; {told}",
        ),
    )  # fmt: skip


def peak_memory(shape: Triple = _SHAPE) -> Measured:
    """Measure the peak of two processes, one each way."""
    ours, theirs = (_peak_of_process(way, shape) for way in ("ours", "theirs"))
    note = f"MiB beyond image and network, ours over theirs; {_told(shape, _plan(shape, _SMALL))}, CPU"
    return Measured("window.peak_memory", _PEER, ours, theirs, ours / theirs, 1.0, "lower", note)


def _peak_of_process(way: str, shape: Triple) -> float:
    command = [sys.executable, "-m", "tutelage.bench.window", "--peak", way, "--shape", *map(str, shape)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1])


def _peak_here(way: str, shape: Triple) -> float:
    """MiB that this process takes at most beyond what it has now."""
    both = _Both(shape, _SMALL)
    ways: dict[str, Callable[[], Tensor]] = {"ours": both.ours, "theirs": both.theirs}
    both.once()
    before = _memory_mib("VmRSS")
    ways[way]()
    # What getrusage tells would be at least the peak of the process that started this one.
    return _memory_mib("VmHWM") - before


def _memory_mib(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def _plan(shape: Triple, settings: SpecialistSettings) -> Plan:
    names = [f"structure {n}" for n in range(1, _STRUCTURES + 1)]
    return make_plan([Grid.from_spacing(shape, _SPACING_MM)], names, 1, settings)


def _told(shape: Triple, plan: Plan) -> str:
    sizes = (" x ".join(map(str, size)) for size in (shape, plan.patch))
    return "{} voxels in windows of {}, {} classes".format(*sizes, plan.classes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and say so, without the rest of the package."""
    parser = argparse.ArgumentParser(prog="python -m tutelage.bench.window", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--shape", type=int, nargs=3, default=_SHAPE, metavar=("D", "H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=("ours", "theirs"), help="only the peak memory of one way, in MiB")
    told = parser.parse_args(arguments)
    d, h, w = told.shape
    if told.peak is not None:
        print(_peak_here(told.peak, (d, h, w)))
        return
    base.told(run((d, h, w), told.repeats), told.json)


if __name__ == "__main__":
    main()
