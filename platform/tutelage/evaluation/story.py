"""What happened, stage by stage, in sentences: numbers that a page also shows in tables, as a story."""

import math

from tutelage.evaluation.believing import EVERY, Curation
from tutelage.evaluation.campaign import Calibrated, Campaign, Stage, Work
from tutelage.evaluation.table import interval
from tutelage.records import Decision, Promotion, Scorecard


def headline(campaign: Campaign) -> str:
    """Say in one sentence what came out."""
    cards, split = dict(campaign.test), "test"
    if campaign.champion not in cards:  # it was made after the others were tested, or nobody has tested any
        cards, split = dict(campaign.validation), "validation"
    if campaign.champion is None or campaign.champion not in cards:
        return "There is no champion yet."
    mean = cards[campaign.champion].summaries[-1]
    cases = _many(mean.cases, f"{split} case")
    told = f"{campaign.champion} is the champion: mean Dice {interval(mean)} on {cases}"
    first = next(iter(cards))
    if first == campaign.champion:
        return f"{told}."
    before = cards[first].summaries[-1].dice
    return f"{told}, {100 * (mean.dice - before):+.1f} points against {first}."


def story(campaign: Campaign) -> list[tuple[str, list[str]]]:
    """Return each stage with its sentences, and how it ended."""
    cards, promotions = dict(campaign.validation), dict(campaign.promotions)
    ruled = {row.round: row for row in campaign.curation if row.structure == EVERY}
    calibrated = {one.round: one for one in campaign.calibration}
    told = []
    for stage in campaign.stages:
        name = stage.name
        labeled = next((w for w in campaign.work if (w.stage, w.step) == (name, "label")), None)
        sentences = [
            _labeled(labeled),
            _calibrated(calibrated.get(name)),
            _ruled(ruled.get(name)),
            _trained(stage),
            _scored(cards.get(name), promotions.get(name)),
        ]
        told.append((name, [sentence for sentence in sentences if sentence]))
    return [*told, ("the end", [_end(campaign)])]


def _labeled(work: Work | None) -> str:
    if work is None:
        return ""
    told = f"The generalist was asked about {_many(work.cases or 0, 'unlabeled case')}"
    if work.failed:
        told += f", of which {work.failed} failed"
    if work.hit_share:
        told += f"; {work.hit_share:.0%} of slices it had seen before"
    return f"{told}."


def _calibrated(one: Calibrated | None) -> str:
    if one is None:
        return ""
    patients = _many(one.patients, "labeled patient")
    if one.error is None:
        return f"Uncalibrated: {patients} cannot tell how good answers are, so agreement and rules decided."
    told = f"On {patients} Dice was predicted with a mean error of {one.error:.3f}"
    bounds = f"{_many(one.bounded, 'structure')} had a bound at a level of {1 - one.alpha:.0%}"
    return f"{told}; {bounds}."


def _ruled(row: Curation | None) -> str:
    if row is None or not row.total:
        return ""
    told = f"Of {row.total} answers {row.accepted} were accepted ({row.accepted / row.total:.0%})"
    others = {
        "half believed": row.partial,
        "rejected": row.rejected,
        "absent": row.absent,
        "failed": row.failed,
    }
    told += "".join(f", {count} {what}" for what, count in others.items() if count)
    if row.true_dice is not None:
        told += f". Against hidden labels accepted ones have a Dice of {row.true_dice:.3f}"
        if row.rejected_dice is not None:
            gained = row.true_dice - row.rejected_dice
            told += f", others of {row.rejected_dice:.3f}: {100 * gained:+.1f} points"
    return f"{told}."


def _trained(stage: Stage) -> str:
    from_what = [
        _many(count, what)
        for count, what in ((stage.annotated, "annotated case"), (stage.pseudo, "pseudo-label"))
        if count
    ]
    return f"A specialist learned from {' and '.join(from_what)} ({stage.method})." if from_what else ""


def _scored(card: Scorecard | None, promotion: Promotion | None) -> str:
    if card is None or not math.isfinite(card.summaries[-1].dice):
        return ""
    mean = card.summaries[-1]
    told = f"Its mean Dice is {interval(mean)} on {_many(mean.cases, f'{card.role.value} case')}"
    if promotion is None:
        return f"{told}."
    if promotion.decision is Decision.PROMOTE:
        return f"{told}: it became the champion."
    against = "; ".join(reason.told for reason in promotion.reasons if not reason.passed)
    return f"{told}: it was held back ({against})."


def _end(campaign: Campaign) -> str:
    if campaign.stopped:
        return f"It stopped early: {campaign.stopped}."
    if campaign.champion is None:
        return "Nobody is champion yet."
    last = campaign.stages[-1].name if campaign.stages else campaign.champion
    if last == campaign.champion:
        return f"The last stage, {last}, is the champion."
    return f"No stage after {campaign.champion} was better, so it stays the champion."


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
