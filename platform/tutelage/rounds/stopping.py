"""When further rounds are not worth their time: several in a row without a new champion.

It reads what was decided and keeps nothing of its own, so that another patience, or a decision that
comes out otherwise, has rounds go on where they stopped. Labels that people have corrected are always
learned from, and a round that was finished once is kept up to date like any other.
"""

from tutelage.records import Decision
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import read_manifest, stage_name


def why(campaign: Campaign, number: int) -> str | None:
    """Return why a stage does not begin; None if it does."""
    patience = campaign.settings.promotion.patience
    before = range(number - patience, number)
    if not patience or before.start < 0 or not all(_held(campaign, earlier) for earlier in before):
        return None
    last = campaign.corrections.last_stage if campaign.corrections else None
    if (last is not None and number <= last) or _finished(campaign, number):
        return None
    names = " and ".join(filter(None, [", ".join(map(stage_name, before[:-1])), stage_name(before[-1])]))
    return f"{names} brought no new champion, and promotion.patience is {patience}"


def _held(campaign: Campaign, number: int) -> bool:
    manifest = read_manifest(campaign.workspace.stage(number), "promote")
    return manifest is not None and manifest["outputs"]["decision"] == Decision.HOLD.value


def _finished(campaign: Campaign, number: int) -> bool:
    return read_manifest(campaign.workspace.stage(number), "promote") is not None
