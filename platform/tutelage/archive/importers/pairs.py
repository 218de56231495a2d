"""A plain folder: images/ and labels/ with the same names, whatever the suffixes.

Images without a label are unlabeled. The settings name the structures.
"""

from collections.abc import Iterator

from tutelage.archive.formats import SUFFIXES, stem, suffix
from tutelage.archive.importers.base import Found
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return what the settings say; the folder cannot know."""
    if not settings.structures:
        raise ArchiveError(
            "archive.structures is empty, expected the names of label values 1, 2 and so on; add them"
        )
    return settings.structures


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List images with their labels, then labels without an image."""
    labels: dict[str, list[Place]] = {}
    for file in _visible(root / "labels"):
        labels.setdefault(stem(file.name), []).append(file)
    for file in _visible(root / "images"):
        case = stem(file.name)
        own = labels.pop(case, [])
        if suffix(file.name) is None:
            yield Quarantined(
                file.uri, f"its suffix is unknown, expected one of {', '.join(SUFFIXES)}; convert it"
            )
        elif len(own) > 1:
            yield Quarantined(file.uri, f"it has {len(own)} labels, {_names(own)}, expected one; keep one")
        else:
            yield Found(case, case, file.uri, own[0].uri if own else None, settings.modality)
    for files in labels.values():
        yield from (Quarantined(file.uri, "it has no image of its name in images; add it") for file in files)


def _names(files: list[Place]) -> str:
    return " and ".join(file.name for file in files)


def _visible(folder: Place) -> list[Place]:
    return [file for file in folder.files() if not file.name.startswith(".")]
