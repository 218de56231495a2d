"""Putting a campaign on record in MLflow: scores, curves, the page, and every specialist as a version."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tutelage.records import Role
from tutelage.rounds import steps
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import read_manifest, stage_name
from tutelage.tracking.store import ui_command

if TYPE_CHECKING:
    from tutelage.tracking.campaign import Tracker


def command(campaign: Campaign) -> str | None:
    """Return the command that shows the record, or None if there is none."""
    settings = campaign.settings.tracking
    return ui_command(settings, campaign.workspace.root) if settings.enabled else None


def record(campaign: Campaign, stages: Sequence[int], champion: int | None) -> None:
    """Log everything that is not logged yet, and point the champion's alias at the champion."""
    settings = campaign.settings
    if not settings.tracking.enabled:
        return
    from tutelage.tracking.campaign import Tracker

    campaign.reporter.say("recording in MLflow")
    parameters = settings.model_dump(mode="json")
    with Tracker(settings.tracking, campaign.workspace.root, settings.name, parameters) as tracker:
        for number in stages:
            version = _stage(campaign, tracker, number)
            if number == champion:
                tracker.registry.promote(version)
        for place in (campaign.workspace.settings, campaign.workspace.report):
            tracker.file(tracker.run, place)


def losses(campaign: Campaign, number: int) -> list[tuple[int, float]]:
    """Return the training loss of a stage by step."""
    place = campaign.workspace.stage(number) / "losses.json"
    if not place.exists():
        return []
    return [(int(row["step"]), float(row["loss"])) for row in json.loads(place.read_text())]


def labeling(campaign: Campaign, number: int) -> dict[str, float]:
    """Return how labeling and curation of a stage went, in numbers; nothing before round 0."""
    stage = campaign.workspace.stage(number)
    labeled, curated = (read_manifest(stage, name) for name in ("label", "curate"))
    if labeled is None or curated is None:
        return {}
    told, rulings = labeled["outputs"], curated["outputs"]["rulings"]
    slices = told["slices_embedded"] + told["cache_hits"]
    numbers = {
        "volumes": told["done"],
        "failed": told["failed"],
        "volumes_per_hour": told["volumes_per_hour"],
        "cache_hit_share": told["cache_hits"] / slices if slices else 0.0,
        "accepted_share": rulings.get("accept", 0) / max(1, sum(rulings.values())),
        "quarantined": len(campaign.catalog.quarantined),
    }
    return {f"label/{name}": float(value) for name, value in numbers.items()}


def _stage(campaign: Campaign, tracker: "Tracker", number: int) -> str:
    """Log one stage and return the number of its specialist's version."""
    run = tracker.stage(stage_name(number))
    for role in (Role.VALIDATION, Role.TEST):
        tracker.scorecard(run, steps.read_scorecard(campaign, number, role))
    tracker.metrics(run, "losses", {"train/loss": losses(campaign, number)})
    tracker.metrics(
        run, "labeling", {name: [(0, value)] for name, value in labeling(campaign, number).items()}
    )
    promotion = read_manifest(campaign.workspace.stage(number), "promote") or {"outputs": {}}
    decision = str(promotion["outputs"].get("decision", ""))
    trained = read_manifest(campaign.workspace.stage(number), "train") or {"outputs": {}}
    digest = str(trained["outputs"].get("specialist", ""))
    tracker.tags(run, {"specialist": digest, "decision": decision})
    tags = {"stage": stage_name(number), "decision": decision, "campaign": campaign.settings.name}
    version = tracker.register(run, campaign.workspace.specialist(number), digest, tags)
    tracker.end(run)
    return version.version
