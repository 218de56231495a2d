"""Rows: what a step did with each case, kept as parquet shards that only ever grow.

A shard is whole or absent, so after any kill the rows on disk are exactly the cases that
are done. It decides how rows are kept, not what they say: a row is a flat mapping with a
`case` and an `outcome`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from tutelage.storage import Place

Row = dict[str, Any]
"""Values that JSON can hold; nested ones are stored as JSON text."""

_SHARD_ROWS = 64


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
        number = len(self.folder.files(".parquet"))
        write_table(self.folder / f"{number:06d}.parquet", self._waiting)
        self._waiting = []

    def read(self) -> list[Row]:
        """Return all durable rows in order of case."""
        rows = [row for shard in self.folder.files(".parquet") for row in read_table(shard)]
        return sorted(rows, key=lambda row: str(row["case"]))

    def cases(self) -> set[str]:
        """Return the cases that have a durable row."""
        return {str(row["case"]) for row in self.read()}


def write_table(place: Place, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as one parquet file, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    flat = [{key: _flat(value) for key, value in row.items()} for row in rows]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), sink, compression="zstd")
    place.write_bytes(sink.getvalue().to_pybytes())


def read_table(place: Place) -> Iterator[Row]:
    """Yield the rows of one parquet file."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pyarrow.BufferReader(place.read_bytes()))
    for row in table.to_pylist():
        yield {key: _unflat(value) for key, value in row.items()}


_MARK = "json:"


def _flat(value: Any) -> Any:
    """Nested values become JSON text, so that shards never disagree about a type."""
    nested = isinstance(value, dict | list | tuple)
    return _MARK + json.dumps(value, sort_keys=True) if nested else value


def _unflat(value: Any) -> Any:
    nested = isinstance(value, str) and value.startswith(_MARK)
    return json.loads(value.removeprefix(_MARK)) if nested else value
