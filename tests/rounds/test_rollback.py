"""Going back to a round and forward again: nothing is lost, whenever it is killed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.labels.rows import read_table
from tutelage.rounds import ledger, rollback
from tutelage.rounds.workspace import Workspace, stage_name, stages_of
from tutelage.storage import Place

pytestmark = pytest.mark.files

DECISIONS = {-1: "promote", 0: "promote", 1: "hold", 2: "promote"}


def stage(workspace: Workspace, number: int, text: str = "") -> None:
    """What a finished stage leaves."""
    folder = workspace.stage(number)
    for name, outputs in (("train", {"specialist": "s"}), ("promote", {"decision": DECISIONS[number]})):
        (folder / f"{name}.manifest.json").write_text(json.dumps({"outputs": outputs}))
    (folder / "specialist" / "weights.pt").write_text(f"of {number}{text}")
    if number >= 0:
        rows = [{"round": stage_name(number), "case": "a", "structure": "liver"}]
        ledger._stream(folder / "ledger.parquet", ledger._tables(iter(rows)))


@pytest.fixture(params=["local", "through pyarrow"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    root = Place.of(tmp_path) if request.param == "local" else Place(f"file://{tmp_path}")
    made = Workspace(root)
    for number in DECISIONS:
        stage(made, number)
    made.champion.write_text(json.dumps({"stage": "r02", "folder": "rounds/r02/specialist"}))
    ledger.join([made.stage(n) / "ledger.parquet" for n in range(3)], made.ledger)
    return made


def files(workspace: Workspace) -> Mapping[str, bytes]:
    """Every file but the ledger, which is written anew."""
    found = ((name, workspace.root / name) for name, _, _ in workspace.root.beneath())
    return {name: place.read_bytes() for name, place in found if name != "ledger.parquet"}


def rounds(workspace: Workspace) -> list[str]:
    return [row["round"] for row in read_table(workspace.ledger)]


def test_going_back_sets_later_rounds_aside_and_the_champion_is_what_it_was(workspace: Workspace) -> None:
    moved = rollback.back(workspace, 1)
    assert stages_of(workspace) == [-1, 0, 1]
    assert (moved.stages, moved.champion, moved.champion_before) == (("r02",), "r00", "r02")
    assert json.loads(workspace.champion.read_text())["folder"] == "rounds/r00/specialist"
    assert rounds(workspace) == ["r00", "r01"]
    aside = workspace.root / "rounds" / ".set-aside" / "001" / "r02" / "specialist" / "weights.pt"
    assert aside.read_text() == "of 2"


def test_going_forward_again_leaves_everything_as_it_was(workspace: Workspace) -> None:
    before = files(workspace)
    rollback.back(workspace, -1)
    assert stages_of(workspace) == [-1]
    assert not workspace.ledger.exists()
    rollback.forward(workspace, "001")
    assert files(workspace) == before
    assert rounds(workspace) == ["r00", "r01", "r02"]


def test_a_dry_run_moves_nothing(workspace: Workspace) -> None:
    before = files(workspace)
    assert rollback.back(workspace, 0, dry_run=True).stages == ("r01", "r02")
    assert files(workspace) == before


def test_what_is_made_anew_is_not_overwritten_by_what_was_set_aside(workspace: Workspace) -> None:
    rollback.back(workspace, 1)
    stage(workspace, 2, " anew")
    with pytest.raises(WorkspaceError, match=r"r02 of .* are there again"):
        rollback.forward(workspace, "001")
    assert rollback.back(workspace, 1).aside == "002"
    rollback.forward(workspace, "001")
    assert (workspace.specialist(2) / "weights.pt").read_text() == "of 2"


def test_a_kill_on_the_way_leaves_a_whole_campaign_and_nothing_lost(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(workspace)
    move = Place.move
    moved: list[str] = []

    def dying(self: Place, to: Place) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(self.name)
        move(self, to)

    with monkeypatch.context() as patched:
        patched.setattr(Place, "move", dying)
        with pytest.raises(KeyboardInterrupt):
            rollback.back(workspace, 0)
    assert moved == ["r02"]
    assert stages_of(workspace) == [-1, 0, 1]  # no gap
    rollback.back(workspace, 0)
    assert stages_of(workspace) == [-1, 0]
    rollback.forward(workspace, "002")
    rollback.forward(workspace, "001")
    assert files(workspace) == before


@pytest.mark.parametrize("way", ["back", "forward"])
@pytest.mark.parametrize("moved", [1, 3])
def test_a_stage_of_which_a_kill_moved_some_files_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, moved: int
) -> None:
    """As on an object store, where a folder moves file by file."""
    made = Workspace(Place(f"file://{tmp_path}"))
    for number in DECISIONS:
        stage(made, number)
    before = files(made)
    if way == "forward":
        rollback.back(made, 1)
    move, left = Place._moved, [None] * moved

    def dying(self: Place, filesystem: Any, path: str, target: str) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        move(self, filesystem, path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Place, "_moved", dying)
        with pytest.raises(KeyboardInterrupt):
            rollback.back(made, 1) if way == "back" else rollback.forward(made, "001")
    assert (made.stage(2).exists(), (made.root / "rounds/.set-aside/001/r02").exists()) == (True, True)
    rollback.put_together(made)
    assert stages_of(made) == ([-1, 0, 1] if way == "back" else [-1, 0, 1, 2])
    if way == "back":
        rollback.forward(made, "001")
    assert {name: held for name, held in files(made).items() if "set-aside" not in name} == {
        **before,
        "champion.json": made.champion.read_bytes(),
    }


def test_rounds_come_back_in_their_order(workspace: Workspace) -> None:
    rollback.back(workspace, 1)
    rollback.back(workspace, 0)
    before = files(workspace)
    with pytest.raises(WorkspaceError, match=r"001 begins with r02, but r01 is what comes next"):
        rollback.forward(workspace, "001")
    assert files(workspace) == before
    rollback.forward(workspace, "002")
    assert rollback.forward(workspace, "001").champion == "r02"


@pytest.mark.parametrize("number", [7, 2])
def test_a_round_that_cannot_be_gone_back_to_is_refused(workspace: Workspace, number: int) -> None:
    before = files(workspace)
    with pytest.raises(SettingsError, match=r"r07, expected one of labels-only, r00|r02 is the last"):
        rollback.back(workspace, number)
    assert files(workspace) == before


def test_an_unknown_name_is_told_the_known_ones(workspace: Workspace) -> None:
    rollback.back(workspace, 1)
    with pytest.raises(SettingsError, match="as 009; there is 001"):
        rollback.forward(workspace, "009")
