"""A plain folder: images/ and labels/ with the same names, whatever the suffixes.

Images without a label are unlabeled. The settings name the structures.
"""

from collections.abc import Iterator

from tutelage.archive.formats import SUFFIXES, stem, suffix
from tutelage.archive.importers.base import Found, told_structures, visible
from tutelage.archive.settings import ArchiveSettings
from tutelage.records import Quarantined
from tutelage.storage import Place


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return what the settings say; the folder cannot know."""
    return told_structures(settings)


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List images with their labels, then labels without an image."""
    images, labels = root / "images", root / "labels"
    names_of: dict[str, tuple[str, ...]] = {}
    for name in visible(labels):
        names_of[stem(name)] = (*names_of.get(stem(name), ()), name)
    for name in visible(images):
        image, case = f"{images}/{name}", stem(name)
        own = names_of.pop(case, ())
        if suffix(name) is None:
            yield Quarantined(
                image, f"its suffix is unknown, expected one of {', '.join(SUFFIXES)}; convert it"
            )
        elif len(own) > 1:
            yield Quarantined(image, f"it has {len(own)} labels, {' and '.join(own)}, expected one; keep one")
        else:
            yield Found(case, case, image, f"{labels}/{own[0]}" if own else None, settings.modality)
    for name in (name for own in names_of.values() for name in own):
        yield Quarantined(f"{labels}/{name}", "it has no image of its name in images; add it")
