"""A whole campaign, from an archive and a few labels to a champion and a report.

    labels-only: train -> evaluate -> promote
    each round:  label -> curate -> train -> evaluate -> promote
                 (a method that learns from no pseudo-labels does without the first two; where
                 labeled cases decide what is believed, they calibrate before it curates)
    after each:  report, and MLflow

The test split is scored when a person asks for it (`tutelage evaluate --split test`), and never before.

Rounds end early when several in a row bring no new champion: see `stopping`.

What a manifest vouches for is not done again, so running twice costs seconds and a killed
run goes on where it was.
"""

from tutelage.errors import WorkspaceError
from tutelage.records import Role
from tutelage.rounds import stopping
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.labeled import Labeled, told
from tutelage.rounds.progress import Reporter
from tutelage.rounds.results import Finished, finish, tell, trained
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.steps import STEPS, Manifest, making_labels, names, score, test, truth
from tutelage.rounds.workspace import LABELS_ONLY, stage_name

OF_LABELS_ONLY = ("train", "evaluate", "promote", "test")
"""Steps of the stage before round 0: there is no specialist yet that could prompt."""


def run(settings: RunSettings, reporter: Reporter, retry_errors: bool = False) -> Finished:
    """Do everything that is not done yet."""
    with opened(settings, reporter, retry_errors) as campaign:
        manifests: list[Manifest] = []
        for number in range(LABELS_ONLY, campaign.settings.rounds):
            if why := stopping.why(campaign, number):
                campaign.reporter.say(f"{stage_name(number)} does not begin: {why}")
                break
            done = stage(campaign, number)
            manifests += done
            if number + 1 < campaign.settings.rounds and any(manifest.get("fresh") for manifest in done):
                tell(campaign)  # a long campaign can be watched, and followed by who serves its champion
        return finish(campaign, manifests)


def stage(campaign: Campaign, number: int) -> list[Manifest]:
    """Do the steps of one stage."""
    campaign = campaign.at(number)
    return [STEPS[name](campaign, number) for name in names(campaign.settings, number)]


def step(
    settings: RunSettings, reporter: Reporter, name: str, number: int, retry_errors: bool = False
) -> Manifest:
    """Do one step of one stage; what it needs must be finished."""
    with opened(settings, reporter, retry_errors) as campaign:
        return {**STEPS, "test": test}[name](campaign.at(number), number)


def label(settings: RunSettings, reporter: Reporter, number: int, retry_errors: bool = False) -> Labeled:
    """Make the pseudo-labels of one round, and measure them where labels were hidden."""
    with opened(settings, reporter, retry_errors) as campaign:
        campaign = campaign.at(number)
        labeled, *_ = [STEPS[name](campaign, number) for name in making_labels(campaign.settings)]
        truth(campaign, number)
        return told(campaign, number, labeled)


def evaluate(settings: RunSettings, reporter: Reporter, role: Role) -> Finished:
    """Score the specialists of all stages on one split, and tell what the campaign comes to with that.

    Raises:
        WorkspaceError: no stage is finished.
    """
    with opened(settings, reporter) as campaign:
        stages = trained(campaign)
        if not stages:
            raise WorkspaceError(
                f"{campaign.workspace.root} has no finished stage to score; `tutelage run` makes them, and "
                "--round scores one that is trained and not judged yet"
            )
        return finish(campaign, [score(campaign.at(number), number, role) for number in stages])


def report(settings: RunSettings, reporter: Reporter) -> Finished:
    """Write the page about what there is, without training more."""
    with opened(settings, reporter) as campaign:
        return finish(campaign, [])


def plan(settings: RunSettings) -> list[str]:
    """Name the steps of a run in order, for a dry run."""
    return [
        f"{stage_name(number)} {name}"
        for number in range(LABELS_ONLY, settings.rounds)
        for name in names(settings, number)
    ] + ["report"]
