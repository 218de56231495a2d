"""Corrected masks back in: what a person has saved in a folder of the review queue becomes annotated.

Nothing comes in that is not about the very image that went out, on its grid, with values that name
structures; and nothing that would be learned from and scored. What cannot be used stays
where it is and is told with its reason, and the others come in.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tutelage.archive import formats
from tutelage.archive.catalog import Catalog, load
from tutelage.errors import ArchiveError, SettingsError
from tutelage.labels import arrays
from tutelage.records import Case, Role
from tutelage.rounds import ledger, recounting
from tutelage.rounds.corrected import Correction, Corrections, image_of
from tutelage.rounds.reviewing import TABLE, file_of
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, read_manifest, stage_name
from tutelage.storage import Place

_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
"""What a person may save: what went out, and what 3D Slicer offers."""


@dataclass(frozen=True)
class Imported:
    """What came in."""

    by: str
    since: str
    """Stage that learns from it first."""
    rounds: int
    """Rounds that the campaign has now."""
    taken: tuple[Correction, ...]
    known: tuple[str, ...]
    """Cases whose mask had come in before."""
    waiting: tuple[str, ...]
    """Cases that nobody has corrected yet."""
    refused: tuple[tuple[str, str], ...]
    """Cases whose mask cannot be used, and why."""


def take_in(settings: RunSettings, workspace: Workspace, folder: Place, by: str | None) -> Imported:
    """Take corrected masks in as annotated cases; what cannot be used stays where it is, with its reason.

    Raises:
        SettingsError: the folder is no review of this campaign, or nobody says who corrected it.
        WorkspaceError: another run has the workspace.
    """
    with workspace.locked():
        catalog = load(workspace.catalog)
        told = _read(folder, catalog)
        name = (by or str(told.get("corrected_by") or "")).strip()
        if not name:
            raise SettingsError(
                f"nobody says who corrected {folder}; give --by NAME, or fill in corrected_by"
            )
        since = _first_untrained(workspace)
        held = Corrections.of(workspace.root)
        taking = _Taking(settings, held, catalog, folder, name, since, str(told["round"]))
        for entry in told["cases"]:
            taking.take(entry)
        if taking.taken:
            held = held.with_more(taking.taken)
        if taking.taken or taking.known:  # known ones too: a kill may have come before ledgers were marked
            _mark(workspace, held)
    return Imported(
        by=name,
        since=stage_name(since),
        rounds=max(settings.rounds, (held.last_stage or 0) + 1),
        taken=tuple(taking.taken),
        known=tuple(taking.known),
        waiting=tuple(taking.waiting),
        refused=tuple(taking.refused),
    )


class _Taking:
    """Takes in one case after another, and remembers how each went."""

    def __init__(
        self,
        settings: RunSettings,
        held: Corrections,
        catalog: Catalog,
        folder: Place,
        by: str,
        since: int,
        round_name: str,
    ) -> None:
        self._settings, self._held, self._catalog = settings, held, catalog
        self._folder, self._by, self._since, self._round = folder, by, since, round_name
        self.taken: list[Correction] = []
        self.known: list[str] = []
        self.waiting: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take in one case, or say why not."""
        name = str(entry.get("case"))
        stem = file_of(name).removesuffix(_SUFFIXES[0])
        places = (self._folder / "labels" / "final" / f"{stem}{suffix}" for suffix in _SUFFIXES)
        final = next((place for place in places if place.exists()), None)
        if final is None:
            self.waiting.append(name)
            return
        try:
            correction, data = self._checked(name, entry, final)
        except ArchiveError as error:
            self.refused.append((name, str(error)))
            return
        before = self._held.latest().get(name)
        if before is not None and before.digest == correction.digest:
            self.known.append(name)
            return
        (self._held.folder / correction.label).write_bytes(data)
        self.taken.append(correction)

    def _checked(self, name: str, entry: Mapping[str, Any], final: Place) -> tuple[Correction, bytes]:
        case, structures = self._case(name), self._catalog.structures
        if image_of(case, self._settings.archive.max_voxels) != entry.get("image_digest"):
            raise ArchiveError(f"{case.image} is not the image that went out; export the case again")
        mask_DHW = formats.read_label(final, case.grid, len(structures))
        if not mask_DHW.any():
            raise ArchiveError(f"{final}: it is empty, expected at least one structure; save it again")
        data = formats.image_bytes(mask_DHW, case.grid, ".nii.gz")
        masks = arrays.mask_digests(mask_DHW.astype(np.uint8), len(structures))
        proposed = entry.get("proposed_masks") or [None] * len(structures)
        digest = hashlib.sha256(data).hexdigest()[:16]
        changed = [s for s, old, new in zip(structures, proposed, masks, strict=False) if old != new]
        return (
            Correction(
                case=name,
                by=self._by,
                when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
                since=self._since,
                round=self._round,
                image=str(entry["image_digest"]),
                stamp=case.stamp,
                label=f"labels/{file_of(name).removesuffix('.nii.gz')}.{digest}.nii.gz",
                digest=digest,
                masks=tuple(masks),
                changed=tuple(changed),
            ),
            data,
        )

    def _case(self, name: str) -> Case:
        """Return a case that may be annotated."""
        case = self._catalog.case(name)
        if case.role is not Role.UNLABELED:
            raise ArchiveError(
                f"{name} is for {case.role.value}, expected an unlabeled case; a case that is scored is "
                "never learned from, and one that people have annotated keeps its label"
            )
        import pyarrow.compute as pc

        table = self._catalog.cases.table
        roles = set(table["role"].filter(pc.equal(table["patient"], case.patient)).to_pylist())
        if scored := roles & {Role.VALIDATION.value, Role.TEST.value}:
            raise ArchiveError(f"{name} is of a patient who is for {scored.pop()}; it would leak into scores")
        return case


_AGAIN = "expected what `tutelage review export` wrote; restore it, or export again"


def _read(folder: Place, catalog: Catalog) -> Mapping[str, Any]:
    """Return what went out, if it is a review of this archive."""
    place = folder / TABLE
    if not place.exists():
        raise SettingsError(f"{folder} has no {TABLE}, expected a folder that `tutelage review export` made")
    try:
        told: dict[str, Any] = json.loads(place.read_text())
        names = [name for name in told["labels"] if name != "background"]
        cases, _ = told["cases"], told["round"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{place} is damaged ({error!r}); {_AGAIN}") from None
    if tuple(names) != tuple(catalog.structures):
        raise SettingsError(
            f"{place} is about {', '.join(names)}, the archive has {', '.join(catalog.structures)}; "
            "name the configuration that it was exported from"
        )
    if not all(isinstance(entry, dict) and entry.get("case") for entry in cases):
        raise SettingsError(f"{place} lists cases without a name; {_AGAIN}")
    return told


def _first_untrained(workspace: Workspace) -> int:
    number = LABELS_ONLY
    while read_manifest(workspace.stage(number), "train") is not None:
        number += 1
    return number


def _mark(workspace: Workspace, held: Corrections) -> None:
    """Say in the ledger of every round who has corrected which case since."""
    parts = [workspace.stage(number) / "ledger.parquet" for number in recounting.rounds_of(workspace)]
    for part in parts:
        ledger.mark(part, held.latest())
    ledger.join(parts, workspace.ledger)
