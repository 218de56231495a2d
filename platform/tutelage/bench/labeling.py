"""What benches of labeling rounds share: a campaign of made-up patients, the real command, a watch on it.

The archive is a handful of small phantoms, repeated under other names where many are wanted; the
specialist that prompts has hardly learned. It decides what is run and what is looked at meanwhile, not
what figures are good. Linux only.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.archive.catalog import Catalog, load
from tutelage.archive.rows import write_rows
from tutelage.bench.processes import is_called, looking, taken_mib
from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Row, Rows
from tutelage.records import Role
from tutelage.rounds.workspace import Workspace, read_manifest
from tutelage.storage import Place

if TYPE_CHECKING:
    import pyarrow as pa

_CONFIG = """
name: scale
workspace: {workspace}
rounds: 1
archive:
  importer: synthetic
  rescan: false
  synthetic: {{patients: {patients}, spacing: {spacing}, styles: [ct]}}
  split: {{gold: 2, validation: 1, test: 1}}
generalist: {{name: {generalist}}}
specialist: {{channels: [8, 16, 16]}}
train: {{steps: {steps}}}
tracking: {{enabled: false}}
cluster: {{backend: ray, actors: 2, cpus_per_actor: 1}}
"""

_COMMAND = (sys.executable, "-m", "tutelage.cli")
_NOT_UNLABELED = 4
_LOOK_EVERY_S = 0.25
_GLANCE_EVERY_S = 1.0
"""Between looks at a command whose pace is measured: looking four times as often takes some 8 % of a core."""
_TOLD_CHARACTERS = 1000
_WORKER = "MapWorker("
"""In the name that Ray gives to a process that works on cases."""

WAIT_S = 3600.0
"""A command that takes longer is given up."""

SMALL, TINY = (18.0, 9.0, 9.0), (36.0, 18.0, 18.0)
"""Millimeters between the voxels of phantoms: 12 x 31 x 41 voxels or so, and 6 x 15 x 21."""


@dataclass(frozen=True)
class Labeled:
    """A labeling step that is over; curation, which the same command does next, is not counted."""

    seconds: float
    """Those of the step: from when it knew what to do, Ray and actors not yet started."""

    per_hour: float
    """Volumes, from when every actor had done its first to the last."""

    rows: Sequence[Row]
    """In order of case, which is the order in which one actor works."""

    looks: "Sequence[Look]"
    """At the command until the step was over."""

    worker_mib: float
    """Memory of the largest actor."""

    @property
    def work_s(self) -> list[float]:
        """Seconds of each volume inside its worker."""
        return [float(row["seconds"]) for row in self.rows]


@dataclass(frozen=True)
class Archive:
    """A campaign whose specialist of labels alone is there."""

    config: Path
    workspace: Workspace

    @classmethod
    def made(
        cls,
        folder: Path,
        volumes: int,
        generalist: str = "threshold",
        spacing: tuple[float, float, float] = SMALL,
        steps: int = 24,
    ) -> "Archive":
        """Write one with so many unlabeled volumes, and train for so many steps."""
        folder.mkdir()
        config = folder / "scale.yaml"
        told: dict[str, object] = {"spacing": list(spacing), "generalist": generalist, "steps": steps}
        told["patients"] = volumes + _NOT_UNLABELED
        config.write_text(_CONFIG.format(workspace=folder / "workspace", **told))
        archive = cls(config, Workspace(Place.of(folder / "workspace")))
        archive.run("train", "--round", "labels-only", "cluster.backend=local")
        return archive

    def command(self, verb: str, *words: str) -> list[str]:
        """Return the words that do something in this campaign."""
        return [*_COMMAND, verb, str(self.config), *words]

    def label(self, *words: str) -> list[str]:
        """Return the words that label its first round."""
        return self.command("label", "--round", "0", *words)

    def run(self, verb: str, *words: str) -> None:
        """Do something to the end.

        Raises:
            WorkspaceError: it failed.
        """
        ended = subprocess.run(self.command(verb, *words), capture_output=True, text=True, check=False)
        self.check(ended.returncode, ended.stderr)

    def check(self, code: int | None, told: str = "") -> None:
        """Complain about a command that did not end well.

        Raises:
            WorkspaceError: it did not.
        """
        if code:
            raise WorkspaceError(
                f"a command of the bench ended with {code} in {self.config.parent}, expected 0; "
                f"it said: {told[-_TOLD_CHARACTERS:]}"
            )

    def labeled(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Labeled:
        """Label from the start, as a command of its own that ends when the step is over.

        Raises:
            WorkspaceError: it came to no end.
        """
        self.forget()
        stage, until = self.workspace.stage(0), time.monotonic() + WAIT_S
        done = stage / "label.manifest.json"
        with started(self.label(*words), environment, _GLANCE_EVERY_S) as watched:
            while not done.exists() and watched.process.poll() is None and time.monotonic() < until:
                if meanwhile is not None:
                    meanwhile()
                time.sleep(_LOOK_EVERY_S)
            looks = tuple(watched.looks)
        manifest = read_manifest(stage, "label")
        if manifest is None:
            raise WorkspaceError(
                f"labeling in {self.config.parent} ended with {watched.process.returncode}, undone; run "
                f"`tutelage label {self.config} --round 0` there to see why"
            )
        rows = Rows(stage / "label.rows").read()
        per_hour = manifest["outputs"]["steady_per_hour"]
        return Labeled(manifest["seconds"], per_hour, rows, looks, watched.worker_mib)

    def forget(self) -> None:
        """Forget what was labeled, embeddings included."""
        self.workspace.embeddings.remove()
        for name in ("label.rows", "label.manifest.json"):
            (self.workspace.stage(0) / name).remove()

    def only(self, catalog: Catalog, start: int, stop: int) -> None:
        """Leave of a catalog's unlabeled cases those from one place to another, in its order."""
        unlabeled, others = _divided(catalog)
        left = _together(others, unlabeled.slice(start, stop - start))
        write_rows(self.workspace.catalog, left, (), catalog.structures)

    def grow(self, cases: int, done: int = 0) -> None:
        """Repeat the unlabeled cases under other names, and the rows of those that are done."""
        import pyarrow as pa

        catalog = load(self.workspace.catalog)
        unlabeled, others = _divided(catalog)
        take = [n % unlabeled.num_rows for n in range(cases)]
        names = pa.array([f"case_{n:09d}" for n in range(cases)])
        grown = unlabeled.take(take).set_column(unlabeled.column_names.index("case"), "case", names)
        write_rows(self.workspace.catalog, _together(others, grown), (), catalog.structures)
        if not done:
            return
        rows = Rows(self.workspace.stage(0) / "label.rows")
        known = rows.table()
        repeated = known.take([n % known.num_rows for n in range(done)])
        repeated = repeated.set_column(repeated.column_names.index("case"), "case", names[:done])
        rows.folder.remove()
        rows.keep(repeated)


def _divided(catalog: Catalog) -> "tuple[pa.Table, pa.Table]":
    """Rows of unlabeled cases, and those of all others."""
    import pyarrow.compute as pc

    unlabeled = pc.equal(catalog.cases.table["role"], Role.UNLABELED.value)
    return catalog.cases.table.filter(unlabeled), catalog.cases.table.filter(pc.invert(unlabeled))


def _together(some: "pa.Table", others: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables([some, others]).sort_by("case")


# --- watching -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a command: seconds since its start, and what it alone has taken."""

    at_s: float
    own_mib: float
    cpu_s: float


class Watched:
    """A command that is running: what it takes, and the most that it takes with its descendants."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.peak_mib = 0.0
        self.worker_mib = 0.0
        """Of the largest of Ray's processes that work."""
        self.looks: list[Look] = []
        self._begun = time.monotonic()

    def wait(self) -> None:
        """Wait until it is done."""
        self.process.wait(WAIT_S)

    def look(self) -> None:
        """Note what it takes now."""
        taken = taken_mib(self.process.pid)
        self.peak_mib = max(self.peak_mib, sum(taken.values()))
        workers = [mib for pid, mib in taken.items() if is_worker(pid)]
        self.worker_mib = max([self.worker_mib, *workers])
        if own_mib := taken.get(self.process.pid):
            at_s = time.monotonic() - self._begun
            self.looks.append(Look(at_s, own_mib, _cpu_s(self.process.pid)))


@contextlib.contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str] | None = None, every_s: float = _LOOK_EVERY_S
) -> Iterator[Watched]:
    """Run a command in a session of its own, look at it again and again, and end everything it started."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | dict(environment or {}),
        start_new_session=True,
    )
    watched = Watched(process)
    try:
        with looking(watched.look, every_s):
            yield watched
    finally:
        if process.poll() is None:
            # Lets it stop the Ray that it started; SIGINT is ignored by what a shell runs in the background.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def is_worker(pid: int) -> bool:
    """Whether a process is an actor that works on cases, by the name that Ray gives it."""
    return is_called(pid, _WORKER)


def _cpu_s(pid: int) -> float:
    """Seconds that a process has kept cores busy so far, those that it started left out."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
