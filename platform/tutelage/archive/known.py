"""What DICOM headers said, kept from scan to scan so that only new and changed files are read.

One row a file, by address, size and time of change. What a scan has read is written as it
goes, and becomes one table when it has met all files; those it has not met drop out. Files
that are no DICOM are kept as such. Damaged ones are not: it may have been the reading that
failed, and they are few. Rows of another release, or with another secret in the names of
patients, do not count. A damaged table is forgotten; all it costs is time.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np

from tutelage import __version__
from tutelage.archive.headers import Instance, seal, shared
from tutelage.archive.rows import read_parquet, write_parquet
from tutelage.archive.series import TELLING, Frame
from tutelage.storage import Place

_SHARD = 8192
"""Files between two writes: what a scan that is killed has read in vain."""

_BLOCK = 256
"""Frames that become objects together: files are asked for a folder at a time."""

_BLOCKS = 256
"""Blocks whose objects stay in memory."""

_ALIKE = ("state", "reason", "series", "number", "patient", "modality", "photometric")
"""Text that many files share."""

_PER_FRAME = {
    "position": 3, "orientation": 6, "spacing": 2, "size": 3, "slope": 1, "intercept": 1,
    "tells": len(TELLING),
}  # fmt: skip
"""How many values every frame has, in the order of a Frame's fields; they lie one after the other."""


class Known:
    """What headers said in earlier scans and in this one, which is asked file by file."""

    def __init__(self, folder: Place) -> None:
        self._whole = folder / "instances.parquet"
        self._shards = folder / "instances"
        self._lock = Lock()
        self._table: _Table | None = None
        self._count = 0
        self._fresh: list[Any] = []
        self._waiting: list[Instance] = []
        self._kept: set[int] = set()

    def get(self, file: str, stamp: tuple[int, int]) -> Instance | None:
        """Return what is known about a file, if it has not changed."""
        with self._lock:
            return self._opened().get(file, stamp)

    def keep(self, one: Instance) -> None:
        """Make durable what a header said that is not known yet, if it is of use."""
        key = hash((one.file, one.stamp))
        with self._lock:
            if one.state == "damaged" or key in self._kept:
                return
            self._kept.add(key)
            self._waiting.append(one)
            if len(self._waiting) >= _SHARD:
                self._fresh.append(_rows(self._waiting))
                self._waiting = []
                write_parquet(self._shards / f"{self._count:06d}.parquet", self._fresh[-1])
                self._count += 1

    def settle(self) -> None:
        """Have exactly the files from now on that were asked for until now."""
        import pyarrow as pa

        with self._lock:
            old = self._table
            if old is None or not (self._count or self._waiting or not old.met.all()):
                return
            met = old.table.filter(pa.array(old.met))
            self._table = _Table(pa.concat_tables([met, *self._fresh, _rows(self._waiting)]), met=True)
            self._fresh, self._waiting, self._kept = [], [], set()
            write_parquet(self._whole, self._table.table)
            self._shards.remove()
            self._count = 0

    def _opened(self) -> "_Table":
        if self._table is None:
            import pyarrow as pa

            shards: list[Place] = []
            with contextlib.suppress(OSError):
                shards = self._shards.files(".parquet")
            self._count = len(shards)
            self._table = _Table(pa.concat_tables(list(_stored([self._whole, *shards]))), met=False)
        return self._table


def _stored(places: Sequence[Place]) -> Iterator[Any]:
    import pyarrow as pa

    wanted = _schema()
    yield wanted.empty_table()
    for place in places:
        with contextlib.suppress(OSError, KeyError, pa.ArrowException):
            table = read_parquet(place)
            if table.schema.equals(wanted) and table.schema.metadata == wanted.metadata:
                table.validate(full=True)
                yield table.cast(wanted)


# --- rows ---------------------------------------------------------------------------------


class _Table:
    """Rows in order of their files, made objects a block at a time."""

    def __init__(self, table: Any, met: bool) -> None:
        import pyarrow.compute as pc

        # In one piece, because rows are picked from it again and again.
        self.table = table.sort_by("file").unify_dictionaries().combine_chunks()
        self.met = np.full(len(table), met)
        """Which rows were asked for."""

        frames = np.maximum(1, pc.list_value_length(self.table["slope"]).to_numpy())
        _, self._starts = np.unique(np.cumsum(frames) // _BLOCK, return_index=True)
        self._firsts = self.table["file"].take(self._starts).to_pylist()
        self._block = lru_cache(_BLOCKS)(self._made)

    def get(self, file: str, stamp: tuple[int, int]) -> Instance | None:
        """Return what is known about a file, if it has not changed, and note that it was asked for."""
        block = bisect_right(self._firsts, os.fsencode(file)) - 1
        row, one = self._block(block).get(file, (0, None)) if block >= 0 else (0, None)
        if one is None or one.stamp != stamp:
            return None
        self.met[row] = True
        return one

    def _made(self, block: int) -> dict[str, tuple[int, Instance]]:
        start, stop = [*self._starts, len(self.table)][block : block + 2]
        made = _instances(self.table.slice(start, stop - start))
        return {one.file: (row, one) for row, one in enumerate(made, start=int(start))}


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"size": pa.int32(), "tells": pa.string()}
    return pa.schema(
        [
            ("file", pa.large_binary()),
            ("bytes", pa.int64()),
            ("changed", pa.int64()),
            *((name, pa.dictionary(pa.int32(), pa.string())) for name in _ALIKE),
            ("localizer", pa.bool_()),
            ("uid", pa.string()),
            *((name, pa.list_(kinds.get(name, pa.float64()))) for name in _PER_FRAME),
        ],
        {"release": __version__, "seal": seal()},
    )


def _rows(some: Sequence[Instance]) -> Any:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        # Names of files need not be UTF-8.
        "file": [os.fsencode(one.file) for one in some],
        "bytes": [one.stamp[0] for one in some],
        "changed": [one.stamp[1] for one in some],
        **{name: [getattr(one, name) for one in some] for name in (*_ALIKE, "localizer")},
        "uid": [one.frames[0].uid if one.frames else "" for one in some],
        **{name: [_flat(one, name) for one in some] for name in _PER_FRAME},
    }
    return pa.table(columns, _schema())


def _flat(one: Instance, name: str) -> list[Any]:
    values = [getattr(frame, name) for frame in one.frames]
    return values if _PER_FRAME[name] == 1 else [part for value in values for part in value]


def _instances(some: Any) -> Iterator[Instance]:
    """Make rows objects, column by column: row by row would take five times as long."""
    import pyarrow as pa
    import pyarrow.compute as pc

    files = map(os.fsdecode, some["file"].to_pylist())
    stamps = zip(some["bytes"].to_pylist(), some["changed"].to_pylist(), strict=True)
    alike = zip(*(some[name].cast(pa.string()).to_pylist() for name in _ALIKE), strict=True)
    counts = pc.list_value_length(some["slope"]).to_pylist()
    frames = zip(*(_per_frame(some[name], name) for name in _PER_FRAME), strict=True)
    rows = zip(
        files, stamps, alike, some["localizer"].to_pylist(), some["uid"].to_pylist(), counts, strict=True
    )
    for file, stamp, texts, localizer, uid, count in rows:
        own = tuple(Frame(file, n, uid, *values) for n, values in enumerate(islice(frames, count)))
        told = dict(zip(_ALIKE, texts, strict=True))
        yield Instance(file, stamp, localizer=localizer, frames=own, **told)


def _per_frame(column: Any, name: str) -> Iterator[Any]:
    """Return what each frame says, one after the other."""
    import pyarrow.compute as pc

    parts, size = pc.list_flatten(column).to_numpy().tolist(), _PER_FRAME[name]
    if size == 1:
        return iter(parts)
    values = zip(*(parts[n::size] for n in range(size)), strict=True)
    # Places are nobody else's; kept once each they would drive out what is alike.
    return values if name == "position" else map(shared, values)
