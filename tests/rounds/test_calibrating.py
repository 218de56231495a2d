"""A campaign in which labeled cases decide what is believed: what it sees, repeats and admits."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.listening import Listener
from tutelage.curation.calibration import from_dict
from tutelage.errors import SettingsError
from tutelage.labels.rows import Rows, read_table
from tutelage.records import Role
from tutelage.rounds import counting, covering, tracing
from tutelage.rounds.calibrating import calibrate
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.run import plan, run, stage, step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.training import believed_cases
from tutelage.rounds.workspace import LABELS_ONLY, Workspace
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = pytest.mark.torch

ON = [
    *("archive.synthetic.patients=8", "archive.split.gold=3", "train.steps=8", "curation.min_agreement=0.3"),
    *("curation.calibration.enabled=true", "curation.calibration.alpha=0.25"),
    *("curation.calibration.min_dice=0.1", "curation.calibration.partial_dice=0.05"),
    *("curation.calibration.voxels=true", "curation.calibration.steps_share=1.0"),
]

FOLDS = [f"fold-{n}" for n in range(3)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]) -> Path:
    """The configuration of a campaign that has calibrated; its workspace lies beside it."""
    config = write_tiny(tmp_path_factory.mktemp("campaign"), "workspace")
    run(load(config, RunSettings, ON), Listener())
    return config


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Callable[..., RunSettings]:
    """The settings of a copy of it, as a test wants them."""
    shutil.copytree(finished.parent / "workspace", tmp_path / "workspace")

    def settings(*overrides: str) -> RunSettings:
        told = [*ON, f"workspace={tmp_path / 'workspace'}", "archive.rescan=false", *overrides]
        return load(finished, RunSettings, told)

    return settings


def round_of(settings: RunSettings, name: str = "r00") -> Path:
    return Path(settings.workspace) / "rounds" / name


def made(folder: Path) -> dict[str, bytes]:
    """What calibration and curation have left that holds no times."""
    files = [folder / "calibration.json", folder / "ledger.parquet", *sorted((folder / "labels").iterdir())]
    return {file.name: file.read_bytes() for file in files}


@contextmanager
def spied(settings: RunSettings, trains: int = 99) -> Iterator[tuple[Campaign, list[Any], list[Any]]]:
    """A campaign that remembers what it trained and worked on, and dies after so many trainings."""
    with opened(settings, Listener()) as campaign:
        jobs: list[Any] = []
        worked: list[Any] = []

        def train(job: Any, *told: Any) -> str:
            if len(jobs) == trains:
                raise KeyboardInterrupt
            jobs.append(job)
            return campaign.runner.train(job, *told)

        def each(build: Any, job: Any, items: Any, limit: Any) -> Any:
            worked.extend(items["case"].to_pylist())
            return campaign.runner.each(build, job, items, limit)

        runner: Any = SimpleNamespace(train=train, each=each, outlives_workers=False)
        yield replace(campaign, runner=runner), jobs, worked


def test_the_page_says_how_well_answers_were_predicted_and_whether_bounds_held(finished: Path) -> None:
    with opened(load(finished, RunSettings, ON), Listener()) as campaign:
        held = covering.held(campaign, 0)
        _, counted = counting.counted(campaign, 0)
    assert held is not None
    assert sum(count for _, _, count in counted.means()) == held.answers > 0
    assert counted.bounded == round(held.bounded * held.answers)
    if counted.bounded:
        assert counted.covered / counted.bounded == pytest.approx(held.covered)
    page = (finished.parent / "workspace" / "report.html").read_text()
    assert all(said in page for said in ('id="calibration"', "Predicted and true Dice", "mean error of 0."))


def test_verdicts_rest_on_a_bound_and_say_so(finished: Path) -> None:
    ledger = list(read_table(Place.of(finished.parent / "workspace" / "ledger.parquet")))
    bounded = [row for row in ledger if row["dice_low"] is not None]
    assert bounded
    for row in bounded:
        assert 0 <= row["dice_low"] <= row["predicted_dice"] + 1e-9
        assert any("at a level of 75%" in reason for reason in row["reasons"])
        enough = row["dice_low"] >= 0.1
        assert (row["ruling"] == "accept") == enough, row["reasons"]


def test_only_labeled_cases_are_tried_each_by_a_specialist_that_never_saw_its_patient(finished: Path) -> None:
    stage_ = Place.of(finished.parent / "workspace") / "rounds" / "r00"
    rows = Rows(stage_ / "calibrate.rows").read()
    with opened(load(finished, RunSettings, ON), Listener()) as campaign:
        gold = campaign.catalog.of(Role.GOLD)
    assert [row["case"] for row in rows] == sorted(case.case for case in gold)
    prompted = {row["case"]: row["specialist"] for row in rows}
    for name in FOLDS:
        manifest = json.loads((stage_ / "calibration" / f"{name}.manifest.json").read_text())
        left_out = [case for case, digest in prompted.items() if digest == manifest["outputs"]["specialist"]]
        assert manifest["inputs"]["gold"] == gold.without(left_out).identity()
        assert len(left_out) == 1
    assert len(set(prompted.values())) == 3


def test_folds_learn_from_labels_of_others_alone(copied: Callable[..., RunSettings]) -> None:
    settings = copied()
    shutil.rmtree(round_of(settings) / "calibration")
    (round_of(settings) / "calibrate.manifest.json").unlink()
    with spied(settings) as (campaign, jobs, worked):
        gold = {case.case for case in campaign.catalog.of(Role.GOLD)}
        calibrate(campaign, 0)
    assert sorted(worked) == []  # the specialists came out the same, so the answers still stand
    assert [gold - {case.case for case in job.gold} for job in jobs] == [{case} for case in sorted(gold)]
    for job in jobs:
        assert (job.pseudo, job.unlabeled, job.validation) == ((), (), ())
        assert (job.settings.method, job.settings.steps) == ("supervised", 8)


def test_all_cases_of_a_patient_are_left_out_together(copied: Callable[..., RunSettings]) -> None:
    settings = copied()
    with spied(settings) as (campaign, jobs, _):
        first, second, third = (case for case in campaign.catalog.of(Role.GOLD))
        twins = [first, replace(second, patient=first.patient), third]
        cases = type(campaign.catalog.cases).of(twins)
        calibrate(replace(campaign, catalog=replace(campaign.catalog, cases=cases)), 0)
    assert jobs == []  # two patients are too few, though three cases were not
    told = from_dict(json.loads((round_of(settings) / "calibration.json").read_text()))
    assert told.patients == 2


def test_a_later_round_calibrates_anew_and_folds_learn_from_what_was_believed_before(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied("rounds=2")
    step(settings, Listener(), "label", 1)
    with spied(settings) as (campaign, jobs, worked):
        gold = {case.case for case in campaign.catalog.of(Role.GOLD)}
        believed = {case.case for case in believed_cases(campaign, campaign.workspace.stage(0))}
        calibrate(campaign, 1)
    step(settings, Listener(), "curate", 1)
    assert believed
    assert [gold - {case.case for case in job.gold} for job in jobs] == [{case} for case in sorted(gold)]
    for job in jobs:
        assert {case.case for case in job.pseudo} == believed
        assert job.labels == str(round_of(settings) / "labels")
    assert sorted(worked) == sorted(gold)
    first, second = (round_of(settings, name) for name in ("r00", "r01"))
    assert (first / "calibration.json").read_bytes() != (second / "calibration.json").read_bytes()
    told = json.loads((second / "calibrate.manifest.json").read_text())["outputs"]["calibration"]
    rows = [list(read_table(Place.of(folder / "ledger.parquet"))) for folder in (first, second)]
    before, after = ({row["calibration"] for row in ledger} for ledger in rows)
    assert after == {told}
    assert len(before) == 1
    assert before.isdisjoint(after)
    row = next(row for row in rows[0] if row["case"] in believed and row["weight"])
    story = tracing.story(Workspace(Place.of(settings.workspace)), row["case"])
    assert [(one.round, one.fold, one.saw, one.label) for one in story.calibrated] == [
        ("r01", name, "its pseudo-label", row["label"]) for name in FOLDS
    ]


def test_a_story_tells_which_folds_learned_from_a_label_and_which_one_left_it_out(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied()
    workspace = Workspace(Place.of(settings.workspace))
    with opened(settings, Listener()) as campaign:
        cases = {role: list(campaign.catalog.of(role)) for role in Role}
    label = cases[Role.GOLD][1].label
    told = tracing.story(workspace, cases[Role.GOLD][1].case).calibrated
    assert [(fold.round, fold.fold, fold.left_out) for fold in told] == [
        ("r00", name, name == "fold-1") for name in FOLDS
    ]
    assert {fold.saw for fold in told if not fold.left_out} == {f"its label by people, {label}"}
    assert told[1].saw.startswith("nothing")
    tried = {row["case"]: row["specialist"] for row in Rows(workspace.stage(0) / "calibrate.rows").read()}
    assert told[1].specialist == tried[cases[Role.GOLD][1].case]
    for role in (Role.UNLABELED, Role.VALIDATION, Role.TEST):
        assert tracing.story(workspace, cases[role][0].case).calibrated == ()


def test_a_story_claims_nothing_of_folds_that_learned_from_other_labels(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied()
    with opened(settings, Listener()) as campaign:
        case = campaign.catalog.of(Role.GOLD)[1].case
    for name, key in (("fold-0", "inputs"), ("fold-2", "outputs")):
        place = round_of(settings) / "calibration" / f"{name}.manifest.json"
        manifest = json.loads(place.read_text())
        manifest[key] |= {"gold": "others"}
        if key == "outputs":
            del manifest[key]["left_out"]  # as earlier versions wrote it
        place.write_text(json.dumps(manifest))
    told = tracing.story(Workspace(Place.of(settings.workspace)), case).calibrated
    assert [fold.saw.split(":")[0] for fold in told] == ["unknown", "nothing", "unknown"]


def test_cases_that_people_corrected_are_learned_from_and_not_tried(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied("curation.calibration.alpha=0.3")
    with spied(settings) as (campaign, jobs, _):
        gold = campaign.catalog.of(Role.GOLD)
        first, *others = campaign.catalog.of(Role.UNLABELED)
        more = [replace(first, role=Role.GOLD, label=first.hidden, hidden=None)]
        cases = type(campaign.catalog.cases).of([*gold, *more, *others])
        corrections: Any = SimpleNamespace(within=lambda number: {more[0].case: None})
        known = replace(campaign, catalog=replace(campaign.catalog, cases=cases), corrections=corrections)
        calibrate(known, 0)
    assert len(jobs) == 3
    assert all(more[0].case in {case.case for case in job.gold} for job in jobs)
    assert more[0].case not in Rows(Place.of(round_of(settings) / "calibrate.rows")).cases()


def test_labels_that_nobody_may_see_leave_no_trace(finished: Path, tmp_path: Path) -> None:
    """Those of unlabeled, validation and test cases are emptied: every byte is as before."""
    settings = load(finished, RunSettings, [*ON, f"workspace={tmp_path / 'other'}"])
    with opened(settings, Listener()) as campaign:
        places = [case.hidden for case in campaign.catalog.of(Role.UNLABELED)]
        places += [case.label for role in (Role.VALIDATION, Role.TEST) for case in campaign.catalog.of(role)]
    for place in places:
        label = nibabel.load(str(place))
        empty = np.zeros(label.shape, label.get_data_dtype())
        nibabel.save(nibabel.Nifti1Image(empty, label.affine, label.header), str(place))
    step(settings, Listener(), "train", LABELS_ONLY)
    for name in ("label", "calibrate", "curate"):
        step(settings, Listener(), name, 0)
    assert len(places) == 5
    assert made(round_of(settings)) == made(finished.parent / "workspace" / "rounds" / "r00")


def test_a_run_that_died_between_folds_trains_only_the_others(
    finished: Path, copied: Callable[..., RunSettings]
) -> None:
    settings = copied()
    folder = round_of(settings)
    for name in ("calibration", "calibrate.rows", "labels", "curate.rows"):
        shutil.rmtree(folder / name)
    for name in ("calibrate.manifest.json", "calibration.json", "curate.manifest.json", "ledger.parquet"):
        (folder / name).unlink()
    with spied(settings, trains=2) as (campaign, jobs, _), pytest.raises(KeyboardInterrupt):
        calibrate(campaign, 0)
    assert len(jobs) == 2
    with spied(settings) as (campaign, jobs, worked):
        calibrate(campaign, 0)
        assert [Path(job.out).name for job in jobs] == FOLDS[2:]
        assert len(worked) == 3
    step(settings, Listener(), "curate", 0)
    assert made(folder) == made(finished.parent / "workspace" / "rounds" / "r00")


def test_what_is_asked_of_a_bound_repeats_no_training_and_no_question(
    copied: Callable[..., RunSettings],
) -> None:
    listener = Listener()
    stricter = copied("curation.calibration.min_dice=0.99")
    with opened(stricter, listener) as campaign:
        stage(campaign, 0)
    assert "r00 calibrate: done before" in listener.said
    assert "r00 curate: done before" not in listener.said
    ledger = list(read_table(Place.of(round_of(stricter) / "ledger.parquet")))
    assert "accept" not in {row["ruling"] for row in ledger if row["dice_low"] is not None}
    with spied(copied("curation.calibration.alpha=0.3")) as (campaign, jobs, worked):
        assert calibrate(campaign, 0).get("fresh")
        assert (jobs, worked) == ([], [])
    with spied(copied("curation.calibration.steps_share=0.9")) as (campaign, jobs, worked):
        calibrate(campaign, 0)
        assert (len(jobs), len(worked)) == (3, 3)


def test_with_too_few_labels_nothing_is_trained_and_verdicts_say_uncalibrated(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied("curation.calibration.alpha=0.1")
    with spied(settings) as (campaign, jobs, worked):
        manifest = calibrate(campaign, 0)
        assert (jobs, worked, manifest["outputs"]["bounded"]) == ([], [], [])
    step(settings, Listener(), "curate", 0)
    ruled = list(read_table(Place.of(round_of(settings) / "ledger.parquet")))
    said = [row for row in ruled if any(reason.startswith("uncalibrated: 3") for reason in row["reasons"])]
    assert said
    assert all(row["dice_low"] is None for row in ruled)
    step(copied_without(settings), Listener(), "curate", 0)
    plain = list(read_table(Place.of(round_of(settings) / "ledger.parquet")))
    assert [row["ruling"] for row in ruled] == [row["ruling"] for row in plain]


def copied_without(settings: RunSettings) -> RunSettings:
    off = settings.curation.calibration.model_copy(update={"enabled": False})
    return settings.model_copy(update={"curation": settings.curation.model_copy(update={"calibration": off})})


def test_nothing_is_calibrated_unless_somebody_wants_it(copied: Callable[..., RunSettings]) -> None:
    off = copied("curation.calibration.enabled=false")
    assert not any("calibrate" in name for name in plan(off))
    assert plan(copied())[3:6] == ["r00 label", "r00 calibrate", "r00 curate"]
    with pytest.raises(SettingsError, match="set it to true"):
        step(off, Listener(), "calibrate", 0)


def test_half_belief_above_whole_belief_is_refused(finished: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"curation.calibration.partial_dice: found 0.9, expected at most"
    ):
        load(finished, RunSettings, [*ON, "curation.calibration.partial_dice=0.9"])
