"""What is noted about unlabeled cases: gathered from the archive's metadata, then asked about.

It decides which cases are asked about, those whose answers curation will judge and of which
more is noted than the modality, and where notes and answers lie. Who the patient is has been
left out before the first file is written.
"""

import datetime

from tutelage.archive import notes
from tutelage.errors import SettingsError
from tutelage.priors import cases
from tutelage.priors.base import TextModel
from tutelage.priors.recorded import Replies
from tutelage.records import Role
from tutelage.rounds.asking_priors import Who, model_of
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.storage import Place


def ask(settings: RunSettings, reporter: Reporter, who: Who) -> tuple[cases.Asked, Place]:
    """Ask about the cases of an archive; return what came of it and where the answers are.

    Raises:
        SettingsError: nobody to ask was named, or more than one.
        PriorsError: the model cannot be had.
    """
    if who.recorded is not None:
        raise SettingsError(
            "--recorded answers about structures and knows no cases; give --model or --endpoint with --cases"
        )
    model = model_of(settings, who)
    try:
        with opened(settings, reporter) as campaign:
            return ask_about_cases(campaign, model), campaign.workspace.root / "priors" / "cases.parquet"
    finally:
        model.close()


def ask_about_cases(campaign: Campaign, model: TextModel) -> cases.Asked:
    """Ask a model which structures each unlabeled case has, and keep the answers for curation.

    Raises:
        PriorsError: the model cannot be had; replies so far are kept.
    """
    settings, workspace = campaign.settings, campaign.workspace
    archive = settings.archive
    root = workspace.archive if archive.importer == "synthetic" else Place.of(archive.root or ".")
    unlabeled = campaign.catalog.of(Role.UNLABELED)
    place = workspace.catalog / "notes.parquet"
    gathered = notes.write(archive, root, unlabeled, place)
    campaign.reporter.say(f"notes     of {gathered.told} of {len(unlabeled)} unlabeled cases: {place}")
    for bad in gathered.unreadable:
        campaign.reporter.say(f"  no notes: {bad.address}: {bad.reason}")
    with campaign.reporter.task("case priors", max(1, gathered.told)) as advance:
        asked = cases.ask(
            model,
            (note for note in notes.read(place) if set(note.fields) - {"modality"}),
            campaign.catalog.structures,
            settings.priors.asking,
            Replies(workspace.root / "priors" / "replies"),
            workspace.root / "priors" / "cases.parquet",
            datetime.date.today().isoformat(),
            advance,
        )
    campaign.reporter.say(
        f"cases     {asked.cases} asked about in {asked.questions} questions: {asked.answered} answered now, "
        f"{asked.kept} before, {asked.failed} cases without a usable answer"
    )
    return asked
