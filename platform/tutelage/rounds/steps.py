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

import pyarrow as pa
import pyarrow.compute as pc

from tutelage import priors
from tutelage.archive.cases import Cases
from tutelage.errors import ArchiveError, WorkspaceError
from tutelage.labels.rows import Rows, rows_of
from tutelage.records import Case, Decision, Outcome, Promotion, Role, Scorecard
from tutelage.rounds import casewise, ledger
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, Step, read_manifest, stage_name
from tutelage.settings import fingerprint
from tutelage.storage import Place

Manifest = dict[str, Any]

_EFFORT = ("prompts", "slices_embedded", "cache_hits", "not_kept", "halvings")
"""What labeling rows count, added up in the manifest."""

_ENOUGH = 10_000
"""Unlabeled cases that a specialist is planned for; more of them would not move a median."""

_CACHE = {"when", "zstd", "max_gb", "idle_days"}
_BOOKKEEPING: Any = {"cache": _CACHE, "second_opinions": {"__all__": {"cache": _CACHE}}}
"""Settings of the generalist that change no answer, and so redo no work."""


def label(campaign: Campaign, number: int) -> Manifest:
    """Let the specialist before this round prompt the generalist on every unlabeled case."""
    settings, workspace = campaign.settings, campaign.workspace
    cases = campaign.catalog.of(Role.UNLABELED)
    specialist = _needed(campaign, number - 1, "train")["outputs"]["specialist"]
    step = Step(
        workspace.stage(number),
        "label",
        {
            "generalist": settings.generalist.model_dump(mode="json", exclude=_BOOKKEEPING),
            "prompts": settings.prompts.model_dump(mode="json"),
            "seed": settings.seed,
        },
        {"specialist": specialist},
        {"cases": cases.identity()},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.labeling import Labeler, LabelJob

    job = LabelJob(
        generalist=settings.generalist,
        prompts=settings.prompts,
        specialist=str(workspace.specialist(number - 1)),
        candidates=str(step.stage / "candidates"),
        embeddings=str(workspace.embeddings),
        structures=campaign.catalog.structures,
        max_voxels=settings.archive.max_voxels,
        seed=settings.seed,
    )
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
    labeled = _needed(campaign, number, "label")
    shelf = priors.read(Path(settings.priors.shelf) if settings.priors.shelf else None)
    step = Step(
        workspace.stage(number),
        "curate",
        {"curation": curation.model_dump(mode="json")},
        {"priors": fingerprint({name: asdict(prior) for name, prior in shelf.items()})},
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
        priors=shelf,
        structures=campaign.catalog.structures,
        candidates=str(step.stage / "candidates"),
        labels=str(step.stage / "labels"),
    )
    started = time.monotonic()
    cases = unlabeled.only(answered["case"])
    worked = casewise.each(campaign, step, number, Curator, job, cases, answered["candidate"])
    rulings = ledger.write(
        step.stage / "ledger.parquet",
        stage_name(number),
        answers,
        worked.table,
        campaign.catalog.structures,
        {"priors": step.inputs["priors"], "curation": curation.fingerprint()},
    )
    ledger.join([workspace.stage(n) / "ledger.parquet" for n in range(number + 1)], workspace.ledger)
    return step.finish(started, worked.counts() | {"rulings": rulings, "labels": worked.content("label")})


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
        {"gold": gold.identity(), "labels": believed},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.training import TrainJob
    from tutelage.specialist.plan import make_plan

    if not step.begin():
        workspace.specialist(number).remove()
        (step.stage / "checkpoint").remove()
    pseudo = () if number == LABELS_ONLY else _believed(campaign, step.stage)
    unlabeled = campaign.catalog.of(Role.UNLABELED)
    everyone = [*gold, *unlabeled[:: max(1, len(unlabeled) // _ENOUGH)]]
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
        {"specialist": specialist},
        {"cases": cases.identity()},
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
    worked = casewise.each(campaign, step, number, Scorer, job, cases)
    scores = scores_of(worked.rows())
    card = scorecard(specialist, role, scores, campaign.catalog.structures, settings.evaluation)
    (step.stage / f"scorecard.{role.value}.json").write_text(json.dumps(to_dict(card), indent=1))
    return step.finish(started, worked.counts() | {"dice": card.summaries[-1].dice})


def truth(campaign: Campaign, number: int) -> Manifest | None:
    """Measure a round's pseudo-labels where labels were hidden: for the report, never for a decision."""
    settings = campaign.settings
    labels = _needed(campaign, number, "curate")["outputs"]["labels"]
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
        {"evaluation": settings.evaluation.model_dump(mode="json")},
        {},
        {"cases": cases.identity(), "labels": labels},
    )
    if done := casewise.already(campaign, step, number):
        return done
    from tutelage.casework.truth import Truth, TruthJob

    job = TruthJob(
        candidates=str(step.stage / "candidates"),
        labels=str(step.stage / "labels"),
        structures=campaign.catalog.structures,
        evaluation=settings.evaluation,
    )
    started = time.monotonic()
    worked = casewise.each(campaign, step, number, Truth, job, cases, answers["label"])
    return step.finish(started, worked.counts())


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


def _present(rows: "pa.Table", cases: Cases) -> pa.Table:
    """Rows of cases that are still in the catalog."""
    return rows.filter(pc.is_in(rows["case"], value_set=cases.ids()))


def _believed(campaign: Campaign, stage: Place) -> Cases:
    """Return the unlabeled cases of which curation believes at least one structure."""
    rows = rows_of(Rows(stage / "curate.rows").table(["verdicts"]))
    useful = [r["case"] for r in rows if any(v["weight"] > 0 for v in r["verdicts"] or [])]
    return campaign.catalog.of(Role.UNLABELED).only(useful)


def _channels(gold: Sequence[Case]) -> int:
    """Channels that every annotated image has; a case with others fails with a reason when it is read."""
    counts = {case.channels for case in gold}
    if len(counts) != 1:
        raise ArchiveError(
            f"annotated images have {sorted(counts)} channels, expected the same number in all; "
            "convert them, or keep them in archives of their own"
        )
    return counts.pop()
