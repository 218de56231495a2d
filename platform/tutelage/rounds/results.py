"""What a campaign comes to: every specialist tested once, all of it on record and on one page."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tutelage.errors import FAILED, PARTIAL
from tutelage.records import Role, Scorecard
from tutelage.rounds import recording, reporting, steps
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint

_FORM = 4
"""Changes when page and charts tell something else of the same results: they are then written anew."""


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
    stopped: str | None
    """Why rounds ended before the last one that was asked for."""
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
            done += [manifest for manifest in [steps.truth(campaign.at(number), number)] if manifest]
        done.append(steps.tested(campaign, number))
    champion = steps.champion_before(campaign, max(stages, default=LABELS_ONLY) + 1)
    done += _told(campaign, stages, champion)
    return Finished(
        workspace=str(campaign.workspace.root),
        champion=None if champion is None else stage_name(champion),
        specialist=None if champion is None else str(campaign.workspace.specialist(champion)),
        test=tuple((stage_name(n), steps.read_scorecard(campaign, n, Role.TEST)) for n in stages),
        failed=sum(manifest["outputs"].get("failed", 0) for manifest in done),
        quarantined=len(campaign.catalog.quarantined),
        stopped=reporting.stopped(campaign, stages),
        report=str(campaign.workspace.report),
        tracking=recording.command(campaign),
        steps_done=sum(bool(manifest.get("fresh")) for manifest in done),
    )


def trained(campaign: Campaign) -> list[int]:
    """Return the stages that have been through promotion."""
    numbers = range(LABELS_ONLY, campaign.settings.rounds)
    return [n for n in numbers if read_manifest(campaign.workspace.stage(n), "promote")]


def _told(campaign: Campaign, stages: Sequence[int], champion: int | None) -> list[steps.Manifest]:
    """Write the page, and put everything on record, unless both tell exactly this already."""
    results = fingerprint(
        [_result(campaign, number) for number in stages],
        [asdict(bad) for bad in campaign.catalog.quarantined],
        reporting.stopped(campaign, stages),
        _FORM,
    )
    tracking = campaign.settings.tracking
    told = {"name": campaign.settings.name, "tracking": tracking.model_dump(mode="json")}
    root = campaign.workspace.root

    def write() -> bool:
        reporting.write(campaign, stages, champion)
        return True

    done = [_once(campaign, Step(root, "report", told, {"results": results}), write)]
    if tracking.enabled:
        step = Step(root, "record", told, {"results": results})
        done.append(_once(campaign, step, lambda: recording.record(campaign, stages, champion)))
    return [manifest for manifest in done if manifest]


def _once(campaign: Campaign, step: Step, work: Callable[[], bool]) -> steps.Manifest | None:
    """Do what no manifest vouches for; if it could not be done, nothing vouches for it after either."""
    if done := step.manifest():
        campaign.reporter.say(f"{step.name}: done before")
        return done
    started = time.monotonic()
    step.begin()
    return step.finish(started, {}) if work() else None


def _result(campaign: Campaign, number: int) -> str:
    """Everything about a stage that the page shows."""
    stage = campaign.workspace.stage(number)
    manifests = {name: read_manifest(stage, name) for name in (*steps.STEPS, "truth", "test")}
    cards = [asdict(steps.read_scorecard(campaign, number, role)) for role in (Role.VALIDATION, Role.TEST)]
    return json.dumps([manifests, cards], sort_keys=True, default=str)
