"""The steps of a stage, in order: label, curate, train, evaluate, promote.

Each is done at most once for the same settings and inputs: its manifest says so. Each
returns its manifest. Heavy rooms are imported only when a step really has work to do.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage import priors
from tutelage.errors import ArchiveError, WorkspaceError
from tutelage.labels.rows import Rows, write_table
from tutelage.records import Case, Decision, Outcome, Promotion, Role, Scorecard
from tutelage.rounds import casewise, ledger
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint
from tutelage.storage import Place

Manifest = dict[str, Any]


def label(campaign: Campaign, number: int) -> Manifest:
    """Let the specialist before this round prompt the generalist on every unlabeled case."""
    settings, workspace = campaign.settings, campaign.workspace
    cases = campaign.catalog.of(Role.UNLABELED)
    specialist = _needed(campaign, number - 1, "train")["outputs"]["specialist"]
    step = Step(
        workspace.stage(number),
        "label",
        {
            "generalist": settings.generalist.model_dump(mode="json"),
            "prompts": settings.prompts.model_dump(mode="json"),
            "seed": settings.seed,
        },
        {"cases": casewise.identity(cases), "specialist": specialist},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.labeling import Labeler, LabelJob

    job = LabelJob(
        generalist=settings.generalist,
        prompts=settings.prompts,
        specialist=str(workspace.specialist(number - 1)),
        candidates=str(step.stage / "candidates"),
        embeddings=str(workspace.embeddings) if settings.cache_embeddings else None,
        structures=campaign.catalog.structures,
        max_voxels=settings.archive.max_voxels,
        seed=settings.seed,
    )
    started = time.monotonic()
    rows = casewise.each(campaign, step, number, Labeler, job, cases)
    return step.finish(started, casewise.counts(rows) | {"candidates": casewise.content(rows, "candidate")})


def curate(campaign: Campaign, number: int) -> Manifest:
    """Decide which answers of a round to believe, and enter it all in the ledger."""
    settings, workspace = campaign.settings, campaign.workspace
    curation = settings.curation.in_round(number)
    labeled = _needed(campaign, number, "label")
    shelf = priors.read(Path(settings.priors.shelf) if settings.priors.shelf else None)
    step = Step(
        workspace.stage(number),
        "curate",
        {"curation": curation.model_dump(mode="json")},
        {
            "candidates": labeled["outputs"]["candidates"],
            "priors": fingerprint({name: asdict(prior) for name, prior in shelf.items()}),
        },
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.curating import CurateJob, Curator

    answers = Rows(step.stage / "label.rows").read()
    answered = {row["case"] for row in answers if row["outcome"] == Outcome.DONE.value}
    job = CurateJob(
        curation=curation,
        priors=shelf,
        structures=campaign.catalog.structures,
        candidates=str(step.stage / "candidates"),
        labels=str(step.stage / "labels"),
    )
    started = time.monotonic()
    cases = [case for case in campaign.catalog.of(Role.UNLABELED) if case.case in answered]
    rows = casewise.each(campaign, step, number, Curator, job, cases)
    write_table(
        step.stage / "ledger.parquet",
        ledger.rows(
            stage_name(number),
            answers,
            rows,
            campaign.catalog.structures,
            {"priors": step.inputs["priors"], "curation": curation.fingerprint()},
        ),
    )
    _write_ledger(campaign, number)
    return step.finish(started, casewise.counts(rows) | {"labels": casewise.content(rows, "label")})


def train(campaign: Campaign, number: int) -> Manifest:
    """Train a specialist, on gold labels and, from round 0 on, on what curation believed."""
    settings, workspace = campaign.settings, campaign.workspace
    gold = campaign.catalog.of(Role.GOLD)
    believed = "none" if number == LABELS_ONLY else _needed(campaign, number, "curate")["outputs"]["labels"]
    step = Step(
        workspace.stage(number),
        "train",
        {
            "train": settings.train.model_dump(mode="json"),
            "specialist": settings.specialist.model_dump(mode="json"),
            "seed": settings.seed,
        },
        {"gold": casewise.identity(gold), "labels": believed},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.training import TrainJob
    from tutelage.specialist.plan import make_plan

    if not step.begin():
        workspace.specialist(number).remove()
        (step.stage / "checkpoint").remove()
    pseudo = [] if number == LABELS_ONLY else _believed(campaign, step.stage)
    everyone = [*gold, *campaign.catalog.of(Role.UNLABELED)]
    job = TrainJob(
        gold=tuple(gold),
        pseudo=tuple(pseudo),
        labels=str(step.stage / "labels"),
        plan=make_plan(
            [case.grid for case in everyone],
            campaign.catalog.structures,
            _channels(gold),
            settings.specialist,
        ),
        settings=settings.train,
        seed=settings.seed,
        out=str(workspace.specialist(number)),
        checkpoint=str(step.stage / "checkpoint"),
        stage=stage_name(number),
        max_voxels=settings.archive.max_voxels,
    )
    started = time.monotonic()
    name = f"{stage_name(number)} train on {len(gold)} labels and {len(pseudo)} pseudo-labels"
    losses: list[dict[str, float]] = []
    with campaign.reporter.task(name, settings.train.steps) as advance:

        def on_step(report: Any) -> None:
            losses.append({"step": report.step, "loss": report.loss, "lr": report.lr})
            advance(report.step + 1, f"loss {report.loss:.3f}")

        digest = campaign.runner.train(job, on_step)
    (step.stage / "losses.json").write_text(json.dumps(losses))
    (step.stage / "checkpoint").remove()
    return step.finish(started, {"specialist": digest, "pseudo_labels": len(pseudo)})


def evaluate(campaign: Campaign, number: int) -> Manifest:
    """Score a stage's specialist on the validation split."""
    return score(campaign, number, Role.VALIDATION)


def score(campaign: Campaign, number: int, role: Role) -> Manifest:
    """Score a stage's specialist on one split and write its scorecard."""
    settings = campaign.settings
    cases = campaign.catalog.of(role)
    if not cases:
        raise WorkspaceError(
            f"the catalog has no {role.value} cases; set archive.split.{role.value} to 1 or more"
        )
    specialist = _needed(campaign, number, "train")["outputs"]["specialist"]
    step = Step(
        campaign.workspace.stage(number),
        "evaluate" if role is Role.VALIDATION else role.value,
        {"evaluation": settings.evaluation.model_dump(mode="json")},
        {"cases": casewise.identity(cases), "specialist": specialist},
    )
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
    rows = casewise.each(campaign, step, number, Scorer, job, cases)
    card = scorecard(specialist, role, scores_of(rows), campaign.catalog.structures, settings.evaluation)
    (step.stage / f"scorecard.{role.value}.json").write_text(json.dumps(to_dict(card), indent=1))
    return step.finish(started, casewise.counts(rows) | {"dice": card.summaries[-1].dice})


def truth(campaign: Campaign, number: int) -> Manifest | None:
    """Measure a round's pseudo-labels where labels were hidden: for the report, never for a decision."""
    settings = campaign.settings
    cases = [case for case in campaign.catalog.of(Role.UNLABELED) if case.hidden is not None]
    labels = _needed(campaign, number, "curate")["outputs"]["labels"]
    if not cases:
        return None
    step = Step(
        campaign.workspace.stage(number),
        "truth",
        {"evaluation": settings.evaluation.model_dump(mode="json")},
        {"cases": casewise.identity(cases), "labels": labels},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.truth import Truth, TruthJob

    curated = {r["case"] for r in Rows(step.stage / "curate.rows").read() if r.get("label")}
    job = TruthJob(str(step.stage / "labels"), campaign.catalog.structures, settings.evaluation)
    started = time.monotonic()
    rows = casewise.each(campaign, step, number, Truth, job, [case for case in cases if case.case in curated])
    return step.finish(started, casewise.counts(rows))


def promote(campaign: Campaign, number: int) -> Manifest:
    """Decide on validation scores whether a stage's specialist becomes the champion."""
    from tutelage.evaluation.promotion import decide

    challenger = read_scorecard(campaign, number, Role.VALIDATION)
    before = champion_before(campaign, number)
    champion = None if before is None else read_scorecard(campaign, before, Role.VALIDATION)
    step = Step(
        campaign.workspace.stage(number),
        "promote",
        {"promotion": campaign.settings.promotion.model_dump(mode="json")},
        {
            "challenger": fingerprint(asdict(challenger)),
            "champion": "none" if champion is None else fingerprint(asdict(champion)),
        },
    )
    if done := casewise.already(campaign, step, number):
        return done
    started = time.monotonic()
    step.begin()
    promotion: Promotion = decide(challenger, champion, campaign.settings.promotion)
    manifest = step.finish(started, asdict(promotion))
    winner = number if promotion.decision is Decision.PROMOTE else before
    if winner is not None:
        folder = f"rounds/{stage_name(winner)}/specialist"
        campaign.workspace.champion.write_text(json.dumps({"stage": stage_name(winner), "folder": folder}))
    for reason in promotion.reasons:
        campaign.reporter.say(f"{stage_name(number)} {promotion.decision.value}: {reason}")
    return manifest


STEPS: dict[str, Callable[[Campaign, int], Manifest]] = {
    "label": label,
    "curate": curate,
    "train": train,
    "evaluate": evaluate,
    "promote": promote,
}
"""In the order of a round."""


# --- reading what steps left --------------------------------------------------------------


def read_scorecard(campaign: Campaign, number: int, role: Role) -> Scorecard:
    """Return a stage's scorecard on one split."""
    from tutelage.evaluation.scorecard import from_dict

    place = campaign.workspace.stage(number) / f"scorecard.{role.value}.json"
    if not place.exists():
        raise WorkspaceError(
            f"{place} does not exist; run `tutelage evaluate` for {stage_name(number)} first"
        )
    return from_dict(json.loads(place.read_text()))


def champion_before(campaign: Campaign, number: int) -> int | None:
    """Return the stage whose specialist was the champion before this one was judged."""
    for earlier in range(number - 1, LABELS_ONLY - 1, -1):
        manifest = read_manifest(campaign.workspace.stage(earlier), "promote")
        if manifest and manifest["outputs"]["decision"] == Decision.PROMOTE.value:
            return earlier
    return None


def _needed(campaign: Campaign, number: int, name: str) -> Manifest:
    manifest = read_manifest(campaign.workspace.stage(number), name)
    if manifest is None:
        raise WorkspaceError(
            f"{stage_name(number)} has no finished `{name}` step in {campaign.workspace.root}; "
            "run it first, or `tutelage run` for all of them"
        )
    return manifest


def _believed(campaign: Campaign, stage: Place) -> list[Case]:
    """Return the unlabeled cases of which curation believes at least one structure."""
    rows = Rows(stage / "curate.rows").read()
    useful = {r["case"] for r in rows if any(v["weight"] > 0 for v in r.get("verdicts") or [])}
    return [case for case in campaign.catalog.of(Role.UNLABELED) if case.case in useful]


def _channels(gold: Sequence[Case]) -> int:
    """Channels that every annotated image has; a case with others fails with a reason when it is read."""
    counts = {case.channels for case in gold}
    if len(counts) != 1:
        raise ArchiveError(
            f"annotated images have {sorted(counts)} channels, expected the same number in all; "
            "convert them, or keep them in archives of their own"
        )
    return counts.pop()


def _write_ledger(campaign: Campaign, number: int) -> None:
    from tutelage.labels.rows import read_table

    parts = [campaign.workspace.stage(n) / "ledger.parquet" for n in range(number + 1)]
    write_table(campaign.workspace.ledger, [row for part in parts for row in read_table(part)])
