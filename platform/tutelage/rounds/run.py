"""A whole campaign, from an archive and a few labels to a champion and a report.

    labels-only: train -> evaluate -> promote
    each round:  label -> curate -> train -> evaluate -> promote
                 (a method that learns from no pseudo-labels does without the first two)
    at the end:  test every specialist once, report

What a manifest vouches for is not done again, so running twice costs seconds and a killed
run goes on where it was.
"""

from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.labeled import Labeled, told
from tutelage.rounds.progress import Reporter
from tutelage.rounds.results import Finished, finish
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.steps import STEPS, Manifest, names, truth
from tutelage.rounds.workspace import LABELS_ONLY, stage_name

OF_LABELS_ONLY = ("train", "evaluate", "promote")
"""Steps of the stage before round 0: there is no specialist yet that could prompt."""


def run(settings: RunSettings, reporter: Reporter, retry_errors: bool = False) -> Finished:
    """Do everything that is not done yet."""
    with opened(settings, reporter, retry_errors) as campaign:
        manifests: list[Manifest] = []
        for number in range(LABELS_ONLY, settings.rounds):
            manifests += stage(campaign, number)
        return finish(campaign, manifests)


def stage(campaign: Campaign, number: int) -> list[Manifest]:
    """Do the steps of one stage."""
    return [STEPS[name](campaign, number) for name in names(campaign.settings.train.method, number)]


def step(
    settings: RunSettings, reporter: Reporter, name: str, number: int, retry_errors: bool = False
) -> Manifest:
    """Do one step of one stage; what it needs must be finished."""
    with opened(settings, reporter, retry_errors) as campaign:
        return STEPS[name](campaign, number)


def label(settings: RunSettings, reporter: Reporter, number: int, retry_errors: bool = False) -> Labeled:
    """Make the pseudo-labels of one round, and measure them where labels were hidden."""
    with opened(settings, reporter, retry_errors) as campaign:
        labeled = STEPS["label"](campaign, number)
        STEPS["curate"](campaign, number)
        truth(campaign, number)
        return told(campaign, number, labeled)


def report(settings: RunSettings, reporter: Reporter) -> Finished:
    """Test what has been trained so far and write the page, without training more."""
    with opened(settings, reporter) as campaign:
        return finish(campaign, [])


def plan(settings: RunSettings) -> list[str]:
    """Name the steps of a run in order, for a dry run."""
    return [
        f"{stage_name(number)} {name}"
        for number in range(LABELS_ONLY, settings.rounds)
        for name in names(settings.train.method, number)
    ] + ["test", "report"]
