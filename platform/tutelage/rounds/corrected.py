"""Labels that people have corrected: kept beside the catalog, annotated from a stage on.

A correction makes an unlabeled case an annotated one, in this campaign and from the first stage on that
had not been trained when it came. Stages before it keep what they were, so that
nothing is done again and what a round gained can still be told. The archive itself, its catalog
included, is left as it is.

It decides what is kept and where it counts. Whether a mask may be taken in, `taking` decides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tutelage.archive import formats
from tutelage.archive.cases import Cases
from tutelage.archive.catalog import Catalog
from tutelage.errors import ArchiveError, WorkspaceError
from tutelage.records import Case, Role
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class Correction:
    """One label that a person has corrected, or confirmed."""

    case: str
    by: str
    """Who did it."""

    when: str
    """When it was taken in, UTC."""

    since: int
    """Number of the first stage that learns from it."""

    round: str
    """Name of the stage whose answer was corrected."""

    image: str
    """Digest of the image that it is about."""

    stamp: str
    """Of the image's file when it was taken in."""

    label: str
    """File of the label, in the folder of corrections."""

    digest: str
    """Of the label's file."""

    masks: tuple[str | None, ...]
    """Digests of its structures' voxels, as the ledger has them."""

    changed: tuple[str, ...] = ()
    """Structures that differ from what was proposed; none where it was confirmed as it was."""


@dataclass(frozen=True)
class Corrections:
    """All of them, in the order they came."""

    folder: Place
    every: tuple[Correction, ...] = ()

    @classmethod
    def of(cls, root: Place) -> "Corrections":
        """Read those of a workspace.

        Raises:
            WorkspaceError: their list is damaged.
        """
        folder = root / "reviewed"
        place = folder / "corrections.json"
        if not place.exists():
            return cls(folder)
        try:
            told = [row | {"masks": tuple(row["masks"])} for row in json.loads(place.read_text())]
            return cls(folder, tuple(Correction(**row | {"changed": tuple(row["changed"])}) for row in told))
        except (ValueError, TypeError, KeyError) as error:
            raise WorkspaceError(
                f"{place} is damaged ({error!r}), expected the list of corrected labels; restore it, or move "
                f"{folder} away and take the corrections in again"
            ) from None

    def with_more(self, more: Sequence[Correction]) -> "Corrections":
        """Add some and keep all of them; the labels must lie in the folder already."""
        both = replace(self, every=(*self.every, *more))
        told = json.dumps([asdict(one) for one in both.every], indent=1)
        (self.folder / "corrections.json").write_text(told + "\n")
        return both

    def latest(self) -> dict[str, Correction]:
        """Return the latest correction of each case."""
        return {one.case: one for one in self.every}

    def within(self, number: int) -> dict[str, Correction]:
        """Return by case what a stage learns from."""
        return {one.case: one for one in self.every if one.since <= number}

    @property
    def last_stage(self) -> int | None:
        """The last stage in which any of them begins to count."""
        return max((one.since for one in self.every), default=None)

    def applied(self, catalog: Catalog, number: int) -> Catalog:
        """Return the catalog as a stage knows it: what was corrected before is annotated."""
        held = {case: str(self.folder / one.label) for case, one in self.within(number).items()}
        return replace(catalog, cases=annotated(catalog.cases, held)) if held else catalog

    def usable(self, catalog: Catalog, max_voxels: int) -> tuple["Corrections", list[str]]:
        """Keep what is about cases that are still there, the same and unlabeled; say what is not and why."""
        told = {case: _objection(one, catalog, max_voxels) for case, one in self.latest().items()}
        refused = {case: why for case, why in told.items() if why is not None}
        kept = tuple(one for one in self.every if one.case not in refused)
        return replace(self, every=kept), [f"{case}: {why}" for case, why in refused.items()]


def annotated(cases: Cases, labels: Mapping[str, str]) -> Cases:
    """Give unlabeled cases the labels of these addresses, and make them cases to learn from."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = cases.table
    where = pc.index_in(table["case"], value_set=pa.array(list(labels), pa.string()))
    chosen = pc.and_(pc.is_valid(where), pc.equal(table["role"], Role.UNLABELED.value))
    addresses = pa.array(list(labels.values()), pa.string()).take(where.combine_chunks())
    values: dict[str, Any] = {
        "role": pa.scalar(Role.GOLD.value),
        "label": pa.chunked_array([addresses]),
        "hidden": pa.scalar(None, pa.string()),
        "label_stamp": pa.scalar(""),  # a correction lies under a name of its own and never changes
    }
    for name, value in values.items():
        column = pc.if_else(chosen, value, table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    return Cases(table)


def _objection(correction: Correction, catalog: Catalog, max_voxels: int) -> str | None:
    """Say why a correction does not count any more."""
    index = catalog.cases.find(correction.case)
    if index is None:
        return "the catalog has no such case any more; its corrected label is kept and not used"
    case = catalog.cases[index]
    if case.role is not Role.UNLABELED:
        return f"it is for {case.role.value} now; its corrected label is kept and not used"
    if case.stamp != correction.stamp and image_of(case, max_voxels) != correction.image:
        return "its image has changed; its corrected label is kept and not used, review it again"
    return None


def image_of(case: Case, max_voxels: int) -> str | None:
    """Return the digest of a case's image as it is now; None if it cannot be read."""
    try:
        return formats.read_image(case.image, max_voxels).digest
    except ArchiveError:
        return None
