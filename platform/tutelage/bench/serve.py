"""How much HTTP, the queue and Ray Serve cost beside the predictor that is called directly.

Peer: reading a file, the predictor and writing the mask, in this process, with the threads that a copy of
the server has. Ours: `tutelage serve` with one copy, asked from a second process (`bench/crowd.py`).
Correctness first: every mask that comes back has to equal the direct one, voxel by voxel. Then many
clients at once, a champion that changes under load, and minutes at saturation, in which nothing but 503
may be refused and memory must not grow. A person of the quickstart's size is segmented, and one six times
as long, by the quickstart's network, which has seen that person for a minute: its masks are organs with
errors, in about as many pieces as a specialist's, and not noise, whose crumbs would cost more than the rest.
Linux only.
"""

import contextlib
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tutelage.archive import formats
from tutelage.archive.synthetic import STRUCTURES, Phantom, phantom
from tutelage.archive.volume import Mask
from tutelage.bench.base import Bench, Measured
from tutelage.bench.crowd import Crowd, Heard, Order, ask, asking, heard
from tutelage.bench.processes import descendants, is_called, looking, own_mib
from tutelage.bench.trainings import Memory
from tutelage.cluster.serving import ServeJob, served
from tutelage.cluster.settings import ClusterSettings, ServingSettings
from tutelage.errors import ServerError
from tutelage.geometry import Grid
from tutelage.rounds.workspace import Workspace
from tutelage.specialist import artifact, network
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.predictor import Predictor
from tutelage.specialist.preprocess import prepare
from tutelage.specialist.settings import SpecialistSettings
from tutelage.specialist.windows import padded
from tutelage.storage import Place

PEER = "predictor called directly"

_COPY = "ServeReplica"
"""In the name that Ray gives a process that serves."""

_LOOK_EVERY_S = 0.5
_BINS = 40
"""Of a soak, in each of which the peak of memory counts; the first half is left out."""


@dataclass(frozen=True)
class Size:
    """What is served and asked."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    spacing: tuple[float, float, float] = (12.0, 3.0, 3.0)
    """Of the scan, in millimeters."""
    seen: tuple[float, float, float] = (12.0, 4.5, 4.5)
    """At which the network looks."""
    long: int = 6
    """How many persons the larger scan is put together of."""
    asks: tuple[int, int] = (20, 5)
    """Requests of one client in a repeat, by scan."""
    clients: int = 8
    each: int = 4
    """Requests of each of them."""
    rollout_s: float = 20.0
    queued: int = 32
    pressing: int = 8
    """Clients in the soak beyond those who find a place."""
    steps: int = 100
    """That each network learns: its mask of a person has 34 pieces then, those of a specialist that learned
    from four labels have 22 to 29. After 60 steps at a lower rate it had 243."""


def run(repeats: int = 3, soak_minutes: float = 10.0, size: Size | None = None) -> Bench:
    """Measure `repeats` times each way in turn, then press for so many minutes."""
    size = size or Size()
    cuda = torch.cuda.is_available()
    settings = ServingSettings(
        open=True, queued=size.queued, follow_s=0.5, gpus=1.0 if cuda else 0.0, cpus=1.0
    )
    with tempfile.TemporaryDirectory() as folder, _threads(1):
        stage = _Stage(Path(folder), size)
        job = ServeJob({"bench": str(stage.workspace.root)}, "127.0.0.1", _free_port(), settings)
        with served(job, ClusterSettings(backend="ray")) as url:
            told = f"{'one GPU' if cuda else 'one thread'}, {settings.ongoing} requests at a time"
            rows = (
                *_latency(stage, url, repeats, told),
                _throughput(stage, url, repeats, told),
                _rollout(stage, url),
                *_soak(stage, url, soak_minutes * 60, settings),
            )
    return Bench("serve", rows)


# --- what is served and asked -----------------------------------------------------------------


class _Stage:
    """Two specialists of one plan, scans, and the direct way."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        person = phantom(0, 0, size.spacing, ["ct"])
        self.scans = _scans(folder, person, size.long)
        grid = formats.header(self.scans[0]).grid
        settings = SpecialistSettings(channels=size.channels, spacing=size.seen)
        plan = make_plan([grid], STRUCTURES, 1, settings)
        self.workspace = Workspace(Place.of(folder / "workspace"))
        for seed in (0, 1):
            place = self._place(seed)
            artifact.save(place, _taught(plan, person, size.steps, seed).state_dict(), plan, {})
        self.predictors = tuple(Predictor(self._place(seed)) for seed in (0, 1))
        self.promote(0)
        self._masks: dict[tuple[str, int], Mask] = {}
        self._right: dict[tuple[str, int, str], bool] = {}
        self._crowds = 0

    def _place(self, which: int) -> Place:
        return self.workspace.root / "rounds" / f"r0{which}" / "specialist"

    def promote(self, which: int) -> None:
        """Make one of the specialists the champion."""
        told = {"stage": f"r0{which}", "folder": f"rounds/r0{which}/specialist"}
        self.workspace.champion.write_text(json.dumps(told))

    def direct(self, scan: int, which: int = 0) -> bytes:
        """From a file to the bytes of its mask."""
        predictor = self.predictors[which]
        volume = formats.read_image(self.scans[scan])
        mask_DHW = predictor.mask(volume.image_CDHW, volume.grid)
        return formats.mask_bytes(mask_DHW, volume, ".nii.gz")

    def order(self, url: str, scans: Sequence[int], clients: int, **how: float) -> Order:
        """Return the order for a crowd that asks about these scans."""
        self._crowds += 1
        files = tuple(str(self.scans[scan]) for scan in scans)
        out = str(self.folder / f"crowd-{self._crowds}")
        asks = int(how["asks"]) if "asks" in how else None
        return Order(url, files, clients, out, asks, how.get("seconds"))

    def wrong(self, crowd: Crowd, scans: Sequence[int]) -> list[Heard]:
        """Return answers that are no right mask of their scan by the specialist that they name."""
        return [one for one in crowd.masks if not self._is_right(one, scans[one.scan], crowd)]

    def _is_right(self, one: Heard, scan: int, crowd: Crowd) -> bool:
        key = (one.specialist, scan, one.body)
        if key not in self._right:
            digests = [predictor.digest for predictor in self.predictors]
            known = one.specialist in digests
            self._right[key] = known and np.array_equal(
                self._mask(digests.index(one.specialist), scan), self._read(crowd.file(one.body), scan)
            )
        return self._right[key]

    def _mask(self, which: int, scan: int) -> Mask:
        key = (self.predictors[which].digest, scan)
        if key not in self._masks:
            file = self.folder / f"direct-{which}-{scan}.nii.gz"
            file.write_bytes(self.direct(scan, which))
            self._masks[key] = self._read(file, scan)
        return self._masks[key]

    def _read(self, file: Path, scan: int) -> Mask:
        return formats.read_label(file, formats.header(self.scans[scan]).grid, len(STRUCTURES))


def _scans(folder: Path, person: Phantom, times: int) -> tuple[Path, Path]:
    """Write a person who never lived, and one who is so many times as long."""
    paths = (folder / "small.nii.gz", folder / "large.nii.gz")
    for path, count in zip(paths, (1, times), strict=True):
        image_DHW = np.concatenate([person.image_DHW] * count)
        formats.write_image(path, image_DHW, Grid.from_spacing(_triple(image_DHW.shape), person.spacing))
    return paths


def _taught(plan: Plan, person: Phantom, steps: int, seed: int) -> nn.Module:
    """Return a network that has seen one person so many times."""
    torch.manual_seed(seed)
    made = network.build(plan).train()
    grid = Grid.from_spacing(_triple(person.image_DHW.shape), person.spacing)
    image_BCDHW = torch.from_numpy(prepare(person.image_DHW[None].astype(np.float32), grid, plan))[None]
    shape = image_BCDHW.shape[2:]
    labels_BCDHW = torch.from_numpy(person.label_DHW)[None, None].float()
    labels_BDHW = functional.interpolate(labels_BCDHW, shape, mode="nearest")[:, 0].long()
    fitting = [n + -n % m for n, m in zip(shape, plan.multiple, strict=True)]
    fitted_BCDHW = padded(image_BCDHW[0], fitting)[None]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        logits_BKDHW = made(fitted_BCDHW)[:, :, : shape[0], : shape[1], : shape[2]]
        functional.cross_entropy(logits_BKDHW, labels_BDHW).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return made


def _triple(shape: tuple[int, ...]) -> Triple:
    depth, height, width = shape
    return depth, height, width


# --- rows -------------------------------------------------------------------------------------


def _latency(stage: _Stage, url: str, repeats: int, told: str) -> Iterator[Measured]:
    for scan, name in enumerate(("small", "large")):
        asks = stage.size.asks[scan]
        # Once each, so that later ones find everything prepared.
        stage.direct(scan)
        _checked(stage, stage.order(url, [scan], 1, asks=1), [scan])
        theirs: list[float] = []
        ours: list[float] = []
        for _ in range(repeats):
            theirs += [_seconds(stage, scan) for _ in range(asks)]
            crowd = _checked(stage, stage.order(url, [scan], 1, asks=asks), [scan])
            ours += [one.seconds for one in crowd.masks]
        here, there = statistics.median(theirs), statistics.median(ours)
        shape = "x".join(map(str, formats.header(stage.scans[scan]).grid.shape))
        yield Measured(
            f"serve.p50_{name}", PEER, there, here, there / here, 1.15, "lower",
            f"median seconds from file to mask, {shape} voxels, {told}; one client, {repeats} times {asks} "
            "requests in turn with direct calls; identical masks",
        )  # fmt: skip


def _seconds(stage: _Stage, scan: int) -> float:
    began = time.perf_counter()
    stage.direct(scan)
    return time.perf_counter() - began


def _checked(stage: _Stage, order: Order, scans: Sequence[int]) -> Crowd:
    """Have a crowd ask.

    Raises:
        ServerError: something was refused, or a mask differs: what it cost means nothing.
    """
    crowd = ask(order)
    wrong = stage.wrong(crowd, scans)
    if wrong or len(crowd.masks) < len(crowd.heard):
        raise ServerError(
            f"of {len(crowd.heard)} answers {len(wrong)} are other masks than the predictor's and "
            f"{len(crowd.heard) - len(crowd.masks)} none at all ({dict(crowd.statuses)}), expected equal "
            "masks: what they cost cannot be compared"
        )
    return crowd


def _throughput(stage: _Stage, url: str, repeats: int, told: str) -> Measured:
    count = stage.size.clients * stage.size.each
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(count):
            stage.direct(0)
        theirs.append(count / (time.perf_counter() - began))
        order = stage.order(url, [0], stage.size.clients, asks=count)
        ours.append(_checked(stage, order, [0]).rate)
    there, here = statistics.median(ours), statistics.median(theirs)
    return Measured(
        "serve.throughput", PEER, there, here, there / here, 0.9, "higher",
        f"scans a second, {stage.size.clients} clients at the same time, {told}; direct calls one after "
        f"another; median of {repeats} times {count}; identical masks",
    )  # fmt: skip


def _rollout(stage: _Stage, url: str) -> Measured:
    """Change the champion while clients ask, and back again."""
    seconds = stage.size.rollout_s
    order = stage.order(url, [0], 4, seconds=seconds)
    with asking(order) as process:
        for which in (1, 0):
            time.sleep(seconds / 3)
            stage.promote(which)
        process.wait()
    crowd = heard(order)
    failed = len(crowd.heard) - len(crowd.masks) + len(stage.wrong(crowd, [0]))
    names = [one.specialist for one in sorted(crowd.masks, key=lambda one: one.ended)]
    changes = sum(one != other for one, other in pairwise(names))
    if set(names) != {predictor.digest for predictor in stage.predictors}:
        raise ServerError(
            f"the champion changed twice in {seconds:g} seconds and {len(set(names))} specialist answered, "
            "expected both: the server does not follow, or the time was too short"
        )
    return Measured(
        "serve.rollout_failed", "answers in that time", failed, len(crowd.heard), failed, 0, "lower",
        f"requests that failed or had a wrong mask while the champion changed and was rolled back, 4 "
        f"clients, {seconds:g} seconds; ratio is ours; who answered changed {changes} times",
    )  # fmt: skip


def _soak(stage: _Stage, url: str, seconds: float, settings: ServingSettings) -> tuple[Measured, Measured]:
    """Press harder than the queue takes, and look at memory."""
    clients = settings.ongoing + settings.queued + stage.size.pressing
    scans = [0, 0, 0, 1]
    looks: list[tuple[float, float]] = []
    with _looked_at(looks):
        crowd = ask(stage.order(url, scans, clients, seconds=seconds))
    full = crowd.statuses[503]
    failed = len(crowd.heard) - len(crowd.masks) - full + len(stage.wrong(crowd, scans))
    early, late = _memory(looks).line(since=_BINS // 2)
    told = f"{clients} clients, {seconds / 60:g} minutes, {len(crowd.masks)} masks, {full} times 503"
    return (
        Measured(
            "serve.soak_failed", "answers in that time", failed, len(crowd.heard), failed, 0, "lower",
            f"requests that had neither a right mask nor 503; ratio is ours; {told}",
        ),
        Measured(
            "serve.soak_memory", "half of the time before", late, early, late / early, 1.02, "lower",
            f"MiB that the copy has for itself at the end, on the line through its peaks in the second "
            f"half of {told}",
        ),
    )  # fmt: skip


# --- how --------------------------------------------------------------------------------------


def _memory(looks: Sequence[tuple[float, float]]) -> Memory:
    """Sort looks (when, MiB) into bins of equal length, of each of which the peak counts."""
    began, ended = looks[0][0], looks[-1][0]
    peaks: dict[int, float] = {}
    for when, mib in looks:
        found = min(int((when - began) / (ended - began) * _BINS), _BINS - 1)
        peaks[found] = max(mib, peaks.get(found, 0.0))
    return Memory(tuple(sorted(peaks)), tuple(peaks[found] for found in sorted(peaks)))


@contextlib.contextmanager
def _looked_at(looks: list[tuple[float, float]]) -> Iterator[None]:
    """Look at the memory of the copy again and again, and note it.

    Raises:
        ServerError: it is not there any more, so that what was noted is half of the truth.
    """
    found = _copies()

    def look() -> None:
        looks.append((time.perf_counter(), sum(own_mib(pid) for pid in found)))

    with looking(look, _LOOK_EVERY_S):
        yield
    if not found or found != _copies():
        raise ServerError(
            f"the copies that serve were {found} and are {_copies()}, expected the same all along"
        )


def _copies() -> list[int]:
    return sorted(pid for pid in descendants(os.getpid()) if is_called(pid, _COPY))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have torch use so many threads here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
