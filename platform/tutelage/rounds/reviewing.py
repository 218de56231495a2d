"""The review queue: the few cases that a person should correct, ranked, and out to that person.

A folder of it is one that MONAI Label serves as it is (images, and labels beside them in
labels/original and labels/final), with a color table for 3D Slicer and a review.json that says
what is what. A person edits what is proposed and saves it in labels/final under the same name.

It ranks by the ledger alone: labels that are hidden are neither read nor hinted at, and cases for
validation and test never leave. What comes back, `taking` takes in.
"""

import colorsys
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tutelage import __version__
from tutelage.archive import formats
from tutelage.archive.catalog import Catalog, load
from tutelage.curation import review
from tutelage.errors import ArchiveError, SettingsError, WorkspaceError
from tutelage.labels import arrays
from tutelage.records import Case, Role
from tutelage.rounds import ledger, recounting
from tutelage.rounds.corrected import Corrections
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace, stage_name
from tutelage.storage import Place

TABLE = "review.json"
"""What is what in a folder of cases to correct."""

_LOOKED_AT = 40
"""Cases for each that is wanted, whose looks are compared."""

_COLUMNS = (
    *("case", "structure", "ruling", "weight", "specialist_ml", "agreement", "consensus", "variance"),
    *("predicted_dice", "dice_low", *review.AGAINST),
)


@dataclass(frozen=True)
class Queue:
    """Cases to correct, the most rewarding first."""

    round: str
    cases: tuple[review.Chosen, ...]


@dataclass(frozen=True)
class Exported:
    """What went out."""

    folder: str
    round: str
    cases: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    """Cases that could not go out, and why."""


# --- ranking ------------------------------------------------------------------------------


def queue(workspace: Workspace, count: int, number: int | None = None) -> Queue:
    """Rank the cases of a round, by default the last one that was curated.

    Raises:
        WorkspaceError: nothing was curated yet, or not that round.
    """
    number = recounting.rounds_of(workspace)[-1] if number is None else number
    catalog = load(workspace.catalog)
    held = Corrections.of(workspace.root)
    gold = len(catalog.of(Role.GOLD)) + len(held.within(number))
    rarity = review.rarities(gold, _believed(workspace, number))
    most = _LOOKED_AT * count
    best = heapq.nsmallest(most, _gains(workspace, number, rarity), key=lambda one: (-one.total, one.case))
    corrected = held.latest()
    open_ = [one for one in best if one.case not in corrected and _unlabeled(catalog, one.case)]
    vectors = {one.case: _looks(workspace, number, one.case) for one in open_}
    return Queue(stage_name(number), tuple(review.choose(open_, count, vectors)))


def _believed(workspace: Workspace, number: int) -> dict[str, float]:
    """Add up the weights of pseudo-labels by structure."""
    added: dict[str, float] = {}
    wanted = recounting.Wanted(round=number)
    for row in recounting.rows(workspace, wanted, ("structure", "weight", "ruling")):
        counts = row["ruling"] != ledger.CORRECTED  # those are annotated, and counted as such
        added[row["structure"]] = added.get(row["structure"], 0.0) + (row["weight"] or 0.0) * counts
    return added


def _gains(workspace: Workspace, number: int, rarity: Mapping[str, float]) -> Iterator[review.Gain]:
    """Yield what each case would bring; one that failed has an image that a person could not read either."""
    rows = recounting.rows(workspace, recounting.Wanted(round=number), _COLUMNS)
    for case, of_case in groupby(rows, lambda row: row["case"]):
        told = list(of_case)
        if all(row["ruling"] not in ("failed", ledger.CORRECTED) for row in told):
            yield review.gain(case, told, rarity)


def _looks(workspace: Workspace, number: int, case: str) -> NDArray[np.floating[Any]]:
    """How a case looks to the generalist: its features, averaged over structures; empty if it has none."""
    folder = workspace.stage(number) / "candidates"
    if not arrays.file_of(folder, case).exists():
        return np.zeros(0)
    pooled_KC = arrays.read_candidate(folder, case).pooled_KC.astype(np.float64)
    found = pooled_KC[np.abs(pooled_KC).sum(axis=1) > 0]
    return found.mean(axis=0) if len(found) else np.zeros(0)


def _unlabeled(catalog: Catalog, case: str) -> bool:
    index = catalog.cases.find(case)
    return index is not None and catalog.cases[index].role is Role.UNLABELED


# --- out ----------------------------------------------------------------------------------


def export(settings: RunSettings, workspace: Workspace, ranked: Queue, out: Place) -> Exported:
    """Write images, proposed masks and what they are into a folder; what is corrected there stays.

    Raises:
        SettingsError: the folder holds something else.
    """
    _refuse_others(out)
    catalog = load(workspace.catalog)
    told, left_out = [], []
    for chosen in ranked.cases:
        case = catalog.case(chosen.gain.case)
        try:
            told.append(_written(settings, workspace, ranked.round, case, chosen, out))
        except (ArchiveError, WorkspaceError) as error:
            left_out.append((case.case, str(error)))
    (out / "structures.ctbl").write_text(_colors(catalog.structures))
    (out / "labels" / "final").make_folder()
    (out / TABLE).write_text(json.dumps(_table(settings, ranked.round, catalog, told), indent=1) + "\n")
    return Exported(str(out), ranked.round, tuple(one["case"] for one in told), tuple(left_out))


def _refuse_others(out: Place) -> None:
    files = out.names()
    if files and TABLE not in files:
        raise SettingsError(f"{out} holds other files, as {files[0]}, expected an empty folder; set --out")


def _written(
    settings: RunSettings,
    workspace: Workspace,
    round_name: str,
    case: Case,
    chosen: review.Chosen,
    out: Place,
) -> dict[str, Any]:
    """Write one case and return its entry."""
    stage = workspace.root / "rounds" / round_name
    candidate = arrays.read_candidate(stage / "candidates", case.case)
    mask_DHW = review.proposed(candidate, arrays.read_label(stage / "labels", case.case))
    volume = formats.read_image(case.image, settings.archive.max_voxels)
    name = file_of(case.case)
    proposal = out / "labels" / "original" / name
    if case.image.lower().endswith(".nii.gz"):
        (out / name).write_bytes(Place.of(case.image).read_bytes())
        formats.write_mask(proposal, mask_DHW, volume)
    else:  # another format: as NIfTI on the same grid
        formats.write_image(out / name, volume.image_CDHW, volume.grid)
        formats.write_image(proposal, mask_DHW, volume.grid)
    masks = arrays.mask_digests(mask_DHW, len(candidate.regions) - 1)
    return {
        "case": case.case,
        "image": name,
        "proposed": f"labels/original/{name}",
        "corrected": f"labels/final/{name}",
        "image_digest": volume.digest,
        "proposed_masks": masks,
        "modality": case.modality,
        "gain": round(chosen.gain.total, 4),
        "why": list(chosen.gain.reasons),
    }


def _table(
    settings: RunSettings, round_name: str, catalog: Catalog, cases: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "name": settings.name,
        "description": "Correct labels/original, save in labels/final under the same name, then "
        "`tutelage review import`. `monailabel start_server --studies` takes this folder as it is; in 3D "
        "Slicer load structures.ctbl as the color table of the labels.",
        "version": __version__,
        "round": round_name,
        "corrected_by": "",
        "labels": {name: value for value, name in enumerate(("background", *catalog.structures))},
        "colors": {name: _color(i) for i, name in enumerate(catalog.structures)},
        "cases": list(cases),
    }


def _colors(structures: Sequence[str]) -> str:
    """A color table as 3D Slicer reads it: value, name without spaces, red, green, blue, opacity."""
    rows = [(0, "background", 0, 0, 0, 0)]
    rows += [(i + 1, "_".join(name.split()), *_color(i), 255) for i, name in enumerate(structures)]
    lines = ["# Color table file structures.ctbl", f"# {len(rows)} values"]
    return "\n".join([*lines, *(" ".join(str(v) for v in row) for row in rows), ""])


def _color(index: int) -> tuple[int, int, int]:
    """A color unlike those of its neighbours: each a golden cut further round the wheel."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def file_of(case: str) -> str:
    """Return the name of a case's files."""
    return f"{quote(case, safe='')}.nii.gz"
