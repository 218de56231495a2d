"""What the parts of a labeling round cost on this machine, and whether the simulation of it comes true.

Steps are timed in a process of one thread that does what a labeling actor does, without Ray; what Ray,
the driver and the start add is told by real rounds of the real command, one of volumes of the usual
size and one of tiny ones, whose work is next to nothing. Then rounds that were not looked at before
are run, with other numbers of volumes and actors, and compared with what was predicted.
"""

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.archive.catalog import Catalog, load
from tutelage.bench.base import Measured
from tutelage.bench.labeling import TINY, Archive, Look
from tutelage.bench.simulating import Costs, labeling_s, round_s
from tutelage.storage import Place

if TYPE_CHECKING:  # only the process that times steps loads torch
    from tutelage.casework.labeling import Labeler
    from tutelage.records import Case

GOAL = 0.15
"""Of a prediction: how far it may be from what came."""

_KEEP = "generalist.cache.when=always"
"""Whether to keep embeddings must not rest on how busy the machine is."""

_WARM = 1
"""Volumes of a process that are not counted: the first of all takes longer."""

_MB = 1e6
_STEPS = 150
"""Of training: a specialist that has learned less asks about some volumes and hardly about others."""

_CHECKED = 2
"""Times as many volumes as were measured, when predictions are tried."""


@dataclass(frozen=True)
class Measurement:
    """Costs, and the archives that they were measured on."""

    costs: Costs
    archive: Archive
    catalog: Catalog
    """All volumes of the archive, of which `counted` were measured."""
    counted: int


def measure(root: Path, volumes: int, tiny: int) -> Measurement:
    """Measure on so many volumes, and what a row costs the driver on so many tiny ones."""
    at_once = max(2, len(os.sched_getaffinity(0)))
    counted = volumes + _WARM
    archive = Archive.made(root / "costs", counted * (1 + _CHECKED), "litemedsam", steps=_STEPS)
    catalog = load(archive.workspace.catalog)
    archive.only(catalog, 0, counted)
    driver_s, between_s = _bookkeeping(root, tiny)
    steps = _steps_of(archive)
    alone = archive.labeled(_KEEP, "cluster.actors=1")
    together = archive.labeled(_KEEP, f"cluster.actors={at_once}")
    archive.run("label", "--round", "0", _KEEP)  # which is done, so that it curates
    unslowed = _costs(steps, alone.work_s, driver_s, between_s)
    # Company never helps: where it seems to, somebody else was busy while one actor was alone.
    slow = max(1.0, statistics.mean(together.work_s[_WARM:]) / statistics.mean(alone.work_s[_WARM:]))
    # What is known so far says how long labeling took; the rest of the step's time is its start and end.
    start_s = alone.seconds - labeling_s(unslowed, len(alone.rows), 1)
    told = {"at_once": at_once, "slow": slow, "start_s": max(start_s, 0.0), "actor_mib": together.worker_mib}
    costs = unslowed.model_copy(update=told | _disk(archive, counted))
    return Measurement(costs, archive, catalog, counted)


def checked(measurement: Measurement) -> Measured:
    """Run rounds that nothing was measured on, and compare them with their predictions."""
    costs, archive = measurement.costs, measurement.archive
    fresh = measurement.counted * _CHECKED
    archive.only(measurement.catalog, measurement.counted, measurement.counted + fresh)
    told, errors = [], []
    for actors in (1, costs.at_once):
        found = archive.labeled(_KEEP, f"cluster.actors={actors}")
        predicted_s = round_s(costs, fresh, actors)
        errors.append(abs(predicted_s / found.seconds - 1))
        labeled_s = fresh / found.per_hour * 3600
        told.append(
            f"{actors} actors: {predicted_s:.0f} s predicted, {found.seconds:.0f} s came "
            f"(labeling alone {labeling_s(costs, fresh, actors):.0f} s, {labeled_s:.0f} s)"
        )
    worst = max(errors)
    off = f"largest share by which a prediction is off; {fresh} other volumes"
    note = f"{off}; {'; '.join(told)}; {costs.machine}"
    return Measured("scale.simulator_error", "the real command", worst, 0.0, worst, GOAL, "lower", note)


# --- what the real command adds -----------------------------------------------------------


def _bookkeeping(root: Path, volumes: int) -> tuple[float, float]:
    """Seconds of the driver's core for a row, and between two volumes of one actor."""
    archive = Archive.made(root / "bookkeeping", 8, spacing=TINY)
    archive.grow(volumes)
    found = archive.labeled("cluster.actors=1")
    each_s = 3600 / found.per_hour
    between_s = max(each_s - statistics.mean(found.work_s[_WARM:]), 0.0)
    return busy_share(found.looks, each_s * volumes) * each_s, between_s


def busy_share(looks: Sequence[Look], last_s: float) -> float:
    """Return the share of a core that a process took while rows came, which was at the end of its time."""
    there = [look for look in looks if look.at_s >= looks[-1].at_s - last_s] if looks else []
    if len(there) < 2:
        there = list(looks[-2:])
    if len(there) < 2:
        return 1.0  # too short to be looked at: as if it had done nothing else
    return min(1.0, (there[-1].cpu_s - there[0].cpu_s) / (there[-1].at_s - there[0].at_s))


def _disk(archive: Archive, volumes: int) -> dict[str, float]:
    """Megabytes of a volume."""
    stage = archive.workspace.stage(0)
    kept = [stage / name for name in ("candidates", "labels", "label.rows", "curate.rows")]
    return {
        "embeddings_mb": _bytes(archive.workspace.embeddings) / volumes / _MB,
        "labels_mb": sum(map(_bytes, kept)) / volumes / _MB,
    }


def _bytes(folder: Place) -> int:
    return sum(size for _, size, _ in folder.beneath())


# --- steps --------------------------------------------------------------------------------


def _steps_of(archive: Archive) -> list[dict[str, float]]:
    """Time the steps of every volume in a process of its own, with one thread."""
    ended = subprocess.run(
        [sys.executable, "-m", __name__, str(archive.config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    archive.check(ended.returncode, ended.stderr)
    found: list[dict[str, float]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _costs(
    steps: Sequence[Mapping[str, float]], work_s: Sequence[float], driver_s: float, between_s: float
) -> Costs:
    """Join what was timed with what labeling actors took: their mean is scaled to, their spread is kept."""

    def mean(name: str) -> float:
        return statistics.mean(step[name] for step in steps)

    counted_s = list(work_s[_WARM:])
    whole_s = statistics.mean(counted_s)
    scale = whole_s / mean("whole")
    return Costs(
        machine=f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU, one thread an actor",
        generalist="litemedsam",
        at_once=1,
        slow=1.0,
        spread=tuple(round(one / whole_s, 4) for one in counted_s),
        slices=mean("slices"),
        prompts=mean("prompts"),
        read_s=scale * mean("read"),
        specialist_s=scale * mean("specialist"),
        embed_s=scale * mean("embed") / mean("slices"),
        decode_s=scale * mean("decode") / mean("prompts"),
        write_s=scale * mean("write"),
        rest_s=scale * mean("rest"),
        between_s=between_s,
        driver_s=driver_s,
        start_s=0.0,
        actor_mib=0.0,
        embeddings_mb=0.0,
        labels_mb=0.0,
    )


class _Clock:
    """Adds up how long some calls take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def on(self, thing: object, call: str, name: str) -> None:
        """Time a call of one object from now on."""
        setattr(thing, call, self.timed(getattr(thing, call), name))

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the call, timed."""

        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - begun

        return timed


def steps(labeler: "Labeler", cases: "Iterator[Case]") -> Iterator[dict[str, float]]:
    """Label cases and yield the seconds of their steps, with how many slices and prompts there were."""
    from tutelage.archive import formats
    from tutelage.labels import arrays

    clock, folder = _Clock(), Place.of(labeler.job.candidates)
    clock.on(labeler.specialist, "mask", "specialist")
    for member in labeler.members:
        clock.on(member.generalist, "embed", "embed")
        clock.on(member.generalist, "segment", "decode")
        clock.on(member.cache, "find", "write")
        clock.on(member.cache, "keep", "write")
    for case in cases:
        clock.seconds.clear()
        begun = time.perf_counter()
        row = labeler.work(case)
        whole = time.perf_counter() - begun
        found = {name: float(clock.seconds[name]) for name in ("specialist", "embed", "decode", "write")}
        clock.timed(formats.read_image, "read")(case.image, labeler.job.max_voxels)
        clock.timed(arrays.write_candidate, "again")(folder, arrays.read_candidate(folder, case.case))
        found |= {"read": clock.seconds["read"], "write": found["write"] + clock.seconds["again"]}
        rest = max(whole - sum(found.values()), 0.0)
        yield found | {
            "rest": rest, "whole": sum(found.values()) + rest,
            "slices": row["slices_embedded"], "prompts": row["prompts"],
        }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Time the steps of a campaign's unlabeled cases, the first ones left out, and print them."""
    from tutelage.casework.labeling import Labeler
    from tutelage.records import Role
    from tutelage.rounds import labeling, textual
    from tutelage.rounds.campaign import opened
    from tutelage.rounds.progress import Reporter
    from tutelage.rounds.settings import RunSettings
    from tutelage.rounds.workspace import LABELS_ONLY
    from tutelage.settings import load as settings_in

    (config,) = arguments
    overrides = ["cluster.backend=local", _KEEP]
    settings = settings_in(Path(config), RunSettings, overrides)
    with opened(settings, Reporter()) as campaign, tempfile.TemporaryDirectory() as folder:
        before = campaign.workspace.specialist(LABELS_ONLY)
        job = labeling.job(campaign, before, Place.of(folder), textual.limits(campaign))
        found = list(steps(Labeler(job), iter(campaign.catalog.of(Role.UNLABELED))))
        campaign.workspace.embeddings.remove()
    print(json.dumps(found[_WARM:]))


if __name__ == "__main__":
    main(sys.argv[1:])
