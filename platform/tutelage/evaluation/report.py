"""One self-contained HTML page about a campaign: everything inline, nothing fetched, all text escaped.

It decides what the page says, and how much of it: whatever the archive, the page stays small enough for a
mail, and says what it leaves out. `report.html.j2` decides where things stand, `charts` and `pictures`
draw. A pure function of a Campaign: the same campaign gives the same page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.evaluation import charts, pictures
from tutelage.evaluation.believing import EVERY, Curation
from tutelage.evaluation.campaign import Calibrated, Campaign, Work
from tutelage.evaluation.scorecard import MEAN
from tutelage.evaluation.story import headline, story
from tutelage.evaluation.table import NOTHING, Named, beliefs, best, bounds, caption
from tutelage.records import Decision, Promotion, Summary

MOST_BYTES = 5_000_000
"""Pictures are left out until the page has no more."""

_TEMPLATE = "report.html.j2"
_SHADES = ("accepted", "partial", "rejected", "absent", "failed")

_STAGES_SHOWN = 8
"""Side by side in a table or a chart: the first and the newest."""
_STRUCTURES_DRAWN = 30
_ROWS = 200
_REASONS = 12
_SETTINGS_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Drawing:
    """One chart of the page."""

    name: str
    """Stays the same whatever is on it."""
    title: str
    told: str
    svg: str


def render(campaign: Campaign, drawn: Sequence[Drawing] | None = None) -> str:
    """Return the page; `drawn` are its charts, if somebody has drawn them already."""
    shown, drawn = campaign, drawings(campaign) if drawn is None else drawn
    while len((page := _rendered(shown, drawn, len(campaign.overlays))).encode()) > MOST_BYTES:
        if not shown.overlays:
            break
        shown = replace(shown, overlays=shown.overlays[: len(shown.overlays) // 2])
    return page


def _rendered(campaign: Campaign, drawn: Sequence[Drawing], overlays: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows, rows_left = _curation(campaign.curation)
    gpus = any(work.gpu_s for work in campaign.work)
    return environment.get_template(_TEMPLATE).render(
        campaign=campaign,
        headline=headline(campaign),
        tiles=_tiles(campaign),
        story=story(campaign),
        results=[(name, _results(cards), caption(cards), left) for name, cards, left in _shown(campaign)],
        charts=[(one.title, one.told, Markup(one.svg)) for one in drawn],
        curation=[_shaded(row) for row in rows],
        rows_left=rows_left,
        beliefs=[(row, cells) for row in rows if (cells := beliefs(row))],
        calibration=[_calibrated(one) for one in campaign.calibration],
        overlays=[(one, pictures.address(one, charts.color(one.color))) for one in campaign.overlays],
        overlays_left=overlays - len(campaign.overlays),
        promotions=[_promotion(stage, told) for stage, told in campaign.promotions],
        work=[_worked(work)[: None if gpus else -2] for work in campaign.work[-_ROWS:]],
        gpus=gpus,
        troubles_left=campaign.quarantined + campaign.failed - len(campaign.troubles),
        settings=_cut(campaign.settings_yaml, _SETTINGS_CHARACTERS),
        shades=_SHADES,
        every=EVERY,
    )


def _tiles(campaign: Campaign) -> list[tuple[str, str]]:
    """Large numbers at the top: what, how much."""
    tiles = [("champion", campaign.champion or NOTHING)]
    for split, cards in _splits(campaign):
        found = dict(cards).get(campaign.champion or "")
        tiles.append((f"mean Dice, {split}", _number(found.summaries[-1].dice, 3) if found else NOTHING))
    tiles += [(f"{role} cases", str(n)) for role, n in campaign.cases]
    if campaign.quarantined:
        tiles.append(("in quarantine", str(campaign.quarantined)))
    if campaign.failed:
        tiles.append(("failed", str(campaign.failed)))
    return tiles


# --- results ------------------------------------------------------------------------------


def _splits(campaign: Campaign) -> list[tuple[str, tuple[Named, ...]]]:
    both = (("test", campaign.test), ("validation", campaign.validation))
    return [(split, cards) for split, cards in both if cards]


def _shown(campaign: Campaign) -> list[tuple[str, tuple[Named, ...], int]]:
    """Splits with the stages that stand side by side, and how many more there are."""
    told = []
    for split, cards in _splits(campaign):
        kept = cards if len(cards) <= _STAGES_SHOWN else (cards[0], *cards[1 - _STAGES_SHOWN :])
        told.append((split, kept, len(cards) - len(kept)))
    return told


def _results(cards: tuple[Named, ...]) -> dict[str, Any]:
    """The results table as cells: text, whether it is the best of its row, and the interval if it has one."""
    rows = []
    for summaries in zip(*(card.summaries for _, card in cards), strict=True):
        cells = [cell for s in summaries for cell in _cells(s, list(summaries))]
        rows.append((summaries[0].structure, summaries[0].structure == MEAN, cells))
    return {"names": [name for name, _ in cards], "rows": rows}


def _cells(summary: Summary, row: list[Summary]) -> list[tuple[str, bool, str]]:
    return [
        (_number(summary.dice, 3), summary in best(row, "dice"), bounds(summary)),
        (_number(summary.hd95_mm, 1), summary in best(row, "hd95_mm"), ""),
    ]


def drawings(campaign: Campaign) -> list[Drawing]:
    """Draw the charts of the page; what nobody knows yet has none."""
    drawn = []
    if splits := _splits(campaign):
        told = "Mean over structures, with its bootstrap interval over cases; a ring marks the champion."
        svg = charts.dice_by_stage(splits, campaign.champion)
        drawn.append(Drawing("dice-by-stage", "Dice by stage", told, svg))
        split, cards, _ = _shown(campaign)[0]
        weakest = [
            s.structure for s in sorted(cards[-1][1].summaries[:-1], key=_weakness)[:_STRUCTURES_DRAWN]
        ]
        fewer = len(weakest) < len(campaign.structures)
        which = f"The weakest {len(weakest)}, on" if fewer else "On"
        told = f"{which} the {split} split; a bar joins the first stage and the last."
        svg = charts.dice_by_structure(cards, weakest)
        drawn.append(Drawing("dice-by-structure", "Dice by structure", told, svg))
    if campaign.calibration:
        told = "Dots are answers about labeled cases, rings means of answers whose labels were hidden."
        svg = charts.predicted(campaign.calibration[-_STAGES_SHOWN:])
        drawn.append(Drawing("predicted-dice", "Predicted and true Dice", told, svg))
    if campaign.curves:
        told = "Each stage trains a new specialist; neighboring steps are averaged."
        svg = charts.losses(campaign.curves[-_STAGES_SHOWN:])
        drawn.append(Drawing("training-loss", "Training loss", told, svg))
    return drawn


def _weakness(summary: Summary) -> float:
    return summary.dice if math.isfinite(summary.dice) else math.inf


# --- what was believed, decided and done --------------------------------------------------


def _curation(rows: Sequence[Curation]) -> tuple[list[Curation], int]:
    """Everything, or if that is a lot the newest round and each round's sum; and how many rows are left."""
    if len(rows) <= _ROWS or not rows:
        return list(rows), 0
    newest = rows[-1].round
    kept = [row for row in rows if row.structure == EVERY or row.round == newest][-_ROWS:]
    return kept, len(rows) - len(kept)


def _shaded(row: Curation) -> tuple[Curation, list[tuple[str, int, float]], str, str, str]:
    """A row, its bar (what, how many, percent), its mean weight, true Dice of accepted and of others."""
    counts = (row.accepted, row.partial, row.rejected, row.absent, row.failed)
    total = max(1, row.total)
    bar = [(shade, n, 100 * n / total) for shade, n in zip(_SHADES, counts, strict=True) if n]
    return row, bar, _number(row.mean_weight, 2), _number(row.true_dice, 3), _number(row.rejected_dice, 3)


def _calibrated(one: Calibrated) -> tuple[str, ...]:
    """A row: what it is about, what it rests on, and how it did."""
    judged = (str(one.judged), _percent(one.covered)) if one.judged else (NOTHING, NOTHING)
    labeled = (str(one.patients), str(one.bounded), _number(one.error, 3))
    return (one.round, *labeled, _percent(1 - one.alpha), *judged)


def _promotion(stage: str, told: Promotion) -> dict[str, Any]:
    """A decision; what spoke against it comes first, and not all of it if that is a list of structures."""
    reasons = sorted(told.reasons, key=lambda reason: reason.passed)
    return {
        "stage": stage,
        "promotion": told,
        "yes": told.decision is Decision.PROMOTE,
        "reasons": reasons[:_REASONS],
        "left": max(0, len(reasons) - _REASONS),
    }


def _worked(work: Work) -> tuple[str, ...]:
    """A row about one step, what GPUs did last."""
    done = (work.cases or 0) - work.failed
    each, gpu_each = (
        NOTHING if seconds is None or not done else _seconds(seconds / done)
        for seconds in (work.worked_s, work.gpu_s)
    )
    cases = NOTHING if work.cases is None else str(work.cases)
    speed = NOTHING if work.per_hour is None else f"{work.per_hour:.0f}"
    gpu = NOTHING if work.gpu_s is None else f"{work.gpu_s:.0f}"
    named = (work.stage, work.step, cases, str(work.failed or NOTHING), _seconds(work.seconds))
    return (*named, speed, each, _percent(work.hit_share), gpu, gpu_each)


# --- numbers and text ---------------------------------------------------------------------


def _seconds(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def _percent(share: float | None) -> str:
    return NOTHING if share is None or not math.isfinite(share) else f"{share:.0%}"


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}\n... and {len(text) - most} characters more"
