"""One self-contained HTML page about a campaign: everything inline, nothing fetched, all text escaped.

It decides what the page says; `report.html.j2` decides where, `charts` draws. A pure
function of a Campaign: the same campaign gives the same page.
"""

import math
from pathlib import Path
from typing import Any

from tutelage.evaluation import charts
from tutelage.evaluation.campaign import EVERY, Campaign, Curation
from tutelage.evaluation.scorecard import MEAN
from tutelage.evaluation.table import NOTHING, Named, beliefs, best, caption, interval
from tutelage.records import Decision, Summary

_TEMPLATE = "report.html.j2"
_SHADES = ("accepted", "partial", "rejected", "absent", "failed")


def render(campaign: Campaign) -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        campaign=campaign,
        headline=headline(campaign),
        tiles=_tiles(campaign),
        results=[(name, _results(cards), caption(cards)) for name, cards in _splits(campaign)],
        charts=_charts(campaign),
        curation=[_shaded(row) for row in campaign.curation],
        beliefs=[(row, cells) for row in campaign.curation if (cells := beliefs(row))],
        promotions=[(stage, p, p.decision is Decision.PROMOTE) for stage, p in campaign.promotions],
        examples=[(example, charts.slices(example)) for example in campaign.examples],
        colors=[(name, charts.color(i)) for i, name in enumerate(campaign.structures)],
        shades=_SHADES,
        every=EVERY,
    )


def headline(campaign: Campaign) -> str:
    """Say in one sentence what came out."""
    cards = dict(campaign.test or campaign.validation)
    split = "test" if campaign.test else "validation"
    if campaign.champion is None or campaign.champion not in cards:
        return "There is no champion yet."
    mean = cards[campaign.champion].summaries[-1]
    told = f"{campaign.champion} is the champion: mean Dice {interval(mean)} on {mean.cases} {split} cases"
    first = next(iter(cards))
    if first == campaign.champion:
        return f"{told}."
    before = cards[first].summaries[-1].dice
    return f"{told}, {100 * (mean.dice - before):+.1f} points against {first}."


def _tiles(campaign: Campaign) -> list[tuple[str, str]]:
    """Large numbers at the top: what, how much."""
    tiles = [("champion", campaign.champion or NOTHING)]
    for split, cards in _splits(campaign):
        found = dict(cards).get(campaign.champion or "")
        tiles.append((f"mean Dice, {split}", _number(found.summaries[-1].dice, 3) if found else NOTHING))
    tiles += [(f"{role} cases", str(n)) for role, n in campaign.cases]
    if campaign.quarantined:
        tiles.append(("in quarantine", str(len(campaign.quarantined))))
    if campaign.failed:
        tiles.append(("failed", str(len(campaign.failed))))
    return tiles


def _splits(campaign: Campaign) -> list[tuple[str, tuple[Named, ...]]]:
    both = (("test", campaign.test), ("validation", campaign.validation))
    return [(split, cards) for split, cards in both if cards]


def _results(cards: tuple[Named, ...]) -> dict[str, Any]:
    """The results table as cells: text, and whether it is the best of its row."""
    rows = []
    for summaries in zip(*(card.summaries for _, card in cards), strict=True):
        cells = [cell for s in summaries for cell in _cells(s, list(summaries))]
        rows.append((summaries[0].structure, summaries[0].structure == MEAN, cells))
    return {"names": [name for name, _ in cards], "rows": rows}


def _cells(summary: Summary, row: list[Summary]) -> list[tuple[str, bool, str]]:
    return [
        (_number(summary.dice, 3), summary in best(row, "dice"), interval(summary)),
        (_number(summary.hd95_mm, 1), summary in best(row, "hd95_mm"), "mm"),
    ]


def _charts(campaign: Campaign) -> list[tuple[str, str, str]]:
    """Title, explanation and drawing."""
    from markupsafe import Markup

    drawn = []
    if splits := _splits(campaign):
        told = "Mean over structures, with its bootstrap interval over cases; a ring marks the champion."
        drawn.append(("Dice by stage", told, charts.dice_by_stage(splits, campaign.champion)))
        split, cards = splits[0]
        told = f"On the {split} split; a bar joins the first stage and the last."
        drawn.append(("Dice by structure", told, charts.dice_by_structure(cards)))
    if campaign.curves:
        told = "Each stage trains a new specialist; neighboring steps are averaged."
        drawn.append(("Training loss", told, charts.losses(campaign.curves)))
    return [(title, told, Markup(svg)) for title, told, svg in drawn]


def _shaded(row: Curation) -> tuple[Curation, list[tuple[str, int, float]], str, str, str]:
    """A row, its bar (what, how many, percent), its mean weight, true Dice of accepted and of others."""
    counts = (row.accepted, row.partial, row.rejected, row.absent, row.failed)
    total = max(1, row.total)
    bar = [(shade, n, 100 * n / total) for shade, n in zip(_SHADES, counts, strict=True) if n]
    return row, bar, _number(row.mean_weight, 2), _number(row.true_dice, 3), _number(row.rejected_dice, 3)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
