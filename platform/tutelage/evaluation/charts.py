"""Charts for the report page: SVG that follows the page's colors.

Charts are drawn in stand-in colors that become the page's CSS variables, so that one
drawing suits a light and a dark page. Drawing uses no pyplot: nothing global is opened
that somebody would have to close.
"""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tutelage.evaluation.believing import Curation
from tutelage.evaluation.campaign import Calibrated, Curve
from tutelage.evaluation.scorecard import MEAN
from tutelage.evaluation.table import Named

PALETTE = (
    "#4e79e6", "#f28e2b", "#2fa36b", "#e15759", "#9b6dd6", "#17a2b8",
    "#d4a017", "#e377c2", "#8c7a5b", "#6b8e23", "#ff7f6b", "#5f7fa8",
)  # fmt: skip
"""Colors that can be told apart on white, on dark gray and on scans; reused after twelve."""

_INK, _LINE, _PAPER = "#010203", "#040506", "#070809"
_VARIABLES = {_INK: "var(--muted)", _LINE: "var(--line)", _PAPER: "var(--card)"}
"""Stand-ins, and the page's own colors they become."""

_LIGHT = {"var(--muted)": "#667085", "var(--line)": "#e4e7ec", "var(--card)": "#ffffff"}
"""What these are on a light page."""

_RULINGS = {
    "accepted": "#2fa36b",
    "partial": "#8fcfae",
    "rejected": "#e08a3c",
    "absent": "#b8bfcc",
    "failed": "#d64545",
}
"""What the page paints them with."""

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "legend.frameon": False,
}
_MOST_POINTS = 300
_MOST_TICKS = 10


def color(index: int) -> str:
    """Return the color of a structure (0 is the first) or of a series."""
    return PALETTE[index % len(PALETTE)]


def dice_by_stage(series: Sequence[tuple[str, Sequence[Named]]], champion: str | None) -> str:
    """Mean Dice of each stage with its interval, one line a split; a ring around the champion."""
    whole = sorted(series, key=lambda one: -len(one[1]))  # not every stage need be in every split
    stages = list(dict.fromkeys(stage for _, cards in whole for stage, _ in cards))

    def draw(axes: Any) -> None:
        for i, (split, cards) in enumerate(series):
            means = [card.summaries[-1] for _, card in cards]
            shift = 0.06 * (i - (len(series) - 1) / 2)
            x = [stages.index(stage) + shift for stage, _ in cards]
            y = np.array([m.dice for m in means])
            spread = np.abs(np.array([[m.dice_low for m in means], [m.dice_high for m in means]]) - y)
            axes.errorbar(x, y, spread, color=color(i), marker="o", ms=6, lw=2, capsize=4, label=split)
            ring = [(a, b) for a, b, (stage, _) in zip(x, y, cards, strict=True) if stage == champion]
            axes.plot(
                *zip(*ring, strict=True), "o", ms=13, mfc="none", mec=color(i), mew=1.5
            ) if ring else None
        every = -(-len(stages) // _MOST_TICKS)
        axes.set_xticks(range(0, len(stages), every), map(_plain, stages[::every]))
        axes.set_xlim(-0.4, len(stages) - 0.6)
        axes.set_ylabel("mean Dice")
        axes.grid(axis="y")
        axes.legend(loc="lower right")

    return _svg(draw, (6.4, 3.4), "mean Dice by stage")


def dice_by_structure(cards: Sequence[Named], wanted: Sequence[str]) -> str:
    """Dice of some structures, a dot a stage, the first and the last joined."""
    names = (
        [s.structure for s in cards[0][1].summaries if s.structure in set(wanted) - {MEAN}] if cards else []
    )

    def draw(axes: Any) -> None:
        values = np.array([[s.dice for s in card.summaries if s.structure in names] for _, card in cards])
        y = np.arange(len(names))[::-1]
        axes.hlines(y, values[0], values[-1], color=_LINE, lw=3, zorder=1)
        for i, (stage, _) in enumerate(cards):
            axes.scatter(values[i], y, s=48, color=color(i), label=_plain(stage), zorder=2 + i)
        axes.set_yticks(y, map(_plain, names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("Dice")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(cards)))

    return _svg(draw, (6.4, 1.3 + 0.28 * len(names)), "Dice by structure")


def losses(curves: Sequence[Curve]) -> str:
    """Training loss by step."""

    def draw(axes: Any) -> None:
        for i, curve in enumerate(curves):
            axes.plot(curve.steps, curve.losses, color=color(i), lw=1.6, label=_plain(curve.name))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(axis="y")
        axes.legend(loc="upper right")

    return _svg(draw, (6.4, 3.4), "training loss by step")


def thinned(name: str, losses: Iterable[tuple[int, float]], most: int = _MOST_POINTS) -> Curve:
    """Average neighboring steps until few enough points are left; NaN stays out. Holds few at a time."""
    each, points = 1, [np.zeros(3)]  # sums of steps and losses, and how many
    for step, loss in losses:
        if not np.isfinite(loss):
            continue
        if points[-1][2] == each:
            if len(points) == 2 * most:
                each, points = 2 * each, [a + b for a, b in zip(points[::2], points[1::2], strict=True)]
            points.append(np.zeros(3))
        points[-1] += (step, loss, 1)
    while len(points) > most:
        last = points[-1:] * (len(points) % 2)
        points = [a + b for a, b in zip(points[::2], points[1::2], strict=False)] + last
    told = [(steps / count, values / count) for steps, values, count in points if count]
    return Curve(name, tuple(float(s) for s, _ in told), tuple(float(v) for _, v in told))


def predicted(rounds: Sequence[Calibrated]) -> str:
    """True against predicted Dice: a dot an answer about a labeled case, a ring many with hidden labels."""

    def draw(axes: Any) -> None:
        axes.plot((0, 1), (0, 1), color=_LINE, lw=1.5, zorder=1)
        for i, one in enumerate(rounds):
            every = max(1, -(-len(one.points) // _MOST_POINTS))
            dots = np.array(one.points[::every] or [(np.nan, np.nan)])
            axes.scatter(*dots.T, s=14, color=color(i), alpha=0.55, lw=0, label=_plain(one.round), zorder=2)
            if one.bins:
                x, y, n = np.array(one.bins).T
                size = 40 + 160 * n / n.sum()
                axes.scatter(x, y, s=size, facecolors="none", edgecolors=color(i), linewidths=1.8, zorder=3)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("predicted Dice")
        axes.set_ylabel("true Dice")
        axes.grid()
        axes.set_axisbelow(True)
        axes.legend(loc="upper left")

    return _svg(draw, (6.4, 4.4), "true against predicted Dice")


def believed(rows: Sequence[tuple[str, Curation]]) -> str:
    """How many of the answers were ruled on in which way: a bar a row, of a hundred percent."""

    def draw(axes: Any) -> None:
        y, left = np.arange(len(rows))[::-1], np.zeros(len(rows))
        for ruling, paint in _RULINGS.items():
            percent = np.array([100 * getattr(row, ruling) / max(1, row.total) for _, row in rows])
            axes.barh(y, percent, 0.7, left, color=paint, label=ruling)
            left += percent
        axes.set_yticks(y, [_plain(name) for name, _ in rows])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of answers")
        short = {"columnspacing": 1.0, "handlelength": 1.0, "handletextpad": 0.4}
        axes.figure.legend(loc="outside upper center", ncols=len(_RULINGS), **short)

    return _svg(draw, (6.4, 1.4 + 0.28 * len(rows)), "what was believed")


def alone(svg: str) -> str:
    """Return a chart as a picture of its own, in the colors of a light page and on white."""
    for variable, paint in _LIGHT.items():
        svg = svg.replace(variable, paint)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    paper = f'<rect width="{width}" height="{height}" fill="{_LIGHT["var(--card)"]}"/>'
    head, rest = svg.split(">", 1)
    return f'{head} width="{width}" height="{height}" font-family="sans-serif">{paper}{rest}'


def _svg(draw: Any, inches: tuple[float, float], title: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # Ids inside are made from the salt: two charts on one page must not share any.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.tick_params(length=0)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(out.getvalue(), title)


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _inlined(svg: str, title: str) -> str:
    """Leave only what may stand inside a page: no prolog, no metadata, no fixed size or font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', rf'<svg \1role="img" aria-label="{title}"', svg, count=1)
    # Groups are numbered from one in every chart, and a page's ids must be unique; nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
