"""Text for a campaign: which shelf it has, what annotated cases leave of it, and vectors of its texts.

Annotated cases are read once for the same shelf and the same labels; no other label is. Vectors are
made once and again when shelf, structures or settings have changed; a specialist that was
conditioned on them names their fingerprint.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from tutelage.curation.anatomy import believed
from tutelage.errors import SettingsError, WorkspaceError
from tutelage.priors import shelf as shelves
from tutelage.priors import vectors as texts
from tutelage.priors.claims import Finding, at_most, weighed
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

    noted: str = ""
    """Digest of what is at `cases`."""


def known(campaign: Campaign) -> Known:
    """Return what curation may hold against a mask.

    Raises:
        SettingsError: the shelf cannot be read, or contradicts itself.
    """
    # What a model wrote is for a person to read first: only a shelf that settings name is held against masks.
    named = campaign.settings.priors.shelf
    shelf: Mapping[str, Prior] = shelves.opened(Place.of(named)).priors if named else {}
    if shelf and campaign.settings.priors.check:
        shelf = _checked(campaign, shelf)
    cases = campaign.workspace.root / "priors" / "cases.parquet"
    noted = cases.exists()
    parts: list[object] = [{name: asdict(prior) for name, prior in shelf.items()}]
    digest = hashlib.sha256(cases.read_bytes()).hexdigest() if noted else ""
    parts += [digest] if noted else []
    return Known(shelf, str(cases) if noted else None, fingerprint(*parts), digest)


def reviewed(settings: PriorsSettings, workspace: Workspace) -> Mapping[str, Prior]:
    """Return what a campaign held against masks when it last ran; reads no label and writes nothing.

    For whoever serves its champion. Where the campaign never looked at its labels it is the shelf as a
    person reviewed it.

    Raises:
        SettingsError: the shelf cannot be read, or contradicts itself.
    """
    if not settings.shelf:
        return {}
    shelf = shelves.opened(Place.of(settings.shelf)).priors
    place = workspace.root / "priors" / "findings.json"
    found = _kept(place, "claims", fingerprint(_claims(shelf))) if settings.check else None
    return shelf if found is None else at_most(shelf, weighed(shelf, found))


def known_without(campaign: Campaign) -> dict[str, Mapping[str, Prior]]:
    """Return the same by annotated case as it would be had nobody annotated the case's patient.

    Raises:
        SettingsError: the shelf cannot be read, or contradicts itself.
    """
    gold, named = campaign.catalog.of(Role.GOLD), campaign.settings.priors.shelf
    shelf: Mapping[str, Prior] = shelves.opened(Place.of(named)).priors if named else {}
    if not shelf or not campaign.settings.priors.check:
        return {case.case: shelf for case in gold}
    patients = [case.patient for case in gold]
    found, _ = _found(campaign, shelf)
    return {
        case.case: at_most(
            shelf,
            weighed(shelf, [f for f, who in zip(found, patients, strict=True) if who != case.patient]),
        )
        for case in gold
    }


@dataclass(frozen=True)
class Limits:
    """What is known about where not to ask."""

    most: Mapping[str, int]
    """Pieces of a structure at most."""

    cases: str | None
    """Address of what notes say of single cases."""

    fingerprint: str
    """Of both; empty where nothing is known, which changes nothing."""


def limits(campaign: Campaign) -> Limits:
    """Return what labeling may leave out: a count of pieces speaks if curation would believe it.

    Raises:
        SettingsError: the shelf cannot be read, or contradicts itself.
    """
    if not campaign.settings.priors.limit_prompts:
        return Limits({}, None, "")
    told, enough = known(campaign), campaign.settings.curation.min_claim
    most = {
        name: told.priors[name].components[1]
        for name in campaign.catalog.structures
        if name in told.priors and believed(told.priors[name], "components") >= enough
    }
    return Limits(most, told.cases, fingerprint(most, told.noted) if most or told.cases else "")


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
    if not campaign.settings.priors.shelf:
        campaign.reporter.say(
            f"vectors are of {place}, which settings do not name: read it, then set priors.shelf to it"
        )
    shelf = shelves.opened(place)
    asked = {name: asked.model_dump(mode="json", exclude={"claims"}) for name, asked in shelf.asked.items()}
    return shelf.priors, asked


def check(campaign: Campaign, shelf: shelves.Shelf) -> shelves.Shelf:
    """Hold a shelf against the annotated cases: what they contradict is struck, weighed down or marked."""
    checked = weighed(shelf.priors, _findings(campaign, shelf.priors))
    _tell(campaign, checked)
    return shelf.with_priors(checked)


def _checked(campaign: Campaign, shelf: Mapping[str, Prior]) -> Mapping[str, Prior]:
    """The same in memory, of a shelf that a person reviewed: less of it is believed, never more.

    What the cases show is kept in the workspace, so that a campaign reads them, and says so, once.
    """
    found, fresh = _found(campaign, shelf)
    checked = at_most(shelf, weighed(shelf, found))
    if fresh:
        _tell(campaign, checked)
    return checked


def _found(campaign: Campaign, shelf: Mapping[str, Prior]) -> tuple[list[list[Finding]], bool]:
    """What every annotated case shows, and whether it was read only now."""
    place = campaign.workspace.root / "priors" / "findings.json"
    of = fingerprint(_claims(shelf), campaign.catalog.of(Role.GOLD).identity())
    before = _kept(place, "of", of)
    if before is not None:
        return before, False
    found = _findings(campaign, shelf)
    told = [[asdict(finding) for finding in case] for case in found]
    place.write_text(json.dumps({"of": of, "claims": fingerprint(_claims(shelf)), "cases": told}) + "\n")
    return found, True


def _claims(shelf: Mapping[str, Prior]) -> dict[str, object]:
    """What a shelf says, whatever labels leave of it."""
    return {
        name: asdict(replace(prior, weights={}, struck={}, contradicted={})) for name, prior in shelf.items()
    }


def _kept(place: Place, about: str, digest: str) -> list[list[Finding]] | None:
    """What was found before, if it was `of` these claims and these labels, or about these `claims` alone."""
    if not place.exists():
        return None
    try:
        before = json.loads(place.read_text())
        if before[about] != digest:
            return None
        return [[Finding(**finding) for finding in case] for case in before["cases"]]
    except (ValueError, KeyError, TypeError):
        return None


def _findings(campaign: Campaign, priors: Mapping[str, Prior]) -> list[list[Finding]]:
    """What every annotated case shows; one that cannot be read shows nothing."""
    from tutelage.casework.claims import ClaimJob, Claims, findings_of

    worker = Claims(ClaimJob(priors, campaign.catalog.structures))
    rows = [worker(case) for case in campaign.catalog.of(Role.GOLD)]
    for row in rows:
        if row["outcome"] == Outcome.FAILED.value:
            campaign.reporter.say(f"  {row['case']} says nothing about claims: {row['reason']}")
    return [findings_of(row) for row in rows]


def _tell(campaign: Campaign, checked: Mapping[str, Prior]) -> None:
    for name, prior in checked.items():
        for claim, evidence in prior.struck.items():
            campaign.reporter.say(f"struck    {name} {claim}: {evidence}")
        for claim, evidence in prior.contradicted.items():
            campaign.reporter.say(f"doubtful  {name} {claim}: {evidence}")
