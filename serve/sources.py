"""What the name of a model means now: a folder, a workspace's champion, or a version in MLflow's registry.

It decides how a change is noticed without fetching anything, how a specialist's files are had, and
what is known about it besides its weights. It loads no network and remembers nothing of what is
served.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml
from pydantic import ValidationError

from serve.segmenter import Known
from tutelage.casework import selftest
from tutelage.errors import TutelageError
from tutelage.rounds import champion, textual
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace
from tutelage.specialist import artifact
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.tracking.registry import Registry

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Meant:
    """Which specialist a source means at one moment."""

    digest: str
    """Of its weights; empty where a registry does not tell."""
    version: str
    stage: str | None
    """Of its campaign, if that is known: labels-only, r00, ..."""
    address: str
    """Folder or models:/name/3: stays true when the source means another one."""
    stamp: str = ""
    """Changes when files are written again, so that what was refused as damaged is looked at again."""
    scores: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Mean validation Dice by structure, or only `mean`, as far as the source tells."""


class Source(Protocol):
    """Where a specialist comes from."""

    def now(self) -> Meant:
        """Say which specialist is meant now, by reading a few lines."""
        ...

    def fetched(self, meant: Meant) -> contextlib.AbstractContextManager[Place]:
        """Have its files while they are loaded."""
        ...

    @property
    def home(self) -> Place | None:
        """The workspace that tells of its patients, if there is one."""
        ...


def source_of(address: str, tracking_uri: str | None = None, home: str | None = None) -> Source:
    """Return the source that an address names; `home` is the workspace of a model from elsewhere."""
    told = Place.of(home) if home else None
    if address.startswith(champion.REGISTERED):
        return _Registered(address, tracking_uri, told)
    place = Place.of(address)
    if (place / artifact.DESCRIPTION).exists():
        return _Folder(place, told)
    return _Champion(Workspace(place))


class _Folder:
    """A specialist's own folder: whatever is written there is meant."""

    def __init__(self, folder: Place, home: Place | None) -> None:
        self.folder, self.home = folder, home

    def now(self) -> Meant:
        return _in(self.folder, None)

    def fetched(self, meant: Meant) -> contextlib.AbstractContextManager[Place]:
        return contextlib.nullcontext(Place.of(meant.address))


class _Champion:
    """A workspace: its champion is meant."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.home = workspace, workspace.root

    def now(self) -> Meant:
        folder = champion.champion(self.workspace)
        return _in(folder, folder.parent.name)

    def fetched(self, meant: Meant) -> contextlib.AbstractContextManager[Place]:
        return contextlib.nullcontext(Place.of(meant.address))


class _Registered:
    """An address in MLflow's registry: the version that has the alias is meant."""

    def __init__(self, address: str, tracking_uri: str | None, home: Place | None) -> None:
        self.address, self.tracking_uri, self.home = address, tracking_uri, home
        self._known: Registry | None = None

    def now(self) -> Meant:
        found = self._registry().resolve(self.address)
        scores = {"mean": float(found.tags["dice"])} if "dice" in found.tags else {}
        return Meant(found.digest, found.version, found.tags.get("stage"), found.uri, scores=scores)

    @contextlib.contextmanager
    def fetched(self, meant: Meant) -> Iterator[Place]:
        with tempfile.TemporaryDirectory(prefix="tutelage-serving-") as folder:
            yield Place.of(self._registry().download(meant.address, Path(folder)))

    def _registry(self) -> "Registry":
        if self._known is None:
            self._known = champion.registry(self.tracking_uri)
        return self._known


def _in(folder: Place, stage: str | None) -> Meant:
    told = artifact.describe(folder)
    digest = str(told["digest"])
    return Meant(
        digest,
        stage or digest,
        stage or told.get("stage"),
        str(folder),
        "-".join(map(str, (folder / artifact.WEIGHTS).stamp())),
        _scores(folder, digest),
    )


def _scores(folder: Place, digest: str) -> dict[str, float]:
    """Validation means that lie beside a stage's specialist, if they are about it."""
    card = folder.parent / "scorecard.validation.json"
    try:
        told = json.loads(card.read_text())
        if told["specialist"] != digest:
            return {}
        return {row["structure"]: row["dice"] for row in told["summaries"] if row["dice"] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # nice to tell, and no reason not to serve


# --- what a workspace tells of patients ------------------------------------------------------


def stored_case(home: Place | None) -> Place | None:
    """Return the folder of a workspace's stored case, whether there is one or not."""
    return home / selftest.FOLDER if home else None


def known(home: Place | None) -> Known:
    """Return what a workspace knows of anatomy; nothing where it knows none or cannot be read."""
    if home is None or not (home / "settings.yaml").exists():
        return Known()
    workspace = Workspace(home)
    try:
        settings = _settings(yaml.safe_load(workspace.settings.read_text()))
        return Known(textual.reviewed(settings.priors, workspace), settings.curation)
    except (TutelageError, OSError, ValidationError, yaml.YAMLError) as error:
        _log.warning("nothing is held against masks: what %s knows of anatomy is unreadable: %s", home, error)
        return Known()


def _settings(told: Any) -> RunSettings:
    # What else they name, as an archive, need not be on this machine: only their form is checked.
    return RunSettings.model_validate(told)
