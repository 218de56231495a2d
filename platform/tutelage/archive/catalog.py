"""The catalog: every usable case of an archive with its role, and what was set aside and why.

A scan reads headers, never voxels, and goes on after a file that cannot be used. It stops
for what would make results wrong: two cases of one id, a patient in two splits, too few
labels. Knows no layouts (importers do) and draws nothing (splits does).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tutelage.archive import formats, phantoms
from tutelage.archive.importers import Found, found_in, structures_of
from tutelage.archive.importers.base import told_splits
from tutelage.archive.rows import Row, read_rows, write_rows
from tutelage.archive.settings import ArchiveSettings
from tutelage.archive.splits import checked, drawn
from tutelage.archive.volume import refuse_large
from tutelage.errors import ArchiveError, WorkspaceError
from tutelage.geometry import Grid
from tutelage.records import Case, Quarantined, Role
from tutelage.settings import fingerprint
from tutelage.storage import Place

_READERS = 8
"""Headers read at a time: waiting for a disk or an object store is most of it."""


@dataclass(frozen=True)
class Catalog:
    """What an archive holds."""

    cases: tuple[Case, ...]
    """Usable cases by id."""

    quarantined: tuple[Quarantined, ...]
    structures: tuple[str, ...]
    """Names by label value, from 1."""

    def of(self, role: Role) -> tuple[Case, ...]:
        """Return the cases of one role."""
        return tuple(case for case in self.cases if case.role is role)

    def case(self, case: str) -> Case:
        """Return a case by its id."""
        for one in self.cases:
            if one.case == case:
                return one
        raise ArchiveError(f"the catalog has no case {case!r}; check the id, or scan again")

    def fingerprint(self) -> str:
        """Twelve hex digits of which images and labels do what; when they were copied does not count."""
        return fingerprint([_facts(case) for case in self.cases], self.structures)


def _facts(case: Case) -> list[object]:
    size = case.stamp.partition("-")[0]
    who: list[object] = [case.case, case.patient, case.role, case.modality]
    where: list[object] = [case.image, case.label, case.hidden]
    return [*who, *where, size, case.channels, case.grid.shape, case.grid.affine]


@dataclass(frozen=True, slots=True)
class _Look:
    """What headers say about one case."""

    grid: Grid
    channels: int
    stamp: str
    label_stamp: str


def scan(
    settings: ArchiveSettings,
    folder: Place,
    archive_folder: Place,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Look at everything an archive lists and write the catalog into a folder.

    A synthetic archive is written into `archive_folder` first, where it is not there yet;
    `progress` is told patients written and patients in all. Images and labels that have not
    changed since the last scan are not opened again.

    Raises:
        ArchiveError: the archive as a whole cannot be used.
    """
    if settings.importer == "synthetic":
        phantoms.materialize(settings.synthetic, archive_folder, progress)
        root = archive_folder
    else:
        root = Place.of(settings.root or ".")
    structures = structures_of(settings)
    found, quarantined = _separated(found_in(settings, root))
    _refuse_twins(found, root)
    looks, unusable = _looked_at(found, _last(folder), settings.max_voxels)
    usable = [one for one in found if one.case in looks]
    told = told_splits(root)
    if told is None:
        roles = drawn(usable, settings.split)
    else:
        _refuse_strangers(told, found, quarantined, root)
        roles = checked(usable, told)
        quarantined += [
            Quarantined(one.image, "splits.json does not name it; add it to a list if it should take part")
            for one in usable
            if one.case not in roles
        ]
    rows = [_row(one, looks[one.case], roles[one.case]) for one in usable if one.case in roles]
    rows.sort(key=lambda row: row.case.case)
    quarantined += unusable
    write_rows(folder, rows, quarantined, structures)
    return Catalog(tuple(row.case for row in rows), tuple(quarantined), structures)


def load(folder: Place) -> Catalog:
    """Read the catalog that a scan wrote.

    Raises:
        WorkspaceError: there is none, or it is damaged.
    """
    rows, quarantined, structures = read_rows(folder)
    return Catalog(tuple(row.case for row in rows), tuple(quarantined), structures)


# --- refusing -----------------------------------------------------------------------------


def _separated(listed: Iterable[Found | Quarantined]) -> tuple[list[Found], list[Quarantined]]:
    found: list[Found] = []
    quarantined: list[Quarantined] = []
    for item in listed:
        if isinstance(item, Found):
            found.append(item)
        else:
            quarantined.append(item)
    return found, quarantined


def _refuse_twins(found: Sequence[Found], root: Place) -> None:
    seen: dict[str, str] = {}
    for one in found:
        if one.case in seen:
            raise ArchiveError(
                f"{root} has two cases named {one.case}, {seen[one.case]} and {one.image}; "
                "expected different names, rename one"
            )
        seen[one.case] = one.image


def _refuse_strangers(
    told: Mapping[str, Role], found: Sequence[Found], quarantined: Sequence[Quarantined], root: Place
) -> None:
    """Refuse names in splits.json that no file has: a typing error would move a case silently."""
    there = {one.case for one in found}
    for bad in quarantined:
        stem = formats.stem(Place(bad.address).name)
        # nnU-Net's files end in a channel, its cases do not.
        there |= {stem, stem.rpartition("_")[0]}
    strangers = sorted(set(told) - there)
    if strangers:
        raise ArchiveError(
            f"{root}/splits.json names {len(strangers)} cases that are not there, first {strangers[0]}; "
            "correct the names, or add the images"
        )


# --- looking ------------------------------------------------------------------------------


def _last(folder: Place) -> dict[tuple[str, str | None], Row]:
    """Return the last scan's rows by addresses, to spare the headers of what has not changed."""
    try:
        rows, _, _ = read_rows(folder)
    except WorkspaceError:
        return {}
    return {(row.case.image, row.case.label or row.case.hidden): row for row in rows}


def _looked_at(
    found: Sequence[Found], last: Mapping[tuple[str, str | None], Row], max_voxels: int
) -> tuple[dict[str, _Look], list[Quarantined]]:
    def look(one: Found) -> _Look | Quarantined:
        try:
            return _looked(one, last.get((one.image, one.label)), max_voxels)
        except _UnusableError as bad:
            return Quarantined(bad.address, bad.reason)

    with ThreadPoolExecutor(_READERS) as pool:
        seen = list(zip(found, pool.map(look, found), strict=True))
    looks = {one.case: look for one, look in seen if isinstance(look, _Look)}
    return looks, [look for _, look in seen if isinstance(look, Quarantined)]


class _UnusableError(Exception):
    """Which of a case's two files cannot be used."""

    def __init__(self, address: str, error: ArchiveError) -> None:
        super().__init__(address)
        self.address = address
        self.reason = str(error).removeprefix(f"{address}: ")


def _looked(one: Found, last: Row | None, max_voxels: int) -> _Look:
    with _blaming(one.image):
        stamp = _stamp(one.image)
    with _blaming(one.label or ""):
        label_stamp = _stamp(one.label) if one.label else ""
    with _blaming(one.image):
        if last is not None and (last.case.stamp, last.label_stamp) == (stamp, label_stamp):
            refuse_large(last.case.grid, last.case.channels, max_voxels)
            return _Look(last.case.grid, last.case.channels, stamp, label_stamp)
        header = formats.header(one.image)
        refuse_large(header.grid, header.channels, max_voxels)
    if one.label:
        with _blaming(one.label):
            _check_label(one.label, header.grid)
    return _Look(header.grid, header.channels, stamp, label_stamp)


@contextlib.contextmanager
def _blaming(address: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        raise _UnusableError(address, error) from None


def _stamp(address: str) -> str:
    if formats.suffix(address) is None:
        raise ArchiveError(
            f"its suffix is unknown, expected one of {', '.join(formats.SUFFIXES)}; convert it"
        )
    try:
        size, changed_ns = Place.of(address).stamp()
    except OSError as error:
        told = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ArchiveError(f"it {told}, expected a file; copy it there, or correct the dataset") from None
    if size == 0:
        raise ArchiveError("it is empty, expected an image; copy it again")
    return f"{size}-{changed_ns}"


def _check_label(address: str, grid: Grid) -> None:
    label = formats.header(address)
    if difference := label.grid.difference(grid):
        raise ArchiveError(f"it does not lie on its image: {difference}; resample it to the image's grid")


def _row(one: Found, look: _Look, role: Role) -> Row:
    hidden = one.label if role is Role.UNLABELED else None
    case = Case(
        case=one.case,
        patient=one.patient,
        role=role,
        image=one.image,
        label=None if role is Role.UNLABELED else one.label,
        hidden=hidden,
        modality=one.modality,
        grid=look.grid,
        channels=look.channels,
        stamp=look.stamp,
    )
    return Row(case, look.label_stamp)
