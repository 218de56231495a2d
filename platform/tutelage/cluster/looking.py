"""What a node has and reaches, seen from a process on that node.

Looks at what may hang, as a mount whose server is gone, go on side by side: one that does not come back
costs the others nothing. Little is imported, so that a node whose packages are broken can still say so.
What the answers mean is judged in `doctor`.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

PROBE = ".doctor-"
"""How names of files begin that are written to see whether they can be."""

_ASKED_TIMES = 5
_CLOCK_S = 10.0
_SMI = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
_CUDA = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a campaign wants of every node."""

    workspace: str
    archive: str | None = None
    """Its root; None where the archive is made up."""
    weights: tuple[tuple[str, str | None], ...] = ()
    """Generalists by name, with the address of their weights if settings give one."""
    mlflow: str | None = None
    """Address of a server, if one keeps the record."""
    token: str | None = None
    """Name of a file in the workspace that the driver has written."""


@dataclass(frozen=True, slots=True)
class Look:
    """Whether something is as it should be."""

    right: bool
    told: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as its driver tells it."""

    name: str
    memory_gib: float
    driver: str


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder that Ray or our work writes to."""

    folder: str
    free_gib: float


@dataclass(frozen=True, slots=True)
class Skew:
    """How far a node's clock is ahead of the driver's, and how sure that is."""

    ahead_s: float
    within_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node says of itself."""

    versions: Mapping[str, str | None]
    """By package, and `python`; None of what is not installed."""
    cores: int
    disks: tuple[Disk, ...]
    gpus: tuple[Gpu, ...]
    skew: Skew | None
    looks: Mapping[str, Look] = field(default_factory=dict)
    """By what was looked at: workspace, archive, weights of ..., mlflow, gpus, cuda."""


def answer(wanted: Wanted | None, packages: Sequence[str], looks_s: float, clock: Any) -> Answer:
    """Look at everything from the node that this runs on."""
    gpus, trouble = _gpus()
    looks: dict[str, Callable[[], Look]] = {"cuda": partial(_cuda, len(gpus))} if gpus else {}
    found = at_once(looks | ({} if wanted is None else _looks(wanted)), looks_s)
    return Answer(
        versions=versions(packages),
        cores=os.cpu_count() or 1,
        disks=tuple(
            Disk(folder, round(shutil.disk_usage(folder).free / 2**30, 1))
            for folder in dict.fromkeys([tempfile.gettempdir(), _spill_folder()])
        ),
        gpus=gpus,
        skew=_skew(clock),
        looks=found | ({} if trouble is None else {"gpus": trouble}),
    )


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return what is installed where this runs; of tutelage, the version of the code that runs."""
    from tutelage import __version__

    found = {name: _version(name) for name in packages}
    return {"python": platform.python_version(), **found, "tutelage": __version__}


def at_once(looks: Mapping[str, Callable[[], Look]], seconds: float) -> dict[str, Look]:
    """Look at several things side by side; what has not come back in time is told so."""
    found: dict[str, Look] = {}

    def look(name: str) -> None:
        try:
            found[name] = looks[name]()
        except Exception as error:  # any of them is an answer
            found[name] = Look(False, first_line(error))

    threads = [threading.Thread(target=look, args=(name,), daemon=True) for name in looks]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return {name: found.get(name, Look(False, f"no answer within {seconds:g} s")) for name in looks}


def measured(ask: Callable[[], float], now: Callable[[], float], times: int = _ASKED_TIMES) -> Skew:
    """Compare two clocks by questions that take a while: the other was read halfway, give or take."""
    skews = []
    for _ in range(times):
        before = now()
        theirs = ask()
        half = (now() - before) / 2
        skews.append(Skew(before + half - theirs, half))
    return min(skews, key=lambda skew: skew.within_s)


def gpus_of(text: str) -> tuple[Gpu, ...]:
    """Read what nvidia-smi prints."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines() if line.strip()]
    return tuple(Gpu(name, round(float(mib) / 2**10, 1), driver) for name, mib, driver in rows)


def _skew(clock: Any) -> Skew | None:
    import ray
    from ray.exceptions import RayError

    try:
        return measured(lambda: ray.get(clock.now.remote(), timeout=_CLOCK_S), time.time)
    except RayError:
        return None


def _looks(wanted: Wanted) -> dict[str, Callable[[], Look]]:
    looks: dict[str, Callable[[], Look]] = {"workspace": partial(workspace, wanted)}
    if wanted.archive is not None:
        looks["archive"] = partial(_archive, wanted.archive)
    for name, address in wanted.weights:
        looks[f"weights of {name}"] = partial(_weights, name, address)
    if wanted.mlflow is not None:
        looks["mlflow"] = partial(_mlflow, wanted.mlflow, wanted.workspace)
    return looks


def workspace(wanted: Wanted) -> Look:
    """Write, read and remove a file, in the folder where the driver has written one."""
    from tutelage.storage import Place

    folder = Place.of(wanted.workspace)
    if wanted.token is not None and not (folder / wanted.token).exists():
        return Look(False, "holds another folder under that name: what is written here is not seen there")
    probe, data = folder / f"{PROBE}{uuid.uuid4().hex}", os.urandom(64)
    with leaving_nothing(folder.local):
        probe.write_bytes(data)
        try:
            same = probe.read_bytes() == data
        finally:
            probe.remove()
    return Look(same, "written, read and removed" if same else "gives back other bytes than were written")


def _archive(root: str) -> Look:
    from tutelage.storage import Place

    place = Place.of(root)
    if not place.exists():
        return Look(False, "finds nothing there")
    entries = len(place.names()) + len(place.folders())
    return Look(True, f"{entries} entries" if entries else "there")


def _weights(name: str, address: str | None) -> Look:
    from tutelage.generalists.weights import locate

    place = locate(address, name)
    return Look(True, str(place) if place.is_file() else f"comes from {address} when it is first used")


def _mlflow(uri: str, workspace: str) -> Look:
    from tutelage.storage import Place
    from tutelage.tracking.settings import TrackingSettings
    from tutelage.tracking.store import shown, silence

    reason = silence(TrackingSettings(uri=uri), Place.of(workspace))
    return Look(reason is None, reason or f"{shown(uri)} answers")


def _gpus() -> tuple[tuple[Gpu, ...], Look | None]:
    """GPUs by their driver, and what is wrong with it: Ray hides them from a task that asks for none."""
    if shutil.which(_SMI[0]) is None:
        return (), None
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=_CLOCK_S, check=True)
        return gpus_of(done.stdout), None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = getattr(error, "stdout", None) or error
        return (), Look(False, f"nvidia-smi fails: {first_line(told)}")


def _cuda(count: int) -> Look:
    """Whether the torch of this node can use its GPUs; in a process that sees them."""
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", _CUDA], env=shown, capture_output=True, text=True, check=True
    )
    seen = int(done.stdout)
    return Look(seen == count, f"torch {_version('torch')} sees {seen} of {count} GPUs")


def _spill_folder() -> str:
    """Where this node's Ray puts objects that do not fit its memory; its parent was told."""
    import ray

    flag = b"--fallback_directory="
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0"):
            if word.startswith(flag):
                return word.removeprefix(flag).decode()
    return ray.get_runtime_context().get_temp_dir()


@contextlib.contextmanager
def leaving_nothing(folder: Path | None) -> Iterator[None]:
    """Remove folders again that writing had to make."""
    made = [] if folder is None else [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def first_line(what: object) -> str:
    """Return how a message begins, or what it is if it says nothing."""
    lines = [line.strip() for line in str(what).splitlines() if line.strip()]
    return lines[0] if lines else type(what).__name__
