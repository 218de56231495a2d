"""Rows of the methods bench joined over seeds: the lines of the table, its Markdown and its plot.

It decides what a mean and its deviation are (over seeds, of a sample, from two seeds on) and how
they are shown. It does not know how a row was made.
"""

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from tutelage.bench.rows import PIECES, SELECTIONS

MEAN = "mean"
BASELINE, CEILING = "supervised", "ceiling"

SHOWN = (
    ("jaccard", "Jaccard", 3),
    ("hd95_mm", "HD95 mm", 2),
    ("asd_mm", "ASD mm", 2),
    ("hd95_voxels", "HD95 voxels", 2),
    ("asd_voxels", "ASD voxels", 2),
)
"""Measures of the second table: key, heading, digits."""

_NOTHING = "-"
_COLORS = ("#4e79e6", "#f28e2b", "#2fa36b", "#e15759", "#9b6dd6", "#17a2b8", "#d4a017", "#e377c2", "#8c7a5b")

Result = Mapping[str, Any]
"""What a row's JSON holds."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    sd: float | None
    """None with one seed."""
    values: tuple[float, ...]
    """By seed."""

    def shown(self, digits: int) -> str:
        """As text."""
        told = f"{self.mean:.{digits}f}"
        return told if self.sd is None else f"{told} ± {self.sd:.{digits}f}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """Sum up values over seeds; None where no seed has one."""
    known = tuple(value for value in values if value is not None and math.isfinite(value))
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, known)


@dataclass(frozen=True)
class Line:
    """One method on one set and budget, over its seeds."""

    set: str
    labeled: int
    budget: str
    method: str
    results: tuple[Result, ...]
    """By seed."""

    def of(self, measure: str, selection: str, pieces: str, structure: str = MEAN) -> Spread | None:
        """Sum up a measure of the test cases; where validation was never looked at, best is last."""
        tests = [result["test"] for result in self.results]
        return spread(
            (test.get(selection) or test["last"])[pieces].get(structure, {}).get(measure) for test in tests
        )

    def rare(self, structures: Sequence[str], selection: str) -> Spread | None:
        """Sum up the mean Dice over some structures."""
        means = []
        for result in self.results:
            test = result["test"].get(selection) or result["test"]["last"]
            dices = [test["all"][name]["dice"] for name in structures if name in test["all"]]
            known = [dice for dice in dices if dice is not None]
            means.append(statistics.fmean(known) if known else None)
        return spread(means)

    def cost(self, key: str) -> Spread | None:
        """Sum up what it took: minutes, or a number that rows hold."""
        if key == "minutes":
            return spread(sum(result["seconds"].values()) / 60 for result in self.results)
        return spread(float(result[key]) for result in self.results)


def lines(results: Iterable[Result]) -> list[Line]:
    """Join rows over their seeds, in the order in which methods first appear."""
    grouped: dict[tuple[str, int, str, str], list[Result]] = {}
    for result in results:
        key = (result["set"], result["labeled"], result["budget"], result["method"])
        grouped.setdefault(key, []).append(result)
    return [Line(*key, tuple(sorted(rows, key=lambda r: int(r["seed"])))) for key, rows in grouped.items()]


def by_set(all_lines: Sequence[Line]) -> dict[tuple[str, int, str], list[Line]]:
    """Lines by what may be compared with each other: set, labeled cases, budget."""
    found: dict[tuple[str, int, str], list[Line]] = {}
    for line in all_lines:
        found.setdefault((line.set, line.labeled, line.budget), []).append(line)
    return found


def gap_closed(ours: float, baseline: float, ceiling: float) -> float | None:
    """Share of the way from the baseline to the ceiling; None where there is no way to go."""
    return (ours - baseline) / (ceiling - baseline) if ceiling > baseline else None


def terminal(all_lines: Sequence[Line]) -> Table:
    """Return Dice and cost of every method on every set."""
    shown = Table(
        "set", "method", title="test cases, mean ± standard deviation over seeds", title_justify="left"
    )
    for heading in ("Dice, last", "best on\nvalidation", "gap\nclosed", "minutes", "seeds"):
        shown.add_column(heading, justify="right")
    for key, some in by_set(all_lines).items():
        for line in some:
            shown.add_row(
                f"{key[0]}, {key[1]} labeled, {key[2]}",
                Text(line.method),
                _cell(line.of("dice", "last", "all"), 3),
                _cell(line.of("dice", "best", "all"), 3),
                _gap(line, some),
                _cell(line.cost("minutes"), 1),
                str(len(line.results)),
            )
        shown.add_section()
    return shown


# --- Markdown -----------------------------------------------------------------------------


def markdown(all_lines: Sequence[Line], rare: Mapping[str, Sequence[str]]) -> str:
    """Return GitHub's markdown: Dice, other measures and cost of every set."""
    parts = []
    for (name, labeled, budget), some in by_set(all_lines).items():
        cases = some[0].results[0]["cases"]
        seeds = max(len(line.results) for line in some)
        told = (
            f"{labeled} labeled and {cases.get('unlabeled', 0)} unlabeled cases, {cases['validation']} for "
            f"validation, {cases['test']} for the test, which was looked at once; mean ± standard deviation "
            f"over {seeds} seeds"
        )
        parts += [f"### {name}, budget {budget}", told, _dice(some, rare.get(name, ())), _others(some)]
        parts += [_costs(some), _ABOUT_COSTS]
    return "\n\n".join(parts) + "\n"


def _dice(some: Sequence[Line], rare: Sequence[str]) -> str:
    structures = some[0].results[0]["structures"]
    header = ["Dice", "last", "best on validation", "last, largest piece", "best, largest piece"]
    header += ["rare structures, last"] if rare else []
    header += [f"{name}, last" for name in structures] if 1 < len(structures) <= 4 else []
    header += ["gap closed, last"]
    rows = []
    for line in some:
        cells = [_cell(line.of("dice", s, p), 3) for p in PIECES for s in SELECTIONS]
        cells += [_cell(line.rare(rare, "last"), 3)] if rare else []
        if 1 < len(structures) <= 4:
            cells += [_cell(line.of("dice", "last", "all", name), 3) for name in structures]
        rows.append([line.method, *cells, _gap(line, some)])
    return _table(header, rows)


def _gap(line: Line, some: Sequence[Line]) -> str:
    means = {one.method: found.mean for one in some if (found := one.of("dice", "last", "all")) is not None}
    if line.method in (BASELINE, CEILING) or not {line.method, BASELINE, CEILING} <= set(means):
        return _NOTHING
    share = gap_closed(means[line.method], means[BASELINE], means[CEILING])
    return _NOTHING if share is None else f"{share:.0%}"


def _others(some: Sequence[Line]) -> str:
    header = ["other measures", "weights", "pieces", *(heading for _, heading, _ in SHOWN)]
    rows = [
        [line.method, s, p, *(_cell(line.of(key, s, p), digits) for key, _, digits in SHOWN)]
        for line in some
        for s in SELECTIONS
        for p in PIECES
    ]
    return _table(header, rows, words=3)


_ABOUT_COSTS = (
    "Minutes and memory are those of the stages that a method rests on: the specialist of labels alone is "
    "counted where it prompts the generalist or is what training starts from. Embeddings of the generalist "
    "are shared within a set, so the first row that needs one pays for it. Methods with rounds take the "
    "steps of every round, that many more than the others."
)


def _costs(some: Sequence[Line]) -> str:
    header = ["cost", "seeds", "steps", "minutes", "peak MiB", "generalist calls"]
    rows = [
        [line.method, str(len(line.results)), _cell(line.cost("steps"), 0), _cell(line.cost("minutes"), 1),
         _cell(line.cost("peak_mib"), 0), _cell(line.cost("generalist_calls"), 0)]
        for line in some
    ]  # fmt: skip
    return _table(header, rows)


def _cell(found: Spread | None, digits: int) -> str:
    return _NOTHING if found is None else found.shown(digits)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    marks = [*["---"] * words, *["---:"] * (len(header) - words)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


# --- plot ---------------------------------------------------------------------------------


def plot(all_lines: Sequence[Line]) -> bytes:
    """Return an SVG: Dice of the last weights by method, every seed a point, its mean a bar."""
    import matplotlib
    from matplotlib.figure import Figure

    sets = by_set(all_lines)
    rows = sum(len(some) for some in sets.values())
    heights = [len(some) + 1 for some in sets.values()]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "methods"}):
        figure = Figure(figsize=(7.0, 0.8 * len(sets) + 0.32 * rows + 0.4), layout="constrained")
        panels = figure.subplots(len(sets), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (key, some) in zip(panels[:, 0], sets.items(), strict=True):
            _panel(axes, key, some)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _panel(axes: Any, key: tuple[str, int, str], some: Sequence[Line]) -> None:
    for y, line in enumerate(some):
        found = line.of("dice", "last", "all")
        if found is None:
            continue
        color = _COLORS[y % len(_COLORS)]
        axes.plot(found.values, [y] * len(found.values), "o", color=color, ms=6, alpha=0.7)
        axes.plot([found.mean, found.mean], [y - 0.32, y + 0.32], "-", color=color, lw=2)
        if line.method in (BASELINE, CEILING):
            axes.axvline(found.mean, color="0.6", lw=1, ls=":", zorder=0)
    axes.set_yticks(range(len(some)), [line.method.replace("$", r"\$") for line in some])
    axes.set_ylim(len(some) - 0.4, -0.6)
    axes.set_title(f"{key[0]}, {key[1]} labeled, budget {key[2]}", loc="left", fontsize=10)
    axes.set_xlabel("Dice on the test cases, last weights")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
