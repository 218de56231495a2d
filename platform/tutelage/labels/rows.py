"""Rows: what a step did with each case, kept as parquet shards.

A shard is whole or absent, so after any kill the rows on disk are exactly the cases that
are done. A case may have several rows (it was tried again, or its image was replaced): the
latest counts. Small shards are joined now and then, so that a million cases stay a few
files. It decides how rows are kept, not what they say: a row is a flat mapping with a
`case` and an `outcome`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tutelage.storage import Place

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
"""Values that JSON can hold; nested ones are stored as JSON text."""

_SHARD_ROWS = 64
_SMALL_BYTES = 8 * 2**20
_MANY_SMALL = 128
"""Reading one small file takes about a millisecond, joining so many of them a fraction of a second."""

_BATCH_ROWS = 1024


class Rows:
    """The rows of one step in one folder. One writer at a time."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._waiting: list[Row] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row; small steps are flushed by the caller, long ones every 64 rows."""
        self._waiting.append(dict(row))
        if len(self._waiting) >= _SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make everything added so far durable."""
        if not self._waiting:
            return
        write_table(self._next(), self._waiting)
        self._waiting = []
        self._join_small()

    def keep(self, table: "pa.Table") -> None:
        """Make rows durable that are a table already, nested values JSON text."""
        _write(self._next(), table)

    def table(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """Return the latest durable row of every case, in order of case; nested values stay JSON text.

        Columns that no row has come back empty.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = None if columns is None else list(dict.fromkeys(["case", *columns]))
        parts = [_shard(place, wanted) for place in self.folder.files(".parquet")]
        if not parts:
            return pa.table({name: pa.array([], pa.string()) for name in wanted or ["case", "outcome"]})
        whole = pa.concat_tables(parts, promote_options="permissive")
        for name in wanted or []:
            if name not in whole.column_names:
                whole = whole.append_column(name, pa.nulls(whole.num_rows))
        numbered = whole.append_column("#", pa.array(range(whole.num_rows), pa.int64()))
        latest = numbered.group_by("case").aggregate([("#", "max")]).sort_by("case")
        kept = numbered.take(pc.cast(latest["#_max"], pa.int64())).drop_columns(["#"])
        return kept if wanted is None else kept.select(wanted)

    def read(self) -> list[Row]:
        """Return the latest durable row of every case, in order of case."""
        return list(rows_of(self.table()))

    def cases(self) -> set[str]:
        """Return the cases that have a durable row."""
        return set(self.table(["case"])["case"].to_pylist())

    def _next(self) -> Place:
        shards = self.folder.files(".parquet")
        number = int(shards[-1].name.removesuffix(".parquet")) + 1 if shards else 0
        return self.folder / f"{number:08d}.parquet"

    def _join_small(self) -> None:
        """Make one shard of many small ones. Rows that a kill leaves twice are the same rows."""
        import pyarrow as pa

        small = [place for place in self.folder.files(".parquet") if place.stamp()[0] < _SMALL_BYTES]
        if len(small) < _MANY_SMALL:
            return
        joined = pa.concat_tables([_shard(place, None) for place in small], promote_options="permissive")
        _write(self._next(), joined)
        for place in small:
            place.remove()


def rows_of(table: "pa.Table") -> Iterator[Row]:
    """Yield a table's rows, nested values restored; few are in memory at a time."""
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            yield {key: _unflat(value) for key, value in row.items()}


def write_table(place: Place, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as one parquet file, whole or not at all."""
    import pyarrow as pa

    told = [flat(row) for row in rows]
    names = dict.fromkeys(name for row in told for name in row)  # a failed case has fewer than others
    _write(place, pa.table({name: [row.get(name) for row in told] for name in names}))


def read_table(place: Place) -> Iterator[Row]:
    """Yield the rows of one parquet file."""
    yield from rows_of(_shard(place, None))


def flat(row: Mapping[str, Any]) -> Row:
    """Return a row whose nested values are JSON text, so that shards never disagree about a type."""
    return {key: _flat(value) for key, value in row.items()}


def _write(place: Place, table: "pa.Table") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    place.write_bytes(sink.getvalue())


def _shard(place: Place, columns: Sequence[str] | None) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(place.read_bytes()))
    there = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
    return file.read(columns=there)


_MARK = "json:"


def _flat(value: Any) -> Any:
    nested = isinstance(value, dict | list | tuple)
    return _MARK + json.dumps(value, sort_keys=True) if nested else value


def _unflat(value: Any) -> Any:
    nested = isinstance(value, str) and value.startswith(_MARK)
    return json.loads(value.removeprefix(_MARK)) if nested else value
