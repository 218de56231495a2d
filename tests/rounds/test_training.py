"""What a stage trains with, by its method: which steps come first, and what makes it train again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from tutelage.archive import formats
from tutelage.archive.cases import Cases
from tutelage.archive.catalog import Catalog
from tutelage.casework.training import TrainJob
from tutelage.errors import SettingsError
from tutelage.geometry import Grid
from tutelage.labels.rows import Rows
from tutelage.methods.needs import NEEDS, MethodName
from tutelage.records import Role
from tutelage.rounds.campaign import opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import plan, run, stage, step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.steps import evaluate
from tutelage.rounds.training import believed_cases, train
from tutelage.rounds.workspace import LABELS_ONLY
from tutelage.settings import load

UAMT = ["train.method=ua_mt", "rounds=1", "train.steps=6"]


def quiet() -> Reporter:
    return Reporter(Console(quiet=True))


@pytest.mark.parametrize("method", NEEDS)
def test_only_methods_that_learn_from_pseudo_labels_make_them(
    method: MethodName, tiny_config: Callable[[str], Path]
) -> None:
    steps = plan(load(tiny_config("workspace"), RunSettings, [f"train.method={method}"]))
    assert ("r00 label" in steps) == ("r00 curate" in steps) == NEEDS[method].pseudo
    assert [name for name in steps if name.startswith("labels-only")] == [
        f"labels-only {name}" for name in ("train", "evaluate", "promote")
    ]
    assert {"r00 train", "r00 evaluate", "r00 promote"} <= set(steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.method=ua_mt", "rounds=2"], r"rounds: found 2, .* ua_mt nothing new"),
        (["train.method=cps", "train.batch=1"], r"train.batch: found 1, of which 1 annotated"),
        (["train.method=cps", "train.gold_share=1.0"], r"train.batch: found 2, of which 2 annotated"),
        (
            ["train.method=cps", "cluster.backend=ray", "cluster.train_workers=2"],
            r"each of 2 workers; take 4 or more",
        ),
        (["train.batch=6", "train.accumulate=4"], r"1 workers, in 4 parts each .* take a multiple of 4"),
        (
            ["train.method=cps", "train.batch=4", "train.accumulate=4"],
            r"patch in each of 1 workers, in 4 parts each \(train.accumulate\); take 8 or more",
        ),
        (
            ["train.method=tutelage", "train.tutelage.distillation=0.1"],
            r"generalist.keep_grid: found false, but tutelage learns from embedding grids",
        ),
        (["train.select=best"], r"train.select: found best, .* set validate_every"),
        (["train.method=hope"], r"train.method: found 'hope'"),
    ],
)
def test_what_would_teach_nothing_is_refused_before_anything_starts(
    tiny_config: Callable[[str], Path], overrides: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tiny_config("workspace"), RunSettings, overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]) -> Path:
    """The configuration of a campaign whose round has learned by UA-MT."""
    config = write_tiny(tmp_path_factory.mktemp("campaign"), "workspace")
    overrides = [*UAMT, "train.validate_every=3", "train.select=best"]
    run(load(config, RunSettings, overrides), quiet())
    return config


def manifest(config: Path, stage: str) -> dict[str, Any]:
    place = config.parent / "workspace" / "rounds" / stage / "train.manifest.json"
    found: dict[str, Any] = json.loads(place.read_text())
    return found


@pytest.mark.torch
def test_a_method_without_pseudo_labels_runs_from_labels_to_a_champion(trained: Path) -> None:
    stage = trained.parent / "workspace" / "rounds" / "r00"
    assert not (stage / "labels").exists()
    assert not (stage / "label.manifest.json").exists()
    assert {"specialist", "specialist.last", "training.json", "scorecard.validation.json"} <= {
        path.name for path in stage.iterdir()
    }
    assert manifest(trained, "r00")["inputs"]["labels"] == "none"
    assert {"gold", "unlabeled", "validation"} <= set(manifest(trained, "r00")["inputs"])


@pytest.mark.torch
def test_the_first_specialist_is_supervised_whatever_comes_after(trained: Path) -> None:
    workspace = trained.parent / "workspace"
    told = json.loads((workspace / "rounds/labels-only/training.json").read_text())
    assert told["method"] == "supervised"
    assert json.loads((workspace / "rounds/r00/training.json").read_text())["method"] == "ua_mt"
    assert "ua_mt" not in manifest(trained, "labels-only")["settings"]["train"]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("train.cps.consistency=0.3", False),
        ("train.tutelage.mixing=false", False),
        ("generalist.keep_grid=true", False),
        ("curation.min_agreement=0.9", False),
        ("train.ua_mt.noise=0.2", True),
        ("train.augment.noise=0.2", True),
        ("train.select=last", True),
    ],
)
def test_a_stage_trains_again_when_its_method_reads_what_has_changed(
    trained: Path, override: str, again: bool
) -> None:
    settings = load(trained, RunSettings, [*UAMT, "train.validate_every=3", "train.select=best", override])
    found = step(settings.model_copy(update={"rounds": 1}), quiet(), "train", 0)
    assert bool(found.get("fresh")) == again
    if again:  # for whoever comes next
        step(
            load(trained, RunSettings, [*UAMT, "train.validate_every=3", "train.select=best"]),
            quiet(),
            "train",
            0,
        )


@pytest.mark.torch
@pytest.mark.parametrize("method", NEEDS)
def test_every_method_trains_on_what_a_campaign_gives_it(
    method: MethodName, trained: Path, tmp_path: Path
) -> None:
    """On the labels-only specialist and the catalog that are there already."""
    workspace = tmp_path / "workspace"
    shutil.copytree(trained.parent / "workspace", workspace, ignore=shutil.ignore_patterns("r00"))
    overrides = [
        *(f"workspace={workspace}", f"train.method={method}", "train.steps=3", "rounds=1"),
        *("priors.vectors.encoder=orthogonal", "archive.rescan=false", "generalist.keep_grid=true"),
        *("train.tutelage.text=bottleneck", "train.tutelage.distillation=0.1"),
    ]
    settings = load(trained, RunSettings, overrides)
    with opened(settings, quiet()) as campaign:
        stage(campaign, LABELS_ONLY)  # which has fewer steps here, and is scored anew
        stage(campaign, 0)
    told = json.loads((workspace / "rounds/r00/training.json").read_text())
    assert told["method"] == method
    first, then = (
        json.loads((workspace / f"rounds/{name}/train.manifest.json").read_text())
        for name in ("labels-only", "r00")
    )
    inputs, needs = then["inputs"], NEEDS[method]
    # Who goes on from a training would otherwise see its very patches, turned the same way, again.
    assert (first["settings"]["seed"] != then["settings"]["seed"]) == needs.continues
    assert ("texts" in inputs, "unlabeled" in inputs) == (needs.text, needs.unlabeled)
    assert ("start" in inputs, inputs["labels"] != "none") == (needs.continues, needs.pseudo)


@pytest.mark.torch
def test_a_stage_follows_the_plan_that_a_person_has_edited(trained: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(trained.parent / "workspace", workspace)
    followed = workspace / "rounds/labels-only/specialist/plan.yaml"
    edited = yaml.safe_load(followed.read_text()) | {"channels": [4, 8, 8]}
    edited["strides"] = edited["strides"][:2]
    (workspace / "plan.yaml").write_text(yaml.safe_dump(edited))
    settings = load(trained, RunSettings, [*UAMT, f"workspace={workspace}", "archive.rescan=false"])
    step(settings, quiet(), "train", LABELS_ONLY)
    assert yaml.safe_load(followed.read_text())["channels"] == [4, 8, 8]
    again = step(settings, quiet(), "train", LABELS_ONLY)
    assert not again.get("fresh")


@pytest.mark.torch
def test_scans_that_move_the_plan_make_training_start_over(trained: Path, tmp_path: Path) -> None:
    """Even where no unlabeled image is learned from, and whatever another plan's training had come to."""
    workspace = tmp_path / "workspace"
    shutil.copytree(trained.parent / "workspace", workspace)
    labels_only = workspace / "rounds/labels-only"
    told = [*UAMT, "train.validate_every=3", "train.select=best", "archive.rescan=false"]
    settings = load(trained, RunSettings, [*told, f"workspace={workspace}"])
    with opened(settings, quiet()) as campaign:
        assert not train(campaign, LABELS_ONLY).get("fresh")
        (labels_only / "checkpoint").write_text("of another plan")
        moved = replace(campaign, catalog=_twice_as_coarse(campaign.catalog))
        seen: list[bool] = []

        def spied(job: TrainJob, on_step: Callable[[Any], None], on_pace: Callable[[Any], None]) -> str:
            seen.append(Path(job.checkpoint).exists())
            return campaign.runner.train(job, on_step, on_pace)

        spy: Any = SimpleNamespace(train=spied)
        assert train(replace(moved, runner=spy), LABELS_ONLY).get("fresh")
        assert seen == [False]
        assert not train(moved, LABELS_ONLY).get("fresh")


@pytest.mark.torch
def test_a_label_that_was_replaced_in_place_is_learned_from(trained: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(trained.parent / "workspace", workspace)
    told = [*UAMT, "train.validate_every=3", "train.select=best", f"workspace={workspace}"]
    settings = load(trained, RunSettings, told)

    def replaced(role: Role) -> dict[str, bool]:
        """Which steps are done anew once somebody has put another label over that of a case."""
        with opened(settings, quiet()) as campaign:
            case = campaign.catalog.of(role)[0]
        label = str(case.label or case.hidden)
        mask_DHW = formats.read_label(label, case.grid, 99)
        mask_DHW[mask_DHW == 1] = 0
        formats.write_image(label, mask_DHW, case.grid)
        with opened(settings, quiet()) as campaign:
            return {
                step.__name__: bool(step(campaign, LABELS_ONLY).get("fresh")) for step in (train, evaluate)
            }

    with opened(settings, quiet()) as campaign:
        train(campaign, LABELS_ONLY)  # files that were copied are others
        evaluate(campaign, LABELS_ONLY)
    assert replaced(Role.UNLABELED) == {"train": False, "evaluate": False}
    assert replaced(Role.VALIDATION) == {"train": True, "evaluate": True}
    assert replaced(Role.GOLD)["train"]


def _twice_as_coarse(catalog: Catalog) -> Catalog:
    """The same cases, but unlabeled ones say that their voxels are larger."""
    cases = [
        replace(case, grid=Grid.from_spacing(case.grid.shape, tuple(2 * s for s in case.grid.spacing)))
        if case.role is Role.UNLABELED
        else case
        for case in catalog.cases
    ]
    return replace(catalog, cases=Cases.of(cases))


@pytest.mark.torch
def test_a_case_that_changed_and_failed_is_not_learned_from_by_its_old_label(
    tiny_campaign: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(tiny_campaign.parent / "workspace", workspace)
    settings = load(tiny_campaign, RunSettings, [f"workspace={workspace}", "archive.rescan=false"])
    with opened(settings, quiet()) as campaign:
        folder = campaign.workspace.stage(0)
        before = {case.case for case in believed_cases(campaign, folder)}
        changed, *others = sorted(before)
        answers = Rows(folder / "label.rows")
        (row,) = (row for row in answers.read() if row["case"] == changed)
        with answers:
            answers.add(row | {"of": "another image", "outcome": "failed", "candidate": None})
        assert {case.case for case in believed_cases(campaign, folder)} == set(others)
        with answers:
            answers.add(row | {"of": "another image", "candidate": "another answer"})
        assert {case.case for case in believed_cases(campaign, folder)} == set(others)
