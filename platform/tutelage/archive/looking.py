"""Looking at what an archive lists: headers and stamps, never voxels.

What has not changed since an earlier look is not opened again. What cannot be used is set
aside with its reason, and the others go on. A batch of files is in memory at a time.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.archive import formats
from tutelage.archive.parallel import each_in_turn
from tutelage.archive.seen import LOOK, Seen, look_schema
from tutelage.archive.volume import refuse_large
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.records import Quarantined

_BATCH = 8192
"""Files between two writes: what a scan that is killed has looked at in vain."""

_SLICE = 32
"""Stamps that one reader takes at once, and the least number of slices to share among readers."""

Stamps = tuple[str, str]
"""Of image and label; the label's is empty where there is none."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What the header of an image says that was opened."""

    row: int
    """In the batch."""

    grid: Grid
    channels: int
    stamps: Stamps


def looked_at(found: Any, seen: Seen, max_voxels: int) -> tuple[Any, list[Quarantined]]:
    """Look at every image and label of a table; columns image and label.

    Returns columns of looks beside the table's, null where something cannot be used, and why.
    """
    import pyarrow as pa

    looks, bad = [], []
    for batch in found.select(["image", "label"]).to_batches(max_chunksize=_BATCH):
        look, unusable = _batch(batch, seen, max_voxels)
        looks.append(look)
        bad += unusable
    return pa.concat_tables([look_schema().empty_table(), *looks]), bad


def _batch(batch: Any, seen: Seen, max_voxels: int) -> tuple[Any, list[Quarantined]]:
    import pyarrow as pa

    files = batch.to_pylist()
    stamped = list(each_in_turn(_stamps, files, at_once=max(1, min(_SLICE, len(files) // _SLICE))))
    rows = seen.rows(batch.column("image"))
    known = seen.table.take(pa.array(rows, mask=rows < 0))
    same = _same(known, files, stamped)
    fits = _fits(known, max_voxels)
    kept = np.flatnonzero(same & fits)
    opened = [
        (row, files[row], told)
        for row, told in enumerate(stamped)
        if not isinstance(told, Quarantined) and not (same[row] and fits[row])
    ]
    answers = list(each_in_turn(lambda item: _opened(*item, max_voxels), opened))
    fresh = [look for look in answers if isinstance(look, _Look)]
    read = _table(fresh)
    if fresh:
        image_and_label = batch.take([look.row for look in fresh])
        seen.keep(pa.table(dict(zip(("image", "label", *LOOK), [*image_and_label, *read], strict=True))))
    # Rows of those that were known, then of those that were opened, then of none.
    order = np.full(len(files), len(kept) + len(fresh), np.int64)
    order[kept] = np.arange(len(kept))
    order[[look.row for look in fresh]] = len(kept) + np.arange(len(fresh))
    both = pa.concat_tables([known.select(list(LOOK)).take(kept), read])
    look = both.take(pa.array(order, mask=order == len(both)))
    return look, [answer for answer in (*stamped, *answers) if isinstance(answer, Quarantined)]


def _same(known: Any, files: Sequence[Mapping[str, Any]], stamped: Sequence[Stamps | Quarantined]) -> Any:
    """Tell which files are as they were when they were opened."""
    before = zip(
        *(known[name].to_pylist() for name in ("image", "label", "stamp", "label_stamp")), strict=True
    )
    now = (
        None if isinstance(told, Quarantined) else (file["image"], file["label"], *told)
        for file, told in zip(files, stamped, strict=True)
    )
    return np.fromiter((a == b for a, b in zip(now, before, strict=True)), bool, len(files))


def _fits(known: Any, max_voxels: int) -> Any:
    shapes = np.array([shape or (0, 0, 0) for shape in known["shape"].to_pylist()], float).reshape(-1, 3)
    channels = np.array([count or 0 for count in known["channels"].to_pylist()], float)
    return shapes.prod(axis=1) * channels <= max_voxels


def _table(looks: Sequence[_Look]) -> Any:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        "shape": [list(look.grid.shape) for look in looks],
        "affine": [[v for line in look.grid.affine for v in line] for look in looks],
        "channels": [look.channels for look in looks],
        "stamp": [look.stamps[0] for look in looks],
        "label_stamp": [look.stamps[1] for look in looks],
    }
    return pa.table(columns, look_schema())


# --- one file -----------------------------------------------------------------------------


def _stamps(file: Mapping[str, Any]) -> Stamps | Quarantined:
    address = file["image"]
    try:
        with _blaming(address):
            image = formats.stamp(address)
        with _blaming(file["label"] or ""):
            return image, formats.stamp(file["label"]) if file["label"] else ""
    except _UnusableError as error:
        return error.bad


def _opened(row: int, file: Mapping[str, Any], stamps: Stamps, max_voxels: int) -> _Look | Quarantined:
    try:
        with _blaming(file["image"]):
            header = formats.header(file["image"])
            refuse_large(header.grid, header.channels, max_voxels)
        if file["label"]:
            with _blaming(file["label"]):
                _check_label(file["label"], header.grid)
    except _UnusableError as error:
        return error.bad
    return _Look(row, header.grid, header.channels, stamps)


class _UnusableError(Exception):
    """Which of a case's two files cannot be used."""

    def __init__(self, bad: Quarantined) -> None:
        super().__init__(bad.address)
        self.bad = bad


@contextlib.contextmanager
def _blaming(address: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        reason, _, _ = str(error).removeprefix(f"{address}: ").partition("\n")
        raise _UnusableError(Quarantined(address, reason)) from None


def _check_label(address: str, grid: Grid) -> None:
    label = formats.header(address)
    if difference := label.grid.difference(grid):
        raise ArchiveError(f"it does not lie on its image: {difference}; resample it to the image's grid")
