"""One training on the files of a made-up archive: run by itself or on Ray, and what it told meanwhile.

It decides how a training is started so that both ways compute alike (the CPU, one thread a process)
and what is noted about it. What is compared is another file's business. Linux only.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from tutelage.archive.synthetic import STRUCTURES
from tutelage.bench.processes import descendants, is_called, looking, own_mib
from tutelage.casework.training import TrainJob
from tutelage.casework.training import train as train_here
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import TrainingError
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Pace, StepReport
from tutelage.records import Case, Role
from tutelage.rounds.campaign import opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.specialist.plan import Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of every process that trains, on Ray or not."""

_WORKER = "RayTrainWorker"
"""In the name that Ray gives a process that trains."""

_LOOK_EVERY_S = 0.05

Looks = dict[int, list[tuple[float, float]]]
"""By process: when it was looked at, and how many MiB it had."""


@dataclass(frozen=True)
class Size:
    """What is trained."""

    patch: Triple
    channels: tuple[int, ...]
    spacing: tuple[float, float, float]
    patients: int
    """Annotated ones."""
    patches: int
    """In a step, of each worker."""
    steps: int
    skipped: int
    """First steps, in which caches fill, that no pace counts."""


@dataclass(frozen=True)
class Ran:
    """What a training told."""

    reports: tuple[StepReport, ...]
    """Of the first worker, in the order in which they came."""
    paces: tuple[Pace, ...]
    """Of all workers."""
    took_s: float
    """All steps with what lies between them."""
    whole_s: float
    """From the call until the last step was told."""
    memory: tuple["Memory", ...] = ()
    """Of each worker, if it was looked at."""

    @property
    def losses(self) -> list[float]:
        """Step by step."""
        return [report.loss for report in self.reports]

    @property
    def start_s(self) -> float:
        """From the call until there was something to learn from."""
        return self.whole_s - self.took_s

    def pace(self, skipped: int) -> float:
        """Steps a second, without the first ones."""
        first = sum(report.seconds + report.waited for report in self.reports[:skipped])
        return (len(self.reports) - skipped) / (self.took_s - first)

    def waited(self, skipped: int) -> float:
        """Largest share of a worker's time that it waited for patches, without the first steps."""
        later = [pace for pace in self.paces if pace.step >= skipped]
        return max(_share([pace for pace in later if pace.rank == rank]) for rank in {p.rank for p in later})


@dataclass(frozen=True)
class Memory:
    """What one process had for itself while it trained."""

    epochs: tuple[int, ...]
    """Those in which it was looked at."""
    peaks_mib: tuple[float, ...]
    """The most in each."""

    def line(self, since: int) -> tuple[float, float]:
        """Return MiB at epoch `since` and at the last one, on the straight line nearest to their peaks."""
        kept = [
            (epoch, peak) for epoch, peak in zip(self.epochs, self.peaks_mib, strict=True) if epoch >= since
        ]
        if len(kept) < 2:
            raise TrainingError(
                f"memory was seen in {len(kept)} epochs since the {since}th, expected two or more: "
                "the training was over too soon to tell whether it grows"
            )
        epochs, peaks_mib = np.array(kept).T
        slope, start = np.polyfit(epochs, peaks_mib, 1)
        return float(start + slope * epochs[0]), float(start + slope * epochs[-1])


def by_epoch(samples: Sequence[tuple[float, float]], told: Sequence[tuple[float, int]], steps: int) -> Memory:
    """Sort looks at memory (when, MiB) into epochs of `steps`, by the times at which steps were told."""
    times, done = zip(*told, strict=True)
    peaks: dict[int, float] = {}
    for when, mib in samples:
        if times[0] <= when <= times[-1]:
            epoch = int(np.interp(when, times, done)) // steps
            peaks[epoch] = max(mib, peaks.get(epoch, 0.0))
    return Memory(tuple(sorted(peaks)), tuple(peaks[epoch] for epoch in sorted(peaks)))


def _share(paces: Sequence[Pace]) -> float:
    waited = sum(pace.waited for pace in paces)
    return waited / (waited + sum(pace.seconds for pace in paces))


# --- what is trained ------------------------------------------------------------------------


class Jobs:
    """Trainings on one archive, each with a folder of its own."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        self._cases = _archive(folder, size)
        settings = SpecialistSettings(channels=size.channels, patch=size.patch, spacing=size.spacing)
        self._plan = make_plan([case.grid for case in self._cases], STRUCTURES, 1, settings)
        self._count = 0

    def job(self, workers: int, **settings: int) -> TrainJob:
        """Return a training for so many workers that nobody has begun."""
        size, self._count = self.size, self._count + 1
        folder = self.folder / f"training-{self._count}"
        folder.mkdir()
        told = {"steps": size.steps, "batch": workers * size.patches, "checkpoint_every": size.steps}
        return TrainJob(
            gold=self._cases,
            pseudo=(),
            labels=str(folder / "labels"),
            plan=self._plan,
            settings=TrainSettings.model_validate(told | settings),
            seed=0,
            out=str(folder / "specialist"),
            checkpoint=str(folder / "checkpoint"),
            stage="bench",
            max_voxels=2**29,
            record=str(folder / "training.json"),
        )


def _archive(folder: Path, size: Size) -> tuple[Case, ...]:
    """Make files of patients who never lived."""
    synthetic = {"patients": size.patients + 2, "spacing": size.spacing, "styles": ["ct"]}
    settings = RunSettings.model_validate(
        {
            "workspace": str(folder / "workspace"),
            "archive": {
                "importer": "synthetic",
                "synthetic": synthetic,
                "split": {"gold": size.patients, "validation": 1, "test": 1},
            },
            "tracking": {"enabled": False},
        }
    )
    with opened(settings, Reporter(Console(quiet=True))) as campaign:
        return tuple(campaign.catalog.of(Role.GOLD))


# --- by itself ------------------------------------------------------------------------------


def bare(job: TrainJob) -> Ran:
    """Train with the plain loop in a process of its own.

    Raises:
        TrainingError: the process failed; the message holds its last line.
    """
    began = time.perf_counter()
    with started(job) as process:
        reports = tuple(told_by(process))
        whole_s = time.perf_counter() - began
        if process.wait():
            said = Path(f"{job.out}.errors").read_text().strip().splitlines()
            raise TrainingError(f"a training by itself failed: {said[-1] if said else process.returncode}")
    return Ran(reports, _paces(reports), _took_s(job), whole_s)


@contextlib.contextmanager
def started(job: TrainJob) -> Iterator["subprocess.Popen[str]"]:
    """Have a process that trains with the plain loop; it is ended if it still runs."""
    file = Path(f"{job.out}.pickle")
    file.write_bytes(pickle.dumps(job))
    command = [sys.executable, "-m", "tutelage.bench.trainings", str(file)]
    environment = {**os.environ, **ALONE}
    with (
        Path(f"{job.out}.errors").open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def told_by(process: "subprocess.Popen[str]") -> Iterator[StepReport]:
    """Yield its steps as it tells them."""
    assert process.stdout is not None
    for line in process.stdout:
        yield StepReport(**json.loads(line))


def _tell(report: StepReport) -> None:
    print(json.dumps(asdict(report)), flush=True)


def _paces(reports: Sequence[StepReport]) -> tuple[Pace, ...]:
    return tuple(Pace(report.step, 0, report.seconds, report.waited) for report in reports)


def _took_s(job: TrainJob) -> float:
    assert job.record is not None
    return float(json.loads(Place.of(job.record).read_text())["seconds"])


# --- on Ray ---------------------------------------------------------------------------------


@contextlib.contextmanager
def ray_here() -> Iterator[float]:
    """Have a Ray on this machine; yields the seconds that it took to start."""
    from tutelage.cluster.session import session, variables

    began = time.perf_counter()
    with variables(ALONE), session(ClusterSettings(backend="ray")):
        yield time.perf_counter() - began


def on_ray(job: TrainJob, workers: int, epoch: int = 0) -> Ran:
    """Train on the Ray that is there; looks at the workers' memory if an epoch has steps."""
    from tutelage.cluster.training import train

    reports: list[StepReport] = []
    others: list[Pace] = []
    told: list[tuple[float, int]] = []
    looks: Looks = {}

    def on_step(report: StepReport) -> None:
        reports.append(report)
        told.append((time.perf_counter(), report.step + 1))

    settings = ClusterSettings(backend="ray", train_workers=workers, train_retries=0)
    began = time.perf_counter()
    with looked_at(looks) if epoch else contextlib.nullcontext():
        train(job, settings, on_step, others.append)
    ran = Ran(tuple(reports), (*_paces(reports), *others), _took_s(job), told[-1][0] - began)
    return replace(ran, memory=tuple(by_epoch(samples, told, epoch) for samples in looks.values()))


def looked_at(looks: Looks) -> contextlib.AbstractContextManager[None]:
    """Look at the memory of all processes that train, again and again, and note it."""

    def look() -> None:
        for pid in descendants(os.getpid()):
            if is_called(pid, _WORKER):
                with contextlib.suppress(OSError):
                    looks.setdefault(pid, []).append((time.perf_counter(), own_mib(pid)))

    return looking(look, _LOOK_EVERY_S)


if __name__ == "__main__":
    train_here(pickle.loads(Path(sys.argv[1]).read_bytes()), on_step=_tell)
