"""Which specialist a person means, and what is said when there is none."""

import json
import os
from pathlib import Path

import pytest

from tutelage.errors import TrackingError, WorkspaceError
from tutelage.rounds.champion import newest, specialist
from tutelage.storage import Place
from tutelage.tracking.settings import TrackingSettings


def folder_of_specialist(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "specialist.json").write_text("{}")
    return folder


def workspace(root: Path, stage: str = "r00") -> Path:
    folder_of_specialist(root / "rounds" / stage / "specialist")
    champion = {"stage": stage, "folder": f"rounds/{stage}/specialist"}
    (root / "champion.json").write_text(json.dumps(champion))
    return root


def test_a_folder_is_itself_and_a_workspace_its_champion(tmp_path: Path) -> None:
    root = workspace(tmp_path / "ws")
    inside = root / "rounds" / "r00" / "specialist"
    for address in (inside, root):
        with specialist(str(address)) as found:
            assert (found.folder.local, found.address) == (inside, str(inside))


def test_without_a_name_the_newest_champion_under_runs_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        root = workspace(tmp_path / "runs" / name)
        os.utime(root / "champion.json", (1e9 - age, 1e9 - age))
    assert newest().root.name == "new"
    with specialist(None) as found:
        assert found.folder.local == tmp_path / "runs/new/rounds/r00/specialist"


def damage_nothing(root: Path) -> None:
    (root / "champion.json").unlink()


def damage_json(root: Path) -> None:
    (root / "champion.json").write_text("{")


def damage_folder(root: Path) -> None:
    (root / "rounds/r00/specialist/specialist.json").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [(damage_nothing, "has no champion"), (damage_json, "damaged"), (damage_folder, "no specialist")],
    ids=["no champion yet", "cut off", "specialist deleted"],
)
def test_a_workspace_without_a_champion_says_so(tmp_path: Path, damage: object, told: str) -> None:
    root = workspace(tmp_path / "ws")
    assert callable(damage)
    damage(root)
    with pytest.raises(WorkspaceError, match=told), specialist(str(root)):
        pass


def test_a_place_that_is_not_there_is_told_from_one_without_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match="does not exist"), specialist(str(tmp_path / "nothing")):
        pass
    with pytest.raises(WorkspaceError, match="quickstart"), specialist(None):
        pass


def test_a_registered_specialist_needs_to_know_which_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told = "--tracking or MLFLOW_TRACKING_URI"
    with pytest.raises(WorkspaceError, match=told), specialist("models:/specialist@champion"):
        pass


@pytest.mark.slow
def test_a_registered_specialist_comes_by_its_alias_and_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.tracking.campaign import Tracker

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = workspace(tmp_path / "runs" / "one")
    inside = Place.of(root / "rounds/r00/specialist")
    with Tracker(TrackingSettings(), Place.of(root), "one", {}) as tracker:
        version = tracker.register(tracker.stage("r00"), inside, "0123", {})
        tracker.registry.promote(version.version)
    uri = f"sqlite:///{root}/mlflow.db"
    for model, address in (("models:/one@champion", None), ("models:/one/1", uri)):
        with specialist(model, address) as found:
            assert (found.folder / "specialist.json").read_text() == "{}"
            assert found.address == model
        assert not found.folder.exists()
    with pytest.raises(TrackingError, match="no version has the alias"), specialist("models:/one@best", uri):
        pass
