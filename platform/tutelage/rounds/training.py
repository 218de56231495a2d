"""The step that trains: what a method needs of a campaign, and a specialist in the end.

The stage before round 0 is always `supervised`, whatever the campaign's method: it is what
every method is measured against, and what prompts the first round. Changing what a method
does not read changes nothing here. The plan is always read, edited or derived: scans that move
it make the step start over.
"""

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.archive.cases import Cases
from tutelage.labels.rows import Rows, rows_of
from tutelage.methods.needs import Needs, needs_of
from tutelage.methods.settings import TrainSettings
from tutelage.records import Outcome, Role
from tutelage.rounds import casewise, planning, telling
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.champion import crown_rightly
from tutelage.rounds.workspace import LABELS_ONLY, Step, stage_name
from tutelage.storage import Place

if TYPE_CHECKING:
    import pyarrow as pa

    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import StepReport

Manifest = dict[str, Any]

_CACHE = {"when", "zstd", "max_gb", "idle_days"}
BOOKKEEPING: Any = {"cache": _CACHE, "second_opinions": {"__all__": {"cache": _CACHE}}}
"""Settings of the generalist that change no answer, and so redo no work."""


def train(campaign: Campaign, number: int) -> Manifest:
    """Train a specialist: on labels alone, or by the campaign's method."""
    settings, workspace = campaign.settings, campaign.workspace
    told = settings_of(campaign, number)
    given = _Given(campaign, number, needs_of(told))
    step = Step(
        workspace.stage(number),
        "train",
        {
            "train": told.effective(),
            "specialist": settings.specialist.model_dump(mode="json"),
            "seed": given.seed,
            **given.settings(),
        },
        given.inputs(told),
    )
    if done := casewise.already(campaign, step, number):
        return done
    before = crown_rightly(workspace)
    step.begin("specialist", "specialist.last", "specialist.best", "checkpoint", "steps")
    if (now := crown_rightly(workspace)) != before:  # weights that nobody has judged are served to nobody
        campaign.reporter.say(f"{before} learns anew; until it is judged, {now or 'nobody'} is champion")
    job = _job(campaign, number, told, given, step.stage)
    started = time.monotonic()
    digest = _trained(campaign, number, job, step.fingerprint)
    finished = step.finish(started, {"specialist": digest, "pseudo_labels": len(job.pseudo)})
    (step.stage / "checkpoint").remove()  # after what makes it worthless: a kill between repeats nothing
    return finished


def settings_of(campaign: Campaign, number: int) -> TrainSettings:
    """Return how a stage trains."""
    told = campaign.settings.train
    return told.model_copy(update={"method": "supervised"}) if number == LABELS_ONLY else told


class _Given:
    """What a stage gives its method, as digests before there is work to do."""

    def __init__(self, campaign: Campaign, number: int, needs: Needs) -> None:
        first = number == LABELS_ONLY
        self.campaign, self.number, self.needs = campaign, number, needs
        self.pseudo = needs.pseudo and not first
        self.continues = needs.continues and not first
        self.plan = planning.edited(campaign.workspace, campaign.catalog) or planning.derived(
            campaign.settings, campaign.catalog
        )
        self.texts: str | None = None

    @property
    def seed(self) -> int:
        """Of what is drawn: a training that goes on from another one must not see its very patches again."""
        seed = self.campaign.settings.seed
        if not self.continues:
            return seed
        return int(np.random.SeedSequence([seed, self.number + 1]).generate_state(1)[0])

    def settings(self) -> dict[str, Any]:
        """Settings of other rooms that training depends on."""
        if not self.needs.asker:
            return {}
        settings = self.campaign.settings
        return {
            "generalist": settings.generalist.model_dump(mode="json", exclude=BOOKKEEPING),
            "prompts": settings.prompts.model_dump(mode="json"),
        }

    def inputs(self, told: TrainSettings) -> dict[str, str]:
        """Digests of everything that is learned from."""
        campaign, number = self.campaign, self.number
        inputs = {
            "gold": campaign.catalog.of(Role.GOLD).identity(),
            "labels": "none",
            "plan": self.plan.fingerprint(),
        }
        if self.pseudo:
            inputs["labels"] = casewise.needed(campaign, number, "curate")["outputs"]["labels"]
        if self.needs.unlabeled:
            inputs["unlabeled"] = campaign.catalog.of(Role.UNLABELED).identity()
        if told.validate_every:
            inputs["validation"] = campaign.catalog.of(Role.VALIDATION).identity()
        if self.needs.text:
            from tutelage.rounds.textual import vectors_of

            self.texts, inputs["texts"] = vectors_of(campaign)
        if self.continues:
            inputs["start"] = casewise.needed(campaign, number - 1, "train")["outputs"]["specialist"]
        return inputs


def _job(campaign: Campaign, number: int, told: TrainSettings, given: _Given, stage: Place) -> "TrainJob":
    from tutelage.casework.training import TrainJob

    settings, workspace, catalog = campaign.settings, campaign.workspace, campaign.catalog
    gold, unlabeled = catalog.of(Role.GOLD), catalog.of(Role.UNLABELED)
    pseudo = tuple(believed_cases(campaign, stage)) if given.pseudo else ()
    believed = {case.case for case in pseudo}
    others = tuple(case for case in unlabeled if case.case not in believed) if given.needs.unlabeled else ()
    asks = None
    if given.needs.asker:
        from tutelage.casework.online import AskJob

        asks = AskJob(
            cases=(*gold, *pseudo, *others),
            plan=given.plan,
            generalist=settings.generalist,
            prompts=settings.prompts,
            embeddings=str(workspace.embeddings),
            max_voxels=settings.archive.max_voxels,
        )
    return TrainJob(
        gold=tuple(gold),
        pseudo=pseudo,
        labels=str(stage / "labels"),
        plan=given.plan,
        settings=told,
        seed=given.seed,
        out=str(workspace.specialist(number)),
        checkpoint=str(stage / "checkpoint"),
        stage=stage_name(number),
        max_voxels=settings.archive.max_voxels,
        unlabeled=others,
        validation=tuple(catalog.of(Role.VALIDATION)) if told.validate_every else (),
        record=str(stage / "training.json"),
        failure=str(stage / "failure.json"),
        texts=given.texts,
        start=str(workspace.specialist(number - 1)) if given.continues else None,
        asks=asks,
        watches_machine=settings.tracking.system_metrics,
    )


def _trained(campaign: Campaign, number: int, job: "TrainJob", training: str) -> str:
    """Train, tell how it goes, and return the specialist's digest."""
    counted = {
        "labels": len(job.gold),
        "pseudo-labels": len(job.pseudo),
        "images without": len(job.unlabeled),
    }
    shown = [f"{count} {what}" for what, count in counted.items() if count]
    name = f"{stage_name(number)} train {job.settings.method} on {', '.join(shown)}"
    with (
        campaign.reporter.task(name, job.settings.steps) as advance,
        telling.told(campaign, number, training, job.settings) as told,
    ):

        def on_step(report: "StepReport") -> None:
            told.on_step(report)
            advance(report.step + 1, f"loss {report.loss:.3f}")

        return campaign.runner.train(job, on_step, told.on_pace)


def believed_cases(campaign: Campaign, stage: Place) -> Cases:
    """Return the unlabeled cases of which curation believes at least one structure."""
    rows = rows_of(_about_answers(Rows(stage / "curate.rows").table(["of", "verdicts"]), stage))
    useful = [r["case"] for r in rows if any(v["weight"] > 0 for v in r["verdicts"] or [])]
    return campaign.catalog.of(Role.UNLABELED).only(useful)


def _about_answers(curated: "pa.Table", stage: Place) -> "pa.Table":
    """Keep rulings on answers that stand: an image that changed and failed has one on its old answer."""
    import pyarrow as pa
    import pyarrow.compute as pc

    answers = Rows(stage / "label.rows").table(["candidate", "outcome"])
    if not curated.num_rows or not answers.num_rows:
        return curated.slice(0, 0)
    answers = answers.filter(pc.equal(answers["outcome"], Outcome.DONE.value))
    ruled, stands = (
        pc.binary_join_element_wise(table["case"], table[column].cast(pa.string()), "\n")
        for table, column in ((curated, "of"), (answers, "candidate"))
    )
    return curated.filter(pc.is_in(ruled, value_set=stands))
