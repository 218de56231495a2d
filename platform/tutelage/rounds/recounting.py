"""Reading the ledger: rows that somebody asks for, and what changed from one round to another.

It reads the rounds' own ledgers a group of rows at a time and skips groups that cannot hold
what is asked for, so that memory does not grow with the archive. It decides what counts as a
change. Why a label was believed the rows say themselves; who learned from it, `tracing` finds out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.labels import arrays
from tutelage.labels.rows import Row, rows_of
from tutelage.records import Ruling
from tutelage.rounds import ledger
from tutelage.rounds.workspace import Workspace, stage_name

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_BATCH_ROWS = 4096

VERDICTS = (*(ruling.value for ruling in Ruling), "failed", ledger.CORRECTED)
"""What a row's ruling can be."""


@dataclass(frozen=True)
class Wanted:
    """Which rows; what is None does not matter."""

    case: str | None = None
    structure: str | None = None
    round: int | None = None
    verdict: str | None = None


def rounds_of(workspace: Workspace) -> list[int]:
    """Return the rounds that have a ledger.

    Raises:
        WorkspaceError: there is none yet.
    """
    found: list[int] = []
    while (workspace.stage(len(found)) / "ledger.parquet").exists():
        found.append(len(found))
    if not found:
        raise WorkspaceError(
            f"{workspace.root} has no ledger yet; it begins with the first round's `tutelage curate`"
        )
    return found


def rows(workspace: Workspace, wanted: Wanted, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield rows in order of round, case and structure; all columns, or these.

    Raises:
        SettingsError: there is no such verdict.
        WorkspaceError: there is no ledger, or it knows no such round.
    """
    if wanted.verdict is not None and wanted.verdict not in VERDICTS:
        raise SettingsError(f"--verdict is {wanted.verdict}, expected one of {', '.join(VERDICTS)}")
    there = rounds_of(workspace)
    if wanted.round is not None and wanted.round not in there:
        raise WorkspaceError(
            f"the ledger has no {stage_name(wanted.round)}, it has "
            f"{', '.join(stage_name(n) for n in there)}; name one of these"
        )
    numbers = there if wanted.round is None else [wanted.round]
    return _scanned(workspace, numbers, wanted, columns)


def _scanned(
    workspace: Workspace, numbers: Sequence[int], wanted: Wanted, columns: Sequence[str] | None
) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.dataset as ds

    options = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    for number in numbers:
        place = workspace.stage(number) / "ledger.parquet"
        batches = ds.dataset(place.uri, schema=ledger.schema(), format="parquet").to_batches(
            columns=None if columns is None else list(columns),
            filter=_filter(wanted),
            batch_size=_BATCH_ROWS,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
            fragment_scan_options=options,
        )
        for batch in batches:
            yield from rows_of(pa.Table.from_batches([batch]))


def _filter(wanted: Wanted) -> "ds.Expression | None":
    import pyarrow.compute as pc

    asked = {"case": wanted.case, "structure": wanted.structure, "ruling": wanted.verdict}
    told = [pc.field(name) == value for name, value in asked.items() if value is not None]
    if not told:
        return None
    whole = told[0]
    for one in told[1:]:
        whole = whole & one
    return whole


# --- what changed -------------------------------------------------------------------------

ACCEPTED, REJECTED, LABEL, SAME = "newly accepted", "newly rejected", "label changed", "same"
APPEARED, GONE = "appeared", "gone"

_COMPARED = (
    *("case", "structure", "ruling", "weight", "reasons", "agreement", "predicted_dice", "mask"),
    "specialist_ml",
)


@dataclass(frozen=True, slots=True)
class Change:
    """One structure of one case in two rounds."""

    case: str
    structure: str
    kind: str
    before: Row | None
    """What was said of it; None where nothing was."""
    after: Row | None
    overlap: float | None = None
    """IoU of its voxels in both labels; None where nobody compared them."""


def compared(workspace: Workspace, before: int, after: int, structure: str | None = None) -> Iterator[Change]:
    """Yield every structure of every case of two rounds, in order of case, changed or not.

    A label counts as changed if a structure's voxels did that both rounds believe.
    """
    wanted = [Wanted(structure=structure, round=number) for number in (before, after)]
    both = [groupby(rows(workspace, one, _COMPARED), lambda row: row["case"]) for one in wanted]
    nothing: tuple[None, Iterator[Row]] = (None, iter(()))
    one, other = (next(groups, nothing) for groups in both)
    while one[0] is not None or other[0] is not None:
        first = min(name for name in (one[0], other[0]) if name is not None)
        old = {row["structure"]: row for row in one[1]} if one[0] == first else {}
        new = {row["structure"]: row for row in other[1]} if other[0] == first else {}
        for name in dict.fromkeys([*old, *new]):
            earlier, later = old.get(name), new.get(name)
            yield Change(first, name, kind_of(earlier, later), earlier, later)
        one = next(both[0], nothing) if one[0] == first else one
        other = next(both[1], nothing) if other[0] == first else other


def kind_of(before: Row | None, after: Row | None) -> str:
    """Say in two words what changed."""
    if before is None or after is None:
        return APPEARED if before is None else GONE
    was, now = before["ruling"], after["ruling"]
    if was != now:
        named = {Ruling.ACCEPT.value: ACCEPTED, Ruling.REJECT.value: REJECTED}
        return named.get(now, f"newly {now}")
    believed = now in (Ruling.ACCEPT.value, Ruling.PARTIAL.value, ledger.CORRECTED)
    return LABEL if believed and before["mask"] != after["mask"] else SAME


def overlap(workspace: Workspace, before: int, after: int, case: str, value: int) -> float | None:
    """Return the IoU of a structure's voxels in the labels of two rounds; None if one is not there."""
    masks = []
    for number in (before, after):
        folder = workspace.stage(number) / "labels"
        if not arrays.file_of(folder, case).exists():
            return None
        masks.append(arrays.read_label(folder, case).mask_DHW == value)
    either = np.count_nonzero(masks[0] | masks[1])
    return float(np.count_nonzero(masks[0] & masks[1]) / either) if either else 1.0


@dataclass(frozen=True)
class Difference:
    """What changed from one round to another."""

    counts: dict[str, int]
    """By kind, over all structures."""
    by_structure: dict[str, dict[str, int]]
    agreement: dict[str, tuple[float, float]]
    """Mean agreement of specialist and generalist by structure, before and after, where both found it."""
    changes: tuple[Change, ...]
    """The first of each kind, with the overlap of labels where both believe one."""


def difference(
    workspace: Workspace, before: int, after: int, most: int, structure: str | None = None
) -> Difference:
    """Count what changed and keep the first `most` changes of each kind; 0 keeps all."""
    counts: Counter[str] = Counter()
    by_structure: dict[str, Counter[str]] = {}
    sums: dict[str, Any] = {}
    kept: dict[str, list[Change]] = {}
    for change in compared(workspace, before, after, structure):
        counts[change.kind] += 1
        by_structure.setdefault(change.structure, Counter())[change.kind] += 1
        both = [row for row in (change.before, change.after) if row is not None and row["specialist_ml"]]
        told = [row["agreement"] for row in both]  # of what was found; two that find nothing agree wholly
        if len(told) == 2 and None not in told:
            sums[change.structure] = sums.get(change.structure, np.zeros(3)) + np.array([*told, 1.0])
        if change.kind != SAME and (not most or len(kept.setdefault(change.kind, [])) < most):
            kept.setdefault(change.kind, []).append(change)
    return Difference(
        counts=dict(counts.most_common()),
        by_structure={name: dict(counted.most_common()) for name, counted in by_structure.items()},
        agreement={name: (total[0] / total[2], total[1] / total[2]) for name, total in sums.items()},
        changes=tuple(change for kind in _in_order(kept) for change in kept[kind]),
    )


def with_overlap(
    workspace: Workspace, before: int, after: int, change: Change, structures: Sequence[str]
) -> Change:
    """Compare the voxels of a label that changed."""
    if change.kind != LABEL or change.structure not in structures:
        return change
    value = structures.index(change.structure) + 1
    found = overlap(workspace, before, after, change.case, value)
    return Change(change.case, change.structure, change.kind, change.before, change.after, found)


def _in_order(kept: dict[str, list[Change]]) -> list[str]:
    """Kinds that people ask about first, then the others."""
    first = [kind for kind in (ACCEPTED, REJECTED, LABEL) if kind in kept]
    return [*first, *sorted(kind for kind in kept if kind not in first)]
