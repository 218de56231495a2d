"""What importers have in common: what they find, and the two small files any folder may have.

patients.csv   case,patient[,modality]: several cases of one patient, or cases of different scanners
splits.json    {"gold": [...], "validation": [...], "test": [...], "unlabeled": [...]}, by case
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined, Role
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class Found:
    """An image that a layout names, before anybody has looked at it."""

    case: str
    patient: str
    image: str
    """Address."""

    label: str | None
    """Address, if there is one."""

    modality: str
    role: Role | None = None
    """What the layout itself says it is for."""


@dataclass(frozen=True, slots=True)
class Importer:
    """One layout."""

    structures: Callable[[ArchiveSettings, Place], tuple[str, ...]]
    cases: Callable[[ArchiveSettings, Place], Iterator[Found | Quarantined]]


def description(root: Place) -> Mapping[str, Any]:
    """Return a folder's dataset.json."""
    return read_json(root / "dataset.json", "set archive.root to the folder that holds it")


def read_json(place: Place, advice: str) -> Mapping[str, Any]:
    """Return a JSON file that holds an object."""
    try:
        told = json.loads(place.read_text())
    except FileNotFoundError:
        raise ArchiveError(
            f"{place} does not exist, expected a description of the dataset; {advice}"
        ) from None
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{place} is no JSON ({error}); correct it") from None
    if not isinstance(told, dict):
        raise ArchiveError(f"{place} holds a {type(told).__name__}, expected names and values; correct it")
    return told


def names_by_value(value_of: Mapping[str, int], source: Place) -> tuple[str, ...]:
    """Order structures by label value; values must run from 0, the background, without gaps."""
    names = sorted(value_of, key=lambda name: value_of[name])
    if [value_of[name] for name in names] != list(range(len(names))) or len(names) < 2:
        told = ", ".join(f"{value_of[name]} {name}" for name in names) or "none"
        raise ArchiveError(f"{source}: labels are {told}, expected 0, 1, 2 and so on; renumber them")
    return tuple(names[1:])


def told_structures(settings: ArchiveSettings) -> tuple[str, ...]:
    """Return what the settings say, where files cannot know."""
    if not settings.structures:
        raise ArchiveError(
            "archive.structures is empty, expected the names of label values 1, 2 and so on; add them"
        )
    return settings.structures


def within(root: Place, relative: str) -> Place | None:
    """Return the file that a description names, or None if it lies outside the folder."""
    parts = [part for part in PurePosixPath(relative).parts if part != "."]
    if not parts or ".." in parts or PurePosixPath(relative).is_absolute():
        return None
    return Place(f"{root.uri}/{'/'.join(parts)}")


def visible(folder: Place) -> list[str]:
    """Return names of files directly in a folder that nobody hides."""
    return [name for name in folder.names() if not name.startswith(".")]


def patients_told(found: Iterable[Found | Quarantined], root: Place) -> Iterator[Found | Quarantined]:
    """Fill in patients and modalities from patients.csv, where there is one."""
    told = _patients(root / "patients.csv")
    for item in found:
        row = told.get(item.case) if isinstance(item, Found) else None
        if row is None or not isinstance(item, Found):
            yield item
        else:
            patient, modality = row
            yield replace(item, patient=patient, modality=modality or item.modality)


def _patients(place: Place) -> dict[str, tuple[str, str]]:
    """Return patient and modality by case."""
    if not place.exists():
        return {}
    with place.open() as stream:
        try:
            return dict(_lines(csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline="")), place))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ArchiveError(f"{place} is no table of text in UTF-8 ({error}); correct it") from None


def _lines(rows: "csv.DictReader[str]", place: Place) -> Iterator[tuple[str, tuple[str, str]]]:
    columns = rows.fieldnames or ()
    if not {"case", "patient"} <= set(columns):
        raise ArchiveError(
            f"{place} has columns {', '.join(columns) or 'none'}, expected case and patient; "
            "write them into its first line"
        )
    told: set[str] = set()
    for row in rows:
        case, patient = row["case"], row["patient"]
        if not case or not patient or case in told:
            raise ArchiveError(
                f"{place} line {rows.line_num}: case {case!r} of patient {patient!r} is incomplete or "
                "told twice, expected one line a case; correct it"
            )
        told.add(case)
        yield case, (patient, row.get("modality") or "")


def told_splits(root: Place) -> dict[str, Role] | None:
    """Return roles by case from splits.json, or None where there is none."""
    place = root / "splits.json"
    if not place.exists():
        return None
    roles: dict[str, Role] = {}
    for key, cases in read_json(place, "correct it").items():
        if key not in set(Role) or not isinstance(cases, list):
            raise ArchiveError(
                f"{place}: {key!r} is no list of a split, expected {', '.join(Role)}; correct it"
            )
        for case in map(str, cases):
            if case in roles:
                raise ArchiveError(
                    f"{place}: case {case} is in {roles[case]} and {key}, expected once; keep one"
                )
            roles[case] = Role(key)
    return roles
