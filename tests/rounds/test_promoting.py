"""Promotion in a whole campaign: what it rests on, what it never sees, and when rounds end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.browser import tab
from tests.listening import Listener
from tutelage.errors import WorkspaceError
from tutelage.records import Role
from tutelage.rounds.campaign import opened
from tutelage.rounds.reporting import without_places
from tutelage.rounds.run import evaluate, report, run, step
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

pytestmark = pytest.mark.torch

HOPELESS = ["rounds=4", "promotion.min_gain=1.0", "promotion.patience=1", "train.steps=4"]
"""Nobody gains so much: every round is held back."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]) -> Path:
    """The configuration of a campaign that has stopped after one round of four."""
    config = write_tiny(tmp_path_factory.mktemp("campaign"), "workspace")
    listener = Listener()
    told = run(load(config, RunSettings, HOPELESS), listener)
    assert told.stopped == "r00 brought no new champion, and promotion.patience is 1"
    assert f"r01 does not begin: {told.stopped}" in listener.said
    return config


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Callable[..., RunSettings]:
    """The settings of a copy of it, as a test wants them."""
    shutil.copytree(stopped.parent / "workspace", tmp_path / "workspace")

    def settings(*overrides: str) -> RunSettings:
        told = [*HOPELESS, f"workspace={tmp_path / 'workspace'}", *overrides]
        return load(stopped, RunSettings, told)

    return settings


def promotions(workspace: Path) -> dict[str, Any]:
    """Return what was decided, by stage."""
    found = sorted(workspace.glob("rounds/*/promote.manifest.json"))
    return {path.parent.name: json.loads(path.read_text())["outputs"] for path in found}


def test_a_round_that_brings_nothing_is_the_last_and_the_page_says_why(stopped: Path) -> None:
    workspace = stopped.parent / "workspace"
    assert list(promotions(workspace)) == ["labels-only", "r00"]
    page = (workspace / "report.html").read_text()
    assert "It stopped early: r00 brought no new champion, and promotion.patience is 1." in page
    assert run(load(stopped, RunSettings, HOPELESS), Listener()).steps_done == 0


def test_reasons_are_kept_as_numbers(stopped: Path) -> None:
    reasons = promotions(stopped.parent / "workspace")["r00"]["reasons"]
    gain = next(reason for reason in reasons if reason["kind"] == "gain")
    assert (gain["passed"], gain["limit"]) == (False, 1.0)
    assert isinstance(gain["value"], float)


def test_more_patience_goes_on_where_rounds_stopped(copied: Callable[..., RunSettings]) -> None:
    settings = copied("promotion.patience=2")
    listener = Listener()
    told = run(settings, listener)
    assert "r00 promote: done before" in listener.said
    assert told.stopped == "r00 and r01 brought no new champion, and promotion.patience is 2"
    assert list(promotions(Path(settings.workspace))) == ["labels-only", "r00", "r01"]


def test_a_champion_is_what_was_decided_whenever_a_run_is_killed(
    tiny_config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(tiny_config("workspace"), RunSettings, ["train.steps=4"])
    champion = Path(settings.workspace) / "champion.json"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for kept in ("crown", "keeping.keep"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tutelage.rounds.steps.{kept}", killed)
            with pytest.raises(KeyboardInterrupt):
                run(settings, Listener())
        assert not champion.exists()
    told = run(settings, Listener())
    decided = champion.read_text()
    assert json.loads(decided)["stage"] == told.champion
    champion.write_text("{")
    report(settings, Listener())
    assert champion.read_text() == decided


def test_a_command_about_fewer_rounds_takes_no_champion_away(copied: Callable[..., RunSettings]) -> None:
    settings = copied()
    workspace = Path(settings.workspace)
    place = workspace / "rounds" / "r00" / "promote.manifest.json"
    place.write_text(place.read_text().replace('"hold"', '"promote"'))
    assert promotions(workspace)["r00"]["decision"] == "promote"
    report(settings, Listener())
    assert json.loads((workspace / "champion.json").read_text())["stage"] == "r00"
    report(copied("rounds=0"), Listener())
    assert json.loads((workspace / "champion.json").read_text())["stage"] == "r00"


def test_a_specialist_is_not_judged_by_the_scores_of_another(copied: Callable[..., RunSettings]) -> None:
    settings = copied()
    before = promotions(Path(settings.workspace))
    trained = Path(settings.workspace) / "rounds/r00/train.manifest.json"
    manifest = json.loads(trained.read_text())
    manifest["outputs"]["specialist"] = "trained anew"
    trained.write_text(json.dumps(manifest))
    with pytest.raises(WorkspaceError, match=r"r00, as it is now, was not scored .* run `tutelage evaluate`"):
        step(settings, Listener(), "promote", 0)
    assert promotions(Path(settings.workspace)) == before


def test_a_champion_that_learns_anew_is_none_until_it_is_judged(
    copied: Callable[..., RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it learns, then while it is judged: the page does not crown it either."""
    settings = copied("train.steps=5")
    champion = Path(settings.workspace) / "champion.json"
    assert json.loads(champion.read_text())["stage"] == "labels-only"

    def killed(*_: object) -> None:
        assert not champion.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tutelage.rounds.training._trained", killed)
        with pytest.raises(KeyboardInterrupt):
            step(settings, Listener(), "train", -1)
    report(settings, Listener())
    assert not champion.exists()
    step(settings, Listener(), "train", -1)
    report(settings, Listener())
    assert not champion.exists()
    step(settings, Listener(), "evaluate", -1)
    step(settings, Listener(), "promote", -1)
    assert json.loads(champion.read_text())["stage"] == "labels-only"


def test_a_round_without_a_case_to_label_says_so(tiny_config: Callable[[str], Path]) -> None:
    settings = load(tiny_config("workspace"), RunSettings, ["archive.split.unlabeled=0"])
    with pytest.raises(WorkspaceError, match=r"no case to label.*set archive\.split\.unlabeled above 0"):
        step(settings, Listener(), "label", 0)


def test_labels_of_test_cases_change_no_decision(
    copied: Callable[..., RunSettings], stopped: Path, tmp_path: Path
) -> None:
    settings = copied(f"workspace={tmp_path / 'other'}")
    with opened(settings, Listener()) as campaign:
        labels = [case.label for case in campaign.catalog.of(Role.TEST)]
    for place in labels:
        label = nibabel.load(str(place))
        empty = np.zeros(label.shape, label.get_data_dtype())
        nibabel.save(nibabel.Nifti1Image(empty, label.affine, label.header), str(place))
    told = run(settings, Listener())
    before = stopped.parent / "workspace"
    assert promotions(tmp_path / "other") == promotions(before)
    cards = [evaluate(one, Listener(), Role.TEST).test[0][1] for one in (copied(), settings)]
    assert cards[0].specialist == cards[1].specialist
    assert cards[0].scores != cards[1].scores
    assert told.champion == "labels-only"


def test_the_page_has_pictures_of_validation_cases_and_no_address_of_a_file(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied()
    workspace = Path(settings.workspace)
    with opened(settings, Listener()) as campaign:
        cases = {role: [case.case for case in campaign.catalog.of(role)] for role in Role}
        images = [case.image for role in Role for case in campaign.catalog.of(role)]
    (workspace / "report.html").unlink()
    (workspace / "report.manifest.json").unlink()
    report(settings, Listener())
    page = (workspace / "report.html").read_text()
    assert page.count("<img") >= 5
    assert all(f", {case}, Dice" in page for case in cases[Role.VALIDATION])
    assert not any(f", {case}, Dice" in page for case in cases[Role.TEST])
    assert not any(image in page for image in images)
    assert all(f'id="{section}"' in page for section in ("story", "work", "lineage", "curation"))


@pytest.mark.process
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_the_page_that_a_run_has_written(
    stopped: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    with tab(tmp_path / "profile") as shown:
        shown.open(stopped.parent / "workspace" / "report.html", width, dark)
        assert shown.complaints() == []
        widths = shown.value("[...document.images].map(one => one.complete ? one.naturalWidth : 0)")
        assert len(widths) >= 5
        assert all(widths)
        assert shown.value("document.documentElement.scrollWidth <= screen.width")


@pytest.mark.parametrize(
    ("reason", "address", "told"),
    [
        ("/data/DOE^JOHN/1.nii.gz is truncated", "/data/DOE^JOHN/1.nii.gz", "the file is truncated"),
        ("1.nii.gz: no header", "/data/x/1.nii.gz", "the file: no header"),
        ("cannot read s3://bucket/doe/2.nii: gone", "", "cannot read a file: gone"),
        ("8/10 voxels differ", "", "8/10 voxels differ"),
        ("x" * 400, "", "x" * 300 + "..."),
    ],
    ids=["an address", "a name", "another address", "a share", "long"],
)
def test_reasons_name_no_files(reason: str, address: str, told: str) -> None:
    assert without_places(reason, address) == told
