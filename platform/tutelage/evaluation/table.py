"""The table of results: a row a structure, Dice and HD95 of every scorecard side by side.

Once for terminals (rich) and once for README and merge requests (GitHub's markdown).
"""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tutelage.evaluation.believing import EVERY, Curation
from tutelage.evaluation.scorecard import MEAN
from tutelage.records import Scorecard, Summary

Named = tuple[str, Scorecard]
"""What a scorecard is called in tables, and the scorecard."""

NOTHING = "-"
"""Shown where no case holds a structure."""


def rich_table(cards: Sequence[Named], title: str | None = None) -> Table:
    """Return the table for a terminal, the best of each row in bold."""
    shown = Table(
        title=Text(title) if title else None,
        caption=Text(caption(cards)),
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("structure")
    for name, _ in cards:
        shown.add_column(f"{escape(name)}\nDice", justify="right")
        shown.add_column("\nHD95 mm", justify="right")
    for rows in _by_structure(cards):
        if rows[0].structure == MEAN:
            shown.add_section()
        cells = [
            _bold(_number(getattr(row, key), key), row in best(rows, key)) for row in rows for key in _KEYS
        ]
        shown.add_row(Text(rows[0].structure), *cells)
    return shown


def curation_table(ruled: Sequence[Curation]) -> Table:
    """Return how often answers were believed, and how good they were where hidden labels tell."""
    shown = Table(
        "structure", title="what was believed", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in (
        "accepted",
        "partial",
        "rejected",
        "absent",
        "failed",
        "Dice of\naccepted",
        "Dice of\nothers",
    ):
        shown.add_column(name, justify="right")
    for row in ruled:
        if row.structure == EVERY:
            shown.add_section()
        counts = (row.accepted, row.partial, row.rejected, row.absent, row.failed)
        dices = (row.true_dice, row.rejected_dice)
        shown.add_row(Text(row.structure), *(str(n) for n in counts), *(_known(value) for value in dices))
    return shown


def priors_table(ruled: Sequence[Curation]) -> Table | None:
    """Return what curation accepts without and with priors, side by side; None where verdicts do not say."""
    told = [row for row in ruled if row.without_priors and row.with_priors]
    if not told:
        return None
    shown = Table(
        "structure", title="what priors change", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in ("accepted", "Dice of\naccepted", "Dice of\nothers"):
        shown.add_column(f"without:\n{name}", justify="right")
        shown.add_column(f"with:\n{name}", justify="right")
    for row in told:
        if row.structure == EVERY:
            shown.add_section()
        shown.add_row(Text(row.structure), *(cell for pair in beliefs(row) for cell in pair))
    return shown


def beliefs(row: Curation) -> list[tuple[str, str]]:
    """Return, without and with priors, how many are accepted and the true Dice of those and of others."""
    off, on = row.without_priors, row.with_priors
    if off is None or on is None:
        return []
    return [
        (str(off.accepted), str(on.accepted)),
        (_known(off.true_dice), _known(on.true_dice)),
        (_known(off.rejected_dice), _known(on.rejected_dice)),
    ]


def _known(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def markdown(cards: Sequence[Named]) -> str:
    """Return the table as GitHub's markdown, with the intervals of the mean."""
    header = ["structure", *(f"{name} {what}" for name, _ in cards for what in ("Dice", "HD95 mm"))]
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for rows in _by_structure(cards):
        cells = [_number(getattr(row, key), key) for row in rows for key in _KEYS]
        lines.append(_line([rows[0].structure, *cells]))
    return "\n".join([*lines, "", caption(cards), ""])


def caption(cards: Sequence[Named]) -> str:
    """Say on how many cases of which split the table rests, and how sure the means are."""
    if not cards:
        return "nothing scored yet"
    counts = sorted({(card.role.value, len({s.case for s in card.scores})) for _, card in cards})
    bases = " and ".join(f"{n} {role} cases" for role, n in counts)
    means = [f"{name} {interval(card.summaries[-1])}" for name, card in cards]
    return f"{bases}; mean Dice with its interval over cases: {', '.join(means)}"


def interval(summary: Summary) -> str:
    """Return a Dice with its interval."""
    if not math.isfinite(summary.dice):
        return NOTHING
    return f"{summary.dice:.3f} ({bounds(summary)})"


def bounds(summary: Summary) -> str:
    """Return the interval of a Dice alone; nothing where nothing was scored."""
    if not math.isfinite(summary.dice):
        return ""
    return f"{summary.dice_low:.3f} to {summary.dice_high:.3f}"


def best(rows: Sequence[Summary], key: str) -> list[Summary]:
    """Return the summaries that share the best value; none if there is nothing to choose from."""
    values = [getattr(row, key) for row in rows if math.isfinite(getattr(row, key))]
    if len(rows) < 2 or not values:
        return []
    wanted = min(values) if key == "hd95_mm" else max(values)
    return [row for row in rows if getattr(row, key) == wanted]


_KEYS = ("dice", "hd95_mm")


def _by_structure(cards: Sequence[Named]) -> list[list[Summary]]:
    """Summaries of one structure in the order of the cards, for each structure; all must have the same."""
    names = [tuple(s.structure for s in card.summaries) for _, card in cards]
    if len(set(names)) > 1:
        raise ValueError(f"scorecards of different structures cannot share a table: {sorted(set(names))}")
    return [list(rows) for rows in zip(*(card.summaries for _, card in cards), strict=True)]


def _number(value: float, key: str) -> str:
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.3f}" if key == "dice" else f"{value:.1f}"


def _bold(text: str, bold: bool) -> Text:
    return Text(text, style="bold" if bold else "")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
