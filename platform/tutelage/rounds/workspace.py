"""The folder of a campaign: where everything lies, who may write, and what is finished.

A step writes its settings first and its manifest last. A manifest vouches for its step as
long as its fingerprint, which covers the step's settings and the digests of its inputs and
cases, is the one a run would compute now.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tutelage import __version__
from tutelage.errors import SettingsError, WorkspaceError
from tutelage.rounds import locking
from tutelage.settings import fingerprint
from tutelage.storage import Place

LABELS_ONLY = -1
"""The stage before round 0: a specialist trained on the labels alone. It prompts round 0."""


def stage_name(number: int) -> str:
    """Return what a stage is called, in tables and as a folder."""
    return "labels-only" if number == LABELS_ONLY else f"r{number:02d}"


@dataclass(frozen=True)
class Workspace:
    """Paths of one campaign."""

    root: Place

    @property
    def catalog(self) -> Place:
        """Case rows."""
        return self.root / "catalog"

    @property
    def archive(self) -> Place:
        """Where a synthetic archive is written."""
        return self.root / "archive"

    @property
    def embeddings(self) -> Place:
        """Cache of generalist embeddings."""
        return self.root / "embeddings"

    @property
    def settings(self) -> Place:
        """The resolved settings of the last run."""
        return self.root / "settings.yaml"

    @property
    def report(self) -> Place:
        """The page about the campaign."""
        return self.root / "report.html"

    @property
    def ledger(self) -> Place:
        """One row a case, structure and round."""
        return self.root / "ledger.parquet"

    @property
    def champion(self) -> Place:
        """Which stage's specialist is the champion."""
        return self.root / "champion.json"

    def stage(self, number: int) -> Place:
        """Folder of one stage."""
        return self.root / "rounds" / stage_name(number)

    def specialist(self, number: int) -> Place:
        """Folder of a stage's specialist."""
        return self.stage(number) / "specialist"

    def check(self) -> None:
        """Refuse a place that could not be written to, before hours of work end in it."""
        if self.root.local is None:
            return
        there = next(p for p in [self.root.local, *self.root.local.parents] if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise SettingsError(
                f"workspace is {self.root}, but {there} is no folder that can be written to; set another"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out; see `locking` for what that is worth where."""
        self.check()
        with locking.held(self.root):
            yield


def stages_of(workspace: Workspace) -> list[int]:
    """Return the stages that have a folder, in order."""
    there = {place.name for place in (workspace.root / "rounds").folders()}
    found = []
    number = LABELS_ONLY
    while stage_name(number) in there:
        found.append(number)
        number += 1
    return found


@dataclass(frozen=True)
class Step:
    """One step of one stage, and whether it is finished."""

    stage: Place
    name: str
    settings: Mapping[str, Any]
    """Everything it was told."""
    inputs: Mapping[str, str]
    """Digests of what it works with: a change makes all of it worthless."""
    cases: Mapping[str, str] = field(default_factory=dict)
    """Digests of what it works on, case by case: a change leaves rows of other cases what they are."""

    @property
    def fingerprint(self) -> str:
        """Changes when settings or inputs do."""
        return fingerprint(self.name, dict(self.settings), dict(self.inputs), dict(self.cases))

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest if it vouches for this step, else None."""
        found = read_manifest(self.stage, self.name)
        return found if found and found["fingerprint"] == self.fingerprint else None

    def begin(self, *leavings: str) -> bool:
        """Write settings and inputs; return whether what an earlier attempt has left still holds.

        If not, `leavings`, paths in the stage, are removed, and before the settings are written: a
        kill in between must not make them look like those of the new settings.
        """
        place = self.stage / f"{self.name}.settings.json"
        text = json.dumps(_facts(self), indent=1, sort_keys=True)
        same = place.exists() and place.read_text() == text
        (self.stage / f"{self.name}.manifest.json").remove()
        if not same:
            for leaving in leavings:
                (self.stage / leaving).remove()
            place.write_text(text)
        return same

    def finish(self, started: float, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest, last of all, and return it marked as fresh."""
        manifest = {
            "step": self.name,
            "fingerprint": self.fingerprint,
            **_facts(self),
            "cases": dict(self.cases),
            "outputs": dict(outputs),
            "version": __version__,
            "seconds": round(time.monotonic() - started, 1),
        }
        (self.stage / f"{self.name}.manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        return manifest | {"fresh": True}


def read_manifest(stage: Place, name: str) -> dict[str, Any] | None:
    """Return a step's manifest whatever it vouches for, or None before it is finished."""
    place = stage / f"{name}.manifest.json"
    if not place.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(place.read_text())
    except ValueError as error:
        raise WorkspaceError(
            f"{place} is damaged ({error}); delete it and run again, its step is then repeated"
        ) from None
    return manifest


def _facts(step: Step) -> dict[str, Any]:
    return {"settings": dict(step.settings), "inputs": dict(step.inputs)}
