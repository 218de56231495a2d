"""What a bench says: rows of ours against theirs, with the machine and the code they were measured on.

It decides the form of the answer; what is measured is each bench's own business.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from tutelage.errors import TrainingError
from tutelage.storage import Place

if TYPE_CHECKING:
    import torch

_SAME = 1e-5
"""Losses may differ by this share; sums of a GPU have no fixed order."""


@dataclass(frozen=True)
class Measured:
    """One measure."""

    measure: str
    peer: str
    """Who ours is compared with."""
    ours: float
    theirs: float
    ratio: float
    """What the goal is about; says in `note` what is divided by what."""
    goal: float
    better: Literal["higher", "lower"]
    note: str

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the goal."""
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal


@dataclass(frozen=True)
class Bench:
    """All rows of one bench."""

    bench: str
    rows: tuple[Measured, ...]

    def to_json(self) -> str:
        """One object, as every bench writes it."""
        return json.dumps(
            {
                "bench": self.bench,
                "commit": _commit(),
                "machine": _machine(),
                "rows": [asdict(row) | {"met": row.met} for row in self.rows],
            },
            indent=1,
        )

    def write(self, place: Place) -> None:
        """Write the JSON."""
        place.write_text(self.to_json() + "\n")

    def table(self) -> Table:
        """Return the rows for a terminal."""
        table = Table(title=f"bench {self.bench}", title_justify="left")
        for name in ("measure", "ours", "theirs", "ratio", "goal", "met", "peer"):
            table.add_column(name, justify="left" if name in ("measure", "peer") else "right")
        for row in self.rows:
            sign = "≥" if row.better == "higher" else "≤"
            table.add_row(
                row.measure, _short(row.ours), _short(row.theirs), f"{row.ratio:.4g}",
                f"{sign} {row.goal:g}", "yes" if row.met else "no", row.peer,
            )  # fmt: skip
        return table


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def told(bench: Bench, file: Path | None) -> None:
    """Show a bench that runs without the rest of the package, notes and all, and write it if asked."""
    console = Console()
    console.print(bench.table())
    for row in bench.rows:
        console.print(f"{row.measure}: {row.note}", highlight=False)
    if file is not None:
        bench.write(Place.of(file))


def where(device: "torch.device") -> str:
    """Name what computes, for a note."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def medians(measured: Sequence[Callable[[], object]], times: int) -> list[float]:
    """Median seconds of several things, taken in turn so that a slow minute hits all of them."""
    seconds: list[list[float]] = [[] for _ in measured]
    for _ in range(times):
        for one, kept in zip(measured, seconds, strict=True):
            started = time.perf_counter()
            one()
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept) for kept in seconds]


def same_losses(ours: Sequence[float], theirs: Sequence[float], which: str) -> float:
    """Return the largest difference of two losses of a step, as a share of it.

    Raises:
        TrainingError: it is too large, or there are not as many; then what they cost means nothing.
    """
    pairs = zip(ours, theirs, strict=len(ours) == len(theirs))
    off = max((abs(one - other) / abs(other) for one, other in pairs), default=0.0)
    if len(ours) != len(theirs) or not ours or off > _SAME:
        raise TrainingError(
            f"losses of {which} differ by {off:.1e} of their size in {len(ours)} and {len(theirs)} steps, "
            f"expected {_SAME:.0e} at most in as many: what they cost cannot be compared"
        )
    return off


def _commit() -> str:
    """Commit of the checkout, with a plus sign if it has been changed since; empty outside one."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _machine() -> str:
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
