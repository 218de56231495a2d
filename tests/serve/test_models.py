"""Which models there are: told, loaded when asked for, and kept while there is room."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serve.specialists import (
    Serve,
    counted,
    digest,
    nan,
)
from tutelage.errors import SettingsError, TrainingError, WorkspaceError

pytestmark = pytest.mark.torch


# --- what is served -----------------------------------------------------------------------


def test_the_first_model_is_the_default_and_all_are_told(serving: Serve, workspace: Path) -> None:
    folder = workspace / "rounds" / "r00" / "specialist"
    models = serving({"torso": workspace, "newer": folder})
    assert models.ready
    assert models.get().name == models.get("torso").name == "torso"
    models.refresh()
    torso, newer = models.describe()
    assert (torso["name"], torso["default"], torso["loaded"]) == ("torso", True, True)
    assert (torso["version"], torso["round"]) == ("labels-only", "labels-only")
    assert torso["specialist"] == digest(workspace, "labels-only")
    assert torso["structures"] == [{"value": 1, "structure": "liver"}, {"value": 2, "structure": "spleen"}]
    assert torso["selftest"] == {"stored_case": False, "dice": None, "least": None}
    assert (newer["default"], newer["specialist"]) == (False, digest(workspace, "r00"))
    assert len(torso["plan"]) == 64
    json.dumps(models.describe())


def test_a_name_nobody_serves_is_told_with_those_that_are(serving: Serve, workspace: Path) -> None:
    from serve.models import UnknownModelError

    with pytest.raises(UnknownModelError, match="expected one of torso"):
        serving({"torso": workspace}).get("heart")
    with pytest.raises(SettingsError, match="no model is named"):
        serving({})


def test_what_cannot_be_served_at_first_is_an_error_with_its_reason(
    serving: Serve, specialist: Callable[..., str], tmp_path: Path, workspace: Path
) -> None:
    specialist(tmp_path / "bad", 5, nan)
    with pytest.raises(TrainingError, match="no numbers"):
        serving({"bad": tmp_path / "bad"})
    with pytest.raises(WorkspaceError, match="no champion"):
        serving({"nothing": tmp_path / "nothing"})
    models = serving({"torso": workspace, "bad": tmp_path / "bad"})
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"model bad is not served: .* no numbers"):
            models.get("bad")
    assert models.describe()[1]["refused"]["digest"]
    assert models.get().name == "torso"


def test_scores_and_anatomy_of_a_workspace_are_told(
    serving: Serve, tiny_campaign: Path, tmp_path: Path
) -> None:
    """A whole campaign: its champion passes on the case that was stored for it."""
    root = tmp_path / "campaign"
    shutil.copytree(tiny_campaign.parent / "workspace", root)
    settings, torso = root / "settings.yaml", Path(__file__).parents[2] / "configs" / "priors" / "torso.yaml"
    settings.write_text(settings.read_text().replace("shelf: null", f"shelf: {torso}"))
    (told,) = serving({"campaign": root}).describe()
    assert told["selftest"]["stored_case"]
    assert told["selftest"]["dice"] >= told["selftest"]["least"]
    assert set(told["scorecard"]) == {*(one["structure"] for one in told["structures"]), "mean"}
    assert "liver" in told["anatomy"]


def test_settings_that_cannot_be_read_leave_a_workspace_without_anatomy(
    serving: Serve, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (workspace / "settings.yaml").write_text("archive: [")
    assert serving({"torso": workspace}).describe()[0]["anatomy"] == []
    assert "unreadable" in caplog.text


# --- room ---------------------------------------------------------------------------------


def test_the_model_not_asked_for_longest_makes_room(
    serving: Serve, specialist: Callable[..., str], tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in "abc"}
    digests = {name: specialist(folder, seed) for seed, (name, folder) in enumerate(folders.items())}
    models = serving(folders, loaded=2)
    models.get("b")
    models.get("a")
    models.get("c")
    assert list(models.loaded()) == ["a", "c"]
    assert models.get("b").digest == digests["b"]
    assert list(models.loaded()) == ["c", "b"]
    assert [one["loaded"] for one in models.describe()] == [False, True, True]
    assert all(one["specialist"] for one in models.describe()), "what was tested is told, loaded or not"


def test_many_who_ask_at_once_load_a_model_once(
    serving: Serve, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import models as module

    models = serving({"torso": workspace, "newer": workspace / "rounds" / "r00" / "specialist"})
    loads = counted(monkeypatch, module)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: models.get("newer"), range(6)))
    assert len(set(map(id, found))) == 1
    assert len(loads) == 1
