"""Which specialist is meant: a folder, a workspace's champion, or a version in MLflow's registry."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import WorkspaceError
from tutelage.records import Decision
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, read_manifest, stage_name, stages_of
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.tracking.registry import Registry

REGISTERED = "models:/"
"""What addresses in MLflow's registry start with."""

_DESCRIPTION = "specialist.json"
_RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """A specialist's folder, and how it is called where a person is told of it."""

    folder: Place
    address: str


@contextlib.contextmanager
def specialist(model: str | None, tracking_uri: str | None = None) -> Iterator[Found]:
    """Have the specialist that a person names; what a registry sends is here for as long as this lasts.

    Without a name it is the champion of the workspace under ./runs that got one last.

    Raises:
        WorkspaceError: there is no specialist there.
        TrackingError: the registry does not know it.
    """
    if model is not None and model.startswith(REGISTERED):
        with tempfile.TemporaryDirectory(prefix="tutelage-specialist-") as folder:
            yield Found(Place.of(registry(tracking_uri).download(model, Path(folder))), model)
    else:
        place = champion(newest()) if model is None else _at(model)
        yield Found(place, str(place))


def _at(address: str) -> Place:
    """Return the folder of a specialist at an address: itself, or a workspace's champion."""
    place = Place.of(address)
    if (place / _DESCRIPTION).exists():
        return place
    if not place.exists():
        raise WorkspaceError(
            f"{place} does not exist; `tutelage run` makes a workspace; "
            "or name the folder of a specialist, or models:/name@champion"
        )
    return champion(Workspace(place))


def champion(workspace: Workspace) -> Place:
    """Return the folder of a workspace's champion."""
    if not workspace.champion.exists():
        raise WorkspaceError(
            f"{workspace.root} has no champion (no {workspace.champion.name}) and is no specialist's folder "
            f"(no {_DESCRIPTION}); run `tutelage run` to the end of its first stage"
        )
    try:
        folder = workspace.root / str(json.loads(workspace.champion.read_text())["folder"])
    except (ValueError, KeyError) as error:
        raise WorkspaceError(
            f"{workspace.champion} is damaged ({error!r}); `tutelage report` writes it anew"
        ) from None
    if not (folder / _DESCRIPTION).exists():
        raise WorkspaceError(
            f"{workspace.champion} points to {folder}, where no specialist is; train it again"
        )
    return folder


def champion_after(workspace: Workspace, number: int) -> int | None:
    """Return the stage whose specialist was the champion when a stage, and all before it, had been judged.

    A specialist that learns anew, or has, is another one than was judged.
    """
    for earlier in range(number, LABELS_ONLY - 1, -1):
        if _won(workspace.stage(earlier)):
            return earlier
    return None


def _won(stage: Place) -> bool:
    judged, trained = read_manifest(stage, "promote"), read_manifest(stage, "train")
    if judged is None or trained is None:
        return False
    told, now = judged["outputs"], trained["outputs"]["specialist"]
    # Decisions of earlier versions do not name whom they are about.
    return bool(told["decision"] == Decision.PROMOTE.value and told.get("specialist", now) == now)


def crown(workspace: Workspace, stage: str | None) -> None:
    """Have a workspace say that a stage's specialist is its champion, or that nobody is."""
    if stage is None:
        workspace.champion.remove()
        return
    told = json.dumps({"stage": stage, "folder": f"rounds/{stage}/specialist"})
    if not workspace.champion.exists() or workspace.champion.read_text() != told:
        workspace.champion.write_text(told)


def crown_rightly(workspace: Workspace) -> str | None:
    """Have a workspace say what was decided about its specialists, and return the champion's stage.

    By all stages that it has: a command about fewer rounds takes no champion away.
    """
    winner = champion_after(workspace, max(stages_of(workspace), default=LABELS_ONLY))
    stage = None if winner is None else stage_name(winner)
    crown(workspace, stage)
    return stage


def newest() -> Workspace:
    """Return the workspace under ./runs whose champion was decided last."""
    found = sorted(_RUNS.glob("*/champion.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise WorkspaceError(
            f"no workspace under {_RUNS.absolute()} has a champion; name a specialist with -m, "
            "or train one with `tutelage run configs/quickstart.yaml`"
        )
    return Workspace(Place.of(found[-1].parent))


def registry(tracking_uri: str | None = None) -> "Registry":
    """Return MLflow's registry: at an address, else at MLFLOW_TRACKING_URI, else the newest workspace's.

    Raises:
        WorkspaceError: no address is known and there is no workspace.
        TrackingError: it does not answer.
    """
    from tutelage.tracking.registry import Registry
    from tutelage.tracking.settings import TrackingSettings

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    try:
        workspace = Place.of(_RUNS) if uri else newest().root
    except WorkspaceError:
        raise WorkspaceError(
            "a registered model is looked up in MLflow, but no address is known and no workspace is under "
            f"{_RUNS.absolute()}; name the MLflow with --tracking or MLFLOW_TRACKING_URI"
        ) from None
    return Registry.of(TrackingSettings(uri=uri), workspace)
