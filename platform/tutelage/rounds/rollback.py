"""Going back to a round: what came later is set aside, and the champion is what it was then.

Nothing is deleted. Later stages move into `rounds/.set-aside/NNN` with a note of what was
the champion; going forward again moves them back. The note is written first and stages
move from the last one on, so that a kill on the way leaves a campaign that is whole. Object
stores move a stage file by file: a mark says which one is on its way, and where to.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.rounds import ledger
from tutelage.rounds.champion import champion_after, crown_rightly
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, read_manifest, stage_name, stages_of
from tutelage.storage import Place

_NOTE = "aside.json"
_MARK = "moving.json"


@dataclass(frozen=True)
class Moved:
    """What was done, or would be."""

    back_to: str
    stages: tuple[str, ...]
    """Set aside, or brought back."""
    aside: str
    """Name of what was set aside."""
    folder: str
    champion: str | None
    """Stage of the champion now."""
    champion_before: str | None
    ledger_rounds: int
    """Rounds in the ledger now."""


def back(workspace: Workspace, number: int, dry_run: bool = False) -> Moved:
    """Set aside every stage after one.

    Raises:
        SettingsError: that stage is not trained, or none comes after it.
    """
    if not dry_run:
        put_together(workspace)
    stages = stages_of(workspace)
    name = stage_name(number)
    if number not in stages or read_manifest(workspace.stage(number), "train") is None:
        there = [stage_name(n) for n in stages if read_manifest(workspace.stage(n), "train")]
        raise SettingsError(
            f"{workspace.root} has no trained {name}, expected one of {', '.join(there) or 'none yet'}"
        )
    later = [stage for stage in stages if stage > number]
    if not later:
        if not dry_run:
            _settle(workspace)  # a kill may have come before that was done
        raise SettingsError(f"{name} is the last stage of {workspace.root}; there is nothing to go back from")
    folder = _set_aside(workspace) / f"{_count(workspace) + 1:03d}"
    moved = Moved(
        back_to=name,
        stages=tuple(stage_name(stage) for stage in later),
        aside=folder.name,
        folder=str(folder),
        champion=_champion_at(workspace, number),
        champion_before=_champion(workspace),
        ledger_rounds=len([n for n in stages if 0 <= n <= number]),
    )
    if dry_run:
        return moved
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    (folder / _NOTE).write_text(
        json.dumps({"when": when, "stages": moved.stages, "champion": moved.champion_before}, indent=1)
    )
    for stage in reversed(moved.stages):
        _move(workspace, folder, stage, aside=True)
    _settle(workspace)
    return moved


def forward(workspace: Workspace, aside: str, dry_run: bool = False) -> Moved:
    """Bring back what was set aside.

    Raises:
        SettingsError: nothing of that name was set aside.
        WorkspaceError: stages of the same names have been made since, or those before them are not there.
    """
    if not dry_run:
        put_together(workspace)
    folder = _set_aside(workspace) / aside
    if not (folder / _NOTE).exists():
        there = [place.name for place in _set_aside(workspace).folders()]
        raise SettingsError(f"nothing was set aside as {aside}; there is {', '.join(there) or 'nothing'}")
    note: dict[str, Any] = json.loads((folder / _NOTE).read_text())
    here = {place.name for place in folder.folders()}
    stages = [stage for stage in note["stages"] if stage in here]
    taken = [stage for stage in stages if (workspace.root / "rounds" / stage).exists()]
    if taken:
        raise WorkspaceError(
            f"{', '.join(taken)} of {workspace.root} are there again; go back before {taken[0]} first "
            "(tutelage rollback), which sets them aside too"
        )
    before = stages_of(workspace)
    if stages and stages[0] != (next_one := stage_name(max(before, default=LABELS_ONLY - 1) + 1)):
        raise WorkspaceError(
            f"{aside} begins with {stages[0]}, but {next_one} is what comes next in {workspace.root}; "
            f"bring back first what holds {next_one} (tutelage rollback --undo)"
        )
    moved = Moved(
        back_to=stages[-1] if stages else stage_name(before[-1]),
        stages=tuple(stages),
        aside=aside,
        folder=str(folder),
        champion=note["champion"],
        champion_before=_champion(workspace),
        ledger_rounds=len([n for n in before if n >= 0]) + len([s for s in stages if s != "labels-only"]),
    )
    if not dry_run:
        for stage in stages:
            _move(workspace, folder, stage, aside=False)
        moved = replace(moved, champion=_settle(workspace))
        folder.remove()
    return moved


def put_together(workspace: Workspace) -> None:
    """Have the stage of which a kill has left some files set aside and others not in one place again."""
    for folder in _set_aside(workspace).folders():
        if not (folder / _MARK).exists():
            continue
        told = json.loads((folder / _MARK).read_text())
        source, target = _ways(workspace, folder, told["stage"], told["aside"])
        if source.exists() and target.exists():
            source.move(target)
        (folder / _MARK).remove()


def _move(workspace: Workspace, folder: Place, stage: str, aside: bool) -> None:
    source, target = _ways(workspace, folder, stage, aside)
    (folder / _MARK).write_text(json.dumps({"stage": stage, "aside": aside}))
    source.move(target)
    (folder / _MARK).remove()


def _ways(workspace: Workspace, folder: Place, stage: str, aside: bool) -> tuple[Place, Place]:
    """From where to where a stage moves."""
    here, there = workspace.root / "rounds" / stage, folder / stage
    return (here, there) if aside else (there, here)


def _settle(workspace: Workspace) -> str | None:
    """Have champion and ledger say what the stages that are there say, and return the champion's."""
    parts = _ledgers(workspace, stages_of(workspace))
    if parts:
        ledger.join(parts, workspace.ledger)
    else:
        workspace.ledger.remove()
    return crown_rightly(workspace)


def _ledgers(workspace: Workspace, stages: Sequence[int]) -> list[Place]:
    places = (workspace.stage(number) / "ledger.parquet" for number in stages if number >= 0)
    return [place for place in places if place.exists()]


def _champion(workspace: Workspace) -> str | None:
    if not workspace.champion.exists():
        return None
    return str(json.loads(workspace.champion.read_text())["stage"])


def _champion_at(workspace: Workspace, number: int) -> str | None:
    """Name of the champion's stage after a stage was judged."""
    winner = champion_after(workspace, number)
    return None if winner is None else stage_name(winner)


def _set_aside(workspace: Workspace) -> Place:
    return workspace.root / "rounds" / ".set-aside"


def _count(workspace: Workspace) -> int:
    """The highest number that anything was set aside under."""
    numbers = [int(place.name) for place in _set_aside(workspace).folders() if place.name.isdigit()]
    return max(numbers, default=0)
