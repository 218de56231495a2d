"""Putting a campaign on record in MLflow: data, scores, curves, the page, every specialist as a version."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.errors import TrackingError
from tutelage.evaluation.believing import EVERY, curation_of
from tutelage.records import Role
from tutelage.rounds import counting, showing, steps, telling
from tutelage.rounds.campaign import Campaign, record_waits
from tutelage.rounds.packing import packing
from tutelage.rounds.workspace import LABELS_ONLY, read_manifest, stage_name
from tutelage.settings import fingerprint
from tutelage.storage import Place
from tutelage.tracking.journal import Journal
from tutelage.tracking.store import silence, ui_command

if TYPE_CHECKING:
    from tutelage.tracking.campaign import Tracker

_FOR = {
    Role.GOLD: "training",
    Role.UNLABELED: "training",
    Role.VALIDATION: "validation",
    Role.TEST: "testing",
}
"""What MLflow calls the use of data."""


def command(campaign: Campaign) -> str | None:
    """Return the command that shows the record, or None if there is none."""
    settings = campaign.settings.tracking
    return ui_command(settings, campaign.workspace.root) if settings.enabled else None


def record(campaign: Campaign, stages: Sequence[int], champion: int | None) -> bool:
    """Log everything that is not logged yet, and point aliases at the champion and at the newest stage.

    Returns whether all of it is on record. MLflow that is gone, slow or refuses fails no campaign.
    """
    settings = campaign.settings.tracking
    campaign.reporter.say("recording in MLflow")
    try:
        if (reason := silence(settings, campaign.workspace.root)) is not None:
            raise TrackingError(reason)
        with telling.tracker_of(campaign) as tracker:
            for number in stages:
                version = _stage(campaign.at(number), tracker, number)
                if number == champion:
                    tracker.registry.promote(version)
                if number == max(stages):
                    tracker.registry.challenge(version)
            workspace, last = campaign.workspace, campaign.at(max(stages, default=LABELS_ONLY))
            for role in Role:
                _cases(last, tracker, tracker.run, role)
            _files(tracker, tracker.run, workspace.settings, workspace.report, workspace.ledger)
            _charts(tracker, tracker.run, workspace.root)
    except TrackingError as error:
        record_waits(campaign.reporter, str(error))
        return False
    return True


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
    numbers |= _quality(campaign, number)
    return {f"label/{name}": float(value) for name, value in numbers.items()}


def _quality(campaign: Campaign, number: int) -> dict[str, float]:
    """Return how good answers really were, where hidden labels tell: for people, no decision reads it."""
    tallies, held = counting.counted(campaign, number)
    numbers: dict[str, float] = {}
    for row in curation_of(tallies):
        if row.structure == EVERY:
            numbers |= _dice(row.true_dice, row.rejected_dice)
    if held.bounded:
        numbers["held_bound_share"] = held.covered / held.bounded
    return numbers


def _dice(accepted: float | None, other: float | None) -> dict[str, float]:
    """Return mean true Dice of accepted and of other answers, and what curation gains by the difference."""
    told = {"accepted_true_dice": accepted, "other_true_dice": other}
    if accepted is not None and other is not None:
        told["true_dice_difference"] = accepted - other
    return {name: value for name, value in told.items() if value is not None}


def seconds(campaign: Campaign, number: int) -> dict[str, float]:
    """Return how long the steps of a stage took when they were last done."""
    done = steps.done(campaign, number)
    return {f"seconds/{name}": float(manifest["seconds"]) for name, manifest in done.items()}


def _stage(campaign: Campaign, tracker: "Tracker", number: int) -> str:
    """Log one stage, of a campaign as it was then, and return the number of its specialist's version."""
    from tutelage.tracking.streaming import ship

    stage = campaign.workspace.stage(number)
    trained = read_manifest(stage, "train") or {"fingerprint": "", "inputs": {}, "outputs": {}}
    run = tracker.stage(stage_name(number), trained["fingerprint"])
    ship((tracker, run), Journal(telling.journal_of(stage)))
    scored = (Role.VALIDATION, *((Role.TEST,) if steps.tested(campaign, number) else ()))
    for role in scored:
        tracker.scorecard(run, steps.read_scorecard(campaign, number, role))
    for what, numbers in (("labeling", labeling), ("seconds", seconds)):
        curves = {name: [(0, value)] for name, value in numbers(campaign, number).items()}
        tracker.metrics(run, what, curves)
    for role in (Role.GOLD, *((Role.UNLABELED,) if number != LABELS_ONLY else ()), *scored):
        _cases(campaign, tracker, run, role)
    if pseudo := trained["outputs"].get("pseudo_labels"):
        digest = trained["inputs"]["labels"]
        tracker.dataset(run, "pseudo-labels", digest, stage / "labels", _FOR[Role.UNLABELED], pseudo)
    cards = [stage / f"scorecard.{role.value}.json" for role in scored]
    _files(tracker, run, stage / "training.json", *cards)
    _charts(tracker, run, stage)
    promotion = read_manifest(stage, "promote") or {"outputs": {}}
    decision = str(promotion["outputs"].get("decision", ""))
    digest = str(trained["outputs"].get("specialist", ""))
    tracker.tags(run, {"specialist": digest, "decision": decision})
    _steps(campaign, tracker, run, number)
    folder, tags = campaign.workspace.specialist(number), _tags(campaign, number, decision, trained["inputs"])
    version = tracker.register(run, folder, digest, tags, packing(folder))
    if version.tags | tags != version.tags:  # known from before, and something was decided or measured anew
        tracker.registry.describe(version.version, tags)
    tracker.end(run)
    return version.version


def _steps(campaign: Campaign, tracker: "Tracker", run: str, number: int) -> None:
    """Log what the manifests of a stage tell of its steps."""
    from tutelage.tracking.campaign import Done

    for name, manifest in steps.done(campaign, number).items():
        facts, numbers = _told(manifest["outputs"])
        facts |= {f"input.{key}": digest for key, digest in manifest["inputs"].items()}
        _, ended_ns = (campaign.workspace.stage(number) / f"{name}.manifest.json").stamp()
        tracker.step(
            run,
            Done(
                name, manifest["fingerprint"], manifest["settings"], facts, numbers,
                manifest["seconds"], ended_ns // 10**6,
            ),
        )  # fmt: skip


def _told(outputs: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, str], dict[str, float]]:
    """Return what a step says in words, and in numbers; `rulings.accept` is what it says of rulings."""
    facts: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for key, value in outputs.items():
        if isinstance(value, Mapping):
            words, counts = _told(value, f"{prefix}{key}.")
            facts, numbers = facts | words, numbers | counts
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = float(value)
        elif isinstance(value, str):
            facts[f"{prefix}{key}"] = value
    return facts, numbers


def _tags(campaign: Campaign, number: int, decision: str, learned_from: Mapping[str, str]) -> dict[str, str]:
    """What is told about a specialist's version; `data` stands for everything its training learned from."""
    card = steps.read_scorecard(campaign, number, Role.VALIDATION)
    return {
        "stage": stage_name(number),
        "round": str(number),
        "campaign": campaign.settings.name,
        "data": fingerprint(learned_from),
        "dice": f"{card.summaries[-1].dice:.4f}",
        "decision": decision,
    }


def _cases(campaign: Campaign, tracker: "Tracker", run: str, role: Role) -> None:
    """Note the cases of a role as an input."""
    if cases := campaign.catalog.of(role):
        place = campaign.workspace.catalog
        tracker.dataset(run, role.value, cases.identity(), place, _FOR[role], len(cases))


def _charts(tracker: "Tracker", run: str, folder: Place) -> None:
    """Keep copies of what the report has drawn."""
    for chart in showing.charts_of(folder).files():
        tracker.file(run, chart, "charts")


def _files(tracker: "Tracker", run: str, *places: Place) -> None:
    """Keep copies of what there is."""
    for place in places:
        if place.exists():
            tracker.file(run, place)
