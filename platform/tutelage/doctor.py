"""What is installed, which devices and weights are at hand, and what will not work.

It looks and tells; it installs, starts and changes nothing. Only torch is imported.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tutelage import __version__
from tutelage.errors import GeneralistError

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


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    told: str


def examine() -> list[Finding]:
    """Look at everything."""
    return [*_python(), *_packages(), *_devices(), *_memory(), *_weights(), *_rooms(), *_extras()]


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
