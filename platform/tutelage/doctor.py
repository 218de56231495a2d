"""What is installed, which devices and weights are at hand, and what will not work: here, or on a cluster.

It looks and tells; it installs and changes nothing. Of this machine it imports torch at most. How nodes of
a cluster are asked is known in `cluster.examining`; here it is judged what they answer.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage import __version__
from tutelage.errors import GeneralistError, SettingsError
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.cluster.examining import Node
    from tutelage.cluster.looking import Answer, Look, Wanted
    from tutelage.rounds.settings import RunSettings

State = Literal["ok", "absent", "missing"]
"""absent: a feature will not work. missing: nothing will."""

_REQUIRED = (
    "torch", "monai", "ray", "mlflow", "pyarrow", "nibabel", "pynrrd", "pillow", "numpy", "scipy",
    "pydantic", "pyyaml", "typer", "rich", "httpx", "jinja2", "matplotlib",
)  # fmt: skip
_EXTRAS = {
    "llm": ("vllm", "asking an open language model for priors"),
    "text": ("open_clip", "text embeddings of priors"),
    "dicom": ("pydicom", "DICOM series"),
}
"""Extra -> the module that shows it is there, and what it adds."""

_LEAST_GIB = 4.0
"""Below this the local Ray of the quickstart does not fit."""

_LEAST_DISK_GIB = 5.0
_MOST_SKEW_S = 2.0
"""Clocks that differ by more make the workspace's lease look older or newer than it is."""

_ADVICE = {
    "workspace": "; nodes need one folder that all of them see, or a store, and its credentials",
    "archive": "; cases are read by nodes themselves: mount it there, or name a store",
    "weights": "; bring them there, or name an address in generalist.weights",
    "mlflow": "; campaigns go on without, and their record is sent later",
    "cuda": "; install the torch that is made for its GPUs",
    "gpus": "; look at its driver",
}
"""By the first word of what was looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    told: str


def examine() -> list[Finding]:
    """Look at everything."""
    return [*_python(), *_packages(), *_devices(), *_memory(), *_weights(), *_rooms(), *_extras()]


def examine_cluster(
    address: str, settings: "RunSettings | None", patience_s: float
) -> tuple[list["Node"], list[Finding]]:
    """Ask every node of a Ray what it has, and of a campaign what it reaches.

    Raises:
        SettingsError: the address is that of a dashboard.
        WorkspaceError: no Ray answers there.
    """
    from tutelage.cluster import examining, looking
    from tutelage.cluster.session import session
    from tutelage.cluster.settings import ClusterSettings

    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"--address is {address}, a dashboard's, which takes jobs; expected Ray's own: `auto` on one of "
            "its nodes, or HOST:6379 of its head"
        )
    wanted, written = None if settings is None else wanted_of(settings), None
    with session(ClusterSettings(backend="ray", address=address)), ExitStack() as stack:
        if wanted is not None:
            wanted, written = stack.enter_context(examining.shared(wanted))
        nodes = examining.examined(wanted, _REQUIRED, patience_s)
    found = judged(nodes, looking.versions(_REQUIRED))
    if settings is not None and wanted is not None and written is not None:
        found = [*found, *_rooms_for(nodes, settings), *_reached(nodes, wanted, written)]
    return nodes, [*found, _work(nodes)]


def wanted_of(settings: "RunSettings") -> "Wanted":
    """Return what a campaign wants of every node."""
    from tutelage.cluster.looking import Wanted

    asked = (settings.generalist, *settings.generalist.second_opinions)
    root = None if settings.archive.importer == "synthetic" else settings.archive.root
    return Wanted(
        workspace=str(Place.of(settings.workspace)),
        archive=None if root is None else str(Place.of(root)),
        weights=tuple((each.name, each.weights) for each in asked if each.name != "threshold"),
        mlflow=settings.tracking.uri if settings.tracking.enabled else None,
    )


def usable(findings: list[Finding]) -> bool:
    """Whether nothing that everything needs is missing."""
    return all(finding.state != "missing" for finding in findings)


def _python() -> Iterator[Finding]:
    told = f"{platform.python_version()} in {sys.prefix}"
    right = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("python", "ok" if right else "missing", told if right else f"{told}; use 3.11 or 3.12")
    yield Finding("tutelage", "ok", f"{__version__} in {Path(__file__).parent}")


def _packages() -> Iterator[Finding]:
    for name in _REQUIRED:
        version = _version(name)
        yield Finding(
            name,
            "ok" if version else "missing",
            version or "not installed, everything needs it; install with `pip install tutelage`",
        )


def _devices() -> Iterator[Finding]:
    if not _version("torch"):
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    precision = "bf16 in hardware" if native else "no bf16 in hardware, networks run in fp32"
    yield Finding("cpu", "ok", f"{cores} cores, {torch.get_num_threads()} threads for torch, {precision}")
    if not torch.cuda.is_available():
        yield Finding("gpu", "absent", "none; everything runs on the CPU, only slower")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Finding(
            f"gpu {index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"
        )


def _memory() -> Iterator[Finding]:
    gib = _available_bytes() / 2**30
    told = f"{gib:.1f} GiB available"
    enough = gib >= _LEAST_GIB
    advice = f"; a local Ray wants {_LEAST_GIB:g} GiB: set cluster.backend=local"
    yield Finding("memory", "ok" if enough else "absent", told if enough else told + advice)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("disk", "ok", f"{free:.0f} GiB free in {Path.cwd()}")


def _weights() -> Iterator[Finding]:
    from tutelage.generalists.weights import SHELF, find, standing

    try:
        weights = find()
    except GeneralistError as error:
        yield Finding("litemedsam", "absent", str(error))
    else:
        yield Finding("litemedsam", "ok", f"sha256 verified, {weights.digest}..., {weights.path}")
    for name in [name for name in SHELF if name != "litemedsam"]:
        found = standing(name, read=False)  # reading them all would take a minute: `weights verify` does
        if found.state == "absent":
            yield Finding(name, "absent", f"no {found.path}; `tutelage weights pull {name}` brings it")
        else:
            yield Finding(name, "ok", f"{found.path}; `tutelage weights verify {name}` reads and checks it")
    if find_spec("segment_anything") is None:
        yield Finding(
            "segment_anything", "missing", "not installed, the decoder of every SAM needs it; "
            "install with `pip install segment-anything==1.0`",
        )  # fmt: skip


def _rooms() -> Iterator[Finding]:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    yield Finding(
        "tracking",
        "ok",
        "a database in each workspace unless tracking.uri names a server"
        + (f"; models:/ addresses are looked up at {_host(uri)}" if uri else ""),
    )
    app = Path(__file__).parents[2] / "serve" / "app.py"
    if not app.is_file():
        told = f"no {app}: `tutelage serve` works from a checkout only; `tutelage predict` works anywhere"
        yield Finding("serving", "absent", told)
    elif not (_version("fastapi") and _version("uvicorn")):
        told = "fastapi or uvicorn is not installed; install with `pip install 'ray[serve]'`"
        yield Finding("serving", "absent", told)
    else:
        yield Finding("serving", "ok", f"Ray Serve {_version('ray') or ''}, {app}")


def _extras() -> Iterator[Finding]:
    for extra, (module, adds) in _EXTRAS.items():
        there = find_spec(module) is not None
        told = adds if there else f"not installed; `pip install 'tutelage[{extra}]'` adds {adds}"
        yield Finding(f"extra {extra}", "ok" if there else "absent", told)
    if find_spec("pydicom") is not None and find_spec("imagecodecs") is None:
        told = "not installed; `pip install 'tutelage[dicom]'` adds compressed DICOM pixels"
        yield Finding("imagecodecs", "absent", told)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _host(uri: str) -> str:
    """The address without a password in it."""
    from tutelage.tracking.store import shown

    return shown(uri)


def _available_bytes() -> int:
    """Memory this process may still take: the machine's, or less where a container says so."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        # Unlike free pages this counts caches that the kernel would give back.
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


# --- a cluster ------------------------------------------------------------------------------------


def judged(nodes: Sequence["Node"], here: Mapping[str, str | None]) -> list[Finding]:
    """Tell what is wrong with nodes by themselves; `here` is what is installed where the command runs."""
    heads = ", ".join(node.address for node in nodes if node.head) or "not told"
    answers = [node for node in nodes if node.answer is not None]
    told = f"{len(answers)} of {len(nodes)} answered, head {heads}"
    return [
        Finding("nodes", "ok" if answers else "absent", told),
        *(
            Finding("nodes", "absent", f"{_name(node, nodes)}: {node.silent}")
            for node in nodes
            if node.silent
        ),
        *_differing(nodes, here),
        *_clocks(nodes),
        *_disks(nodes),
        *_gpus_of(nodes),
    ]


def _differing(nodes: Sequence["Node"], here: Mapping[str, str | None]) -> Iterator[Finding]:
    differ = False
    for name, answer in _answers(nodes):
        for package, version in answer.versions.items():
            if version != here.get(package):
                differ = True
                there = "is not installed" if version is None else f"is {version}"
                told = f"{name}: {there}, here it is {here.get(package) or 'absent'}; install the same"
                yield Finding(package, "absent", told)
    if not differ and _answers(nodes):
        said = ", ".join(f"{name} {here[name]}" for name in ("python", "ray", "torch", "tutelage"))
        yield Finding(
            "versions", "ok", f"{said}, and {len(here) - 4} more as here on all nodes that answered"
        )


def _clocks(nodes: Sequence["Node"]) -> Iterator[Finding]:
    known = [(name, answer.skew) for name, answer in _answers(nodes) if answer.skew is not None]
    wrong = [(name, skew) for name, skew in known if abs(skew.ahead_s) > _MOST_SKEW_S + skew.within_s]
    for name, skew in wrong:
        side = "ahead of" if skew.ahead_s > 0 else "behind"
        told = f"{name} is {abs(skew.ahead_s):.1f} s {side} this machine"
        told = f"{told}; the workspace's lease and all records go by it, set it by NTP"
        yield Finding("clock", "absent", told)
    if known and not wrong:
        most = max(abs(skew.ahead_s) + skew.within_s for _, skew in known)
        yield Finding("clock", "ok", f"all within {max(most, 0.01):.2f} s of this machine's")


def _disks(nodes: Sequence["Node"]) -> Iterator[Finding]:
    full = False
    for name, answer in _answers(nodes):
        for disk in answer.disks:
            if disk.free_gib < _LEAST_DISK_GIB:
                full = True
                told = f"{name}: {disk.free_gib:g} GiB free in {disk.folder}, expected {_LEAST_DISK_GIB:g}"
                yield Finding("disk", "absent", f"{told}; Ray spills and uploads wait there, make room")
    free = [disk.free_gib for _, answer in _answers(nodes) for disk in answer.disks]
    if free and not full:
        yield Finding("disk", "ok", f"{min(free):.0f} GiB free or more where TMPDIR is and where Ray spills")


def _gpus_of(nodes: Sequence["Node"]) -> Iterator[Finding]:
    found = False
    for node in nodes:
        if node.answer is None:
            continue
        name, gpus, counted = _name(node, nodes), node.answer.gpus, node.resources.get("GPU", 0)
        found = found or bool(gpus)
        if counted != len(gpus):
            told = (
                f"{name}: Ray gives away {counted:g}, nvidia-smi shows {len(gpus)}; see ray start --num-gpus"
            )
            yield Finding("gpus", "absent", told)
        elif gpus:
            kinds = dict.fromkeys(
                f"{gpu.name}, {gpu.memory_gib:.0f} GiB, driver {gpu.driver}" for gpu in gpus
            )
            yield Finding("gpus", "ok", f"{name}: {len(gpus)} x {'; '.join(kinds)}")
        for what in ("gpus", "cuda"):
            if (look := node.answer.looks.get(what)) is not None and not look.right:
                yield Finding("gpus", "absent", f"{name}: {look.told}{_ADVICE[what]}")
    if not found and _answers(nodes):
        yield Finding("gpus", "absent", "none on any node; everything runs on cores, only slower")


def _rooms_for(nodes: Sequence["Node"], settings: "RunSettings") -> Iterator[Finding]:
    from tutelage.cluster.examining import rooms

    for room in rooms(nodes, settings.cluster.model_copy(update={"backend": "ray"})):
        each = " and ".join(f"{share:g} {unit}" for unit, share in room.each.items())
        told = f"room for {room.there} of {each} each"
        if room.there >= room.least:
            yield Finding(room.what, "ok", told)
        else:
            told = f"{told}, expected {room.least} or more; they would wait for a node that has it"
            yield Finding(room.what, "absent", told)


def _reached(nodes: Sequence["Node"], wanted: "Wanted", written: "Look") -> Iterator[Finding]:
    """Tell of what the campaign wants who reaches it."""
    if not written.right:
        yield Finding("workspace", "absent", f"from here: {written.told}")
    where = {"workspace": f"{wanted.workspace}: ", "archive": f"{wanted.archive}: "}
    answers = _answers(nodes)
    for what in dict.fromkeys(what for _, answer in answers for what in answer.looks):
        kind = what.partition(" ")[0]
        if kind in ("gpus", "cuda"):
            continue
        looks = [(name, answer.looks[what]) for name, answer in answers]
        wrong = [(name, look) for name, look in looks if not look.right]
        for name, look in wrong:
            told = f"{where.get(kind, '')}{name}: {look.told}{_ADVICE[kind]}"
            yield Finding(what, "absent", told)
        if not wrong:
            told = f"{where.get(kind, '')}{looks[0][1].told}"
            yield Finding(what, "ok", f"{told}, on all nodes that answered")


def _work(nodes: Sequence["Node"]) -> Finding:
    """Say whether any node could do anything."""
    cores = [node for node in nodes if node.resources.get("CPU", 0)]
    able = [node for node in cores if node.answer is not None and _able(node.answer)]
    told = f"{len(able)} of {len(cores)} nodes with cores can work"
    return Finding("work", "ok" if able else "missing", told)


def _able(answer: "Answer") -> bool:
    workspace = answer.looks.get("workspace")
    complete = all(answer.versions.get(package) for package in _REQUIRED)
    return complete and (workspace is None or workspace.right)


def _answers(nodes: Sequence["Node"]) -> list[tuple[str, "Answer"]]:
    return [(_name(node, nodes), node.answer) for node in nodes if node.answer is not None]


def _name(node: "Node", nodes: Sequence["Node"]) -> str:
    """Its address, and if another has the same, the beginning of Ray's own name for it."""
    alone = [other.address for other in nodes].count(node.address) == 1
    return node.address if alone else f"{node.address} ({node.id[:6]})"
