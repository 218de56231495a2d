"""What a campaign comes to: every specialist tested once, all of it on record and on one page."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tutelage.errors import FAILED, PARTIAL
from tutelage.records import Role, Scorecard
from tutelage.rounds import recording, reporting, steps
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint


@dataclass(frozen=True)
class Finished:
    """What a run comes to."""

    workspace: str
    champion: str | None
    """Name of the champion's stage."""
    specialist: str | None
    """Folder of the champion."""
    test: tuple[tuple[str, Scorecard], ...]
    """Test scorecards by stage, in order."""
    failed: int
    """Cases that failed, over all steps."""
    quarantined: int
    """Files of the archive that could not be used."""
    report: str
    tracking: str | None
    """Command that shows the MLflow record."""
    steps_done: int
    """Steps that really ran; 0 means that everything had been done before."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command that ran it."""
        if self.champion is None:
            return FAILED
        return PARTIAL if self.failed or self.quarantined else 0


def finish(campaign: Campaign, manifests: Sequence[steps.Manifest]) -> Finished:
    """Test what was trained, measure what was believed, record and report."""
    done = list(manifests)
    stages = trained(campaign)
    for number in stages:
        if number != LABELS_ONLY:
            done += [manifest for manifest in [steps.truth(campaign, number)] if manifest]
        done.append(steps.score(campaign, number, Role.TEST))
    champion = steps.champion_before(campaign, max(stages, default=LABELS_ONLY) + 1)
    done += _told(campaign, stages, champion)
    return Finished(
        workspace=str(campaign.workspace.root),
        champion=None if champion is None else stage_name(champion),
        specialist=None if champion is None else str(campaign.workspace.specialist(champion)),
        test=tuple((stage_name(n), steps.read_scorecard(campaign, n, Role.TEST)) for n in stages),
        failed=sum(manifest["outputs"].get("failed", 0) for manifest in done),
        quarantined=len(campaign.catalog.quarantined),
        report=str(campaign.workspace.report),
        tracking=recording.command(campaign),
        steps_done=sum(bool(manifest.get("fresh")) for manifest in done),
    )


def trained(campaign: Campaign) -> list[int]:
    """Return the stages that have been through promotion."""
    numbers = range(LABELS_ONLY, campaign.settings.rounds)
    return [n for n in numbers if read_manifest(campaign.workspace.stage(n), "promote")]


def _told(campaign: Campaign, stages: Sequence[int], champion: int | None) -> list[steps.Manifest]:
    """Record and report, unless both tell exactly this already."""
    step = Step(
        campaign.workspace.root,
        "report",
        {"name": campaign.settings.name, "tracking": campaign.settings.tracking.model_dump(mode="json")},
        {
            "results": fingerprint(
                [_result(campaign, number) for number in stages],
                [asdict(bad) for bad in campaign.catalog.quarantined],
            )
        },
    )
    if done := step.manifest():
        campaign.reporter.say("report: done before")
        return [done]
    started = time.monotonic()
    step.begin()
    campaign.workspace.report.write_text(reporting.page(campaign, stages, champion))
    recording.record(campaign, stages, champion)
    return [step.finish(started, {"report": "report.html"})]


def _result(campaign: Campaign, number: int) -> list[str]:
    """Everything about a stage that the page shows."""
    cards = [steps.read_scorecard(campaign, number, role) for role in (Role.VALIDATION, Role.TEST)]
    promotion = read_manifest(campaign.workspace.stage(number), "promote") or {}
    return [json.dumps(asdict(card), sort_keys=True, default=str) for card in cards] + [
        json.dumps(promotion.get("outputs"), sort_keys=True, default=str)
    ]
