"""What steps took and what specialists were made from, as manifests, rows and journals have it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tutelage.evaluation.campaign import Curve, Stage, Work
from tutelage.evaluation.charts import thinned
from tutelage.labels.rows import Rows
from tutelage.records import Role
from tutelage.rounds import steps, telling
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import read_manifest, stage_name
from tutelage.tracking import journal

_STEPS = ("label", "calibrate", "curate", "train", "evaluate", "promote", "truth", "test")
_ASKING = ("label", "calibrate")
"""Steps of which rows say how long each case took."""

_WITH_NETWORKS = ("label", "calibrate", "evaluate", "test")
"""Steps whose processes hold GPUs, besides training."""

_DIGITS = 12


@dataclass(frozen=True)
class Training:
    """What a stage's journal comes to."""

    curve: Curve
    seconds: float
    """Of all its steps, those of attempts that were killed included."""
    memory_mib: float


def training(campaign: Campaign, number: int) -> Training:
    """Read a journal once, from front to back."""
    seconds = memory_mib = 0.0

    def losses() -> Iterator[tuple[int, float]]:
        nonlocal seconds, memory_mib
        for row in journal.read(telling.journal_of(campaign.workspace.stage(number))):
            seconds += row["seconds"] + row["waited"]
            memory_mib = max(memory_mib, row["memory_mib"])
            yield row["step"], row["loss"]

    curve = thinned(stage_name(number), losses())
    return Training(curve, seconds, memory_mib)


def work(campaign: Campaign, number: int, trained: Training) -> Iterator[Work]:
    """Yield what is known about each finished step of a stage."""
    done = steps.done(campaign, number)
    for step in (step for step in _STEPS if step in done):
        manifest = done[step]
        told, seconds = manifest["outputs"], float(manifest["seconds"])
        slices = told.get("slices_embedded", 0) + told.get("cache_hits", 0)
        worked_s = _worked(campaign, number, step, trained)
        cases = told["done"] + told["failed"] if "done" in told else None
        yield Work(
            stage=stage_name(number),
            step=step,
            cases=cases,
            failed=told.get("failed", 0),
            seconds=seconds,
            worked_s=worked_s,
            per_hour=told.get("volumes_per_hour"),
            hit_share=told["cache_hits"] / slices if slices else None,
            gpu_s=_gpu_s(campaign, step, cases or 0, trained, seconds, worked_s or 0.0) or None,
        )


def _worked(campaign: Campaign, number: int, step: str, trained: Training) -> float | None:
    if step == "train":
        return trained.seconds or None
    if step not in _ASKING:
        return None
    rows = Rows(campaign.workspace.stage(number) / f"{step}.rows").table(["seconds"])
    return float(sum(seconds or 0.0 for seconds in rows["seconds"].to_pylist())) or None


def _gpu_s(
    campaign: Campaign, step: str, cases: int, trained: Training, seconds: float, worked_s: float
) -> float:
    """Seconds that GPUs were held: in the last attempt, or by what was done in all of them if that is more.

    They are those that settings give a step's processes, or the one that was used here.
    """
    told = campaign.settings.cluster
    if step not in ("train", *_WITH_NETWORKS):
        return 0.0
    if told.backend != "ray":
        return float(trained.memory_mib > 0) * max(seconds, worked_s)
    if step == "train":
        return told.gpus_per_train_worker * told.worker_counts[-1] * max(seconds, worked_s)
    return told.gpus_per_actor * max(told.actors_for(cases) * seconds, worked_s)


def stages(campaign: Campaign, numbers: Sequence[int]) -> Iterator[Stage]:
    """Yield what each specialist was made from."""
    for number in numbers:
        stage = campaign.workspace.stage(number)
        found = {step: read_manifest(stage, step) for step in ("label", "calibrate", "curate", "train")}
        made = found["train"]
        if made is None:
            continue
        lineage = [("annotated cases", made["inputs"]["gold"]), ("plan", made["inputs"]["plan"])]
        if made["inputs"]["labels"] != "none" and found["label"] and found["curate"]:
            lineage += [
                ("specialist that prompted", found["label"]["inputs"]["specialist"]),
                ("unlabeled cases", found["label"]["cases"]["cases"]),
                ("answers", found["label"]["outputs"]["candidates"]),
            ]
            if found["calibrate"] and "calibration" in found["curate"]["inputs"]:
                lineage.append(("calibration", found["calibrate"]["outputs"]["calibration"]))
            lineage += [
                ("priors", found["curate"]["inputs"]["priors"]),
                ("pseudo-labels", made["inputs"]["labels"]),
            ]
        lineage.append(("specialist", made["outputs"]["specialist"]))
        yield Stage(
            name=stage_name(number),
            method=made["settings"]["train"]["method"],
            annotated=len(campaign.at(number).catalog.of(Role.GOLD)),
            pseudo=made["outputs"]["pseudo_labels"],
            lineage=tuple((what, str(digest)[:_DIGITS]) for what, digest in lineage),
        )
