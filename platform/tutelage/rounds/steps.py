"""The steps of a stage, in order: label, curate, train, evaluate, promote.

Each is done at most once for the same settings and inputs: its manifest says so. Each
returns its manifest. Heavy rooms are imported only when a step really has work to do.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import priors
from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Row, Rows, write_table
from tutelage.records import Case, Decision, Outcome, Promotion, Role, Scorecard
from tutelage.rounds import ledger
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.casework.base import Worker

Manifest = dict[str, Any]

_FLUSH_EVERY_S = 2.0
"""At most this much finished work is repeated after a kill."""


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
        {"cases": _identity(cases), "specialist": specialist},
    )
    if done := _already(campaign, step, number):
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
    rows = _each(campaign, step, number, Labeler, job, cases)
    return step.finish(started, _counts(rows) | {"candidates": _content(rows, "candidate")})


def curate(campaign: Campaign, number: int) -> Manifest:
    """Decide which answers of a round to believe, and enter it all in the ledger."""
    settings, workspace = campaign.settings, campaign.workspace
    labeled = _needed(campaign, number, "label")
    shelf = priors.read(Path(settings.priors.shelf) if settings.priors.shelf else None)
    step = Step(
        workspace.stage(number),
        "curate",
        {"curation": settings.curation.model_dump(mode="json")},
        {
            "candidates": labeled["outputs"]["candidates"],
            "priors": fingerprint({name: asdict(prior) for name, prior in shelf.items()}),
        },
    )
    if done := _already(campaign, step, number):
        return done
    from tutelage.casework.curating import CurateJob, Curator

    answers = Rows(step.stage / "label.rows").read()
    answered = {row["case"] for row in answers if row["outcome"] == Outcome.DONE.value}
    job = CurateJob(
        curation=settings.curation,
        priors=shelf,
        structures=campaign.catalog.structures,
        candidates=str(step.stage / "candidates"),
        labels=str(step.stage / "labels"),
    )
    started = time.monotonic()
    cases = [case for case in campaign.catalog.of(Role.UNLABELED) if case.case in answered]
    rows = _each(campaign, step, number, Curator, job, cases)
    write_table(
        step.stage / "ledger.parquet",
        ledger.rows(
            stage_name(number),
            answers,
            rows,
            campaign.catalog.structures,
            {"priors": step.inputs["priors"], "curation": settings.curation.fingerprint()},
        ),
    )
    _write_ledger(campaign, number)
    return step.finish(started, _counts(rows) | {"labels": _content(rows, "label")})


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
        {"gold": _identity(gold), "labels": believed},
    )
    if done := _already(campaign, step, number):
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
        plan=make_plan([case.grid for case in everyone], campaign.catalog.structures, 1, settings.specialist),
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
        {"cases": _identity(cases), "specialist": specialist},
    )
    if done := _already(campaign, step, number):
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
    rows = _each(campaign, step, number, Scorer, job, cases)
    card = scorecard(specialist, role, scores_of(rows), campaign.catalog.structures, settings.evaluation)
    (step.stage / f"scorecard.{role.value}.json").write_text(json.dumps(to_dict(card), indent=1))
    return step.finish(started, _counts(rows) | {"dice": card.summaries[-1].dice})


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
        {"cases": _identity(cases), "labels": labels},
    )
    if done := _already(campaign, step, number):
        return done
    from tutelage.casework.truth import Truth, TruthJob

    curated = {r["case"] for r in Rows(step.stage / "curate.rows").read() if r.get("label")}
    job = TruthJob(str(step.stage / "labels"), campaign.catalog.structures, settings.evaluation)
    started = time.monotonic()
    rows = _each(campaign, step, number, Truth, job, [case for case in cases if case.case in curated])
    return step.finish(started, _counts(rows))


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
    if done := _already(campaign, step, number):
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


def _write_ledger(campaign: Campaign, number: int) -> None:
    from tutelage.labels.rows import read_table

    parts = [campaign.workspace.stage(n) / "ledger.parquet" for n in range(number + 1)]
    write_table(campaign.workspace.ledger, [row for part in parts for row in read_table(part)])


# --- doing a step -------------------------------------------------------------------------


def _already(campaign: Campaign, step: Step, number: int) -> Manifest | None:
    manifest = step.manifest()
    if manifest is not None:
        campaign.reporter.say(f"{stage_name(number)} {step.name}: done before")
    return manifest


def _each(
    campaign: Campaign, step: Step, number: int, build: "type[Worker]", job: object, cases: Sequence[Case]
) -> list[Row]:
    """Work on the cases that have no row yet and return the rows of all of them."""
    rows = Rows(step.stage / f"{step.name}.rows")
    if not step.begin():
        rows.folder.remove()
    finished = rows.cases()
    pending = [case for case in cases if case.case not in finished]
    flushed = time.monotonic()
    name = f"{stage_name(number)} {step.name} {len(cases)} cases"
    with rows, campaign.reporter.task(name, len(cases), len(finished)) as advance:
        for done, row in enumerate(campaign.runner.each(build, job, pending) if pending else [], start=1):
            rows.add(row)
            advance(len(finished) + done, row["case"])
            if time.monotonic() - flushed > _FLUSH_EVERY_S:
                rows.flush()
                flushed = time.monotonic()
    everything = rows.read()
    _complain(campaign, step, everything, len(cases))
    return everything


def _complain(campaign: Campaign, step: Step, rows: Sequence[Row], expected: int) -> None:
    failed = [row for row in rows if row["outcome"] == Outcome.FAILED.value]
    for row in failed:
        campaign.reporter.say(f"  {step.name} failed: {row['case']}: {row['reason']}")
    if len(rows) < expected:
        raise WorkspaceError(
            f"{step.name}: {expected - len(rows)} of {expected} cases came back without a row"
        )
    if failed and len(failed) == expected:
        raise WorkspaceError(
            f"{step.name}: all {expected} cases failed, the first because of {failed[0]['reason']}; "
            f"correct the cause, delete {step.stage} and run again"
        )


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    failed = sum(row["outcome"] == Outcome.FAILED.value for row in rows)
    return {"done": len(rows) - failed, "failed": failed}


def _content(rows: Sequence[Row], key: str) -> str:
    """One digest of what rows say, in which time and order do not count."""
    return fingerprint(sorted((str(row["case"]), str(row.get(key) or row["reason"])) for row in rows))


def _identity(cases: Sequence[Case]) -> str:
    """One digest of which cases these are, and of their files as they were scanned."""
    told: list[Mapping[str, Any]] = [
        {"case": c.case, "image": c.image, "label": c.label, "stamp": c.stamp} for c in cases
    ]
    return fingerprint(told)
