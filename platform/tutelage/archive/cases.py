"""Cases as columns: a million of them are one arrow table, and a `Case` is made when one is asked for.

Decides what the columns are called and how a row becomes a case. Knows no files and draws nothing.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from tutelage.geometry import Grid
from tutelage.records import Case, Role

TEXTS = ("case", "patient", "role", "image", "label", "hidden", "modality")
COLUMNS = (*TEXTS, "shape", "affine", "channels", "stamp", "label_stamp")
"""Of a case, in this order."""

_AT_ONCE = 4096
"""Cases that are in memory as objects while somebody goes through all of them."""


_FEW_RUNS = 16
"""Runs of cases that may be shared whatever the size; more pieces would slow down what reads them."""


def schema() -> Any:
    """Return names and types of the columns of cases."""
    import pyarrow as pa

    return pa.schema(
        [(name, pa.string()) for name in TEXTS]
        + [("shape", pa.list_(pa.int64(), 3)), ("affine", pa.list_(pa.float64(), 12))]
        + [("channels", pa.int64()), ("stamp", pa.string()), ("label_stamp", pa.string())]
    )


def case_of(row: Mapping[str, Any]) -> Case:
    """Make a case of a row; columns that are no part of a case do not count."""
    told = {name: row[name] for name in COLUMNS}
    d, h, w = (int(n) for n in told.pop("shape"))
    numbers = [float(v) for v in told.pop("affine")]
    affine = tuple(tuple(numbers[start : start + 4]) for start in (0, 4, 8))
    told |= {"role": Role(told["role"]), "channels": int(told["channels"])}
    return Case(grid=Grid((d, h, w), affine), **told)


def row_of(case: Case) -> dict[str, Any]:
    """Make a row of a case: what `case_of` reads."""
    row = {name: getattr(case, name) for name in (*TEXTS, "channels", "stamp", "label_stamp")}
    row |= {"role": case.role.value, "shape": list(case.grid.shape)}
    return row | {"affine": [value for line in case.grid.affine for value in line]}


class Cases(Sequence[Case]):
    """Cases in order of their ids; pickles as what it holds."""

    def __init__(self, table: Any) -> None:
        self.table = table.select(list(COLUMNS))
        """One row a case, in arrow."""

    @classmethod
    def of(cls, cases: Iterable[Case]) -> "Cases":
        """Collect cases that are at hand as objects, in the order they come in."""
        import pyarrow as pa

        return cls(pa.Table.from_pylist([row_of(case) for case in cases], schema()))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Case]:
        for row in rows_of(self.table):
            yield case_of(row)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> "Cases": ...
    def __getitem__(self, index: int | slice) -> "Case | Cases":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Cases(self.table.slice(start, max(0, stop - start)))
            return Cases(self.table.take(list(range(start, stop, step))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} cases, none at {index}")
        return case_of(self.table.slice(index % len(self), 1).to_pylist()[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cases) and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment] # equal by content, which is too much to hash in passing

    def __repr__(self) -> str:
        return f"Cases({len(self)})"

    def __reduce__(self) -> tuple[Callable[[bytes], "Cases"], tuple[bytes]]:
        # Arrow's own way would send along whatever a slice was cut from.
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as stream:
            stream.write_table(self.table)
        return _received, (sink.getvalue().to_pybytes(),)

    def ids(self) -> Any:
        """Return the ids as one arrow array."""
        return self.table["case"].combine_chunks()

    def find(self, case: str) -> int | None:
        """Return where a case is, by its id."""
        import pyarrow.compute as pc

        found = pc.index(self.table["case"], case).as_py()
        return None if found < 0 else int(found)

    def only(self, ids: Any) -> "Cases":
        """Keep the cases of these ids: an arrow array, or any collection of names."""
        return self.where(self._among(ids))

    def without(self, ids: Any) -> "Cases":
        """Leave out the cases of these ids: an arrow array, or any collection of names."""
        import pyarrow.compute as pc

        return self.where(pc.invert(self._among(ids)))

    def where(self, mask: Any) -> "Cases":
        """Keep the cases where an arrow array of booleans says so.

        What lies together is shared with this table and not copied: most of a large archive is unlabeled.
        """
        import numpy as np
        import pyarrow as pa

        kept = np.asarray(mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
        if len(edges) > max(_FEW_RUNS, len(kept) // _AT_ONCE):
            return Cases(self.table.filter(mask))
        runs = [self.table.slice(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist()]
        return Cases(pa.concat_tables([self.table.slice(0, 0), *runs]))

    def _among(self, ids: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(ids, Collection) and not isinstance(ids, pa.Array | pa.ChunkedArray):
            ids = pa.array(list(ids), pa.string())
        return pc.is_in(self.table["case"], value_set=ids.cast(pa.string()))

    def counts(self, *columns: str) -> dict[tuple[str, ...], int]:
        """Count cases by what columns say, as in `counts("modality", "role")`."""
        counted = self.table.group_by(list(columns)).aggregate([([], "count_all")])
        rows = sorted(tuple(row.values()) for row in counted.to_pylist())
        return {tuple(str(value) for value in row[:-1]): int(row[-1]) for row in rows}

    def identity(self) -> str:
        """One digest of which cases these are, and of their files as they were scanned, but hidden labels."""
        shown = self.table.append_column("shown", self.label_stamps())
        return digest(shown, ("case", "image", "label", "stamp", "shown"))

    def label_stamps(self) -> Any:
        """Return how the label of each case was scanned, as an arrow array; null where none may be opened."""
        import pyarrow as pa
        import pyarrow.compute as pc

        stamps = self.table["label_stamp"]
        return pc.if_else(pc.is_valid(self.table["label"]), stamps, pa.scalar(None, pa.string()))


def rows_of(table: Any, at_once: int = _AT_ONCE) -> Iterator[dict[str, Any]]:
    """Yield a table's rows, of which only a few exist at a time."""
    for batch in table.to_batches(max_chunksize=at_once):
        yield from batch.to_pylist()


def digest(table: Any, columns: Sequence[str]) -> str:
    """Twelve hex digits of columns, row for row; how the table is cut into pieces does not count."""
    whole = hashlib.sha256()
    for name in columns:
        lengths, content = hashlib.sha256(), hashlib.sha256()
        for batch in table.select([name]).to_batches(max_chunksize=_AT_ONCE):
            for part, into in zip(_parts(batch.column(0)), (lengths, content), strict=True):
                into.update(part)
        whole.update(lengths.digest() + content.digest())
    return whole.hexdigest()[:12]


def _parts(column: Any) -> tuple[bytes, bytes]:
    """Return lengths and contents of a column's values; without lengths, ab and c would be a and bc."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_string(column.type):
        texts = column.to_pylist()
        encoded = [None if text is None else text.encode() for text in texts]
        lengths = [-1 if text is None else len(text) for text in encoded]
        return np.array(lengths, "<i8").tobytes(), b"".join(text or b"" for text in encoded)
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return b"", flat.to_numpy(zero_copy_only=False).tobytes()


def _received(data: bytes) -> Cases:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as stream:
        return Cases(stream.read_all())
