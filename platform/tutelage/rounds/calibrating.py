"""The step that calibrates: labeled cases are asked about by specialists that never saw them.

Labeled patients are dealt into folds. For each fold a specialist learns from the labels of
the others, supervised whatever the campaign's method, and in later rounds from what the specialist
that prompts has learned from as well: the pseudo-labels of the round before, without
which it would differ from the one whose answers are to be believed. Those were prompted by specialists
that had seen every label, so in later rounds a left-out label still reaches its fold through other
patients' masks; in the first round it does not.

No label is opened that specialists do not learn from. Cases that people have corrected are learned
from and not tried: somebody chose them, mostly for being difficult, so they are not like the
others. Where a bound cannot be had from so few
patients, nothing is trained, and curation is told so.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.archive.cases import Cases
from tutelage.curation.calibration import Calibration, needed, to_dict
from tutelage.curation.settings import CurationSettings
from tutelage.errors import SettingsError
from tutelage.methods.settings import TrainSettings
from tutelage.records import Role
from tutelage.rounds import casewise, labeling, planning, textual
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.training import believed_cases
from tutelage.rounds.workspace import Step, stage_name
from tutelage.settings import fingerprint
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import StepReport
    from tutelage.specialist.plan import Plan

Manifest = dict[str, Any]

_LATER = {"alpha", "voxel_alpha", "min_dice", "partial_dice"}
"""Settings of calibration that answers about labeled cases do not depend on."""


def file_of(stage: Place) -> Place:
    """Return where a round keeps what labeled cases teach about answers."""
    return stage / "calibration.json"


def calibrate(campaign: Campaign, number: int) -> Manifest:
    """Learn from labeled cases how good a round's answers are.

    Raises:
        SettingsError: nobody wants to know.
    """
    if not campaign.settings.curation.calibration.enabled:
        raise SettingsError("curation.calibration.enabled is false, so nothing is calibrated; set it to true")
    given = _Given(campaign, number)
    curation, limits = given.curation, textual.limits(campaign)
    step = Step(
        campaign.workspace.stage(number),
        "calibrate",
        labeling.settings_of(campaign)
        | given.settings
        | {"curation": curation.model_dump(mode="json", exclude={"calibration": _LATER})},
        given.inputs | {"known": textual.known(campaign).fingerprint} | labeling.inputs_of(limits),
        given.cases,
    )
    if done := casewise.already(campaign, step, number):
        return done
    started = time.monotonic()
    patients = len({case.patient for case in given.tried})
    if patients < max(2, needed(curation.calibration.alpha)):
        step.begin("calibrate.rows", "calibration")
        return _told(
            campaign, number, step, started, Calibration(patients), curation, {"done": 0, "failed": 0}
        )
    from tutelage.casework.calibrating import Trier, TryJob, fitted

    folds = [_trained(given, index, left_out) for index, left_out in enumerate(given.folds)]
    specialists = {case.case: fold for fold in folds for case in fold.left_out}
    job = TryJob(
        labeling.job(campaign, given.folder, given.folder / "candidates", limits),
        {case: str(fold.folder) for case, fold in specialists.items()},
        textual.known_without(campaign),
        curation,
    )
    worked = casewise.each(campaign, step, number, Trier, job, given.tried, _about(given.tried, specialists))
    return _told(campaign, number, step, started, fitted(worked.rows(), curation), curation, worked.counts())


def _told(
    campaign: Campaign,
    number: int,
    step: Step,
    started: float,
    calibration: Calibration,
    curation: CurationSettings,
    counts: dict[str, int],
) -> Manifest:
    """Write what was learned and say what it is worth."""
    told, alpha = to_dict(calibration), curation.calibration.alpha
    file_of(step.stage).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    bounded = [name for name, scores in calibration.short.items() if len(scores) >= needed(alpha)]
    structures, level = len(campaign.catalog.structures), f"a bound at a level of {1 - alpha:.0%}"
    campaign.reporter.say(
        f"{stage_name(number)} calibrate: {len(bounded)} of {structures} structures have {level}; it takes "
        f"{needed(alpha)} labeled patients with an answer, there are {calibration.patients}"
    )
    over = [short for scores in calibration.short.values() for short in scores.values()]
    error = float(np.mean(np.abs(over))) if over else None
    return step.finish(
        started,
        counts
        | {"calibration": fingerprint(told), "patients": calibration.patients}
        | {"trials": len(over), "bounded": bounded, "error": error},
    )


# --- specialists that never saw a fold ------------------------------------------------------


@dataclass(frozen=True)
class _Fold:
    """A specialist, and the cases that it never saw."""

    left_out: Cases
    folder: Place
    digest: str


@dataclass(frozen=True)
class _Given:
    """What folds learn from."""

    campaign: Campaign
    number: int

    @cached_property
    def gold(self) -> Cases:
        """Annotated cases."""
        return self.campaign.catalog.of(Role.GOLD)

    @cached_property
    def tried(self) -> Cases:
        """Those that nobody chose to annotate."""
        corrections = self.campaign.corrections
        return self.gold.without(corrections.within(self.number)) if corrections else self.gold

    @cached_property
    def plan(self) -> "Plan":
        """That of the campaign: it rests on no label."""
        workspace, catalog = self.campaign.workspace, self.campaign.catalog
        return planning.edited(workspace, catalog) or planning.derived(self.campaign.settings, catalog)

    @property
    def curation(self) -> CurationSettings:
        """Settings that hold in this round."""
        return self.campaign.settings.curation.in_round(self.number)

    @property
    def folder(self) -> Place:
        """Everything about folds."""
        return self.campaign.workspace.stage(self.number) / "calibration"

    @property
    def before(self) -> Place | None:
        """The stage whose pseudo-labels the specialist that prompts has learned from, if it has."""
        return self.campaign.workspace.stage(self.number - 1) if self.number > 0 else None

    @property
    def train(self) -> TrainSettings:
        """How each fold learns."""
        told = self.campaign.settings.train
        steps = max(1, round(told.steps * self.curation.calibration.steps_share))
        return told.model_copy(
            update={"method": "supervised", "steps": steps, "validate_every": 0, "select": "last"}
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that a fold's specialist depends on."""
        return {
            "train": self.train.effective(),
            "specialist": self.campaign.settings.specialist.model_dump(mode="json"),
            "seed": self.campaign.settings.seed,
        }

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of what all folds learn from besides labels."""
        inputs = {"plan": self.plan.fingerprint(), "labels": "none"}
        if self.before is not None:
            curated = casewise.needed(self.campaign, self.number - 1, "curate")
            inputs["labels"] = curated["outputs"]["labels"]
        return inputs

    @property
    def cases(self) -> dict[str, str]:
        """Digests of labeled cases, and of what is concluded from them, which makes no answer worthless."""
        told = self.curation.calibration
        return {
            "gold": self.gold.identity(),
            "tried": self.tried.identity(),
            "levels": fingerprint(told.alpha, told.voxel_alpha),
        }

    @property
    def folds(self) -> list[Cases]:
        """Cases to try, dealt like cards, all of a patient into the same fold."""
        patients = list(dict.fromkeys(case.patient for case in self.tried))
        wanted = self.curation.calibration.folds
        count = min(len(patients), wanted) if wanted > 1 else len(patients)
        dealt = {patient: place % count for place, patient in enumerate(patients)}
        return [
            self.tried.only([case.case for case in self.tried if dealt[case.patient] == fold])
            for fold in range(count)
        ]


def _trained(given: _Given, index: int, left_out: Cases) -> _Fold:
    """Train the specialist of one fold, unless it is there."""
    patients = {case.patient for case in left_out}
    unseen = [case.case for case in given.gold if case.patient in patients]
    kept = given.gold.without(unseen)
    name = f"fold-{index}"
    step = Step(given.folder, name, given.settings, given.inputs | {"gold": kept.identity()})
    if done := step.manifest():
        return _Fold(left_out, given.folder / name, done["outputs"]["specialist"])
    step.begin(name, f"{name}.checkpoint")
    started, job = time.monotonic(), _job(given, name, kept)
    shown = f"{stage_name(given.number)} calibrate without {', '.join(case.case for case in left_out)}"
    with given.campaign.reporter.task(shown, job.settings.steps) as advance:

        def on_step(report: "StepReport") -> None:
            advance(report.step + 1, f"loss {report.loss:.3f}")

        digest = given.campaign.runner.train(job, on_step)
    step.finish(started, {"specialist": digest, "left_out": unseen})
    (given.folder / f"{name}.checkpoint").remove()  # after what makes it worthless
    return _Fold(left_out, given.folder / name, digest)


def _job(given: _Given, name: str, kept: Sequence[Any]) -> "TrainJob":
    from tutelage.casework.training import TrainJob

    campaign, before = given.campaign, given.before
    return TrainJob(
        gold=tuple(kept),
        pseudo=() if before is None else tuple(believed_cases(campaign, before)),
        labels=str((before or given.folder) / "labels"),
        plan=given.plan,
        settings=given.train,
        seed=campaign.settings.seed,
        out=str(given.folder / name),
        checkpoint=str(given.folder / f"{name}.checkpoint"),
        stage=stage_name(given.number),
        max_voxels=campaign.settings.archive.max_voxels,
        failure=str(given.folder / f"{name}.failure.json"),
    )


def _about(cases: Cases, specialists: dict[str, _Fold]) -> Any:
    """What a row must be about to count: the image, the label, and who prompted."""
    import pyarrow as pa

    told = [f"{specialists[c.case].digest}|{c.image}|{c.stamp}|{c.label}|{c.label_stamp}" for c in cases]
    return pa.chunked_array([pa.array(told, pa.string())])
