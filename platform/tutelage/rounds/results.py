"""What a campaign comes to, on record and on one page; test scores where a person asked for them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tutelage.errors import FAILED, PARTIAL
from tutelage.records import Role, Scorecard
from tutelage.rounds import recording, reporting, steps
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.champion import champion_after, crown_rightly
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint
from tutelage.tracking.store import fit_to_record

_FORM = 5
"""Changes when page and charts tell something else of the same results: they are then written anew."""


@dataclass(frozen=True)
class Finished:
    """What a run comes to."""

    workspace: str
    champion: str | None
    """Name of the champion's stage."""
    specialist: str | None
    """Folder of the champion."""
    validation: tuple[tuple[str, Scorecard], ...]
    """Validation scorecards by stage, in order."""
    test: tuple[tuple[str, Scorecard], ...]
    """The same on the test split, of stages that have been tested."""
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
    """Record and report, and say what it comes to."""
    done = [*manifests, *tell(campaign)]
    stages = trained(campaign)
    champion = champion_after(campaign.workspace, max(stages, default=LABELS_ONLY))
    return Finished(
        workspace=str(campaign.workspace.root),
        champion=None if champion is None else stage_name(champion),
        specialist=None if champion is None else str(campaign.workspace.specialist(champion)),
        validation=steps.scorecards(campaign, stages, Role.VALIDATION),
        test=steps.scorecards(campaign, stages, Role.TEST),
        failed=sum(manifest["outputs"].get("failed", 0) for manifest in done),
        quarantined=len(campaign.catalog.quarantined),
        stopped=reporting.stopped(campaign, stages),
        report=str(campaign.workspace.report),
        tracking=recording.command(campaign),
        steps_done=sum(bool(manifest.get("fresh")) for manifest in done),
    )


def tell(campaign: Campaign) -> list[steps.Manifest]:
    """Measure what was believed where hidden labels tell, and bring champion, page and record up to date."""
    stages = trained(campaign)
    crown_rightly(campaign.workspace)  # a kill or a damaged file may have come between
    measured = [steps.truth(campaign.at(number), number) for number in stages if number != LABELS_ONLY]
    told = _told(campaign, stages, champion_after(campaign.workspace, max(stages, default=LABELS_ONLY)))
    return [*(manifest for manifest in measured if manifest), *told]


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
    told = fit_to_record({"name": campaign.settings.name, "tracking": tracking.model_dump(mode="json")})
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
    manifests = steps.done(campaign, number)
    cards = [steps.scorecards(campaign, [number], role) for role in (Role.VALIDATION, Role.TEST)]
    scored = [asdict(card) for named in cards for _, card in named]
    return json.dumps([manifests, scored], sort_keys=True, default=str)
