import time
from pathlib import Path

import pytest

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.rounds.workspace import LABELS_ONLY, Step, Workspace, read_manifest, stage_name
from tutelage.storage import Place


def step(folder: Path, **settings: float) -> Step:
    return Step(Place.of(folder), "label", settings, {"cases": "abc"})


def test_a_finished_step_is_vouched_for_until_its_settings_change(tmp_path: Path) -> None:
    step(tmp_path, margin=0.1).begin()
    assert step(tmp_path, margin=0.1).manifest() is None
    step(tmp_path, margin=0.1).finish(time.monotonic(), {"done": 3})
    found = step(tmp_path, margin=0.1).manifest()
    assert found is not None
    assert found["outputs"] == {"done": 3}
    assert step(tmp_path, margin=0.2).manifest() is None


def test_another_input_voids_a_manifest(tmp_path: Path) -> None:
    step(tmp_path).finish(time.monotonic(), {})
    assert Step(Place.of(tmp_path), "label", {}, {"cases": "abd"}).manifest() is None


def test_beginning_tells_whether_an_earlier_attempt_was_the_same(tmp_path: Path) -> None:
    assert step(tmp_path, margin=0.1).begin() is False
    assert step(tmp_path, margin=0.1).begin() is True
    assert step(tmp_path, margin=0.2).begin() is False


def test_beginning_anew_removes_leavings_before_it_looks_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(tmp_path, margin=0.1).begin()
    begun = step(tmp_path, margin=0.2)
    (begun.stage / "checkpoint").write_text("of margin 0.1")
    assert step(tmp_path, margin=0.1).begin("checkpoint")
    assert (begun.stage / "checkpoint").exists()
    with monkeypatch.context() as killed:
        killed.setattr(type(begun.stage), "write_text", _killed)
        with pytest.raises(KeyboardInterrupt):
            begun.begin("checkpoint")
    assert not (begun.stage / "checkpoint").exists()
    assert begun.begin("checkpoint") is False


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_beginning_withdraws_the_manifest(tmp_path: Path) -> None:
    step(tmp_path).finish(time.monotonic(), {})
    step(tmp_path).begin()
    assert read_manifest(Place.of(tmp_path), "label") is None


def test_a_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "label.manifest.json").write_text("{")
    with pytest.raises(WorkspaceError, match="delete it and run again"):
        read_manifest(Place.of(tmp_path), "label")


def test_a_workspace_that_could_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deep/ws"):
        told = pytest.raises(SettingsError, match="is no folder that can be written to")
        with told, Workspace(Place.of(tmp_path / place)).locked():
            pass
    with Workspace(Place.of(tmp_path / "new/ws")).locked():
        pass


def test_stages_are_named_in_order() -> None:
    assert [stage_name(n) for n in (LABELS_ONLY, 0, 11)] == ["labels-only", "r00", "r11"]
