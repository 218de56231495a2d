"""Text for a campaign: which shelf it has, and the vectors of what is written there.

Vectors are made once and again when shelf, structures or settings have changed; a specialist
that was conditioned on them names their fingerprint.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.priors import shelf as shelves
from tutelage.priors import vectors as texts
from tutelage.priors.claims import weighed
from tutelage.priors.settings import PriorsSettings
from tutelage.records import Outcome, Prior, Role
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import Workspace
from tutelage.settings import fingerprint
from tutelage.storage import Place


def shelf_of(settings: PriorsSettings, workspace: Workspace) -> Place | None:
    """Return where the priors of a campaign are: what settings name, else what `tutelage priors` wrote."""
    if settings.shelf:
        return Place.of(settings.shelf)
    own = workspace.root / "priors" / "shelf.yaml"
    return own if own.exists() else None


@dataclass(frozen=True)
class Known:
    """What is known about a campaign's patients besides their images."""

    priors: Mapping[str, Prior]
    """By structure."""

    cases: str | None
    """Address of what notes say of single cases, if anybody asked."""

    fingerprint: str
    """Of all of it."""


def known(campaign: Campaign) -> Known:
    """Return what curation may hold against a mask."""
    # What a model wrote is for a person to read first: only a shelf that settings name is held against masks.
    named = campaign.settings.priors.shelf
    shelf = shelves.opened(Place.of(named)).priors if named else {}
    cases = campaign.workspace.root / "priors" / "cases.parquet"
    noted = cases.exists()
    parts: list[object] = [{name: asdict(prior) for name, prior in shelf.items()}]
    if noted:
        parts.append(hashlib.sha256(cases.read_bytes()).hexdigest())
    return Known(shelf, str(cases) if noted else None, fingerprint(*parts))


def vectors_of(campaign: Campaign) -> tuple[str, str]:
    """Return where the vectors of a campaign's structures are, and their fingerprint; make them if need be.

    Raises:
        SettingsError: there is no shelf, it lacks a text, or the encoder cannot be had.
    """
    settings, structures = campaign.settings.priors, campaign.catalog.structures
    place = campaign.workspace.root / "priors" / "vectors.parquet"
    shelf, sources = _shelf(campaign)
    if place.exists():
        try:
            made = texts.read(place)
        except WorkspaceError as error:
            campaign.reporter.say(f"vectors of priors are made anew: {error}")
        else:
            if texts.still_hold(made, shelf, structures, settings.vectors, sources):
                return str(place), made.fingerprint
    made = texts.make(shelf, structures, settings.vectors, sources)
    texts.write(place, made)
    campaign.reporter.say(f"vectors of {len(structures)} structures by {made.encoder}: {place}")
    return str(place), made.fingerprint


def _shelf(campaign: Campaign) -> tuple[Mapping[str, Prior], Mapping[str, Mapping[str, object]]]:
    """What is known by structure, and who said it."""
    place = shelf_of(campaign.settings.priors, campaign.workspace)
    if place is None:
        if campaign.settings.priors.vectors.encoder in texts.READS_NOTHING:
            return {}, {}
        raise SettingsError(
            "there is no shelf of priors to make vectors of; set priors.shelf, or ask a model with "
            "`tutelage priors --model`, or set priors.vectors.encoder to orthogonal, which reads nothing"
        )
    shelf = shelves.opened(place)
    asked = {name: asked.model_dump(mode="json", exclude={"claims"}) for name, asked in shelf.asked.items()}
    return shelf.priors, asked


def check(campaign: Campaign, shelf: shelves.Shelf) -> shelves.Shelf:
    """Hold a shelf against the annotated cases: what they contradict is struck, weighed down or marked."""
    from tutelage.casework.claims import ClaimJob, Claims, findings_of

    structures = campaign.catalog.structures
    worker = Claims(ClaimJob(shelf.priors, structures))
    rows = [worker(case) for case in campaign.catalog.of(Role.GOLD)]
    for row in rows:
        if row["outcome"] == Outcome.FAILED.value:
            campaign.reporter.say(f"  {row['case']} says nothing about claims: {row['reason']}")
    checked = weighed(shelf.priors, [findings_of(row) for row in rows])
    for name, prior in checked.items():
        for claim, evidence in prior.struck.items():
            campaign.reporter.say(f"struck    {name} {claim}: {evidence}")
        for claim, evidence in prior.contradicted.items():
            campaign.reporter.say(f"doubtful  {name} {claim}: {evidence}")
    return shelf.with_priors(checked)
