"""How labeling behaves when much is to be done: memory, the start at a million cases, actors, nodes, waiting.

Everything is measured on the real command in processes of its own, with made-up patients, a
specialist that has hardly learned and, where only bookkeeping matters, the generalist without
weights. Peer: the same command on less. Memory is the proportional set size of the command and
everything it starts, Ray included, so that pages they share count once. What a machine has not
enough of is simulated from what was measured, and the simulation compared with real rounds. Linux only.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tutelage.bench.base import Bench, Measured
from tutelage.bench.costs import checked, measure
from tutelage.bench.labeling import TINY, WAIT_S, Archive, Look, started
from tutelage.bench.nodes import ENVIRONMENT, NODES, nodes, two_nodes
from tutelage.bench.simulating import PUBLISHED, Costs, Profile, Size, costs_in, size, table
from tutelage.errors import SettingsError
from tutelage.labels.rows import Rows

__all__ = ["PARTS", "Sizes", "chosen", "profile_of", "run", "whole_numbers"]

_LOOK_EVERY_S = 0.25
_FLAT = 1.05
"""How much more memory the driver may have at the end than half way."""

_WAITING = 1.05
"""How much longer a large round may take than its work."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and what is predicted from it."""

    volumes: int = 400
    """Of `memory`; the peer has a tenth of them."""
    million: int = 1_000_000
    speed: int = 24
    """Volumes of `actors` and `overhead`, and for each node of `nodes`."""
    tiny: int = 10_000
    repeats: int = 2
    measured: int = 12
    """Volumes that costs are measured on."""
    measured_tiny: int = 400
    """The same, of what a row costs the driver."""
    simulated: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    actors: int = 8
    """Of the rounds that are predicted."""
    profile: Profile | None = None
    price_per_hour: float | None = None
    costs: Path | None = None
    """File of costs: read if it is there, else measured and written."""


def _nothing(_: Table) -> None:
    """Show nothing."""


def run(
    parts: Sequence[str] | None = None, sizes: Sizes | None = None, show: Callable[[Table], None] = _nothing
) -> Bench:
    """Measure some parts, or all; tables of predicted rounds are shown as they come."""
    told = sizes or Sizes()
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts or PARTS:
            rows += (
                _simulated(Path(folder), told, show)
                if part == _SIMULATE
                else _PARTS[part](Path(folder), told)
            )
    return Bench("scale", tuple(rows))


def chosen(told: str) -> tuple[str, ...]:
    """Return the parts that a person lists by commas.

    Raises:
        SettingsError: there is no such part.
    """
    names = tuple(name.strip() for name in told.split(","))
    if unknown := [name for name in names if name not in PARTS]:
        raise SettingsError(f"--parts: found {', '.join(unknown)!r}, expected some of {', '.join(PARTS)}")
    return names


def whole_numbers(told: str) -> tuple[int, ...]:
    """Return the numbers of volumes that a person lists by commas.

    Raises:
        SettingsError: one of them is none.
    """
    parts = [part.strip() for part in told.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise SettingsError(f"--volumes: found {told!r}, expected whole numbers by commas, as 10000,100000")
    return tuple(map(int, parts))


def profile_of(told: str | None) -> Profile | None:
    """Return the GPU that a person names, if one is named.

    Raises:
        SettingsError: nothing is published of it here.
    """
    found = next((name for name in PUBLISHED if name == told), None)
    if told is not None and found is None:
        raise SettingsError(f"--gpu-profile: found {told!r}, expected {' or '.join(PUBLISHED)}")
    return found


def _memory(root: Path, sizes: Sizes) -> list[Measured]:
    volumes, peaks = sizes.volumes, []
    for count in (volumes // 10, volumes):
        with started(Archive.made(root / f"memory-{count}", count).label()) as watched:
            watched.wait()
        peaks.append(watched.peak_mib)
    few, many = peaks
    note = f"MiB at the peak, driver and workers, {volumes} volumes over {volumes // 10}"
    peer = f"{volumes // 10} volumes"
    return [Measured("scale.memory_10x", peer, many, few, many / few, 1.15, "lower", note)]


def _million(root: Path, sizes: Sizes) -> list[Measured]:
    """Start on a catalog of which nine tenths are done, and stop at the first row."""
    archive = Archive.made(root / "million", 8)
    archive.run("label", "--round", "0")
    archive.grow(sizes.million, done=9 * sizes.million // 10)
    rows = Rows(archive.workspace.stage(0) / "label.rows")
    before = {place.uri for place in rows.folder.files(".parquet")}
    (archive.workspace.stage(0) / "label.manifest.json").remove()
    begun = time.monotonic()
    with started(archive.label()) as watched:
        while watched.process.poll() is None and time.monotonic() - begun < WAIT_S:
            if {place.uri for place in rows.folder.files(".parquet")} - before:
                break
            time.sleep(_LOOK_EVERY_S)
        seconds = time.monotonic() - begun
    done = f"{sizes.million:,} cases of which nine tenths are done"
    return [
        Measured(
            "scale.million_start_s", "a minute", seconds, 60.0, seconds, 60.0, "lower",
            f"seconds from the command to the first labeled case on disk; {done}",
        ),
        Measured(
            "scale.million_start_mib", "3 GiB", watched.peak_mib, 3072.0, watched.peak_mib, 3072.0, "lower",
            f"MiB at the peak until then, driver and workers; {done}",
        ),
    ]  # fmt: skip


def _actors(root: Path, sizes: Sizes) -> list[Measured]:
    """Compare how many volumes one and two actors label in an hour, models loaded, one thread each."""
    archive = Archive.made(root / "speed", sizes.speed, "litemedsam")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(sizes.repeats):
        for actors, found in rates.items():
            found.append(archive.labeled(f"cluster.actors={actors}", _KEEP_NONE).per_hour)
    one, two = (statistics.median(found) for found in rates.values())
    told = f"{sizes.speed} volumes, litemedsam, {os.cpu_count()} cores, {sizes.repeats} times"
    note = f"volumes an hour after the first of each actor; {told}"
    return [Measured("scale.two_actors", "one actor", two, one, two / one, 1.8, "higher", note)]


def _nodes(root: Path, sizes: Sizes) -> list[Measured]:
    return [two_nodes(root, 2 * sizes.speed, sizes.repeats)]


def _overhead(root: Path, sizes: Sizes) -> list[Measured]:
    """Compare what lies between volumes with what is done for them; one actor, so that nobody else waits."""
    archive = Archive.made(root / "overhead", sizes.speed, "litemedsam")
    found = archive.labeled("cluster.actors=1", _KEEP_NONE)
    work_s = statistics.mean(found.work_s[1:])  # the pace is counted from the first one's end
    between_s = 3600 / found.per_hour - work_s
    note = (
        f"seconds a volume that its worker does not work, over those that it does; {sizes.speed} volumes of "
        f"{statistics.mean(row['slices_embedded'] for row in found.rows):.0f} slices, litemedsam; "
        "when the first and the last row arrive is known to a fraction of a second, so next to nothing can "
        "come out below nothing"
    )
    share = between_s / work_s
    return [Measured("scale.overhead", "work inside workers", between_s, work_s, share, 0.03, "lower", note)]


def _tiny(root: Path, sizes: Sizes) -> list[Measured]:
    """Label very many tiny volumes on a node of their own, and watch the driver and the object store."""
    archive = Archive.made(root / "tiny", 8, spacing=TINY)
    archive.grow(sizes.tiny)
    with nodes(root / "tiny-nodes") as cluster:
        cluster.join(NODES[0], cores=3)
        words = (f"cluster.address={cluster.address}", "cluster.actors=2")
        found = archive.labeled(*words, environment=ENVIRONMENT)
        spilled_mib = cluster.spilled_mib()
    middle_mib, end_mib = driver_mib(found.looks, sizes.tiny / found.per_hour * 3600)
    per_1000 = (end_mib - middle_mib) / (sizes.tiny / 2) * 1000
    told = f"{len(found.rows):,} volumes in {found.seconds:.0f} s, {found.per_hour:,.0f} an hour, two actors"
    note = (
        f"MiB of the driver at the end and half way, by a line through the second half; {per_1000:+.2f} MiB "
    )
    return [
        Measured(
            "scale.many_tiny_driver", "half way", end_mib, middle_mib, end_mib / middle_mib, _FLAT, "lower",
            f"{note}for 1,000 volumes; {told}",
        ),
        Measured(
            "scale.many_tiny_spilled_mib", "no spill", spilled_mib, 0.0, spilled_mib, 0.0, "lower",
            f"MiB that object stores put on disk; {told}",
        ),
    ]  # fmt: skip


def driver_mib(looks: Sequence[Look], labeled_s: float) -> tuple[float, float]:
    """Return memory half way and at the end, on a line fitted to the second half of the labeling."""
    half = [look for look in looks if look.at_s >= looks[-1].at_s - labeled_s / 2]
    if len(half) < 2:
        return looks[-1].own_mib, looks[-1].own_mib
    slope, at_0 = statistics.linear_regression([look.at_s for look in half], [look.own_mib for look in half])
    return at_0 + slope * half[0].at_s, at_0 + slope * half[-1].at_s


def _simulated(root: Path, sizes: Sizes, show: Callable[[Table], None]) -> list[Measured]:
    """Predict rounds from costs; where these are measured now, see first whether predictions come true."""
    rows = []
    if sizes.costs is not None and sizes.costs.exists():
        costs = costs_in(sizes.costs)
    else:
        measurement = measure(root, sizes.measured, sizes.measured_tiny)
        costs = measurement.costs
        if sizes.costs is not None:
            sizes.costs.write_text(costs.model_dump_json(indent=1) + "\n")
        rows.append(checked(measurement))
    if sizes.profile is not None:
        costs = costs.with_profile(sizes.profile)
    found = [size(costs, volumes, sizes.actors, sizes.price_per_hour) for volumes in sizes.simulated]
    show(table(costs, found))
    return rows + [_predicted(costs, one) for one in found]


def _predicted(costs: Costs, one: Size) -> Measured:
    """Say how near a predicted round comes to one in which no actor ever waits."""
    disk = f"{one.embeddings_gb:.1f} GB of embeddings, {one.labels_gb:.2f} GB of labels"
    price = "" if one.per_1000 is None else f", {one.per_1000:.2f} for 1,000"
    note = (
        f"predicted hours, those of volumes' work alone; {one.volumes:,} volumes, {one.actors} actors, "
        f"{one.per_actor_hour:.0f} volumes an actor and hour, {one.actor_mib:.0f} MiB an actor, "
        f"{disk}{price}; the driver could feed {one.useful_actors}; {costs.machine}"
    )
    return Measured(
        f"scale.predicted_{one.volumes}", "actors that never wait", one.hours, one.hours * one.busy,
        1 / one.busy, _WAITING, "lower", note,
    )  # fmt: skip


_KEEP_NONE = "generalist.cache.when=never"
_SIMULATE = "simulate"
_PARTS: Mapping[str, Callable[[Path, Sizes], list[Measured]]] = {
    "memory": _memory, "million": _million, "actors": _actors, "nodes": _nodes, "overhead": _overhead,
    "tiny": _tiny,
}  # fmt: skip
PARTS = (*_PARTS, _SIMULATE)
"""What can be measured alone."""
