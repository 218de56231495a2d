"""The steps of a stage, in order: label, calibrate if that is wanted, curate, train, evaluate, promote.

Each is done at most once for the same settings and inputs: its manifest says so. Each
returns its manifest. Heavy rooms are imported only when a step really has work to do.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tutelage.archive.cases import Cases, digest
from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Rows
from tutelage.methods.needs import NEEDS
from tutelage.records import Decision, Ground, Outcome, Promotion, Role, Scorecard
from tutelage.rounds import calibrating, casewise, code, keeping, labeling, ledger, textual, voting
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.champion import champion_after, crown
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.training import train
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint

Manifest = dict[str, Any]

_EFFORT = ("prompts", "slices_embedded", "cache_hits", "not_kept", "halvings")
"""What labeling rows count, added up in the manifest."""


def label(campaign: Campaign, number: int) -> Manifest:
    """Let the specialist before this round prompt the generalist on every unlabeled case."""
    workspace = campaign.workspace
    cases = campaign.catalog.of(Role.UNLABELED)
    if not cases:
        raise WorkspaceError(
            f"{stage_name(number)} has no case to label: no patient of the archive is unlabeled; set "
            "archive.split.unlabeled above 0, annotate fewer, or set rounds to 0"
        )
    specialist = casewise.needed(campaign, number - 1, "train")["outputs"]["specialist"]
    limits = textual.limits(campaign)
    step = Step(
        workspace.stage(number),
        "label",
        labeling.settings_of(campaign),
        {"specialist": specialist} | labeling.inputs_of(limits),
        {"cases": cases.identity()},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.labeling import Labeler

    before = workspace.specialist(number - 1)
    job = labeling.job(campaign, before, step.stage / "candidates", limits)
    started = time.monotonic()
    worked = casewise.each(campaign, step, number, Labeler, job, cases)
    effort = {name: int(worked.total(name)) for name in _EFFORT}
    return step.finish(
        started,
        worked.counts()
        | effort
        | {
            "volumes_per_hour": worked.pace.per_hour,
            "steady_per_hour": worked.pace.steady_per_hour,
            "candidates": worked.content("candidate"),
        },
    )


def curate(campaign: Campaign, number: int) -> Manifest:
    """Decide which answers of a round to believe, and enter it all in the ledger."""
    settings, workspace = campaign.settings, campaign.workspace
    curation = settings.curation.in_round(number)
    labeled = casewise.needed(campaign, number, "label")
    known = textual.known(campaign)
    step = Step(
        workspace.stage(number),
        "curate",
        {"curation": curation.model_dump(mode="json")},
        {"priors": known.fingerprint} | _calibrated(campaign, number),
        {"candidates": labeled["outputs"]["candidates"]},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.curating import CurateJob, Curator

    unlabeled = campaign.catalog.of(Role.UNLABELED)
    answers = _present(Rows(step.stage / "label.rows").table(), unlabeled)
    answered = answers.filter(pc.equal(answers["outcome"], Outcome.DONE.value))
    job = CurateJob(
        curation=curation,
        priors=known.priors,
        expected=known.cases,
        structures=campaign.catalog.structures,
        candidates=str(step.stage / "candidates"),
        labels=str(step.stage / "labels"),
        calibration=str(calibrating.file_of(step.stage)) if "calibration" in step.inputs else None,
    )
    started = time.monotonic()
    cases = unlabeled.only(answered["case"])
    worked = casewise.each(campaign, step, number, Curator, job, cases, answered["candidate"])
    if curation.neighbours.enabled:
        worked = voting.voted(campaign, step, number, job, cases, worked)
    corrections = campaign.corrections
    rulings = ledger.write(
        step.stage / "ledger.parquet",
        stage_name(number),
        answers,
        worked.table,
        campaign.catalog.structures,
        {
            "priors": step.inputs["priors"],
            "curation": curation.fingerprint(),
            "calibration": step.inputs.get("calibration"),
            "settings": fingerprint(labeled["settings"], step.settings),
            "code": code.version(),
        },
        corrections.latest() if corrections else None,
        sorted(corrections.within(number)) if corrections else (),
    )
    ledger.join([workspace.stage(n) / "ledger.parquet" for n in range(number + 1)], workspace.ledger)
    return step.finish(started, worked.counts() | {"rulings": rulings, "labels": worked.content("label")})


def _calibrated(campaign: Campaign, number: int) -> dict[str, str]:
    """Digest of what labeled cases teach about answers, if they are asked."""
    if not campaign.settings.curation.calibration.enabled:
        return {}
    return {"calibration": casewise.needed(campaign, number, "calibrate")["outputs"]["calibration"]}


def evaluate(campaign: Campaign, number: int) -> Manifest:
    """Score a stage's specialist on the validation split."""
    return score(campaign, number, Role.VALIDATION)


def test(campaign: Campaign, number: int) -> Manifest:
    """Score a stage's specialist on the test split: when a person asks, and never for a decision."""
    return score(campaign, number, Role.TEST)


def score(campaign: Campaign, number: int, role: Role) -> Manifest:
    """Score a stage's specialist on one split and write its scorecard."""
    settings = campaign.settings
    cases = campaign.catalog.of(role)
    if not cases:
        raise WorkspaceError(
            f"the catalog has no {role.value} cases; set archive.split.{role.value} to 1 or more"
        )
    step = _scoring(campaign, number, role)
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.scoring import ScoreJob, Scorer, scores_of
    from tutelage.evaluation.scorecard import scorecard, to_dict

    job = ScoreJob(
        specialist=str(campaign.workspace.specialist(number)),
        structures=campaign.catalog.structures,
        evaluation=settings.evaluation,
        max_voxels=settings.archive.max_voxels,
    )
    started = time.monotonic()
    worked = casewise.each(campaign, step, number, Scorer, job, cases)
    scores = scores_of(worked.rows())
    card = scorecard(
        step.inputs["specialist"], role, scores, campaign.catalog.structures, settings.evaluation
    )
    (step.stage / f"scorecard.{role.value}.json").write_text(json.dumps(to_dict(card), indent=1))
    return step.finish(started, worked.counts() | {"dice": card.summaries[-1].dice})


def _scoring(campaign: Campaign, number: int, role: Role) -> Step:
    """The step that scores a stage's specialist on one split."""
    return Step(
        campaign.workspace.stage(number),
        "evaluate" if role is Role.VALIDATION else role.value,
        {"evaluation": campaign.settings.evaluation.model_dump(mode="json")},
        {"specialist": casewise.needed(campaign, number, "train")["outputs"]["specialist"]},
        {"cases": campaign.catalog.of(role).identity()},
    )


def truth(campaign: Campaign, number: int) -> Manifest | None:
    """Measure a round's pseudo-labels where labels were hidden: for the report, never for a decision."""
    settings = campaign.settings
    if not NEEDS[settings.train.method].pseudo:
        return None
    labels = casewise.needed(campaign, number, "curate")["outputs"]["labels"]
    curated = Rows(campaign.workspace.stage(number) / "curate.rows").table(["label"])
    unlabeled = campaign.catalog.of(Role.UNLABELED)
    hidden = Cases(unlabeled.table.filter(pc.is_valid(unlabeled.table["hidden"])))
    answers = _present(curated.filter(pc.is_valid(curated["label"])), hidden)
    cases = hidden.only(answers["case"])
    if not cases:
        return None
    step = Step(
        campaign.workspace.stage(number),
        "truth",
        {
            "evaluation": settings.evaluation.model_dump(mode="json"),
            "voxels": settings.curation.calibration.voxels,
        },
        {},
        {
            "cases": cases.identity(),
            "labels": labels,
            "hidden": digest(cases.table, ("hidden", "label_stamp")),
        },
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.truth import Truth, TruthJob

    job = TruthJob(
        candidates=str(step.stage / "candidates"),
        labels=str(step.stage / "labels"),
        structures=campaign.catalog.structures,
        evaluation=settings.evaluation,
        voxels=settings.curation.calibration.voxels,
    )
    started = time.monotonic()
    about = pc.binary_join_element_wise(answers["label"], cases.table["label_stamp"], "|")
    worked = casewise.each(campaign, step, number, Truth, job, cases, about)
    return step.finish(started, worked.counts())


def promote(campaign: Campaign, number: int) -> Manifest:
    """Decide on validation scores whether a stage's specialist becomes the champion."""
    from tutelage.evaluation.promotion import Reliability, decide

    settings, calibrated = campaign.settings, {}
    if "calibrate" in names(settings, number):
        calibrated = _calibrated(campaign, number)
    challenger = _validated(campaign, number)
    before = champion_before(campaign, number)
    champion = None if before is None else _validated(campaign, before)
    step = Step(
        campaign.workspace.stage(number),
        "promote",
        {"promotion": settings.promotion.model_dump(mode="json", exclude={"patience"})},
        {
            "challenger": fingerprint(asdict(challenger)),
            "champion": "none" if champion is None else fingerprint(asdict(champion)),
        }
        | calibrated,
    )
    if done := casewise.already(campaign, step, number):
        return done
    started = time.monotonic()
    step.begin()
    labels = None
    if calibrated:
        labels = Reliability(casewise.needed(campaign, number, "calibrate")["outputs"]["error"])
    promotion: Promotion = decide(challenger, champion, settings.promotion, settings.evaluation, labels)
    winner = number if promotion.decision is Decision.PROMOTE else before
    if winner == number:  # before anybody can hear of it: who serves the new champion tests it on this case
        keeping.keep(campaign, [card for card in (challenger, champion) if card])
    # Before the manifest: a decision that is on record has been carried out.
    crown(campaign.workspace, None if winner is None else stage_name(winner))
    manifest = step.finish(started, asdict(promotion) | {"specialist": challenger.specialist})
    for reason in promotion.reasons:
        if reason.kind in (Ground.EVIDENCE, Ground.GAIN) or not reason.passed:
            campaign.reporter.say(f"{stage_name(number)} {promotion.decision.value}: {reason.told}")
    return manifest


def names(settings: RunSettings, number: int) -> tuple[str, ...]:
    """Name the steps of a stage, in order: labels are made for methods that learn from them."""
    pseudo = number != LABELS_ONLY and NEEDS[settings.train.method].pseudo
    wanted = making_labels(settings) if pseudo else ()
    return tuple(name for name in STEPS if name in wanted or name not in _OF_PSEUDO)


def making_labels(settings: RunSettings) -> tuple[str, ...]:
    """Name the steps that make pseudo-labels, in order."""
    calibrates = settings.curation.calibration.enabled
    return tuple(name for name in _OF_PSEUDO if calibrates or name != "calibrate")


_OF_PSEUDO = ("label", "calibrate", "curate")

STEPS: dict[str, Callable[[Campaign, int], Manifest]] = {
    "label": label,
    "calibrate": calibrating.calibrate,
    "curate": curate,
    "train": train,
    "evaluate": evaluate,
    "promote": promote,
}
"""In the order of a round."""


# --- reading what steps left --------------------------------------------------------------


def _validated(campaign: Campaign, number: int) -> Scorecard:
    """Return the scorecard of this very specialist of a stage on today's validation cases."""
    if not _scoring(campaign, number, Role.VALIDATION).manifest():
        raise WorkspaceError(
            f"the specialist of {stage_name(number)}, as it is now, was not scored on today's validation "
            "cases; run `tutelage evaluate` for it first"
        )
    return read_scorecard(campaign, number, Role.VALIDATION)


def read_scorecard(campaign: Campaign, number: int, role: Role) -> Scorecard:
    """Return a stage's scorecard on one split."""
    from tutelage.evaluation.scorecard import from_dict

    place = campaign.workspace.stage(number) / f"scorecard.{role.value}.json"
    if not place.exists():
        raise WorkspaceError(
            f"{place} does not exist; run `tutelage evaluate` for {stage_name(number)} first"
        )
    return from_dict(json.loads(place.read_text()))


def scorecards(campaign: Campaign, stages: Sequence[int], role: Role) -> tuple[tuple[str, Scorecard], ...]:
    """Return scorecards by stage, in order; on the test split those of specialists that have been tested."""
    scored = [n for n in stages if role is not Role.TEST or tested(campaign, n)]
    return tuple((stage_name(n), read_scorecard(campaign, n, role)) for n in scored)


def tested(campaign: Campaign, number: int) -> bool:
    """Return whether this very specialist of a stage has been tested."""
    trained = read_manifest(campaign.workspace.stage(number), "train") is not None
    return trained and _scoring(campaign, number, Role.TEST).manifest() is not None


def done(campaign: Campaign, number: int) -> dict[str, Manifest]:
    """Return the manifests of a stage's finished steps; a test of another specialist than today's is none."""
    stage = campaign.workspace.stage(number)
    found = {name: read_manifest(stage, name) for name in (*STEPS, "truth", "test")}
    if found["test"] and not tested(campaign, number):
        found["test"] = None
    return {name: manifest for name, manifest in found.items() if manifest}


def champion_before(campaign: Campaign, number: int) -> int | None:
    """Return the stage whose specialist was the champion before this one was judged."""
    return champion_after(campaign.workspace, number - 1)


def _present(rows: "pa.Table", cases: Cases) -> pa.Table:
    """Rows of cases that are still in the catalog."""
    return rows.filter(pc.is_in(rows["case"], value_set=cases.ids()))
