"""How well methods learn from few labels, all on the same data, network, steps and evaluation.

Every row is a campaign of its own (see `rows`); rows run in processes of one thread each, the
supervised ones first, because the others start from their labels-only stage. Peer of every method
is the specialist that learns from the labels alone, same steps, same seeds. A method that does not
beat it is a result, and stands in the table like any other.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from tutelage.bench import rows, sets, tables
from tutelage.bench.base import Bench, Measured
from tutelage.bench.plans import ALL, plan, spec, standing
from tutelage.bench.rows import Row
from tutelage.bench.sets import BudgetName
from tutelage.errors import SettingsError, TutelageError
from tutelage.storage import Place

_HALF = 0.5
"""Share of the gap to the ceiling that our own method is to close."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class MethodsBench(Bench):
    """The rows of the bench with the whole table beside them."""

    table_rows: tuple[Mapping[str, Any], ...] = ()
    failed: tuple[str, ...] = ()
    """Rows that came to nothing, and why."""
    files: tuple[str, ...] = ()
    """What was written into the folder."""

    def table(self) -> Table:
        """Return Dice and cost by method for a terminal; the rest is in the Markdown."""
        return tables.terminal(_ordered(self.table_rows))

    def to_json(self) -> str:
        """As every bench, and the result of every row."""
        told = json.loads(super().to_json())
        return json.dumps(told | {"table": list(self.table_rows), "failed": list(self.failed)}, indent=1)


def run(
    archives: Sequence[str] = ("phantom",),
    labeled: int | None = None,
    seeds: int = 3,
    budget: BudgetName = "small",
    methods: Sequence[str] = ALL,
    out: Path = Path("runs/methods"),
    jobs: int = 1,
    say: Say = print,
) -> MethodsBench:
    """Do every row that is not done yet; `jobs` 0 runs them in this process.

    The table joins every row in the folder that still holds, those of earlier calls included.

    Raises:
        SettingsError, ArchiveError: a method, a set or its data are not there; nothing was started.
    """
    specs = [spec(name) for name in methods]
    if not specs or seeds < 1:
        raise SettingsError(f"found {len(specs)} methods and {seeds} seeds, expected one of each at least")
    known = [sets.find(archive) for archive in archives]
    planned = [row for one in known for row in plan(one, labeled, range(seeds), budget, specs, out)]
    # Rows that others start from come first, and are done even if nobody asked to see them.
    bases = [row for row in planned if row.common is None]
    failed = _worked(bases, jobs, say)
    failed |= _worked([row for row in planned if row.common is not None], jobs, say)
    shown = [*known, *(one for one in sets.SETS.values() if one not in known)]
    results = [found for one in shown for found in _standing(one, out, say)]
    return _told(results, list(failed.values()), shown, Place.of(out))


# --- working ------------------------------------------------------------------------------


def _worked(planned: Sequence[Row], jobs: int, say: Say) -> dict[str, str]:
    """Do what is not done, and return why rows failed, by name."""
    waiting = [row for row in planned if rows.done(row) is None]
    for row in planned:
        if row not in waiting:
            say(f"{row.name}: done before")
    if jobs == 0:
        told = [_here(row, say) for row in waiting]
    else:
        with ThreadPoolExecutor(jobs) as pool:
            told = list(pool.map(lambda row: _apart(row, say), waiting))
    return {row.name: why for row, why in zip(waiting, told, strict=True) if why}


def _here(row: Row, say: Say) -> str | None:
    try:
        rows.work(row)
    except Exception as error:  # other rows and the table are worth as much as without it
        told = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
        say(f"{row.name}: failed: {told}")
        return f"{row.name}: {told}"
    say(_line(row))
    return None


def _apart(row: Row, say: Say) -> str | None:
    """Run a row in a process of one thread, its words in a file beside its result."""
    log = Path(row.folder) / rows.LOG
    command = [sys.executable, "-m", "tutelage.bench.rows", row.folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _path()}
    with log.open("w") as stream:
        ended = subprocess.run(command, stdout=stream, stderr=stream, env=environment, check=False)
    if ended.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        why = f"{row.name}: exit code {ended.returncode}: {last}; all of it is in {log}"
        say(why)
        return why
    say(_line(row))
    return None


def _path() -> str:
    """Where this package is, so that a row runs the same code without being installed."""
    here, told = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{told}" if told else here


def _line(row: Row) -> str:
    found = rows.done(row)
    if found is None:
        return f"{row.name}: no result"
    shares = [
        f"{selection} {found['test'][selection]['all']['mean']['dice'] or 0:.3f}"
        for selection in found["test"]
    ]
    seconds = sum(found["seconds"].values())
    return f"{row.name}: Dice {', '.join(shares)}; {seconds:.0f} s, {found['peak_mib']} MiB"


# --- telling ------------------------------------------------------------------------------


def _standing(one: sets.Set, out: Path, say: Say) -> list[dict[str, Any]]:
    try:
        return standing(one, out)
    except TutelageError as error:
        say(f"{one.name}: rows of earlier calls are left out of the table: {error}")
        return []


def _told(
    results: Sequence[Mapping[str, Any]], failed: Sequence[str], known: Sequence[sets.Set], out: Place
) -> MethodsBench:
    lines = _ordered(results)
    bench = MethodsBench("methods", tuple(measured(lines)), tuple(results), tuple(failed))
    if not lines:
        return bench
    rare = {one.name: one.rare for one in known}
    (out / "methods.md").write_text(tables.markdown(lines, rare))
    (out / "methods.svg").write_bytes(tables.plot(lines))
    (out / "methods.json").write_text(bench.to_json() + "\n")
    files = tuple(str(out / f"methods.{suffix}") for suffix in ("json", "md", "svg"))
    return MethodsBench("methods", bench.rows, bench.table_rows, bench.failed, files)


def _ordered(results: Sequence[Mapping[str, Any]]) -> list[tables.Line]:
    """Join rows over seeds, methods in the order in which they are listed everywhere."""
    return tables.lines(sorted(results, key=lambda found: _rank(str(found["method"]))))


def _rank(method: str) -> tuple[int, str]:
    return ALL.index(method.partition("@")[0]), method


_MEASURES: tuple[tuple[str, Literal["higher", "lower"]], ...] = (
    ("dice", "higher"), ("jaccard", "higher"), ("hd95_mm", "lower"), ("asd_mm", "lower"),
)  # fmt: skip


def measured(lines: Sequence[tables.Line]) -> list[Measured]:
    """Compare every method with the labels alone, measure by measure, and with the ceiling."""
    found = []
    for some in tables.by_set(lines).values():
        named = {line.method: line for line in some}
        base = named.get(tables.BASELINE)
        for line in some:
            if base is None or line.method == tables.BASELINE:
                continue
            found += [row for row in (_against(line, base, *one) for one in _MEASURES) if row]
            if tables.CEILING in named and line.method != tables.CEILING:
                found += _gap(line, base, named[tables.CEILING])
    return found


def _against(
    line: tables.Line, base: tables.Line, measure: str, better: Literal["higher", "lower"]
) -> Measured | None:
    ours, theirs = (one.of(measure, "last", "all") for one in (line, base))
    if ours is None or theirs is None or not theirs.mean:
        return None
    note = f"test, last weights: {ours.shown(4)} over {theirs.shown(4)}; {len(ours.values)} seeds"
    ratio = ours.mean / theirs.mean
    name = f"{_prefix(line)}.{measure}"
    return Measured(name, tables.BASELINE, ours.mean, theirs.mean, ratio, 1.0, better, note)


def _gap(line: tables.Line, base: tables.Line, ceiling: tables.Line) -> list[Measured]:
    found = [one.of("dice", "last", "all") for one in (line, base, ceiling)]
    means = [one.mean for one in found if one is not None]
    if len(means) < len(found) or (share := tables.gap_closed(*means)) is None:
        return []
    goal = _HALF if line.method == "tutelage" else 0.0
    note = f"share of the way from {means[1]:.4f} (labels alone) to {means[2]:.4f} (all labels)"
    return [
        Measured(
            f"{_prefix(line)}.gap_closed", tables.CEILING, means[0], means[2], share, goal, "higher", note
        )
    ]


def _prefix(line: tables.Line) -> str:
    return f"methods.{line.set}-{line.labeled}.{line.budget}.{line.method}"
