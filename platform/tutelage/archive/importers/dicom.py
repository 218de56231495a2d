"""DICOM as scanners and archives of hospitals write it: a tree of files of any names.

A volume is a series, wherever its files lie; copies count once. Labels lie in labels/, as
NIfTI or NRRD on the grid of their series, and are called like the case or, where a series is
one volume, like its SeriesInstanceUID. The settings name the structures. Headers of new and of
changed files are read, pixels never; only series and their folders are kept in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from posixpath import commonpath, relpath

from tutelage.archive.dicom import Series, case_id, files_of, stacks
from tutelage.archive.formats import stem
from tutelage.archive.headers import Instance
from tutelage.archive.importers.base import Found, told_structures, visible
from tutelage.archive.instances import look, need_pydicom, settle
from tutelage.archive.parallel import each_in_turn
from tutelage.archive.series import Stack
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place

_LABELS = "labels"
_OURS = ("patients.csv", "splits.json")


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return what the settings say; images cannot know."""
    return told_structures(settings)


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List files that are no DICOM, then series by UID, then labels without a series."""
    need_pydicom()
    folders_of: dict[str, set[str]] = {}
    strays: list[Quarantined] = []
    for one in each_in_turn(look, _files(root)):
        if one.series:
            folder = Place(one.file).parent.uri
            folders_of.setdefault(one.series, set()).add(folder.removeprefix(root.uri).lstrip("/"))
        else:
            strays.append(Quarantined(one.file, one.reason))
    settle()
    yield from strays
    labels = _Labels(root / _LABELS)
    for uid, folders in sorted(folders_of.items()):
        yield from _series(uid, root, sorted(folders), labels, settings)
    yield from labels.left()


def _files(root: Place) -> Iterator[Place]:
    """List what is in a folder at any depth, but for what is hidden and what is ours."""
    yield from (root / name for name in visible(root) if name not in _OURS)
    for folder in root.folders():
        if folder.name != _LABELS:
            yield from _beneath(folder, ())


def _beneath(folder: Place, above: tuple[str, ...]) -> Iterator[Place]:
    real = str(folder.local.resolve()) if folder.local is not None else folder.uri
    # A link to a folder above would never end.
    if folder.name.startswith(".") or real in above:
        return
    yield from (folder / name for name in visible(folder))
    for deeper in folder.folders():
        yield from _beneath(deeper, (*above, real))


# --- series -------------------------------------------------------------------------------


def _series(
    uid: str, root: Place, folders: Sequence[str], labels: "_Labels", settings: ArchiveSettings
) -> Iterator[Found | Quarantined]:
    series, found = _gathered(uid, root, folders)
    try:
        whole = stacks(found)
    except ArchiveError as error:
        yield Quarantined(series.address, str(error))
        return
    yield from (Quarantined(one.file, one.reason) for one in found if one.state == "other")
    scouts = [one for one in found if one.localizer]
    if scouts:
        yield Quarantined(
            scouts[0].file,
            f"{len(scouts)} localizers (scouts) are left out of {series.case}; nothing is wrong",
        )
    for stack in whole:
        yield _found(series, found, stack, labels, settings)


def _gathered(uid: str, root: Place, folders: Sequence[str]) -> tuple[Series, list[Instance]]:
    """Return a series and its files; folders that hold nothing but copies are left out."""
    kept: dict[str, list[Instance]] = {}
    seen: set[str] = set()
    for folder in folders:
        there = files_of(Series(_below(root, folder), "", uid))
        own = {one.frames[0].uid if one.frames else one.file for one in there}
        if own - seen:
            kept[folder] = there
            seen |= own
    common = commonpath(kept)
    within = tuple(relpath(folder or ".", common or ".") for folder in kept) if len(kept) > 1 else ()
    found = [one for there in kept.values() for one in there]
    return Series(_below(root, common), case_id(found[0]), uid, (), within), found


def _below(root: Place, path: str) -> Place:
    return root / path if path else root


def _found(
    series: Series, found: Sequence[Instance], stack: Stack, labels: "_Labels", settings: ArchiveSettings
) -> Found | Quarantined:
    one = next(one for one in found if one.file == stack.frames[0].file)
    case = case_id(one, stack.told)
    address = Series(series.folder, case, series.uid, stack.told, series.within).address
    names = (case,) if stack.told else (case, series.uid)
    own = [label for name in names for label in labels.taken(name)]
    if len(own) > 1:
        told = " and ".join(place.name for place in own)
        return Quarantined(address, f"it has {len(own)} labels, {told}, expected one; keep one")
    label = own[0].uri if own else None
    return Found(case, one.patient, address, label, one.modality or settings.modality)


@dataclass
class _Labels:
    """Labels that no series has asked for yet."""

    folder: Place
    _names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in visible(self.folder):
            self._names.setdefault(stem(name), []).append(name)

    def taken(self, name: str) -> list[Place]:
        """Return the labels of a name, once."""
        return [self.folder / name for name in self._names.pop(name, [])]

    def left(self) -> Iterator[Quarantined]:
        """Say of the others that nobody wants them."""
        for name in (name for names in self._names.values() for name in names):
            yield Quarantined(
                f"{self.folder}/{name}",
                "no series has its name, expected a case id, or the UID of a series of one volume; rename it",
            )
