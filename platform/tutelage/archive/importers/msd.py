"""Medical Segmentation Decathlon: a dataset.json that lists its files.

Training pairs have labels, `test` has none. A file with a fourth dimension has channels.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tutelage.archive.formats import stem
from tutelage.archive.importers.base import Found, description, names_by_value, within
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return the dataset's labels by value."""
    labels = description(root).get("labels")
    source = root / "dataset.json"
    if not isinstance(labels, dict) or not all(str(value).isdigit() for value in labels):
        raise ArchiveError(
            f'{source}: labels are {labels!r}, expected {{"0": "background", ...}}; correct it'
        )
    value_of = {str(name): int(value) for value, name in labels.items()}
    if len(value_of) < len(labels):
        raise ArchiveError(f"{source}: two labels share a name, expected one each; rename one")
    return names_by_value(value_of, source)


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List training pairs, then test images."""
    told = description(root)
    modality = _modality(told.get("modality")) or settings.modality
    for image, label in _entries(told, root):
        yield _found(root, image, label, modality)


def _entries(told: Mapping[str, Any], root: Place) -> Iterator[tuple[str, str | None]]:
    """Yield image and label of every entry; training entries are pairs, test entries are names."""
    for key in ("training", "test"):
        listed = told.get(key, [])
        if not isinstance(listed, list):
            raise ArchiveError(
                f"{root}/dataset.json: {key} is {listed!r}, expected a list of files; correct it"
            )
        for entry in listed:
            pair = entry if isinstance(entry, dict) else {"image": entry}
            image, label = pair.get("image"), pair.get("label")
            if not isinstance(image, str) or not isinstance(label, str | None):
                raise ArchiveError(
                    f"{root}/dataset.json: {key} has an entry {entry!r}, expected an image and a label, "
                    "or the name of an image; correct it"
                )
            yield image, label


def _found(root: Place, image: str, label: str | None, modality: str) -> Found | Quarantined:
    place = within(root, image)
    label_place = within(root, label) if label else None
    if place is None or (label and label_place is None):
        return Quarantined(
            f"{root}/{image}",
            f"image {image} or label {label} lies outside the dataset's folder; move it inside",
        )
    case = stem(place.name)
    return Found(case, case, place.uri, label_place.uri if label_place else None, modality)


def _modality(told: object) -> str:
    """Join the names of channels: the Decathlon calls them modalities."""
    if isinstance(told, dict):
        return "+".join(str(told[key]) for key in sorted(told))
    return told if isinstance(told, str) else ""
