"""How labeling behaves when the archive is large: memory, the start at a million cases, two actors.

Everything is measured on the real command in processes of its own, with made-up patients, a
specialist that has hardly learned and, where only bookkeeping matters, the generalist without
weights. Peer: the same command on less. Memory is the proportional set size of the command and
everything it starts, Ray included, so that pages they share count once. Linux only.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.archive.catalog import load
from tutelage.archive.rows import write_rows
from tutelage.bench.base import Bench, Measured
from tutelage.labels.rows import Rows
from tutelage.rounds.workspace import Workspace, read_manifest
from tutelage.storage import Place

_CONFIG = """
name: scale
workspace: {workspace}
rounds: 1
archive:
  importer: synthetic
  rescan: false
  synthetic: {{patients: {patients}, spacing: [18.0, 9.0, 9.0], styles: [ct]}}
  split: {{gold: 2, validation: 1, test: 1}}
generalist: {{name: {generalist}}}
specialist: {{channels: [8, 16, 16]}}
train: {{steps: 24}}
tracking: {{enabled: false}}
cluster: {{backend: ray, actors: {actors}, cpus_per_actor: 1}}
"""

_NOT_UNLABELED = 4
_LOOK_EVERY_S = 0.25
_WAIT_S = 1800.0


def run(volumes: int = 400, million: int = 1_000_000, speed_volumes: int = 24, repeats: int = 2) -> Bench:
    """Measure with archives of `volumes` and a tenth of it, and with a catalog of `million` cases."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        memory = _memory(root, volumes)
        start = _million(root, million)
        speed = _two_actors(root, speed_volumes, repeats)
    return Bench("scale", (memory, *start, speed))


def _memory(root: Path, volumes: int) -> Measured:
    peaks = []
    for count in (volumes // 10, volumes):
        config = _campaign(root / f"memory-{count}", count)
        with _started(_label(config)) as watched:
            watched.process.wait(_WAIT_S)
        peaks.append(watched.peak_mib)
    few, many = peaks
    note = f"MiB at the peak, driver and workers, {volumes} volumes over {volumes // 10}"
    return Measured(
        "scale.memory_10x", f"{volumes // 10} volumes", many, few, many / few, 1.15, "lower", note
    )


def _million(root: Path, million: int) -> tuple[Measured, Measured]:
    """Start on a catalog of which nine tenths are done, and stop at the first row."""
    config = _campaign(root / "million", 12)
    subprocess.run(_label(config), check=True, capture_output=True)
    workspace = Workspace(Place.of(root / "million" / "workspace"))
    _grow(workspace, million)
    rows = Rows(workspace.stage(0) / "label.rows")
    before = {place.uri for place in rows.folder.files(".parquet")}
    (workspace.stage(0) / "label.manifest.json").remove()
    started = time.monotonic()
    with _started(_label(config)) as watched:
        while watched.process.poll() is None and time.monotonic() - started < _WAIT_S:
            if {place.uri for place in rows.folder.files(".parquet")} - before:
                break
            time.sleep(_LOOK_EVERY_S)
        seconds = time.monotonic() - started
    done = f"{million:,} cases of which nine tenths are done"
    return (
        Measured(
            "scale.million_start_s", "a minute", seconds, 60.0, seconds, 60.0, "lower",
            f"seconds from the command to the first labeled case on disk; {done}",
        ),
        Measured(
            "scale.million_start_mib", "3 GiB", watched.peak_mib, 3072.0, watched.peak_mib, 3072.0, "lower",
            f"MiB at the peak until then, driver and workers; {done}",
        ),
    )  # fmt: skip


def _two_actors(root: Path, volumes: int, repeats: int) -> Measured:
    """Compare how many volumes one and two actors label in an hour, models loaded, one thread each."""
    config = _campaign(root / "speed", volumes + _NOT_UNLABELED, generalist="litemedsam")
    rates: dict[int, list[float]] = {1: [], 2: []}
    stage = Workspace(Place.of(root / "speed" / "workspace")).stage(0)
    for _ in range(repeats):
        for actors, found in rates.items():
            for name in ("label.rows", "label.manifest.json"):
                (stage / name).remove()
            command = [*_label(config), f"cluster.actors={actors}", "generalist.cache.when=never"]
            subprocess.run(command, check=True, capture_output=True)
            manifest = read_manifest(stage, "label")
            found.append(manifest["outputs"]["steady_per_hour"] if manifest else 0.0)
    one, two = (statistics.median(found) for found in rates.values())
    told = f"{volumes} volumes, litemedsam, {os.cpu_count()} cores, {repeats} times"
    note = f"volumes an hour after the first; {told}"
    return Measured("scale.two_actors", "one actor", two, one, two / one, 1.8, "higher", note)


# --- campaigns ----------------------------------------------------------------------------


def _campaign(folder: Path, patients: int, generalist: str = "threshold") -> Path:
    """Write a campaign whose specialist of labels alone is there, and return its file."""
    folder.mkdir()
    config = folder / "scale.yaml"
    told = {"workspace": folder / "workspace", "patients": patients, "generalist": generalist, "actors": 2}
    config.write_text(_CONFIG.format(**told))
    train = ["train", str(config), "--round", "labels-only", "cluster.backend=local"]
    subprocess.run([*_COMMAND, *train], check=True, capture_output=True)
    return config


_COMMAND = (sys.executable, "-m", "tutelage.cli")


def _label(config: Path) -> list[str]:
    return [*_COMMAND, "label", str(config), "--round", "0"]


def _grow(workspace: Workspace, million: int) -> None:
    """Repeat the catalog's unlabeled cases under other names, and the rows of nine tenths of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    catalog = load(workspace.catalog)
    unlabeled = catalog.cases.table.filter(pc.equal(catalog.cases.table["role"], "unlabeled"))
    others = catalog.cases.table.filter(pc.not_equal(catalog.cases.table["role"], "unlabeled"))
    take = [n % unlabeled.num_rows for n in range(million)]
    names = pa.array([f"case_{n:09d}" for n in range(million)])
    grown = unlabeled.take(take).set_column(unlabeled.column_names.index("case"), "case", names)
    write_rows(workspace.catalog, pa.concat_tables([others, grown]).sort_by("case"), (), catalog.structures)

    rows = Rows(workspace.stage(0) / "label.rows")
    known = rows.table()
    done = 9 * million // 10
    repeated = known.take([n % known.num_rows for n in range(done)])
    repeated = repeated.set_column(repeated.column_names.index("case"), "case", names[:done])
    rows.folder.remove()
    rows.keep(repeated)


# --- watching -----------------------------------------------------------------------------


class _Watched:
    """A command that is running, and the most memory that it and its descendants took together."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.peak_mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self.peak_mib = max(self.peak_mib, _tree_mib(self.process.pid))


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[_Watched]:
    """Run a command in a session of its own, and end everything it started."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    watched = _Watched(process)
    try:
        yield watched
    finally:
        watched.stop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # lets it stop the Ray that it started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _tree_mib(root: int) -> float:
    """Proportional set size of a process and its descendants."""
    total_kib = 0
    for pid in descendants(root):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total_kib += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total_kib / 1024
