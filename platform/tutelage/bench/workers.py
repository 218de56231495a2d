"""What Ray adds to training, and what several workers bring: pace, waiting, resuming, memory.

Peer of Ray Train is the plain loop on the same job in a process of its own; that of several workers
is one, which learns from as many patches in a step as each of them. Correctness first: one worker
on Ray must lose what the plain loop loses, step by step, and a training that goes on after a
kill what it lost before. All of it is on the CPU with one thread a worker, on the files of a
made-up archive and with the network and patches that a laptop trains on.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from tutelage.bench.base import Measured, same_losses
from tutelage.bench.trainings import Jobs, Ran, Size, bare, on_ray, ray_here, started, told_by
from tutelage.errors import SettingsError
from tutelage.methods.training import StepReport

PEER = "plain loop in a process"
_ONE = "one worker on Ray"

_SIZE = Size(
    patch=(20, 56, 80), channels=(16, 32, 64, 128), spacing=(9.0, 4.0, 4.0), patients=16, patches=2,
    steps=60, skipped=10,
)  # fmt: skip

_GAIN = 0.85
"""Goal for several workers, of as many times one's samples."""

_START_S = 60.0
_CHECKPOINT_EVERY = 4
_EPOCHS, _SINCE = 20, 5
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def counts(told: str) -> tuple[int, ...]:
    """Return numbers of workers, as a person lists them, in order.

    Raises:
        SettingsError: not a list of numbers from 1 to this machine's cores.
    """
    cores = len(os.sched_getaffinity(0))
    parts = [part.strip() for part in told.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= cores for part in parts):
        raise SettingsError(
            f"--workers: found {told!r}, expected numbers from 1 to this machine's {cores} cores, "
            "divided by commas, for example 1,2"
        )
    return tuple(sorted({int(part) for part in parts}))


def rows(workers: Sequence[int], repeats: int = 5, size: Size = _SIZE) -> tuple[Measured, ...]:
    """Measure one worker and each other number of them, `repeats` times in turn."""
    with tempfile.TemporaryDirectory() as folder, ray_here() as ray_s:
        jobs = Jobs(Path(folder), size)
        alone, by_count = _in_turn(jobs, sorted({1, *workers}), repeats)
        told = (
            f"{size.patches} patches of {'x'.join(map(str, size.patch))} a worker, one thread each, "
            f"median of {repeats} times {size.steps - size.skipped} steps after {size.skipped}"
        )
        measured = [
            *_beside_the_loop(alone, by_count[1], size, told, ray_s),
            *(
                _beside_one(count, ran, by_count[1], size, told)
                for count, ran in by_count.items()
                if count > 1
            ),
            *(_waiting(count, ran, size, told) for count, ran in by_count.items()),
            _resuming(jobs),
            _memory(jobs, max(by_count)),
        ]
    return tuple(measured)


def _in_turn(jobs: Jobs, workers: Sequence[int], repeats: int) -> tuple[list[Ran], Mapping[int, list[Ran]]]:
    """Train by itself and with each number of workers, again and again, and compare losses."""
    alone: list[Ran] = []
    by_count: dict[int, list[Ran]] = {count: [] for count in workers}
    for _ in range(repeats):
        alone.append(bare(jobs.job(1)))
        for count, ran in by_count.items():
            ran.append(on_ray(jobs.job(count), count))
        same_losses(by_count[1][-1].losses, alone[-1].losses, "one worker on Ray and the plain loop")
    return alone, by_count


def _median(ran: Sequence[Ran], of: Callable[[Ran], float]) -> float:
    return statistics.median(of(one) for one in ran)


# --- pace -----------------------------------------------------------------------------------


def _beside_the_loop(
    alone: Sequence[Ran], one: Sequence[Ran], size: Size, told: str, ray_s: float
) -> tuple[Measured, Measured]:
    ours, theirs = (_median(ran, lambda run: run.pace(size.skipped)) for ran in (one, alone))
    start, start_alone = (_median(ran, lambda run: run.start_s) for ran in (one, alone))
    return (
        Measured(
            "train.ray_vs_bare", PEER, ours, theirs, ours / theirs, 0.97, "higher",
            f"steps a second, with what lies between them; {told}; the same losses",
        ),
        Measured(
            "train.ray_start_s", PEER, start, start_alone, start, _START_S, "lower",
            f"seconds from the call to the first step, reading the archive included; ratio is ours; on a Ray "
            f"that runs, which took {ray_s:.1f} seconds",
        ),
    )  # fmt: skip


def _beside_one(count: int, several: Sequence[Ran], one: Sequence[Ran], size: Size, told: str) -> Measured:
    ours, theirs = (
        _median(ran, lambda run: run.pace(size.skipped)) * number * size.patches
        for ran, number in ((several, count), (one, 1))
    )
    name = f"train.{_NUMBERS.get(count, count)}_workers"
    return Measured(
        name, _ONE, ours, theirs, ours / theirs, _GAIN * count, "higher",
        f"samples a second; the batch grows with the workers; {told}",
    )  # fmt: skip


def _waiting(count: int, ran: Sequence[Ran], size: Size, told: str) -> Measured:
    share = _median(ran, lambda run: run.waited(size.skipped))
    return Measured(
        f"train.data_wait_ray_{count}", "the step itself", share, 1.0, share, 0.03, "lower",
        f"share of time without patches to learn from, of the one of {count} workers that waits most; {told}",
    )  # fmt: skip


# --- what survives --------------------------------------------------------------------------


def _resuming(jobs: Jobs) -> Measured:
    """Kill a training as late after a checkpoint as can be, and let it go on."""
    every = _CHECKPOINT_EVERY
    job = jobs.job(1, steps=3 * every, checkpoint_every=every)
    with started(job) as process:
        told = told_by(process)
        before = list(islice(told, 2 * every - 1))
        process.kill()
        before += told
    after = bare(job).reports
    repeated = before[-1].step + 1 - after[0].step
    _same_again(before, after)
    return Measured(
        "train.resume_loses", "steps between checkpoints", repeated, every, repeated, every, "lower",
        f"steps that are done again, ratio is ours; killed after {before[-1].step + 1} steps with a "
        f"checkpoint every {every}; the same losses again",
    )  # fmt: skip


def _same_again(before: Sequence[StepReport], after: Sequence[StepReport]) -> None:
    """Compare losses of steps that were done twice."""
    first = {report.step: report.loss for report in before}
    again = {report.step: report.loss for report in after if report.step in first}
    same_losses(
        list(again.values()), [first[step] for step in again], "a training that goes on and the one before"
    )


def _memory(jobs: Jobs, workers: int) -> Measured:
    """Hold the peak of late epochs against that of early ones; every epoch ends with a checkpoint."""
    steps = -(-jobs.size.patients // workers)
    job = jobs.job(workers, batch=workers, steps=_EPOCHS * steps, checkpoint_every=steps)
    ran = on_ray(job, workers, epoch=steps)
    lines = [memory.line(_SINCE) for memory in ran.memory]
    early, late = max(lines, key=lambda line: line[1] / line[0])
    slope = (late - early) / (_EPOCHS - 1 - _SINCE)
    return Measured(
        "train.memory_slope", f"epoch {_SINCE}", late, early, late / early, 1.02, "lower",
        f"MiB that a worker has for itself at most in epoch {_EPOCHS}, on the line through the peaks of "
        f"epochs since the {_SINCE}th: {slope:+.2f} MiB an epoch of {jobs.size.patients} patches and a "
        "checkpoint; "
        f"the worst of {workers} workers",
    )  # fmt: skip
