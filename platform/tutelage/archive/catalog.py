"""The catalog: every usable case of an archive with its role, and what was set aside and why.

A scan reads headers, never voxels, and goes on after a file that cannot be used. It stops
for what would make results wrong: two cases of one id, a patient in two splits, too few
labels. It works on columns, so that a million files fit. Knows no layouts (importers do),
draws nothing (splits does) and opens nothing (looking does).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tutelage.archive import formats, phantoms
from tutelage.archive.cases import Cases, digest
from tutelage.archive.importers import Found, found_in, structures_of
from tutelage.archive.importers.base import told_splits
from tutelage.archive.instances import known_in
from tutelage.archive.looking import looked_at
from tutelage.archive.rows import read_rows, write_rows
from tutelage.archive.seen import LOOK, Seen
from tutelage.archive.settings import ArchiveSettings
from tutelage.archive.splits import Told, checked, drawn, roles_told
from tutelage.errors import ArchiveError
from tutelage.records import Case, Quarantined, Role
from tutelage.settings import fingerprint
from tutelage.storage import Place

_FOUND = ("case", "patient", "image", "label", "modality", "role")
_AT_ONCE = 8192
"""Files that importers have named and that are not in columns yet."""


@dataclass(frozen=True)
class Catalog:
    """What an archive holds."""

    cases: Cases
    """Usable cases by id."""

    quarantined: tuple[Quarantined, ...]
    structures: tuple[str, ...]
    """Names by label value, from 1."""

    def of(self, role: Role) -> Cases:
        """Return the cases of one role."""
        import pyarrow.compute as pc

        return self.cases.where(pc.equal(self.cases.table["role"], role.value))

    def case(self, case: str) -> Case:
        """Return a case by its id."""
        index = self.cases.find(case)
        if index is None:
            raise ArchiveError(f"the catalog has no case {case!r}; check the id, or scan again")
        return self.cases[index]

    def fingerprint(self) -> str:
        """Twelve hex digits of which images and labels do what; when they were copied does not count."""
        import pyarrow.compute as pc

        facts = self.cases.table
        for name in ("stamp", "label_stamp"):
            # A stamp starts with the number of bytes.
            size = pc.replace_substring_regex(facts[name], "-.*$", "")
            facts = facts.set_column(facts.column_names.index(name), name, size)
        return fingerprint(digest(facts, facts.column_names), self.structures)


def scan(
    settings: ArchiveSettings,
    folder: Place,
    archive_folder: Place,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Look at everything an archive lists and write the catalog into a folder.

    A synthetic archive is written into `archive_folder` first, where it is not there yet;
    `progress` is told patients written and patients in all. Images and labels that have not
    changed since the last scan are not opened again, and neither is what a scan had read
    before it was killed.

    Raises:
        ArchiveError: the archive as a whole cannot be used.
    """
    if settings.importer == "synthetic":
        phantoms.materialize(settings.synthetic, archive_folder, progress)
        root = archive_folder
    else:
        root = Place.of(settings.root or ".")
    structures = structures_of(settings)
    with known_in(folder):
        found, quarantined = _listed(found_in(settings, root))
        _refuse_twins(found, root, settings.importer == "list")
        found, told = _told(found, quarantined, root)
        usable, unusable = _looked(found, folder, settings.max_voxels)
    roles = drawn(usable, settings.split) if told is None else checked(usable, told)
    if told is not None:
        quarantined += _left_out(usable, roles, told)
    cases = Cases(_with_roles(usable, roles))
    quarantined += unusable
    write_rows(folder, cases.table, quarantined, structures)
    return Catalog(cases, tuple(quarantined), structures)


def load(folder: Place) -> Catalog:
    """Read the catalog that a scan wrote.

    Raises:
        WorkspaceError: there is none, or it is damaged.
    """
    table, quarantined, structures = read_rows(folder)
    return Catalog(Cases(table), quarantined, structures)


# --- listing ------------------------------------------------------------------------------


def _listed(items: Iterator[Found | Quarantined]) -> tuple[Any, list[Quarantined]]:
    """Put what importers name into columns, in order of case, a few at a time."""
    import pyarrow as pa

    tables, quarantined = [_columns([])], []
    while some := list(islice(items, _AT_ONCE)):
        named: list[Found] = []
        for item in some:
            if isinstance(item, Found) and _is_text(item):
                named.append(item)
            else:
                quarantined.append(_set_aside(item))
        tables.append(_columns(named))
    return pa.concat_tables(tables).sort_by("case"), quarantined


def _columns(found: Sequence[Found]) -> Any:
    import pyarrow as pa

    columns = {name: [getattr(one, name) for one in found] for name in _FOUND}
    return pa.table(columns, pa.schema([(name, pa.string()) for name in _FOUND]))


def _is_text(found: Found) -> bool:
    told = f"{found.case}{found.patient}{found.image}{found.label}"
    return told.isascii() or told.encode(errors="replace").decode() == told


def _set_aside(item: Found | Quarantined) -> Quarantined:
    """Return what cannot be used in words that a table can hold."""
    bad = item
    if isinstance(bad, Found):
        bad = Quarantined(bad.image, "its name, or its label's, is no UTF-8, which tables want; rename it")
    return Quarantined(
        *(text.encode(errors="backslashreplace").decode() for text in (bad.address, bad.reason))
    )


def _refuse_twins(found: Any, root: Place, is_list: bool) -> None:
    import pyarrow.compute as pc

    case = found["case"]
    again = pc.equal(case.slice(1), case.slice(0, max(0, len(case) - 1)))
    twin = pc.index(again, True).as_py()
    if twin >= 0:
        one, other = found.slice(twin, 2).to_pylist()
        raise ArchiveError(
            f"{root} has two cases named {one['case']}, {one['image']} and {other['image']}; "
            f"expected different names, {'tell them apart in column case' if is_list else 'rename one'}"
        )


# --- roles --------------------------------------------------------------------------------


def _told(found: Any, quarantined: Sequence[Quarantined], root: Place) -> tuple[Any, Told | None]:
    """Return found files with the roles that are written down, and where that is; None if nowhere."""
    import pyarrow.compute as pc

    roles = told_splits(root)
    if roles is not None:
        _refuse_strangers(roles, found, quarantined, root)
        found = found.set_column(_FOUND.index("role"), "role", roles_told(roles, found["case"]))
        return found, Told("splits.json", Role.UNLABELED in roles.values())
    if found["role"].null_count == len(found):
        return found, None
    complete = pc.any(pc.equal(found["role"], Role.UNLABELED.value)).as_py()
    return found, Told(root.name, bool(complete))


def _refuse_strangers(
    told: Mapping[str, Role], found: Any, quarantined: Sequence[Quarantined], root: Place
) -> None:
    """Refuse names in splits.json that no file has: a typing error would move a case silently."""
    import pyarrow as pa
    import pyarrow.compute as pc

    named = pa.array(list(told), pa.string())
    strangers = set(named.filter(pc.invert(pc.is_in(named, value_set=found["case"]))).to_pylist())
    for bad in quarantined if strangers else ():
        stem = formats.stem(Place(bad.address).name)
        # nnU-Net's files end in a channel, its cases do not.
        strangers -= {stem, stem.rpartition("_")[0]}
    if strangers:
        raise ArchiveError(
            f"{root}/splits.json names {len(strangers)} cases that are not there, first {min(strangers)}; "
            "correct the names, or add the images"
        )


def _left_out(usable: Any, roles: Any, told: Told) -> list[Quarantined]:
    import pyarrow.compute as pc

    reason = f"{told.source} does not name it; add it to a list if it should take part"
    if told.source != "splits.json":
        reason = f"{told.source} gives it no role; fill one in if it should take part"
    return [Quarantined(image, reason) for image in usable["image"].filter(pc.is_null(roles)).to_pylist()]


def _looked(found: Any, folder: Place, max_voxels: int) -> tuple[Any, list[Quarantined]]:
    """Return files that can be used with what headers say about them, and the others with the reason."""
    import pyarrow as pa
    import pyarrow.compute as pc

    seen = Seen(folder)
    looks, unusable = looked_at(found, seen, max_voxels)
    usable = pa.table([*found.columns, *looks.columns], [*found.column_names, *looks.column_names])
    if usable["stamp"].null_count:
        usable = usable.filter(pc.is_valid(usable["stamp"]))
    seen.finish(usable.select(["image", "label", *LOOK]))
    return usable, unusable


def _with_roles(usable: Any, roles: Any) -> Any:
    """Return the columns of cases that have a role; labels of unlabeled cases are hidden."""
    import pyarrow as pa
    import pyarrow.compute as pc

    label, none = usable["label"], pa.scalar(None, pa.string())
    unlabeled = pc.equal(roles, Role.UNLABELED.value)
    columns = {name: usable[name] for name in usable.column_names} | {
        "role": roles,
        "label": pc.if_else(unlabeled, none, label),
        "hidden": pc.if_else(unlabeled, label, none),
    }
    return pa.table(columns).filter(pc.is_valid(roles))
