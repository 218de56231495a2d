"""A synthetic archive as files, laid out like the Decathlon: NIfTI, dataset.json, patients.csv.

Decides names and order of writing. The same settings make the same bytes, so an archive
that was interrupted is continued, and one that is whole is left alone. What patients look
like is decided in `synthetic`.
"""

import json
from collections.abc import Callable

from tutelage.archive.formats import write_image
from tutelage.archive.settings import SyntheticSettings
from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.settings import fingerprint
from tutelage.storage import Place

PAINTER = 1
"""Counts changes of the phantom that change its bytes."""

Progress = Callable[[int, int], None]
"""Called with patients done and patients in all."""


def materialize(settings: SyntheticSettings, folder: Place, progress: Progress | None = None) -> None:
    """Write the patients that are not there yet; dataset.json comes last and vouches for all.

    Raises:
        ArchiveError: the folder holds images that are not ours to replace.
    """
    wanted = fingerprint(settings.model_dump(mode="json"), PAINTER)
    if _marker(folder / "dataset.json") == wanted:
        return
    _make_room(folder, wanted)
    modality_of = _finished(folder)
    for index in range(settings.patients):
        name = _name(index)
        if name not in modality_of:
            modality_of[name] = _patient(settings, index, folder)
            (folder / "patients.csv").write_text(_table(modality_of))
        if progress is not None:
            progress(index + 1, settings.patients)
    (folder / "dataset.json").write_text(_description(modality_of, wanted))


def _patient(settings: SyntheticSettings, index: int, folder: Place) -> str:
    """Write one patient and return the modality."""
    made = phantom(settings.seed, index, settings.spacing, settings.styles, settings.variety)
    grid = Grid.from_spacing(made.image_DHW.shape, made.spacing)
    file = f"{_name(index)}.nii.gz"
    write_image(folder / "imagesTr" / file, made.image_DHW, grid)
    write_image(folder / "labelsTr" / file, made.label_DHW, grid)
    return made.modality


def _finished(folder: Place) -> dict[str, str]:
    """Return modalities of the patients that an interrupted run has finished."""
    table = folder / "patients.csv"
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    rows = (line.split(",") for line in lines)
    return {name: modality for name, _, modality in rows}


def _table(modality_of: dict[str, str]) -> str:
    rows = [f"{name},{name},{modality}" for name, modality in modality_of.items()]
    return "\n".join(["case,patient,modality", *rows, ""])


def _make_room(folder: Place, wanted: str) -> None:
    """Clear away an older archive of ours; its marker was written before its first patient."""
    marker = folder / "phantoms.json"
    found = _marker(marker)
    if found == wanted:
        return
    if found is None and ((folder / "imagesTr").files() or (folder / "dataset.json").exists()):
        raise ArchiveError(
            f"{folder} holds images that were not made here, expected an empty folder; set another workspace"
        )
    for name in ("dataset.json", "patients.csv", "imagesTr", "labelsTr"):
        (folder / name).remove()
    marker.write_text(json.dumps({"fingerprint": wanted}))


def _marker(place: Place) -> str | None:
    if not place.exists():
        return None
    try:
        return str(json.loads(place.read_text())["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None


def _name(index: int) -> str:
    return f"patient_{index:03d}"


def _description(modality_of: dict[str, str], wanted: str) -> str:
    files = [f"{name}.nii.gz" for name in modality_of]
    told = {
        "name": "tutelage torso phantom",
        "description": "Made up from a seed; nobody was scanned.",
        "modality": {"0": "/".join(sorted(set(modality_of.values())))},
        "labels": {str(value): name for value, name in enumerate(("background", *STRUCTURES))},
        "numTraining": len(files),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{f}", "label": f"./labelsTr/{f}"} for f in files],
        "test": [],
        "fingerprint": wanted,
    }
    return json.dumps(told, indent=1)
